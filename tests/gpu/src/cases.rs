//! The cases, each on a lab of its own.

use crate::host::{Host, attached, computes, holding, listed, opens_made, start};
use phoenix_lab::cases::Outcome;
use phoenix_lab::{Errno, Lab, Rootfs, Spec};
use std::time::{Duration, Instant};

type Case = fn(&Host) -> Outcome;

/// Each with the property that it shows.
pub const ALL: &[(&str, Case)] = &[
    (
        "a privileged container computes after its first start, and the second has nothing to do",
        first_privileged,
    ),
    (
        "an unprivileged container computes after its first start, and the second has nothing to do",
        first_unprivileged,
    ),
    (
        "with the host's driver mounted a privileged container computes in its first start",
        injected_privileged,
    ),
    (
        "with the host's driver mounted an unprivileged container computes in its first start",
        injected_unprivileged,
    ),
    (
        "Podman in a privileged container gives the card to a container, and CUDA computes there",
        nested_privileged,
    ),
    (
        "Podman in an unprivileged container gives the card to a container, and CUDA computes there",
        nested_unprivileged,
    ),
    ("a card is given by UUID, address and index", by_each_name),
    ("all means every card, none the control devices and the driver", all_and_none),
    ("a card that is not assigned is absent, and refused where its node is made inside", unassigned),
    ("nvidia-smi as root in a privileged container makes no node and names no other card", no_stray_nodes),
    ("two containers share one card", shared),
    ("two containers start at once on two cards, each sees its own", two_cards),
    ("a privileged container gets and loses a card while CUDA runs in it", live_privileged),
    ("an unprivileged container gets and loses a card while CUDA runs in it", live_unprivileged),
    ("a reboot from inside keeps the card", reboot),
    ("missing nodes of the host are made before the start", nodes),
    ("doctor finds a missing rule, and nvidia-smi fails as the manual says", doctor_rule),
    ("doctor finds a library of another version in front", doctor_version),
    ("doctor finds a node that the host lacks", doctor_node),
    ("plan, status and doctor agree that a started container is right", agree),
];

fn first(host: &Host, spec: Spec) -> Outcome {
    let lab = host.lab();
    let card = &host.cards[0];
    let ct = attached(&lab, 101, spec, &card.minor.to_string());
    start(&lab, 101).ok().says(&format!("driver: installed {}", host.version)).says_not("WARNING");
    assert_eq!(listed(&ct), [card.uuid.as_str()]);
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    start(&lab, 101).ok().says("already configured").says("installed and right").says_not("WARNING");
    assert_eq!(lab.conf(101), conf);
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    Outcome::Passed
}

fn first_privileged(host: &Host) -> Outcome {
    first(host, Rootfs::Own.privileged())
}

fn first_unprivileged(host: &Host) -> Outcome {
    first(host, Rootfs::Own.unprivileged())
}

fn injected(host: &Host, spec: Spec) -> Outcome {
    let lab = host.injecting();
    let card = &host.cards[0];
    let ct = attached(&lab, 101, spec, &card.minor.to_string());
    start(&lab, 101).ok().says("copied for containers").says("the host's, mounted").says_not("WARNING");
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    assert_eq!(listed(&ct), [card.uuid.as_str()]);
    ct.sh("test ! -e /var/lib/nvidia/log").ok();
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab, 101)
        .ok()
        .says("already configured")
        .says("the host's, mounted")
        .says_not("copied")
        .says_not("WARNING");
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    let before = ct.init_pid();
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    lab.run(["phoenix-nvidia", "101"]).ok().says(&format!("verify: {} works", host.version));
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run(["phoenix-nvidia", "doctor", "101"]));
    Outcome::Passed
}

fn injected_privileged(host: &Host) -> Outcome {
    injected(host, Rootfs::Own.privileged())
}

fn injected_unprivileged(host: &Host) -> Outcome {
    injected(host, Rootfs::Own.unprivileged())
}

/// The kit's own root is the image: what it needs of it for a program of glibc, without an engine.
fn nested(host: &Host, spec: Spec) -> Outcome {
    let lab = host.injecting();
    let card = &host.cards[0];
    let ct = attached(&lab, 101, spec, &card.minor.to_string());
    lab.run(["phoenix-nvidia", "attach", "101", "--nested"]).ok();
    start(&lab, 101).ok().says("nvidia.com/gpu = 0, all").says_not("WARNING");
    assert_eq!(computes(&ct), [card.uuid.as_str()]);
    // An init would mount these. The image: Debian's C library, a shell, and the CUDA program.
    ct.sh("set -e; mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run
         i=/srv/image; mkdir -p $i/bin $i/lib64 $i/lib/x86_64-linux-gnu $i/root $i/tmp $i/etc $i/proc $i/sys $i/dev
         cp /usr/lib/lab/busybox $i/bin/sh; cp -L /lib64/ld-linux-x86-64.so.2 $i/lib64/; cp /root/vector-add $i/root/
         for name in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libgcc_s.so.1; do
             cp -L /lib/x86_64-linux-gnu/$name $i/lib/x86_64-linux-gnu/
         done
         tar -C $i -c . | podman --storage-driver=vfs import - kit/image")
        .ok();
    for device in [
        "nvidia.com/gpu=0".to_owned(),
        "nvidia.com/gpu=all".to_owned(),
        format!("nvidia.com/gpu={}", card.uuid),
    ] {
        let words = [
            "--storage-driver=vfs",
            "run",
            "--rm",
            "--network=none",
            "--cgroups=disabled",
            "--device",
            &device,
        ];
        let run = |program: &str| ct.command("podman").args(words).args(["kit/image", program]).run().ok();
        let out = run("/root/vector-add");
        assert_eq!(out.stdout, format!("devices 1\n{} ok\n", card.uuid), "{device}: {out}");
        run("nvidia-smi").says(&host.version);
    }
    Outcome::Passed
}

fn nested_privileged(host: &Host) -> Outcome {
    nested(host, Rootfs::Own.privileged())
}

fn nested_unprivileged(host: &Host) -> Outcome {
    nested(host, Rootfs::Own.unprivileged())
}

fn by_each_name(host: &Host) -> Outcome {
    let lab = host.lab();
    let card = host.cards.last().unwrap();
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), "none");
    start(&lab, 101).ok();
    for name in [card.uuid.clone(), card.address.clone(), card.minor.to_string()] {
        lab.run(["phoenix-nvidia", "attach", "101", "--gpus", &name]).ok();
        lab.run(["phoenix-nvidia", "101"]).ok();
        assert_eq!(computes(&ct), [card.uuid.as_str()], "{name}");
        lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "none"]).ok();
        lab.run(["phoenix-nvidia", "101"]).ok();
        assert_eq!(ct.open_node(&format!("/dev/nvidia{}", card.minor)), Err(Errno::ENOENT), "{name}");
    }
    Outcome::Passed
}

fn all_and_none(host: &Host) -> Outcome {
    let lab = host.lab();
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), "all");
    start(&lab, 101).ok();
    let mut all: Vec<&str> = host.cards.iter().map(|card| card.uuid.as_str()).collect();
    all.sort_unstable();
    assert_eq!(listed(&ct), all);
    assert_eq!(computes(&ct), all);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "none"]).ok();
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidiactl"), Ok(()));
    for card in &host.cards {
        assert_eq!(ct.open_node(&format!("/dev/nvidia{}", card.minor)), Err(Errno::ENOENT));
    }
    ct.exec(["nvidia-smi"]).code(6);
    Outcome::Passed
}

fn unassigned(host: &Host) -> Outcome {
    let lab = host.lab();
    let other = host.cards.last().unwrap();
    let gpus = if host.cards.len() > 1 { host.cards[0].minor.to_string() } else { "none".into() };
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), &gpus);
    start(&lab, 101).ok();
    assert_eq!(ct.open_node(&format!("/dev/nvidia{}", other.minor)), Err(Errno::ENOENT));
    assert_eq!(opens_made(&ct, other.minor), Err(Errno::EPERM));
    if host.cards.len() > 1 {
        assert_eq!(opens_made(&ct, host.cards[0].minor), Ok(()));
    }
    Outcome::Passed
}

fn no_stray_nodes(host: &Host) -> Outcome {
    if host.cards.len() < 2 {
        return Outcome::NotRun("one card only: there is none that is not assigned".into());
    }
    let lab = host.lab();
    let (own, other) = (&host.cards[0], &host.cards[1]);
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), &own.minor.to_string());
    start(&lab, 101).ok();
    ct.exec(["nvidia-smi"]).ok();
    assert_eq!(computes(&ct), [own.uuid.as_str()]);
    assert!(!ct.sh("ls /dev").ok().stdout.lines().any(|name| name == format!("nvidia{}", other.minor)));
    let text = ct.sh("cat /proc/driver/nvidia/gpus/*/information").ok().stdout;
    assert!(text.contains(&own.uuid) && !text.contains(&other.uuid), "{text}");
    Outcome::Passed
}

fn shared(host: &Host) -> Outcome {
    let lab = host.lab();
    let card = &host.cards[0];
    let minor = card.minor.to_string();
    let cts = [101, 102].map(|id| attached(&lab, id, Rootfs::Own.unprivileged(), &minor));
    for ct in &cts {
        start(&lab, ct.id()).ok();
    }
    let both: Vec<_> = cts.iter().map(computes).collect();
    assert_eq!(both, [[card.uuid.as_str()], [card.uuid.as_str()]]);
    lab.run(["phoenix-nvidia", "status"]).ok();
    Outcome::Passed
}

fn two_cards(host: &Host) -> Outcome {
    if host.cards.len() < 2 {
        return Outcome::NotRun("one card only".into());
    }
    let lab = host.lab();
    let cts = [0, 1].map(|n| {
        let spec = if n == 0 { Rootfs::Own.privileged() } else { Rootfs::Own.unprivileged() };
        attached(&lab, 101 + n, spec, &host.cards[n as usize].minor.to_string())
    });
    let runs = cts.map(|ct| {
        let words = ["start".to_owned(), ct.id().to_string()];
        lab.command("pct").args(words).timeout(std::time::Duration::from_secs(120)).spawn()
    });
    for run in runs {
        run.wait().ok();
    }
    for (ct, card) in cts.iter().zip(&host.cards) {
        assert_eq!(listed(ct), [card.uuid.as_str()]);
        assert_eq!(computes(ct), [card.uuid.as_str()]);
    }
    Outcome::Passed
}

/// The process that runs all the time keeps its card and is not disturbed.
fn live(host: &Host, spec: Spec) -> Outcome {
    if host.cards.len() < 2 {
        return Outcome::NotRun("one card only: there is none to be added".into());
    }
    let lab = host.injecting();
    let (own, other) = (&host.cards[0], &host.cards[1]);
    let (one, two) = (own.minor.to_string(), format!("{},{}", own.minor, other.minor));
    let change = |gpus: &str| lab.run(["phoenix-nvidia", "attach", "101", "--gpus", gpus, "--live"]);
    let node = format!("/dev/nvidia{}", other.minor);
    let ct = attached(&lab, 101, spec, &one);
    start(&lab, 101).ok();
    let init = ct.init_pid();
    let mut runs = holding(&ct);
    assert_eq!(computes(&ct), [own.uuid.as_str()]);

    let added = change(&two).ok().says(&format!("add {node}"));
    let mut both = [own.uuid.as_str(), other.uuid.as_str()];
    both.sort_unstable();
    assert_eq!(computes(&ct), both);
    assert_eq!(listed(&ct), both);
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run(["phoenix-nvidia", "doctor", "101"]));

    // Whoever uses the card is named, and keeps it.
    let uses = holding(&ct);
    let refused =
        change(&one).code(4).says(&format!("GPU {} is in use in container 101: process", other.minor));
    refused.says("(holds-cards)").says("--force");
    assert_eq!(computes(&ct), both);
    drop(uses);
    let deadline = Instant::now() + Duration::from_secs(30);
    let taken = loop {
        let out = lab.run(["phoenix-nvidia", "apply", "101"]);
        if out.exit() == Some(0) {
            break out.says(&format!("take away {node}"));
        }
        assert!(Instant::now() < deadline, "{out}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(computes(&ct), [own.uuid.as_str()]);
    assert_eq!(listed(&ct), [own.uuid.as_str()]);
    assert_eq!(ct.open_node(&node), Err(Errno::ENOENT));
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run(["phoenix-nvidia", "doctor", "101"]));
    assert!(!runs.ended(), "{}", runs.so_far());
    assert_eq!(ct.init_pid(), init, "it was restarted");
    println!("    a card added in {:.0?}, taken away in {:.0?}", added.took, taken.took);
    Outcome::Passed
}

fn live_privileged(host: &Host) -> Outcome {
    live(host, Rootfs::Own.privileged())
}

fn live_unprivileged(host: &Host) -> Outcome {
    live(host, Rootfs::Own.unprivileged())
}

fn reboot(host: &Host) -> Outcome {
    let lab = host.lab();
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), "0");
    start(&lab, 101).ok();
    let before = ct.init_pid();
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert_eq!(computes(&ct).len(), 1);
    Outcome::Passed
}

fn nodes(host: &Host) -> Outcome {
    let lab = host.lab();
    lab.sh("rm -r /dev/nvidia*").ok();
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), "0");
    start(&lab, 101).ok().says("made device nodes");
    assert_eq!(computes(&ct).len(), 1);
    Outcome::Passed
}

/// The findings of doctor that are not well, as `check level`.
fn bad(lab: &Lab) -> Vec<String> {
    let out = lab.run(["phoenix-nvidia", "doctor", "101"]);
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let level = words.next().filter(|word| matches!(*word, "failure" | "warning"))?;
        Some(format!("{} {level}", words.next()?))
    };
    // The kit's host has no modinfo of this kernel and no boot unit: those are its own.
    let of_the_container = out.stdout.lines().skip_while(|l| !l.starts_with("container")).filter_map(line);
    let mut bad: Vec<String> = of_the_container.collect();
    bad.dedup();
    bad
}

fn healthy(host: &Host, spec: Spec) -> Lab {
    let lab = host.lab();
    attached(&lab, 101, spec, "0");
    start(&lab, 101).ok();
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run(["phoenix-nvidia", "doctor", "101"]));
    lab
}

fn doctor_rule(host: &Host) -> Outcome {
    let lab = healthy(host, Rootfs::Own.privileged());
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    let conf = lab.conf(101);
    let bare: Vec<&str> = conf.lines().filter(|line| !line.contains("devices.allow")).collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{}\n", bare.join("\n")));
    start(&lab, 101).ok();
    assert_eq!(bad(&lab), ["hookscript warning", "rules failure"]);
    lab.container(101).exec(["nvidia-smi"]).code(255).says("Unknown Error");
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert_eq!(computes(&lab.container(101)).len(), 1);
    Outcome::Passed
}

fn doctor_version(host: &Host) -> Outcome {
    let lab = healthy(host, Rootfs::Own.privileged());
    let line = format!(
        "cd /usr/lib/*-linux-gnu && cp libnvidia-ml.so.{0} libnvidia-ml.so.470.1.1 && ln -sf libnvidia-ml.so.470.1.1 libnvidia-ml.so.1",
        host.version
    );
    lab.container(101).sh(&line).ok();
    assert_eq!(bad(&lab), ["version failure"]);
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert_eq!(bad(&lab), Vec::<String>::new());
    assert_eq!(computes(&lab.container(101)).len(), 1);
    Outcome::Passed
}

fn doctor_node(host: &Host) -> Outcome {
    let lab = healthy(host, Rootfs::Own.privileged());
    lab.sh("rm /dev/nvidia-uvm").ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("/dev/nvidia-uvm is missing");
    lab.run(["phoenix-nvidia", "prepare"]).ok();
    assert_eq!(bad(&lab), Vec::<String>::new());
    Outcome::Passed
}

fn agree(host: &Host) -> Outcome {
    let lab = healthy(host, Rootfs::Own.unprivileged());
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
    lab.run(["phoenix-nvidia", "status", "101"]).ok().says(" ok").says(&host.version);
    lab.run(["phoenix-nvidia", "101"]).ok().says_not("to do");
    Outcome::Passed
}
