//! The steps of a container that has the host's driver mounted, in place of one that is installed in it.

use crate::BUILT;
use crate::steps::{HOSTILE, Subject, calm, note};
use phoenix_lab::{Errno, Output};
use std::path::Path;
use std::time::{Duration, Instant};

/// The host's copies, and where they are shown.
const KEPT: &str = "/var/lib/phoenix-nvidia/driver";
const SHOWN: &str = "/run/phoenix-nvidia/driver";
/// Both places in the container.
pub const PLACES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2", "/usr/lib/x86_64-linux-gnu/x86_64"];
/// Our DRM nodes.
const NODES: &str = "/run/phoenix-nvidia/dev";
/// So many ways has the hostile program for each path.
const WAYS: usize = 10;

/// What a program finds that process 1 of the container ran, and one that runs now.
fn finds(subject: &Subject<'_>) {
    let both = format!("{0}\n{0}\n", subject.version);
    let deadline = Instant::now() + Duration::from_secs(60);
    while subject.ct.read("/at-boot").is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(subject.ct.read("/at-boot"), both);
    assert_eq!(subject.ct.exec(["/root/driver-version"]).ok().stdout, both);
}

/// A tree to the byte, with what the kernel and we have to say of each file.
fn tree(subject: &Subject<'_>, directory: &str) -> String {
    let line = format!(
        "cd {directory} && find . -type f -exec md5sum {{}} + | sort && find . -exec stat -c '%n %F %a %u %g %s %Y' {{}} + | sort"
    );
    let tree = subject.lab.sh(&line).ok().stdout;
    assert!(
        tree.contains("/libcuda.so.1 symbolic link") && tree.contains("/bin/nvidia-smi regular file 755 0 0"),
        "{tree}"
    );
    tree
}

fn trees(subject: &Subject<'_>) -> [String; 2] {
    [KEPT, SHOWN].map(|above| tree(subject, &format!("{above}/{}", subject.version)))
}

/// The host's libraries, and the program that uses them in the container.
fn user_space(subject: &Subject<'_>) {
    subject.lab.nvidia().built_user_space(&subject.version, Path::new(BUILT));
    subject.lab.nvidia().built_printer(subject.kind.id, Path::new(BUILT));
}

pub fn first_start(subject: &Subject<'_>) {
    let (lab, id, version) = (subject.lab, subject.id(), &subject.version);
    // What the steps before installed.
    let root = format!("/var/lib/vz/images/{id}/subvol-{id}-disk-0.subvol");
    lab.sh(&format!("chroot {root} nvidia-uninstall -s && chroot {root} /sbin/ldconfig")).ok();
    user_space(subject);
    // The card's DRM nodes: there is no device behind it, nor a driver behind these.
    let pci = "/run/lab/pci";
    let card = format!("{pci}/{}", subject.card(0, "Bus Location:"));
    for (file, text) in [
        ("vendor", "0x10de\n"),
        ("class", "0x030000\n"),
        ("device", "0x2684\n"),
        ("drm/card1/dev", "226:1\n"),
        ("drm/renderD129/dev", "226:129\n"),
    ] {
        lab.write(format!("{card}/{file}"), text);
    }
    lab.sh(&format!(
        "set -e; ln -s ../../../../bus/pci/drivers/nvidia {card}/driver; mount --bind {pci} /sys/bus/pci/devices
         mkdir /dev/dri; mknod -m 660 /dev/dri/card1 c 226 1; mknod -m 660 /dev/dri/renderD129 c 226 129"
    ))
    .ok();
    let attach = ["attach", &id, "--gpus", "0", "--inject", "--capabilities", "compute,utility,graphics"];
    subject.ours(&attach).ok();
    // As after a boot, from nothing, and with a umask that gives others nothing.
    let mounts =
        lab.sh(&format!("grep -c phoenix-nvidia /proc/mounts; rm -rf /run/phoenix-nvidia {KEPT}")).ok();
    assert_eq!(mounts.stdout, "0\n");
    lab.command("sh")
        .args(["-c", "umask 077; phoenix-nvidia prepare"])
        .timeout(Duration::from_secs(120))
        .run()
        .ok()
        .says(&format!("driver {version}: copied for containers"));
    calm(&subject.pct("start").ok().says("the host's, mounted").says_not("copied"));
    finds(subject);
    subject.ct.exec(["nvidia-smi", "-L"]).ok().says(subject.card(0, "GPU UUID:"));
    calm(&subject.ours(&[&id, "post-start"]).ok().says("the host's, mounted"));
}

/// The hostile program on some paths: nothing was written, and each way was tried.
pub fn attack(subject: &Subject<'_>, paths: &[String]) -> Output {
    let tried = subject.ct.command(HOSTILE).args(paths).timeout(Duration::from_secs(120)).run();
    note(&tried.to_string());
    let tried = tried.code(0);
    assert_eq!(tried.stdout.lines().count(), paths.len() * WAYS, "{tried}");
    tried
}

pub fn unchanged(subject: &Subject<'_>) {
    let (ct, version) = (&subject.ct, &subject.version);
    let before = trees(subject);
    let paths: Vec<String> = PLACES
        .iter()
        .flat_map(|at| {
            ["".to_owned(), format!("/libcuda.so.{version}"), "/bin/nvidia-smi".to_owned()]
                .map(|file| format!("{at}{file}"))
        })
        .collect();
    let tried = attack(subject, &paths);
    if subject.kind.privileged {
        // The flags of the mount are gone, and its file system is what refuses.
        tried.says(&format!("{}: mount_setattr: done; write: Read-only file system", PLACES[0]));
    } else {
        tried.says_not("mount_setattr: done").says_not("fsconfig rw: done");
    }
    assert_eq!(trees(subject), before);
    finds(subject);
    // What lies below is the container's own.
    for at in PLACES {
        let below = ct.command(HOSTILE).args(["--below", at]).run();
        note(&below.to_string());
        below.code(0).says("unmounted 1 times").says("write: DONE");
        assert!(ct.exists(format!("{at}/written-through")), "{at}");
        ct.files().remove(format!("{at}/written-through"));
    }
    assert_eq!(trees(subject), before);
    subject.ours(&["prepare"]).ok();
    assert_eq!(trees(subject), before);
    // It is there again.
    let init = ct.init_pid();
    ct.write("/at-boot", "");
    ct.exec(["reboot"]);
    ct.wait_rebooted(init);
    finds(subject);
}

/// Everything below the file system of our nodes, with its own flags.
fn nodes(subject: &Subject<'_>) -> String {
    let line = format!(
        "find {NODES} -exec stat -c '%n %F %a %u %g %t:%T' {{}} + | sort; grep ' {NODES} ' /proc/mounts"
    );
    subject.lab.sh(&line).ok().stdout
}

pub fn drm_nodes(subject: &Subject<'_>) {
    let ct = &subject.ct;
    let inside = ["/dev/dri/card1", "/dev/dri/renderD129"];
    let opens = || {
        for node in inside {
            assert_eq!(ct.open_node(node), Err(Errno::ENXIO), "{node}");
        }
    };
    opens();
    let before = nodes(subject);
    attack(subject, &inside.map(str::to_owned));
    assert_eq!(nodes(subject), before);
    // Root of a privileged container owns them, as it owns those of /dev, and the file system that they lie on: AppArmor
    // does not see fsconfig(2). It lasts until the next start.
    let hostile = format!(
        "chmod 000 {0}; chown 7:7 {0}; {HOSTILE} --freeze {0}; umount {0}; rm -f {0}; true",
        inside[0]
    );
    let tried = ct.sh(&hostile).ok();
    note(&tried.to_string());
    let privileged = subject.kind.privileged;
    assert_eq!(tried.stdout.contains("fsconfig ro: done"), privileged, "{tried}");
    assert_eq!(nodes(subject) != before, privileged, "{tried}{}", nodes(subject));
    subject.pct("stop").ok();
    calm(&subject.pct("start").ok());
    assert_eq!(nodes(subject), before);
    opens();
    subject.pct("stop").ok();
}

/// What names the places where the loader does not look by itself.
const DROP_IN: &str = "/etc/ld.so.conf.d/phoenix-nvidia.conf";

pub fn first_start_by_drop_in(subject: &Subject<'_>) {
    let (id, ct) = (subject.id(), &subject.ct);
    user_space(subject);
    subject.ours(&["attach", &id, "--gpus", "0", "--inject"]).ok();
    let started = subject.pct("start").ok();
    started
        .says("services that started before this step did not find the driver")
        .says(&format!("fix: pct reboot {id}"))
        .says("the host's, mounted");
    let at_boot = ct.read("/at-boot");
    assert!(at_boot.contains("libcuda.so.1: cannot open shared object file"), "{at_boot}");
    ct.exec(["cat", DROP_IN]).ok().says(PLACES[0]).says(PLACES[1]);
    let both = format!("{0}\n{0}\n", subject.version);
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, both);
    ct.exec(["nvidia-smi", "-L"]).ok().says(subject.card(0, "GPU UUID:"));
}

pub fn later_starts_by_drop_in(subject: &Subject<'_>) {
    let (id, ct) = (subject.id(), &subject.ct);
    // By a reboot from inside, and by pct.
    let before = ct.init_pid();
    ct.write("/at-boot", "");
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    finds(subject);
    subject.pct("stop").ok();
    ct.write("/at-boot", "");
    calm(&subject.pct("start").ok().says("the host's, mounted"));
    finds(subject);
    // The other card's node too.
    subject.ours(&["prepare"]).ok();
    subject.ours(&["doctor", &id]).ok().says("0 failure, 0 warning");
    subject.ours(&["detach", &id]).ok();
    assert!(!ct.exists(DROP_IN));
    subject.pct("stop").ok();
    // AppArmor lets us look below the mount.
    ct.write(format!("{}/libown.so.1", PLACES[0]), "mine");
    subject.ours(&["attach", &id, "--gpus", "0", "--inject"]).ok();
    subject.pct("start").says(&format!("{} in the container has files of its own", PLACES[0]));
    subject.pct("stop").ok();
}
