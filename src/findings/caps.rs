//! The host's directory of the capabilities, which no container is given any more.

use super::finding::Finding;
use super::read::{Container, Host};
use crate::device::{CAPS_DIR, DevicePath};
use crate::plan::MOST_LINES;
use crate::pve::conf::devices::passed_by_entries;
use crate::pve::hookscript::Hookscript;
use crate::sys::text;

/// What a container may have put into the directory, for the host or others to open.
pub fn planted(host: &Host) -> Vec<Finding> {
    let strange = &host.strange_caps;
    let mut findings = Vec::new();
    if let Some(open) = &strange.open {
        let what = format!("{CAPS_DIR} {open}: others than root may make nodes there");
        let finding = Finding::failure("caps", what).why(PLANTED);
        findings.push(finding.fix(format!("chown root:root {CAPS_DIR} && chmod 755 {CAPS_DIR}")));
    }
    if !strange.files.is_empty() {
        let told = strange.files.iter().map(|(name, what)| {
            let name = text::shown(&name.to_string_lossy());
            format!("{name} ({what})")
        });
        let told = text::few(told.collect(), MOST_LINES).join(", ");
        let what = format!("not the NVIDIA driver's, in {CAPS_DIR}: {told}");
        findings.push(Finding::failure("caps", what).why(PLANTED).fix(remove(host)));
    }
    findings
}

/// The longest command of names, in bytes.
const LONGEST: usize = 500;

const PLANTED: &str = "a privileged container that was started by version 0.2.0 or older can write there: root in it may have made this, to reach the host or another container";

/// Names that a terminal would not show, or a long list of them, go with the directory:
/// its nodes are made again.
fn remove(host: &Host) -> String {
    let plain = |name: &str| !name.is_empty() && name == text::shown(name);
    let names: Option<Vec<String>> = host
        .strange_caps
        .files
        .iter()
        .map(|(name, _)| name.to_str().filter(|name| plain(name)))
        .map(|name| Some(text::word(&format!("{CAPS_DIR}/{}", name?))))
        .collect();
    let all = names.map(|names| format!("rm -r {}", names.join(" ")));
    all.filter(|command| command.len() <= LONGEST)
        .unwrap_or_else(|| format!("rm -r {CAPS_DIR} && phoenix-nvidia prepare"))
}

/// A privileged container that has the directory mounted while it runs.
pub fn mounted(c: &Container) -> Vec<Finding> {
    let privileged = c.conf.get("unprivileged").as_deref() != Some("1");
    if !privileged || !c.inside.as_ref().is_some_and(|inside| inside.host_directory) {
        return Vec::new();
    }
    let what = format!("the privileged container has the host's own directory {CAPS_DIR} mounted");
    let finding = Finding::warning("caps", what);
    let again = passed_by_entries(&c.conf).contains(&DevicePath::Caps);
    // Without our hookscript nobody corrects the line.
    let (why, fix) = if again && !matches!(c.hook, Hookscript::Ours(_)) {
        ("a line of its conf mounts it: delete that, then restart the container", super::conf::edit(c))
    } else {
        ("it was started by version 0.2.0 or older", format!("pct reboot {}", c.ctid))
    };
    vec![finding.why(format!("{OPEN}; {why}")).fix(fix)]
}

const OPEN: &str = "root in it can make any node in the host's /dev, for others to open";

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::findings::seen::Inside;
    use crate::findings::services::Services;
    use crate::host::caps_dir::Strange;
    use std::os::unix::ffi::OsStringExt as _;

    fn fix(names: &[&[u8]]) -> (String, String) {
        let files =
            names.iter().map(|name| (std::ffi::OsString::from_vec(name.to_vec()), "a symlink".to_owned()));
        let strange_caps = Strange { open: None, files: files.collect() };
        let found = planted(&Host { strange_caps, ..Host::default() }).remove(0);
        assert_eq!(found.level, Level::Failure);
        (found.what, found.fix.unwrap())
    }

    #[test]
    fn the_command_has_no_word_of_a_container_unquoted() {
        let (what, command) = fix(&[b"x", b"a;reboot 'b'"]);
        assert_eq!(command, r"rm -r /dev/nvidia-caps/x '/dev/nvidia-caps/a;reboot '\''b'\'''");
        assert!(what.ends_with("in /dev/nvidia-caps: x (a symlink), a;reboot 'b' (a symlink)"), "{what}");
        let whole = "rm -r /dev/nvidia-caps && phoenix-nvidia prepare";
        for odd in [&b"a\nb"[..], b"\x1b[2J", b"\xff", "\u{202e}".as_bytes(), &[b'x'; 255]] {
            let (what, command) = fix(&[odd, &[b'y'; 255]]);
            assert_eq!(command, whole, "{odd:?}");
            assert!(!what.contains(['\n', '\u{1b}', '\u{202e}']), "{what:?}");
        }
        assert_eq!(planted(&Host::default()), []);
    }

    #[test]
    fn of_many_names_some_are_told() {
        let names: Vec<Vec<u8>> = (0..3000).map(|n| format!("x{n}").into_bytes()).collect();
        let (what, _) = fix(&names.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert!(what.ends_with("and 2980 more") && what.len() < 1000, "{what}");
    }

    #[test]
    fn a_directory_for_everybody_is_told() {
        let strange_caps = Strange { open: Some("has mode 0777 of 0:0".into()), files: Vec::new() };
        let found = planted(&Host { strange_caps, ..Host::default() }).remove(0);
        let fix = "chown root:root /dev/nvidia-caps && chmod 755 /dev/nvidia-caps";
        assert_eq!(found.fix.as_deref(), Some(fix));
    }

    #[test]
    fn a_privileged_container_with_the_directory_is_told_and_no_other() {
        let with = |conf: &str, host_directory| {
            let services = Services::parse("begin 1\nend 1\n").ok_or_else(String::new);
            let inside = Inside {
                differences: Ok(Vec::new()),
                host_directory,
                unseen: Vec::new(),
                installing: false,
                opened: Vec::new(),
                software: None,
                smi: None,
                engines: None,
                services,
            };
            mounted(&Container { inside: Some(inside), ..Container::plain(conf) })
        };
        let found = with("arch: amd64\n", true).remove(0);
        assert_eq!((found.level, found.fix.as_deref()), (Level::Warning, Some("pct reboot 101")));
        assert!(with("unprivileged: 1\n", true).is_empty() && with("arch: amd64\n", false).is_empty());
        let line = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0\n";
        assert_eq!(with(line, true)[0].fix.as_deref(), Some("nano /etc/pve/lxc/101.conf"));
        assert!(mounted(&Container::plain(line)).is_empty());
    }
}
