//! The progress of a download: a bar on a terminal, plain lines in a log.

use crate::sys::text;
use crate::sys::text::size;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// In a log: the shortest time between two lines.
const APART: Duration = Duration::from_secs(3);
/// In a log: the longest time between two lines.
const AT_LEAST: Duration = Duration::from_secs(10);
/// On a terminal: the time between two updates.
const REDRAW: Duration = Duration::from_millis(100);

/// The progress of one download.
pub struct DownloadProgress {
    what: String,
    terminal: bool,
    started: Instant,
    shown: Instant,
    percent: u64,
}

impl DownloadProgress {
    /// Starts now.
    pub fn new(what: impl Into<String>) -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        DownloadProgress { what: text::shown(&what.into()), terminal, started: now, shown: now, percent: 0 }
    }

    /// Shows that `got` bytes have arrived.
    pub fn at(&mut self, got: u64, of: Option<u64>) {
        let percent = of.filter(|of| *of > 0).map(|of| got.saturating_mul(100) / of);
        let since = self.shown.elapsed();
        if self.terminal {
            if since >= REDRAW {
                self.shown = Instant::now();
                draw(&format!("\r{} {}\x1b[K", self.what, self.words(got, of, percent)));
            }
            return;
        }
        let step = percent.is_some_and(|p| p >= self.percent + 10) && since >= APART;
        if step || since >= AT_LEAST {
            self.shown = Instant::now();
            self.percent = percent.unwrap_or_default() / 10 * 10;
            log::info!("{} {}", self.what, self.words(got, of, percent));
        }
    }

    fn words(&self, got: u64, of: Option<u64>, percent: Option<u64>) -> String {
        let speed = got as f64 / 1e6 / self.started.elapsed().as_secs_f64().max(0.001);
        match (of, percent) {
            (Some(of), Some(percent)) => {
                let bar = if self.terminal { bar(percent) } else { String::new() };
                format!("{bar}{percent} % of {}, {speed:.0} MB/s", size(of))
            }
            _ => format!("{}, {speed:.0} MB/s", size(got)),
        }
    }
}

impl Drop for DownloadProgress {
    fn drop(&mut self) {
        if self.terminal {
            draw("\r\x1b[K");
        }
    }
}

fn bar(percent: u64) -> String {
    let full = (percent.min(100) / 5) as usize;
    format!("[{}{}] ", "#".repeat(full), " ".repeat(20 - full))
}

fn draw(text: &str) {
    // A closed terminal does not stop the download.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
