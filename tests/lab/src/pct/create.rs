//! Containers made, copied and destroyed; snapshots of conf and disk.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::args::Args;
use super::conf::{self, Conf, Section};
use super::{die, disk, lock, lxc, say, schema};

/// `pct create N local:vztmpl/NAME.tar --key value …`
pub(super) fn create(args: &Args) -> Result<u8> {
    let id = args.id;
    let template = args.word(0)?;
    let _held = lock::take(id)?;
    if conf::path(id).exists() {
        return Err(die(format!(
            "unable to create CT {id} - CT {id} already exists on node '{}'",
            crate::ns::NODE
        )));
    }
    let name = template.strip_prefix("local:vztmpl/").unwrap_or(template);
    let path = format!("/var/lib/vz/template/cache/{name}");
    let image = fs::read_to_string(&path).map_err(|_| die(format!("volume '{template}' does not exist")))?;
    let mut section = Section::default();
    let defaults =
        [("arch", "amd64"), ("memory", "512"), ("ostype", "debian"), ("swap", "512"), ("unprivileged", "1")];
    for (key, value) in defaults {
        section.set(key, value);
    }
    for (key, value) in &args.options {
        if key == "start" {
            continue;
        }
        if let Some(fault) = schema::fault(key, value) {
            return Err(args.refuse(&format!("{key}: {fault}")));
        }
        section.set(key, value);
    }
    if !section.flag("unprivileged") {
        section.keys.remove("unprivileged");
    }
    if section.get("hostname").is_none() {
        section.set("hostname", &format!("CT{id}"));
    }
    section.set("rootfs", &format!("{},size=0T", disk::volume(id)));
    disk::create(id, image.trim(), None)?;
    settle(&section)?;
    Conf { current: section, ..Conf::default() }.store(id)?;
    Ok(0)
}

/// What Proxmox writes into a new container's /etc.
fn settle(section: &Section) -> Result<()> {
    let (Some(root), Some(name)) = (disk::root(section), section.get("hostname")) else { return Ok(()) };
    let owner = if section.flag("unprivileged") { 100_000 } else { 0 };
    let files = [
        ("hosts", crate::host::hosts(name)),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", String::new()),
    ];
    for (file, text) in files {
        let path = Path::new(&root).join("etc").join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        std::os::unix::fs::chown(&path, Some(owner), Some(owner))?;
    }
    Ok(())
}

/// `pct destroy N`
pub(super) fn destroy(args: &Args) -> Result<u8> {
    let id = args.id;
    let _held = lock::take(id)?;
    let conf = Conf::load(id)?;
    if lxc::running(id) {
        if !args.flag("force") {
            return Err(die(format!("CT {id} is running")));
        }
        lxc::stop(id, lxc::Stop::Kill)?;
    }
    if conf.current.flag("protection") {
        return Err(die(format!("can't remove CT {id} - protection mode enabled")));
    }
    disk::destroy(id)?;
    let _ = fs::remove_dir_all(format!("/var/lib/lxc/{id}"));
    fs::remove_file(conf::path(id))?;
    Ok(0)
}

/// `pct clone N NEW [--hostname NAME]`
pub(super) fn clone(args: &Args) -> Result<u8> {
    let id = args.id;
    let new: u32 = args.word(0)?.parse().map_err(|_| args.refuse("newid: type check ('integer') failed"))?;
    let _held = lock::take(id)?;
    let mut conf = Conf::load(id)?;
    if conf::path(new).exists() {
        return Err(die(format!("unable to create CT {new}: config file already exists")));
    }
    if lxc::running(id) {
        return Err(die("Cannot do full clones on a running container without snapshots"));
    }
    say(&format!("creating a clone of container {id} with ID {new}"));
    say(&format!("create full clone of mountpoint rootfs ({})", disk::volume(id)));
    disk::create(new, &disk::base(id)?, Some(id))?;
    conf.snapshots.clear();
    conf.apply_pending();
    let section = &mut conf.current;
    section.set("rootfs", &format!("{},size=0T", disk::volume(new)));
    for key in ["template", "lock", "parent"] {
        section.keys.remove(key);
    }
    if let Some(name) = args.get("hostname") {
        section.set("hostname", name);
    }
    settle(section)?;
    conf.store(new)?;
    Ok(0)
}

/// `pct template N`
pub(super) fn template(args: &Args) -> Result<u8> {
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    if lxc::running(args.id) {
        return Err(die("you can't convert a running CT to template"));
    }
    conf.current.set("template", "1");
    conf.store(args.id)?;
    Ok(0)
}

/// `pct snapshot N NAME`
pub(super) fn snapshot(args: &Args) -> Result<u8> {
    let name = args.word(0)?;
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    if conf.snapshots.contains_key(name) {
        return Err(die(format!("snapshot name '{name}' already used")));
    }
    let mut section = conf.current.clone();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    section.set("snaptime", &now.to_string());
    if let Some(text) = args.get("description") {
        section.set("description", text);
    }
    disk::snapshot(args.id, name)?;
    conf.snapshots.insert(name.to_owned(), section);
    conf.current.set("parent", name);
    conf.store(args.id)?;
    Ok(0)
}

/// `pct rollback N NAME`
pub(super) fn rollback(args: &Args) -> Result<u8> {
    let name = args.word(0)?;
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    let saved = conf.snapshots.get(name).cloned();
    let mut section = saved.ok_or_else(|| die(format!("snapshot '{name}' does not exist")))?;
    if lxc::running(args.id) {
        lxc::stop(args.id, lxc::Stop::Kill)?;
    }
    disk::rollback(args.id, name)?;
    section.keys.remove("snaptime");
    section.set("parent", name);
    conf.current = section;
    conf.pending = None;
    conf.store(args.id)?;
    Ok(0)
}

/// `pct delsnapshot N NAME`
pub(super) fn delete_snapshot(args: &Args) -> Result<u8> {
    let name = args.word(0)?;
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    if conf.snapshots.remove(name).is_none() {
        return Err(die(format!("snapshot '{name}' does not exist")));
    }
    disk::forget(args.id, name)?;
    if conf.current.get("parent") == Some(name) {
        conf.current.keys.remove("parent");
    }
    conf.store(args.id)?;
    Ok(0)
}
