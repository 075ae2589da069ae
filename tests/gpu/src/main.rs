//! phoenix-nvidia on real cards: `gpu-tests [WORDS…]` runs each case whose name holds one of the words (all without),
//! one after the other, then takes the times, and prints both as tables. It runs out of a kit (`tests/gpu/run`), in
//! the lab over the machine's real nodes, /proc and driver. It reads and changes no setting of the cards.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::unwrap_used)] // printing is what it is for; a helper that fails, fails its case

mod cases;
mod host;
mod times;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// All of it ends within this time; what has not begun by then is told as not run.
const LIMIT: Duration = Duration::from_secs(280);

/// What a case came to when it did not panic.
pub enum Outcome {
    /// It held.
    Passed,
    /// It could not be run here, and why.
    NotRun(String),
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let begun = Instant::now();
    let host = host::Host::read();
    println!("{host}");
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, case) in cases::ALL.iter().filter(|(name, _)| chosen(name)) {
        let started = Instant::now();
        let result = if begun.elapsed() > LIMIT {
            Ok(Outcome::NotRun(format!("{LIMIT:?} were over")))
        } else {
            catch_unwind(AssertUnwindSafe(|| case(&host)))
        };
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(Outcome::Passed) => {
                passed += 1;
                println!("passed   {took:5.1} s  {name}");
            }
            Ok(Outcome::NotRun(why)) => {
                skipped += 1;
                println!("not run           {name}: {why}");
            }
            Err(_) => {
                failed += 1;
                println!("FAILED   {took:5.1} s  {name}");
            }
        }
    }
    if chosen("times") {
        times::table(&host);
    }
    println!("\nended after {:.0} s", begun.elapsed().as_secs_f64());
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
