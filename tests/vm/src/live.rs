//! The steps of a container that changes while it runs: its cards, the driver that it has mounted, and what is written for
//! engines in it. And what root of a privileged one can do to the host's /dev through a node that is bound into it.

use crate::injected::{PLACES, attack};
use crate::steps::{GPUS, HOSTILE, Subject, calm, note};
use crate::{BUILT, NEWER};
use phoenix_lab::{Errno, Lab, Output};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What engines in the container read.
const DESCRIPTION: &str = "/etc/cdi/phoenix-nvidia.json";

/// A call of the program that changes the container and does not restart it.
fn changed(subject: &Subject<'_>, words: &[&str]) -> Output {
    let before = subject.ct.init_pid();
    let output = subject.ours(words).ok();
    assert_eq!(subject.ct.init_pid(), before, "it was restarted:\n{output}");
    output
}

/// Tries to open each of the words.
const OPEN: &str = r#"for f; do
    if [ ! -e "$f" ]; then echo "$f is absent"; continue; fi
    said=$( (exec 3<>"$f") 2>&1) && echo "$f opens" && continue
    case $said in *"Operation not permitted") echo "$f is refused" ;; *) echo "$said" ;; esac
done"#;

/// It opens these cards and no other one, is shown no other one, and engines in it are told of no other one.
fn has(subject: &Subject<'_>, cards: &[usize]) {
    let (ct, privileged) = (&subject.ct, subject.kind.privileged);
    let mut script = OPEN.to_owned();
    if privileged {
        // The rule, whatever node there is.
        script = format!("mknod /dev/made0 c 195 0; mknod /dev/made1 c 195 1; {OPEN}; rm /dev/made?");
    }
    let mut nodes = vec!["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"];
    let mut expected = "/dev/nvidiactl opens\n/dev/nvidia-uvm opens\n".to_owned();
    let mut add = |path: &str, other: &str| {
        for card in 0..2 {
            let what = if cards.contains(&card) { "opens" } else { other };
            expected.push_str(&format!("{path}{card} {what}\n"));
        }
    };
    add("/dev/nvidia", "is absent");
    if privileged {
        nodes.extend(["/dev/made0", "/dev/made1"]);
        add("/dev/made", "is refused");
    }
    let opened = ct.exec([&["sh", "-c", &script, "sh"], &nodes[..]].concat()).ok();
    assert_eq!(opened.stdout, expected);
    let shown = ct.sh(&format!("cat {GPUS}/*/information")).ok().stdout;
    let described = ct.read(DESCRIPTION);
    for card in 0..2 {
        let uuid = subject.card(card, "GPU UUID:");
        for text in [&shown, &described] {
            assert_eq!(text.contains(uuid), cards.contains(&card), "{card}: {text}");
        }
    }
}

/// What a program finds that runs now.
fn finds(subject: &Subject<'_>, version: &str) {
    assert_eq!(subject.ct.exec(["/root/driver-version"]).ok().stdout, format!("{version}\n{version}\n"));
}

/// Takes the features back that engines need: the profile is to stay that of the kind.
fn keep_features(subject: &Subject<'_>, before: &str) {
    let (lab, id) = (subject.lab, subject.kind.id);
    let features = |conf: &str| conf.lines().find(|line| line.starts_with("features:")).map(str::to_owned);
    let (had, has) = (features(before), features(&lab.conf(id)).expect("features for engines"));
    let had = had.map(|line| line + "\n").unwrap_or_default();
    lab.write(format!("/etc/pve/lxc/{id}.conf"), lab.conf(id).replacen(&format!("{has}\n"), &had, 1));
}

pub fn cards(subject: &Subject<'_>) {
    let id = subject.id();
    let before = subject.lab.conf(subject.kind.id);
    // DRM nodes come and go with a start.
    subject.ours(&["attach", &id, "--capabilities", "compute,utility", "--nested"]).ok();
    keep_features(subject, &before);
    calm(&subject.pct("start").ok().says("engines in the container: nvidia.com/gpu = 0, all"));
    has(subject, &[0]);
    let both = changed(subject, &["attach", &id, "--gpus", "0,1", "--live"]);
    both.says("add /dev/nvidia1").says("without a restart");
    has(subject, &[0, 1]);
    subject.ours(&["attach", &id, "--gpus", "1"]).ok();
    calm(&changed(subject, &["apply", &id]).says("take away /dev/nvidia0").says("without a restart"));
    has(subject, &[1]);
    finds(subject, &subject.version);
    subject.ct.sh(&format!("cat {DESCRIPTION}")).ok().says(PLACES[0]);
}

/// The host has booted with a newer driver, as far as it tells a version.
fn upgrade(subject: &Subject<'_>) {
    subject.lab.nvidia().built_user_space(NEWER, Path::new(BUILT));
    for (file, copy) in
        [("/sys/module/nvidia/version", "module"), ("/proc/driver/nvidia/version", "proc-driver")]
    {
        let old = &subject.version;
        let line = format!(
            "set -e; sed 's/{old}/{NEWER}/' {file} >/run/newer-{copy}; mount --bind /run/newer-{copy} {file}; grep -q {NEWER} {file}"
        );
        subject.lab.sh(&line).ok();
    }
}

pub fn driver(subject: &Subject<'_>) {
    let id = subject.id();
    upgrade(subject);
    let exchange = format!("exchange driver {} for {NEWER}", subject.version);
    calm(&changed(subject, &["apply", &id]).says(&exchange).says("without a restart"));
    finds(subject, NEWER);
    has(subject, &[1]);
    let sums = || {
        let line =
            format!("cd /run/phoenix-nvidia/driver/{NEWER} && find . -type f -exec md5sum {{}} + | sort");
        subject.lab.sh(&line).ok().stdout
    };
    let before = sums();
    assert!(before.contains("/libcuda.so."), "{before}");
    attack(subject, &PLACES.map(str::to_owned));
    assert_eq!(sums(), before);
    finds(subject, NEWER);
}

/// The machine's devtmpfs, which the labs share, with a card's node on it in the place of the lab's.
struct Devtmpfs<'lab> {
    lab: &'lab Lab,
}

const DEVTMPFS: &str = "/srv/devtmpfs";
/// Only one container at a time makes it read-only.
static ALONE: Mutex<()> = Mutex::new(());

impl Devtmpfs<'_> {
    fn with_card<'lab>(lab: &'lab Lab, id: &str) -> Devtmpfs<'lab> {
        lab.sh(&format!(
            "set -e; mkdir -p {DEVTMPFS}; mount -t devtmpfs devtmpfs {DEVTMPFS}
             mknod -m 666 {DEVTMPFS}/card-{id} c 195 0; mount --bind {DEVTMPFS}/card-{id} /dev/nvidia0"
        ))
        .ok();
        Devtmpfs { lab }
    }

    fn is_writable(&self) -> bool {
        self.lab.sh(&format!(": >{DEVTMPFS}/tried && rm {DEVTMPFS}/tried")).exit() == Some(0)
    }

    fn undo(&self) {
        self.lab.sh(&format!("mount -o remount,rw {DEVTMPFS}")).ok();
    }
}

impl Drop for Devtmpfs<'_> {
    /// Its node stays: a file that is removed while a mount holds it lets nobody make the file system read-only.
    fn drop(&mut self) {
        drop(self.lab.sh(&format!("mount -o remount,rw {DEVTMPFS}; umount /dev/nvidia0 {DEVTMPFS}")));
    }
}

pub fn host_dev(subject: &Subject<'_>) {
    let (lab, id, privileged) = (subject.lab, subject.id(), subject.kind.privileged);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let devtmpfs = Devtmpfs::with_card(lab, &id);
    changed(subject, &["attach", &id, "--gpus", "0,1", "--live"]).says("add /dev/nvidia0");
    assert!(devtmpfs.is_writable());
    let freeze = |node: &str| {
        let tried = subject.ct.command(HOSTILE).args(["--freeze", node]).run();
        note(&format!("{}: {tried}", subject.kind));
        tried
    };
    // AppArmor does not see fsconfig(2), and the kernel asks for the rights over the file system only.
    let tried = freeze("/dev/nvidia0");
    let frozen = !devtmpfs.is_writable();
    devtmpfs.undo();
    assert_eq!((tried.exit(), frozen), (Some(i32::from(!privileged)), privileged), "{tried}");
    assert!(devtmpfs.is_writable());
    if privileged {
        // The lab's own, as doctor sees it.
        let tried = freeze("/dev/nvidia1");
        let told = subject.ours(&["doctor", &id]);
        lab.sh("mount -o remount,rw /dev").ok();
        tried.code(0);
        told.says("/dev of this host is read-only");
    }
}

/// What lies below a mount of ours only another mount of the directory above shows: a look in the container, under its
/// profile.
pub fn gone(subject: &Subject<'_>) {
    let (id, ct) = (subject.id(), &subject.ct);
    let own = format!("{}/libown.so.1", PLACES[0]);
    ct.write(&own, "mine");
    let said = changed(subject, &["attach", &id, "--gpus", "0", "--no-nested", "--live"]);
    said.says("take away /dev/nvidia1")
        .says(&format!("{} in the container has files of its own", PLACES[0]))
        .says(&format!("removed {DESCRIPTION}"));
    assert!(!ct.exists("/etc/cdi"));
    ct.files().remove(&own);
    changed(subject, &["detach", &id, "--live"]).says(&format!("take away driver {NEWER}"));
    for node in ["/dev/nvidia0", "/dev/nvidiactl"] {
        assert_eq!(ct.open_node(node), Err(Errno::ENOENT), "{node}");
    }
    assert_ne!(ct.exec(["/root/driver-version"]).exit(), Some(0));
    subject.pct("stop").ok();
}
