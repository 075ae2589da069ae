//! The tree, served over FUSE.

use super::tree::{Errno as Number, Kind, ROOT, Tree};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// As long as the kernel may keep what it knows.
const KEEP: Duration = Duration::from_secs(1);
/// root:www-data
const OWNER: (u32, u32) = (0, 33);

/// The file system.
pub struct Pmxcfs {
    tree: Mutex<Tree>,
    control: Option<PathBuf>,
}

fn errno(number: Number) -> Errno {
    Errno::from_i32(number)
}

impl Pmxcfs {
    /// Only what is always there.
    pub fn new(node: &str, control: Option<PathBuf>) -> Self {
        Pmxcfs { tree: Mutex::new(Tree::new(node)), control }
    }

    /// Copies directories and files of `directory` in; links are built in.
    pub fn take_over(&mut self, directory: &Path) -> std::io::Result<()> {
        let mut waiting = vec![(directory.to_owned(), String::new())];
        while let Some((from, to)) = waiting.pop() {
            for entry in std::fs::read_dir(&from)? {
                let entry = entry?;
                let inside = format!("{to}/{}", entry.file_name().to_string_lossy());
                let mut tree = self.tree();
                if entry.file_type()?.is_dir() {
                    tree.make_directories(&inside);
                    waiting.push((entry.path(), inside));
                } else if entry.file_type()?.is_file() {
                    let parent = tree.make_directories(&to);
                    let made = tree.make_file(parent, &entry.file_name());
                    let written =
                        made.and_then(|n| tree.write(n, 0, &std::fs::read(entry.path()).unwrap_or_default()));
                    written.map_err(std::io::Error::from_raw_os_error)?;
                }
            }
        }
        Ok(())
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, name: &str) -> bool {
        self.control.as_ref().is_some_and(|control| control.join(name).exists())
    }

    /// What every change meets first.
    fn may_change(&self) -> Result<(), Number> {
        if self.told("no-quorum") {
            return Err(13); // EACCES
        }
        if self.told("eio") {
            return Err(5);
        }
        Ok(())
    }

    fn attributes(&self, tree: &Tree, number: u64) -> Result<FileAttr, Number> {
        let node = tree.node(number)?;
        let kind = match node.kind {
            Kind::Directory(_) => FileType::Directory,
            Kind::File(_) => FileType::RegularFile,
            Kind::Link(_) => FileType::Symlink,
        };
        // Without quorum the modes show it.
        let mask = if self.told("no-quorum") { 0o555 } else { 0o777 };
        Ok(FileAttr {
            ino: INodeNo(number),
            size: node.size() as u64,
            blocks: node.size().div_ceil(512) as u64,
            atime: node.changed,
            mtime: node.changed,
            ctime: node.changed,
            crtime: node.changed,
            kind,
            perm: node.mode() & mask,
            nlink: u32::from(node.linked),
            uid: OWNER.0,
            gid: OWNER.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entry(&self, found: Result<u64, Number>, reply: ReplyEntry) {
        let tree = self.tree();
        match found.and_then(|number| self.attributes(&tree, number)) {
            Ok(attributes) => reply.entry(&KEEP, &attributes, Generation(0)),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Tree) -> Result<(), Number>, reply: ReplyEmpty) {
        match self.may_change().and_then(|()| change(&mut self.tree())) {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn set(
        &self,
        number: u64,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
    ) -> Result<FileAttr, Number> {
        self.may_change()?;
        let mut tree = self.tree();
        let only = u32::from(tree.node(number)?.mode());
        if mode.is_some_and(|mode| mode & 0o7777 != only)
            || owner.0.is_some_and(|uid| uid != OWNER.0)
            || owner.1.is_some_and(|gid| gid != OWNER.1)
        {
            return Err(1); // EPERM
        }
        if let Some(size) = size {
            tree.resize(number, size)?;
        }
        self.attributes(&tree, number)
    }
}

impl Filesystem for Pmxcfs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree().find(parent.0, name);
        self.entry(found, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(&self.tree(), ino.0) {
            Ok(attributes) => reply.attr(&KEEP, &attributes),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set(ino.0, mode, (uid, gid), size) {
            Ok(attributes) => reply.attr(&KEEP, &attributes),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree().node(ino.0).map(|node| &node.kind) {
            Ok(Kind::Link(target)) => reply.data(target.as_bytes()),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.may_change().and_then(|()| self.tree().make_directory(parent.0, name));
        self.entry(made, reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::ENOSYS);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(|tree| tree.remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(|tree| tree.remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        self.change(|tree| tree.rename((parent.0, name), (newparent.0, newname)), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.tree().open(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.may_change().and_then(|()| {
            let mut tree = self.tree();
            let number = tree.make_file(parent.0, name)?;
            tree.open(number)?;
            self.attributes(&tree, number)
        });
        match made {
            Ok(attributes) => {
                reply.created(&KEEP, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(number) => reply.error(errno(number)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Not even KILL ends a reader whose request is being served.
        while self.told("stuck") {
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.tree().read(ino.0, offset, size) {
            Ok(bytes) => reply.data(bytes),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let full = || if self.told("full") { Err(28) } else { Ok(()) };
        let written =
            self.may_change().and_then(|()| full()).and_then(|()| self.tree().write(ino.0, offset, data));
        match written {
            Ok(size) => reply.written(size),
            Err(number) => reply.error(errno(number)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree().close(ino.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = self.tree();
        let entries = match tree.entries(ino.0) {
            Ok(entries) => entries,
            Err(number) => return reply.error(errno(number)),
        };
        let dots =
            [(ino.0, FileType::Directory, OsStr::new(".")), (ROOT, FileType::Directory, OsStr::new(".."))];
        let named = entries.iter().filter_map(|(name, number)| {
            let attributes = self.attributes(&tree, *number).ok()?;
            Some((*number, attributes.kind, name.as_os_str()))
        });
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (number, kind, name)) in dots.into_iter().chain(named).enumerate().skip(skip) {
            if reply.add(INodeNo(number), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(32_768, 32_767, 32_767, 262_144, 262_131, 4096, 256, 4096);
    }
}
