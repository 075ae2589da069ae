//! The container is not trusted, and may stop at any moment.
use crate::common::{PROGRAM, agrees, apply, assign, running, table};

use phoenix_lab::{Errno, Lab, Rootfs, Spec};
use std::time::{Duration, Instant};

/// What of the host could be changed by what a container has in the place of its /dev. The record of the run is written
/// each time: when is left out.
fn host(lab: &Lab) -> String {
    lab.sh(
        "ls -l /dev /etc /run/phoenix-nvidia /run/phoenix-nvidia/proc/101 /run/phoenix-nvidia/proc/101/gpus | \
             sed 's/ [A-Z][a-z]* *[0-9]* [0-9:]* state$/ state/'; \
         md5sum /etc/pve/lxc/101.conf /var/lib/lxc/101/config; sed 's/^[0-9]* [0-9]* //' /proc/self/mountinfo",
    )
    .ok()
    .stdout
}

/// Container 101 with GPU 0 is made hostile by a line of shell as its root; a second card is then refused, nothing has
/// changed, and the card comes once that is undone.
#[track_caller]
fn refuses(spec: Spec, hostile: &str, said: &str, back: &str) {
    let Some(lab) = running(2, spec, "0") else { return };
    let ct = lab.container(101);
    ct.sh(hostile).ok();
    assign(&lab, "0,1");
    let inside = || ct.sh("ls -lR /dev /elsewhere 2>/dev/null | grep -v total").stdout;
    let before = (host(&lab), table(&lab, &ct), inside());
    apply(&lab, &[]).code(4).says(said).says("fix: ");
    let after = (host(&lab), table(&lab, &ct), inside());
    assert_eq!(after.0, before.0);
    assert_eq!(after.1, before.1);
    assert_eq!(after.2, before.2);
    ct.sh(back).ok();
    apply(&lab, &[]).ok().says("add /dev/nvidia1");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

const LINK: &str = "mkdir /elsewhere && umount -l /dev && mv /dev /dev.was && ln -s /elsewhere /dev";
const LINK_BACK: &str =
    "rm /dev && mkdir /dev && mount -t tmpfs -o mode=755 dev /dev && mknod /dev/null c 1 3";

#[test]
fn a_link_in_the_place_of_dev_is_not_followed() {
    refuses(Rootfs::Busybox.privileged(), LINK, "/dev is a symbolic link in the container", LINK_BACK);
    let back = LINK_BACK.replace("mknod /dev/null c 1 3", "touch /dev/null");
    refuses(Rootfs::Busybox.unprivileged(), LINK, "/dev is a symbolic link in the container", &back);
}

#[test]
fn a_link_in_the_place_of_a_node_is_not_followed() {
    for spec in [Rootfs::Busybox.privileged(), Rootfs::Busybox.unprivileged()] {
        let said = "/dev/nvidia1 is a symbolic link in the container";
        refuses(spec, "ln -s /etc/passwd /dev/nvidia1", said, "rm /dev/nvidia1");
    }
}

#[test]
fn a_directory_in_the_place_of_a_node_stays() {
    let said = "/dev/nvidia1 in the container";
    refuses(Rootfs::Busybox.privileged(), "mkdir /dev/nvidia1", said, "rmdir /dev/nvidia1");
}

#[test]
fn a_full_file_system_is_told() {
    let fill = "mount -t tmpfs -o mode=755,nr_inodes=2 small /dev && touch /dev/full";
    let back = "umount /dev";
    refuses(Rootfs::Busybox.privileged(), fill, "no space left in the container", back);
    refuses(Rootfs::Busybox.unprivileged(), fill, "no space left in the container", back);
}

#[test]
fn a_read_only_file_system_is_told() {
    let said = "on a read-only file system in the container";
    let (hostile, back) = ("mount -o remount,bind,ro /dev", "mount -o remount,bind,rw /dev");
    refuses(Rootfs::Busybox.privileged(), hostile, said, back);
    refuses(Rootfs::Busybox.unprivileged(), hostile, said, back);
}

/// What the container has in the place of the directory of MIG's nodes keeps no card, and stays.
#[test]
fn what_is_in_the_place_of_the_directory_of_migs_nodes_stays() {
    let away = "umount /dev/nvidia-caps/nvidia-cap2 && rm -r /dev/nvidia-caps";
    let go = "at its next start: /dev/nvidia-caps/nvidia-cap2 go";
    let come = "at its next start: /dev/nvidia-caps/nvidia-cap2 come";
    let (at, away) = ("/dev/nvidia-caps/own", &format!("{away} && mkdir /elsewhere && touch /elsewhere/own"));
    for (hostile, there, waits) in [
        // The node comes and goes beside what is there.
        (&format!("mount -t tmpfs -o mode=755 own /dev/nvidia-caps && touch {at}"), at, ["", ""]),
        (&format!("{away} && ln -s /elsewhere /dev/nvidia-caps"), "/elsewhere/own", [go, come]),
        (&format!("{away} && mkdir /dev/nvidia-caps && touch {at}"), at, ["", ""]),
        (&format!("{away} && touch /dev/nvidia-caps"), "/dev/nvidia-caps", [go, come]),
    ] {
        for spec in [Rootfs::Busybox.privileged(), Rootfs::Busybox.unprivileged()] {
            let Some(lab) = running(1, spec, "0") else { return };
            let ct = lab.container(101);
            ct.sh(hostile).ok();
            let host = || lab.sh("ls -l /dev/nvidia-caps").ok().stdout;
            let before = host();
            let says = |words: &[&str], said: &str, waits: &str| {
                let out = lab.run([&[PROGRAM], words].concat()).ok().says(said).says(waits);
                assert_eq!(out.stderr.contains("next start"), !waits.is_empty(), "{hostile}: {out}");
                assert_eq!(out.stderr.contains("fix: pct reboot 101"), !waits.is_empty(), "{hostile}: {out}");
                ct.sh(&format!("[ -e {there} ]")).ok();
                assert_eq!(host(), before);
            };
            says(&["detach", "101", "--live"], "take away /dev/nvidia0", waits[0]);
            assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
            says(&["attach", "101", "--gpus", "0", "--live"], "add /dev/nvidia0", waits[1]);
            assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
        }
    }
}

/// A file system that never answers is not touched, and holds nobody.
#[test]
fn a_fuse_file_system_is_not_touched() {
    for over in ["/dev", "/dev/nvidia0"] {
        let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
        let init = lab.container(101).init_pid().unwrap().to_string();
        let stuck = lab.command("/run/lab/bin/lab-stuck").args([over, &init]).spawn();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !stuck.so_far().contains("stuck") {
            assert!(Instant::now() < deadline, "{}", stuck.so_far());
            std::thread::sleep(Duration::from_millis(20));
        }
        // What goes is where it is; what comes is there too, or beside it.
        assign(&lab, if over == "/dev" { "0,1" } else { "1" });
        let before = host(&lab);
        let begun = Instant::now();
        apply(&lab, &[]).code(4).says("file system of its own (fuse)").says("nothing is mounted there");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert_eq!(host(&lab), before);
        drop(stuck);
    }
}

/// A lower layer that never answers looks like no FUSE: the step has a deadline.
#[test]
fn a_file_system_that_never_answers_in_disguise_holds_nobody() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    let ct = lab.container(101);
    ct.sh("mkdir /lower").ok();
    let init = ct.init_pid().unwrap().to_string();
    let stuck = lab.command("/run/lab/bin/lab-stuck").args(["--lower", "/lower", &init]).spawn();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !stuck.so_far().contains("stuck") {
        assert!(Instant::now() < deadline, "{}", stuck.so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    ct.exec(["mount", "-t", "overlay", "o", "-o", "lowerdir=/lower:/tmp", "/dev"]).ok();
    assign(&lab, "0,1");
    let before = host(&lab);
    let begun = Instant::now();
    let out = apply(&lab, &[]);
    assert!(begun.elapsed() < Duration::from_secs(55), "{:?}", begun.elapsed());
    let out = out.code(4);
    assert_eq!(host(&lab), before, "{out}");
    drop(stuck);
}

/// The program that sets rules ends the container, and fails.
const STOPS: &str = "#!/bin/sh\n/usr/bin/lxc-stop -k -n 101\nexit 1\n";

#[test]
fn a_container_that_stops_in_the_middle_is_left_alone_and_the_conf_is_as_wanted() {
    for (assignment, cards) in [("0,1", &["/dev/nvidia0", "/dev/nvidia1"][..]), ("none", &[])] {
        let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
        lab.replace_program("/usr/bin/lxc-cgroup", STOPS);
        assign(&lab, assignment);
        let out = lab.run([PROGRAM, "apply", "101"]).ok();
        out.says("container 101 has stopped meanwhile: its next start has what its settings say")
            .says_not("rolled back");
        let conf = lab.conf(101);
        for card in ["/dev/nvidia0", "/dev/nvidia1"] {
            assert_eq!(conf.contains(&format!("lxc.mount.entry: {card} ")), cards.contains(&card), "{conf}");
        }
        lab.container(101).wait_running(false, Duration::from_secs(20));
        lab.run(["pct", "start", "101"]).ok();
        for card in ["/dev/nvidia0", "/dev/nvidia1"] {
            let wanted = if cards.contains(&card) { Errno::ENXIO } else { Errno::ENOENT };
            assert_eq!(lab.container(101).open_node(card), Err(wanted));
        }
    }
}

/// The first process of a container, whose first thread ends once it is asked to.
const THREADS: &str = "#include <pthread.h>\n#include <signal.h>\n#include <unistd.h>\n\
    static void *other(void *x) { for (;;) pause(); }\n\
    int main(void) { sigset_t s; int n; pthread_t t; sigemptyset(&s); sigaddset(&s, SIGUSR1);\n\
      pthread_sigmask(SIG_BLOCK, &s, 0); pthread_create(&t, 0, other, 0); sigwait(&s, &n); pthread_exit(0); }\n";

/// It lives, and nothing can be done in it.
#[test]
fn a_container_whose_first_thread_has_ended_has_not_stopped() {
    let Some(lab) = running(3, Rootfs::Busybox.privileged(), "0") else { return };
    lab.run(["pct", "stop", "101"]).ok();
    lab.write("/root/threads.c", THREADS);
    lab.sh("gcc -static -pthread -o /root/threads /root/threads.c").ok();
    lab.container(101).files().program("/threads", lab.files().bytes("/root/threads"));
    lab.append("/etc/pve/lxc/101.conf", "lxc.init.cmd: /threads\n");
    lab.run(["pct", "start", "101"]).ok();
    let init = lab.container(101).init_pid().unwrap();
    lab.sh("mv /usr/bin/lxc-cgroup /root/lxc-cgroup").ok();
    let script = format!("#!/bin/sh\n/root/lxc-cgroup \"$@\" && kill -USR1 {init} && sleep 0.3\n");
    lab.replace_program("/usr/bin/lxc-cgroup", script);
    assign(&lab, "0,1,2");
    let conf = lab.conf(101);
    let out = lab.run([PROGRAM, "apply", "101"]).code(4).says("its first process cannot be entered");
    let out = out.says("fix: phoenix-nvidia 101").says_not("has stopped meanwhile");
    out.says("not rolled back: mount /dev/nvidia1").says("rolled back: the device rule of /dev/nvidia1");
    assert_eq!(lab.conf(101), conf);
}

/// A step that fails undoes those before it, the last one first.
#[test]
fn a_failed_step_undoes_all() {
    for (spec, assignment, rule) in [
        (Rootfs::Busybox.privileged(), "0,1,2", "allow c 195:2"),
        (Rootfs::Busybox.unprivileged(), "0,1,2", "allow c 195:2"),
        (Rootfs::Busybox.privileged(), "2", "deny c 195:0"),
    ] {
        let Some(lab) = running(3, spec, "0") else { return };
        lab.sh("mv /usr/bin/lxc-cgroup /root/lxc-cgroup").ok();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'{rule}'*) echo no such luck >&2; exit 1;; esac\nexec /root/lxc-cgroup \"$@\"\n"
        );
        lab.replace_program("/usr/bin/lxc-cgroup", script);
        assign(&lab, assignment);
        let conf = lab.conf(101);
        let out = apply(&lab, &[]).code(4).says("no such luck").says("rolled back: mount /dev/nvidia2");
        out.says_not("not rolled back");
        assert_eq!(lab.conf(101), conf);
        lab.sh("mv /root/lxc-cgroup /usr/bin/lxc-cgroup").ok();
        // As it runs, and as the conf has it but for the setting.
        assign(&lab, "0");
        agrees(&lab, &[0], 3);
        assert_eq!(lab.run([PROGRAM, "plan", "101"]).exit(), Some(0));
    }
}

/// A conf that cannot be written is found before anything is done.
#[test]
fn without_quorum_nothing_changes() {
    let Some(lab) = crate::support::lab(Lab::builder().gpus(2)) else { return };
    let pve = lab.pmxcfs();
    lab.append("/etc/default/phoenix-nvidia", "INSTALL=off\n");
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let other = lab.conf(101).replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=0,1\n");
    lab.write("/etc/pve/lxc/101.conf", other);
    pve.lose_quorum(&lab);
    apply(&lab, &[]).code(4).says("no quorum");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    pve.find_quorum(&lab);
    apply(&lab, &[]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

/// What root inside mounts at a card's path does not choose which rule goes: its own /dev/null would, and the card's
/// would stay.
#[test]
fn another_device_in_the_place_of_a_card_keeps_its_rule_and_the_card_goes() {
    for spec in [Rootfs::Busybox.privileged(), Rootfs::Busybox.unprivileged()] {
        let Some(lab) = running(2, spec, "0,1") else { return };
        let ct = lab.container(101);
        ct.sh("mount --bind /dev/null /dev/nvidia1").ok();
        // A mount on that mount would show at /dev/null too.
        apply(&lab, &[]).code(4).says("cannot mount /dev/nvidia1").says("/dev/nvidia1 is busy").says("fix: ");
        assert_eq!(ct.open_node("/dev/null"), Ok(()));
        assign(&lab, "0");
        let out =
            apply(&lab, &[]).code(4).says("cannot take away /dev/nvidia1").says("fix: phoenix-nvidia 101");
        out.says("rolled back: the device rule of /dev/nvidia1");
        assert_eq!(ct.open_node("/dev/null"), Ok(()));
        ct.sh("umount /dev/nvidia1; umount /dev/nvidia1").ok();
        apply(&lab, &[]).ok().says("take away /dev/nvidia1");
        assert_eq!(ct.open_node("/dev/null"), Ok(()));
        ct.sh("rm -f /dev/nvidia1").ok();
        agrees(&lab, &[0], 2);
    }
}

/// Nodes that root inside has made look as if they were taken away, and a step that it lets fail brings them back: no
/// rule comes with that which was not there.
#[test]
fn a_way_back_opens_no_device_that_the_container_chose() {
    let Some(lab) = running(3, Rootfs::Busybox.privileged(), "0") else { return };
    let ct = lab.container(101);
    // No driver has 120:7. More mounts than are taken away at one place.
    ct.sh(
        "mkdir /made && mount -t tmpfs made /made && mount --make-private /made && cd /made && \
         mknod card c 195 1 && mknod other c 120 7 && mknod far c 195 9 && \
         touch /dev/nvidia1 /dev/nvidia8 /dev/nvidia9 && mount --bind card /dev/nvidia1 && \
         mount --bind other /dev/nvidia8 && for n in $(seq 17); do mount --bind far /dev/nvidia9 || exit 1; done",
    )
    .ok();
    let shut = |told: &str| {
        for node in ["/made/card", "/made/other", "/made/far", "/dev/nvidia1", "/dev/nvidia8"] {
            let opened = ct.open_node(node);
            assert!(matches!(opened, Err(Errno::EPERM | Errno::ENOENT)), "{node}: {opened:?}: {told}");
        }
    };
    shut("before");
    let conf = lab.conf(101);
    let out = apply(&lab, &[]).code(4).says("cannot take away /dev/nvidia9");
    shut(&out.stderr);
    assert_eq!(lab.conf(101), conf);
    ct.sh("while umount /dev/nvidia9 2>/dev/null; do :; done").ok();
    apply(&lab, &[]).ok().says_not("/dev/nvidia8");
    shut("after");
    ct.sh("umount /dev/nvidia8; rm -f /dev/nvidia[189]").ok();
    agrees(&lab, &[0], 3);
}

/// Whoever started the process inside may have been killed.
#[test]
fn a_step_that_nobody_waits_for_ends_by_itself() {
    let Some(lab) = running(1, Rootfs::Busybox.privileged(), "0") else { return };
    for word in ["mount", "users"] {
        let line = format!(
            "mkfifo /run/asked-{word}; exec 3<>/run/asked-{word}; timeout 50 {PROGRAM} live {word} <&3"
        );
        // SIGALRM.
        assert_eq!(lab.sh(&line).exit(), Some(128 + 14), "{word}");
    }
}
