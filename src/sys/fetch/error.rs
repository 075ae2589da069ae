//! Why a URL gave no file.

use super::size;
use crate::sys::signal::Interrupted;
use crate::sys::time::human;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a URL gave no file. Its URLs are text that is fit to be shown.
#[derive(Debug)]
pub enum FetchError {
    /// The server's answer was another than 200.
    Status(String, u16),
    /// There is no such local file.
    Missing(PathBuf),
    /// The server was not reached, or spoke no HTTP, or its certificate is
    /// not trusted.
    Unreachable(String, String),
    /// Nothing came for so long.
    Stalled {
        /// What was being fetched.
        url: String,
        /// How long nothing came.
        after: Duration,
        /// Bytes that had come.
        got: u64,
        /// Bytes that should have come, where the server said so.
        of: Option<u64>,
    },
    /// The transfer ended before the end of the file.
    Cut {
        /// What was being fetched.
        url: String,
        /// Bytes that had come.
        got: u64,
        /// Bytes that should have come, where the server said so.
        of: Option<u64>,
        /// What happened.
        why: String,
    },
    /// It took longer than the whole may take.
    TooSlow {
        /// What was being fetched.
        url: String,
        /// The time it had.
        after: Duration,
        /// Bytes that had come.
        got: u64,
    },
    /// It is larger than it may be, in bytes.
    TooLarge(String, u64),
    /// The server leads to where this URL may not lead: from, to, and why not.
    Redirect(String, String, &'static str),
    /// Anybody on the way could change what comes.
    Untrusted(String),
    /// The answer makes no sense: another range than was asked for, say.
    Odd(String, String),
    /// What came is not what was waited for.
    Refused(String, String),
    /// There is no room for it where it is written to.
    Full(PathBuf, io::Error),
    /// The local side refused otherwise.
    Local(PathBuf, io::Error),
    /// We were told to stop.
    Interrupted(Interrupted),
}

impl FetchError {
    /// Whether the file is not there, as opposed to the server being ill.
    pub fn is_missing(&self) -> bool {
        matches!(self, FetchError::Status(_, 404 | 410) | FetchError::Missing(_))
    }

    /// What the local side said about a file.
    pub(super) fn local(path: &Path, error: io::Error) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FetchError::Full(path.to_owned(), error)
            }
            _ => FetchError::Local(path.to_owned(), error),
        }
    }

    /// Whether what has come so far is of no use to a later attempt, or takes
    /// the room that is missing.
    pub(super) fn spoils_part(&self) -> bool {
        matches!(
            self,
            FetchError::TooLarge(..) | FetchError::Odd(..) | FetchError::Refused(..) | FetchError::Full(..)
        )
    }

    /// How many bytes were still to come, as far as that is known.
    pub(super) fn missing(&self) -> u64 {
        match self {
            FetchError::Cut { got, of: Some(of), .. } | FetchError::Stalled { got, of: Some(of), .. } => {
                of.saturating_sub(*got)
            }
            _ => u64::MAX,
        }
    }

    /// Whether trying again may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            FetchError::Status(_, code) => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            FetchError::Unreachable(..) | FetchError::Stalled { .. } | FetchError::Cut { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::Status(url, code) => write!(f, "{url}: the server answers {code}{}", name_of(*code)),
            FetchError::Missing(path) => write!(f, "{}: no such file", path.display()),
            FetchError::Unreachable(url, why) => write!(f, "{url}: {why}"),
            FetchError::Stalled { url, after, got, .. } => {
                write!(f, "{url}: stalled, nothing came for {} (after {})", human(*after), size(*got))
            }
            FetchError::Cut { url, got, of: Some(of), why } => {
                write!(f, "{url}: cut off after {} of {}{why}", size(*got), size(*of))
            }
            FetchError::Cut { url, got, of: None, why } => {
                write!(f, "{url}: cut off after {}{why}", size(*got))
            }
            FetchError::TooSlow { url, after, got } => {
                write!(f, "{url}: not complete within {} ({} came)", human(*after), size(*got))
            }
            FetchError::TooLarge(url, limit) => {
                write!(f, "{url}: larger than {}, the most that is taken", size(*limit))
            }
            FetchError::Redirect(from, to, why) => write!(f, "{from}: the server leads to {to}: {why}"),
            FetchError::Untrusted(url) => {
                write!(f, "{url}: over http anybody on the way could change it")
            }
            FetchError::Odd(url, why) | FetchError::Refused(url, why) => write!(f, "{url}: {why}"),
            FetchError::Full(path, error) | FetchError::Local(path, error) => {
                write!(f, "{}: {error}", path.display())
            }
            FetchError::Interrupted(signal) => signal.fmt(f),
        }
    }
}

impl std::error::Error for FetchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FetchError::Interrupted(signal) => Some(signal),
            _ => None,
        }
    }
}

fn name_of(code: u16) -> &'static str {
    match code {
        401 | 403 => " (not allowed)",
        404 => " (not found)",
        407 => " (the proxy wants a password)",
        500..=599 => " (it has trouble of its own)",
        _ => "",
    }
}
