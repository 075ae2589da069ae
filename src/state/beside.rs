//! A further file of this boot about a container: what a hook hands over to the install.

use super::{MAX, OWN, RUN, Record, own_directory};
use crate::sys::private;
use crate::types::Ctid;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

impl Record {
    /// The path of a further file of this boot about the container, root's alone.
    ///
    /// # Errors
    /// The directory is not ours, or cannot be made.
    pub fn beside(&self, suffix: &str) -> anyhow::Result<PathBuf> {
        own_directory(&self.run)?;
        Ok(self.run.join(OWN).join(format!("{}.{suffix}", self.ctid)))
    }

    /// The same file where it may be read: here, or where 0.1.0 had it.
    pub fn read_beside(&self, suffix: &str) -> Option<Vec<u8>> {
        let name = format!("{}.{suffix}", self.ctid);
        self.places().iter().find_map(|place| private::read(&place.join(&name), MAX))
    }

    /// How old that file is; `None` if there is none.
    pub fn age_of_beside(&self, suffix: &str) -> Option<Duration> {
        let name = format!("{}.{suffix}", self.ctid);
        let meta = self.places().iter().find_map(|place| place.join(&name).symlink_metadata().ok())?;
        // One of the future is as good as new.
        Some(meta.modified().ok()?.elapsed().unwrap_or_default())
    }

    /// Removes that file.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_beside(&self, suffix: &str) -> io::Result<()> {
        let name = format!("{}.{suffix}", self.ctid);
        self.places().iter().try_for_each(|place| match std::fs::remove_file(place.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    fn places(&self) -> [PathBuf; 2] {
        [self.run.join(OWN), self.run.clone()]
    }
}

/// Removes such files of all containers, and what a process that was killed left of one, if
/// they are older than this and of a container that is not `needed`.
///
/// # Errors
/// The file system's.
pub fn sweep(suffix: &str, age: Duration, needed: impl Fn(Ctid) -> bool) -> io::Result<()> {
    sweep_in(Path::new(RUN), suffix, age, needed)
}

fn sweep_in(run: &Path, suffix: &str, age: Duration, needed: impl Fn(Ctid) -> bool) -> io::Result<()> {
    let of = |name: &str| {
        let (ctid, rest) = name.split_once('.')?;
        let part = rest.strip_prefix(suffix)?;
        (part.is_empty() || (part.starts_with('.') && part.ends_with(".tmp"))).then(|| ctid.parse().ok())?
    };
    let all = [run.join(OWN), run.to_owned()].into_iter();
    for entry in all.filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten() {
        let written = entry.metadata().and_then(|meta| meta.modified());
        let is_old = written.is_ok_and(|at| at.elapsed().is_ok_and(|since| since > age));
        if is_old && entry.file_name().to_str().and_then(of).is_some_and(|ctid| !needed(ctid)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::SystemTime;

    #[test]
    fn what_was_left_for_an_install_that_never_ran_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(OWN);
        std::fs::create_dir(&state).unwrap();
        let old = SystemTime::now() - Duration::from_secs(100);
        let all = ["101.job", "101.json", "101.job.77.tmp", "102.job", "103.job", "104.jobs", "x.job"];
        for name in all {
            let file = File::create(state.join(name)).unwrap();
            let at = if name == "103.job" { SystemTime::now() } else { old };
            file.set_modified(at).unwrap();
        }
        File::create(dir.path().join("101.job")).unwrap().set_modified(old).unwrap();
        let needed = |ctid: Ctid| ctid == "102".parse().unwrap();
        sweep_in(dir.path(), "job", Duration::from_secs(60), needed).unwrap();
        let names = |at: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(at).unwrap().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&state), ["101.json", "102.job", "103.job", "104.jobs", "x.job"]);
        assert_eq!(names(dir.path()), [OWN]);
    }
}
