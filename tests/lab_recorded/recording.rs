//! Reads the recordings.

use std::path::Path;

/// One recorded command.
#[derive(Debug, Default)]
pub struct Step {
    /// The heading it stands under (`--- …`), empty before the first.
    pub section: String,
    /// The command line, or what was done in words.
    pub title: String,
    pub rc: i32,
    pub out: String,
    pub err: String,
    /// Every further line below it.
    pub rest: Vec<String>,
}

/// A recording's text.
pub fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The commands of a recording, in their order.
pub fn steps(name: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut section = String::new();
    for line in text(name).lines() {
        if let Some(title) = line.strip_prefix("--- ") {
            section = title.to_owned();
        } else if let Some(title) = line.strip_prefix("##### ") {
            steps.push(Step { section: section.clone(), title: title.to_owned(), ..Step::default() });
        } else if let Some(step) = steps.last_mut().filter(|step| step.section == section) {
            add(step, line);
        }
    }
    steps
}

fn add(step: &mut Step, line: &str) {
    if let Some(out) = line.strip_prefix("  out| ") {
        step.out += &format!("{out}\n");
    } else if let Some(err) = line.strip_prefix("  err| ") {
        step.err += &format!("{err}\n");
    } else if let Some(rc) = line.strip_prefix("rc=").and_then(|rc| rc.parse().ok()) {
        step.rc = rc;
    } else {
        step.rest.push(line.to_owned());
    }
}

/// The steps below one heading.
pub fn section(name: &str, heading: &str) -> Vec<Step> {
    let found: Vec<Step> = steps(name).into_iter().filter(|step| step.section.starts_with(heading)).collect();
    assert!(!found.is_empty(), "nothing below {heading:?} in {name}");
    found
}

/// The indented lines below a heading, up to the line that tells their size: a file as it was then.
pub fn file(name: &str, heading: &str) -> String {
    let text = text(name);
    let below = text.split("\n--- ").map(|part| part.trim_start_matches("--- "));
    let part = below.into_iter().find(|part| part.starts_with(heading));
    let lines: Vec<&str> =
        part.unwrap_or_else(|| panic!("no {heading:?} in {name}")).lines().skip(1).collect();
    let indented = lines.iter().filter_map(|line| line.strip_prefix("    "));
    let body = indented
        .take_while(|line| !line.starts_with("(bytes"))
        .filter(|line| !line.starts_with("in generated"));
    body.map(|line| format!("{line}\n")).collect()
}

/// The commands of a recording in the newer form (`$ COMMAND`, `out|`, `err|`), in their order. What stands before a
/// command and begins with `#` is its section.
pub fn calls(name: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut section = String::new();
    for line in text(name).lines() {
        if let Some(title) = line.strip_prefix("$ ") {
            steps.push(Step { section: section.clone(), title: title.to_owned(), ..Step::default() });
        } else if line.starts_with('#') {
            section = line.trim_start_matches('#').trim().to_owned();
        } else if let Some(step) = steps.last_mut() {
            match line.split_once('|') {
                Some(("out", text)) => step.out += &format!("{text}\n"),
                Some(("err", text)) => step.err += &format!("{text}\n"),
                _ => add(step, line),
            }
        }
    }
    steps
}
