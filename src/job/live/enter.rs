//! Mounts into and out of a running container, each by a process of its own:
//! `phoenix-nvidia live`. It enters the container's namespaces, so it holds
//! nothing else, and it may be left behind where the container has something
//! that never answers.

use crate::device::{DevicePath, Number};
use crate::pve::pct::{Init, start_time};
use crate::sys::detached::{Detached, Holds, identity};
use crate::sys::inside::{self, Spot, There};
use crate::sys::process::Cmd;
use crate::sys::time::Deadline;
use anyhow::{Context as _, bail};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Our own program, even while its package is upgraded.
const OURSELVES: &str = "/proc/self/exe";
/// The word on the command line of the process.
pub const WORD: &str = "live";
/// The limit of one step. The kernel does each in microseconds, and a host whose disk is
/// busy with a backup starts a process seconds later.
pub const STEP: Duration = Duration::from_secs(10);
/// So many mounts at one place are taken away at most.
const STACKED: usize = 16;

/// A step in the mount namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Mounts a copy of what is at `source` on this host.
    Put {
        /// The path on this host.
        source: PathBuf,
        /// The path inside, relative to the root.
        target: PathBuf,
        /// What it is.
        holds: Holds,
        /// The device number that it must have.
        number: Option<(u32, u32)>,
        /// In place of the mount of ours that is there.
        over: bool,
    },
    /// Takes a mount away, and the empty file below it; of a capability's node also the
    /// directory, once it is empty.
    Take {
        /// The path inside, relative to the root.
        target: PathBuf,
        /// The device number of the node that goes; any mount without.
        number: Option<(u32, u32)>,
    },
    /// Takes a directory of nodes away, and the empty one below it.
    TakeNodes {
        /// The path on this host: nothing else is taken away.
        source: PathBuf,
        /// The path inside, relative to the root.
        target: PathBuf,
    },
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Done {
    /// It is so now; whether anything was done.
    Is(bool),
    /// The container's first process has ended: nothing was done.
    Gone,
    /// Nothing was done, and why.
    Refused(String),
}

/// What stands on the process's stdin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    pid: i32,
    started: u64,
    act: Act,
}

impl Act {
    /// A device node of this host, at its own place.
    pub fn device(path: DevicePath, number: Number, over: bool) -> Act {
        let (source, target) = (path.on_host().into(), below_root(path));
        Act::Put { source, target, holds: Holds::Node, number: Some((number.major, number.minor)), over }
    }

    /// Takes it away; also the directory of MIG's nodes that an older start gave.
    pub fn take_device(path: DevicePath, number: Option<Number>) -> Act {
        match path {
            DevicePath::Caps => Act::TakeNodes { source: path.on_host().into(), target: below_root(path) },
            _ => Act::Take { target: below_root(path), number: number.map(|n| (n.major, n.minor)) },
        }
    }

    /// Does it in the container of this first process.
    ///
    /// # Errors
    /// The process could not be run, or did not end in time: whether it was done
    /// is not known.
    pub fn run(self, init: &Init) -> anyhow::Result<Done> {
        let step = Step { pid: init.pid, started: init.started, act: self };
        ask(&step, &Deadline::after(STEP)).context("a step in the container's mount namespace")
    }
}

/// Runs the process with this on its stdin; returns what it answers.
pub fn ask<A: serde::de::DeserializeOwned>(what: &impl Asked, deadline: &Deadline) -> anyhow::Result<A> {
    let cmd = Cmd::new(OURSELVES).named("phoenix-nvidia").args([WORD, what.word()]);
    let out = cmd.stdin(std::io::Cursor::new(what.text()?)).keep(4 << 20).at_once().run(deadline)?;
    if !out.success() {
        bail!("{}: {}", out.ended, out.last_lines(1).join(" "));
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// What such a process is asked.
pub trait Asked: Serialize {
    /// The second word on its command line.
    fn word(&self) -> &'static str;

    /// Its stdin.
    ///
    /// # Errors
    /// It has no form.
    fn text(&self) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Asked for Step {
    fn word(&self) -> &'static str {
        "mount"
    }
}

impl Step {
    /// Does it: in the process of its own.
    pub fn answer(&self) -> Done {
        let done = match &self.act {
            Act::Put { source, target, holds, number, over } => {
                self.put(source, target, *holds, *number, *over)
            }
            Act::Take { target, number } => self.take(target, *number),
            Act::TakeNodes { source, target } => self.take_nodes(source, target),
        };
        done.unwrap_or_else(|error| Done::Refused(format!("{error:#}")))
    }

    fn enter(&self) -> anyhow::Result<Option<inside::Inside>> {
        let stat = format!("/proc/{}/stat", self.pid);
        let is_it = || start_time(&std::fs::read_to_string(&stat).unwrap_or_default()) == Some(self.started);
        inside::enter(self.pid, is_it).context("cannot enter the container")
    }

    fn put(
        &self,
        source: &Path,
        target: &Path,
        holds: Holds,
        number: Option<(u32, u32)>,
        over: bool,
    ) -> anyhow::Result<Done> {
        let copy =
            Detached::of(source, holds).with_context(|| format!("cannot bind {}", source.display()))?;
        if number.is_some() && copy.number()? != number {
            bail!("{} is not the device that it should be", source.display());
        }
        let Some(inside) = self.enter()? else { return Ok(Done::Gone) };
        let make = holds == Holds::Programs || capabilities(target).is_some();
        let spot = inside.spot(target, make)?;
        let placed = if over { replace(&spot, &copy) } else { place(&spot, &copy, holds) };
        match placed {
            Ok(()) => Ok(Done::Is(true)),
            Err(error) => {
                spot.unmake();
                Err(spot.refused(target)(error).into())
            }
        }
    }

    fn take_nodes(&self, source: &Path, target: &Path) -> anyhow::Result<Done> {
        let ours = Detached::of(source, Holds::Nodes)
            .with_context(|| format!("cannot bind {}", source.display()))?;
        let Some(inside) = self.enter()? else { return Ok(Done::Gone) };
        let spot = match inside.spot(target, false) {
            Err(refused) if refused.error == Errno::ENOENT => return Ok(Done::Is(false)),
            spot => spot?,
        };
        nodes_taken(&spot, &ours).map(Done::Is).map_err(|error| spot.refused(target)(error).into())
    }

    fn take(&self, target: &Path, number: Option<(u32, u32)>) -> anyhow::Result<Done> {
        let Some(inside) = self.enter()? else { return Ok(Done::Gone) };
        let spot = match inside.spot(target, false) {
            Err(refused) if refused.error == Errno::ENOENT => return Ok(Done::Is(false)),
            spot => spot?,
        };
        let done = taken(&spot, number).map_err(|error| spot.refused(target)(error))?;
        // What else is in the directory is another capability, or the container's own.
        if let Some(Ok(above)) = capabilities(target).map(|directory| inside.spot(directory, false)) {
            let _ = above.remove_directory();
        }
        Ok(Done::Is(done))
    }
}

/// The directory of a capability's node: the container has one of its own for it.
fn capabilities(target: &Path) -> Option<&Path> {
    target.parent().filter(|above| *above == below_root(DevicePath::Caps))
}

/// Takes the directory away that is this one; something else is EBUSY.
fn nodes_taken(spot: &Spot, ours: &Detached) -> nix::Result<bool> {
    match spot.look()? {
        There::Nothing => return Ok(false),
        There::Directory(_) if !spot.is_mount()? => return Ok(false),
        There::Directory(there) if identity(&there)? == identity(ours)? => {}
        _ => return Err(Errno::EBUSY),
    }
    let done = spot.unmount()?;
    // What lies below and has files is the container's own.
    match spot.remove_directory() {
        Err(Errno::ENOTEMPTY | Errno::ENOENT | Errno::ENOTDIR | Errno::EBUSY) => Ok(done),
        removed => removed.map(|()| true),
    }
}

/// On what is there and is no mount, or on a new file or directory.
fn place(spot: &Spot, copy: &Detached, holds: Holds) -> nix::Result<()> {
    let on = |there: &There| match (there, holds) {
        (There::Device(file, _) | There::File(file, _), Holds::Node | Holds::Data) => copy.place(file),
        (There::Directory(_), Holds::Programs) if !spot.is_empty()? => Err(Errno::ENOTEMPTY.into()),
        (There::Directory(file), Holds::Data | Holds::Programs) => copy.place(file),
        _ => Err(std::io::Error::from(Errno::EEXIST)),
    };
    let there = spot.look()?;
    if !matches!(there, There::Nothing) {
        if spot.is_mount()? {
            // Our own, where it is not known whether it was taken away.
            let same = matches!(there, There::Device(_, is) if copy.number().map_err(errno)? == Some(is));
            return if same { Ok(()) } else { Err(Errno::EBUSY) };
        }
        return on(&there).map_err(errno);
    }
    match holds {
        Holds::Node => spot.make_file()?,
        Holds::Programs => spot.make_directory()?,
        // The kernel's own, or nothing to be covered; and what is only taken away.
        Holds::Data | Holds::Nodes => return Err(Errno::ENOENT),
    }
    let placed = spot.look().and_then(|there| on(&there).map_err(errno));
    if placed.is_err() {
        let _ = if holds == Holds::Node { spot.remove_file() } else { spot.remove_directory() };
    }
    placed
}

/// In place of a mount, which comes back where that fails.
fn replace(spot: &Spot, copy: &Detached) -> nix::Result<()> {
    let opened = |there| match there {
        There::Device(file, _) | There::File(file, _) | There::Directory(file) => Ok(file),
        There::Nothing => Err(Errno::ENOENT),
        There::Other => Err(Errno::EEXIST),
    };
    let before = Detached::of_open(&opened(spot.look()?)?).map_err(errno)?;
    if !spot.unmount()? {
        return Err(Errno::EINVAL);
    }
    let on = opened(spot.look()?)?;
    copy.place(&on).map_err(|error| {
        let _ = before.place(&on);
        errno(error)
    })
}

/// Takes the mounts away, the uppermost first; something else that is mounted on
/// one of them stays, and is EBUSY.
fn taken(spot: &Spot, number: Option<(u32, u32)>) -> nix::Result<bool> {
    let mut done = false;
    for _ in 0..STACKED {
        match (spot.look()?, number) {
            (There::Device(_, is), Some(number)) if is == number => {
                // One that is no mount was made inside, and its rule is gone.
                if !spot.unmount()? {
                    return Ok(done);
                }
                done = true;
            }
            (There::File(_, true), Some(_)) => return spot.remove_file().map(|()| true),
            (There::Nothing, _) => return Ok(done),
            // What lies below a node of ours, or came in its place, is the container's own.
            (_, Some(_)) if done || !spot.is_mount()? => return Ok(done),
            (_, Some(_)) => return Err(Errno::EBUSY),
            (_, None) => return spot.unmount(),
        }
    }
    Err(Errno::EBUSY)
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn below_root(path: DevicePath) -> PathBuf {
    path.to_string().trim_start_matches('/').into()
}
