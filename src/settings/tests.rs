use super::keys::*;
use super::*;

/// What the places say: the conf's lines, the two files, the environment.
fn places(conf: &[Given], cluster: &str, node: &str, environment: &[(&str, &str)]) -> Places {
    let content = |text: &str| Ok(text.as_bytes().to_vec());
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Places { conf: conf.to_vec(), cluster: content(cluster), node: content(node), environment }
}

/// What a hook reads of the node's file.
fn of_node(text: &str) -> Settings {
    Settings::of(Call::Hook, places(&[], "", text, &[]), ctid())
}

fn conf(key: &str, value: &str) -> Given {
    Given { key: key.into(), value: value.into(), origin: Origin::File("/etc/pve/lxc/101.conf".into(), 7) }
}

fn ctid() -> Option<Ctid> {
    Some("101".parse().unwrap())
}

#[test]
fn nearer_wins_and_the_environment_is_first_by_hand_and_last_in_a_hook() {
    let cluster = "GPU_ASSIGNMENT=cluster\nNVIDIA_REPO_URL=cluster\nCUDA_PACKAGES=cluster\n";
    let node = "GPU_ASSIGNMENT=node\nNVIDIA_RUNFILE_URL=node\n";
    let environment =
        [("GPU_ASSIGNMENT", "env"), ("NVIDIA_REPO_URL", "env"), ("INSTALL_WAIT", "5"), ("X", "y")];
    let load = |call, more: &[(&str, &str)]| {
        let all = [&environment, more].concat();
        let s = Settings::of(call, places(&[conf("GPU_ASSIGNMENT", "conf")], cluster, node, &all), ctid());
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
    let environment = [("GPU_ASSIGNMENT", "1"), ("INSTALL", "off")];
    let all = places(&[conf("GPU_ASSIGNMENT", "0")], "", "INSTALL=off\nGPU_ASSIGNMENT=3\n", &environment);
    let s = Settings::of(Call::ByHand, all, ctid());
    let told: Vec<_> = s.overridden.iter().map(|(a, b)| (a.value.as_str(), b.value.as_str())).collect();
    assert_eq!(told, [("1", "0")]);
}

#[test]
fn a_bad_value_names_its_place() {
    let s = of_node("\nINSTALL_WAIT=soon\nSTART_POLICY=maybe\n");
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
    let s = Settings::of(Call::ByHand, places(&[conf("INSTALL", "perhaps")], "", &lines, &[]), ctid());
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
        assert!(problem.remedy(ctid()).starts_with("correct or remove line "), "{}", problem.remedy(ctid()));
    }
    let missing: Vec<String> =
        Settings::default().all_problems().into_iter().filter(Problem::is_missing).map(|p| p.key).collect();
    assert_eq!(missing, ["GPU_ASSIGNMENT", "NVIDIA_DRIVER_VERSION", "NVIDIA_REPO_URL", "NVIDIA_RUNFILE_URL"]);
}

/// An empty value is not set there, and the last line of a place is its value.
#[test]
fn an_empty_value_hides_no_other_place() {
    let cluster = "HOOK_CHAIN=/cluster\nHOOK_CHAIN=\nINSTALL=\n";
    let node = "HOOK_CHAIN=/node\nINSTALL=off\nSTART_POLICY=fail\nCUDA_PACKAGES=''\n";
    let load = |conf: &[Given]| {
        Settings::of(Call::ByHand, places(conf, cluster, node, &[("START_POLICY", "")]), ctid())
    };
    let s = load(&[conf("START_POLICY", " "), conf("INSTALL", "")]);
    assert_eq!(s.value(HOOK_CHAIN), Some("/node".into()));
    assert!(!s.value(INSTALL) && s.value(START_POLICY).fails());
    assert_eq!(s.text(CUDA_PACKAGES).unwrap().0, "cuda-toolkit-{cuda}");
    assert!(s.overridden.is_empty() && s.all_problems().iter().all(Problem::is_missing));
    assert_eq!(load(&[conf("HOOK_CHAIN", "None")]).value(HOOK_CHAIN), None);
}

#[test]
fn unknown_keys_name_the_nearest_one_and_the_line() {
    let lines = [conf("INSTALL_WIAT", "3"), conf("MY_OWN", "3")];
    let all = places(&lines, "", "GPU_ASIGNMENT=0\nWHATEVER=1\nnonsense\n", &[]);
    let s = Settings::of(Call::Hook, all, ctid());
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
    let cluster = Err(io::Error::other("no quorum"));
    let all = Places { cluster, ..places(&[], "", "INSTALL=on\nINSTALL=off\n", &[]) };
    let s = Settings::of(Call::Hook, all, ctid());
    assert!(!s.value(INSTALL));
    assert!(s.problems[0].message.starts_with("cannot read /etc/pve/phoenix-nvidia/default.env: no quorum"));
}

#[test]
fn a_file_of_many_lines_is_read_in_one_pass() {
    // The time on a processor: a busy machine does not count.
    let cpu = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let took = |lines: usize| {
        let text = "INSTALL=\n".repeat(lines);
        let begun = cpu();
        drop(of_node(&text));
        std::time::Duration::from_nanos(cpu() - begun)
    };
    let (short, long) = (took(3_500), took(28_000));
    assert!(long < short * 20 + std::time::Duration::from_millis(100), "{short:?}, then {long:?}");
}

#[test]
fn the_remedy_of_a_missing_setting_is_the_command_that_sets_it() {
    let missing = |ctid| {
        let remedies = Settings::default().all_problems().iter().map(|p| p.remedy(ctid)).collect::<Vec<_>>();
        assert_eq!(remedies.len(), 4);
        remedies
    };
    assert_eq!(missing(ctid())[0], "phoenix-nvidia attach 101 --gpus 0");
    assert_eq!(missing(ctid())[1], "echo 'NVIDIA_DRIVER_VERSION=host' >>/etc/default/phoenix-nvidia");
    assert_eq!(missing(None)[0], "phoenix-nvidia attach CTID --gpus 0");
    let error = fault(&Settings::default().all_problems(), "101".parse().unwrap());
    assert_eq!(crate::exit::code_of(&error), Code::Input);
    assert_eq!(crate::exit::remedy_of(&error).unwrap(), missing(ctid())[0]);
}

#[test]
fn the_remedy_of_a_bad_line_names_its_place() {
    let remedies = |s: Settings| s.all_problems().iter().map(|p| p.remedy(None)).collect::<Vec<_>>();
    let bad = remedies(of_node("no setting\nINSTALL_WAIT=soon\n"));
    assert_eq!(bad[0], "correct or remove line 1 of /etc/default/phoenix-nvidia");
    let wait = "correct or remove line 2 of /etc/default/phoenix-nvidia, for example INSTALL_WAIT=0";
    assert!(bad.iter().any(|remedy| remedy == wait), "{bad:?}");
    let all = places(&[], "", "", &[("MAX_INSTALLS", "many")]);
    let many = remedies(Settings::of(Call::ByHand, all, None));
    assert!(
        many.iter().any(|remedy| remedy.starts_with("correct MAX_INSTALLS in the environment")),
        "{many:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_has_a_command_and_not_the_manual() {
    let fix = |error: io::Error| {
        let places = Places { cluster: Err(error), ..places(&[], "", "", &[]) };
        let settings = Settings::of(Call::ByHand, places, ctid());
        settings.problems[0].remedy(ctid())
    };
    let directory = io::Error::other(crate::sys::file::NotRegular("a directory"));
    assert_eq!(fix(directory), format!("mv {CLUSTER_FILE} {CLUSTER_FILE}.aside && touch {CLUSTER_FILE}"));
    assert_eq!(fix(io::Error::new(io::ErrorKind::TimedOut, "no answer")), "systemctl status pve-cluster");
    assert_eq!(fix(io::Error::from_raw_os_error(5)), format!("ls -l {CLUSTER_FILE}"));
}
