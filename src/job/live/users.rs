//! Who in a container uses a card, or maps a file of the driver tree: by the
//! descriptors and mappings of the processes in its control group.
//!
//! A card is known by its device number, whatever the node is called. The nodes
//! of all cards, nvidiactl and nvidia-uvm, prove nothing.

use super::enter::{Asked, ask};
use crate::device::Number;
use crate::guest::leftovers::processes;
use crate::sys::look::Look;
use crate::sys::process::same_files;
use crate::sys::time::Deadline;
use crate::sys::{file, text};
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::time::Duration;

/// The limit of the search.
const LIMIT: Duration = Duration::from_secs(10);
/// So many users are named at most.
const MOST: usize = 8;

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    ctid: u32,
    /// The device numbers of the cards.
    cards: Vec<(u32, u32)>,
    /// The driver tree.
    tree: Option<Tree>,
}

/// The files of a driver tree, as a process maps them. Of a file of an overlay the
/// kernel shows the overlay or what lies below: then the device is that of the
/// file system, which stat need not tell (btrfs), and the path that in the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The device number of its mount, as `0:52`.
    pub device: String,
    /// Inode and name of each file of the copy.
    pub files: BTreeSet<(u64, String)>,
    /// Where it is mounted inside, absolute.
    pub places: Vec<String>,
}

/// A process that uses something of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct User {
    /// Its pid on the host.
    pub pid: i32,
    /// Its name, which it chose itself.
    pub name: String,
    /// The device numbers of the cards that it uses.
    pub cards: BTreeSet<(u32, u32)>,
    /// Whether it maps a file of the tree.
    pub tree: bool,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The users.
    pub users: Vec<User>,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

impl Found {
    /// Those of a card.
    pub fn of_card(&self, number: Number) -> Vec<&User> {
        self.users.iter().filter(|user| user.cards.contains(&(number.major, number.minor))).collect()
    }

    /// Those of the tree.
    pub fn of_tree(&self) -> Vec<&User> {
        self.users.iter().filter(|user| user.tree).collect()
    }
}

/// The users in one line.
pub fn named(users: &[&User]) -> String {
    text::few(users.iter().map(ToString::to_string).collect(), MOST).join(", ")
}

/// Searches, in another process: a mapping is read under a lock that the
/// process which has it may hold for long.
///
/// # Errors
/// It could not be run, or not ended in time.
pub fn find(ctid: Ctid, cards: &[Number], tree: Option<Tree>, deadline: &Deadline) -> anyhow::Result<Found> {
    let cards: Vec<(u32, u32)> = cards.iter().map(|n| (n.major, n.minor)).collect();
    if cards.is_empty() && tree.is_none() {
        return Ok(Found::default());
    }
    ask(&Wanted { ctid: ctid.get(), cards, tree }, &deadline.at_most(LIMIT))
}

impl Asked for Wanted {
    fn word(&self) -> &'static str {
        "users"
    }
}

impl Wanted {
    /// Searches: in the process of its own.
    pub fn answer(&self) -> Found {
        let mut found = Found::default();
        let Ok(ctid) = self.ctid.to_string().parse::<Ctid>() else { return found };
        let mut look = Look::host();
        for pid in processes(&mut look, ctid) {
            match self.user(pid) {
                Ok(user) if user.tree || !user.cards.is_empty() => found.users.push(user),
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => found.unseen.push(format!("process {pid}: {error}")),
            }
        }
        found.unseen.extend(look.problems);
        found.users.sort();
        found.unseen.truncate(MOST);
        found
    }

    fn user(&self, pid: i32) -> io::Result<User> {
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut user =
            User { pid, name: text::line(name.trim_ascii_end()), cards: BTreeSet::new(), tree: false };
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
        let (mut mapped, mut tables) = (false, Vec::new());
        for thread in threads {
            let Some(tid) = thread?.file_name().to_str().and_then(|tid| tid.parse::<i32>().ok()) else {
                continue;
            };
            match self.thread(&mut user, (pid, tid), &mut mapped, &mut tables) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(user)
    }

    /// Notes what one thread uses. The first thread may have ended, and shows
    /// nothing then; a thread may have descriptors of its own (unshare(2)), those
    /// of `tables` are known.
    fn thread(
        &self,
        user: &mut User,
        (pid, tid): (i32, i32),
        mapped: &mut bool,
        tables: &mut Vec<i32>,
    ) -> io::Result<()> {
        let at = format!("/proc/{pid}/task/{tid}");
        if !self.cards.is_empty() && !tables.iter().any(|known| same_files(*known, tid)) {
            for entry in fs::read_dir(format!("{at}/fd"))? {
                self.note(user, &format!("{at}/fd/{}", entry?.file_name().to_string_lossy()))?;
            }
            tables.push(tid);
        }
        if *mapped {
            return Ok(());
        }
        // A thread without memory, one that has ended say, has an empty file.
        for line in BufReader::new(fs::File::open(format!("{at}/maps"))?).split(b'\n') {
            let line = line?;
            *mapped = true;
            let Some(mapping) = Mapping::parse(&line) else { continue };
            user.tree = user.tree || self.tree.as_ref().is_some_and(|tree| mapping.is_of(tree));
            // What maps a card's memory shares it with the card.
            if mapping.shared && !self.cards.is_empty() {
                // A thread has these links by its own number alone.
                self.note(user, &format!("/proc/{tid}/map_files/{}", mapping.range))?;
            }
        }
        Ok(())
    }

    /// Notes the card, if this link of the kernel's leads to one.
    fn note(&self, user: &mut User, link: &str) -> io::Result<()> {
        match file::known_device(link) {
            Ok(Some(number)) if self.cards.contains(&number) => {
                user.cards.insert(number);
                Ok(())
            }
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Also for the files of a process that just ended, in /proc.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// A line of /proc/PID/maps (proc(5)) that maps a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    range: &'a str,
    shared: bool,
    device: String,
    inode: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a [u8]) -> Option<Mapping<'a>> {
        // Names may be any bytes: those of ours are not.
        let line = line.utf8_chunks().next()?.valid();
        let mut fields = line.splitn(6, ' ');
        let (range, rights, _offset) = (fields.next()?, fields.next()?, fields.next()?);
        let (device, inode) = (fields.next()?, fields.next()?.parse::<u64>().ok()?);
        if inode == 0 {
            return None;
        }
        let (major, minor) = device.split_once(':')?;
        let half = |text| u32::from_str_radix(text, 16).ok();
        let device = format!("{}:{}", half(major)?, half(minor)?);
        let path = fields.next().unwrap_or_default().trim_start();
        Some(Mapping { range, shared: rights.ends_with('s'), device, inode, path })
    }

    fn is_of(&self, tree: &Tree) -> bool {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(self.path);
        let name = path.rsplit('/').next().unwrap_or_default();
        let below =
            |place: &String| self.path.strip_prefix(place.as_str()).is_some_and(|rest| rest.starts_with('/'));
        self.device == tree.device
            || tree.files.contains(&(self.inode, name.to_owned()))
            || tree.places.iter().any(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_known_by_device_inode_or_place() {
        let tree = Tree {
            device: "0:52".into(),
            files: [(77, "libcuda.so.1".to_owned())].into(),
            places: vec!["/usr/lib/x".into()],
        };
        let is_of = |line: &str| Mapping::parse(line.as_bytes()).is_some_and(|mapping| mapping.is_of(&tree));
        for ours in [
            "7f00-7f01 r-xp 00000000 00:34 9                          /somewhere/libcuda.so.1",
            "7f00-7f01 r-xp 00000000 08:01 77                         /else/libcuda.so.1 (deleted)",
            "7f00-7f01 r-xp 00000000 00:45 77                         /libcuda.so.1",
            "7f00-7f01 r--p 00000000 fd:00 3                          /usr/lib/x/libcuda.so.1",
        ] {
            assert!(is_of(ours), "{ours}");
        }
        for other in [
            "7f00-7f01 r-xp 00000000 08:01 78                         /else/libcuda.so.1",
            "7f00-7f01 r-xp 00000000 fd:00 77                         /usr/lib/xx/libc.so.6",
            "7f00-7f01 rw-p 00000000 00:00 0                          [heap]",
            "7f00-7f01 rw-p 00000000 00:00 0",
            "",
        ] {
            assert!(!is_of(other), "{other}");
        }
    }

    #[test]
    fn a_process_of_this_machine_is_found_by_its_descriptor_whatever_the_name() {
        let null = fs::File::open("/dev/null").unwrap();
        let wanted = Wanted { ctid: 101, cards: vec![(1, 3)], tree: None };
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(wanted.user(pid).unwrap().cards, [(1, 3)].into());
        let other = Wanted { cards: vec![(195, 1)], ..wanted };
        assert!(other.user(pid).unwrap().cards.is_empty());
        drop(null);
    }

    #[test]
    fn a_thread_with_descriptors_of_its_own_is_found() {
        let (held, holds) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
            let full = fs::File::open("/dev/full").unwrap();
            held.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = ended.recv();
            drop(full);
        });
        let tid = holds.recv().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(!same_files(pid, tid) && same_files(tid, tid));
        let wanted = Wanted { ctid: 101, cards: vec![(1, 7)], tree: None };
        assert_eq!(wanted.user(pid).unwrap().cards, [(1, 7)].into());
        drop(end);
        thread.join().unwrap();
    }
}
