//! Makes what is made from the program's own types: man pages, completions,
//! the conffile and README's table of settings. They are checked in, so that a
//! package can be built without this, and a test fails when they are stale:
//! `cargo run -p phoenix-xtask` makes them anew.

mod completions;
mod conffile;
mod env_page;
mod man_page;
mod page;
mod readme;
#[cfg(test)]
mod tests;

use clap::CommandFactory as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Each file below the repository's root, with what it should hold.
fn files() -> Vec<(&'static str, String)> {
    let mut command = phoenix_nvidia::cli::Cli::command();
    command.build();
    let mut files = vec![
        ("packaging/man/phoenix-nvidia.8", man_page::make(&command)),
        ("packaging/man/phoenix-nvidia.env.5", env_page::make()),
        ("packaging/default/phoenix-nvidia", conffile::make()),
        ("README.md", readme::make(include_str!("../../../README.md"))),
    ];
    files.extend(completions::make());
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn main() -> ExitCode {
    for (path, content) in files() {
        let path = root().join(path);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        #[allow(clippy::disallowed_methods)] // a developer's tree, not a host
        let written = made.and_then(|()| std::fs::write(&path, content));
        if let Err(error) = written {
            let shown = path.display();
            let _ =
                std::io::Write::write_all(&mut std::io::stderr(), format!("{shown}: {error}\n").as_bytes());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
