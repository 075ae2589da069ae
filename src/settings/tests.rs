use super::keys::*;
use super::*;

fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::sys::replace::replace_own(&path, text.as_bytes(), 0o644).unwrap();
    }
    dir
}

fn conf(key: &str, value: &str) -> Given {
    Given { key: key.into(), value: value.into(), origin: Origin::File("/etc/pve/lxc/101.conf".into(), 7) }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn ctid() -> Option<Ctid> {
    Some("101".parse().unwrap())
}

#[test]
fn nearer_wins_and_the_environment_is_first_by_hand_and_last_in_a_hook() {
    let dir = root(&[
        (CLUSTER_FILE, "GPU_ASSIGNMENT=cluster\nNVIDIA_REPO_URL=cluster\nCUDA_PACKAGES=cluster\n"),
        (NODE_FILE, "GPU_ASSIGNMENT=node\nNVIDIA_RUNFILE_URL=node\n"),
    ]);
    let environment =
        env(&[("GPU_ASSIGNMENT", "env"), ("NVIDIA_REPO_URL", "env"), ("INSTALL_WAIT", "5"), ("X", "y")]);
    let load = |call, more: &[(&str, &str)]| {
        let all = [environment.clone(), env(more)].concat();
        let s = Settings::load(dir.path(), call, vec![conf("GPU_ASSIGNMENT", "conf")], all, ctid());
        let get = |k| s.text(k).map(|(t, _)| t.to_owned()).unwrap_or_default();
        [
            get(GPU_ASSIGNMENT),
            get(NVIDIA_REPO_URL),
            get(NVIDIA_RUNFILE_URL),
            get(CUDA_PACKAGES),
            get(INSTALL_WAIT),
        ]
    };
    assert_eq!(load(Call::ByHand, &[]), ["env", "env", "node", "cluster", "5"]);
    assert_eq!(load(Call::Hook, &[]), ["conf", "cluster", "node", "cluster", "5"]);
    assert_eq!(load(Call::Hook, &[(MARK, "101")]), ["env", "env", "node", "cluster", "5"]);
    assert_eq!(load(Call::Hook, &[(MARK, "102")]), ["conf", "cluster", "node", "cluster", "5"]);
}

#[test]
fn a_value_given_by_hand_that_the_files_contradict_is_remembered() {
    let environment = env(&[("GPU_ASSIGNMENT", "1"), ("INSTALL", "off")]);
    let dir = root(&[(NODE_FILE, "INSTALL=off\nGPU_ASSIGNMENT=3\n")]);
    let s = Settings::load(dir.path(), Call::ByHand, vec![conf("GPU_ASSIGNMENT", "0")], environment, ctid());
    let told: Vec<_> = s.overridden.iter().map(|(a, b)| (a.value.as_str(), b.value.as_str())).collect();
    assert_eq!(told, [("1", "0")]);
}

#[test]
fn a_bad_value_names_its_place() {
    let dir = root(&[(NODE_FILE, "\nINSTALL_WAIT=soon\nSTART_POLICY=maybe\n")]);
    let s = Settings::load(dir.path(), Call::Hook, Vec::new(), Vec::new(), ctid());
    let wait = s.get(INSTALL_WAIT).unwrap_err().message;
    assert!(
        wait.starts_with("INSTALL_WAIT=soon (/etc/default/phoenix-nvidia line 2): not a whole number"),
        "{wait}"
    );
    assert_eq!(s.value(INSTALL_WAIT).as_secs(), 60);
    assert!(s.get(START_POLICY).unwrap_err().message.contains("must be continue or fail"));
    assert_eq!(s.get(GPU_ASSIGNMENT).unwrap_err().message, "GPU_ASSIGNMENT is not set");
}

/// Every setting of the table, not those that somebody thought of.
#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let lines: String = ALL.iter().map(|key| format!("{}=\u{7f} ?;\n", key.name)).collect();
    let dir = root(&[(NODE_FILE, &lines)]);
    let s = Settings::load(dir.path(), Call::ByHand, vec![conf("INSTALL", "perhaps")], Vec::new(), ctid());
    let told = s.all_problems();
    assert_eq!(told.len(), ALL.len(), "{told:#?}");
    for (n, (problem, key)) in told.iter().zip(ALL).enumerate() {
        assert_eq!(problem.key, key.name);
        let place = if key.name == "INSTALL" {
            "(/etc/pve/lxc/101.conf line 7)".to_owned()
        } else {
            format!("(/etc/default/phoenix-nvidia line {})", n + 1)
        };
        assert!(problem.message.contains(&place), "{problem}");
        assert!(!problem.message.contains('\u{7f}'), "{problem}");
        assert!(problem.remedy(ctid()).contains("line "), "{}", problem.remedy(ctid()));
    }
    let missing: Vec<String> =
        Settings::default().all_problems().into_iter().filter(Problem::is_missing).map(|p| p.key).collect();
    assert_eq!(missing, ["GPU_ASSIGNMENT", "NVIDIA_DRIVER_VERSION", "NVIDIA_REPO_URL", "NVIDIA_RUNFILE_URL"]);
}

/// An empty value is not set there, and the last line of a place is its value.
#[test]
fn an_empty_value_hides_no_other_place() {
    let dir = root(&[
        (CLUSTER_FILE, "HOOK_CHAIN=/cluster\nHOOK_CHAIN=\nINSTALL=\n"),
        (NODE_FILE, "HOOK_CHAIN=/node\nINSTALL=off\nSTART_POLICY=fail\nCUDA_PACKAGES=''\n"),
    ]);
    let lines = vec![conf("START_POLICY", " "), conf("INSTALL", "")];
    let environment = env(&[("START_POLICY", "")]);
    let s = Settings::load(dir.path(), Call::ByHand, lines, environment, ctid());
    assert_eq!(s.value(HOOK_CHAIN), Some("/node".into()));
    assert!(!s.value(INSTALL) && s.value(START_POLICY).fails());
    assert_eq!(s.text(CUDA_PACKAGES).unwrap().0, "cuda-toolkit-{cuda}");
    assert!(s.overridden.is_empty() && s.all_problems().iter().all(Problem::is_missing));
    let none = Settings::load(dir.path(), Call::Hook, vec![conf("HOOK_CHAIN", "None")], Vec::new(), ctid());
    assert_eq!(none.value(HOOK_CHAIN), None);
}

#[test]
fn unknown_keys_name_the_nearest_one_and_the_line() {
    let dir = root(&[(NODE_FILE, "GPU_ASIGNMENT=0\nWHATEVER=1\nnonsense\n")]);
    let lines = vec![conf("INSTALL_WIAT", "3"), conf("MY_OWN", "3")];
    let s = Settings::load(dir.path(), Call::Hook, lines, Vec::new(), ctid());
    let told: Vec<_> = s.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "unknown setting INSTALL_WIAT (/etc/pve/lxc/101.conf line 7): did you mean INSTALL_WAIT?",
            "unknown setting GPU_ASIGNMENT (/etc/default/phoenix-nvidia line 1): did you mean GPU_ASSIGNMENT?",
            "unknown setting WHATEVER (/etc/default/phoenix-nvidia line 2); phoenix-nvidia.env(5) lists all",
            "/etc/default/phoenix-nvidia line 3: not KEY=VALUE",
        ]
    );
}

#[test]
fn the_last_line_of_a_file_wins_and_an_unreadable_file_is_a_problem() {
    let dir = root(&[(NODE_FILE, "INSTALL=on\nINSTALL=off\n")]);
    std::fs::create_dir_all(dir.path().join(CLUSTER_FILE)).unwrap();
    let s = Settings::load(dir.path(), Call::Hook, Vec::new(), Vec::new(), ctid());
    assert!(!s.value(INSTALL));
    assert!(s.problems[0].message.contains("/etc/pve/phoenix-nvidia/default.env cannot be read"));
}

#[test]
fn a_file_of_many_lines_is_read_in_one_pass() {
    // The time on a processor: a busy machine does not count.
    let cpu = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let took = |lines: usize| {
        let dir = root(&[(NODE_FILE, &"INSTALL=\n".repeat(lines))]);
        let begun = cpu();
        drop(Settings::load(dir.path(), Call::Hook, Vec::new(), Vec::new(), ctid()));
        std::time::Duration::from_nanos(cpu() - begun)
    };
    let (short, long) = (took(3_500), took(28_000));
    assert!(long < short * 20 + std::time::Duration::from_millis(100), "{short:?}, then {long:?}");
}

#[test]
fn the_fault_says_where_a_missing_setting_may_stand() {
    let s = Settings::default();
    let error = fault(&[s.get(GPU_ASSIGNMENT).unwrap_err()], "101".parse().unwrap());
    assert_eq!(crate::exit::code_of(&error), Code::Input);
    let remedy = crate::exit::remedy_of(&error).unwrap();
    assert!(
        remedy.contains("lxc.environment: GPU_ASSIGNMENT=0,1")
            && remedy.contains("/etc/default/phoenix-nvidia")
    );
}

#[test]
fn the_fault_of_a_line_that_cannot_be_read_does_not_speak_of_another_setting() {
    let dir = root(&[(NODE_FILE, "no setting\n")]);
    let s = Settings::load(dir.path(), Call::ByHand, Vec::new(), Vec::new(), ctid());
    let error = fault(&s.problems, "101".parse().unwrap());
    let remedy = crate::exit::remedy_of(&error).unwrap();
    assert!(
        remedy.contains("correct or remove /etc/default/phoenix-nvidia line 1")
            && !remedy.contains("GPU_ASSIGNMENT"),
        "{remedy}"
    );
}
