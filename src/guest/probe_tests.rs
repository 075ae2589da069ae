use super::*;

fn desired(cuda: &str) -> Desired {
    let utilities = vec!["nvtop".parse().unwrap()];
    Desired { cuda: cuda.parse().unwrap(), utilities, ..Desired::sample() }
}

const DEBIAN: &str = "begin 1\nos ID=debian\nos VERSION_ID=\"12\"\nloader /lib64/ld-linux-x86-64.so.2\n\
    loader /lib/ld-linux-aarch64.so.1\ninit /sbin/init\napt-get /usr/bin/apt-get\n";

const RIGHT: &str = "lib /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05\nlink libnvidia-ml 580.95.05\n\
    lib /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05\nlink libcuda 580.95.05\nsmi /usr/bin/nvidia-smi\n\
    state 1.0-5809505 (580.95.05)\n";

fn look(text: &str, cuda: &str) -> Check {
    understand(format!("{DEBIAN}{text}end 1\n").as_bytes(), &desired(cuda)).unwrap()
}

#[test]
fn up_to_date_includes_the_cuda_step_but_not_the_utilities() {
    let check = look(RIGHT, "cuda-toolkit-{cuda}");
    assert_eq!(check.driver, DriverState::Matching);
    assert!(!check.up_to_date() && check.driver_matches());
    assert_eq!(check.cuda_missing.len(), 1);
    assert!(look(RIGHT, "none").up_to_date());
    let check = look(&format!("{RIGHT}toolkit /usr/local/cuda-12.8/version.json\n"), "cuda-toolkit-{cuda}");
    assert!(check.up_to_date() && check.utilities_missing.len() == 1);
    let check = look(&format!("{RIGHT}have cuda-drivers-580\nhave nvtop\n"), "cuda-drivers-{branch}");
    assert!(check.up_to_date() && check.utilities_missing.is_empty());
    let check = look(&format!("{RIGHT}toolkit /usr/local/cuda/version.json\n"), "cuda-drivers-{branch}");
    assert!(!check.up_to_date(), "a toolkit is not what cuda-drivers stands for");
}

#[test]
fn missing_other_and_incomplete_are_told_apart() {
    assert_eq!(look("", "none").driver, DriverState::Missing);
    let old = RIGHT.replace("580.95.05", "580.76.05");
    assert_eq!(look(&old, "none").driver, DriverState::Other { version: "580.76.05".parse().unwrap() });
    let incomplete = |text: &str| match look(text, "none").driver {
        DriverState::Incomplete { why, .. } => why,
        other => panic!("{other}: {text}"),
    };
    assert!(incomplete(&RIGHT.replace("smi /usr/bin/nvidia-smi\n", "")).contains("nvidia-smi missing"));
    assert!(incomplete(&RIGHT.replace("link libcuda 580.95.05\n", "")).contains("libcuda.so.1 missing"));
    assert!(
        incomplete(&RIGHT.replace("link libnvidia-ml 580.95.05\n", "")).contains("libnvidia-ml.so.1 missing")
    );
    assert!(
        incomplete(&RIGHT.replace("link libcuda 580.95.05", "link libcuda 580.76.05"))
            .contains("libcuda is 580.76.05")
    );
    assert!(
        incomplete(&RIGHT.replace("(580.95.05)", "(580.76.05)")).contains("installer's state is 580.76.05")
    );
    assert!(
        incomplete(&format!("{RIGHT}cut driver 580.95.05\n")).contains("install of 580.95.05 interrupted")
    );
    assert!(incomplete("smi /usr/bin/nvidia-smi\n").contains("libnvidia-ml.so.1 missing"));
    assert!(
        incomplete(&format!("{RIGHT}says NVIDIA-SMI version  : 580.76.05\n"))
            .contains("nvidia-smi is 580.76.05")
    );
}

#[test]
fn packages_that_own_another_driver_are_named_with_the_command_that_removes_them() {
    let old = RIGHT.replace("580.95.05", "580.76.05").replace("state 1.0-5809505 (580.76.05)\n", "");
    let text = format!("{old}owner dpkg libcuda1:amd64\nowner dpkg nvidia-smi\nowner dpkg $(reboot)\n");
    let DriverState::Packaged { packages, version, mixed, .. } = look(&text, "none").driver else { panic!() };
    assert_eq!((packages.shown().as_str(), mixed), ("libcuda1:amd64, nvidia-smi", false));
    assert_eq!(version.unwrap().as_str(), "580.76.05");
    let ctid = "101".parse().unwrap();
    assert_eq!(packages.remove(ctid).unwrap(), "pct exec 101 -- apt-get purge libcuda1:amd64 nvidia-smi");
    // A package with an invalid name counts too.
    let check = look(&format!("{old}owner rpm -y;reboot\n"), "none");
    let DriverState::Packaged { packages, .. } = check.driver else { panic!() };
    assert_eq!(packages.remove(ctid), None);
}

#[test]
fn packages_of_the_desired_version_are_right_unless_a_runfile_is_among_them() {
    let alone = RIGHT.replace("state 1.0-5809505 (580.95.05)\n", "");
    for manager in ["dpkg libcuda1:amd64", "rpm nvidia-driver-cuda-libs", "pacman nvidia-utils"] {
        let check = look(&format!("{alone}owner {manager}\n"), "none");
        assert!(check.up_to_date() && check.packages.is_some(), "{manager}: {}", check.driver);
    }
    let mixed = look(&format!("{RIGHT}owner dpkg libcuda1\n"), "none");
    assert!(matches!(mixed.driver, DriverState::Packaged { mixed: true, .. }) && mixed.packages.is_none());
    let part = alone.replace("smi /usr/bin/nvidia-smi\n", "");
    let part = look(&format!("{part}owner dpkg libcuda1\n"), "none");
    assert!(matches!(part.driver, DriverState::Packaged { mixed: false, .. }));
    assert!(look(RIGHT, "none").packages.is_none());
}

#[test]
fn host_files_that_are_mounted_are_left_unless_they_are_the_desired_driver() {
    let mounted = "mounted /usr/lib/x86_64-linux-gnu/libcuda.so.1\nmounted /usr/bin/nvidia-smi\n";
    let points = vec!["/usr/lib/x86_64-linux-gnu/libcuda.so.1".to_owned(), "/usr/bin/nvidia-smi".to_owned()];
    let found = DriverState::HostFiles { points, lines: None };
    assert_eq!(look(&format!("{RIGHT}{mounted}"), "none").driver, DriverState::Matching);
    for rest in
        ["", "smi /usr/bin/nvidia-smi\n", "owner dpkg libcuda1\n", &RIGHT.replace("580.95.05", "570.1.2")]
    {
        assert_eq!(look(&format!("{rest}{mounted}"), "none").driver, found, "{rest}");
    }
    let many = "mounted /usr/lib/nvidia\n".repeat(1000);
    let DriverState::HostFiles { points, .. } = look(&many, "none").driver else { panic!("no host files") };
    assert!(points.len() <= 40);
}

/// Through what the conf binds there an uninstaller would remove the host's own files, and so would any other command.
#[test]
fn nothing_is_uninstalled_through_a_mount_of_the_hosts_files() {
    let injected = Desired { injected: true, ..desired("none") };
    let look = |lines: &str| {
        let libs = RIGHT.replace("580.95.05", "570.86.15");
        understand(format!("{DEBIAN}{libs}{lines}end 1\n").as_bytes(), &injected).unwrap()
    };
    assert_eq!(look("").runfile.unwrap().as_str(), "570.86.15");
    for at in ["/usr/lib/x86_64-linux-gnu/vdpau", "/usr/lib/firmware/nvidia"] {
        let check = look(&format!("covers {at}\n"));
        assert_eq!(check.runfile, None, "{at}");
        let found = DriverState::HostFiles { points: vec![at.to_owned()], lines: None };
        assert_eq!(check.beside, Some(found));
        assert!(check.up_to_date() || check.driver == DriverState::Missing);
    }
}

#[test]
fn an_interrupted_software_step_is_pending_unless_none_is_asked_for() {
    let text = format!("{RIGHT}toolkit /usr/local/cuda-13.0/version.json\ncut software cuda-toolkit-13-0\n");
    assert!(look(&text, "cuda-toolkit-{cuda}").cuda_pending());
    assert!(!look(&text, "none").cuda_pending());
}

#[test]
fn a_source_of_another_release_is_out_of_date() {
    let mut desired = desired("cuda-toolkit-{cuda}");
    desired.repo_url = "https://h/{distro}/{arch}".parse().unwrap();
    let text = |uri: &str| {
        let text = format!("{DEBIAN}{RIGHT}toolkit /usr/local/cuda/version.json\nsource {uri}\nend 1\n");
        understand(text.as_bytes(), &desired).unwrap()
    };
    let arch = if cfg!(target_arch = "aarch64") { "sbsa" } else { std::env::consts::ARCH };
    let same = text(&format!("https://h/debian12/{arch}/"));
    assert!(!same.source_outdated && same.up_to_date());
    let older = text(&format!("https://h/debian11/{arch}/"));
    assert!(older.source_outdated && older.driver_matches() && !older.up_to_date());
}

#[test]
fn a_changed_login_makes_the_source_outdated() {
    let mut desired = desired("cuda-toolkit-{cuda}");
    let mut outdated = |url: &str, auth: &str| {
        desired.repo_url = url.parse().unwrap();
        let text = format!(
            "{DEBIAN}{RIGHT}toolkit /usr/local/cuda/version.json\nsource https://h/x/\n{auth}end 1\n"
        );
        understand(text.as_bytes(), &desired).unwrap().source_outdated
    };
    let auth = format!("auth {}\n", hex(&Sha256::digest(b"machine h/x/ login me password one\n")));
    assert!(!outdated("https://h/x", ""));
    assert!(outdated("https://h/x", &auth), "it must go");
    assert!(!outdated("https://me:one@h/x", &auth));
    assert!(outdated("https://me:two@h/x", &auth) && outdated("https://me:one@h/x", ""));
    assert!(!outdated("https://me:two@h/x", "auth unknown\n"));
}

#[test]
fn a_container_may_print_anything() {
    for text in
        [&b"\xff\xfe\0\0"[..], b"", b"end 1", &[b'x'; 100_000], b"link libnvidia-ml \x1b[31m\nend 1\n"]
    {
        let _ = Raw::parse(text);
    }
    assert!(!Raw::parse(b"begin 1\n").complete);
    let check = understand(b"end 1\n", &desired("none")).unwrap();
    assert!(matches!(check.driver, DriverState::Unsupported { .. }));
}

proptest::proptest! {
    #[test]
    fn no_output_makes_the_parser_panic(bytes: Vec<u8>) {
        let _ = understand(&bytes, &desired("none"));
    }
}

#[test]
fn the_state_files_first_line_names_the_version() {
    assert_eq!(state_version("1.0-5904801 (590.48.01)").unwrap().as_str(), "590.48.01");
    assert!(state_version("1.0-5904801").is_none() && state_version("(x)").is_none());
}
