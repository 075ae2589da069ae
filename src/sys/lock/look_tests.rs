use super::*;
use crate::sys::lock::try_take;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A directory whose device is the one in /proc/locks: of a file system with
/// subvolumes, or of an overlay, stat(2) names another.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A shell that holds the lock on fd 9, taken by a child that has ended, until
/// its stdin ends; it starts with `prefix`.
#[allow(clippy::disallowed_methods)] // a test's own process
fn held_by_a_shell(prefix: &[&str], path: &Path) -> Child {
    let script = "umask 077; exec 9>\"$0\"; flock 9; echo held; read -r end; exit 0";
    let words: Vec<&str> = prefix.iter().copied().chain(["sh", "-c", script]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut word = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"held\n");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_holder_is_found_in_its_line_and_a_waiter_or_another_lock_is_none() {
    let id = Id("00:36:21".into());
    assert_eq!(id.taker_in("1: FLOCK  ADVISORY  WRITE 29164 00:36:21 0 EOF"), Some(29164));
    assert_eq!(id.taker_in("lock:\t1: FLOCK  ADVISORY  READ 0 00:36:21 0 EOF"), Some(0));
    for other in [
        "1: -> FLOCK  ADVISORY  WRITE 77 00:36:21 0 EOF",
        "2: POSIX  ADVISORY  WRITE 5 00:36:21 0 EOF",
        "1: FLOCK  ADVISORY  WRITE 29164 00:36:210 0 EOF",
        "1: FLOCK  ADVISORY  WRITE",
        "",
    ] {
        assert_eq!(id.taker_in(other), None, "{other}");
    }
}

#[test]
fn a_look_sees_a_lock_and_never_takes_it() {
    let dir = memory();
    let path = dir.path().join("d/x.lock");
    assert!(!is_held(&path) && !path.exists(), "nobody who looks makes the file");
    let lock = try_take(&path).unwrap().unwrap();
    assert!(is_held(&path) && Table::read().is_held(&path));
    assert_eq!(holder_of(&lock._file).unwrap().pid, std::process::id() as i32);
    drop(lock);
    // Thousands of looks, and each attempt to take it succeeds.
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut watch = Watch::new(path.clone());
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                watch.is_held();
            }
        });
        // A program that another test starts has our descriptors until it is
        // that program, so one attempt may meet a lock of before.
        let taken = || {
            let at_once = || matches!(try_take(&path), Ok(Some(_)));
            at_once()
                || (0..1000).any(|_| {
                    std::thread::sleep(Duration::from_millis(1));
                    at_once()
                })
        };
        let all = (0..500).all(|_| taken());
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(all);
    });
}

#[test]
fn a_watch_sees_the_end_and_the_next_holder() {
    let dir = memory();
    let path = dir.path().join("x.lock");
    let mut watch = Watch::new(path.clone());
    let lock = try_take(&path).unwrap().unwrap();
    assert!(watch.is_held() && watch.is_held());
    drop(lock);
    assert!(!watch.is_held());
    let _again = try_take(&path).unwrap().unwrap();
    assert!(watch.is_held());
}

#[test]
fn a_lock_whose_taker_has_ended_is_held_in_any_namespace() {
    let dir = memory();
    let path = dir.path().join("x.lock");
    let shell = held_by_a_shell(&[], &path);
    assert!(is_held(&path) && try_take(&path).unwrap().is_none());
    let file = File::open(&path).unwrap();
    // Its taker's number is shown, and that it is no more.
    let holder = holder_of(&file);
    assert!(holder.is_none_or(|h| h.name.is_empty() && h.to_string().contains("has ended")));
    assert!(!is_ancestors(&path), "the shell is our child");
    end(shell);
    assert!(!is_held(&path));
    if nix::unistd::geteuid().is_root() {
        // Here /proc/locks shows nothing of it from within; from outside it does.
        let shell = held_by_a_shell(&["unshare", "--pid", "--fork", "--mount-proc"], &path);
        assert!(is_held(&path));
        end(shell);
    }
}

#[test]
fn what_this_process_or_a_child_holds_is_no_ancestors() {
    let dir = memory();
    let path = dir.path().join("x.lock");
    let lock = try_take(&path).unwrap().unwrap();
    assert!(!is_ancestors(&path) && !is_ancestors(Path::new("/nonexistent")));
    drop(lock);
}

#[test]
fn a_name_with_blanks_and_brackets_does_not_hide_the_parent() {
    assert_eq!(parent_in("12 (a ) b) S 7 12 12"), Some(7));
}

#[test]
fn a_hostile_name_is_shown_in_one_harmless_line() {
    let holder = Holder { pid: 7, name: crate::sys::text::line(b"\x1b[2J\nsshd\n"), user: 1000 };
    assert_eq!(holder.to_string(), "process 7 (\\u{1b}[2J\\nsshd, user 1000)");
}
