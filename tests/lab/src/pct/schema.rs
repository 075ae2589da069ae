//! Which keys a conf may have, and what their values may be.

const BOOLEANS: &[&str] = &["console", "debug", "onboot", "protection", "template", "unprivileged"];
const INTEGERS: &[&str] = &["cores", "cpuunits", "memory", "snaptime", "swap", "tty"];
const STRINGS: &[&str] = &[
    "arch",
    "cmode",
    "cpulimit",
    "description",
    "entrypoint",
    "env",
    "features",
    "hookscript",
    "hostname",
    "lock",
    "nameserver",
    "ostype",
    "parent",
    "rootfs",
    "searchdomain",
    "snapstate",
    "startup",
    "tags",
    "timezone",
];
const NUMBERED: &[&str] = &["dev", "mp", "net", "unused"];

/// First parts of `lxc.*` keys that LXC knows.
const LXC: &[&str] = &[
    "apparmor",
    "arch",
    "autodev",
    "cap",
    "cgroup",
    "cgroup2",
    "console",
    "environment",
    "ephemeral",
    "execute",
    "group",
    "hook",
    "idmap",
    "include",
    "init",
    "keyring",
    "log",
    "monitor",
    "mount",
    "namespace",
    "net",
    "no_new_privs",
    "prlimit",
    "proc",
    "pty",
    "rootfs",
    "seccomp",
    "selinux",
    "signal",
    "start",
    "sysctl",
    "time",
    "tty",
    "uts",
];

/// What is wrong with a value, if anything; the text after `unable to parse value of 'KEY' - `.
pub(super) fn fault(key: &str, value: &str) -> Option<String> {
    let type_fault = |name: &str| Some(format!("type check ('{name}') failed - got '{value}'"));
    if BOOLEANS.contains(&key) {
        return if matches!(value, "0" | "1") { None } else { type_fault("boolean") };
    }
    if INTEGERS.contains(&key) {
        return if value.parse::<i64>().is_ok() { None } else { type_fault("integer") };
    }
    if STRINGS.contains(&key) || numbered(key) {
        return None;
    }
    Some(format!("unknown setting '{key}'"))
}

fn numbered(key: &str) -> bool {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    name != key && NUMBERED.contains(&name)
}

/// Is this an `lxc.*` key that Proxmox lets through?
pub(super) fn lxc_key(key: &str) -> bool {
    key.strip_prefix("lxc.").and_then(|rest| rest.split('.').next()).is_some_and(|part| LXC.contains(&part))
}

/// Does a change of this key reach a running container at once? Otherwise it waits in `[pve:pending]`.
pub(super) fn hotplug(key: &str) -> bool {
    const AT_ONCE: &[&str] = &[
        "cores",
        "cpulimit",
        "cpuunits",
        "description",
        "hookscript",
        "lock",
        "memory",
        "onboot",
        "protection",
        "startup",
        "swap",
        "tags",
    ];
    AT_ONCE.contains(&key)
}
