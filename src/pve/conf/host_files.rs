//! Lines of a conf that bring the host's driver files into the container: an
//! installer cannot replace what is mounted.

use crate::pve::conf::devices::{ENTRY, words};
use crate::pve::conf::document::{Document, Entry};
use crate::pve::conf::mounts::RUN;
use crate::pve::property;

/// The lines of the main section that mount driver files, from 1.
pub fn lines(conf: &Document) -> Vec<usize> {
    let main = conf.entries().into_iter().filter(|entry| entry.section.is_none());
    main.filter(mounts_driver_files).map(|entry| entry.line).collect()
}

/// `lines 12, 13`, of the conf; none without any.
pub fn shown(conf: &Document) -> Option<String> {
    let lines = lines(conf);
    let word = if lines.len() == 1 { "line" } else { "lines" };
    let numbers: Vec<String> = lines.iter().map(ToString::to_string).collect();
    (!lines.is_empty()).then(|| format!("{word} {}", numbers.join(", ")))
}

fn mounts_driver_files(entry: &Entry) -> bool {
    match entry.key.as_str() {
        // The driver of this host that we mount is no hindrance of ours.
        ENTRY if entry.value.starts_with(RUN) => false,
        ENTRY => {
            let target = words(entry.value.as_bytes()).nth(1).map(String::from_utf8_lossy);
            target.is_some_and(|target| is_driver_path(&target))
        }
        // LXC's own hook, by its path.
        "lxc.hook.mount" => entry.value.contains("nvidia"),
        key if key
            .strip_prefix("mp")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) =>
        {
            property::get(&entry.value, "mp", "volume").is_some_and(|target| is_driver_path(&target))
        }
        _ => false,
    }
}

/// Whether driver files lie at a path of the container, or below it. The check
/// inside (`probe.sh`) has the same names.
fn is_driver_path(path: &str) -> bool {
    let path = path.trim_matches('/');
    let path = path.strip_prefix("usr/").unwrap_or(path);
    if path.starts_with("bin/nvidia-") {
        return true;
    }
    let Some(below) = path.strip_prefix("lib") else { return false };
    let name = below.rsplit('/').next().unwrap_or_default();
    let own = name.contains("nvidia") || name.starts_with("libcuda") || name.starts_with("libnv");
    let in_theirs = below.split('/').any(|part| part == "nvidia");
    let whole = below == "64" || (name.ends_with("-linux-gnu") && below.matches('/').count() == 1);
    !below.starts_with("/firmware") && (own || in_theirs || whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        shown(&Document::parse(text.as_bytes()))
    }

    #[test]
    fn driver_files_are_known_in_each_way_to_mount_them() {
        for line in [
            "lxc.mount.entry: /opt/hostlib/libnvidia-ml.so.570.148.08 usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1 none bind,ro,optional,create=file",
            "lxc.mount.entry = /usr/lib/x86_64-linux-gnu/libcuda.so.1 lib/x86_64-linux-gnu/libcuda.so.1 none bind",
            "lxc.mount.entry: /usr/bin/nvidia-smi usr/bin/nvidia-smi none bind,optional,create=file",
            "lxc.mount.entry: /usr/lib64 usr/lib64 none bind",
            "lxc.mount.entry: /usr/lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu none bind,ro 0 0",
            "mp0: /usr/lib/x86_64-linux-gnu/nvidia,mp=/usr/lib/x86_64-linux-gnu/nvidia,ro=1",
            "lxc.hook.mount: /usr/share/lxc/hooks/nvidia",
        ] {
            assert_eq!(
                of(&format!("arch: amd64\n{line}\n[snap]\n{line}\n")).as_deref(),
                Some("line 2"),
                "{line}"
            );
        }
        assert_eq!(
            of("mp1: x:1,mp=/usr/lib/nvidia\nlxc.hook.mount: /a/nvidia\n").as_deref(),
            Some("lines 1, 2")
        );
    }

    #[test]
    fn other_mounts_are_none_of_the_driver() {
        for line in [
            "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
            "lxc.mount.entry: /srv/nvidia srv/nvidia none bind",
            "lxc.mount.entry: /lib/firmware/nvidia lib/firmware/nvidia none bind",
            "lxc.mount.entry: /usr/lib/python3 usr/lib/python3 none bind",
            "lxc.mount.entry: /run/phoenix-nvidia/proc/101/gpus proc/driver/nvidia/gpus none bind",
            "mp0: local:101/disk,mp=/var/lib/docker",
            "mp: /x,mp=/usr/lib/nvidia",
            "lxc.hook.mount: /usr/share/lxc/hooks/mine",
        ] {
            assert_eq!(of(&format!("{line}\n")), None, "{line}");
        }
    }
}
