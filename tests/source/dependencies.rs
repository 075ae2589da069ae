//! Every dependency is named by what it was added for.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// The manifests, each with the directories of what its ordinary dependencies are for, and of its tests.
const PACKAGES: [(&str, &[&str], &[&str]); 6] = [
    ("Cargo.toml", &["src"], &["src", "tests", "benches"]),
    ("packaging/xtask/Cargo.toml", &["packaging/xtask/src"], &[]),
    ("tests/lab/Cargo.toml", &["tests/lab/src"], &[]),
    ("tests/gpu/Cargo.toml", &["tests/gpu/src"], &[]),
    ("tests/vm/Cargo.toml", &["tests/vm/src"], &[]),
    ("fuzz/Cargo.toml", &["fuzz/src", "fuzz/fuzz_targets"], &[]),
];

/// The names under `[SECTION]`, as the sources write them.
fn listed(manifest: &str, section: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    let entries = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once(" = "));
    // The one whose library has another name.
    entries.map(|(name, _)| if name == "md-5" { "md5".to_owned() } else { name.replace('-', "_") }).collect()
}

/// Whether a source file below a directory names the crate.
fn names(directory: &Path, krate: &str) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return names(&path, krate);
        }
        let rust = path.extension().is_some_and(|extension| extension == "rs");
        rust && word(&std::fs::read_to_string(path).unwrap(), krate)
    })
}

/// Whether a path in the code begins with it; comments do not count.
fn word(text: &str, krate: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.match_indices(krate).map(move |(at, _)| (line, at))).any(|(line, at)| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let begins =
            !line[..at].ends_with(part) && !line[..at].ends_with("::") || line[..at].ends_with("(::");
        let after = &line[at + krate.len()..];
        begins
            && (after.starts_with("::") || line.trim_start().starts_with("use ") && !after.starts_with(part))
    })
}

#[test]
fn every_dependency_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut unused = Vec::new();
    for (manifest, sources, tests) in PACKAGES {
        let text = std::fs::read_to_string(root.join(manifest)).unwrap();
        assert!(!listed(&text, "dependencies").is_empty(), "{manifest}");
        for (section, places) in [("dependencies", sources), ("dev-dependencies", tests)] {
            let used = |name: &String| places.iter().any(|place| names(&root.join(place), name));
            unused.extend(
                listed(&text, section)
                    .into_iter()
                    .filter(|name| !used(name))
                    .map(|name| format!("{manifest}: {name}")),
            );
        }
    }
    assert!(unused.is_empty(), "take them out: {unused:#?}");
}

#[test]
fn every_package_is_looked_at() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = text.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let manifest = Path::new(member).join("Cargo.toml");
        assert!(PACKAGES.iter().any(|(known, ..)| manifest.ends_with(known)), "{member}");
    }
}

#[test]
fn what_only_looks_like_a_use_is_none() {
    for text in ["use log::info;", "    log::info!(\"\")", "use log;", "let x = (::log::Level, 1);"] {
        assert!(word(text, "log"), "{text}");
    }
    for text in
        ["use crate::sys::log::X;", "// log::info", "sys::log::init()", "use catalog::X;", "let log = 1;"]
    {
        assert!(!word(text, "log"), "{text}");
    }
}
