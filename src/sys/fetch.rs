//! Getting a file from a URL: https, http, `file:///` or a plain path.
//!
//! The transfer runs in a thread of its own, so that a signal, a stalled
//! server or a deadline ends the wait at once; an abandoned thread is bound by
//! the same limits and ends by itself.

use super::signal::{self, Interrupted};
use super::text;
use super::time::{Deadline, human};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Proxy;
use ureq::tls::{RootCerts, TlsConfig};

/// How much is handed over at a time, in bytes.
const CHUNK: usize = 256 * 1024;
/// How many attempts in a row may bring next to nothing.
const FRUITLESS: u32 = 3;
/// An attempt that brought this many bytes was worth it.
const WORTH: u64 = 4 << 20;

/// How to reach servers.
#[derive(Clone, Debug)]
pub struct Client {
    /// How long reaching the server may take.
    pub connect: Duration,
    /// How long a transfer may bring nothing.
    pub stall: Duration,
    /// A proxy to be used where the environment names none.
    pub proxy: Option<String>,
}

/// Why a URL gave no file.
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
    /// It is larger than it may be.
    TooLarge(String, usize),
    /// The local side refused: no space, or the file could not be written.
    Local(PathBuf, io::Error),
    /// We were told to stop.
    Interrupted(Interrupted),
}

impl FetchError {
    /// Whether the file is not there, as opposed to the server being ill.
    pub fn is_missing(&self) -> bool {
        matches!(self, FetchError::Status(_, 404 | 410) | FetchError::Missing(_))
    }

    /// How many bytes were still to come, as far as that is known.
    fn missing(&self) -> u64 {
        match self {
            FetchError::Cut { got, of: Some(of), .. } | FetchError::Stalled { got, of: Some(of), .. } => {
                of.saturating_sub(*got)
            }
            _ => u64::MAX,
        }
    }

    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
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
            FetchError::TooLarge(url, limit) => write!(f, "{url}: larger than {}", size(*limit as u64)),
            FetchError::Local(path, error) => write!(f, "{}: {error}", path.display()),
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

/// A number of bytes as a person reads it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// The local file that a URL or path names.
pub fn local(url: &str) -> Option<PathBuf> {
    url.strip_prefix("file://").or(url.starts_with('/').then_some(url)).map(PathBuf::from)
}

/// Whether nobody on the way can change what comes: https, a local file, or a
/// server on this machine.
pub fn is_trusted_way(url: &str) -> bool {
    url.starts_with("https://") || local(url).is_some() || is_loopback(url)
}

fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A small file, whole.
///
/// # Errors
/// [`FetchError`].
pub fn small(client: &Client, url: &str, limit: usize, deadline: &Deadline) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let mut transfer = Transfer::start(client, url, &Resume::default(), deadline);
    transfer.head()?;
    while let Some(chunk) = transfer.next()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > limit {
            return Err(FetchError::TooLarge(url.to_owned(), limit));
        }
    }
    Ok(bytes)
}

/// What a download tells while it runs.
pub trait Watch {
    /// Bytes are about to be written: `more` of them, as far as the server
    /// says. An error ends the download before it fills the disk.
    ///
    /// # Errors
    /// What keeps them from being written.
    fn room(&mut self, more: u64) -> io::Result<()>;
    /// So much has come, of so much.
    fn progress(&mut self, got: u64, of: Option<u64>);
    /// It goes on after this trouble.
    fn retry(&mut self, trouble: &FetchError);
}

/// A large file, into `part`. What an earlier call left there is resumed if
/// the server still has the same file; `part` stays behind after a failure.
/// True: bytes of an earlier call are in it.
///
/// # Errors
/// [`FetchError`].
pub fn download(
    client: &Client,
    url: &str,
    part: &Path,
    deadline: &Deadline,
    watch: &mut dyn Watch,
) -> Result<bool, FetchError> {
    let mut resumed = false;
    let mut fruitless = 0;
    loop {
        let before = length(part);
        match attempt(client, url, part, deadline, watch, &mut resumed) {
            Ok(()) => return Ok(resumed),
            Err(error) if !error.is_transient() || deadline.passed() => return Err(error),
            Err(error) => {
                let brought = length(part).saturating_sub(before);
                // A tenth of what was missing is worth it too, be it small.
                let worth = brought >= WORTH || brought >= error.missing().max(10) / 10;
                fruitless = if worth { 0 } else { fruitless + 1 };
                if fruitless >= FRUITLESS {
                    return Err(error);
                }
                watch.retry(&error);
                let pause = Duration::from_millis(250 << fruitless);
                signal::sleep(pause.min(deadline.remaining())).map_err(FetchError::Interrupted)?;
            }
        }
    }
}

/// One request, from where the part ends.
fn attempt(
    client: &Client,
    url: &str,
    part: &Path,
    deadline: &Deadline,
    watch: &mut dyn Watch,
    resumed: &mut bool,
) -> Result<(), FetchError> {
    let resume = Resume::read(part, url);
    let mut transfer = Transfer::start(client, url, &resume, deadline);
    let head = transfer.head()?;
    let io = |error| FetchError::Local(part.to_owned(), error);
    let mut got = if head.from == resume.from { head.from } else { 0 };
    watch.room(head.length.map_or(0, |l| l.saturating_sub(got))).map_err(io)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(got == 0)
        .append(got > 0)
        .mode(0o600)
        .open(part)
        .map_err(io)?;
    *resumed |= got > 0;
    if got == 0 {
        *resumed = false;
        Resume::write(part, url, head.validator.as_deref()).map_err(io)?;
    }
    while let Some(chunk) = transfer.next()? {
        file.write_all(&chunk).map_err(io)?;
        got += chunk.len() as u64;
        watch.progress(got, head.length);
    }
    file.sync_all().map_err(io)?;
    let _ = std::fs::remove_file(Resume::notes(part));
    Ok(())
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// From where a transfer starts.
#[derive(Clone, Default)]
struct Resume {
    from: u64,
    /// ETag or Last-Modified of the file that the part belongs to.
    validator: Option<String>,
}

impl Resume {
    fn notes(part: &Path) -> PathBuf {
        let mut name = part.file_name().unwrap_or_default().to_owned();
        name.push(".from");
        part.with_file_name(name)
    }

    /// What is known about a part: only one with a validator, from the same
    /// URL, can be continued.
    fn read(part: &Path, url: &str) -> Resume {
        let text = std::fs::read_to_string(Resume::notes(part)).unwrap_or_default();
        match text.split_once('\n') {
            Some((from, validator)) if from == url && !validator.trim().is_empty() => {
                Resume { from: length(part), validator: Some(validator.trim().to_owned()) }
            }
            _ => Resume::default(),
        }
    }

    fn write(part: &Path, url: &str, validator: Option<&str>) -> io::Result<()> {
        let text = format!("{url}\n{}\n", validator.unwrap_or_default());
        super::replace::replace_own(&Resume::notes(part), text.as_bytes(), 0o600)
    }
}

/// The beginning of an answer.
#[derive(Debug, Default)]
struct Head {
    /// The file's whole length.
    length: Option<u64>,
    /// Where the body starts in the file.
    from: u64,
    validator: Option<String>,
}

enum Message {
    Head(Head),
    Chunk(Vec<u8>),
    End,
    Failed(FetchError),
}

/// A transfer in its thread, seen from here.
struct Transfer {
    url: String,
    messages: Receiver<Message>,
    deadline: Deadline,
    stall: Duration,
    connect: Duration,
    got: u64,
    length: Option<u64>,
}

impl Transfer {
    fn start(client: &Client, url: &str, resume: &Resume, deadline: &Deadline) -> Transfer {
        let (sender, messages) = sync_channel(4);
        let worker = Worker {
            client: client.clone(),
            url: url.to_owned(),
            resume: resume.clone(),
            left: deadline.remaining().max(Duration::from_millis(1)),
            sender,
        };
        std::thread::spawn(move || worker.run());
        Transfer {
            url: text::line(url.as_bytes()),
            messages,
            deadline: *deadline,
            stall: client.stall,
            connect: client.connect,
            got: 0,
            length: None,
        }
    }

    fn head(&mut self) -> Result<Head, FetchError> {
        // Name service, connection and TLS come before the first byte.
        let patience = self.stall + self.connect;
        match self.wait(patience)? {
            Message::Head(head) => {
                self.got = head.from;
                self.length = head.length;
                Ok(head)
            }
            _ => Err(self.cut("")),
        }
    }

    /// The next bytes; `None` at the end of the whole file.
    fn next(&mut self) -> Result<Option<Vec<u8>>, FetchError> {
        match self.wait(self.stall)? {
            Message::Chunk(bytes) => {
                self.got += bytes.len() as u64;
                Ok(Some(bytes))
            }
            _ if self.length.is_some_and(|length| self.got != length) => Err(self.cut("")),
            _ => Ok(None),
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<Message, FetchError> {
        let since = Instant::now();
        loop {
            signal::check().map_err(FetchError::Interrupted)?;
            let (url, got) = (self.url.clone(), self.got);
            match self.messages.recv_timeout(Duration::from_millis(50)) {
                Ok(Message::Failed(FetchError::Cut { why, .. })) => return Err(self.cut(&why)),
                Ok(Message::Failed(error)) => return Err(error),
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(self.cut("")),
                Err(RecvTimeoutError::Timeout) if self.deadline.passed() => {
                    return Err(FetchError::TooSlow { url, after: self.deadline.span(), got });
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() >= patience => {
                    return Err(FetchError::Stalled { url, after: patience, got, of: self.length });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn cut(&self, why: &str) -> FetchError {
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        FetchError::Cut { url: self.url.clone(), got: self.got, of: self.length, why }
    }
}

/// The thread's side.
struct Worker {
    client: Client,
    url: String,
    resume: Resume,
    left: Duration,
    sender: SyncSender<Message>,
}

impl Worker {
    fn run(self) {
        let done = match local(&self.url) {
            Some(path) => self.file(&path),
            None => self.http(),
        };
        let last = match done {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        // Nobody listens any more after a stall: then nobody cares.
        let _ = self.sender.send(last);
    }

    fn file(&self, path: &Path) -> Result<(), FetchError> {
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => FetchError::Missing(path.to_owned()),
            _ => FetchError::Local(path.to_owned(), error),
        };
        // A FIFO in its place must not block for ever.
        let file =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(FetchError::Unreachable(path.display().to_string(), "not a regular file".into()));
        }
        let length = Some(meta.len());
        self.say(Message::Head(Head { length, ..Head::default() }));
        self.body(file)
    }

    fn http(&self) -> Result<(), FetchError> {
        let unreachable = |error: ureq::Error| {
            let url = text::line(self.url.as_bytes());
            match error {
                ureq::Error::Timeout(ureq::Timeout::Global) => {
                    FetchError::TooSlow { url, after: self.left, got: self.resume.from }
                }
                error => FetchError::Unreachable(url, explain(&error)),
            }
        };
        let mut request = self.agent().get(&self.url);
        if let (from @ 1.., Some(validator)) = (self.resume.from, &self.resume.validator) {
            request = request.header("Range", format!("bytes={from}-")).header("If-Range", validator);
        }
        let response = request.call().map_err(unreachable)?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let body_length = header("content-length").and_then(|v| v.parse::<u64>().ok());
        let head = match status {
            200 => Head { length: body_length, from: 0, validator: validator(&header) },
            206 => match header("content-range").and_then(content_range) {
                Some((from, length)) if from == self.resume.from => Head { length, from, validator: None },
                _ => return Err(FetchError::Status(text::line(self.url.as_bytes()), status)),
            },
            // The part is as long as the file, or longer: it cannot be
            // continued; the caller's checks tell whether it is whole.
            416 if self.resume.from > 0 => {
                Head { length: Some(self.resume.from), from: self.resume.from, validator: None }
            }
            _ => return Err(FetchError::Status(text::line(self.url.as_bytes()), status)),
        };
        self.say(Message::Head(head));
        if status == 416 {
            return Ok(());
        }
        self.body(response.into_body().into_reader())
    }

    fn body(&self, mut reader: impl Read) -> Result<(), FetchError> {
        loop {
            let mut chunk = vec![0; CHUNK];
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    chunk.truncate(n);
                    if !self.say(Message::Chunk(chunk)) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let why = text::line(error.to_string().as_bytes());
                    return Err(FetchError::Cut { url: String::new(), got: 0, of: None, why });
                }
            }
        }
    }

    fn say(&self, message: Message) -> bool {
        self.sender.send(message).is_ok()
    }

    fn agent(&self) -> ureq::Agent {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            // An answer that leads from https to http would be no https.
            .https_only(self.url.starts_with("https://"))
            .tls_config(tls)
            .proxy(self.proxy())
            .user_agent(concat!("phoenix-nvidia/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.client.connect))
            .timeout_connect(Some(self.client.connect))
            .timeout_per_read(Some(self.client.stall))
            .timeout_global(Some(self.left))
            .build()
            .new_agent()
    }

    fn proxy(&self) -> Option<Proxy> {
        if is_loopback(&self.url) {
            return None;
        }
        Proxy::try_from_env().or_else(|| Proxy::new(self.client.proxy.as_deref()?).ok())
    }
}

/// What tells this file from a later one at the same URL. A weak ETag does
/// not: servers must not resume by it.
fn validator<'a>(header: &dyn Fn(&str) -> Option<&'a str>) -> Option<String> {
    let etag = header("etag").filter(|tag| !tag.starts_with("W/"));
    etag.or_else(|| header("last-modified")).map(ToOwned::to_owned)
}

/// `bytes 100-199/200`: where it starts, and the whole length.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, length) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    Some((from.parse().ok()?, length.parse().ok()))
}

/// ureq's error as a person reads it.
fn explain(error: &ureq::Error) -> String {
    let words = match error {
        ureq::Error::HostNotFound => "the host's name is not known (name service)".to_owned(),
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        ureq::Error::RequireHttpsOnly(_) => "the server leads from https to http: refused".to_owned(),
        other => other.to_string(),
    };
    text::line(words.as_bytes())
}

/// Opens a file for reading, refusing what is no regular file.
///
/// # Errors
/// What open or fstat say.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("not a regular file"))
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
