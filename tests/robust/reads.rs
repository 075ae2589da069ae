//! Files that never answer: of a hostile container, of a lost card, of a dead
//! storage. Each call ends within its limit, says what could not be looked
//! at, and leaves nothing that does not end with the file system itself.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Lab, Output, Rootfs, Running, Signal};
use robust_support::*;
use std::time::{Duration, Instant};

/// What a call may take beside its limit, and one second because two cores run
/// several labs.
const BESIDE: u64 = 3;
/// The limit of a look by hand, 10 s, and 5 s for other programs that write hundreds of
/// megabytes meanwhile; two such looks one after the other are longer.
const BY_HAND: u64 = 15;

/// Ended within its limit, with this exit code.
#[track_caller]
fn in_time(output: Output, seconds: u64, code: i32) -> Output {
    assert!(output.took < Duration::from_secs(seconds + BESIDE), "{output}");
    output.code(code)
}

/// A file system that never answers over a file or directory of the host, or
/// of a process's mount namespace, until it is dropped.
#[track_caller]
fn stuck(lab: &Lab, args: &[&str]) -> Running {
    let running = lab.command("/run/lab/bin/lab-stuck").args(args).spawn();
    wait_for_output(&running, "stuck");
    running
}

/// Nothing is left but what waits for the file system, and that goes with it.
#[track_caller]
fn nothing_is_left(lab: &Lab, file_system: Running) {
    drop(file_system);
    wait_until("the end of all that looked", || {
        ours(lab).is_empty() && pids(lab, "phoenix-nvidia").is_empty()
    });
}

/// A running container with GPU 0, whose devices alone are looked after.
fn running(rootfs: phoenix_lab::Spec) -> Option<Lab> {
    let lab = lab()?;
    node(&lab, "INSTALL=off\nCHECK_TIMEOUT=3");
    attached(&lab, 101, rootfs);
    lab.run(["pct", "start", "101"]).ok();
    Some(lab)
}

/// apt waits for it: where nobody can be asked who wants a copy, the last one tells.
#[test]
fn apts_hook_waits_seconds_for_etc_pve() {
    let Some(lab) = lab() else { return };
    let kept = "/var/lib/phoenix-nvidia/driver";
    lab.nvidia().user_space(DRIVER);
    node(&lab, "DRIVER_MODE=inject");
    let file_system = stuck(&lab, &["/etc/pve"]);
    in_time(lab.run([PROGRAM, "keep"]), 8, 0);
    assert!(!lab.exists(kept), "no tree before, and nobody to ask");
    nothing_is_left(&lab, file_system);
    lab.sh("umount -l /etc/pve").ok();
    lab.run([PROGRAM, "keep"]).ok().says("copied for containers");
    lab.sh(&format!("rm {kept}/{DRIVER}/bin/nvidia-smi")).ok();
    let file_system = stuck(&lab, &["/etc/pve"]);
    in_time(lab.run([PROGRAM, "keep"]), 10, 0).says("restored 1 files");
    nothing_is_left(&lab, file_system);
}

/// Nobody fetches by settings that could not be read, nor waits for them for ever.
#[test]
fn prefetch_waits_no_longer_for_etc_pve_than_it_says() {
    let Some(lab) = lab() else { return };
    let file_system = stuck(&lab, &["/etc/pve"]);
    in_time(lab.run([PROGRAM, "prefetch"]), 40, 2)
        .says("cannot read /etc/pve/phoenix-nvidia/default.env")
        .says("no answer within")
        .says("fix: systemctl status pve-cluster");
    nothing_is_left(&lab, file_system);
}

/// A download goes on without its proxy; what is in the cache asks nobody.
#[test]
fn prefetch_waits_seconds_for_the_proxy_and_only_for_a_download() {
    let Some(lab) = lab() else { return };
    lab.web().runfile(&Runfile::new(DRIVER));
    lab.append("/etc/pve/datacenter.cfg", "keyboard: de\n");
    let file_system = stuck(&lab, &["/etc/pve/datacenter.cfg"]);
    let said = "no http_proxy: cannot read /etc/pve/datacenter.cfg: no answer within";
    in_time(lab.run([PROGRAM, "prefetch", DRIVER]), 10, 0).says(said).says("fetched");
    in_time(lab.run([PROGRAM, "prefetch", DRIVER]), 3, 0).says("already in the cache").says_not(said);
    nothing_is_left(&lab, file_system);
}

#[test]
fn a_node_in_a_container_that_never_answers_holds_nobody() {
    let Some(lab) = running(Rootfs::Busybox.privileged()) else { return };
    let init = lab.container(101).init_pid().unwrap().to_string();
    let file_system = stuck(&lab, &["/dev/nvidia0", &init]);
    let said = "cannot check /dev/nvidia0 in the running container: no answer within";
    in_time(lab.run([PROGRAM, "101"]), 3, 0).says(said).says_not("restart");
    in_time(lab.run([PROGRAM, "plan", "101"]), 3, 0).says(said).says("Nothing to do");
    // The other nodes were looked at.
    let doctor = in_time(lab.run([PROGRAM, "doctor", "101"]), 3, 0).says(said);
    doctor.says("/dev/nvidia0 cannot be opened: no answer within").says_not("nvidiactl");
    nothing_is_left(&lab, file_system);
    lab.run([PROGRAM, "doctor", "101"]).ok().says_not("no answer");
}

#[test]
fn a_card_that_never_answers_holds_no_start_beyond_its_limit() {
    let Some(lab) = lab_with(Lab::builder().gpus(2).driver(DRIVER)) else { return };
    node(&lab, "INSTALL=off\nPRE_START_TIMEOUT=2");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let card = format!("/proc/driver/nvidia/gpus/{}/information", lab.nvidia().address(0));
    let file_system = stuck(&lab, &[&card]);
    let said = format!("cannot read {card}: no answer within ");
    let hook = || lab.run([PROGRAM, "101", "pre-start"]);
    in_time(hook(), 2, 0).says(&said).says("GPU 0: not found");
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: START_POLICY=fail\n");
    in_time(hook(), 2, 4).says(&said).says("GPU 0: not found");
    // Whoever has the other card gets it, after a wait and with a warning.
    let conf = lab.conf(101).replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=1");
    lab.write("/etc/pve/lxc/101.conf", conf);
    in_time(hook(), 2, 0).says(&said);
    assert!(lab.conf(101).contains("/dev/nvidia1 dev/nvidia1"), "{}", lab.conf(101));
    nothing_is_left(&lab, file_system);
    hook().ok().says("already configured").says_not("no answer");
}

#[test]
fn a_conf_that_never_answers_holds_no_boot() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    for ctid in [101, 102] {
        attached(&lab, ctid, Rootfs::Busybox.privileged());
    }
    let named =
        "lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,optional,create=file 0 0\n";
    lab.append("/etc/pve/lxc/102.conf", named);
    lab.nvidia().remove_node("/dev/nvidia-modeset");
    let file_system = stuck(&lab, &["/etc/pve/lxc/101.conf"]);
    // What the other one names is made.
    in_time(lab.run([PROGRAM, "prepare"]), BY_HAND, 0)
        .says("cannot read /etc/pve/lxc/101.conf: no answer within")
        .says("made /dev/nvidia-modeset");
    nothing_is_left(&lab, file_system);
}

/// A task that is stopped while a card does not answer.
#[test]
fn term_ends_the_wait_for_a_card() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let card = format!("/proc/driver/nvidia/gpus/{}/information", lab.nvidia().address(0));
    let file_system = stuck(&lab, &[&card]);
    let hook = lab.command(PROGRAM).args(["101", "pre-start"]).spawn();
    wait_until("the one that looks", || !pids(&lab, "phoenix-nvidia look").is_empty());
    let begun = Instant::now();
    hook.signal(Signal::SIGTERM);
    hook.wait().code(1);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    nothing_is_left(&lab, file_system);
}

/// Its storage's server is gone.
#[test]
fn a_dead_storage_holds_nobody() {
    let Some(lab) = running(Rootfs::Busybox.privileged()) else { return };
    lab.append("/etc/pve/storage.cfg", "\ndir: far\n\tpath /mnt/far\n\tcontent snippets\n");
    lab.files().mkdir("/mnt/far");
    let dead = lab.conf(101).replace("local:snippets/", "far:snippets/");
    lab.write("/etc/pve/lxc/101.conf", &dead);
    let file_system = stuck(&lab, &["/mnt/far"]);
    let said = "cannot check hookscript far:snippets/phoenix-nvidia: no answer within";
    let status = in_time(lab.run([PROGRAM, "status"]), BY_HAND, 0).says(said);
    status.says("unknown");
    let doctor = in_time(lab.run([PROGRAM, "doctor", "101"]), BY_HAND, 0);
    doctor.says(said);
    in_time(lab.run([PROGRAM, "attach", "101", "--gpus", "0"]), BY_HAND, 4)
        .says("cannot check /mnt/far/snippets/phoenix-nvidia on storage far: no answer within")
        .says("--storage local");
    assert_eq!(lab.conf(101), dead);
    in_time(lab.run([PROGRAM, "detach", "101"]), BY_HAND, 0).says(said).says("removed hookscript far:");
    assert!(!lab.conf(101).contains("hookscript"), "{}", lab.conf(101));
    in_time(lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--storage", "far"]), BY_HAND, 4)
        .says("on storage far: no answer within");
    // What it says helps.
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--storage", "local"]).ok();
    nothing_is_left(&lab, file_system);
}

/// The sources of its mount points, and the hookscript beside ours: whatever
/// of them does not answer keeps the next start waiting too.
#[test]
fn dead_sources_of_mount_points_hold_nobody_and_nothing_is_stopped() {
    let Some(lab) = lab_with(Lab::builder().gpus(2).driver(DRIVER)) else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    ct.wait_ready();
    // What it needs a restart for, and nothing else.
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0,1\n");
    lab.run([PROGRAM, "101", "pre-start"]).ok().says("added /dev/nvidia1");
    lab.files().mkdir("/mnt/far");
    let whole = lab.conf(101);
    let sources: String = (0..40).map(|n| format!("mp{n}: /mnt/far/{n},mp=/far/{n}\n")).collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{sources}{whole}"));
    let file_system = stuck(&lab, &["/mnt/far"]);
    let (init, said) = (ct.init_pid(), "cannot check /mnt/far/0: no answer within");
    // Doctor fails for the device that the restart is needed for.
    for (args, code) in [(vec!["status"], 0), (vec!["status", "101"], 0), (vec!["doctor", "101"], 1)] {
        let told = in_time(lab.command(PROGRAM).args(args).run(), BY_HAND, code);
        told.says("may not start again: mp0: ").says(said).says_not("does not exist");
    }
    let json = in_time(lab.run([PROGRAM, "status", "101", "--json"]), BY_HAND, 0);
    assert_eq!(json.stdout.matches("\"silent\"").count(), 40, "{json}");
    assert!(json.stdout.contains("\"hookscript\": \"yes\""), "it is asked before them: {json}");
    in_time(lab.run([PROGRAM, "plan", "101"]), BY_HAND, 6).says("restart container 101").says(said);
    in_time(lab.run([PROGRAM, "attach", "101", "--gpus", "0,1"]), BY_HAND, 0)
        .says("may not start again: mp0: ")
        .says(said);
    let hand = in_time(lab.run([PROGRAM, "101"]), BY_HAND, 6).says("101 not stopped").says(said);
    hand.says("findmnt -T /mnt/far/0");
    // The same for a hookscript that is called by ours.
    lab.write("/etc/pve/lxc/101.conf", format!("{whole}lxc.environment: HOOK_CHAIN=/mnt/far/mine\n"));
    in_time(lab.run([PROGRAM, "101"]), 2 * BY_HAND, 6).says(
        "101 not stopped: it would not start again: HOOK_CHAIN: cannot check /mnt/far/mine: no answer within",
    );
    assert_eq!((ct.init_pid(), lab.calls().iter().filter(|c| c.contains("shutdown")).count()), (init, 0));
    nothing_is_left(&lab, file_system);
    lab.write("/etc/pve/lxc/101.conf", whole);
    lab.run([PROGRAM, "101"]).ok();
    assert!(ct.init_pid().is_some() && ct.init_pid() != init);
}

/// It has the container's lock and one of the places, and looks whether its
/// container still asks for it before each command.
#[test]
fn a_dead_storage_holds_no_install() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(4)));
    node(&lab, "INSTALL_WAIT=0\nAFTER_INSTALL=none");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.append("/etc/pve/storage.cfg", "\ndir: far\n\tpath /mnt/far\n\tcontent snippets\n");
    lab.files().mkdir("/mnt/far");
    lab.run(["pct", "start", "101"]).ok();
    let file_system = stuck(&lab, &["/mnt/far"]);
    // Nobody can tell that this is another's.
    let dead = lab.conf(101).replace("local:snippets/phoenix-nvidia", "far:snippets/mine");
    lab.write("/etc/pve/lxc/101.conf", dead);
    assert!(!ours(&lab).is_empty(), "the install is under way");
    let begun = Instant::now();
    wait_until("the end of the install", || ours(&lab).is_empty());
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let log = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(log.contains("driver: installed") && !log.contains("no longer has"), "{log}");
    assert_eq!(says(&lab, 101, "outcome"), "ok");
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    nothing_is_left(&lab, file_system);
}

/// What is to be done for each process of this name. Programs like pgrep look
/// at command lines, and would wait for ever.
fn of_name(name: &str, command: &str) -> String {
    format!("for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = {name} ] && {command}; done")
}

/// Two containers whose driver a call by hand installs, the first one with
/// FUSE and a program that holds the lock on its own memory.
fn two_containers() -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "AFTER_INSTALL=none\nMAX_INSTALLS=1");
    for (id, rootfs) in [(101, Rootfs::Debian12.unprivileged()), (102, Rootfs::Debian12.privileged())] {
        attached(&lab, id, rootfs);
        lab.append(format!("/etc/pve/lxc/{id}.conf"), "lxc.environment: INSTALL=off\n");
    }
    // As Proxmox does it for the feature fuse=1.
    lab.append(
        "/etc/pve/lxc/101.conf",
        "lxc.mount.entry: /dev/fuse dev/fuse none bind,create=file,optional 0 0\n",
    );
    for id in [101, 102] {
        lab.run(["pct", "start", &id.to_string()]).ok();
        let conf = lab.conf(id).replace("INSTALL=off", "INSTALL=on");
        lab.write(format!("/etc/pve/lxc/{id}.conf"), conf);
    }
    let program = lab.files().bytes("/run/lab/bin/lab-stuck");
    lab.container(101).files().program("/usr/bin/lab-stuck", program);
    Some(lab)
}

#[test]
fn a_process_whose_environment_never_answers_holds_no_install() {
    let Some(lab) = two_containers() else { return };
    let (first, second) = (lab.container(101), lab.container(102));
    let entered = first.command("/usr/bin/lab-stuck").args(["--memory", "/tmp"]).spawn();
    wait_for_output(&entered, "stuck");
    // One that the container itself started is not looked at at all.
    let own = first.command("setsid").args(["-f", "/usr/bin/lab-stuck", "--memory", "/var/tmp"]).spawn();
    wait_for_output(&own, "stuck");
    let (one, two) = (lab.command(PROGRAM).arg("101").spawn(), lab.command(PROGRAM).arg("102").spawn());
    let other = two.wait().ok().says("driver: installed").says_not("cannot check");
    let hostile = one.wait().ok().says("driver: installed");
    let hostile = hostile
        .says("cannot check for an interrupted install in container 101: process")
        .says("no answer within");
    assert_eq!(hostile.stderr.matches("cannot check").count(), 1, "{hostile}");
    assert!(!hostile.stderr.contains("more)"), "only the one that came from outside: {hostile}");
    for id in [first, second] {
        id.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    }
    drop(other);
    lab.sh(&of_name("lab-stuck", "kill -KILL ${p#/proc/}"));
    wait_until("the end of all that looked", || pids(&lab, "phoenix-nvidia look").is_empty());
}

#[test]
fn term_ends_an_install_that_waits_for_a_process() {
    let Some(lab) = two_containers() else { return };
    let entered = lab.container(101).command("/usr/bin/lab-stuck").args(["--memory", "/tmp"]).spawn();
    wait_for_output(&entered, "stuck");
    let run = lab.command(PROGRAM).arg("101").spawn();
    let waits = of_name("exe", "ls -l $p/fd | grep environ");
    wait_until("the one that looks", || !lab.sh(&waits).stdout.is_empty());
    let begun = Instant::now();
    run.signal(Signal::SIGTERM);
    run.wait().code(1);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    lab.sh(&of_name("lab-stuck", "kill -KILL ${p#/proc/}"));
    wait_until("the end of all that looked", || pids(&lab, "phoenix-nvidia look").is_empty());
}

/// However many others there are, and whatever they have in their memory.
#[test]
fn only_the_containers_own_processes_are_looked_at() {
    let Some(lab) = two_containers() else { return };
    let many = "export PADDING=$(head -c 60000 /dev/zero | tr '\\0' x); for n in $(seq 100); do sleep 6000 & done; wait";
    let others = [
        lab.command("bash").args(["-c", many]).spawn(),
        lab.container(102).command("bash").args(["-c", many]).spawn(),
    ];
    wait_until("the others", || pids(&lab, "sleep 6000").len() >= 200);
    let traced = lab.trace_files([PROGRAM, "101"]);
    traced.output.ok().says("driver: installed");
    let calls = [traced.own, traced.others].concat();
    let at = |name: &str| {
        let of = |call: &&String| call.contains("\"/proc/") && call.contains(&format!("/{name}\""));
        calls.iter().filter(of).count()
    };
    // Nobody came into the container from outside, so nobody's memory is read.
    assert_eq!(at("environ"), 0, "{calls:#?}");
    let statuses = at("status");
    assert!(statuses > 0 && statuses < 50, "{statuses}");
    drop(others);
}
