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
    let wait = s.seconds(INSTALL_WAIT).unwrap_err().message;
    assert!(
        wait.starts_with("INSTALL_WAIT=soon (/etc/default/phoenix-nvidia line 2): not a whole number"),
        "{wait}"
    );
    assert_eq!(s.limit(INSTALL_WAIT).as_secs(), 60);
    assert!(
        s.choice(START_POLICY, "continue", "fail").unwrap_err().message.contains("must be continue or fail")
    );
    assert_eq!(s.get::<String>(GPU_ASSIGNMENT).unwrap_err().message, "GPU_ASSIGNMENT is not set");
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
    assert!(!s.choice(INSTALL, "on", "off").unwrap());
    assert!(s.problems[0].message.contains("/etc/pve/phoenix-nvidia/default.env cannot be read"));
}

#[test]
fn the_fault_says_where_a_missing_setting_may_stand() {
    let s = Settings::default();
    let error = fault(&[s.get::<String>(GPU_ASSIGNMENT).unwrap_err()], "101".parse().unwrap());
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
    assert!(remedy.contains("mend or remove") && !remedy.contains("GPU_ASSIGNMENT"), "{remedy}");
}
