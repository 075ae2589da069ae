//! The destinations of messages: stderr (in a hook, the task log), syslog, and
//! the log file of an install process.
//!
//! No destination blocks a start: syslog has a write timeout and is disabled
//! after the first one; stderr is written only while it is writable.

use super::text;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// The write timeout of syslog.
const SYSLOG_TIMEOUT: Duration = Duration::from_millis(250);
/// The time that all messages together wait for stderr. Afterwards a slow reader
/// misses lines.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);
const SOCKET: &str = "/dev/log";

/// The target of messages that another process of ours already logged: they go
/// to stderr only.
pub const RELAY: &str = "phoenix_nvidia::relay";

/// The options of the log.
#[derive(Default)]
pub struct Options {
    /// The CTID in every line.
    pub subject: Option<String>,
    /// Also debug messages on stderr.
    pub verbose: bool,
    /// A log file, with timestamps.
    pub file: Option<File>,
    /// Why the log file is missing: the first message.
    pub trouble: Option<String>,
    /// The level of stderr without `verbose`: info in a task log, warnings if the
    /// result goes to stdout, nothing in an install process.
    pub stderr: Option<LevelFilter>,
}

/// Escapes the messages of panics, which may quote output of a container. Writes
/// them to stderr directly, since the lock of the log may be held.
pub fn tame_panics() {
    std::panic::set_hook(Box::new(|panic| {
        for line in panic.to_string().lines() {
            let _ = std::io::stderr()
                .lock()
                .write_all(format!("phoenix-nvidia: {}\n", text::message(line)).as_bytes());
        }
    }));
}

/// Sets up the log of this process. Later calls have no effect.
pub fn init(options: Options) {
    let sink = Sink {
        subject: options.subject,
        stderr: if options.verbose {
            LevelFilter::Debug
        } else {
            options.stderr.unwrap_or(LevelFilter::Info)
        },
        state: Mutex::new(State { syslog: connect(), file: options.file, timeout: STDERR_TIMEOUT }),
    };
    if log::set_boxed_logger(Box::new(sink)).is_ok() {
        log::set_max_level(LevelFilter::Debug);
        if let Some(trouble) = options.trouble {
            log::warn!("{trouble}");
        }
    }
}

struct Sink {
    subject: Option<String>,
    stderr: LevelFilter,
    state: Mutex<State>,
}

struct State {
    syslog: Option<Logger<LoggerBackend, Formatter3164>>,
    file: Option<File>,
    /// The rest of [`STDERR_TIMEOUT`].
    timeout: Duration,
}

/// A connection to the local syslog; `None` if /dev/log is missing.
fn connect() -> Option<Logger<LoggerBackend, Formatter3164>> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_write_timeout(Some(SYSLOG_TIMEOUT)).ok()?;
    socket.connect(SOCKET).ok()?;
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "phoenix-nvidia".into(),
        pid: std::process::id(),
    };
    Some(Logger::new(LoggerBackend::Unix(socket), formatter))
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Not those of libraries (ureq, rustls).
        metadata.target().starts_with("phoenix_nvidia")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        for message in record.args().to_string().lines() {
            let line = self.line(record.level(), message);
            if record.level() <= self.stderr {
                state.stderr(&format!("phoenix-nvidia{line}\n"));
            }
            if record.target() != RELAY {
                state.syslog(record.level(), line.trim_start_matches([' ', ':']));
                if record.level() <= Level::Info {
                    state.append(&line);
                }
            }
        }
    }

    fn flush(&self) {
        if let Ok(mut state) = self.state.lock() {
            if let Some(file) = &mut state.file {
                let _ = file.sync_data();
            }
        }
    }
}

/// What a message begins with that is wrong, in the log and on stderr.
const MARKS: [(Level, &str); 2] = [(Level::Error, "ERROR: "), (Level::Warn, "WARNING: ")];

/// The level and the message of a line that a process of ours wrote into a
/// [file](Options::file): what stands before the first `: ` is time and name.
pub fn parse(line: &str) -> (Level, &str) {
    let message = line.split_once(": ").map_or(line, |(_, message)| message);
    let marked = MARKS.iter().find_map(|(level, mark)| Some((*level, message.strip_prefix(mark)?)));
    marked.unwrap_or((Level::Info, message))
}

impl Sink {
    /// One line: ` 101: WARNING: text`.
    fn line(&self, level: Level, message: &str) -> String {
        let mark = MARKS.iter().find(|(marked, _)| *marked == level).map_or("", |(_, mark)| mark);
        let message = text::message(&text::without_secrets(message));
        match &self.subject {
            Some(subject) => format!(" {subject}: {mark}{message}"),
            None => format!(": {mark}{message}"),
        }
    }
}

impl State {
    fn stderr(&mut self, line: &str) {
        let stderr = std::io::stderr();
        let begun = Instant::now();
        let writable = writable(&stderr.as_fd(), self.timeout);
        self.timeout = self.timeout.saturating_sub(begun.elapsed());
        if !writable {
            return;
        }
        // A closed stderr is no error.
        let _ = stderr.lock().write_all(line.as_bytes());
    }

    fn syslog(&mut self, level: Level, message: &str) {
        let Some(syslog) = &mut self.syslog else { return };
        let sent = match level {
            Level::Error => syslog.err(message),
            Level::Warn => syslog.warning(message),
            Level::Info => syslog.info(message),
            Level::Debug | Level::Trace => syslog.debug(message),
        };
        if sent.is_err() {
            self.syslog = None;
        }
    }

    fn append(&mut self, line: &str) {
        let Some(file) = &mut self.file else { return };
        let _ = file.write_all(format!("{}\n", dated(line)).as_bytes());
    }
}

/// The line as it stands in a file.
fn dated(line: &str) -> String {
    let now = time::OffsetDateTime::now_utc();
    let when = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let when = when.split(['.', 'Z']).next().unwrap_or_default();
    format!("{when}Z phoenix-nvidia{line}")
}

/// Whether a line can be written now: a writable pipe takes 4096 bytes at once.
fn writable(fd: &std::os::fd::BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(*fd, PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(subject: Option<&str>) -> Sink {
        let state = State { syslog: None, file: None, timeout: STDERR_TIMEOUT };
        Sink { subject: subject.map(Into::into), stderr: LevelFilter::Info, state: Mutex::new(state) }
    }

    #[test]
    fn every_line_names_the_container_and_marks_what_is_wrong() {
        assert_eq!(sink(Some("101")).line(Level::Info, "done"), " 101: done");
        assert_eq!(sink(Some("101")).line(Level::Warn, "x\u{1b}y"), " 101: WARNING: x\\u{1b}y");
        assert_eq!(sink(None).line(Level::Error, "no"), ": ERROR: no");
    }

    #[test]
    fn a_line_of_a_file_is_read_as_it_was_logged() {
        for level in [Level::Error, Level::Warn, Level::Info] {
            for (subject, message) in [(Some("101"), "apt: no: such"), (None, "done")] {
                assert_eq!(parse(&dated(&sink(subject).line(level, message))), (level, message));
            }
        }
        assert_eq!(parse("no line of ours"), (Level::Info, "no line of ours"));
    }
}
