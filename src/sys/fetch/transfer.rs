//! One request, in a thread of its own.

use super::{Client, FetchError, is_loopback, length, local};
use crate::sys::file;
use crate::sys::signal;
use crate::sys::text;
use crate::sys::time::Deadline;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Proxy;
use ureq::tls::{RootCerts, TlsConfig};

/// How much is handed over at a time, in bytes.
const CHUNK: usize = 256 * 1024;

/// From where a transfer starts.
#[derive(Clone, Default)]
pub(super) struct Resume {
    pub(super) from: u64,
    /// ETag or Last-Modified of the file that the part belongs to.
    validator: Option<String>,
}

impl Resume {
    pub(super) fn notes(part: &Path) -> PathBuf {
        let mut name = part.file_name().unwrap_or_default().to_owned();
        name.push(".from");
        part.with_file_name(name)
    }

    /// What is known about a part: only one with a validator, from the same
    /// URL, can be continued.
    pub(super) fn read(part: &Path, url: &str) -> Resume {
        let text = file::text(&Resume::notes(part), 64 * 1024).unwrap_or_default();
        match text.split_once('\n') {
            Some((from, validator)) if from == url && !validator.trim().is_empty() => {
                Resume { from: length(part), validator: Some(validator.trim().to_owned()) }
            }
            _ => Resume::default(),
        }
    }

    pub(super) fn write(part: &Path, url: &str, validator: Option<&str>) -> io::Result<()> {
        let text = format!("{url}\n{}\n", validator.unwrap_or_default());
        crate::sys::replace::replace_own(&Resume::notes(part), text.as_bytes(), 0o600)
    }
}

/// The beginning of an answer.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The file's whole length.
    pub(super) length: Option<u64>,
    /// Where the body starts in the file.
    pub(super) from: u64,
    pub(super) validator: Option<String>,
}

enum Message {
    Head(Head),
    Chunk(Vec<u8>),
    End,
    Failed(FetchError),
}

/// A transfer in its thread, seen from here.
pub(super) struct Transfer {
    url: String,
    messages: Receiver<Message>,
    deadline: Deadline,
    stall: Duration,
    connect: Duration,
    got: u64,
    length: Option<u64>,
}

impl Transfer {
    pub(super) fn start(client: &Client, url: &str, resume: &Resume, deadline: &Deadline) -> Transfer {
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

    pub(super) fn head(&mut self) -> Result<Head, FetchError> {
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
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, FetchError> {
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
        Proxy::try_from_env().or_else(|| match Proxy::new(self.client.proxy.as_deref()?) {
            Ok(proxy) => Some(proxy),
            Err(error) => {
                log::warn!("the node's http_proxy cannot be used, going without: {error}");
                None
            }
        })
    }
}

/// What tells this file from a later one at the same URL. A weak ETag does
/// not: servers must not resume by it.
fn validator<'a>(header: &dyn Fn(&str) -> Option<&'a str>) -> Option<String> {
    let etag = header("etag").filter(|tag| !tag.starts_with("W/"));
    etag.or_else(|| header("last-modified")).map(ToOwned::to_owned)
}

/// `bytes 100-199/200`: where it starts, and the whole length.
pub(super) fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
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
