use super::client::Answers;
use super::protocol::Answer;
use super::reader::Source;
use super::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// A directory, a file in it, what the file says, and then some.
#[derive(Serialize, Deserialize)]
struct Tree;

impl Walk for Tree {
    const NAME: &'static str = "tree";

    fn walk(&self, look: &mut Look<'_>) {
        for name in look.names("/cards").unwrap_or_default() {
            look.text(&format!("/cards/{name}/information"));
        }
        look.exists("/last");
    }
}

fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for card in ["a", "b"] {
        let card = dir.path().join("cards").join(card);
        std::fs::create_dir_all(&card).unwrap();
        std::os::unix::fs::symlink("/proc/version", card.join("information")).unwrap();
    }
    dir
}

fn answers(dir: &Path, timeout: Duration) -> Answers {
    client::Answers::of_test(server::answers_of(dir, Tree, timeout))
}

#[test]
fn a_walk_over_the_answers_finds_what_the_walk_itself_finds() {
    let dir = host();
    let answers = answers(dir.path(), Duration::from_secs(10));
    let mut here = Look::new(dir.path());
    let mut there = Look::with(Path::new("/nowhere"), Source::Answers(Box::new(answers)));
    for look in [&mut here, &mut there] {
        assert_eq!(look.names("/cards").unwrap(), ["a", "b"]);
        assert!(look.text("/cards/b/information").unwrap().contains("Linux"));
        assert!(!look.exists("/last"));
        assert_eq!(look.problems, [""; 0]);
    }
    assert_eq!(there.text("/else"), None);
    assert_eq!(there.stat("/more"), Seen::Unseen("not read".to_owned()));
    assert_eq!(there.problems, ["cannot read /else and later files: not read"]);
}

#[test]
fn a_fifo_is_not_waited_for() {
    let dir = host();
    std::fs::remove_file(dir.path().join("cards/a/information")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("cards/a/information"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let begun = Instant::now();
    let mut look = Look::new(dir.path());
    assert_eq!(look.text("/cards/a/information"), None);
    assert!(look.problems[0].contains("not a regular file"), "{:?}", look.problems);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn answers_that_are_cut_off_count_up_to_there() {
    let mut bytes = Vec::new();
    let question = |path: &str| Question::new(Op::Read, path);
    protocol::write(&mut bytes, &question("/a"), &Answer::Bytes(b"one\nend\n".to_vec()));
    protocol::write(&mut bytes, &question("/b"), &Answer::Failed(13));
    protocol::write(&mut bytes, &question("/c"), &Answer::Bytes(vec![0; 100]));
    let (all, whole) = protocol::read(&[&bytes[..], protocol::END].concat());
    assert!(whole && all.len() == 3);
    assert_eq!(all[0], (question("/a"), Answer::Bytes(b"one\nend\n".to_vec())));
    for cut in 0..bytes.len() {
        let (some, whole) = protocol::read(&bytes[..cut]);
        assert!(!whole && some == all[..some.len()], "{cut}");
    }
    assert_eq!(
        protocol::read(b"{\"op\":\"read\",\"path\":\"/\",\"answer\":{\"bytes\":99999999999}}\n").0.len(),
        0
    );
}

#[test]
fn what_is_there_is_told_by_its_kind() {
    let dir = host();
    std::os::unix::fs::symlink("/dev/null", dir.path().join("null")).unwrap();
    let look = Look::new(dir.path());
    let null = look.stat("/null").value().unwrap();
    assert!(null.is_char_device() && null.rdev == (1, 3));
    assert!(look.stat_link("/null").value().unwrap().is_link());
    assert!(look.stat("/cards").value().unwrap().is_dir());
    assert_eq!(look.stat("/cards/x"), Seen::Absent);
    assert_eq!(look.real("/null"), Seen::Is("/dev/null".to_owned()));
    assert_eq!(look.head("/cards"), Seen::Unseen("it is a directory, not a regular file".to_owned()));
}
