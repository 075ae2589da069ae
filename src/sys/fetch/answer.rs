//! Parts of a server's response.

use crate::sys::text;

/// The validator, which distinguishes this file from a later one at the same
/// URL. Not a weak ETag: servers must not resume by it.
pub(super) fn validator<'a>(header: &dyn Fn(&str) -> Option<&'a str>) -> Option<String> {
    let etag = header("etag").filter(|tag| !tag.starts_with("W/"));
    etag.or_else(|| header("last-modified")).map(ToOwned::to_owned)
}

/// A `Content-Range` (RFC 9110, section 14.4): `bytes 100-199/200`, or
/// `bytes */200` if the requested range does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The first and the last byte.
    pub(super) span: Option<(u64, u64)>,
    /// The whole file's length.
    pub(super) whole: Option<u64>,
}

impl Range {
    pub(super) fn parse(value: &str) -> Option<Range> {
        let (span, whole) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let span = match span {
            "*" => None,
            span => {
                let (first, last) = span.split_once('-')?;
                Some((first.parse().ok()?, last.parse().ok()?))
            }
        };
        let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
        Some(Range { span, whole })
    }

    /// Whether it is the rest of the file after `from`, and the length of the
    /// body agrees.
    pub(super) fn is_rest(&self, from: u64, announced: Option<u64>) -> bool {
        let (Some((first, last)), Some(whole)) = (self.span, self.whole) else { return false };
        let length = whole.checked_sub(from).filter(|length| *length > 0);
        first == from
            && last.checked_add(1) == Some(whole)
            && length.is_some()
            && announced.is_none_or(|a| Some(a) == length)
    }
}

/// ureq's error for a message.
pub(super) fn explain(error: &ureq::Error) -> String {
    let words = match error {
        ureq::Error::HostNotFound => "host name not found (DNS)".to_owned(),
        ureq::Error::Timeout(what) => format!("timed out ({what})"),
        ureq::Error::ConnectionFailed => "connection failed".to_owned(),
        // ureq's message may have the URL, with its password.
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "invalid URL".to_owned(),
        other => text::without_secrets(&other.to_string()),
    };
    text::line(words.as_bytes())
}
