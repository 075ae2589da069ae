//! The LXC config that is generated from a conf, in the genuine one's form and order.

use std::fs;

use anyhow::{Context, Result};

use super::conf::Section;
use super::device;

/// Writes `/var/lib/lxc/N/config` (and the seccomp rules beside it) for the next start.
pub(super) fn write(id: u32, conf: &Section) -> Result<()> {
    let text = config(id, conf)?;
    let dir = format!("/var/lib/lxc/{id}");
    fs::create_dir_all(format!("{dir}/rootfs"))?;
    if conf.flag("unprivileged") {
        let rules =
            fs::read_to_string("/usr/share/lxc/config/common.seccomp").context("LXC's seccomp rules")?;
        fs::write(format!("{dir}/rules.seccomp"), rules + "keyctl errno 38\n")?;
    }
    // As PVE::Tools::file_set_contents: nobody reads half of it.
    let temporary = format!("{dir}/config.tmp.{}", std::process::id());
    fs::write(&temporary, text)?;
    Ok(fs::rename(&temporary, format!("{dir}/config"))?)
}

fn config(id: u32, conf: &Section) -> Result<String> {
    let unprivileged = conf.flag("unprivileged");
    let family = match conf.get("ostype") {
        Some("debian" | "ubuntu" | "devuan") => "debian.",
        _ => "",
    };
    let mut lines = vec![
        "lxc.cgroup.relative = 0".to_owned(),
        format!("lxc.cgroup.dir.monitor = lxc.monitor/{id}"),
        format!("lxc.cgroup.dir.container = lxc/{id}"),
        "lxc.cgroup.dir.container.inner = ns".to_owned(),
        format!("lxc.arch = {}", conf.get("arch").unwrap_or("amd64")),
        format!("lxc.include = /usr/share/lxc/config/{family}common.conf"),
    ];
    let mut add = |line: &str| lines.push(line.to_owned());
    if unprivileged {
        add(&format!("lxc.include = /usr/share/lxc/config/{family}userns.conf"));
        add(&format!("lxc.seccomp.profile = /var/lib/lxc/{id}/rules.seccomp"));
    }
    apparmor(conf, &mut add);
    if unprivileged {
        add("lxc.mount.auto = sys:mixed");
    }
    add("lxc.monitor.unshare = 1");
    if unprivileged {
        add("lxc.idmap = u 0 100000 65536");
        add("lxc.idmap = g 0 100000 65536");
    }
    add(&format!("lxc.tty.max = {}", conf.get("tty").unwrap_or("2")));
    add("lxc.environment = TERM=linux");
    add(&format!("lxc.uts.name = {}", conf.get("hostname").unwrap_or("localhost")));
    add(&format!("lxc.rootfs.path = /var/lib/lxc/{id}/rootfs"));
    for (number, net) in conf.numbered("net") {
        network(id, number, net, &mut add);
    }
    for (_, setting) in conf.numbered("dev") {
        let device = device::read(setting)?;
        let (major, minor) = device::number(device.path)?;
        let access = if device.deny_write { "r" } else { "rw" };
        add(&format!("lxc.cgroup2.devices.allow = c {major}:{minor} {access}"));
        if device.deny_write {
            add(&format!("lxc.cgroup2.devices.deny = c {major}:{minor} w"));
        }
    }
    // Of an OCI image: its program instead of an init.
    if let Some(entrypoint) = conf.get("entrypoint") {
        add(&format!("lxc.init.cmd = {entrypoint}"));
    }
    for (key, value) in &conf.lxc {
        // Of LXC 6; Debian's LXC 5 fails on a key that it does not know.
        let key = if key == "lxc.environment.runtime" { "lxc.environment" } else { key };
        add(&format!("{key} = {value}"));
    }
    Ok(lines.join("\n") + "\n")
}

/// A profile by the container's features, unless the conf names one.
fn apparmor(conf: &Section, add: &mut impl FnMut(&str)) {
    if conf.lxc.iter().any(|(key, _)| key == "lxc.apparmor.profile") {
        return;
    }
    add("lxc.apparmor.profile = generated");
    add("lxc.apparmor.raw = allow mqueue,");
    if nesting(conf) {
        add("lxc.apparmor.allow_nesting = 1");
        add("lxc.apparmor.raw = allow userns,");
    } else {
        add("lxc.apparmor.raw = deny mount -> /proc/,");
        add("lxc.apparmor.raw = deny mount -> /sys/,");
    }
}

/// Whether the container may have containers of its own.
pub(super) fn nesting(conf: &Section) -> bool {
    conf.get("features").unwrap_or("").contains("nesting=1")
}

fn network(id: u32, number: u32, net: &str, add: &mut impl FnMut(&str)) {
    let prefix = format!("lxc.net.{number}");
    add(&format!("{prefix}.type = veth"));
    add(&format!("{prefix}.veth.pair = veth{id}i{number}"));
    if let Some(address) = part(net, "hwaddr") {
        add(&format!("{prefix}.hwaddr = {address}"));
    }
    add(&format!("{prefix}.name = {}", part(net, "name").unwrap_or("eth0")));
    add(&format!("{prefix}.mtu = {}", part(net, "mtu").unwrap_or("1500")));
    add(&format!("{prefix}.script.up = /usr/share/lxc/lxcnetaddbr"));
}

/// One part of a `key=value,key=value` setting.
pub(super) fn part<'a>(setting: &'a str, key: &str) -> Option<&'a str> {
    setting.split(',').find_map(|one| one.strip_prefix(key)?.strip_prefix('='))
}
