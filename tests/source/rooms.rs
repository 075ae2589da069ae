//! The rooms of `src/` depend on one another in one direction, no file needs
//! itself through others, and every file can be read in one go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the bottom to the top: a file may use its own room and those above it
/// in this list. What stands on no line is a new room, and needs a reason.
const ROOMS: &[&str] = &[
    "sys", "types", "exit", "device", "pve", "host", "driver", "guest", "settings", "state", "plan", "job",
    "findings", "cli", "commands", "lib", "main",
];

/// So many lines has a file at most.
const LINES: usize = 400;

/// What a file names, outside its tests: modules of the crate, by their paths.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// A file's text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of a `use` tree, each with the name that it gets here.
fn leaves(tree: &str) -> Vec<(String, String)> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let path = path.trim_end_matches("::self");
        let alias = if alias.is_empty() { path.rsplit("::").next().unwrap() } else { alias };
        return vec![(path.to_owned(), alias.to_owned())];
    };
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in rest[..rest.rfind('}').unwrap()].chars() {
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                parts.last_mut().unwrap().push(c);
            }
        }
    }
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(|part| leaves(&format!("{head}{part}"))).collect()
}

/// The module of the crate that a path of `module` leads to or into.
fn resolve(
    path: &str,
    module: &str,
    names: &BTreeMap<String, String>,
    all: &BTreeSet<String>,
) -> Option<String> {
    let mut base: Vec<&str> = if module == "lib" { vec![] } else { module.split("::").collect() };
    let mut rest: Vec<&str> = path.split("::").collect();
    match rest[0] {
        "crate" => base.clear(),
        "super" | "self" => {}
        first if all.contains(&[module, first].join("::")) => rest.insert(0, "self"),
        first => match names.get(first).filter(|_| rest.len() > 1) {
            Some(known) => {
                base = known.split("::").collect();
                rest[0] = "self";
            }
            None => return None,
        },
    }
    while let Some(&word) = rest.first().filter(|word| ["crate", "super", "self"].contains(*word)) {
        if word == "super" {
            base.pop();
        }
        rest.remove(0);
    }
    base.extend(rest);
    let found = (1..=base.len()).rev().map(|n| base[..n].join("::")).find(|module| all.contains(module));
    Some(found.unwrap_or_else(|| "lib".to_owned()))
}

/// What comes before a `use` that ends a statement, and its tree.
fn import(statement: &str) -> Option<(&str, &str)> {
    let starts = statement.match_indices("use ").map(|(at, _)| at);
    let at = starts.filter(|at| {
        let line = statement[..*at].rsplit('\n').next().unwrap().trim();
        line.is_empty() || line.starts_with("pub") && !line.contains(['=', '"'])
    });
    let at = at.last()?;
    let tree = &statement[at + 4..];
    (tree.matches('{').count() == tree.matches('}').count()).then_some((&statement[..at], tree))
}

/// The modules that a file's code names.
fn used(module: &str, code: &str, all: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut names = BTreeMap::new();
    let mut body = String::new();
    for statement in code.split(';') {
        let Some((before, tree)) = import(statement) else {
            body.extend([statement, ";"]);
            continue;
        };
        body.push_str(before);
        for (path, alias) in leaves(tree) {
            if let Some(target) = resolve(&path, module, &names, all) {
                names.insert(alias, target.clone());
                found.insert(target);
            }
        }
    }
    let words = body.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let paths = words.map(|word| word.trim_matches(':')).filter(|word| word.contains("::"));
    found.extend(paths.filter_map(|path| resolve(path, module, &names, all)));
    found.remove(module);
    found
}

/// Every module with those that it names, and the files that are too long.
fn read(root: &Path, at: &Path, texts: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, texts);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name =
                path.strip_prefix(root).unwrap().with_extension("").to_string_lossy().replace('/', "::");
            let name = name.strip_suffix("::mod").unwrap_or(&name).to_owned();
            texts.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Who names whom; files that are tests name what they like.
fn uses(texts: &BTreeMap<String, String>) -> Uses {
    let production = texts.iter().filter(|(name, _)| !name.ends_with("tests"));
    let production: BTreeMap<_, _> = production.collect();
    let all: BTreeSet<String> = production.keys().map(|name| (*name).clone()).collect();
    production.into_iter().map(|(name, text)| (name.clone(), used(name, &code(text), &all))).collect()
}

fn room(module: &str) -> Option<usize> {
    let room = module.split("::").next().unwrap();
    ROOMS.iter().position(|known| *known == room)
}

/// What a module leads to.
fn reach<'a>(module: &'a str, uses: &'a Uses) -> BTreeSet<&'a str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![module]);
    while let Some(at) = next.pop() {
        next.extend(uses[at].iter().map(String::as_str).filter(|target| seen.insert(*target)));
    }
    seen
}

/// The violations, a line each.
fn violations(texts: &BTreeMap<String, String>) -> BTreeSet<String> {
    let uses = uses(texts);
    let mut found = BTreeSet::new();
    for (from, targets) in &uses {
        if room(from).is_none() {
            found.insert(format!("room: {from} is in none that is known"));
        }
        for to in targets.iter().filter(|to| room(to) > room(from)) {
            found.insert(format!("up: {from} -> {to}"));
        }
        let back = targets.iter().filter(|to| reach(to, &uses).contains(from.as_str()));
        found.extend(back.map(|to| format!("circle: {from} -> {to}")));
    }
    let long = texts.iter().filter(|(_, text)| text.lines().count() > LINES);
    found.extend(long.map(|(name, _)| format!("long: {name}")));
    found
}

#[test]
fn no_file_names_a_room_above_its_own_or_itself_through_others_or_is_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut texts = BTreeMap::new();
    read(&root, &root, &mut texts);
    let found = violations(&texts);
    assert!(found.is_empty(), "{found:#?}");
}

/// A crate of these files.
fn of(files: &[(&str, &str)]) -> BTreeSet<String> {
    violations(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
}

#[test]
fn the_ways_to_name_a_module_are_seen() {
    for text in [
        "use crate::job::worker::Run;",
        "use crate::{exit, job::{self as work, locks}};",
        "pub use crate::job;",
        "fn a() { crate::job::worker::run(); }",
        "use super::job;",
        "use crate::guest;\nuse super::super::host::job::worker;\nfn a() { super::job::worker::run() }",
    ] {
        let found = of(&[("host", text), ("job", ""), ("job::worker", ""), ("exit", ""), ("guest", "")]);
        assert!(found.iter().any(|line| line.starts_with("up: host -> job")), "{text}: {found:?}");
    }
    for text in [
        "// crate::job::worker\n/// [`crate::job`]",
        "#[cfg(test)]\nmod tests {\n    use crate::job;\n}",
        "use crate::exit;\nfn a() { exit::job() }",
        "use std::job;",
    ] {
        assert_eq!(of(&[("host", text), ("job", ""), ("exit", "")]), BTreeSet::new(), "{text}");
    }
}

#[test]
fn circles_are_seen_through_parents_children_and_others() {
    let circle = |files: &[(&str, &str)]| of(files).into_iter().collect::<Vec<_>>();
    let found = circle(&[("pve", "mod a;\nuse a::X;"), ("pve::a", "use super::Y;")]);
    assert_eq!(found, ["circle: pve -> pve::a", "circle: pve::a -> pve"]);
    let found = circle(&[("pve", "mod a;\nfn f() { a::x() }"), ("pve::a", "use crate::exit;"), ("exit", "")]);
    assert_eq!(found, Vec::<String>::new());
    let found = circle(&[
        ("pve::a", "use crate::pve::b;\nfn f() { b::x() }"),
        ("pve::b", "use super::c::Z;"),
        ("pve::c", "use crate::pve::a;"),
        ("pve::d", "use crate::pve::a;"),
    ]);
    assert_eq!(found, ["circle: pve::a -> pve::b", "circle: pve::b -> pve::c", "circle: pve::c -> pve::a"]);
}

#[test]
fn a_long_file_and_a_new_room_are_seen() {
    let found = of(&[("pve", &"\n".repeat(LINES)), ("host", &"\n".repeat(LINES + 1)), ("attic", "")]);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["long: host", "room: attic is in none that is known"]);
}
