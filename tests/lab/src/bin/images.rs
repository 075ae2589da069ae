//! `lab-images NAME…`: makes the container images that are not in the cache yet, side by side, so that no test waits
//! for them: `make test` calls it while it compiles. What cannot be made is said; a test that needs it says so again.

use phoenix_lab::{Rootfs, rootfs};
use std::io::Write;

fn main() -> std::process::ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| Rootfs::ALL.into_iter().find(|rootfs| rootfs.name() == name);
    let makers: Vec<_> = names
        .into_iter()
        .map(|name| {
            std::thread::spawn(move || {
                let made = known(&name).ok_or_else(|| format!("no image is called {name}"));
                made.and_then(|found| {
                    rootfs::make(found).map(drop).map_err(|error| format!("{name}: {error:#}"))
                })
            })
        })
        .collect();
    let mut failed = false;
    for maker in makers {
        let result = maker.join().unwrap_or_else(|_| Err("the maker of an image panicked".to_owned()));
        if let Err(reason) = result {
            failed = true;
            let _ = writeln!(std::io::stderr(), "lab-images: {reason}");
        }
    }
    if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}
