//! nvidia-smi of every branch: what it prints is understood.
#![allow(clippy::unwrap_used)] // helpers of a test may panic

use phoenix_nvidia::guest::smi;
use phoenix_nvidia::types::Version;
use std::path::{Path, PathBuf};

fn fixtures(directory: &str) -> Vec<(String, i32, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(directory);
    let read = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".txt")?.to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n')?;
        let code = first.strip_prefix("# exit ")?.trim().parse().unwrap();
        Some((name, code, rest.to_owned()))
    };
    let entries = std::fs::read_dir(directory).unwrap();
    let mut all: Vec<_> = entries.filter_map(|e| read(e.unwrap().path())).collect();
    all.sort();
    all
}

#[test]
fn every_branch_names_its_version() {
    let mut branches = Vec::new();
    for (name, code, text) in fixtures("guest/smi") {
        let (version, kind) = name.rsplit_once('.').unwrap();
        let version: Version = version.parse().unwrap();
        let seen = smi::version(&text);
        match kind {
            "version" => {
                assert_eq!(
                    (code, &seen.tool, &seen.kernel),
                    (0, &Some(version.clone()), &Some(version.clone()))
                );
                branches.push(version.branch());
            }
            "help" => {
                assert_eq!((code, &seen.tool), (0, &Some(version.clone())), "{name}");
                branches.push(version.branch());
            }
            _ => assert_eq!(seen, smi::Versions::default(), "{name}"),
        }
    }
    branches.sort_unstable();
    branches.dedup();
    assert_eq!(branches, [418, 470, 525, 535, 550, 570, 575, 580, 590, 595, 610, 615]);
}

#[test]
fn every_failure_has_a_meaning() {
    let meant = |kind: &str| match kind {
        "no-driver" => "no kernel driver",
        "no-library" => "libnvidia-ml.so.1 not found",
        "permissions" => "insufficient permissions",
        "no-devices" => "no devices",
        "denied" => "unknown error",
        _ => "",
    };
    for (name, code, text) in fixtures("guest/smi") {
        let kind = name.rsplit_once('.').unwrap().1;
        assert!(smi::meaning(code).contains(meant(kind)), "{name}: {}", smi::meaning(code));
        assert_eq!(smi::is_mismatch(&text), kind == "mismatch", "{name}");
        assert!(smi::gpus(&text).is_empty(), "{name}");
    }
}

#[test]
fn a_real_h200_is_listed() {
    let all = fixtures("hosts/h200");
    let text = |name: &str| &all.iter().find(|(n, _, _)| n == name).unwrap().2;
    let gpus = smi::gpus(text("smi-query"));
    assert_eq!((gpus.len(), gpus[0].index), (1, 0));
    assert_eq!(gpus[0].driver, smi::version(text("smi-version")).kernel);
    assert!(smi::gpus(text("smi")).is_empty(), "the table is not the list");
    assert_eq!(smi::version(text("smi-stub-library")), smi::Versions::default());
}
