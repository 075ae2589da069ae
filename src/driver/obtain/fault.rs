//! Why a runfile could not be had, each reason with its remedy.

use crate::driver::source;
use crate::exit::{self, Code, Fault};
use crate::sys::fetch::FetchError;
use crate::sys::lock::LockError;
use crate::sys::signal;
use crate::sys::time::{Deadline, is_late};
use crate::sys::url::Url;
use crate::types::Version;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::time::Duration;

/// What helps where a server does not answer as it should.
const ELSEWHERE: &str = "download the file elsewhere and set NVIDIA_RUNFILE_URL to it, or set http_proxy in /etc/pve/datacenter.cfg";

/// What helps where http is not trusted.
const UNTRUSTED: &str = "set NVIDIA_RUNFILE_URL to an https URL, or set NVIDIA_RUNFILE_SHA256";

/// The time that the command after a timeout gives a download, in seconds: the least, and the
/// most that the setting takes.
const LONGER: (u64, u64) = (7200, 604_800);

/// Whether time is what lacked: for a download, for the work on its file, or for another
/// process that does that.
pub fn lacked_time(error: &anyhow::Error) -> bool {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let fetch = matches!(cause.downcast_ref(), Some(FetchError::TooSlow { .. }));
        fetch || matches!(cause.downcast_ref(), Some(LockError::Busy { .. }))
    };
    is_late(error) || error.chain().any(of)
}

/// The command that gives it more than this: it goes on with what is there of a download.
pub(super) fn longer(version: &Version, limit: Duration) -> String {
    let seconds = limit.as_secs().saturating_mul(4).clamp(LONGER.0, LONGER.1);
    format!("DOWNLOAD_TIMEOUT={seconds} phoenix-nvidia prefetch {version}")
}

/// A failed download, with its remedy. `directory` is where the file would go, `max` the limit of its size, in bytes.
pub(super) fn of(error: FetchError, url: &Url, directory: &Path, max: u64) -> anyhow::Error {
    let fault = |what: String| Fault::new(Code::Software, format!("{what}: {error}"));
    match &error {
        // The next place may have it.
        _ if error.is_missing() => error.into(),
        FetchError::Refused(_, why) => rejected(url, &anyhow::anyhow!("{why}")),
        FetchError::Status(_, 401 | 403) => Fault::new(Code::Software, error.to_string())
            .remedy("correct the name, password or token in NVIDIA_RUNFILE_URL")
            .into(),
        FetchError::Status(_, 407) => Fault::new(Code::Software, error.to_string())
            .remedy("correct http_proxy in /etc/pve/datacenter.cfg")
            .into(),
        FetchError::Local(path, _) if url.local().as_ref() == Some(path) => {
            Fault::new(Code::Software, error.to_string()).remedy(source::remedy()).into()
        }
        FetchError::Full(..) => full(&error, directory),
        FetchError::TooLarge(..) => {
            let mib = max >> 20;
            fault(format!("the runfile exceeds DOWNLOAD_MAX ({mib} MiB)"))
                .remedy(
                    "correct NVIDIA_RUNFILE_URL, or set a larger DOWNLOAD_MAX in /etc/default/phoenix-nvidia",
                )
                .into()
        }
        FetchError::Untrusted(..) => {
            fault("NVIDIA_RUNFILE_URL is not trusted".into()).remedy(UNTRUSTED).into()
        }
        // From http to http a checksum is all that it lacks.
        FetchError::Redirect(from, to, _) if [from, to].iter().all(|url| url.starts_with("http:")) => {
            Fault::new(Code::Software, error.to_string()).remedy(UNTRUSTED).into()
        }
        FetchError::Redirect(..) => Fault::new(Code::Software, error.to_string())
            .remedy("set NVIDIA_RUNFILE_URL to the https URL of the file itself")
            .into(),
        FetchError::Unreachable(..)
        | FetchError::Stalled { .. }
        | FetchError::Cut { .. }
        | FetchError::Status(..) => Fault::new(Code::Software, error.to_string()).remedy(ELSEWHERE).into(),
        _ => error.into(),
    }
}

/// Why a download was not accepted.
pub(super) enum Unaccepted {
    /// The file is not what was asked for.
    Bad(anyhow::Error),
    /// It could not be verified or kept.
    Local(anyhow::Error),
}

/// What a verification that failed says of the file: nothing where the time was over,
/// a signal came or the disk was full, however the reader in between tells that.
pub(super) fn unaccepted(why: anyhow::Error, directory: &Path, deadline: &Deadline) -> Unaccepted {
    let is_full = why.chain().any(|cause| cause.downcast_ref().is_some_and(is_full));
    match signal::check() {
        _ if exit::interrupted(&why) => Unaccepted::Local(why),
        Err(signal) => Unaccepted::Local(anyhow::Error::new(signal)),
        Ok(()) if is_full => Unaccepted::Local(full(format!("{why:#}"), directory)),
        Ok(()) if is_late(&why) || deadline.passed() => Unaccepted::Local(why),
        Ok(()) => Unaccepted::Bad(why),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk of the cache is full.
fn full(why: impl Display, directory: &Path) -> anyhow::Error {
    let directory = directory.display();
    Fault::new(Code::Software, format!("not enough space for the runfile in {directory}: {why}"))
        .remedy(format!("df -h {directory} && du -xh --max-depth=2 /var | sort -h | tail"))
        .into()
}

/// A file that is not what was asked for.
pub(super) fn rejected(url: &Url, why: &anyhow::Error) -> anyhow::Error {
    let (message, remedy) = match url.local() {
        Some(_) => (format!("{url}: {why:#}"), source::remedy()),
        None => (
            format!("{url} rejected and deleted, not run: {why:#}"),
            "correct NVIDIA_RUNFILE_URL (and NVIDIA_RUNFILE_SHA256, if set)",
        ),
    };
    Fault::new(Code::Software, message).remedy(exit::remedy_of(why).unwrap_or(remedy)).into()
}
