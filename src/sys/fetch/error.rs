//! Why a transfer failed.

use crate::sys::signal::Interrupted;
use crate::sys::text::size;
use crate::sys::time::human;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a transfer failed. Its URLs are without passwords and queries.
#[derive(Debug)]
pub enum FetchError {
    /// An HTTP status other than 200.
    Status(String, u16),
    /// No such local file.
    Missing(PathBuf),
    /// No connection, no HTTP, or a certificate that is not trusted.
    Unreachable(String, String),
    /// No data for too long.
    Stalled {
        /// The URL.
        url: String,
        /// The time without data.
        after: Duration,
        /// Bytes received.
        got: u64,
        /// Bytes of the whole file, if known.
        of: Option<u64>,
    },
    /// Ended before the end of the file.
    Cut {
        /// The URL.
        url: String,
        /// Bytes received.
        got: u64,
        /// Bytes of the whole file, if known.
        of: Option<u64>,
        /// The reason, in parentheses.
        why: String,
    },
    /// Not complete before the deadline.
    TooSlow {
        /// The URL.
        url: String,
        /// The timeout.
        after: Duration,
        /// Bytes received.
        got: u64,
    },
    /// Larger than the limit, in bytes.
    TooLarge(String, u64),
    /// A refused redirect: from, to, reason.
    Redirect(String, String, &'static str),
    /// Plain http, without a checksum.
    Untrusted(String),
    /// An invalid response, like another range than requested.
    Odd(String, String),
    /// The caller rejected the content.
    Refused(String, String),
    /// No space for the file.
    Full(PathBuf, io::Error),
    /// Another error of the local file.
    Local(PathBuf, io::Error),
    /// A signal came.
    Interrupted(Interrupted),
}

impl FetchError {
    /// Whether the file does not exist, as opposed to a failing server.
    pub fn is_missing(&self) -> bool {
        matches!(self, FetchError::Status(_, 404 | 410) | FetchError::Missing(_))
    }

    /// An error of the local file.
    pub(super) fn local(path: &Path, error: io::Error) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FetchError::Full(path.to_owned(), error)
            }
            _ => FetchError::Local(path.to_owned(), error),
        }
    }

    /// Whether the part is useless for a later attempt, or takes the missing
    /// space.
    pub(super) fn spoils_part(&self) -> bool {
        matches!(
            self,
            FetchError::TooLarge(..) | FetchError::Odd(..) | FetchError::Refused(..) | FetchError::Full(..)
        )
    }

    /// Bytes still missing, if known.
    pub(super) fn missing(&self) -> u64 {
        match self {
            FetchError::Cut { got, of: Some(of), .. } | FetchError::Stalled { got, of: Some(of), .. } => {
                of.saturating_sub(*got)
            }
            _ => u64::MAX,
        }
    }

    /// Whether a retry may help.
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
            FetchError::Status(url, code) => write!(f, "{url}: HTTP {code}{}", name_of(*code)),
            FetchError::Missing(path) => write!(f, "{}: no such file", path.display()),
            FetchError::Unreachable(url, why) => write!(f, "{url}: {why}"),
            FetchError::Stalled { url, after, got, .. } => {
                write!(f, "{url}: stalled: no data for {} ({} received)", human(*after), size(*got))
            }
            FetchError::Cut { url, got, of: Some(of), why } => {
                write!(f, "{url}: cut off after {} of {}{why}", size(*got), size(*of))
            }
            FetchError::Cut { url, got, of: None, why } => {
                write!(f, "{url}: cut off after {}{why}", size(*got))
            }
            FetchError::TooSlow { url, after, got } => {
                write!(f, "{url}: timed out after {} ({} received)", human(*after), size(*got))
            }
            FetchError::TooLarge(url, limit) => {
                write!(f, "{url}: larger than the limit of {}", size(*limit))
            }
            FetchError::Redirect(from, to, why) => write!(f, "{from}: redirect to {to} refused: {why}"),
            FetchError::Untrusted(url) => {
                write!(f, "{url}: http is not trusted without a checksum")
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
        401 | 403 => " (access denied)",
        404 => " (not found)",
        407 => " (proxy authentication required)",
        500..=599 => " (server error)",
        _ => "",
    }
}
