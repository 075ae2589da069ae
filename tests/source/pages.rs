//! The pages name nothing that is not there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

const PAGES: [&str; 5] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
/// What a path in backquotes begins with.
const TOP: [&str; 6] = ["src/", "tests/", "packaging/", "hooks/", "benches/", "docs/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Of two edits that met, a page has one text and no marks.
#[test]
fn no_page_has_marks_of_a_merge() {
    for page in PAGES {
        let marks = ["<<<<<<< ", "=======", ">>>>>>> "];
        let text = read(page);
        let marked: Vec<&str> =
            text.lines().filter(|line| marks.iter().any(|mark| line.starts_with(mark))).collect();
        assert_eq!(marked, [""; 0], "{page}");
    }
}

/// What stands in backquotes outside of blocks.
fn quoted(page: &str) -> Vec<String> {
    let text: Vec<&str> = page.split("```").step_by(2).collect();
    text.join("").split('`').skip(1).step_by(2).map(|word| word.replace('\n', " ")).collect()
}

/// The path and the item behind `::`, if the words are a path of ours.
fn path_of(words: &str) -> Option<(&str, Option<&str>)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:".contains(c);
    let is_path = TOP.iter().any(|top| words.starts_with(top)) && words.chars().all(plain);
    is_path.then(|| words.split_once("::").map_or((words, None), |(path, item)| (path, Some(item))))
}

/// Whether a file defines an item of that name; of `Type::name` the last word.
fn defines(text: &str, item: &str) -> bool {
    let name = item.rsplit("::").next().unwrap();
    let kinds = ["fn", "struct", "enum", "const", "static", "type", "trait", "mod"];
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let named = |kind: &str| {
        let begin = format!("{kind} {name}");
        text.match_indices(&begin).any(|(at, _)| ends(&text[at + begin.len()..]))
    };
    // A row of the table of settings.
    kinds.into_iter().any(named) || text.contains(&format!("    {name}: "))
}

#[test]
fn each_path_in_backquotes_exists_and_each_item_behind_it() {
    let mut count = 0;
    for page in PAGES {
        for words in quoted(&read(page)) {
            let Some((path, item)) = path_of(&words) else { continue };
            count += 1;
            assert!(root().join(path).exists(), "{page}: `{words}` does not exist");
            if let Some(item) = item {
                assert!(defines(&read(path), item), "{page}: `{words}`: no such item");
            }
        }
    }
    assert!(count > 100, "{count} paths");
}

#[test]
fn each_link_leads_somewhere() {
    for page in PAGES {
        let text = read(page);
        let anchor = |line: &str| {
            let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            title.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect::<String>()
        };
        let anchors: Vec<String> = text.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            match target.strip_prefix('#') {
                Some(name) => assert!(anchors.iter().any(|a| a == name), "{page}: {target}: {anchors:?}"),
                None if target.contains("://") => {}
                None => assert!(root().join(target).exists(), "{page}: {target}"),
            }
        }
    }
}

#[test]
fn the_architecture_names_each_room() {
    let page = read("ARCHITECTURE.md");
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        let slash = if entry.file_type().unwrap().is_dir() { "/" } else { "" };
        let name = format!("`src/{}{slash}`", entry.file_name().to_string_lossy());
        // `src/settings.rs` is the top of `src/settings/`.
        let within = format!("`src/{}/`", entry.file_name().to_string_lossy().trim_end_matches(".rs"));
        assert!(page.contains(&name) || page.contains(&within), "ARCHITECTURE.md says nothing of {name}");
    }
}

/// The newest version in the changelog is that of the program and of the package.
#[test]
fn the_changelog_knows_the_version() {
    let changelog = read("CHANGELOG.md");
    let versions: Vec<&str> = changelog
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter(|title| title.starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    assert!(versions[0].starts_with(&format!("{version} - ")), "{versions:?}");
    let package = read("packaging/debian/changelog");
    assert!(package.starts_with(&format!("phoenix-nvidia ({version}")), "{package}");
}
