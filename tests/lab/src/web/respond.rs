//! One request's answer: the document, part of it, or the fault that a rule asks for.

use super::fault::Fault;
use super::http::{Head, base64, range};
use super::wire::Wire;
use super::{Site, date};
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// A client that never gives up keeps its stalled connection this long at most.
const LONGEST_STALL: Duration = Duration::from_secs(900);

/// What never ends is this long, in bytes: no test's disk is filled by a fault of the program under test.
const ENDLESS: u64 = 4 << 30;

/// How an answer ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) status: Option<u16>,
    pub(crate) sent: u64,
    /// The connection can't be used for another request.
    pub(crate) close: bool,
    /// It ends in the middle of something.
    pub(crate) torn: bool,
}

/// Answers on the connection. An error is the client's going away; what was sent until then is in `outcome`.
pub(crate) fn respond(
    head: &Head,
    site: &Site,
    fault: Option<&Fault>,
    to: &mut Wire,
    outcome: &mut Outcome,
) -> io::Result<()> {
    if !matches!(head.method.as_str(), "GET" | "HEAD") {
        return page(head, to, outcome, 405, "", "text/plain", "only GET and HEAD\n");
    }
    match fault {
        Some(Fault::Status(code)) => {
            return page(head, to, outcome, *code, "", "text/plain", "a fault on demand\n");
        }
        Some(Fault::Redirect(url)) => {
            let location = format!("Location: {url}\r\n");
            return page(head, to, outcome, 302, &location, "text/plain", "moved\n");
        }
        Some(Fault::LoginPage) => {
            let body = "<!DOCTYPE html>\n<html><title>Welcome</title><body>Please log in to use this network.</body></html>\n";
            return page(head, to, outcome, 200, "", "text/html", body);
        }
        Some(Fault::Silent) => {
            outcome.close = true;
            return wait_for_end(to);
        }
        Some(Fault::Login(login)) => {
            let right = format!("Basic {}", base64(login.as_bytes()));
            if head.header("authorization") != Some(right.as_str()) {
                let ask = "WWW-Authenticate: Basic realm=\"lab\"\r\n";
                return page(head, to, outcome, 401, ask, "text/plain", "who are you?\n");
            }
        }
        Some(Fault::Query(query)) if head.query.as_deref() != Some(query) => {
            return page(head, to, outcome, 403, "", "text/plain", "not so\n");
        }
        Some(Fault::NotThere(size)) if head.header("range").is_some() => {
            let range = format!("Content-Range: bytes */{size}\r\n");
            return page(head, to, outcome, 416, &range, "text/plain", "");
        }
        Some(Fault::Hangup) => {
            (outcome.close, outcome.torn) = (true, true);
            return Ok(());
        }
        _ => {}
    }
    let document = site.file(&head.path).and_then(|path| File::open(path).ok());
    let found = document.and_then(|file| file.metadata().ok().map(|data| (file, data)));
    match found {
        Some((file, data)) if data.is_file() => Document { head, file, data, fault }.send(to, outcome),
        _ => page(head, to, outcome, 404, "", "text/plain", "not found\n"),
    }
}

/// A short answer of our own.
fn page(
    head: &Head,
    to: &mut Wire,
    outcome: &mut Outcome,
    status: u16,
    extra: &str,
    kind: &str,
    body: &str,
) -> io::Result<()> {
    outcome.status = Some(status);
    let length = body.len();
    let lines = format!("{extra}Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    let body = if head.method == "HEAD" { "" } else { body };
    to.write_all(format!("{}{body}", top(head, status, &lines)).as_bytes())?;
    outcome.sent = body.len() as u64;
    Ok(())
}

fn top(head: &Head, status: u16, lines: &str) -> String {
    let reason = match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Whatever",
    };
    let connection = if head.keep_alive() { "keep-alive" } else { "close" };
    format!("HTTP/1.1 {status} {reason}\r\nServer: lab\r\nConnection: {connection}\r\n{lines}\r\n")
}

/// A file that is there, and what is to go wrong while it is sent.
struct Document<'a> {
    head: &'a Head,
    file: File,
    data: Metadata,
    fault: Option<&'a Fault>,
}

impl Document<'_> {
    fn send(mut self, to: &mut Wire, outcome: &mut Outcome) -> io::Result<()> {
        let modified = self.data.modified().unwrap_or(UNIX_EPOCH);
        let date = date::format(modified, "GMT");
        let nanoseconds = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let tag = format!("\"{:x}-{nanoseconds:x}\"", self.data.len());
        let mut lines = format!("Last-Modified: {date}\r\nETag: {tag}\r\n");
        if self.unchanged(&date, &tag) {
            outcome.status = Some(304);
            return to.write_all(top(self.head, 304, &lines).as_bytes());
        }
        let size = self.data.len();
        let (first, length) = match self.wanted(&date, &tag) {
            Err(()) => {
                outcome.status = Some(416);
                lines += &format!("Content-Range: bytes */{size}\r\nContent-Length: 0\r\n");
                return to.write_all(top(self.head, 416, &lines).as_bytes());
            }
            Ok(Some((first, last))) => {
                outcome.status = Some(206);
                let first = match self.fault {
                    Some(Fault::OtherRange(later)) => (first + later).min(last),
                    _ => first,
                };
                lines += &format!("Content-Range: bytes {first}-{last}/{size}\r\n");
                (first, last - first + 1)
            }
            Ok(None) => {
                outcome.status = Some(200);
                (0, size)
            }
        };
        match self.fault {
            Some(Fault::NoLength | Fault::Endless) => outcome.close = true,
            Some(Fault::Length(claimed)) => {
                (outcome.close, outcome.torn) = (true, true);
                lines += &format!("Content-Length: {claimed}\r\n");
            }
            _ => lines += &format!("Content-Length: {length}\r\n"),
        }
        let ranges = if self.fault == Some(&Fault::NoRange) { "none" } else { "bytes" };
        lines += &format!("Accept-Ranges: {ranges}\r\nContent-Type: application/octet-stream\r\n");
        to.write_all(top(self.head, outcome.status.unwrap_or(200), &lines).as_bytes())?;
        if self.head.method == "HEAD" {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(first))?;
        self.body(length, to, outcome)
    }

    /// apt asks with the date that it was told, so equality is enough.
    fn unchanged(&self, date: &str, tag: &str) -> bool {
        match self.head.header("if-none-match") {
            Some(tags) => tags.split(',').any(|other| other.trim() == tag),
            None => self.head.header("if-modified-since") == Some(date),
        }
    }

    /// The range to send. `If-Range` with another version's mark asks for the whole.
    fn wanted(&self, date: &str, tag: &str) -> Result<Option<(u64, u64)>, ()> {
        let same = self.head.header("if-range").is_none_or(|mark| mark == date || mark == tag);
        if !same || self.fault == Some(&Fault::NoRange) {
            return Ok(None);
        }
        range(self.head.header("range"), self.data.len())
    }

    fn body(&mut self, length: u64, to: &mut Wire, outcome: &mut Outcome) -> io::Result<()> {
        let until = match self.fault {
            Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => length.min(*bytes),
            _ => length,
        };
        let started = Instant::now();
        let mut buffer = vec![0; 64 * 1024];
        while outcome.sent < until {
            let room = self.room(until - outcome.sent).min(buffer.len());
            let got = self.file.read(&mut buffer[..room])?;
            if got == 0 {
                break;
            }
            if self.fault == Some(&Fault::Garbage) {
                buffer[..got].iter_mut().for_each(|byte| *byte ^= 0xa5);
            }
            to.write_all(&buffer[..got])?;
            outcome.sent += got as u64;
            self.brake(started, outcome.sent);
        }
        match self.fault {
            Some(Fault::Stall(_)) => {
                outcome.close = true;
                return wait_for_end(to);
            }
            Some(Fault::Cut(_)) => (outcome.close, outcome.torn) = (true, true),
            Some(Fault::Endless) => {
                buffer.fill(0);
                while outcome.sent < ENDLESS {
                    to.write_all(&buffer)?;
                    outcome.sent += buffer.len() as u64;
                }
            }
            _ => {}
        }
        to.flush()
    }

    /// How much to send at once: a slow server sends small pieces, ten a second.
    fn room(&self, left: u64) -> usize {
        let piece = match self.fault {
            Some(Fault::Slow(rate)) => (rate / 10).max(1),
            _ => u64::MAX,
        };
        usize::try_from(left.min(piece)).unwrap_or(usize::MAX)
    }

    fn brake(&self, started: Instant, sent: u64) {
        if let Some(Fault::Slow(rate)) = self.fault {
            let due = Duration::from_secs_f64(sent as f64 / *rate as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}

/// Says nothing until the client closes its end.
fn wait_for_end(to: &mut Wire) -> io::Result<()> {
    to.socket().set_read_timeout(Some(LONGEST_STALL))?;
    let mut ignored = [0; 1024];
    while to.read(&mut ignored)? > 0 {}
    Ok(())
}
