//! The hookscript of a container: ours, another one, or broken.

use crate::pve::conf::document::Document;
use crate::pve::storage;
use crate::pve::storage::Storage;
use crate::sys::file;
use crate::sys::look::{Look, Op, Question, Seen};
use std::path::{Path, PathBuf};

/// The snippet that Proxmox calls; part of the program, so that `attach` needs
/// no other file.
pub const SNIPPET: &str = include_str!("../../hooks/phoenix-nvidia");
/// Its name in a storage.
pub const NAME: &str = "phoenix-nvidia";
/// Marks our snippet, in all versions.
const MARK: &[u8] = b"# The hookscript of phoenix-nvidia";
/// The limit of a conf, in bytes.
const MAX_CONF: u64 = 1 << 20;

/// What `hookscript:` of a conf refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hookscript {
    /// Nothing.
    None,
    /// Our snippet.
    Ours(Place),
    /// Another one.
    Foreign(Place),
    /// The storage does not exist or holds no snippets: no start succeeds.
    NoStorage(String),
    /// The file is not there: no start succeeds.
    Missing(Place),
    /// The file cannot be executed: no start succeeds.
    NotExecutable(Place),
    /// It cannot be checked, and why: its storage does not answer.
    Unseen(Place, String),
}

/// A volume id and the file behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `local:snippets/phoenix-nvidia`
    pub volume: String,
    /// The file.
    pub path: PathBuf,
}

impl Hookscript {
    /// That of a container; `look` has the answers to [`Hookscript::questions`].
    pub fn of(look: &Look, storages: &[Storage], conf: &Document) -> Hookscript {
        let Some(volume) = conf.get("hookscript") else { return Hookscript::None };
        let Some(path) = storage::path_of(storages, &volume) else { return Hookscript::NoStorage(volume) };
        let at = path.to_string_lossy().into_owned();
        let place = Place { volume, path };
        match look.stat(&at) {
            Seen::Is(stat) if !stat.is_file() => return Hookscript::Missing(place),
            Seen::Is(stat) if stat.mode & 0o111 == 0 => return Hookscript::NotExecutable(place),
            Seen::Is(_) => {}
            Seen::Absent => return Hookscript::Missing(place),
            Seen::Unseen(why) => return Hookscript::Unseen(place, why),
        }
        match is_ours(look, &at) {
            Seen::Is(true) => Hookscript::Ours(place),
            Seen::Is(false) | Seen::Absent => Hookscript::Foreign(place),
            Seen::Unseen(why) => Hookscript::Unseen(place, why),
        }
    }

    /// The files that [`Hookscript::of`] checks.
    pub fn questions(storages: &[Storage], conf: &Document) -> Vec<Question> {
        let volume = conf.get("hookscript").unwrap_or_default();
        storage::path_of(storages, &volume).map(|path| questions(&path)).unwrap_or_default()
    }

    /// Whether it is ours, also if broken.
    pub fn is_meant(&self) -> bool {
        match self {
            Hookscript::Ours(_) => true,
            Hookscript::Missing(place) | Hookscript::NotExecutable(place) | Hookscript::Unseen(place, _) => {
                is_ours_by_name(&place.volume)
            }
            Hookscript::NoStorage(volume) => is_ours_by_name(volume),
            Hookscript::None | Hookscript::Foreign(_) => false,
        }
    }

    /// One word for a table.
    pub fn word(&self) -> &'static str {
        match self {
            Hookscript::Ours(_) => "yes",
            Hookscript::None => "no",
            Hookscript::Foreign(_) => "other",
            Hookscript::NoStorage(_) | Hookscript::Missing(_) | Hookscript::NotExecutable(_) => "broken",
            Hookscript::Unseen(..) => "unknown",
        }
    }
}

/// Whether a volume id is that of our snippet, by its name.
pub fn is_ours_by_name(volume: &str) -> bool {
    storage::snippet(volume).is_some_and(|(_, name)| name == NAME)
}

/// The confs of containers and virtual machines in `nodes` that name a snippet,
/// also in a snapshot: a rollback restores that. A guest without its
/// hookscript does not start.
///
/// # Errors
/// A conf that cannot be read.
pub fn named_by(nodes: &Path, storages: &[Storage], place: &Place) -> std::io::Result<Vec<PathBuf>> {
    let leads_there = |volume: &str| {
        volume == place.volume || storage::path_of(storages, volume).is_some_and(|path| path == place.path)
    };
    let mut found = Vec::new();
    for node in std::fs::read_dir(nodes)? {
        let node = node?.path();
        for kind in ["lxc", "qemu-server"] {
            let confs = match std::fs::read_dir(node.join(kind)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for conf in confs {
                let conf = conf?.path();
                if conf.extension().is_none_or(|end| end != "conf") {
                    continue;
                }
                let bytes = match file::read(&conf, MAX_CONF) {
                    // Destroyed or migrated meanwhile.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    other => other?,
                };
                let entries = Document::from(bytes).entries();
                if entries.iter().any(|entry| entry.key == "hookscript" && leads_there(&entry.value)) {
                    found.push(conf);
                }
            }
        }
    }
    Ok(found)
}

/// The checks of a file that may be a hookscript.
pub fn questions(path: &Path) -> Vec<Question> {
    [Op::Stat, Op::StatLink, Op::Real, Op::Head].map(|op| Question::new(op, path.to_string_lossy())).to_vec()
}

/// Whether a file is our snippet, or a link to the program itself.
pub fn is_ours(look: &Look, path: &str) -> Seen<bool> {
    if matches!(look.real(path), Seen::Is(real) if Path::new(&real).ends_with("usr/sbin/phoenix-nvidia")) {
        return Seen::Is(true);
    }
    look.head(path).map(|start| start[..start.len().min(4096)].windows(MARK.len()).any(|w| w == MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snippet_knows_itself() {
        assert!(SNIPPET.as_bytes().windows(MARK.len()).any(|w| w == MARK));
        assert!(SNIPPET.starts_with("#!/bin/sh\n"));
    }

    #[test]
    fn every_conf_that_names_a_snippet_is_found_and_no_look_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let storages = storage::parse("dir: other\n\tpath /var/lib/vz\n\tcontent snippets\n");
        let place = Place {
            volume: "local:snippets/phoenix-nvidia".into(),
            path: "/var/lib/vz/snippets/phoenix-nvidia".into(),
        };
        let names = || named_by(&dir.path().join("nodes"), &storages, &place);
        assert!(names().is_err(), "/etc/pve is not served");
        let write = |name: &str, text: &str| {
            let path = dir.path().join("nodes").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o640).unwrap();
        };
        write(
            "alpha/lxc/101.conf",
            "hookscript: local:snippets/phoenix-nvidia-2\n#hookscript: local:snippets/phoenix-nvidia\n",
        );
        write("alpha/lxc/101.conf.tmp.7", "hookscript: local:snippets/phoenix-nvidia\n");
        assert!(names().unwrap().is_empty());
        write("beta/lxc/102.conf", "memory: 5\n\n[snap]\nhookscript: local:snippets/phoenix-nvidia\n");
        write("beta/qemu-server/103.conf", "hookscript: other:snippets/phoenix-nvidia\n");
        assert_eq!(names().unwrap().len(), 2);
    }

    /// As anything that cannot be seen: nobody can say that nothing names it.
    #[test]
    fn a_conf_that_is_no_file_is_waited_for_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let confs = dir.path().join("one/lxc");
        std::fs::create_dir_all(&confs).unwrap();
        nix::unistd::mkfifo(&confs.join("101.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let place = Place { volume: "local:snippets/x".into(), path: "/x".into() };
        let error = named_by(dir.path(), &[], &place).unwrap_err();
        assert_eq!(file::in_its_place(&error), Some(file::NotRegular("a FIFO")));
    }

    #[test]
    fn each_state_of_a_hookscript_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let snippets = dir.path().join("var/lib/vz/snippets");
        std::fs::create_dir_all(&snippets).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            crate::sys::replace::replace_own(&snippets.join(name), text.as_bytes(), mode).unwrap();
        };
        write("phoenix-nvidia", SNIPPET, 0o755);
        write("theirs", "#!/bin/sh\n", 0o755);
        write("plain", SNIPPET, 0o644);
        let storages = storage::parse("dir: local\n\tpath /var/lib/vz\n\tcontent snippets\n");
        let look = Look::new(dir.path());
        let word = |line: &str| {
            let hook = Hookscript::of(&look, &storages, &Document::parse(line.as_bytes()));
            (hook.word(), hook.is_meant())
        };
        assert_eq!(word("memory: 5\n"), ("no", false));
        assert_eq!(word("hookscript: local:snippets/phoenix-nvidia\n"), ("yes", true));
        assert_eq!(word("hookscript: local:snippets/theirs\n"), ("other", false));
        assert_eq!(word("hookscript: local:snippets/plain\n"), ("broken", false));
        assert_eq!(word("hookscript: gone:snippets/phoenix-nvidia\n"), ("broken", true));
        assert_eq!(word("hookscript: local:snippets/gone\n"), ("broken", false));
    }
}
