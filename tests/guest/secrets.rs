//! Names, passwords and tokens in URLs: they go where they are meant for, and
//! nobody can read them anywhere else.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::web::Fault;
use phoenix_lab::{Lab, Output, Rootfs};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{node, setting};

const V: &str = "580.95.05";
/// What the secrets have in common.
const SECRET: &str = "kr0kodil";
const AUTH: &str = "/etc/apt/auth.conf.d/phoenix-nvidia.conf";
const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
const LOGIN: &str = "me:kr0kodil-password";

/// Settings with a secret in each URL.
fn urls(login: &str) -> String {
    format!(
        "NVIDIA_REPO_URL=http://{login}@mirror.lab/compute/cuda/repos/{{distro}}/{{arch}}\n\
         NVIDIA_REPO_KEY_URL=https://mirror.lab/compute/cuda/repos/{{distro}}/{{arch}}/?token=kr0kodil-token\n\
         NVIDIA_RUNFILE_URL=https://mirror.lab/XFree86/Linux-x86_64/{{version}}/NVIDIA-Linux-x86_64-{{version}}.run?token=kr0kodil-token"
    )
}

/// A server that gives nothing to who does not send the right ones.
fn strict(lab: &Lab) {
    let token = || Fault::Query("token=kr0kodil-token".into());
    lab.web().fail("*.pub", token());
    lab.web().fail("*.run", token());
    lab.web().fail("/compute/*", Fault::Login(LOGIN.into()));
}

fn ready(lines: &str) -> Option<Lab> {
    let lines = format!("UTILITY_PACKAGES=none\n{lines}");
    let lab = support::ready(Lab::builder().gpus(1), V, Rootfs::Debian12.unprivileged(), &lines)?;
    strict(&lab);
    Some(lab)
}

/// All that a local user could see while something runs: command lines, and
/// what syslog is told.
struct Watched<'lab> {
    lab: &'lab Lab,
    stop: AtomicBool,
    seen: Mutex<Vec<String>>,
    syslog: UnixDatagram,
}

impl<'lab> Watched<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        // Each call of the ways into a container writes its arguments down.
        let wrapper = "#!/bin/sh\nprintf '%s\\n' \"$@\" >>/run/lab/argv\nexec /srv/lxc-attach \"$@\"\n";
        lab.sh("cp /usr/bin/lxc-attach /srv/lxc-attach").ok();
        lab.replace_program("/usr/bin/lxc-attach", wrapper);
        let syslog = UnixDatagram::bind(format!("/proc/{}/root/dev/log", lab.init_pid())).unwrap();
        syslog.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Watched { lab, stop: AtomicBool::new(false), seen: Mutex::new(Vec::new()), syslog }
    }

    /// Does something, and looks at everything as often as it can.
    fn during(&self, what: impl FnOnce() -> Output) -> Output {
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| self.look());
            let output = what();
            self.stop.store(true, Ordering::Relaxed);
            self.seen.lock().unwrap().push(format!("output: {output}"));
            output
        })
    }

    fn look(&self) {
        let proc = std::path::PathBuf::from(format!("/proc/{}/root/run/lab/proc", self.lab.init_pid()));
        let mut buffer = vec![0; 64 * 1024];
        while !self.stop.load(Ordering::Relaxed) {
            let lines = std::fs::read_dir(&proc).into_iter().flatten().flatten();
            let lines = lines.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
            let words = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
            let mut seen = self.seen.lock().unwrap();
            seen.extend(words.filter(|line| line.contains(SECRET)).map(|line| format!("process: {line}")));
            while let Ok(length) = self.syslog.recv(&mut buffer) {
                seen.push(format!("syslog: {}", String::from_utf8_lossy(&buffer[..length])));
            }
        }
    }

    /// Nothing that was seen held a secret, and of the files only those do
    /// that must.
    #[track_caller]
    fn check(&self, files: &[&str]) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.iter().any(|line| line.starts_with("syslog: ")), "syslog was not heard");
        let told: Vec<_> = seen.iter().filter(|line| line.contains(SECRET)).collect();
        assert!(told.is_empty(), "{told:#?}");
        let argv = self.lab.read("/run/lab/argv");
        assert!(argv.contains("phoenix-nvidia"), "the wrapper was not called: {argv}");
        assert!(!argv.contains(SECRET), "{argv}");
        assert_eq!(holding(self.lab), files);
    }
}

/// The files of the lab, its containers' included, that hold a secret; the
/// server's own and the settings are where they must be.
fn holding(lab: &Lab) -> Vec<String> {
    let found = lab.sh(
        "grep -rlIa --exclude-dir=proc --exclude-dir=lab -e kr0kodil /etc /run /tmp /var 2>/dev/null | sort; true",
    );
    let lines = found.ok().stdout;
    lines.lines().map(|path| path.split(".subvol").last().unwrap().to_owned()).collect()
}

#[test]
fn a_password_and_a_token_are_readable_only_where_they_must_be() {
    let Some(lab) = ready(&urls(LOGIN)) else { return };
    let watched = Watched::new(&lab);
    let start = || lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(150)).run();
    let first = watched.during(start).ok();
    first.says("driver: installed 580.95.05").says("cuda: installed cuda-toolkit-13-0").says_not("ERROR");
    let ct = lab.container(101);
    // apt works with it, for root; the source names no secret.
    ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
    assert_eq!(ct.files().metadata(AUTH).permissions().mode() & 0o7777, 0o600);
    assert!(ct.read(AUTH).contains("login me password kr0kodil-password\n"));
    ct.sh(&format!("setpriv --reuid 65534 --clear-groups cat {AUTH}")).code(1);
    assert!(ct.read(SOURCE).contains("URIs: http://mirror.lab/compute/"));
    let expected = ["/etc/default/phoenix-nvidia", AUTH];
    watched.check(&expected);

    // All that tells something, and a run whose login is wrong by now.
    for call in [
        &["phoenix-nvidia", "-v", "101"][..],
        &["phoenix-nvidia", "plan", "101"],
        &["phoenix-nvidia", "status", "--json"],
        &["phoenix-nvidia", "doctor", "--json", "101"],
        &["phoenix-nvidia", "prefetch", "580.95.05"],
        &["phoenix-nvidia", "attach", "101", "--gpus", "0"],
    ] {
        watched.during(|| lab.run(call));
    }
    watched.check(&expected);
    node(&lab, &urls("me:kr0kodil-wrong").replace("NVIDIA_RUNFILE_URL=https", "NVIDIA_RUNFILE_URL=ftp"));
    for call in
        [&["phoenix-nvidia", "101"][..], &["phoenix-nvidia", "plan", "101"], &["phoenix-nvidia", "doctor"]]
    {
        watched.during(|| lab.run(call));
    }
    watched.check(&expected);
    node(&lab, &urls("me:kr0kodil-wrong"));
    // Nobody named CUDA_PACKAGES, so its failure is a warning.
    watched.during(|| lab.run(["phoenix-nvidia", "101"])).ok().says("401").says("repository:");
    watched.check(&expected);
    // The failed step is remembered by its hash: no start tries it again.
    lab.run(["pct", "stop", "101"]).ok();
    watched.during(start).ok().says("not tried again");
    watched.check(&expected);

    // A new login replaces the old one.
    node(&lab, &urls("me:kr0kodil-new"));
    lab.web().heal();
    lab.web().fail("*.pub", Fault::Query("token=kr0kodil-token".into()));
    lab.web().fail("/compute/*", Fault::Login("me:kr0kodil-new".into()));
    watched.during(|| lab.run(["phoenix-nvidia", "101"])).ok();
    assert!(ct.read(AUTH).contains("password kr0kodil-new\n"), "{}", ct.read(AUTH));
    watched.check(&expected);

    // Another source of the repository, without a login, needs ours: apt has it by the server's name.
    ct.write("/etc/apt/sources.list.d/mine.sources", ct.read(SOURCE));
    watched
        .during(|| lab.run(["phoenix-nvidia", "101"]))
        .ok()
        .says("already in /etc/apt/sources.list.d/mine.sources");
    for _ in 0..2 {
        assert!(!ct.exists(SOURCE) && ct.read(AUTH).contains("password kr0kodil-new\n"));
        ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
        ct.sh("apt-get -y purge 'cuda-*'").ok();
        watched.during(|| lab.run(["phoenix-nvidia", "101"])).ok().says("cuda: installed");
    }
    watched.check(&expected);
    ct.files().remove("/etc/apt/sources.list.d/mine.sources");

    // Who detaches takes it out of the container, driver or not.
    watched.during(|| lab.run(["phoenix-nvidia", "detach", "--keep-driver", "101"])).ok();
    assert!(!ct.exists(AUTH) && !ct.exists(SOURCE));
    watched.check(&["/etc/default/phoenix-nvidia"]);
}

#[test]
fn a_query_for_apt_is_refused_without_being_shown_and_costs_no_driver() {
    let Some(lab) = ready("NVIDIA_REPO_URL=http://mirror.lab/compute/{distro}?token=kr0kodil") else {
        return;
    };
    lab.web().heal();
    let watched = Watched::new(&lab);
    let start = || lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(150)).run();
    let output = watched.during(start).ok().says("driver: installed 580.95.05").says("supports no query");
    output.says("CUDA packages are missing").says_not("exit code 5");
    watched.during(|| lab.run(["phoenix-nvidia", "status", "--json"])).ok();
    watched.check(&["/etc/default/phoenix-nvidia"]);
}

#[test]
fn a_secret_in_the_conf_is_told_by_attach_and_doctor() {
    let Some(lab) = ready("INSTALL=off") else { return };
    setting(&lab, 101, "NVIDIA_REPO_URL=https://me:kr0kodil@mirror.lab/x");
    lab.run(["phoenix-nvidia", "attach", "101"])
        .ok()
        .says("the container can read the password or token in NVIDIA_REPO_URL")
        .says("/etc/pve/phoenix-nvidia/default.env")
        .says_not(SECRET);
    let output = lab.run(["phoenix-nvidia", "doctor", "101"]).says("secret").says_not(SECRET);
    let fix = output.stdout.lines().find_map(|line| line.trim().strip_prefix("fix: mkdir"));
    let before = lab.conf(101);
    // Its last step is a reboot, but of one that does not run.
    lab.sh(&format!("mkdir{}", fix.unwrap())).ok();
    assert_eq!(
        lab.conf(101),
        before.replace("lxc.environment: NVIDIA_REPO_URL=https://me:kr0kodil@mirror.lab/x\n", "")
    );
    let moved = lab.read("/etc/pve/phoenix-nvidia/default.env");
    assert_eq!(moved, "NVIDIA_REPO_URL=https://me:kr0kodil@mirror.lab/x\n");
    lab.files().remove("/etc/pve/phoenix-nvidia/default.env");
    node(&lab, "NVIDIA_REPO_KEY_URL=https://mirror.lab/key?token=kr0kodil");
    lab.run(["phoenix-nvidia", "doctor", "101"])
        .says("chmod 600 /etc/default/phoenix-nvidia")
        .says_not(SECRET);
    lab.sh("chmod 600 /etc/default/phoenix-nvidia").ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("password or token");
}
