//! Conf files as they are out there, each with what is wanted and what must
//! come out. `UPDATE_EXPECT=1` writes the expected files anew.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::conf_support;

use conf_support::{lines, ours_and_theirs, rewritten_by_proxmox, wanted};
use phoenix_nvidia::device::Device;
use phoenix_nvidia::host::masks;
use phoenix_nvidia::pve::conf::document::{Document, Form};
use phoenix_nvidia::pve::conf::mounts::Mount;
use phoenix_nvidia::pve::conf::reconcile::{Edit, reconcile};
use std::path::{Path, PathBuf};

struct Case {
    name: String,
    directory: PathBuf,
    conf: Document,
    wanted: Vec<Device>,
    mounts: Vec<Mount>,
    form: Form,
}

impl Case {
    fn read(directory: PathBuf) -> Case {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let conf = Document::parse(&std::fs::read(directory.join("conf")).unwrap());
        let mut form = Form::Pve;
        let (mut list, mut mounts) = (Vec::new(), Vec::new());
        for line in std::fs::read_to_string(directory.join("wanted")).unwrap().lines() {
            if let Some(ctid) = line.strip_prefix("masks ") {
                mounts = masks::mounts(ctid.parse().unwrap());
                continue;
            }
            let (source, number) = line.split_once(' ').unwrap();
            match number.split_once(':') {
                Some((major, minor)) => {
                    list.push(wanted(source, major.parse().unwrap(), minor.parse().unwrap()));
                }
                None => form = Form::Lxc,
            }
        }
        Case { name, directory, conf, wanted: list, mounts, form }
    }

    fn edit(&self, conf: &Document) -> Option<Edit> {
        reconcile(conf, &self.wanted, &self.mounts, self.form)
    }

    /// What comes out, and what was said about it.
    fn result(&self) -> (Document, String) {
        match self.edit(&self.conf) {
            None => (self.conf.clone(), "nothing to change\n".to_owned()),
            Some(edit) => {
                let said = edit.changes.iter().map(|change| format!("{change}\n")).collect();
                (edit.document, said)
            }
        }
    }

    fn expect(&self, file: &str, bytes: &[u8]) {
        let path = self.directory.join(file);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            #[allow(clippy::disallowed_methods)] // the test's own file
            std::fs::write(&path, bytes).unwrap();
        }
        let expected = std::fs::read(&path).unwrap_or_default();
        if expected != bytes {
            let (name, path) = (&self.name, path.display());
            let (old, new) = (String::from_utf8_lossy(&expected), String::from_utf8_lossy(bytes));
            panic!("{name}: not as {path}\n--- expected\n{old}\n--- came out\n{new}");
        }
    }
}

fn corpus() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut directories: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    directories.into_iter().map(Case::read).collect()
}

#[test]
fn each_file_becomes_what_is_expected() {
    let cases = corpus();
    assert!(cases.len() >= 40, "only {} files in the corpus", cases.len());
    for case in cases {
        let (document, said) = case.result();
        case.expect("changes", said.as_bytes());
        if document != case.conf {
            case.expect("expected", document.as_bytes());
        } else {
            assert!(!case.directory.join("expected").exists(), "{}: nothing changed", case.name);
        }
    }
}

#[test]
fn a_second_run_has_nothing_to_do() {
    for case in corpus() {
        let (document, _) = case.result();
        let again = case.edit(&document);
        assert!(again.is_none(), "{}: {:?}", case.name, again.unwrap().changes);
    }
}

#[test]
fn lines_that_are_not_ours_stay_byte_for_byte_and_in_order() {
    for case in corpus() {
        let (before, after) = (&case.conf, case.result().0);
        assert_eq!(
            ours_and_theirs(before).1,
            ours_and_theirs(&after).1,
            "{}\n{}",
            case.name,
            String::from_utf8_lossy(after.as_bytes())
        );
        // From the first header on, every byte, line endings included.
        assert_eq!(from_first_header(before.as_bytes()), from_first_header(after.as_bytes()));
    }
}

#[test]
fn what_proxmox_rewrites_is_recognised_as_complete() {
    for case in corpus().iter().filter(|case| case.form == Form::Pve) {
        // Proxmox has no such section yet and would join it to the main one.
        if case.name == "section-of-a-newer-proxmox" {
            continue;
        }
        let rewritten = rewritten_by_proxmox(case.result().0.as_bytes());
        let again = case.edit(&Document::parse(&rewritten));
        let shown = String::from_utf8_lossy(&rewritten);
        assert!(again.is_none(), "{}: {:?}\n{shown}", case.name, again.unwrap().changes);
    }
}

#[test]
fn the_rewriting_of_these_tests_is_the_recorded_one() {
    let of = |name: &str| corpus().into_iter().find(|case| case.name == name).unwrap().conf;
    let input = of("before-that-rewriting");
    // `pct set --memory 257` sets one value and applies what is pending.
    let set = String::from_utf8_lossy(input.as_bytes()).replace("memory: 256", "memory: 257");
    let set = set.replace("[pve:pending]\nmemory: 300\n\n", "");
    let recorded = of("rewritten-by-pct-set");
    let ours = rewritten_by_proxmox(set.as_bytes());
    assert_eq!(lines(&ours), lines(recorded.as_bytes()), "{}", String::from_utf8_lossy(&ours));
}

fn from_first_header(bytes: &[u8]) -> &[u8] {
    let is_header = |at: usize| bytes[at] == b'[' && (at == 0 || bytes[at - 1] == b'\n');
    (0..bytes.len()).find(|at| is_header(*at)).map_or(&[], |at| &bytes[at..])
}
