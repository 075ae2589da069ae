use super::*;

fn ctid() -> Ctid {
    "101".parse().unwrap()
}

#[test]
fn what_is_written_is_read_again_and_success_outlives_a_boot() {
    let dir = tempfile::tempdir().unwrap();
    State::update(dir.path(), ctid(), |s| {
        s.outcome = Outcome::Ok;
        s.container_driver = Some("580.95.05".into());
    });
    let state = State::load(dir.path(), ctid());
    assert_eq!((state.outcome, state.ctid, state.schema), (Outcome::Ok, 101, SCHEMA));
    std::fs::remove_dir_all(dir.path().join(RUN)).unwrap(); // a boot
    let after = State::load(dir.path(), ctid());
    assert_eq!((after.outcome, after.last_success), (Outcome::None, state.last_success));
    assert!(after.last_success.is_some());
}

#[test]
fn a_number_that_is_given_again_brings_nothing_of_its_former_owner() {
    let dir = tempfile::tempdir().unwrap();
    State::take_over(dir.path(), ctid(), "old BC:24:11:00:00:01");
    State::update(dir.path(), ctid(), |s| {
        s.outcome = Outcome::Ok;
        s.cuda_failed = Some("x".into());
    });
    let new = "new BC:24:11:00:00:02";
    assert_eq!(State::load_of(dir.path(), ctid(), "old BC:24:11:00:00:01").outcome, Outcome::Ok);
    assert_eq!(State::load_of(dir.path(), ctid(), new), State::fresh(ctid()));
    State::note_start(dir.path(), ctid(), Some("GPU 7 is missing".into()));
    State::take_over(dir.path(), ctid(), new);
    let state = State::load(dir.path(), ctid());
    assert_eq!((state.cuda_failed, state.last_success), (None, None));
    assert_eq!(state.start_warning.as_deref(), Some("GPU 7 is missing"));
    std::fs::remove_dir_all(dir.path().join(RUN)).unwrap(); // a boot
    assert_eq!(State::load_of(dir.path(), ctid(), new).last_success, None);
}

#[test]
fn a_start_that_only_warned_is_not_shown_as_the_one_that_failed_before() {
    let dir = tempfile::tempdir().unwrap();
    State::update(dir.path(), ctid(), |s| {
        "pre-start".clone_into(&mut s.phase);
        s.outcome = Outcome::Failed;
        s.start_warning = Some("GPU 7 is missing".into());
    });
    State::note_start(dir.path(), ctid(), Some("GPU 7 is missing".into()));
    assert_eq!(State::load(dir.path(), ctid()).outcome, Outcome::Warning);
}

#[test]
fn a_broken_file_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let own = own_directory(dir.path(), RUN).unwrap();
    for text in ["", "{", "[]", "{\"schema\":99}", "null"] {
        replace_own(&own.join("101.json"), text.as_bytes(), 0o644).unwrap();
        assert_eq!(State::load(dir.path(), ctid()).outcome, Outcome::None, "{text}");
    }
}

#[test]
fn forgetting_what_is_not_there_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    State::forget(dir.path(), ctid()).unwrap();
    State::update(dir.path(), ctid(), |s| s.outcome = Outcome::Ok);
    State::forget(dir.path(), ctid()).unwrap();
    assert_eq!(State::load(dir.path(), ctid()).last_success, None);
}

/// What is kept by several processes at once: fields of different owners.
#[test]
fn no_change_is_lost_among_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    const EACH: u64 = 10;
    std::thread::scope(|scope| {
        for n in 0..8 {
            let root = dir.path();
            scope.spawn(move || {
                for _ in 0..EACH {
                    State::update(root, ctid(), |state| {
                        let field = match n {
                            0 => &mut state.whom,
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
    let s = State::load(dir.path(), ctid());
    let fields = [
        s.whom,
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
    let _held = locked(dir.path(), ctid()).unwrap();
    let begun = std::time::Instant::now();
    State::update(dir.path(), ctid(), |s| s.rebooted_for = Some("580.95.05".into()));
    assert!(begun.elapsed() >= PATIENCE && begun.elapsed() < PATIENCE * 3);
    assert_eq!(State::load(dir.path(), ctid()).rebooted_for.as_deref(), Some("580.95.05"));
}

#[test]
fn state_is_roots_alone_in_a_directory_through_which_all_may_pass() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    // As an installed 0.1.0 left it, but for a umask.
    std::fs::create_dir_all(dir.path().join(RUN).join(OWN)).unwrap();
    std::fs::set_permissions(dir.path().join(RUN), std::fs::Permissions::from_mode(0o700)).unwrap();
    State::update(dir.path(), ctid(), |s| s.outcome = Outcome::Ok);
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
    for directory in [RUN, LIB] {
        assert_eq!(mode(directory), 0o755);
        assert_eq!(mode(&format!("{directory}/{OWN}")), 0o700);
        assert_eq!(mode(&format!("{directory}/{OWN}/101.json")), 0o600);
    }
    assert_eq!(mode(LOCKS), 0o700);
}

#[test]
fn what_version_0_1_0_recorded_is_known_and_moves_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let old = old_file(dir.path(), RUN, ctid());
    std::fs::create_dir_all(old.parent().unwrap()).unwrap();
    let text = |at: u64| {
        format!(
            "{{\"schema\":1,\"ctid\":101,\"outcome\":\"ok\",\"at\":{at},\"container_driver\":\"580.95.05\",\
             \"restart_due\":\"7@8\",\"cuda_failed\":\"1 /x  https://me:geheim@h/ |a|b\"}}"
        )
    };
    replace_own(&old, text(5).as_bytes(), 0o644).unwrap();
    assert_eq!(State::load(dir.path(), ctid()).restart_due.as_deref(), Some("7@8"));
    State::update(dir.path(), ctid(), |s| s.rebooted_for = Some("580.95.05".into()));
    let state = State::load(dir.path(), ctid());
    assert_eq!((state.restart_due.as_deref(), state.outcome), (Some("7@8"), Outcome::Ok));
    assert!(!old.exists());
    // It told the URLs themselves, of which only hashes are kept.
    let kept = std::fs::read_to_string(file(dir.path(), RUN, ctid())).unwrap();
    assert!(state.cuda_failed.is_none() && !kept.contains("geheim"), "{kept}");
    // An install of that version ends after the upgrade.
    replace_own(&old, text(now() + 5).as_bytes(), 0o644).unwrap();
    let state = State::load(dir.path(), ctid());
    assert_eq!((state.at > now(), state.rebooted_for.as_deref()), (true, Some("580.95.05")));
    // An old one that is left is not believed.
    replace_own(&old, text(1).as_bytes(), 0o644).unwrap();
    assert!(State::load(dir.path(), ctid()).at > 5);
    State::forget(dir.path(), ctid()).unwrap();
    assert_eq!(State::load(dir.path(), ctid()), State::fresh(ctid()));
}

#[test]
fn another_containers_state_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    State::take_over(dir.path(), ctid(), "new BC:24:11:00:00:02");
    let before = State::load(dir.path(), ctid());
    State::update_of(dir.path(), ctid(), "old BC:24:11:00:00:01", |s| s.outcome = Outcome::Failed);
    assert_eq!(State::load(dir.path(), ctid()), before);
    State::update_of(dir.path(), ctid(), "new BC:24:11:00:00:02", |s| s.outcome = Outcome::Ok);
    assert_eq!(State::load(dir.path(), ctid()).outcome, Outcome::Ok);
}
