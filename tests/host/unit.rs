//! The systemd units that prepare the nodes, at boot and when the driver is loaded, and the rule and the hook that call.

use phoenix_nvidia::cli::Cli;

fn unit() -> String {
    packaged("phoenix-nvidia-nodes.service")
}

fn packaged(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/").to_owned() + name;
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
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
fn each_has_a_deadline_and_calls_what_exists() {
    for unit in [unit(), packaged("phoenix-nvidia-prepare.service")] {
        has_a_deadline(&unit);
    }
}

/// It stays active after the boot; what is started once more must not, nor be held by an [Install] section.
#[test]
fn the_unit_for_reloads_can_be_started_again_and_has_no_mounts_of_its_own() {
    let unit = packaged("phoenix-nvidia-prepare.service");
    assert!(!unit.contains("RemainAfterExit") && !unit.contains("[Install]"));
    assert_eq!(words(&unit, "After"), ["phoenix-nvidia-nodes.service"]);
    for unit in [&unit, &packaged("phoenix-nvidia-nodes.service")] {
        for own in
            ["Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "TemporaryFile", "Root"]
        {
            assert!(!unit.lines().any(|line| line.starts_with(own)), "{own}");
        }
    }
    assert!(packaged("phoenix-nvidia.udev").contains("=\"phoenix-nvidia-prepare.service\""));
}

#[test]
fn apts_hook_calls_what_exists_and_waits_longer_than_that_takes() {
    let hook = packaged("phoenix-nvidia.apt");
    let line = hook.lines().find(|line| !line.starts_with("//")).expect("a line");
    assert!(line.ends_with(" || true\"; };"), "{line}");
    let (before, command) = line.split_once(" /usr/sbin/phoenix-nvidia keep ").expect("the command");
    assert!(command.starts_with("</dev/null"));
    let limit: u64 = before.rsplit(' ').next().expect("a limit").parse().expect("seconds");
    assert!(limit > phoenix_nvidia::commands::keep::LIMIT && limit < 120);
    assert!(<Cli as clap::Parser>::try_parse_from(["/usr/sbin/phoenix-nvidia", "keep"]).is_ok());
}

#[allow(clippy::expect_used)] // a failing helper fails its test
fn has_a_deadline(unit: &str) {
    assert_eq!(words(unit, "Type"), ["oneshot"]);
    let limit: u64 = words(unit, "TimeoutStartSec")[0].parse().expect("seconds");
    // The program ends by itself before it would be killed.
    assert!(limit > phoenix_nvidia::commands::prepare::LIMIT && limit <= 180);
    let command = words(unit, "ExecStart");
    assert_eq!(command[0], "/usr/sbin/phoenix-nvidia");
    assert!(<Cli as clap::Parser>::try_parse_from(command).is_ok());
}
