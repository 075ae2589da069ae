use super::*;
use std::time::Instant;

fn record(dir: &tempfile::TempDir) -> Record {
    let at = |path: &str| dir.path().join(path.trim_start_matches('/'));
    Record::at("101".parse().unwrap(), &at(RUN), &at(LIB), &at(LOCKS))
}

#[test]
fn what_is_written_is_read_again_and_success_outlives_a_boot() {
    let dir = tempfile::tempdir().unwrap();
    record(&dir).update(|s| {
        s.outcome = Outcome::Ok;
        s.container_driver = Some("580.95.05".into());
    });
    let state = record(&dir).load();
    assert_eq!((state.outcome, state.ctid, state.schema), (Outcome::Ok, 101, SCHEMA));
    std::fs::remove_dir_all(record(&dir).run).unwrap(); // a boot
    let after = record(&dir).load();
    assert_eq!((after.outcome, after.last_success), (Outcome::None, state.last_success));
    assert!(after.last_success.is_some());
}

#[test]
fn a_number_that_is_given_again_brings_nothing_of_its_former_owner() {
    let dir = tempfile::tempdir().unwrap();
    record(&dir).take_over("old BC:24:11:00:00:01");
    record(&dir).update(|s| {
        s.outcome = Outcome::Ok;
        s.cuda_failed = Some("x".into());
    });
    let new = "new BC:24:11:00:00:02";
    assert_eq!(record(&dir).load_of("old BC:24:11:00:00:01").outcome, Outcome::Ok);
    assert_eq!(record(&dir).load_of(new), record(&dir).fresh());
    record(&dir).note_start(Some("GPU 7 is missing".into()));
    record(&dir).take_over(new);
    let state = record(&dir).load();
    assert_eq!((state.cuda_failed, state.last_success), (None, None));
    assert_eq!(state.start_warning.as_deref(), Some("GPU 7 is missing"));
    std::fs::remove_dir_all(record(&dir).run).unwrap(); // a boot
    assert_eq!(record(&dir).load_of(new).last_success, None);
}

#[test]
fn a_start_that_only_warned_is_not_shown_as_the_one_that_failed_before() {
    let dir = tempfile::tempdir().unwrap();
    record(&dir).update(|s| {
        "pre-start".clone_into(&mut s.phase);
        s.outcome = Outcome::Failed;
        s.start_warning = Some("GPU 7 is missing".into());
    });
    record(&dir).note_start(Some("GPU 7 is missing".into()));
    assert_eq!(record(&dir).load().outcome, Outcome::Warning);
}

#[test]
fn a_broken_file_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let record = record(&dir);
    own_directory(&record.run).unwrap();
    for text in ["", "{", "[]", "{\"schema\":99}", "null"] {
        replace_own(&record.file(&record.run), text.as_bytes(), 0o644).unwrap();
        assert_eq!(record.load().outcome, Outcome::None, "{text}");
    }
}

#[test]
fn forgetting_what_is_not_there_is_no_error_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    record(&dir).forget().unwrap();
    record(&dir).update(|s| s.outcome = Outcome::Ok);
    let left = record(&dir).beside("job").unwrap();
    replace_own(&left, b"{}", 0o600).unwrap();
    record(&dir).forget().unwrap();
    assert!(!left.exists());
    assert_eq!(record(&dir).load().last_success, None);
}

#[test]
fn a_detach_that_left_files_keeps_that_and_the_driver_of_this_container_alone() {
    let dir = tempfile::tempdir().unwrap();
    let record = record(&dir);
    record.update(|s| {
        s.identity = Some("a".into());
        s.phase = "check".into();
        s.container_driver = Some("580.95.05".into());
        s.cuda_failed = Some("x".into());
    });
    assert!(record.was_attached("a") && !record.was_attached("b") && !record.left_files("a"));
    let driver = record.last_driver("a");
    record.keep_left_files("a", driver.clone()).unwrap();
    assert!(driver.is_some() && record.last_driver("a") == driver);
    assert!(record.left_files("a") && !record.left_files("b") && !record.was_attached("a"));
    let now = record.load_of("a");
    assert_eq!((now.container_driver, now.cuda_failed, now.phase.as_str()), (None, None, ""));
    record.forget().unwrap();
    assert!(!record.left_files("a"));
}

/// What is kept by several processes at once: fields of different owners.
#[test]
fn no_change_is_lost_among_many_at_once() {
    // In memory: a disk that is busy would have the last wait longer than the lock's time.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    const EACH: u64 = 10;
    std::thread::scope(|scope| {
        for n in 0..8 {
            let record = record(&dir);
            scope.spawn(move || {
                for _ in 0..EACH {
                    record.update(|state| {
                        let field = match n {
                            0 => &mut state.identity,
                            1 => &mut state.start_warning,
                            2 => &mut state.kernel_driver,
                            3 => &mut state.container_driver,
                            4 => &mut state.job,
                            5 => &mut state.restart_due,
                            6 => &mut state.rebooted_for,
                            _ => &mut state.cuda_failed,
                        };
                        let count: u64 = field.as_deref().unwrap_or("0").parse().unwrap();
                        *field = Some((count + 1).to_string());
                    });
                }
            });
        }
    });
    let s = record(&dir).load();
    let fields = [
        s.identity,
        s.start_warning,
        s.kernel_driver,
        s.container_driver,
        s.job,
        s.restart_due,
        s.rebooted_for,
        s.cuda_failed,
    ];
    assert_eq!(fields, [(); 8].map(|()| Some(EACH.to_string())));
}

#[test]
fn a_change_that_gets_no_lock_is_made_in_time_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let _held = record(&dir).lock().unwrap();
    let begun = std::time::Instant::now();
    record(&dir).update(|s| s.rebooted_for = Some("580.95.05".into()));
    assert!(begun.elapsed() >= LOCK_TIME && begun.elapsed() < LOCK_TIME * 3);
    assert_eq!(record(&dir).load().rebooted_for.as_deref(), Some("580.95.05"));
}

#[test]
fn state_is_roots_alone_in_a_directory_through_which_all_may_pass() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    // As an installed 0.1.0 left it, but for a umask.
    let record = record(&dir);
    std::fs::create_dir_all(record.run.join(OWN)).unwrap();
    std::fs::set_permissions(&record.run, std::fs::Permissions::from_mode(0o700)).unwrap();
    record.update(|s| s.outcome = Outcome::Ok);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    for directory in [&record.run, &record.lib] {
        assert_eq!(mode(directory), 0o755);
        assert_eq!(mode(&directory.join(OWN)), 0o700);
        assert_eq!(mode(&record.file(directory)), 0o600);
    }
    assert_eq!(mode(record.lock.parent().unwrap()), 0o700);
}

#[test]
fn what_version_0_1_0_recorded_is_known_and_moves_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let old = record(&dir).old_file(&record(&dir).run);
    std::fs::create_dir_all(old.parent().unwrap()).unwrap();
    let text = |at: u64| {
        format!(
            "{{\"schema\":1,\"ctid\":101,\"outcome\":\"ok\",\"at\":{at},\"container_driver\":\"580.95.05\",\
             \"restart_due\":\"7@8\",\"cuda_failed\":\"1 /x  https://me:geheim@h/ |a|b\"}}"
        )
    };
    replace_own(&old, text(5).as_bytes(), 0o644).unwrap();
    assert_eq!(record(&dir).load().restart_due.as_deref(), Some("7@8"));
    record(&dir).update(|s| s.rebooted_for = Some("580.95.05".into()));
    let state = record(&dir).load();
    assert_eq!((state.restart_due.as_deref(), state.outcome), (Some("7@8"), Outcome::Ok));
    assert!(!old.exists());
    // It told the URLs themselves, of which only hashes are kept.
    let kept = std::fs::read_to_string(record(&dir).file(&record(&dir).run)).unwrap();
    assert!(state.cuda_failed.is_none() && !kept.contains("geheim"), "{kept}");
    // An install of that version ends after the upgrade.
    replace_own(&old, text(now() + 5).as_bytes(), 0o644).unwrap();
    let state = record(&dir).load();
    assert_eq!((state.at > now(), state.rebooted_for.as_deref()), (true, Some("580.95.05")));
    // An old one that is left is not believed.
    replace_own(&old, text(1).as_bytes(), 0o644).unwrap();
    assert!(record(&dir).load().at > 5);
    record(&dir).forget().unwrap();
    assert_eq!(record(&dir).load(), record(&dir).fresh());
}

#[test]
fn another_containers_state_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    record(&dir).take_over("new BC:24:11:00:00:02");
    let before = record(&dir).load();
    record(&dir).update_of("old BC:24:11:00:00:01", |s| s.outcome = Outcome::Failed);
    assert_eq!(record(&dir).load(), before);
    record(&dir).update_of("new BC:24:11:00:00:02", |s| s.outcome = Outcome::Ok);
    assert_eq!(record(&dir).load().outcome, Outcome::Ok);
}

#[test]
fn a_driver_that_is_right_does_not_hide_a_missing_device() {
    let mut state = State { start_warning: Some("GPU 7 is missing".into()), ..State::default() };
    state.ended("check", &Ok(()), Instant::now());
    assert_eq!((state.outcome, state.message.as_str()), (Outcome::Warning, "GPU 7 is missing"));
}
