//! Settings files, and the values in them that have a syntax of their own.

use phoenix_nvidia::device::assignment::{Assignment, GpuName};
use phoenix_nvidia::device::pci::PciAddress;
use phoenix_nvidia::driver::desired::Sha256;
use phoenix_nvidia::settings::envfile::{EnvLine, parse};
use phoenix_nvidia::settings::{Call, Given, Origin, Places, Settings, keys};
use phoenix_nvidia::sys::text;
use phoenix_nvidia::types::{Line, Version, seconds};

/// A file says of each line at most one thing; what it says comes back from a
/// file that is written of it; a value that is taken is shown in one way.
pub fn holds(data: &[u8]) {
    let entries = parse(data);
    let count = data.iter().filter(|b| **b == b'\n').count() + 1;
    let mut last = 0;
    let mut written = String::new();
    let mut expected = Vec::new();
    for entry in &entries {
        let line = match entry {
            EnvLine::Bad { line } | EnvLine::Set { line, .. } => *line,
        };
        assert!(line > last && line <= count, "{entry:?}");
        last = line;
        if let EnvLine::Set { key, value, .. } = entry {
            assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !key.is_empty());
            assert!(keys::by_name(key).is_none_or(|k| keys::nearest(key).map(|n| n.name) == Some(k.name)));
            values(value);
            // A line ends before a carriage return too.
            if !value.contains('\r') {
                written.push_str(&format!("{key}=\"{}\"\n", quoted(value)));
                expected.push((key, value));
            }
        }
    }
    let again = parse(written.as_bytes());
    let again = again.iter().map(|e| match e {
        EnvLine::Set { key, value, .. } => (key, value),
        EnvLine::Bad { line } => panic!("line {line} of {written:?}"),
    });
    assert_eq!(again.collect::<Vec<_>>(), expected);
    table(&entries);
    let text = String::from_utf8_lossy(data);
    values(&text);
    text.split(',').for_each(values);
}

/// What a conf, a file or the environment gives is a value of its setting, or a
/// problem of one line that names its place.
fn table(entries: &[EnvLine]) {
    let given = entries.iter().filter_map(|entry| match entry {
        EnvLine::Set { key, value, line } => Some(Given {
            key: key.clone(),
            value: value.clone(),
            origin: Origin::File("/etc/pve/lxc/101.conf".into(), *line),
        }),
        EnvLine::Bad { .. } => None,
    });
    let given: Vec<Given> = given.collect();
    let places = Places {
        conf: given.clone(),
        cluster: Ok(Vec::new()),
        node: Ok(Vec::new()),
        environment: Vec::new(),
    };
    let settings = Settings::of(Call::ByHand, places, None);
    let problems = settings.all_problems();
    assert!(problems.len() <= keys::ALL.len() + 100, "{} problems", problems.len());
    for problem in problems {
        let shown = problem.to_string();
        assert!(!shown.chars().any(char::is_control) && shown.len() < 8192, "{shown:?}");
    }
    for Given { key, value, .. } in given.iter().take(20) {
        if let Some(Err(why)) = keys::by_name(key).map(|spec| (spec.check)(value)) {
            assert!(!why.chars().any(char::is_control) && why.len() < 4096, "{key}: {why:?}");
        }
    }
}

/// As systemd reads it back.
fn quoted(value: &str) -> String {
    value
        .chars()
        .flat_map(|c| matches!(c, '"' | '\\' | '`' | '$').then_some('\\').into_iter().chain([c]))
        .collect()
}

fn values(text: &str) {
    match text.parse::<Assignment>() {
        Ok(assignment) => {
            let shown = assignment.to_string();
            assert!(
                shown.len() <= text.len() + text.matches([',', '.']).count() * 5 + 5,
                "{text:?}: {shown}"
            );
            assert_eq!(shown.parse::<Assignment>().ok(), Some(assignment));
        }
        Err(why) => one_line(&why),
    }
    match text.parse::<GpuName>() {
        Ok(name) => assert_eq!(name.to_string().parse::<GpuName>().ok(), Some(name)),
        Err(why) => one_line(&why),
    }
    match text.parse::<PciAddress>() {
        Ok(pci) => assert_eq!(pci.to_string().parse::<PciAddress>().ok(), Some(pci)),
        Err(why) => one_line(&why),
    }
    match text.parse::<Version>() {
        Ok(version) => assert_eq!(version.as_str(), text),
        Err(why) => one_line(&why),
    }
    if let Ok(line) = text.parse::<Line>() {
        assert_eq!(text::line(line.as_str().as_bytes()).is_empty(), text.is_empty());
    }
    if let Ok(span) = seconds(text) {
        assert!(span.as_secs() <= 7 * 86_400);
    }
    sum(text);
}

/// A file of `sha256sum`: its first word is the sum, or it holds none.
fn sum(text: &str) {
    if let Some(sum) = Sha256::published(text.as_bytes()) {
        let first = text.split_whitespace().next().unwrap_or_default();
        assert_eq!(sum.to_string(), first.to_ascii_lowercase());
        assert_eq!(Sha256::published(format!("{sum}  NVIDIA.run\n").as_bytes()), Some(sum));
    }
}

fn one_line(why: &anyhow::Error) {
    let shown = format!("{why:#}");
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
}
