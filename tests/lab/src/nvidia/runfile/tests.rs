use super::*;
use std::process::{Command, Output};

fn sh(arguments: &[&str]) -> Output {
    let output = Command::new("sh").args(arguments).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.code().is_some(), "{output:?}");
    output
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn line(file: &Path, number: usize) -> String {
    let bytes = fs::read(file).unwrap();
    let line = bytes.split(|&byte| byte == b'\n').nth(number - 1).unwrap();
    String::from_utf8(line.to_vec()).unwrap()
}

#[test]
fn the_header_follows_nvidias_rule() {
    let file = Runfile::new("580.95.05").build().unwrap();
    let path = file.to_str().unwrap();
    let sums = sh(&["-c", &format!("tail -n +4 '{path}' | cksum; tail -n +4 '{path}' | md5sum")]);
    let sums = text(&sums);
    let [crc, _, md5, _] = sums.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{sums}") };
    assert_eq!(line(&file, 2), format!("CRCsum={crc}"));
    assert_eq!(line(&file, 3), format!("MD5={md5}"));
    let skip: usize = line(&file, 4).strip_prefix("skip=").unwrap().parse().unwrap();
    let payload = sh(&["-c", &format!("tail -n +{skip} '{path}' | tar -tf -")]);
    assert!(text(&payload).contains("libcuda.so.580.95.05\n"), "{payload:?}");
    let head: Vec<String> = (1..skip).map(|number| line(&file, number)).collect();
    assert!(head.contains(&"version_string=580.95.05".to_owned()));
    assert!(head.contains(&format!("TARGET_ARCH={ARCH}")));
    assert!(head.iter().all(|line| !line.contains('@') || line.contains("$@")), "{head:#?}");
}

#[test]
fn it_checks_itself_and_finds_damage() {
    let good = Runfile::new("580.95.05").build().unwrap();
    let good = sh(&[good.to_str().unwrap(), "--check"]);
    assert!(good.status.success() && text(&good).contains("OK"), "{good:?}");
    let bad = Runfile::new("580.95.05").flaw(Flaw::Damaged).build().unwrap();
    let bad = sh(&[bad.to_str().unwrap(), "--check"]);
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
}

#[test]
fn it_unpacks_where_it_is_told() {
    let file = Runfile::new("580.95.05").build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let out = sh(&[file.to_str().unwrap(), "-x", "--target", target.to_str().unwrap()]);
    assert!(out.status.success(), "{out:?}");
    let smi = Command::new(target.join("nvidia-smi")).arg("-h").output().unwrap();
    assert!(text(&smi).contains("v580.95.05\n"), "{smi:?}");
    let installer = fs::read_to_string(target.join("nvidia-installer")).unwrap();
    assert!(!installer.contains('@') || !installer.contains("@VERSION@"), "{installer}");
    let again = sh(&[file.to_str().unwrap(), "-x", "--target", target.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn an_option_of_a_later_version_is_refused_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let tmpdir = format!("--tmpdir={}", dir.path().display());
    for (version, option) in [
        ("580.95.05", "--no-such-option"),
        ("510.108.03", "--no-kernel-modules"),
        ("460.91.03", "--no-systemd"),
        ("340.108", "--install-libglvnd"),
    ] {
        let file = Runfile::new(version).build().unwrap();
        let out = sh(&[file.to_str().unwrap(), "--silent", &tmpdir, option]);
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        assert!(text(&out).contains(&format!("unrecognized option: \"{option}\"")), "{out:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn it_is_padded_and_the_same_every_time() {
    let runfile = Runfile::new("580.95.05").size(3_000_000);
    assert_eq!(runfile.bytes().unwrap(), runfile.bytes().unwrap());
    let file = runfile.build().unwrap();
    assert!(fs::metadata(&file).unwrap().len() >= 3_000_000);
    assert!(sh(&[file.to_str().unwrap(), "--check"]).status.success());
    let sum = sha256sum(&file).unwrap();
    let dir = file.parent().unwrap().display();
    let check = sh(&["-c", &format!("cd '{dir}' && echo '{}' | sha256sum -c", sum.trim())]);
    assert!(check.status.success(), "{check:?}");
}
