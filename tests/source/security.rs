//! SECURITY.md promises nothing without a test that is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

/// The words in backquotes of the tables' last column.
fn named(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 1);
    let shown = rows.filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    shown.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn each_promise_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let names = named(&page);
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        // `file::test` of tests/ or src/ (there the file's tests may lie beside
        // it), or `fuzz/target`.
        if let Some(target) = name.strip_prefix("fuzz/") {
            assert!(root.join(format!("fuzz/fuzz_targets/{target}.rs")).exists(), "{name}");
            continue;
        }
        let (file, test) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name} names no test"));
        let places = ["tests/{}.rs", "src/{}.rs", "src/{}/tests.rs", "src/{}_tests.rs"];
        let paths = places.map(|place| place.replace("{}", file));
        let texts = paths.iter().filter_map(|path| std::fs::read_to_string(root.join(path)).ok());
        let there = texts.into_iter().any(|text| text.contains(&format!("fn {test}(")));
        assert!(there, "{name}: no such test in {paths:?}");
    }
}
