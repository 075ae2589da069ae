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

/// The errors of a file are the same in either process.
#[test]
fn what_is_there_instead_of_a_file_and_that_it_does_not_answer_come_through() {
    use crate::sys::file::{NotRegular, in_its_place};
    let dir = host();
    let question = |path: &str| Question::new(Op::Read, path);
    let walk = Questions(vec![question("/cards"), question("/none")]);
    let mut answers = server::answers_of(dir.path(), walk, Duration::from_secs(10));
    answers.push((question("/silent"), Answer::Silent(2000)));
    let there = Source::Answers(Box::new(client::Answers::of_test(answers)));
    let mut there = Look::with(Path::new("/nowhere"), there);
    for look in [&mut Look::new(dir.path()), &mut there] {
        let error = look.content("/cards").unwrap_err();
        assert_eq!(in_its_place(&error), Some(NotRegular("a directory")));
        assert!(look.content("/none").unwrap().is_none());
        assert_eq!(look.problems, ["cannot read /cards: it is a directory, not a regular file"]);
    }
    let error = there.content("/silent").unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (std::io::ErrorKind::TimedOut, "no answer within 2 s".into())
    );
    assert_eq!(there.problems.len(), 2);
}
