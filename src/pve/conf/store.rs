//! A container's conf and generated config as files: lock, read, replace. Runs
//! no program.

use crate::exit::{Code, Fault};
use crate::pve::conf::document::Document;
use crate::pve::conf::faults::describe;
use crate::pve::conf::open::{self, MAX_SIZE, OpenError, TakeError};
use crate::sys::file::is_at;
use crate::sys::lock;
use crate::sys::replace::{Attributes, replace_if};
use crate::sys::time::Deadline;
use anyhow::Result;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub use crate::pve::conf::files::Conf;

/// Marks our temp files.
const MARK: &str = ".phoenix-nvidia.";

/// How often to retry a missing name: 2 + 4 + … + 64 ms.
const RETRIES: u32 = 6;

/// Who edits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A hook phase; Proxmox has checked `lock:` before.
    Hook,
    /// A call by hand: a conf with `lock:` belongs to another operation.
    ByHand,
}

impl Conf {
    /// Reads the conf, without any lock.
    ///
    /// # Errors
    /// A [`Fault`] with code 3 if this node has no such conf, 4 if it cannot be
    /// read.
    pub fn read(&self) -> Result<Document> {
        self.read_or(Code::NoContainer)
    }

    /// `missing`: the code if there is no conf.
    fn read_or(&self, missing: Code) -> Result<Document> {
        let (file, meta) =
            open::open(&self.conf, RETRIES).map_err(|error| self.unreadable(error, missing))?;
        self.contents(&file, &meta)
    }

    /// Replaces the conf by the result of `edit`, under Proxmox's lock and ours;
    /// returns what was written, or `None` if nothing changes.
    ///
    /// Calls `edit` without a lock first: if nothing changes, takes no lock and
    /// writes nothing. Calls it again under the locks.
    ///
    /// # Errors
    /// A [`Fault`] with code 4; the conf is unchanged.
    pub fn edit<E: AsRef<Document>>(
        &self,
        who: Caller,
        edit: impl Fn(&Document) -> Option<E>,
    ) -> Result<Option<E>> {
        let first = self.read_or(Code::Passthrough)?;
        if edit(&first).is_none() {
            self.clear_unlocked();
            return Ok(None);
        }
        self.may_edit(who, &first)?;
        // Order: Proxmox's lock, then ours; never the other way round.
        let taken = open::lock_at(&self.pve_lock, &self.deadline(), || {
            lock::open_theirs(&self.pve_lock).map_err(TakeError::Lock)
        });
        let _pve = match taken {
            Ok(held) => held,
            Err(error) => {
                // The holder may have done the work.
                if edit(&self.read_or(Code::Passthrough)?).is_none() {
                    return Ok(None);
                }
                return Err(self.not_locked(error));
            }
        };
        self.edit_locked(who, edit)
    }

    /// The part of [`Conf::edit`] that runs under Proxmox's lock.
    fn edit_locked<E: AsRef<Document>>(
        &self,
        who: Caller,
        edit: impl Fn(&Document) -> Option<E>,
    ) -> Result<Option<E>> {
        let deadline = self.deadline();
        loop {
            let (file, meta) = self.lock_conf(&deadline)?;
            let now = self.contents(&file, &meta)?;
            let done = edit(&now);
            if let Some(new) = &done {
                self.may_edit(who, &now)?;
                self.fits(new.as_ref())?;
            }
            // Created only under this lock: any temp file now is a leftover of
            // a killed run.
            clear(&self.conf, |_| true);
            let Some(new) = done else { return Ok(None) };
            match self.write(&self.conf, &meta, new.as_ref()) {
                Ok(()) => return Ok(Some(new)),
                // Replaced meanwhile by a program that does not take these
                // locks: edit its version.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !deadline.passed() => {}
                Err(error) => return Err(self.not_written(error)),
            }
        }
    }

    /// Replaces the config that Proxmox generated for this start; `None` if
    /// nothing changes or there is no such file (a stopped container: the next
    /// start generates it from the conf).
    ///
    /// # Errors
    /// A [`Fault`] with code 4.
    pub fn edit_generated<E: AsRef<Document>>(
        &self,
        edit: impl Fn(&Document) -> Option<E>,
    ) -> Result<Option<E>> {
        let path = &self.generated;
        let failed = |error: OpenError| self.fault_at(path, describe(&error, path));
        let deadline = self.deadline();
        loop {
            let (file, meta) = match open::open(path, 0) {
                Ok(opened) => opened,
                Err(OpenError::Missing) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let document = Document::from(open::read(&file, &meta).map_err(failed)?);
            let Some(new) = edit(&document) else { return Ok(None) };
            // No lock here: remove leftovers of dead processes only.
            clear(path, |pid| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists());
            match self.write(path, &meta, new.as_ref()) {
                Ok(()) => return Ok(Some(new)),
                // Written anew meanwhile, by a `pct set` of the running container say.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !deadline.passed() => {}
                Err(error) => {
                    return Err(self.fault_at(path, format!("cannot write {}: {error}", path.display())));
                }
            }
        }
    }

    /// Reads the config that Proxmox generated for the last start; `None` if there
    /// is none.
    ///
    /// # Errors
    /// A [`Fault`] with code 4.
    pub fn read_generated(&self) -> Result<Option<Document>> {
        let failed = |error: OpenError| self.fault_at(&self.generated, describe(&error, &self.generated));
        match open::open(&self.generated, 0) {
            Ok((file, meta)) => Ok(Some(Document::from(open::read(&file, &meta).map_err(failed)?))),
            Err(OpenError::Missing) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Locks the conf itself, after any replacement.
    fn lock_conf(&self, deadline: &Deadline) -> Result<(File, Metadata)> {
        let open = || match open::open(&self.conf, RETRIES) {
            Ok((file, _)) => Ok(file),
            Err(error) => Err(TakeError::Open(error)),
        };
        let held = open::lock_at(&self.conf, deadline, open).map_err(|e| self.not_locked(e))?;
        // An ancestor that locks the conf itself is a wrapper acting for us.
        let file = match held {
            Some(file) => file,
            None => open().map_err(|e| self.not_locked(e))?,
        };
        let meta = file.metadata().map_err(|e| self.unreadable(OpenError::Io(e), Code::Passthrough))?;
        Ok((file, meta))
    }

    fn write(&self, path: &Path, old: &Metadata, new: &Document) -> io::Result<()> {
        let temp = temp_of(path, std::process::id());
        let attributes = Attributes { mode: old.mode() & 0o7777, owner: Some((old.uid(), old.gid())) };
        replace_if(path, &temp, new.as_bytes(), attributes, || {
            let gone = || io::Error::new(io::ErrorKind::NotFound, "replaced by somebody else");
            is_at(old, path).then_some(()).ok_or_else(gone)
        })
    }

    fn contents(&self, file: &File, meta: &Metadata) -> Result<Document> {
        let bytes = open::read(file, meta).map_err(|e| self.unreadable(e, Code::Passthrough))?;
        Ok(Document::from(bytes))
    }

    /// Removes leftovers of killed runs, unless another process edits now.
    fn clear_unlocked(&self) {
        if leftovers(&self.conf).is_empty() {
            return;
        }
        let Ok((file, meta)) = open::open(&self.conf, 0) else { return };
        let locked = lock::try_exclusive(&file, &self.conf).unwrap_or(false);
        if locked && is_at(&meta, &self.conf) {
            clear(&self.conf, |_| true);
        }
    }

    /// Fails a call by hand if another operation holds the container's `lock:`.
    ///
    /// # Errors
    /// A [`Fault`] with code 4.
    pub fn may_edit(&self, who: Caller, document: &Document) -> Result<()> {
        let owner = match who {
            Caller::ByHand => document.get("lock"),
            Caller::Hook => None,
        };
        let Some(owner) = owner else { return Ok(()) };
        let message = format!("container {} is locked by another operation ({owner})", self.ctid);
        let remedy = format!("wait for that operation to end; if it died: pct unlock {}", self.ctid);
        Err(Fault::new(Code::Passthrough, message).remedy(remedy).into())
    }

    fn fits(&self, document: &Document) -> Result<()> {
        if document.as_bytes().len() <= MAX_SIZE {
            return Ok(());
        }
        let message = format!("{} would exceed 1 MiB, the limit of /etc/pve", self.conf.display());
        Err(self.fault_at(&self.conf, message))
    }
}

/// `N.conf.phoenix-nvidia.PID`: never `DIGITS.conf`, which would be another
/// container.
fn temp_of(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{MARK}{pid}"));
    path.with_file_name(name)
}

/// The temp files of ours beside `path`, each with the process that made it.
fn leftovers(path: &Path) -> Vec<(PathBuf, u32)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}{MARK}", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let pid =
        |entry: &std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok();
    entries.flatten().filter_map(|entry| Some((entry.path(), pid(&entry)?))).collect()
}

/// Removes our temp files. A failure shows in the write.
fn clear(path: &Path, dead: impl Fn(u32) -> bool) {
    for (temp, pid) in leftovers(path) {
        if dead(pid) {
            match std::fs::remove_file(&temp) {
                Ok(()) => log::info!("removed {}, left by a killed run", temp.display()),
                Err(error) => log::debug!("cannot remove {}: {error}", temp.display()),
            }
        }
    }
}
