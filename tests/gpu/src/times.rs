//! How long things take, in one run on one machine: medians, each paired with what it is compared to.

use crate::host::{Host, attached, computes, start};
use phoenix_lab::{Lab, Rootfs};
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

/// Prints the table.
pub fn table(host: &Host) {
    println!("\nmedians of {ROUNDS} (an install: one), in ms");
    println!("{:<44} {:>9} {:>9} {:>9} {:>7}", "what", "ms", "least", "most", "ratio");
    let lab = host.lab();
    let gpus = host.cards.iter().map(|card| card.minor.to_string()).collect::<Vec<_>>();
    lab.create(100, Rootfs::Own.privileged());
    let plain = rounds(|| lab.run(["pct", "start", "100"]).ok().took, || stop(&lab, 100));
    row("start, no hookscript", &plain, &plain);

    attached(&lab, 101, Rootfs::Own.privileged(), &gpus[0]);
    row("start with an install", &[start(&lab, 101).ok().took], &plain);
    stop(&lab, 101);
    let hooked = rounds(|| start(&lab, 101).ok().took, || stop(&lab, 101));
    row("start with the hookscript, nothing to do", &hooked, &plain);

    injected(host, &gpus[0], &plain);

    start(&lab, 101).ok();
    let ct = lab.container(101);
    let smi = rounds(|| ct.exec(["nvidia-smi"]).ok().took, || ());
    row("nvidia-smi in the container", &smi, &smi);
    let version = rounds(|| ct.exec(["nvidia-smi", "--version"]).ok().took, || ());
    row("nvidia-smi --version in the container", &version, &smi);
    let enter = rounds(|| ct.exec(["true"]).ok().took, || ());
    row("lxc-attach true", &enter, &smi);
    for cards in 1..=gpus.len().min(2) {
        lab.run(["phoenix-nvidia", "attach", "101", "--gpus", &gpus[..cards].join(",")]).ok();
        lab.run(["phoenix-nvidia", "101"]).ok();
        for words in [
            &["101", "pre-start"][..],
            &["101", "post-start"],
            &["status"],
            &["plan", "101"],
            &["doctor", "101"],
        ] {
            let took = rounds(|| ours(&lab, words), || ());
            row(&format!("{} ({cards} of {} cards)", words.join(" "), gpus.len()), &took, &smi);
        }
    }
}

/// The host's driver mounted: the copy for all containers, and starts with it.
fn injected(host: &Host, gpu: &str, plain: &[Duration]) {
    let lab = host.injecting();
    let ct = attached(&lab, 101, Rootfs::Own.privileged(), gpu);
    row(
        "prepare: the host's driver is copied (once)",
        &[lab.run(["phoenix-nvidia", "prepare"]).ok().took],
        plain,
    );
    let begun = Instant::now();
    start(&lab, 101).ok();
    row("first start with it", &[begun.elapsed()], plain);
    computes(&ct);
    row("first start until CUDA has computed", &[begun.elapsed()], plain);
    stop(&lab, 101);
    let later = rounds(|| start(&lab, 101).ok().took, || stop(&lab, 101));
    row("start with it, nothing to do", &later, plain);
    start(&lab, 101).ok();
    for phase in ["pre-start", "post-start"] {
        row(&format!("101 {phase}, host's driver"), &rounds(|| ours(&lab, &["101", phase]), || ()), plain);
    }
}

fn ours(lab: &Lab, words: &[&str]) -> Duration {
    lab.command("phoenix-nvidia").args(words).run().took
}

fn stop(lab: &Lab, id: u32) {
    lab.run(["pct", "stop", &id.to_string()]).ok();
}

fn rounds(mut what: impl FnMut() -> Duration, mut after: impl FnMut()) -> Vec<Duration> {
    let begun = Instant::now();
    let mut took = Vec::new();
    while took.len() < ROUNDS && begun.elapsed() < Duration::from_secs(15) {
        took.push(what());
        after();
    }
    took.sort();
    took
}

fn row(what: &str, took: &[Duration], beside: &[Duration]) {
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let median = |all: &[Duration]| ms(all[all.len() / 2]);
    let (least, most) = (ms(took[0]), ms(took[took.len() - 1]));
    let ratio = median(took) / median(beside);
    println!("{what:<44} {:>9.1} {least:>9.1} {most:>9.1} {ratio:>7.2}", median(took));
}
