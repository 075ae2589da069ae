//! The systemd unit that prepares the nodes at boot.

use phoenix_nvidia::cli::Cli;

fn unit() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/phoenix-nvidia-nodes.service");
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All words of all lines `KEY=…`.
fn words<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.flat_map(str::split_ascii_whitespace).collect()
}

#[test]
fn the_nodes_are_made_before_the_first_guest() {
    let unit = unit();
    // onboot guests come from the one, HA's from the other, earlier.
    assert_eq!(words(&unit, "Before"), ["pve-guests.service", "pve-ha-lrm.service"]);
    let after = words(&unit, "After");
    assert!(
        after.contains(&"nvidia-persistenced.service") && after.contains(&"nvidia-fabricmanager.service")
    );
    // Present or not: neither is pulled in, and a failure here holds nobody.
    for key in ["Requires", "Wants", "BindsTo", "RequiredBy"] {
        assert!(words(&unit, key).is_empty(), "{key}");
    }
    assert_eq!(words(&unit, "WantedBy"), ["multi-user.target"]);
}

#[test]
fn it_has_a_deadline_and_calls_what_exists() {
    let unit = unit();
    assert_eq!(words(&unit, "Type"), ["oneshot"]);
    let limit: u64 = words(&unit, "TimeoutStartSec")[0].parse().expect("seconds");
    // The program ends by itself before it would be killed.
    assert!(limit > phoenix_nvidia::commands::prepare::LIMIT && limit <= 180);
    let command = words(&unit, "ExecStart");
    assert_eq!(command[0], "/usr/sbin/phoenix-nvidia");
    assert!(<Cli as clap::Parser>::try_parse_from(command).is_ok());
}
