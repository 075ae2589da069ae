//! The lab's own control group, so that containers of equal numbers in two labs don't meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// Directories of labs begin with this, then the holder's pid and start time.
pub(crate) const PREFIX: &str = "phoenix-lab.";

/// One lab's directory in the unified hierarchy.
pub(crate) struct Cgroup {
    dir: PathBuf,
    home: PathBuf,
}

impl Cgroup {
    /// Mounts the unified hierarchy at `at`, takes away what killed runs left, and makes this lab's directory.
    pub(crate) fn create(at: &Path) -> Result<Cgroup> {
        mount(Some("cgroup2"), at, Some("cgroup2"), MsFlags::empty(), None::<&str>)
            .context("no unified control groups (cgroup2) in this kernel")?;
        sweep(at);
        let pid = std::process::id();
        let dir = at.join(format!("{PREFIX}{pid}.{}", start_time(pid).unwrap_or_default()));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let path = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
        Ok(Cgroup { dir, home: at.join(path) })
    }

    /// Moves this process in; children are born there.
    pub(crate) fn enter(&self) -> Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0").context("entering the lab's control group")
    }

    /// Moves this process back to where it was.
    pub(crate) fn leave(&self) -> Result<()> {
        fs::write(self.home.join("cgroup.procs"), "0").context("leaving the lab's control group")
    }

    /// Ends what is left in it and removes it with everything below.
    pub(crate) fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let _ = fs::write(self.dir.join("cgroup.kill"), "1");
            remove_tree(&self.dir);
            if !self.dir.exists() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the control group {} could not be removed within 5 s", self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes the control groups of labs whose holder is no more (it was killed, so nobody else will).
fn sweep(at: &Path) {
    let Ok(entries) = fs::read_dir(at) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, start)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let alive = pid.parse().ok().and_then(start_time).is_some_and(|time| time.to_string() == start);
        if !alive {
            let _ = fs::write(entry.path().join("cgroup.kill"), "1");
            remove_tree(&entry.path());
        }
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// When a process started, in clock ticks after boot: with its pid, the name of one process for ever.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
