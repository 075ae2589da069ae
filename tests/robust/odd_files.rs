//! A FIFO in the place of any file that the program opens: it waits for
//! nobody, and says what is there instead.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use robust_support::*;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longer than any of the calls below takes without a FIFO.
const LIMIT: Duration = Duration::from_secs(20);

/// The calls that open files; those by hand wait for `pct`, which has files of
/// its own.
const CALLS: [&[&str]; 6] = [
    &[PROGRAM, "101", "pre-start"],
    &[PROGRAM, "101", "post-start"],
    &[PROGRAM, "status"],
    &[PROGRAM, "doctor"],
    &[PROGRAM, "plan", "101"],
    &[PROGRAM, "prefetch"],
];

/// Regular files that the calls open, as strace sees them; not the loader's
/// nor the kernel's.
fn opened(lab: &Lab) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for argv in CALLS.iter().copied().chain([&[PROGRAM, "install", "101"][..]]) {
        let strace = [
            "-f",
            "-qq",
            "-e",
            "trace=open,openat,creat",
            "-e",
            "signal=none",
            "-o",
            "/run/lab/opened",
            "--",
        ];
        lab.command("strace").args(strace).args(argv).run();
        wait_for_the_end(lab);
        let text = lab.read("/run/lab/opened");
        let ours = text.split(' ').next().unwrap_or_default().to_owned();
        let lines = text.lines().filter(|line| line.split(' ').next() == Some(&ours));
        paths.extend(lines.filter_map(|line| line.split('"').nth(1)).map(str::to_owned));
    }
    let foreign = [
        "/proc/",
        "/sys/",
        "/dev/",
        "/lib",
        "/usr/lib/x86_64",
        "/usr/lib/aarch64",
        "/etc/ld.so",
        "/run/lab/",
    ];
    paths.retain(|path| path.starts_with('/') && !foreign.iter().any(|start| path.starts_with(start)));
    paths.retain(|path| lab.sh(&format!("test -f '{path}' -a ! -L '{path}'")).exit() == Some(0));
    paths
}

#[test]
fn a_fifo_in_a_file_s_place_is_waited_for_by_no_call() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "AFTER_INSTALL=none\nINSTALL_WAIT=10\nCHECK_TIMEOUT=5");
    lab.write("/etc/pve/phoenix-nvidia/default.env", "START_POLICY=continue\n");
    lab.write("/etc/pve/datacenter.cfg", "keyboard: de\n");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    wait_for_the_end(&lab);
    let files = opened(&lab);
    for part in [
        "/etc/default/phoenix-nvidia",
        "default.env",
        "101.json",
        "101.log",
        "101.conf",
        "storage.cfg",
        ".run",
    ] {
        assert!(files.iter().any(|path| path.contains(part)), "{part} is not in {files:#?}");
    }
    // What is shown to containers is on a file system that nobody can write to.
    for path in files.iter().filter(|path| !path.starts_with("/run/phoenix-nvidia/proc/")) {
        println!("{path}");
        lab.sh(&format!("cp -p '{path}' /run/lab/kept && rm '{path}' && mkfifo '{path}'")).ok();
        // LXC's programs wait for theirs, and we for them, each to its deadline.
        let calls = if path.starts_with("/var/lib/lxc/") { &CALLS[..1] } else { &CALLS[..] };
        for argv in calls {
            let output = lab.command(argv[0]).args(&argv[1..]).timeout(LIMIT).run();
            assert_eq!(output.signal(), None, "{path}: {output}");
            wait_for_the_end(&lab);
        }
        lab.sh(&format!("rm -f '{path}' && cp -p /run/lab/kept '{path}'")).ok();
    }
    lab.run([PROGRAM, "101", "post-start"]).ok().says_not("WARNING");
}

#[test]
fn what_is_there_instead_of_a_file_is_named() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let settings = "/etc/pve/phoenix-nvidia/default.env";
    lab.files().mkdir("/etc/pve/phoenix-nvidia");
    for (make, what) in [
        ("mkfifo", "a FIFO"),
        ("mkdir", "a directory"),
        ("ln -s /dev/zero", "a character device"),
        ("ln -s /run/lab/socket", "a socket"),
    ] {
        lab.sh(
            "perl -MSocket -e 'socket S, AF_UNIX, SOCK_STREAM, 0; bind S, sockaddr_un(\"/run/lab/socket\")'",
        );
        lab.sh(&format!("rm -rf {settings} && {make} {settings}")).ok();
        let said = format!("cannot read {settings}: it is {what}, not a regular file");
        lab.run([PROGRAM, "101", "pre-start"]).ok().says(&said).says("WARNING");
        lab.run([PROGRAM, "101"]).code(2).says(&said);
        let fetched =
            lab.run([PROGRAM, "prefetch"]).code(2).says(&said).says_not(&format!("{settings}: cannot"));
        fetched.says(&format!("fix: mv {settings} {settings}.aside && touch {settings}"));
    }
    lab.sh(&format!("rm -rf {settings}")).ok();
    lab.sh("mkdir -p /var/log/phoenix-nvidia && mkfifo /var/log/phoenix-nvidia/101.log").ok();
    let install = lab.command(PROGRAM).args(["install", "101"]).on_a_terminal().run();
    install.says("no install log: cannot write to /var/log/phoenix-nvidia/101.log: it is a FIFO");
}
