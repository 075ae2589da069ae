//! `lab-pmxcfs DIRECTORY NODE [CONTROL]`: serves /etc/pve in a lab, until it
//! is killed. Says `serving` on stdout once it does.

use anyhow::{Result, bail};
use std::io::Write as _;
use std::path::PathBuf;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, node, control) = match arguments.as_slice() {
        [directory, node] => (directory, node, None),
        [directory, node, control] => (directory, node, Some(PathBuf::from(control))),
        _ => bail!("usage: lab-pmxcfs DIRECTORY NODE [CONTROL]"),
    };
    let served = phoenix_lab::fuse::mount(directory.as_ref(), node, control)?;
    let mut out = std::io::stdout();
    writeln!(out, "serving")?;
    out.flush()?;
    served.join()?;
    Ok(())
}
