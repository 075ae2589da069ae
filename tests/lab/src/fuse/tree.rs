//! What the file system holds, and its rules. Knows nothing of FUSE.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The root directory's number, as FUSE has it.
pub const ROOT: u64 = 1;
/// The most that a file takes.
pub const MAX_SIZE: usize = 1 << 20;

/// An errno.
pub type Errno = i32;

const ENOENT: Errno = 2;
const EEXIST: Errno = 17;
const ENOTDIR: Errno = 20;
const EISDIR: Errno = 21;
const EINVAL: Errno = 22;
const EFBIG: Errno = 27;
const ENOTEMPTY: Errno = 39;
const EPERM: Errno = 1;

/// A file, directory or link.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Below `priv`: for root alone.
    pub private: bool,
    /// Last change, in whole seconds.
    pub changed: SystemTime,
    /// Whether a name leads to it.
    pub linked: bool,
    opened: u32,
}

/// The kinds there are.
#[derive(Debug)]
pub enum Kind {
    /// With the numbers of its entries.
    Directory(BTreeMap<OsString, u64>),
    /// With its contents.
    File(Vec<u8>),
    /// With its target; only the built-in ones.
    Link(String),
}

impl Node {
    /// The one mode that such a node can have.
    pub fn mode(&self) -> u16 {
        match (&self.kind, self.private) {
            (Kind::Directory(_), false) => 0o755,
            (Kind::Directory(_), true) => 0o700,
            (Kind::File(_), false) => 0o640,
            (Kind::File(_), true) => 0o600,
            (Kind::Link(_), _) => 0o755,
        }
    }

    /// Size as `stat` shows it.
    pub fn size(&self) -> usize {
        match &self.kind {
            Kind::File(bytes) => bytes.len(),
            Kind::Link(target) => target.len(),
            Kind::Directory(_) => 0,
        }
    }
}

/// All nodes by number.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

impl Tree {
    /// The directories and links that are always there, for this node.
    pub fn new(node: &str) -> Tree {
        let mut tree = Tree { nodes: HashMap::new(), next: ROOT };
        tree.add(Kind::Directory(BTreeMap::new()), false);
        let own = format!("nodes/{node}");
        for path in [
            "nodes".to_owned(),
            own.clone(),
            format!("{own}/lxc"),
            format!("{own}/qemu-server"),
            "priv".to_owned(),
        ] {
            tree.make_directories(&path);
        }
        for (name, target) in [
            ("local", own.clone()),
            ("lxc", format!("{own}/lxc")),
            ("qemu-server", format!("{own}/qemu-server")),
        ] {
            let number = tree.add(Kind::Link(target), false);
            tree.link(ROOT, OsStr::new(name), number);
        }
        tree
    }

    /// `mkdir -p`, from the root; returns the last one.
    pub fn make_directories(&mut self, path: &str) -> u64 {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = match self.find(at, OsStr::new(name)) {
                Ok(number) => number,
                Err(_) => self.make_directory(at, OsStr::new(name)).unwrap_or(at),
            };
        }
        at
    }

    fn add(&mut self, kind: Kind, private: bool) -> u64 {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node { kind, private, changed: now(), linked: true, opened: 0 });
        number
    }

    /// The node of a number.
    pub fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(ENOENT)
    }

    fn node_mut(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(ENOENT)
    }

    /// The entries of a directory.
    pub fn entries(&self, number: u64) -> Result<&BTreeMap<OsString, u64>, Errno> {
        match &self.node(number)?.kind {
            Kind::Directory(entries) => Ok(entries),
            _ => Err(ENOTDIR),
        }
    }

    fn entries_mut(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        let node = self.node_mut(number)?;
        node.changed = now();
        match &mut node.kind {
            Kind::Directory(entries) => Ok(entries),
            _ => Err(ENOTDIR),
        }
    }

    /// The number behind a name.
    pub fn find(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.entries(parent)?.get(name).copied().ok_or(ENOENT)
    }

    fn link(&mut self, parent: u64, name: &OsStr, number: u64) {
        if let Ok(entries) = self.entries_mut(parent) {
            entries.insert(name.to_owned(), number);
        }
    }

    fn child_is_private(&self, parent: u64, name: &OsStr) -> Result<bool, Errno> {
        Ok(self.node(parent)?.private || (parent == ROOT && name == "priv"))
    }

    fn make(&mut self, parent: u64, name: &OsStr, kind: Kind) -> Result<u64, Errno> {
        if self.find(parent, name).is_ok() {
            return Err(EEXIST);
        }
        let private = self.child_is_private(parent, name)?;
        let number = self.add(kind, private);
        self.link(parent, name, number);
        Ok(number)
    }

    /// A new, empty file.
    pub fn make_file(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.make(parent, name, Kind::File(Vec::new()))
    }

    /// A new directory.
    pub fn make_directory(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.make(parent, name, Kind::Directory(BTreeMap::new()))
    }

    /// Removes a name; what is open lives on.
    pub fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let number = self.find(parent, name)?;
        match (&self.node(number)?.kind, directory) {
            (Kind::Link(_), _) => return Err(EPERM),
            (Kind::Directory(_), false) => return Err(EISDIR),
            (Kind::File(_), true) => return Err(ENOTDIR),
            (Kind::Directory(entries), true) if !entries.is_empty() => return Err(ENOTEMPTY),
            _ => {}
        }
        self.entries_mut(parent)?.remove(name);
        self.unlink(number);
        Ok(())
    }

    fn unlink(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.linked = false;
        if node.opened == 0 {
            self.nodes.remove(&number);
        }
    }

    /// Renames over what is there.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let number = self.find(from.0, from.1)?;
        let is_directory = matches!(self.node(number)?.kind, Kind::Directory(_));
        if matches!(self.node(number)?.kind, Kind::Link(_)) {
            return Err(EPERM);
        }
        let old = self.find(to.0, to.1).ok();
        if old == Some(number) {
            return Ok(());
        }
        if let Some(old) = old {
            match (&self.node(old)?.kind, is_directory) {
                (Kind::Link(_), _) => return Err(EPERM),
                (Kind::Directory(_), false) => return Err(EISDIR),
                (Kind::File(_), true) => return Err(ENOTDIR),
                (Kind::Directory(entries), true) if !entries.is_empty() => return Err(ENOTEMPTY),
                _ => {}
            }
        }
        let private = self.child_is_private(to.0, to.1)?;
        self.entries_mut(from.0)?.remove(from.1);
        self.entries_mut(to.0)?.insert(to.1.to_owned(), number);
        self.node_mut(number)?.private = private;
        old.into_iter().for_each(|old| self.unlink(old));
        Ok(())
    }

    /// Counts an opening. A file that was replaced between the look at its name
    /// and this is not found: readers on the real one see that too.
    pub fn open(&mut self, number: u64) -> Result<(), Errno> {
        let node = self.node_mut(number)?;
        if !node.linked {
            return Err(ENOENT);
        }
        node.opened += 1;
        Ok(())
    }

    /// Ends an opening.
    pub fn close(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.opened = node.opened.saturating_sub(1);
        if node.opened == 0 && !node.linked {
            self.nodes.remove(&number);
        }
    }

    /// Part of a file.
    pub fn read(&self, number: u64, offset: u64, size: u32) -> Result<&[u8], Errno> {
        let Kind::File(bytes) = &self.node(number)?.kind else { return Err(EISDIR) };
        let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let end = bytes.len().min(start + size as usize);
        Ok(&bytes[start..end])
    }

    /// Writes what fits: nothing behind 1 MiB.
    pub fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let node = self.node_mut(number)?;
        node.changed = now();
        let Kind::File(bytes) = &mut node.kind else { return Err(EISDIR) };
        let start = usize::try_from(offset).map_err(|_| EFBIG)?;
        if start >= MAX_SIZE {
            return Err(EFBIG);
        }
        let data = &data[..data.len().min(MAX_SIZE - start)];
        if bytes.len() < start + data.len() {
            bytes.resize(start + data.len(), 0);
        }
        bytes[start..start + data.len()].copy_from_slice(data);
        u32::try_from(data.len()).map_err(|_| EFBIG)
    }

    /// Sets the length.
    pub fn resize(&mut self, number: u64, size: u64) -> Result<(), Errno> {
        let node = self.node_mut(number)?;
        node.changed = now();
        let Kind::File(bytes) = &mut node.kind else { return Err(EINVAL) };
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_SIZE).ok_or(EFBIG)?;
        bytes.resize(size, 0);
        Ok(())
    }
}

/// Now, to the second.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
