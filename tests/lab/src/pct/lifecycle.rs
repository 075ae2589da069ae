//! Start, stop, shutdown and reboot: the order of their steps, all of it under the lock of the container.

use std::path::Path;

use anyhow::Result;

use super::args::Args;
use super::conf::{Conf, Section};
use super::lxc::{Started, Stop};
use super::worker::{self, Task};
use super::{cluster, die, disk, generate, hook, hooks, lock, lxc, say};

/// Seconds that a shutdown waits for the container to end by itself.
const PATIENCE: u64 = 60;

/// The caller's side: what is refused without a task, then the task.
pub(super) fn call(verb: &str, args: &Args) -> Result<u8> {
    Conf::load(args.id)?;
    let id = args.id;
    match (verb, lxc::running(id)) {
        ("start", true) => return Err(die(format!("CT {id} already running"))),
        ("start", false) => cluster::check_quorum()?,
        (_, true) => {}
        ("reboot", false) => return Err(die(format!("VM {id} not running"))),
        (_, false) => return Err(die(format!("CT {id} not running"))),
    }
    let kind = match verb {
        "start" => "vzstart",
        "stop" => "vzstop",
        "shutdown" => "vzshutdown",
        _ => "vzreboot",
    };
    worker::fork(kind, args)
}

/// The worker's side.
pub(super) fn perform(verb: &str, args: &Args, task: &mut Task) -> Result<()> {
    let id = args.id;
    let _held = lock::take(id)?;
    let mut conf = Conf::load(id)?;
    let asked = args.get("timeout").and_then(|text| text.parse().ok());
    let skip = args.flag("skiplock");
    match verb {
        "start" => {
            if conf.current.flag("template") {
                return Err(die("you can't start a CT if it's a template"));
            }
            refuse_locked(&conf.current, skip, true)?;
            if skip {
                std::fs::write(lxc::skiplock_path(id), "")?;
            }
            start(id, &mut conf, task)
        }
        "stop" => {
            refuse_locked(&conf.current, skip, true)?;
            stop(id, &conf.current, Stop::Kill)
        }
        "shutdown" => {
            refuse_locked(&conf.current, false, false)?;
            let seconds = asked.unwrap_or(PATIENCE);
            stop(id, &conf.current, Stop::Ask { seconds, kill: args.flag("forceStop") })
        }
        _ => reboot(id, &conf.current, asked.unwrap_or(PATIENCE), task),
    }
}

/// Neither `lock:` nor the quorum is looked at before the container is stopped: both refuse the start.
fn reboot(id: u32, conf: &Section, seconds: u64, task: &mut Task) -> Result<()> {
    if !lxc::running(id) {
        return Ok(());
    }
    stop(id, conf, Stop::Ask { seconds, kill: true })?;
    start(id, &mut Conf::load(id)?, task)
}

/// `lock:` in the conf: another operation owns the container. One that `pct mount` made stops no start and no stop.
fn refuse_locked(conf: &Section, skip: bool, mounted_is_fine: bool) -> Result<()> {
    match conf.get("lock").filter(|_| !skip) {
        Some(word) if !(mounted_is_fine && word == "mounted") => Err(die(format!("CT is locked ({word})"))),
        _ => Ok(()),
    }
}

fn start(id: u32, conf: &mut Conf, task: &mut Task) -> Result<()> {
    if lxc::running(id) {
        return Err(die(format!("CT {id} already running")));
    }
    if conf.apply_pending() {
        conf.store(id)?;
    }
    let conf = &conf.current;
    generate::write(id, conf)?;
    hook::run(conf, id, "pre-start")?;
    let started = lxc::start(id)?;
    if let Some(version) = systemd_version(conf).filter(|_| !generate::nesting(conf)) {
        task.warn(&format!("Systemd {version} detected. You may need to enable nesting."));
    }
    warn_only(hook::run(conf, id, "post-start"))?;
    if started == Started::Refused {
        // Recorded: systemd started the unit, and only the look for its process 1 finds none. The reason stands in the
        // unit's journal alone.
        lxc::no_process(id);
        return Err(die(format!("unable to get PID for CT {id} (not running?)")));
    }
    // Last of all, and so later than any hook: addresses that the host asks for in the container's place.
    if !conf.numbered("net").iter().any(|(_, net)| net.contains("host-managed=1")) {
        return Ok(());
    }
    lxc::init(id).map_or(Ok(()), |pid| hooks::addresses(id, conf, &pid, true))
}

fn stop(id: u32, conf: &Section, how: Stop) -> Result<()> {
    if !lxc::running(id) {
        return Err(die(format!("CT {id} not running")));
    }
    warn_only(hook::run(conf, id, "pre-stop"))?;
    lxc::stop(id, how)
}

/// A hookscript's failure that is shown and no more.
fn warn_only(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.is::<hook::Failed>() => {
            say(&format!("{error}\n"));
            Ok(())
        }
        done => done,
    }
}

/// The container's systemd, by the name of its shared library.
fn systemd_version(conf: &Section) -> Option<u32> {
    if conf.get("ostype") == Some("unmanaged") {
        return None;
    }
    let root = disk::root(conf)?;
    let dirs = ["usr/lib/systemd", "usr/lib/x86_64-linux-gnu/systemd"];
    let names = dirs
        .iter()
        .flat_map(|dir| std::fs::read_dir(Path::new(&root).join(dir)).into_iter().flatten().flatten());
    names
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix("libsystemd-shared-")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        })
        .next()
}
