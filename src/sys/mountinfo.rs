//! Mount tables: `/proc/PID/mountinfo` (proc(5)).
//!
//! The kernel answers from memory, but a container can grow its table, choose names
//! in it, and have as many of them as it has processes.

use super::time::{Deadline, human};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

/// A table that is kept is not longer, in bytes.
const MOST: u64 = 4 << 20;
/// Nor is one line of any, in bytes: an overlay's names its layers, up to 500 of them.
const LINE: u64 = 1 << 20;
/// What is read at once, in bytes. The kernel gives a page.
const PIECE: usize = 16 << 10;

/// One mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mounted<'a> {
    /// The device number of the file system, as `0:52`.
    pub device: &'a str,
    /// Which directory of the file system.
    pub root: &'a str,
    /// Where, seen from the process's root; blanks are escaped as `\040`.
    pub at: &'a str,
    /// The type of the file system.
    pub kind: &'a str,
    /// The options of the file system, separated by commas.
    pub options: &'a str,
}

impl<'a> Mounted<'a> {
    /// The lower layers of an overlay; none of anything else.
    pub fn lower(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let options = if self.kind == "overlay" { self.options } else { "" };
        let values = options.split(',').filter_map(|option| option.split_once('='));
        let lower = values.filter(|(key, _)| key.trim_end_matches('+') == "lowerdir");
        lower.flat_map(|(_, value)| value.split(':'))
    }

    /// Whether it is an overlay with this directory among its lower layers.
    pub fn is_over(&self, lower: &str) -> bool {
        self.lower().any(|layer| layer == lower)
    }
}

/// The mounts of a table; other lines are skipped.
pub fn mounts(table: &str) -> impl Iterator<Item = Mounted<'_>> {
    table.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let (mut mount, mut fields) = (mount.split(' '), file_system.split(' '));
        let (device, root, at) = (mount.nth(2)?, mount.next()?, mount.next()?);
        Some(Mounted { device, root, at, kind: fields.next()?, options: fields.nth(1)? })
    })
}

/// The uppermost mount at a place.
pub fn at<'a>(table: &'a str, target: &str) -> Option<Mounted<'a>> {
    let target = target.trim_start_matches('/');
    mounts(table).filter(|mount| mount.at.trim_start_matches('/') == target).last()
}

/// The type of the file system on which a path lies, by the mount table.
pub fn file_system<'a>(table: &'a str, path: &str) -> Option<&'a str> {
    let covers = |at: &str| {
        let rest = path.strip_prefix(at.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // The table is in the order of the mounts: the last one covers those below it.
    mounts(table).filter(|mount| covers(mount.at)).last().map(|mount| mount.kind)
}

/// A device number, as a table has it.
pub fn device(number: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

/// The table of a process.
///
/// # Errors
/// It is gone, /proc cannot be read, or the table is longer than 4 MiB.
pub fn of(pid: i32) -> io::Result<String> {
    let mut table = Vec::new();
    File::open(format!("/proc/{pid}/mountinfo"))?.take(MOST).read_to_end(&mut table)?;
    if table.len() as u64 == MOST {
        return Err(too_long(pid, "its mount table", MOST));
    }
    Ok(String::from_utf8_lossy(&table).into_owned())
}

fn too_long(pid: i32, what: &str, most: u64) -> io::Error {
    let why = format!("process {pid}: {what} is longer than {} MiB", most >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, why)
}

/// Shows all mounts that any process sees. A table leaves out what lies outside the root of
/// its process: one of a chroot says nothing about the others of its mount namespace, so
/// that of each process is read. A mount is shown once for each that sees it.
///
/// # Errors
/// A table that could not be read to its end within the deadline, although its process is
/// there: nobody knows then what else is mounted.
pub fn all(deadline: &Deadline, mut show: impl FnMut(&Mounted<'_>)) -> io::Result<()> {
    let mut seen = BTreeSet::new();
    // A second time for those that the first ones started, and left their mounts to, meanwhile.
    for _ in 0..2 {
        for pid in numbers("/proc")?.into_iter().filter(|pid| seen.insert(*pid)).collect::<Vec<_>>() {
            of_process(pid, deadline, &mut show)?;
        }
    }
    Ok(())
}

/// The entries of a directory that are numbers of processes or threads.
fn numbers(directory: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Shows what a process sees; nothing if it has ended.
fn of_process(pid: i32, deadline: &Deadline, show: &mut dyn FnMut(&Mounted<'_>)) -> io::Result<()> {
    let own = format!("/proc/{pid}");
    let read = stream(pid, &own, deadline, show);
    let Err(error) = read else { return Ok(()) };
    if !ended(&error, &own) {
        return Err(error);
    }
    // Its first thread may have, and others go on.
    for thread in numbers(&format!("{own}/task")).unwrap_or_default().into_iter().filter(|id| *id != pid) {
        let own = format!("{own}/task/{thread}");
        match stream(pid, &own, deadline, show) {
            Err(error) if !ended(&error, &own) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Shows the table below a directory of /proc, line by line.
fn stream(pid: i32, own: &str, deadline: &Deadline, show: &mut dyn FnMut(&Mounted<'_>)) -> io::Result<()> {
    let mut table = BufReader::with_capacity(PIECE, File::open(format!("{own}/mountinfo"))?);
    let mut line = Vec::new();
    while (&mut table).take(LINE).read_until(b'\n', &mut line)? > 0 {
        if line.len() as u64 == LINE {
            return Err(too_long(pid, "a line of its mount table", LINE));
        }
        if deadline.passed() {
            let why = format!("mount tables not read within {}", human(deadline.span()));
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        mounts(&String::from_utf8_lossy(&line)).for_each(|mount| show(&mount));
        line.clear();
    }
    Ok(())
}

/// Whether an error says that the process or thread whose directory that is has ended: it has
/// no mount namespace any more then.
fn ended(error: &io::Error, own: &str) -> bool {
    let gone = [Some(nix::libc::ENOENT), Some(nix::libc::ESRCH), Some(nix::libc::EINVAL)];
    gone.contains(&error.raw_os_error()) || !Path::new(own).exists()
}

/// What a process says that has other mounts than process 1.
pub const OWN_NAMESPACE: &str = "this process has a mount namespace of its own: call it by nsenter -t 1 -m";

/// Whether this process has other mounts than process 1: what it mounts is not
/// seen by those that process 1 starts. False where that is not readable.
pub fn is_own_namespace(root: &Path) -> bool {
    let of = |process: &str| std::fs::read_link(root.join("proc").join(process).join("ns/mnt")).ok();
    of("1").is_some_and(|first| of("self").is_some_and(|own| own != first))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test's own process
mod tests {
    use super::*;

    const TABLE: &str = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n\
40 30 0:52 / /usr/lib/x ro,nosuid,nodev - overlay overlay ro,lowerdir=/var/lib/p/580.1:/run/p/empty\n\
41 30 0:53 / /usr/lib/y ro - overlay overlay ro,lowerdir+=/var/lib/p/580.2,lowerdir+=/run/p/empty,x=y\n\
42 30 0:54 / /usr/lib/z ro - tmpfs lowerdir=/var/lib/p/580.3 rw\n\
broken line\n";

    #[test]
    fn an_overlay_is_known_by_its_layers_in_both_forms() {
        let over = |lower: &str| -> Vec<&str> {
            mounts(TABLE).filter(|mount| mount.is_over(lower)).map(|mount| mount.at).collect()
        };
        assert_eq!(over("/var/lib/p/580.1"), ["/usr/lib/x"]);
        assert_eq!(over("/var/lib/p/580.2"), ["/usr/lib/y"]);
        assert_eq!(over("/run/p/empty"), ["/usr/lib/x", "/usr/lib/y"]);
        for other in ["/var/lib/p/580.3", "/var/lib/p/580", "580.1", ""] {
            assert_eq!(over(other), [""; 0], "{other}");
        }
    }

    #[test]
    fn a_namespace_of_its_own_is_told_only_where_both_are_known() {
        let root = tempfile::tempdir().unwrap();
        let enter = |process: &str, namespace: &str| {
            let ns = root.path().join("proc").join(process).join("ns");
            std::fs::create_dir_all(&ns).unwrap();
            let _ = std::fs::remove_file(ns.join("mnt"));
            std::os::unix::fs::symlink(namespace, ns.join("mnt")).unwrap();
        };
        enter("self", "mnt:[2]");
        assert!(!is_own_namespace(root.path()));
        enter("1", "mnt:[1]");
        assert!(is_own_namespace(root.path()));
        enter("1", "mnt:[2]");
        assert!(!is_own_namespace(root.path()));
    }

    #[test]
    fn the_mounts_of_all_processes_are_shown_and_our_own_are_among_them() {
        let own = of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let proc = device(std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/proc").unwrap()));
        assert!(mounts(&own).any(|mount| mount.at == "/proc" && mount.device == proc), "{own}");
        let mut shown = BTreeSet::new();
        let read = all(&Deadline::secs(60), |mount| {
            shown.insert(format!("{mount:?}"));
        });
        match read {
            Ok(()) => assert!(mounts(&own).all(|mount| shown.contains(&format!("{mount:?}")))),
            // In a sandbox that keeps us away from another process.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn a_process_that_has_ended_shows_nothing_and_one_that_is_not_read_in_time_is_an_error() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let count = |deadline: &Deadline| {
            let mut count = 0;
            of_process(pid, deadline, &mut |_| count += 1).map(|()| count)
        };
        let (there, late) = (count(&Deadline::secs(60)), count(&Deadline::secs(0)));
        child.kill().unwrap();
        // Killed and not waited for: it has a number, and no mounts.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let zombie = count(&Deadline::secs(60));
        child.wait().unwrap();
        let gone = count(&Deadline::secs(60));
        assert!(there.unwrap() > 0);
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((zombie.unwrap(), gone.unwrap()), (0, 0));
    }
}
