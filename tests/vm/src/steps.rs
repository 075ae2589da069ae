//! The steps of a container's life, each with the property that it shows. A container of every kind goes through all of
//! them in this order; a further one is a line of [`STEPS`] or [`LIVE`] and its function.

use crate::denials::Denials;
use crate::injected;
use crate::kinds::{Kind, Profile};
use crate::live;
use crate::old_processor;
use phoenix_lab::cases::{Outcome, Run};
use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Container, Errno, Lab, Output};
use std::io::Write as _;
use std::time::Duration;

type Step = fn(&Subject<'_>);

const STEPS: &[(&str, Step)] = &[
    ("the first start makes the nodes and installs the driver", first_start),
    ("the assigned card opens, the other is absent and refused", devices),
    ("post-start finds nothing to do", look),
    ("/proc/driver/nvidia shows the assigned card alone, and no way to make nodes", masks),
    ("root inside writes through none of it", written_through),
    ("a reboot from inside keeps all of it", reboot),
    ("detach takes all of it away", detach),
    ("the host's driver, mounted, is there in the first start", injected::first_start),
    ("root inside changes neither the driver nor the host's copy", injected::unchanged),
    ("root inside keeps nobody else from the DRM nodes", injected::drm_nodes),
];

/// Those that a container goes through then, but for LXC's ready-made profile, which is the generated one's base.
const LIVE: &[(&str, Step)] = &[
    ("cards come and go while it runs, and engines in it are told", live::cards),
    ("the host's newer driver comes while it runs", live::driver),
    ("root inside makes the host's /dev read-only if it is privileged, and that is undone", live::host_dev),
    ("what a mount hides is seen, and all of it goes while it runs", live::gone),
];

/// Those of a processor that is older than x86-64-v2.
const OLD: &[(&str, Step)] = &[
    ("old-processor: the first start says what is needed, and does it", injected::first_start_by_drop_in),
    ("old-processor: later starts have the driver at once, until detach", injected::later_starts_by_drop_in),
];

/// How long a start may take in an emulated machine.
const START: Duration = Duration::from_secs(300);
/// The program under test.
const PROGRAM: &str = "/kit/phoenix-nvidia";
/// Tries to write to what is mounted read-only.
const WRITE_THROUGH: &str = "/kit/write-through";
/// Where it is in a container.
pub const HOSTILE: &str = "/root/write-through";
pub const GPUS: &str = "/proc/driver/nvidia/gpus";
/// A directory of the host that is bound read-only and by nothing else protected.
const CONTROL: &str = "/srv/control";

/// The container of one kind, in a lab of its own.
pub struct Subject<'lab> {
    pub kind: &'lab Kind,
    pub lab: &'lab Lab,
    pub ct: Container<'lab>,
    pub version: String,
    /// The `information` of the host's cards, by minor.
    cards: Vec<String>,
}

/// Takes a container of a kind through its life.
pub fn all(run: &Run, kind: &Kind) {
    let name = |step: &str| format!("{kind}: {step}");
    let steps = if old_processor() {
        OLD.to_vec()
    } else if matches!(kind.profile, Profile::Named("lxc-container-default-cgns")) {
        STEPS.to_vec()
    } else {
        [STEPS, LIVE].concat()
    };
    if !steps.iter().any(|(step, _)| run.wants(&name(step))) {
        return;
    }
    let lab = lab();
    let subject = subject(&lab, kind);
    let mut denials = Denials::begin(&lab);
    for (at, (step, act)) in steps.iter().enumerate() {
        let held = run.case(&name(step), || {
            act(&subject);
            let denied = denials.more(&lab, kind);
            assert!(denied.is_empty(), "AppArmor refused {denied:#?}");
            Outcome::Passed
        });
        if at == 0 && !held {
            return;
        }
    }
}

/// The machine with the program installed, and the lab's runfile of the version that is loaded.
fn lab() -> Lab {
    let version = std::fs::read_to_string("/sys/module/nvidia/version").expect("no nvidia module is loaded");
    let lab = Lab::builder().confined().start().expect("a lab");
    lab.install(PROGRAM);
    let runfile = Runfile::new(version.trim()).build().unwrap();
    let runfile = runfile.strip_prefix(phoenix_lab::rootfs::cache().unwrap()).unwrap().display().to_string();
    let settings = "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL_WAIT=300\n";
    lab.append(
        "/etc/default/phoenix-nvidia",
        format!("NVIDIA_RUNFILE_URL=/run/lab/cache/{runfile}\n{settings}"),
    );
    lab
}

fn subject<'lab>(lab: &'lab Lab, kind: &'lab Kind) -> Subject<'lab> {
    let ct = lab.create(kind.id, kind.spec());
    let control = format!("lxc.mount.entry: {CONTROL} srv/control none bind,ro,create=dir 0 0\n");
    lab.sh(&format!("mkdir -p {CONTROL}")).ok();
    lab.append(format!("/etc/pve/lxc/{}.conf", kind.id), kind.conf() + &control);
    let informations =
        lab.sh(&format!("cd {GPUS} && for card in *; do cat $card/information; echo; done")).ok();
    let cards: Vec<String> = informations.stdout.split("\n\n").map(str::to_owned).collect();
    let version = lab.read("/sys/module/nvidia/version").trim().to_owned();
    Subject { kind, lab, ct, version, cards }
}

impl Subject<'_> {
    pub fn id(&self) -> String {
        self.kind.id.to_string()
    }

    /// The program under test.
    pub fn ours(&self, words: &[&str]) -> Output {
        self.lab.command("phoenix-nvidia").args(words).timeout(START).run()
    }

    /// `pct VERB N`
    pub fn pct(&self, verb: &str) -> Output {
        self.lab.command("pct").args([verb, &self.id()]).timeout(START).run()
    }

    /// What a line of a card's `information` says.
    pub fn card(&self, minor: usize, key: &str) -> &str {
        let line = self.cards[minor].lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {:?}", self.cards)).trim()
    }
}

/// The label of a process, as AppArmor has it.
fn label(lab: &Lab, pid: &str) -> String {
    lab.read(format!("/proc/{pid}/attr/current")).trim_end_matches(['\n', '\0']).to_owned()
}

/// No warning, but those that only say how slow an emulated machine is.
pub fn calm(output: &Output) {
    let warning = |line: &&str| line.contains("WARNING") && !line.contains("timed out after");
    assert!(!output.stdout.lines().chain(output.stderr.lines()).any(|line| warning(&line)), "{output}");
}

fn first_start(subject: &Subject<'_>) {
    let (lab, kind) = (subject.lab, subject.kind);
    subject.ours(&["attach", &subject.id(), "--gpus", "0"]).ok();
    let started = subject.pct("start").ok().says("made device nodes");
    calm(&started.says(&format!("driver: installed {}", subject.version)));
    let pid = subject.ct.init_pid().expect("process 1 of the container").to_string();
    assert_eq!(label(lab, &pid), kind.label());
    let status = lab.read(format!("/proc/{pid}/status"));
    let monitor = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent").trim();
    assert_eq!(label(lab, monitor), "/usr/bin/lxc-start (enforce)");
}

fn devices(subject: &Subject<'_>) {
    let ct = &subject.ct;
    for node in ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"] {
        assert_eq!(ct.open_node(node), Ok(()), "{node}");
    }
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    let made = ct.exec(["mknod", "/dev/made", "c", "195", "1"]);
    if subject.kind.privileged {
        made.ok();
        assert_eq!(ct.open_node("/dev/made"), Err(Errno::EPERM));
        ct.exec(["rm", "/dev/made"]).ok();
    } else {
        made.code(1).says("Operation not permitted");
    }
}

fn look(subject: &Subject<'_>) {
    calm(&subject.ours(&[&subject.id(), "post-start"]).ok().says("installed and right"));
    subject
        .ct
        .exec(["nvidia-smi", "-L"])
        .ok()
        .says(subject.card(0, "GPU UUID:"))
        .says_not(subject.card(1, "GPU UUID:"));
    subject.ours(&["doctor", &subject.id()]).ok().says("0 failure");
}

fn masks(subject: &Subject<'_>) {
    let ct = &subject.ct;
    let shown = ct.sh(&format!("cat {GPUS}/*/information")).ok();
    shown.says(subject.card(0, "GPU UUID:")).says_not(subject.card(1, "GPU UUID:"));
    ct.sh("cat /proc/driver/nvidia/params").ok().says("ModifyDeviceFiles: 0");
    subject.lab.sh("cat /proc/driver/nvidia/params").ok().says("ModifyDeviceFiles: 1");
    if let Profile::Generated { nesting: true } = subject.kind.profile {
        ct.exec(["unshare", "-Urpf", "--mount-proc", "cat", "/proc/1/comm"]).ok().says("cat");
    }
}

/// Adds to the log of the machine's console, for whoever looks into a failure.
pub fn note(text: &str) {
    let _ = std::fs::OpenOptions::new()
        .append(true)
        .open("/dev/console")
        .and_then(|mut log| log.write_all(text.as_bytes()));
}

/// Everything below a directory of the host, with what it says.
fn content(lab: &Lab, directory: &str) -> String {
    let line = format!(
        "cd {directory} && find . -type f | sort | while read -r f; do echo \"$f\"; cat \"$f\"; done"
    );
    lab.sh(&line).ok().stdout
}

fn written_through(subject: &Subject<'_>) {
    let (lab, ct) = (subject.lab, &subject.ct);
    ct.files().program(HOSTILE, std::fs::read(WRITE_THROUGH).unwrap());
    let run = |paths: &[String]| ct.command(HOSTILE).args(paths).run();
    let copies = "/run/phoenix-nvidia";
    let before = content(lab, copies);
    let card = format!("{GPUS}/{}", subject.card(0, "Bus Location:"));
    let paths = ["/proc/driver/nvidia/params".into(), GPUS.into(), format!("{card}/information"), card];
    let tried = run(&paths);
    note(&tried.to_string());
    let tried = tried.code(0);
    assert_eq!(content(lab, copies), before, "{tried}");
    masks(subject);
    // The same attempts do write where nothing but a read-only bind stands in the way.
    let control = run(&[CONTROL.to_owned()]).code(i32::from(subject.kind.privileged));
    assert_eq!(content(lab, CONTROL).is_empty(), !subject.kind.privileged, "{control}");
    lab.sh(&format!("rm -f {CONTROL}/*")).ok();
}

fn reboot(subject: &Subject<'_>) {
    let before = subject.ct.init_pid();
    subject.ct.wait_ready();
    subject.ct.exec(["reboot"]);
    subject.ct.wait_rebooted(before);
    devices(subject);
    masks(subject);
}

fn detach(subject: &Subject<'_>) {
    subject.pct("stop").ok();
    subject.ours(&["detach", &subject.id()]).ok();
    assert!(!subject.lab.conf(subject.kind.id).contains("nvidia"), "{}", subject.lab.conf(subject.kind.id));
    subject.pct("start").ok();
    assert_eq!(subject.ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    let left = "grep phoenix-nvidia /proc/mounts; ls /run/phoenix-nvidia/masks /run/phoenix-nvidia/proc";
    subject.lab.sh(left).ok().says_not(&subject.id());
    subject.pct("stop").ok();
}
