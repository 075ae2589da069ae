//! The descriptions for the engines in a container: what a look for them finds,
//! and how they are written and removed there.

use super::exec::{Guest, fields};
use crate::driver::cdi::{FILES, Found};
use crate::driver::injection::Place;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::process::Output;
use crate::sys::time::Deadline;
use crate::types::Version;
use std::io::Cursor;

const LOOK: &str = concat!(include_str!("scripts/cdi.sh"), include_str!("scripts/cdi-look.sh"));
const WRITE: &str = concat!(include_str!("scripts/cdi.sh"), include_str!("scripts/cdi-write.sh"));

/// More than a driver has files: two names for each of a hundred libraries.
const MOST: usize = 400;
/// Docker's first version with CDI, and the first that has it on by itself.
const DOCKER: [(u32, u32); 2] = [(25, 0), (28, 2)];
/// Podman's first version with CDI, and the first that takes a name of digits.
const PODMAN: [(u32, u32); 2] = [(4, 1), (4, 3)];

/// A description of the same GPUs that is not ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Other {
    /// The file.
    pub path: String,
    /// The driver version that it names.
    pub made_for: Option<String>,
}

/// What Docker's daemon.json says of CDI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// There is none.
    #[default]
    Absent,
    /// CDI is on.
    On,
    /// It has features, and CDI is none of them.
    Features,
    /// It has none.
    Other,
}

/// Docker in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Docker {
    /// `26.1`, where it says so.
    pub version: Option<(u32, u32)>,
    /// Its settings.
    pub daemon: Daemon,
    /// Each of its containers has a full copy of its image.
    pub vfs: bool,
}

impl Docker {
    /// One word of what was found of it.
    fn note(&mut self, word: &str) {
        match word {
            "on" => self.daemon = Daemon::On,
            "features" => self.daemon = Daemon::Features,
            "other" => self.daemon = Daemon::Other,
            "vfs" => self.vfs = true,
            _ => {}
        }
    }

    /// It knows no CDI.
    pub fn too_old(&self) -> bool {
        self.version.is_some_and(|version| version < DOCKER[0])
    }

    /// CDI is to be switched on in its settings.
    pub fn lacks_cdi(&self) -> bool {
        !self.too_old() && self.version.is_none_or(|version| version < DOCKER[1]) && self.daemon != Daemon::On
    }
}

/// Podman in a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Podman {
    /// `4.3`, where it says so.
    pub version: Option<(u32, u32)>,
}

impl Podman {
    /// It knows no CDI.
    pub fn too_old(&self) -> bool {
        self.version.is_some_and(|version| version < PODMAN[0])
    }

    /// It finds a GPU by UUID and all of them, and none by index: those names
    /// stand in a file that it refuses ([`FILES`]).
    pub fn lacks_indices(&self) -> bool {
        !self.too_old() && self.version.is_some_and(|version| version < PODMAN[1])
    }
}

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// It has a shell: nothing was done in one without.
    pub shell: bool,
    /// The driver's files.
    pub found: Found,
    /// Descriptions that are not ours.
    pub others: Vec<Other>,
    /// Those of ours that are there.
    pub ours: Vec<String>,
    /// Podman, if it is there.
    pub podman: Option<Podman>,
    /// The one that apt would install, where Docker is too old and there is none.
    pub candidate: Option<Podman>,
    /// Docker, if it is there.
    pub docker: Option<Docker>,
}

impl Look {
    /// The driver is there: a description of nodes alone would give engines GPUs
    /// without one.
    pub fn has_driver(&self) -> bool {
        self.found.directory.is_some() || !self.found.libraries.is_empty()
    }

    fn parse(answer: &[u8]) -> Option<Look> {
        let (mut look, mut complete) = (Look { shell: true, ..Look::default() }, false);
        for (key, value) in fields(answer) {
            match key.as_str() {
                "directory" => look.found.directory = path(&value),
                "library" if look.found.libraries.len() < MOST => look.found.libraries.extend(path(&value)),
                "file" if look.found.files.len() < MOST => {
                    let both = value.split_once(' ').and_then(|(from, to)| Some((path(from)?, path(to)?)));
                    look.found.files.extend(both);
                }
                "other" if look.others.len() < MOST => {
                    look.others.push(Other { path: value, made_for: None });
                }
                "made" => {
                    let made_for = value.parse::<Version>().ok().map(|version| version.to_string());
                    look.others.iter_mut().rev().take(1).for_each(|other| other.made_for = made_for.clone());
                }
                "ours" => {
                    look.ours.extend(FILES.iter().filter(|file| **file == value).map(ToString::to_string))
                }
                "podman" => look.podman = Some(Podman { version: version(&value) }),
                "candidate" => look.candidate = Some(Podman { version: version(&value) }),
                "docker" => look.docker = Some(Docker { version: version(&value), ..Docker::default() }),
                "daemon" | "storage" => {
                    look.docker.iter_mut().for_each(|docker| docker.note(&value));
                }
                "end" => complete = true,
                _ => {}
            }
        }
        complete.then_some(look)
    }
}

/// A path that needs no quotes anywhere.
fn path(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+".contains(&b);
    (text.starts_with('/') && text.len() < 256 && text.bytes().all(plain)).then(|| text.to_owned())
}

/// `Docker version 26.1.5+dfsg1, build 411e817`
fn version(line: &str) -> Option<(u32, u32)> {
    let mut parts = line.split_once("version ")?.1.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where the driver is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The host's, mounted there.
    Mounted(Place),
    /// Installed.
    Installed,
}

/// Looks for the driver's files of a version, for other descriptions, and for the
/// engines.
///
/// # Errors
/// [`Code::Software`]: it could not be done.
pub fn look(guest: &Guest, source: &Source, version: &Version, deadline: &Deadline) -> anyhow::Result<Look> {
    let (how, targets) = match source {
        // What this machine's loader does not search, no image's does.
        Source::Mounted(place) if place.drop_in => ("files", place.targets.as_slice()),
        Source::Mounted(place) => ("directory", place.targets.as_slice()),
        Source::Installed => ("installed", [].as_slice()),
    };
    let targets: Vec<String> = targets.iter().map(|target| format!("/{target}")).collect();
    let args = [how, version.as_str()].into_iter().chain(targets.iter().map(String::as_str));
    let fault = || {
        let what = format!("cannot look for engines in container {}", guest.ctid());
        Fault::new(Code::Software, what).remedy(format!("phoenix-nvidia {}", guest.ctid()))
    };
    let output = guest.attach_sh(LOOK, args).run(deadline).fault(fault)?;
    if is_without_shell(&output) {
        return Ok(Look::default());
    }
    Look::parse(&output.stdout).ok_or_else(|| early(&output).context(fault()))
}

/// What was done in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The files of ours that are new, or gone.
    pub changed: Vec<String>,
    /// Those of somebody else that were put aside, by their new names.
    pub aside: Vec<String>,
    /// `no-cgroups` was set for the older runtime.
    pub no_cgroups: bool,
    /// CDI was switched on in Docker's settings, which had not been there.
    pub daemon: bool,
}

/// Writes [`FILES`]; removes one of which there is no content.
///
/// # Errors
/// [`Code::Software`], with the file that could not be written.
pub fn write(
    guest: &Guest,
    contents: &[Option<String>; 2],
    replace: bool,
    daemon: bool,
    deadline: &Deadline,
) -> anyhow::Result<Written> {
    let lines: String =
        contents.iter().map(|text| format!("{}\n", text.as_deref().unwrap_or_default())).collect();
    let word = |on: bool, word: &'static str| if on { word } else { "-" };
    let args = ["write", word(replace, "replace"), word(daemon, "daemon")];
    let output = run(guest, args, lines, deadline)?;
    let mut written = Written::default();
    for (key, value) in fields(&output.stdout) {
        match key.as_str() {
            "wrote" | "removed" => written.changed.push(value),
            "aside" if written.aside.len() < MOST => written.aside.push(value),
            "no-cgroups" => written.no_cgroups = true,
            "daemon" => written.daemon = true,
            _ => {}
        }
    }
    Ok(written)
}

/// Removes them, and puts back what was put aside. Returns what changed.
///
/// # Errors
/// As [`write()`].
pub fn remove(guest: &Guest, deadline: &Deadline) -> anyhow::Result<Vec<String>> {
    let output = run(guest, ["remove", "-", "-"], String::new(), deadline)?;
    let changed = fields(&output.stdout).filter(|(key, _)| key == "removed" || key == "restored");
    Ok(changed.map(|(key, path)| format!("{key} {path}")).take(MOST).collect())
}

fn run(guest: &Guest, args: [&str; 3], input: String, deadline: &Deadline) -> anyhow::Result<Output> {
    let ctid = guest.ctid();
    let fault = |what: &str| {
        let message = format!("cannot write {what} in container {ctid}");
        Fault::new(Code::Software, message).remedy(format!("phoenix-nvidia doctor {ctid}"))
    };
    let all = "the files for engines";
    let output = guest.attach_sh(WRITE, args).stdin(Cursor::new(input.into_bytes())).run(deadline);
    let output = output.fault(|| fault(all))?;
    let ended = fields(&output.stdout).any(|(key, _)| key == "end");
    // Without a shell there was never a file of ours.
    if ended || is_without_shell(&output) {
        return Ok(output);
    }
    let failed = fields(&output.stdout).find(|(key, _)| key == "failed").and_then(|(_, file)| path(&file));
    Err(early(&output).context(fault(failed.as_deref().unwrap_or(all))))
}

/// Whether lxc-attach could run no shell.
fn is_without_shell(output: &Output) -> bool {
    matches!(output.code(), Some(126 | 127)) && output.stdout.is_empty()
}

fn early(output: &Output) -> anyhow::Error {
    anyhow::anyhow!("ended early, {}: {}", output.ended, output.last_lines(2).join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_container_says_is_read_and_an_early_end_is_none() {
        let answer = b"begin 1\ndirectory /usr/lib/x\nfile /usr/lib/x/bin/nvidia-smi /usr/bin/nvidia-smi\n\
            file /a;b /c\nlibrary /usr/lib/libcuda.so.1\nlibrary ../x\nother /etc/cdi/nvidia.yaml\nmade 570.86.15\n\
            other /var/run/cdi/n v.json\nours /etc/cdi/phoenix-nvidia.json\nours /etc/shadow\n\
            podman podman version 4.3.1\ncandidate version 4.9.3+ds1-1\n\
            docker Docker version 26.1.5+dfsg1, build 411e817\ndaemon features\nstorage vfs\nend 1\n";
        let look = Look::parse(answer).unwrap();
        assert_eq!(look.found.directory.as_deref(), Some("/usr/lib/x"));
        assert_eq!(look.found.files.len(), 1);
        assert_eq!(look.found.libraries, ["/usr/lib/libcuda.so.1"]);
        assert_eq!(look.ours, ["/etc/cdi/phoenix-nvidia.json"]);
        let made: Vec<Option<&str>> = look.others.iter().map(|other| other.made_for.as_deref()).collect();
        assert_eq!(made, [Some("570.86.15"), None]);
        let podmans = [look.podman, look.candidate].map(|podman| podman.unwrap().version);
        assert_eq!(podmans, [Some((4, 3)), Some((4, 9))]);
        let docker = look.docker.unwrap();
        assert_eq!((docker.version, docker.daemon, docker.vfs), (Some((26, 1)), Daemon::Features, true));
        assert!(docker.lacks_cdi() && !docker.too_old());
        assert_eq!(Look::parse(&answer[..answer.len() - 6]), None);
    }

    #[test]
    fn podman_has_cdi_from_4_1_on_and_indices_from_4_3_on() {
        let of = |line: &str| Podman { version: super::version(line) };
        assert!(of("podman version 3.4.4").too_old() && of("podman version 4.0.9").too_old());
        assert!(!of("podman version 4.1.0").too_old() && of("podman version 4.1.0").lacks_indices());
        assert!(of("podman version 4.2.1").lacks_indices());
        for line in ["podman version 4.3.1", "podman version 5.4.2", "?", "podman version 3.4.4"] {
            assert!(!of(line).lacks_indices(), "{line}");
        }
        assert!(!of("?").too_old());
    }

    #[test]
    fn docker_has_cdi_from_25_on_and_by_itself_from_28_2_on() {
        let of = |version: &str, daemon| Docker { version: super::version(version), daemon, vfs: false };
        let lacks = |version| of(version, Daemon::Absent).lacks_cdi();
        assert!(of("Docker version 20.10.24+dfsg1, build 297e128", Daemon::On).too_old());
        assert!(!lacks("Docker version 24.0.9, build 0"), "that cannot be helped by a setting");
        assert!(lacks("Docker version 25.0.0, build 0") && lacks("Docker version 28.1.1, build 0"));
        assert!(!lacks("Docker version 28.2.0, build 0") && !lacks("Docker version 29.0.1, build 0"));
        assert!(lacks("?"), "what is unknown may need it");
        assert!(!of("?", Daemon::On).lacks_cdi());
    }
}
