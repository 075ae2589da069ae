//! Mount tables: `/proc/PID/mountinfo` (proc(5)).
//!
//! The kernel answers from memory, but a container can grow its table and
//! choose names in it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// So much of a table is read, in bytes.
const MOST: u64 = 4 << 20;

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

/// A device number, as a table has it.
pub fn device(number: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

/// The table of a process.
///
/// # Errors
/// It is gone, or /proc cannot be read.
pub fn of(pid: i32) -> io::Result<String> {
    let mut table = Vec::new();
    File::open(format!("/proc/{pid}/mountinfo"))?.take(MOST).read_to_end(&mut table)?;
    Ok(String::from_utf8_lossy(&table).into_owned())
}

/// The tables of all mount namespaces that a process is in, each once.
///
/// # Errors
/// One that could not be read, although its process is there.
pub fn all() -> io::Result<Vec<String>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    tables(pids, of)
}

/// The tables of the namespaces of these processes, as `read` reads them.
fn tables(pids: Vec<i32>, read: impl Fn(i32) -> io::Result<String>) -> io::Result<Vec<String>> {
    let mut tables = BTreeMap::new();
    for pid in pids {
        let one = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).and_then(|namespace| {
            // One counts as seen when its table is read: a process may end in between, and leave another in it.
            if let Entry::Vacant(new) = tables.entry(namespace) {
                new.insert(read(pid)?);
            }
            Ok(())
        });
        match one {
            Ok(()) => {}
            // It has ended, or ends now and has no namespace any more.
            Err(error) if ended(&error, pid) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables.into_values().collect())
}

fn ended(error: &io::Error, pid: i32) -> bool {
    let gone = [Some(nix::libc::ENOENT), Some(nix::libc::ESRCH), Some(nix::libc::EINVAL)];
    gone.contains(&error.raw_os_error()) || !Path::new(&format!("/proc/{pid}")).exists()
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

    /// The first process in it ends when it was found, and before its table was read.
    #[test]
    fn a_process_that_ends_hides_no_namespace_that_another_is_in() {
        let own = i32::try_from(std::process::id()).unwrap();
        let reads = std::cell::Cell::new(0);
        let read = |pid| {
            reads.set(reads.get() + 1);
            if reads.get() == 1 { Err(io::Error::from_raw_os_error(nix::libc::EINVAL)) } else { of(pid) }
        };
        assert_eq!(tables(vec![own, own, own], read).unwrap().len(), 1);
        assert_eq!(reads.get(), 2);
    }

    #[test]
    fn each_namespace_is_read_once_and_our_own_is_among_them() {
        let own = of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let proc = device(std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/proc").unwrap()));
        assert!(mounts(&own).any(|mount| mount.at == "/proc" && mount.device == proc), "{own}");
        match all() {
            Ok(all) => assert!(all.len() < 200 && all.contains(&own)),
            // In a sandbox that keeps us away from another process.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
