use super::*;

fn sh(script: &str) -> Cmd {
    Cmd::new("/bin/sh").args(["-c", script])
}

#[test]
fn output_and_exit_code_come_back() {
    let out = sh("echo out; echo err >&2; exit 3").run(&Deadline::secs(10)).unwrap();
    assert_eq!((out.ended, &*out.stdout, &*out.stderr), (Ended::Code(3), &b"out\n"[..], &b"err\n"[..]));
    assert!(!out.success());
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let out = sh("kill -9 $$").run(&Deadline::secs(10)).unwrap();
    assert_eq!(out.ended, Ended::Signal(9));
    assert_eq!(out.ended.to_string(), "killed by SIGKILL");
}

#[test]
fn the_environment_is_bare() {
    let out = sh("export -p").env("EXTRA", "1").run(&Deadline::secs(10)).unwrap().text();
    assert!(out.contains("EXTRA") && out.contains("LC_ALL='C'"), "{out}");
    assert!(!out.contains("CARGO"), "{out}");
}

#[test]
fn a_hanging_child_that_ignores_term_is_killed_with_its_group() {
    let started = Instant::now();
    let failure =
        sh("trap '' TERM; echo busy; sleep 1000 & sleep 1000; wait").run(&Deadline::secs(2)).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    let shown = failure.to_string();
    assert_eq!(shown, "/bin/sh timed out after 2 s; last output: busy");
}

#[test]
fn a_grandchild_that_holds_the_pipe_is_not_waited_for() {
    let started = Instant::now();
    let out = sh("sleep 30 & echo $!").run(&Deadline::secs(60)).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    // Nor does it stay behind. Its reaping is init's, which may take a moment.
    let stat = format!("/proc/{}/stat", out.text().trim());
    let alive = || std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z"));
    let deadline = Deadline::secs(10);
    while alive() {
        assert!(!deadline.passed(), "{stat}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn endless_output_is_bounded_and_ends_at_the_deadline() {
    let failure = sh("exec yes").keep(4096).run(&Deadline::secs(2)).unwrap_err();
    assert!(failure.to_string().contains("last output: y | y | y"), "{failure}");
    let out = sh("echo first; yes | head -c 3000000; echo last").keep(4096).run(&Deadline::secs(30)).unwrap();
    assert!(out.stdout.len() < 5000 && out.stdout.starts_with(b"first\n") && out.stdout.ends_with(b"last\n"));
}

#[test]
fn stdin_is_streamed_through_a_pipe() {
    let data = vec![7u8; 5_000_000];
    let out =
        sh("test -p /dev/stdin && wc -c").stdin(std::io::Cursor::new(data)).run(&Deadline::secs(30)).unwrap();
    assert_eq!(out.text().trim(), "5000000");
}

#[test]
fn a_child_that_does_not_read_its_stdin_is_no_hang() {
    let out = sh("exec <&-; exit 4").stdin(std::io::repeat(0)).run(&Deadline::secs(10)).unwrap();
    assert_eq!(out.ended, Ended::Code(4));
}

#[test]
fn a_missing_program_is_named() {
    let failure = Cmd::new("/nonexistent/pct").run(&Deadline::secs(1)).unwrap_err();
    assert_eq!(failure.to_string(), "/nonexistent/pct is not installed");
}

#[test]
fn a_child_leads_a_session_without_a_terminal_and_starts_with_default_signals() {
    let script = "ps -o sid=,pgid=,pid=,tty= -p $$; grep SigIgn /proc/$$/status";
    let out = sh(script).run(&Deadline::secs(10)).unwrap().text();
    let words: Vec<&str> = out.split_ascii_whitespace().collect();
    assert_eq!(words.len(), 6, "{out}");
    assert!(words[0] == words[1] && words[1] == words[2] && words[3] == "?", "{out}");
    // The standard ones; those above are the C library's own.
    let ignored = u64::from_str_radix(words[5], 16).unwrap() & 0x7fff_ffff;
    assert_eq!(ignored, 0, "{out}");
}
