//! Who has a copy of the driver mounted, whatever else there is on the host: it stays then.

use crate::inject::{KEPT, NEW, OLD, PROGRAM, SHOWN, create, finds, host, start};
use crate::support::chrooted;
use phoenix_lab::{Lab, Rootfs};

/// The next driver is loaded, and the container of the first one runs on.
fn upgrade(lab: &Lab) {
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    lab.driver_on_disk(NEW);
}

/// A mail server's processes in a container have a root without its mounts.
#[test]
fn a_process_of_a_chroot_hides_no_mount_of_its_container() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.privileged());
    start(&lab).ok();
    finds(&lab.container(101), OLD);
    chrooted(&lab, lab.container(101).init_pid().unwrap());
    // The copy of before, as one that was put aside and as one of an earlier driver.
    lab.sh(&format!("cd {KEPT}/{OLD} && rm libcuda.so.{OLD}")).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("restored 1 files");
    assert_eq!(lab.files().list(KEPT), [OLD, "old-1-580.95.05"]);
    upgrade(&lab);
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.105.08: copied");
    let kept = lab.files().list(KEPT);
    assert!(kept.contains(&"old-1-580.95.05".to_owned()), "{kept:?}");
    finds(&lab.container(101), OLD);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "prepare"])
        .ok()
        .says("removed its earlier copy")
        .says("driver 580.95.05: removed its copy");
    assert_eq!(lab.files().list(KEPT), [NEW]);
}

/// A process with mounts of its own, the copy of the driver among them; it is there when this returns.
fn holder(lab: &Lab, name: &str, mounts: &str, program: &str) {
    let line = format!(
        "unshare -m --propagation private sh -c 'set -e; {mounts}; mkdir -p /mnt/{name}
         mount --bind {SHOWN}/{OLD} /mnt/{name}; echo $$ >/root/{name}; exec {program}' >/root/{name}.log 2>&1 </dev/null &
         for i in $(seq 200); do [ ! -e /root/{name} ] || exit 0; sleep 0.05; done; cat /root/{name}.log; exit 1"
    );
    lab.sh(&line).ok();
}

/// The mounts of a process are all that it has, wherever they stand in its table and whichever of its threads lives.
#[test]
fn a_copy_stays_for_a_long_mount_table_and_for_a_process_without_its_first_thread() {
    let Some(lab) = host() else { return };
    let program = "int main(void) { pthread_t t; pthread_create(&t, 0, rest, 0); pthread_exit(0); }";
    lab.write(
        "/root/thread.c",
        format!("#include <pthread.h>\n#include <unistd.h>\nvoid *rest(void *x) {{ pause(); return x; }}\n{program}\n"),
    );
    lab.sh("gcc -pthread -o /usr/bin/without-first /root/thread.c && cp /bin/sleep /usr/bin/long-table").ok();
    // More than 4 MiB before the line that matters.
    let long = "l=$(printf %0200d 0); mount -t tmpfs x /mnt; mkdir /mnt/$l; mount -t tmpfs x /mnt/$l
        for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir /mnt/$l/$i-$l; mount --rbind /mnt/$l /mnt/$l/$i-$l; done";
    for (name, mounts, program) in
        [("long", long, "long-table 100000"), ("thread", "mount -t tmpfs x /mnt", "without-first")]
    {
        lab.run([PROGRAM, "prepare"]).ok();
        holder(&lab, name, mounts, program);
        upgrade(&lab);
        lab.run([PROGRAM, "prepare"]).ok().says_not("removed its copy");
        let kept = lab.files().list(KEPT);
        assert!(kept.contains(&OLD.to_owned()), "{name}: {kept:?}");
        let pid = lab.read(format!("/root/{name}")).trim().to_owned();
        if name == "long" {
            lab.sh(&format!("test $(wc -c </proc/{pid}/mountinfo) -gt 4194304")).ok();
        }
        lab.sh(&format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done")).ok();
        lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: removed its copy");
        lab.nvidia().user_space(OLD);
        lab.nvidia().set_driver(OLD);
        lab.driver_on_disk(OLD);
    }
}
