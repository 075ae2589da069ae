//! The lab's `pct` gives the answers that were recorded from the genuine one.

mod calls;
mod devices;
mod errors;
mod failures;
mod phases;
mod recording;
mod refused;
mod rewriting;
mod storage;
mod terminal;

use phoenix_lab::{Container, Lab, Output, Rootfs, Spec};
use recording::Step;

/// A container whose conf is the recorded one, byte for byte.
fn recorded(lab: &Lab, id: u32, spec: impl Into<Spec>) -> Container<'_> {
    let ct = lab.create(id, spec);
    lab.write(format!("/etc/pve/lxc/{id}.conf"), recording::text(&format!("{id}.conf")));
    ct
}

/// The four containers of the recordings.
fn all_recorded(lab: &Lab) {
    recorded(lab, 101, Rootfs::Busybox.unprivileged());
    recorded(lab, 102, Rootfs::Busybox.privileged());
    recorded(lab, 103, Rootfs::Debian12Systemd.unprivileged());
    recorded(lab, 104, Rootfs::Debian12Systemd.privileged());
}

/// Runs the recorded command and compares what it prints and how it ends.
#[track_caller]
fn replay(lab: &Lab, step: &Step) -> Output {
    let output = lab.run(step.title.split(' '));
    compare(step, &output);
    output
}

/// Compares an output with the recorded one.
#[track_caller]
fn compare(step: &Step, output: &Output) {
    assert_eq!(output.stdout, step.out, "stdout differs from the recording:\n{output}");
    assert_eq!(output.stderr, step.err, "stderr differs from the recording:\n{output}");
    assert_eq!(output.exit(), Some(step.rc), "the exit code differs from the recording:\n{output}");
}
