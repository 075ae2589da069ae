//! Cases run by a program of their own, on machines where cargo's test harness is not.
#![allow(clippy::print_stdout)] // it is what these programs are for

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a case came to when it did not panic.
pub enum Outcome {
    /// It held.
    Passed,
    /// It could not be run here, and why.
    NotRun(String),
}

/// One run of a program's cases: those whose name holds one of the program's arguments, all without. Threads may share it.
pub struct Run {
    words: Vec<String>,
    begun: Instant,
    limit: Duration,
    passed: AtomicU32,
    failed: AtomicU32,
    skipped: AtomicU32,
}

impl Run {
    /// A run that begins now. What has not begun when the limit has passed is told as not run.
    pub fn begin(limit: Duration) -> Run {
        let words = std::env::args().skip(1).collect();
        let [passed, failed, skipped] = Default::default();
        Run { words, begun: Instant::now(), limit, passed, failed, skipped }
    }

    /// Whether the arguments ask for what has this name.
    pub fn wants(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }

    /// Runs a case, if it is wanted, and prints its line. False if it failed.
    pub fn case(&self, name: &str, case: impl FnOnce() -> Outcome) -> bool {
        if !self.wants(name) {
            return true;
        }
        let started = Instant::now();
        let result = if self.begun.elapsed() > self.limit {
            Ok(Outcome::NotRun(format!("{:?} were over", self.limit)))
        } else {
            catch_unwind(AssertUnwindSafe(case))
        };
        let took = started.elapsed().as_secs_f64();
        let count = match &result {
            Ok(Outcome::Passed) => {
                println!("passed   {took:5.1} s  {name}");
                &self.passed
            }
            Ok(Outcome::NotRun(why)) => {
                println!("not run           {name}: {why}");
                &self.skipped
            }
            Err(_) => {
                println!("FAILED   {took:5.1} s  {name}");
                &self.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        result.is_ok()
    }

    /// Prints the counts.
    pub fn end(self) -> ExitCode {
        println!("\nended after {:.0} s", self.begun.elapsed().as_secs_f64());
        let [passed, failed, skipped] = [self.passed, self.failed, self.skipped].map(AtomicU32::into_inner);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        // Words that no case has are no success.
        if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
