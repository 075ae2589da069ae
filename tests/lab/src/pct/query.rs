//! The verbs that only look.

use anyhow::Result;

use super::args::Args;
use super::conf::{Conf, Section};
use super::{die, lxc, say, schema};

/// `pct status N`
pub(super) fn status(args: &Args) -> Result<u8> {
    Conf::load(args.id)?;
    say(if lxc::running(args.id) { "status: running" } else { "status: stopped" });
    Ok(0)
}

/// `pct config N [--current] [--snapshot NAME]`
pub(super) fn config(args: &Args) -> Result<u8> {
    let mut conf = Conf::load(args.id)?;
    if let Some(name) = args.get("snapshot") {
        let section =
            conf.snapshots.get(name).ok_or_else(|| die(format!("snapshot '{name}' does not exist")))?;
        return show(section, args);
    }
    if !args.flag("current") {
        conf.apply_pending();
    }
    show(&conf.current, args)
}

fn show(section: &Section, args: &Args) -> Result<u8> {
    for (key, value) in &section.keys {
        if let Some(fault) = schema::fault(key, value).filter(|fault| fault.starts_with("type check")) {
            return Err(die(format!("400 Result verification failed\n{key}: {fault}\n{}", args.usage())));
        }
    }
    for line in section.lines().into_iter().chain(section.raw_lines()) {
        say(&line);
    }
    Ok(0)
}

/// `pct pending N`
pub(super) fn pending(args: &Args) -> Result<u8> {
    let conf = Conf::load(args.id)?;
    let waiting = conf.pending.unwrap_or_default();
    let gone: Vec<&str> = waiting.get("delete").map(|list| list.split(',').collect()).unwrap_or_default();
    for (key, line) in conf.current.keys.keys().zip(conf.current.lines()) {
        say(&if gone.contains(&key.as_str()) { format!("del {line}") } else { format!("cur {line}") });
        if let Some(value) = waiting.get(key) {
            say(&format!("new {key}: {value}"));
        }
    }
    for (key, value) in
        waiting.keys.iter().filter(|(key, _)| *key != "delete" && conf.current.get(key).is_none())
    {
        say(&format!("new {key}: {value}"));
    }
    Ok(0)
}

/// `pct list`
pub(super) fn list() -> Result<u8> {
    let mut ids: Vec<u32> = std::fs::read_dir("/etc/pve/lxc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".conf")?.parse().ok())
        .collect();
    ids.sort_unstable();
    if !ids.is_empty() {
        say(&format!("{:<10} {:<10} {:<12} {:<20}", "VMID", "Status", "Lock", "Name"));
    }
    for id in ids {
        let conf = Conf::load(id)?.current;
        let state = if lxc::running(id) { "running" } else { "stopped" };
        let lock = conf.get("lock").unwrap_or_default();
        let name = conf.get("hostname").unwrap_or_default();
        say(&format!("{id:<10} {state:<10} {lock:<12} {name:<20}"));
    }
    Ok(0)
}

/// `pct listsnapshot N`
pub(super) fn snapshots(args: &Args) -> Result<u8> {
    let conf = Conf::load(args.id)?;
    for (name, section) in &conf.snapshots {
        let description =
            section.get("description").unwrap_or("no-description").trim_end().replace('\n', " ");
        let time = section.get("snaptime").unwrap_or_default();
        say(&format!("`-> {name:<23} {time:<23} {description}"));
    }
    say(&format!("`-> {:<23} {:<23} You are here!", "current", ""));
    Ok(0)
}
