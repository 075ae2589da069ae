//! Reading a request's head. Just as much of HTTP/1.1 as apt, wget, curl and a Rust client use.

use anyhow::{Result, bail};
use std::io::BufRead;

/// Longer heads than this are nobody's in the lab.
const LONGEST_HEAD: usize = 32 * 1024;

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// Decoded, without a query; of `http://host/path`, which a proxy is asked, the path.
    pub(crate) path: String,
    /// What stands behind the `?`.
    pub(crate) query: Option<String>,
    /// The client takes us for its proxy.
    pub(crate) proxied: bool,
    headers: Vec<(String, String)>,
    http_1_0: bool,
}

impl Head {
    /// The next head of a connection, or nothing at its orderly end.
    pub(crate) fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut lines = Vec::new();
        let mut length = 0;
        loop {
            let mut line = Vec::new();
            let got = from.by_ref().read_until(b'\n', &mut line)?;
            length += got;
            if got == 0 && lines.is_empty() {
                return Ok(None);
            }
            if got == 0 || length > LONGEST_HEAD {
                bail!("a head that doesn't end");
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            match (line.is_empty(), lines.is_empty()) {
                (true, true) => {}
                (true, false) => return Self::parse(&lines).map(Some),
                _ => lines.push(line),
            }
        }
    }

    fn parse(lines: &[String]) -> Result<Self> {
        let words: Vec<&str> = lines[0].split(' ').collect();
        let [method, target, version] = words[..] else {
            bail!("{:?} is no request line", lines[0]);
        };
        let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
        Ok(Self {
            method: method.to_owned(),
            path: decode(target),
            query: target.split_once('?').map(|(_, query)| query.to_owned()),
            proxied: target.starts_with("http://") || method == "CONNECT",
            headers: headers
                .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            http_1_0: version == "HTTP/1.0",
        })
    }

    /// The value of a header; the name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client will ask again on this connection.
    pub(crate) fn keep_alive(&self) -> bool {
        let connection = self.header("connection").unwrap_or_default().to_ascii_lowercase();
        if self.http_1_0 { connection == "keep-alive" } else { connection != "close" }
    }
}

/// Bytes in base64, as `Authorization: Basic` has them.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let value = group.iter().fold(0_u32, |value, byte| (value << 8) | u32::from(*byte));
        let value = value << (8 * (3 - group.len()));
        for digit in 0..4 {
            let known = digit <= group.len();
            text.push(if known { DIGITS[(value >> (18 - 6 * digit)) as usize & 63] as char } else { '=' });
        }
    }
    text
}

/// The path that a request target names.
fn decode(target: &str) -> String {
    let without_host =
        target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let path = without_host.split(['?', '#']).next().unwrap_or_default().as_bytes();
    let mut bytes = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let hex = path.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let byte = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (path[at], byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                at += 3;
            }
            (other, _) => {
                bytes.push(other);
                at += 1;
            }
        }
    }
    // apt puts the `./` of a flat repository's index into the path; it means the same document.
    String::from_utf8_lossy(&bytes).replace("/./", "/")
}

/// The first and last byte that a `Range` header asks of a document of this size; `Err`: none of it can be had.
/// Several ranges at once are answered as the standard allows: as if there were no header.
pub(crate) fn range(header: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = header.and_then(|header| header.strip_prefix("bytes=")) else {
        return Ok(None);
    };
    let Some((first, last)) = text.split_once('-') else {
        return Ok(None);
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), u64::MAX),
        _ => return Ok(None),
    };
    if first >= size { Err(()) } else { Ok(Some((first, last.min(size - 1)))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_heads_are_read_one_by_one() -> Result<()> {
        let mut wire: &[u8] =
            b"GET /./a%2bb?x=1 HTTP/1.1\r\nHost: h\r\nRange: bytes=1-\r\n\r\nHEAD http://h/c HTTP/1.0\r\n\r\n";
        let first = Head::read(&mut wire)?.ok_or_else(|| anyhow::anyhow!("no first"))?;
        assert_eq!((first.path.as_str(), first.header("range")), ("/a+b", Some("bytes=1-")));
        assert_eq!(first.query.as_deref(), Some("x=1"));
        assert!(first.keep_alive());
        let second = Head::read(&mut wire)?.ok_or_else(|| anyhow::anyhow!("no second"))?;
        assert_eq!((second.method.as_str(), second.path.as_str()), ("HEAD", "/c"));
        assert!(!second.keep_alive());
        assert_eq!(Head::read(&mut wire)?, None);
        Ok(())
    }

    #[test]
    fn base64_is_the_standards() {
        assert_eq!(
            (base64(b"f").as_str(), base64(b"martin:secret").as_str()),
            ("Zg==", "bWFydGluOnNlY3JldA==")
        );
    }

    #[test]
    fn ranges_are_cut_to_the_document() {
        assert_eq!(range(None, 10), Ok(None));
        assert_eq!(range(Some("bytes=0-"), 10), Ok(Some((0, 9))));
        assert_eq!(range(Some("bytes=4-5"), 10), Ok(Some((4, 5))));
        assert_eq!(range(Some("bytes=4-50"), 10), Ok(Some((4, 9))));
        assert_eq!(range(Some("bytes=-3"), 10), Ok(Some((7, 9))));
        assert_eq!(range(Some("bytes=10-"), 10), Err(()));
        assert_eq!(range(Some("bytes=0-1,3-4"), 10), Ok(None));
        assert_eq!(range(Some("bytes=-0"), 10), Err(()));
    }
}
