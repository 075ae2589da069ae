//! Where a runfile comes from: the URLs at which it may be, or a file of this
//! host, which is looked for in a directory.

use crate::driver::runfile::Header;
use crate::driver::template::{Facts, Template, platform};
use crate::exit::{Code, Fault};
use crate::sys::look::{Look, Seen, View, Walk};
use crate::sys::text;
use crate::sys::url::Url;
use crate::types::Version;
use anyhow::bail;
use serde::{Deserialize, Serialize};

/// The limit of files in a directory whose beginning is read.
const MOST_READ: usize = 64;
/// The limit of versions in a message.
const MOST_TOLD: usize = 8;

/// The name that NVIDIA gives a runfile.
pub(super) fn name(version: &Version, arch: &str) -> String {
    format!("NVIDIA-Linux-{arch}-{version}.run")
}

/// The URLs of a runfile, in the order in which they are asked.
///
/// # Errors
/// As [`Template::fill`].
pub(super) fn urls(template: &Template, version: &Version, arch: &str) -> anyhow::Result<Vec<Url>> {
    let mut url = template.fill(&Facts::runfile(version, arch))?;
    if url.local().is_none() && url.is_directory() {
        url = url.with_suffix(&name(version, arch));
    }
    // The default of earlier versions, which is right for x86_64 alone, and
    // the place of many datacenter drivers, which are published only there.
    let places = [
        format!("/XFree86/Linux-{arch}/{version}/"),
        format!("/XFree86/{}/{version}/", platform(arch)),
        format!("/tesla/{version}/"),
    ];
    let instead = |place: &String| {
        url.map_path(|path| {
            let usual = places[..2].iter().find(|usual| path.contains(usual.as_str()))?;
            Some(path.replacen(usual, place, 1))
        })
    };
    let mut urls = vec![url.clone()];
    for other in places[1..].iter().filter_map(instead) {
        if !urls.contains(&other) {
            urls.push(other);
        }
    }
    Ok(urls)
}

/// The fault of a file that none of the URLs has.
pub(super) fn nowhere(version: &Version, arch: &str, urls: &[Url]) -> Fault {
    let all: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let (all, ours) = (all.join(", "), urls.iter().any(|url| url.local().is_some()));
    let message = match ours {
        true => format!("no such file: {all}"),
        false => format!(
            "{version} for {arch} is not published there (vGPU, GRID and OEM drivers are not public): \
             HTTP 404 (not found): {all}"
        ),
    };
    Fault::new(Code::Software, message).remedy(remedy())
}

/// What helps where a file is not the expected one.
pub(super) fn remedy() -> &'static str {
    "set NVIDIA_RUNFILE_URL to the file that the host's driver was installed from"
}

/// The runfiles of a version in a directory, by their headers: a name may say
/// more, like `-grid`. The one of the usual name comes first. `None`: `directory`
/// is none.
///
/// # Errors
/// What the directory has instead.
pub(super) fn in_directory(
    view: View<'_>,
    directory: &str,
    version: &Version,
    arch: &str,
) -> anyhow::Result<Option<Vec<Url>>> {
    let walk = Runfiles { directory: directory.to_owned(), version: version.to_string() };
    let mut look = Look::of(view, &[walk.asked()]);
    match look.stat(directory) {
        Seen::Is(stat) if stat.is_dir() => {}
        Seen::Unseen(why) => bail!("cannot access {directory}: {why}"),
        // A file, or nothing: told where it is opened.
        _ => return Ok(None),
    }
    let (found, unread) = walk.headers(&mut look);
    let usual = name(version, arch);
    let fits = |(_, header): &&(String, Header)| header.version == *version && header.arch == arch;
    let mut names: Vec<&String> = found.iter().filter(fits).map(|(name, _)| name).collect();
    names.sort_by_key(|name| (**name != usual, *name));
    if !names.is_empty() {
        return Ok(Some(names.into_iter().map(|name| Url::of_file(&walk.at(name))).collect()));
    }
    let problem = look.problems.first().or(unread.first()).map(|problem| format!(" ({problem})"));
    let problem = problem.unwrap_or_default();
    let mut instead: Vec<String> = found.iter().map(|(_, header)| told(header, arch)).collect();
    instead.sort();
    instead.dedup();
    let message = match instead.as_slice() {
        [] => format!("{directory} has no runfile{problem}"),
        _ => format!("{directory} has only {}{problem}", text::few(instead, MOST_TOLD).join(", ")),
    };
    let remedy =
        format!("copy the file that the host's driver was installed from to {}", text::word(directory));
    Err(Fault::new(Code::Software, message).remedy(remedy).into())
}

fn told(header: &Header, arch: &str) -> String {
    let foreign = header.arch != arch;
    let of = if foreign { format!(" for {}", header.arch) } else { String::new() };
    format!("driver {}{of}", header.version)
}

/// The files in a directory that may be runfiles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Runfiles {
    directory: String,
    /// The wanted version: where there are many files, those of its name are
    /// read first.
    version: String,
}

impl Walk for Runfiles {
    const NAME: &'static str = "runfiles";

    fn walk(&self, look: &mut Look<'_>) {
        if matches!(look.stat(&self.directory), Seen::Is(stat) if stat.is_dir()) {
            self.headers(look);
        }
    }
}

impl Runfiles {
    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.directory.trim_end_matches('/'))
    }

    /// The headers by name, and what could not be read. Subdirectories are not
    /// searched, and nothing but a regular file is opened.
    fn headers(&self, look: &mut Look<'_>) -> (Vec<(String, Header)>, Vec<String>) {
        let mut names = look.names(&self.directory).unwrap_or_default();
        names.retain(|name| is_likely(name));
        names.sort_by_key(|name| !name.contains(&self.version));
        let (mut headers, mut unread) = (Vec::new(), Vec::new());
        let is_file = |name: &String| matches!(look.stat(&self.at(name)), Seen::Is(stat) if stat.is_file());
        for (n, name) in names.into_iter().filter(is_file).enumerate() {
            if n == MOST_READ {
                unread.push(format!(
                    "only {MOST_READ} files read, those with the version in their names first"
                ));
                break;
            }
            match look.head(&self.at(&name)) {
                Seen::Is(bytes) => headers.extend(Header::parse(&bytes).ok().map(|header| (name, header))),
                Seen::Absent => {}
                Seen::Unseen(why) => unread.push(format!("cannot read {}: {why}", self.at(&name))),
            }
        }
        (headers, unread)
    }
}

/// Whether a file of this name may be a runfile: the names of browsers and of
/// those who rename them included, other people's files not.
fn is_likely(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    (lower.contains("nvidia") || lower.contains(".run")) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phoenix_lab::nvidia::runfile::Runfile;
    use std::path::Path;

    const V: &str = "570.148.06";

    fn urls_of(template: &str, arch: &str) -> Vec<String> {
        let urls = urls(&template.parse().unwrap(), &V.parse().unwrap(), arch).unwrap();
        urls.iter().map(Url::request).collect()
    }

    #[test]
    fn each_architecture_has_its_place_and_the_datacenter_place() {
        let default =
            "https://us.download.nvidia.com/XFree86/{platform}/{version}/NVIDIA-Linux-{arch}-{version}.run";
        let host = "https://us.download.nvidia.com";
        for (arch, place) in [("x86_64", "Linux-x86_64"), ("aarch64", "aarch64")] {
            let name = format!("NVIDIA-Linux-{arch}-{V}.run");
            let (usual, tesla) =
                (format!("{host}/XFree86/{place}/{V}/{name}"), format!("{host}/tesla/{V}/{name}"));
            assert_eq!(urls_of(default, arch), [usual.clone(), tesla.clone()]);
            // A directory, with a token.
            let directory = format!("{host}/XFree86/{{platform}}/{{version}}/?t=1");
            assert_eq!(urls_of(&directory, arch), [format!("{usual}?t=1"), format!("{tesla}?t=1")]);
        }
    }

    #[test]
    fn the_earlier_default_finds_the_file_of_either_architecture() {
        let old = "https://h/XFree86/Linux-{arch}/{version}/NVIDIA-Linux-{arch}-{version}.run";
        let name = format!("NVIDIA-Linux-aarch64-{V}.run");
        let all = [
            // As it is written first: a mirror may have it there.
            format!("https://h/XFree86/Linux-aarch64/{V}/{name}"),
            format!("https://h/XFree86/aarch64/{V}/{name}"),
            format!("https://h/tesla/{V}/{name}"),
        ];
        assert_eq!(urls_of(old, "aarch64"), all);
        assert_eq!(urls_of(old, "x86_64").len(), 2);
        // A mirror of another form is asked for what it was written for.
        assert_eq!(urls_of("https://h/{version}.run", "aarch64"), [format!("https://h/{V}.run")]);
        assert_eq!(urls_of("https://h/x/", "aarch64"), [format!("https://h/x/{name}")]);
    }

    fn put(directory: &Path, name: &str, version: &str, arch: &str) {
        std::fs::copy(Runfile::new(version).arch(arch).build().unwrap(), directory.join(name)).unwrap();
    }

    fn search(directory: &Path) -> Result<Option<String>, String> {
        let text = directory.to_str().unwrap();
        let found = in_directory(View::from(Path::new("/")), text, &V.parse().unwrap(), "x86_64");
        found.map(|urls| urls.map(|urls| urls[0].to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_is_searched_by_headers_not_by_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(search(dir.path()).unwrap_err().ends_with("has no runfile"));
        // Names lie; a page of a portal, a FIFO, a loop and a directory are none.
        put(dir.path(), &format!("NVIDIA-Linux-x86_64-{V}.run"), "570.148.08", "x86_64");
        put(dir.path(), &format!("NVIDIA-Linux-aarch64-{V}.run"), V, "aarch64");
        crate::sys::replace::replace_own(&at("login.run"), b"<html>", 0o644).unwrap();
        nix::unistd::mkfifo(&at("fifo.run"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("loop.run", at("loop.run")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero.run")).unwrap();
        std::fs::create_dir(at("NVIDIA-Linux.run")).unwrap();
        let other = search(dir.path()).unwrap_err();
        assert!(other.ends_with("has only driver 570.148.06 for aarch64, driver 570.148.08"), "{other}");
        for name in [
            format!("NVIDIA-Linux-x86_64-{V}-no-compat32 (1).run"),
            format!("NVIDIA-Linux-x86_64-{V}-grid.run"),
            format!("NVIDIA-Linux-x86_64-{V}-custom.run"),
        ] {
            put(dir.path(), &name, V, "x86_64");
            assert_eq!(search(dir.path()).unwrap(), Some(at(&name).display().to_string()));
        }
        put(dir.path(), &format!("NVIDIA-Linux-x86_64-{V}.run"), V, "x86_64");
        assert!(search(dir.path()).unwrap().unwrap().ends_with(&format!("-{V}.run")));
        // No directory: told where it is opened.
        assert_eq!(search(&at("login.run")), Ok(None));
        assert_eq!(search(&at("nowhere")), Ok(None));
    }

    #[test]
    fn of_very_many_files_those_of_the_version_are_read_first() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            put(dir.path(), &format!("A-{n:03}.run"), "580.95.05", "x86_64");
        }
        put(dir.path(), &format!("Z-{V}.run"), V, "x86_64");
        assert!(search(dir.path()).unwrap().unwrap().ends_with(&format!("Z-{V}.run")));
        std::fs::remove_file(dir.path().join(format!("Z-{V}.run"))).unwrap();
        let other = search(dir.path()).unwrap_err();
        assert!(other.contains("has only driver 580.95.05 (only 64 files read"), "{other}");
    }
}
