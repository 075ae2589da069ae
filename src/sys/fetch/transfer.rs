//! One transfer, in its own thread.

use super::answer::{Range, explain, validator};
use super::error::FetchError;
use crate::sys::file;
use crate::sys::signal;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::sys::url::Url;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Proxy;
use ureq::tls::{RootCerts, TlsConfig};

/// The size of a chunk, in bytes.
const CHUNK: usize = 256 * 1024;

/// The limit of redirects.
const HOPS: usize = 8;
/// The size limit of the notes about a part, in bytes.
const NOTES: u64 = 4096;

/// Timeouts and proxy.
#[derive(Clone, Debug)]
pub struct Client {
    /// The timeout of a connection.
    pub connect: Duration,
    /// The time limit without data.
    pub stall: Duration,
    /// The proxy, unless the environment names one.
    pub proxy: Option<Url>,
}

/// The transport that a file needs. Redirects follow the same rule, and https
/// never becomes http.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One that cannot be tampered with: [`Url::has_trusted_transport`].
    Trusted,
    /// Any: the caller verifies a checksum or a signature.
    Any,
}

/// The size of a file, 0 if absent.
pub(super) fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// The position at which a transfer starts.
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

    /// Reads the notes about a part. It can be resumed only if it has a validator,
    /// is from the same URL, and does not exceed the size limit.
    pub(super) fn read(part: &Path, url: &Url, max: u64) -> Resume {
        let text = file::text(&Resume::notes(part), NOTES).unwrap_or_default();
        let from = length(part);
        match text.split_once('\n') {
            Some((whose, validator))
                if whose == url.identity() && !validator.trim().is_empty() && from <= max =>
            {
                Resume { from, validator: Some(validator.trim().to_owned()) }
            }
            _ => Resume::default(),
        }
    }

    /// Writes the URL as its identity, since it may have a password.
    pub(super) fn write(part: &Path, url: &Url, validator: Option<&str>) -> io::Result<()> {
        let validator = validator.filter(|v| v.len() < NOTES as usize / 2);
        let text = format!("{}\n{}\n", url.identity(), validator.unwrap_or_default());
        crate::sys::replace::replace_own(&Resume::notes(part), text.as_bytes(), 0o600)
    }
}

/// The header of a response.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The length of the whole file.
    pub(super) length: Option<u64>,
    /// The position of the body in the file.
    pub(super) from: u64,
    pub(super) validator: Option<String>,
}

enum Message {
    Head(Head),
    Chunk(Vec<u8>),
    End,
    Failed(FetchError),
}

/// A running transfer, for the thread that waits for it.
pub(super) struct Transfer {
    /// For messages.
    url: String,
    messages: Receiver<Message>,
    deadline: Deadline,
    stall: Duration,
    connect: Duration,
    got: u64,
    length: Option<u64>,
}

impl Transfer {
    pub(super) fn start(
        client: &Client,
        url: &Url,
        transport: Transport,
        resume: &Resume,
        deadline: &Deadline,
    ) -> Transfer {
        let (sender, messages) = sync_channel(4);
        let worker = Worker {
            client: client.clone(),
            url: url.clone(),
            transport,
            resume: resume.clone(),
            deadline: *deadline,
            sender,
        };
        std::thread::spawn(move || worker.run());
        Transfer {
            url: url.to_string(),
            messages,
            deadline: *deadline,
            stall: client.stall,
            connect: client.connect,
            got: 0,
            length: None,
        }
    }

    pub(super) fn head(&mut self) -> Result<Head, FetchError> {
        // DNS, connection and TLS come before the first byte.
        match self.wait(self.stall + self.connect)? {
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
                self.got = self.got.saturating_add(bytes.len() as u64);
                match self.length {
                    Some(length) if self.got > length => {
                        Err(FetchError::Odd(self.url.clone(), "more data than its Content-Length".into()))
                    }
                    _ => Ok(Some(bytes)),
                }
            }
            _ if self.length.is_some_and(|length| self.got != length) => Err(self.cut("")),
            _ => Ok(None),
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<Message, FetchError> {
        let since = Instant::now();
        loop {
            signal::check().map_err(FetchError::Interrupted)?;
            let (url, got) = (self.url.clone(), self.got);
            match self.messages.recv_timeout(Duration::from_millis(50)) {
                // The timeouts of the transfer thread may expire first.
                Ok(Message::Failed(FetchError::Cut { .. })) if self.deadline.passed() => {
                    return Err(FetchError::TooSlow { url, after: self.deadline.span(), got });
                }
                Ok(Message::Failed(FetchError::Cut { .. })) if since.elapsed() >= timeout => {
                    return Err(FetchError::Stalled { url, after: timeout, got, of: self.length });
                }
                Ok(Message::Failed(FetchError::Cut { why, .. })) => return Err(self.cut(&why)),
                Ok(Message::Failed(error)) => return Err(error),
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(self.cut("")),
                Err(RecvTimeoutError::Timeout) if self.deadline.passed() => {
                    return Err(FetchError::TooSlow { url, after: self.deadline.span(), got });
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() >= timeout => {
                    return Err(FetchError::Stalled { url, after: timeout, got, of: self.length });
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

/// The transfer thread.
struct Worker {
    client: Client,
    url: Url,
    transport: Transport,
    resume: Resume,
    deadline: Deadline,
    sender: SyncSender<Message>,
}

impl Worker {
    fn run(self) {
        let done = match self.url.local() {
            Some(path) => self.file(&path),
            None => self.http(),
        };
        let last = match done {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        // Fails if the receiver gave up.
        let _ = self.sender.send(last);
    }

    fn file(&self, path: &Path) -> Result<(), FetchError> {
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => FetchError::Missing(path.to_owned()),
            _ => FetchError::Local(path.to_owned(), error),
        };
        let (file, meta) = file::open(path).map_err(io)?;
        let length = Some(meta.len());
        self.say(Message::Head(Head { length, ..Head::default() }));
        self.body(file)
    }

    /// Sends the request and follows allowed redirects.
    fn http(&self) -> Result<(), FetchError> {
        if self.transport == Transport::Trusted && !self.url.has_trusted_transport() {
            return Err(FetchError::Untrusted(self.url.to_string()));
        }
        let mut url = self.url.clone();
        for _ in 0..HOPS {
            let response = self.ask(&url)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return self.answer(&url, response);
            }
            let location = response.headers().get("location").and_then(|v| v.to_str().ok());
            url = hop(self.transport, &url, location.unwrap_or_default())?;
        }
        Err(FetchError::Redirect(self.url.to_string(), url.to_string(), "too many redirects"))
    }

    /// Sends one request. User name and password go only to the server of the
    /// first URL.
    fn ask(&self, url: &Url) -> Result<Response, FetchError> {
        let left = self.deadline.remaining().max(Duration::from_millis(1));
        let mut request = self.agent(url, left).get(url.request());
        if let Some(login) = self.url.login().filter(|_| self.url.same_server(url)) {
            let pair = format!("{}:{}", login.user, login.password);
            request = request.header("Authorization", format!("Basic {}", STANDARD.encode(pair)));
        }
        if let (from @ 1.., Some(validator)) = (self.resume.from, &self.resume.validator) {
            request = request.header("Range", format!("bytes={from}-")).header("If-Range", validator);
        }
        request.call().map_err(|error| match error {
            ureq::Error::Timeout(ureq::Timeout::Global) => {
                FetchError::TooSlow { url: url.to_string(), after: left, got: self.resume.from }
            }
            error => FetchError::Unreachable(url.to_string(), explain(&error)),
        })
    }

    fn answer(&self, url: &Url, response: Response) -> Result<(), FetchError> {
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let from = self.resume.from;
        let odd = |why: &str| FetchError::Odd(url.to_string(), why.to_owned());
        let announced = match header("content-length") {
            Some(text) => {
                Some(text.trim().parse::<u64>().map_err(|_| odd("its Content-Length is not a number"))?)
            }
            None => None,
        };
        let range = header("content-range").and_then(Range::parse);
        let head = match (status, range) {
            (200, _) => Head { length: announced, from: 0, validator: validator(&header) },
            (206, Some(range)) if from > 0 && range.is_rest(from, announced) => {
                Head { length: range.whole, from, validator: None }
            }
            (206, _) => return Err(odd("the server sends another range than requested")),
            // The part is the whole file; the caller verifies it.
            (416, Some(range)) if from > 0 && range.whole == Some(from) => {
                self.say(Message::Head(Head { length: Some(from), from, validator: None }));
                return Ok(());
            }
            (416, _) if from > 0 => return Err(odd("the file on the server has changed")),
            _ => return Err(FetchError::Status(url.to_string(), status)),
        };
        self.say(Message::Head(head));
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

    fn agent(&self, url: &Url, left: Duration) -> ureq::Agent {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are checked in hop().
            .max_redirects(0)
            .https_only(url.is_https())
            .tls_config(tls)
            .proxy(self.proxy(url))
            .user_agent(concat!("phoenix-nvidia/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.client.connect))
            .timeout_connect(Some(self.client.connect))
            // Ends the thread; the receiver notices a stall earlier.
            .timeout_per_read(Some(self.client.stall * 2))
            .timeout_global(Some(left + self.client.stall))
            .build()
            .new_agent()
    }

    fn proxy(&self, url: &Url) -> Option<Proxy> {
        if url.is_loopback() {
            return None;
        }
        Proxy::try_from_env().or_else(|| {
            let named = self.client.proxy.as_ref()?;
            let proxy = named.with_login(Proxy::new);
            proxy
                .map_err(|_| log::warn!("http_proxy {named} of the node is not usable, connecting without"))
                .ok()
        })
    }
}

/// The target of a redirect, if allowed.
pub(super) fn hop(transport: Transport, from: &Url, location: &str) -> Result<Url, FetchError> {
    let refused = |to: String, why| Err(FetchError::Redirect(from.to_string(), to, why));
    let Some(to) = from.follow(location).ok().filter(|_| !location.is_empty()) else {
        let to = text::line(text::hidden(location).as_bytes());
        return refused(to, "not an http or https URL");
    };
    match (from.is_https(), to.is_https()) {
        (_, true) => Ok(to),
        (true, false) => refused(to.to_string(), "https to http"),
        (false, false) if transport == Transport::Any || to.is_loopback() => Ok(to),
        (false, false) => refused(to.to_string(), "http without a checksum is not trusted"),
    }
}

type Response = ureq::http::Response<ureq::Body>;
