//! phoenix-nvidia on real cards: `gpu-tests [WORDS…]` runs each case whose name holds one of the words (all without),
//! one after the other, then takes the times, and prints both as tables. It runs out of a kit (`tests/gpu/run`), in
//! the lab over the machine's real nodes, /proc and driver. It reads and changes no setting of the cards.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::unwrap_used)] // printing is what it is for; a helper that fails, fails its case

mod cases;
mod host;
mod times;

use phoenix_lab::cases::Run;
use std::process::ExitCode;
use std::time::Duration;

/// All of it ends within this time.
const LIMIT: Duration = Duration::from_secs(280);

fn main() -> ExitCode {
    let run = Run::begin(LIMIT);
    let host = host::Host::read();
    println!("{host}");
    for (name, case) in cases::ALL {
        run.case(name, || case(&host));
    }
    if run.wants("times") {
        times::table(&host);
    }
    run.end()
}
