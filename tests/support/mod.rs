//! What the end-to-end tests of the program share.
#![allow(dead_code)] // each test file uses a part of it

use phoenix_lab::{Builder, Lab};

/// A lab with the program under test installed, and no install unless a test
/// asks for one; `None` where labs cannot run (the reason has been printed).
pub fn lab(builder: Builder) -> Option<Lab> {
    let lab = builder.start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    Some(lab)
}

/// The node's settings file with more lines.
pub fn node(lab: &Lab, lines: &str) {
    lab.append("/etc/default/phoenix-nvidia", format!("{lines}\n"));
}

/// A setting in a container's conf.
pub fn setting(lab: &Lab, ctid: u32, line: &str) {
    lab.append(format!("/etc/pve/lxc/{ctid}.conf"), format!("lxc.environment: {line}\n"));
}
