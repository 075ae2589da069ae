//! The container's conf, and the edit of it. The first two bytes choose the
//! wanted devices, the third the form; the rest is the conf.

// The tests of the conf know already which lines are ours.
#[path = "../../tests/conf/support/mod.rs"]
mod support;

use phoenix_nvidia::device::Device;
use phoenix_nvidia::host::masks;
use phoenix_nvidia::pve::conf::devices::present;
use phoenix_nvidia::pve::conf::document::{ConfValue, Document, EnvKey, Form};
use phoenix_nvidia::pve::conf::mounts::mounts;
use phoenix_nvidia::pve::conf::reconcile::{reconcile, without_passed};
use phoenix_nvidia::pve::passthrough;
use support::{lines, ours_and_theirs, wanted};

/// What a container may be given here, a bit for each.
const DEVICES: [(&str, u32, u32); 14] = [
    ("/dev/nvidia0", 195, 0),
    ("/dev/nvidia1", 195, 1),
    ("/dev/nvidia12", 195, 12),
    ("/dev/nvidiactl", 195, 255),
    ("/dev/nvidia-modeset", 195, 254),
    ("/dev/nvidia-uvm", 511, 0),
    ("/dev/nvidia-uvm-tools", 511, 1),
    ("/dev/nvidia-caps", 235, 1),
    ("/dev/nvidia-caps/nvidia-cap3", 235, 3),
    ("/dev/nvidia-caps/nvidia-cap66", 235, 66),
    ("/dev/dri/card1", 226, 1),
    ("/dev/dri/renderD129", 226, 129),
    ("/dev/nvidia-uvm", 510, 0),
    ("/dev/nvidia-caps", 241, 1),
];

/// Longer than an entry with its rule, in bytes.
const PAIR: usize = 200;

/// Nothing is lost, other people's lines and all below the main section stay,
/// what is wanted is there, and there is nothing to do a second time.
pub fn holds(data: &[u8]) {
    let Some((head, text)) = data.split_at_checked(3) else { return };
    let document = Document::parse(text);
    assert_eq!(document.as_bytes(), text);
    reads(&document);
    let bits = u16::from_le_bytes([head[0], head[1]]);
    let chosen = |n: &usize| bits & (1 << n) != 0;
    let list: Vec<Device> =
        (0..DEVICES.len()).filter(chosen).map(|n| wanted(DEVICES[n].0, DEVICES[n].1, DEVICES[n].2)).collect();
    let form = if head[2] & 1 == 0 { Form::Pve } else { Form::Lxc };
    edits(&document, &list, form);
    // What was wanted before leaves no trace.
    let then = edits(&edits(&document, &list, form), &[], form);
    assert!(present(&then).is_empty());
    assert_eq!(ours_and_theirs(&then).1, ours_and_theirs(&document).1);
    settings(&document, head[2]);
}

/// What only looks says nothing that is not there.
fn reads(document: &Document) {
    let count = lines(document.as_bytes()).len();
    for entry in document.entries() {
        assert!((1..=count).contains(&entry.line) && !entry.key.is_empty());
        assert!(!entry.value.contains('\n') && entry.value.trim_ascii() == entry.value);
    }
    for line in document.environment() {
        assert!((1..=count).contains(&line.line) && !line.key.contains('='));
    }
    for line in passthrough::now(document).iter().chain(&passthrough::next(document)) {
        assert!((1..=count).contains(&line.line) && line.key.starts_with("dev"));
        let Some(path) = line.path() else { continue };
        assert!(path.starts_with("/dev") && !path.contains("//") && !path.ends_with('/'), "{path:?}");
        assert!(!path.split('/').any(|part| part == ".."), "{path:?}");
    }
    assert!(passthrough::going(document).len() <= passthrough::now(document).len());
}

fn edits(document: &Document, list: &[Device], form: Form) -> Document {
    // What an empty list asks for is nothing at all.
    let masks = masks::mounts("101".parse().expect("a container"));
    let wanted_mounts = if list.is_empty() { Vec::new() } else { masks };
    let edit = reconcile(document, list, &wanted_mounts, form);
    let after = match &edit {
        Some(edit) => {
            assert!(!edit.changes.is_empty() && edit.document != *document, "{:?}", edit.changes);
            edit.changes.iter().for_each(|change| assert!(!change.to_string().contains('\n')));
            edit.document.clone()
        }
        None => document.clone(),
    };
    assert!(reconcile(&after, list, &wanted_mounts, form).is_none(), "a second edit of {after:?}");
    assert_eq!(ours_and_theirs(document).1, ours_and_theirs(&after).1, "{after:?}");
    assert_eq!(below(document.as_bytes()), below(after.as_bytes()), "{after:?}");
    assert!(after.as_bytes().len() <= document.as_bytes().len() + (list.len() + 3) * PAIR);
    assert_eq!(mounts(&after), wanted_mounts, "{after:?}");
    let expected = without_passed(document, list);
    let there = present(&after);
    assert!(there.iter().all(|p| p.flaw.is_none() || form == Form::Lxc), "{there:?}");
    for wish in &expected {
        assert_eq!(there.iter().filter(|p| p.path == wish.path).count(), 1, "{} in {after:?}", wish.path);
    }
    assert!(there.iter().all(|p| p.rule.is_some() && expected.iter().any(|w| w.path == p.path)));
    after
}

/// From the first header on, every byte.
fn below(bytes: &[u8]) -> &[u8] {
    let mut start = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b"[") && line.trim_ascii_end().ends_with(b"]") {
            return &bytes[start..];
        }
        start += line.len();
    }
    &[]
}

/// A setting comes back as it was written, and goes without a trace.
fn settings(document: &Document, choice: u8) {
    let key: EnvKey = "GPU_ASSIGNMENT".parse().expect("a name");
    let value: ConfValue = ["0", "0,1 # x", "all"][choice as usize % 3].parse().expect("a value");
    let mine = |d: &Document| -> Vec<String> {
        d.environment().into_iter().filter(|e| e.key == "GPU_ASSIGNMENT").map(|e| e.value).collect()
    };
    let set = document.set_environment(&key, Some(&value)).unwrap_or_else(|| document.clone());
    assert_eq!(mine(&set), [value.to_string()]);
    assert!(set.set_environment(&key, Some(&value)).is_none());
    assert_eq!(below(document.as_bytes()), below(set.as_bytes()));
    let Some(gone) = set.set_environment(&key, None) else { panic!("{set:?}") };
    assert!(mine(&gone).is_empty() && gone.set_environment(&key, None).is_none());
    assert_eq!(below(document.as_bytes()), below(gone.as_bytes()));
    if mine(document).is_empty() {
        assert_eq!(lines(gone.as_bytes()), lines(document.as_bytes()), "{gone:?}");
    }
}
