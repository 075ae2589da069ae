//! The request log: one line when a request comes, one when a fault strikes it, one when its answer ended.

use super::http::Head;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// One request, in the order of their coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    id: String,
    /// `GET`, `HEAD`, or `CONNECT`, whose path is `host:port`.
    pub method: String,
    /// The path, decoded, without a query.
    pub path: String,
    /// The value of the `Range` header.
    pub range: Option<String>,
    /// The value of the `User-Agent` header.
    pub agent: Option<String>,
    /// The value of the `Host` header: which of its names the server was asked by.
    pub host: Option<String>,
    /// Whether the server was asked as a proxy: with a whole URL, or by CONNECT.
    pub proxied: bool,
    /// What stood behind the `?` of the path.
    pub query: Option<String>,
    /// The value of the `Authorization` header.
    pub authorization: Option<String>,
    /// The status that was answered; nothing while the answer is under way, or when there was none.
    pub status: Option<u16>,
    /// How many bytes of a body were sent.
    pub sent: u64,
    /// Whether the server is done with it.
    pub ended: bool,
}

/// All requests of a log.
#[derive(Debug, Clone, Default)]
pub struct Requests(Vec<Request>);

impl Requests {
    pub(crate) fn read(log: &Path) -> Result<Self> {
        Ok(Self::parse(&text(log)?))
    }

    fn parse(text: &str) -> Self {
        let mut all: Vec<Request> = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                [id, "request", method, path, range, agent, host, proxied, query, authorization] => {
                    all.push(Request {
                        id: id.to_owned(),
                        method: method.to_owned(),
                        path: path.to_owned(),
                        range: some(range),
                        agent: some(agent),
                        host: some(host),
                        proxied: proxied != "-",
                        query: some(query),
                        authorization: some(authorization),
                        status: None,
                        sent: 0,
                        ended: false,
                    })
                }
                [id, "answer", status, sent] => {
                    if let Some(request) = all.iter_mut().find(|request| request.id == id) {
                        request.status = status.parse().ok();
                        request.sent = sent.parse().unwrap_or(0);
                        request.ended = true;
                    }
                }
                _ => {}
            }
        }
        Self(all)
    }

    /// The requests for one path.
    pub fn of(&self, path: &str) -> Vec<&Request> {
        self.0.iter().filter(|request| request.path == path).collect()
    }

    /// The requests for paths that end so, `.run` for example.
    pub fn ending(&self, suffix: &str) -> Vec<&Request> {
        self.0.iter().filter(|request| request.path.ends_with(suffix)).collect()
    }

    /// Every request.
    pub fn all(&self) -> &[Request] {
        &self.0
    }
}

fn text(log: &Path) -> Result<String> {
    match std::fs::read_to_string(log) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("reading {}", log.display())),
    }
}

/// The id of the rule for each time that one struck.
pub(crate) fn struck(log: &Path) -> Result<Vec<String>> {
    let lines = text(log)?;
    let ids = lines.lines().filter_map(|line| line.split_once("\tfault\t").map(|(_, id)| id.to_owned()));
    Ok(ids.collect())
}

fn some(field: &str) -> Option<String> {
    (field != "-").then(|| field.to_owned())
}

/// The server's end of the log.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    count: AtomicU64,
}

impl Writer {
    pub(crate) fn open(log: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        Ok(Self { file, count: AtomicU64::new(0) })
    }

    /// Notes a request and returns the id for its answer. The process id keeps a restarted server's ids apart.
    pub(crate) fn request(&self, head: &Head) -> String {
        let id = format!("{}.{}", std::process::id(), self.count.fetch_add(1, Ordering::Relaxed));
        let header = |name: &str| head.header(name).unwrap_or("-").replace('\t', " ");
        let [range, agent, host] = [header("range"), header("user-agent"), header("host")];
        let (method, path) = (&head.method, head.path.replace('\t', " "));
        let proxied = if head.proxied { "proxied" } else { "-" };
        let query = head.query.as_deref().unwrap_or("-").replace('\t', " ");
        let authorization = header("authorization");
        self.line(&format!(
            "{id}\trequest\t{method}\t{path}\t{range}\t{agent}\t{host}\t{proxied}\t{query}\t{authorization}\n"
        ));
        id
    }

    /// Notes that the rule of this id struck a request.
    pub(crate) fn fault(&self, id: &str, rule: &str) {
        self.line(&format!("{id}\tfault\t{rule}\n"));
    }

    pub(crate) fn answer(&self, id: &str, status: Option<u16>, sent: u64) {
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        self.line(&format!("{id}\tanswer\t{status}\t{sent}\n"));
    }

    /// One write a line, so that threads don't tear each other's. A log that can't be written must not stop serving.
    fn line(&self, line: &str) {
        let _ = (&self.file).write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second_is_proxied(log: &Requests) -> bool {
        log.all()[1].proxied
    }

    #[test]
    fn answers_find_their_requests() {
        let log = Requests::parse(
            "9.0\trequest\tGET\t/a b\t-\tWget\tmirror.lab\t-\tx=1\t-\n9.1\trequest\tHEAD\t/b.run\tbytes=5-\t-\th\tproxied\t-\t-\n9.1\tanswer\t206\t7\n",
        );
        assert_eq!(log.all().len(), 2);
        let [first] = log.of("/a b")[..] else { panic!("{log:?}") };
        assert_eq!(
            (first.host.as_deref(), first.proxied, second_is_proxied(&log)),
            (Some("mirror.lab"), false, true)
        );
        assert!(!first.ended && first.status.is_none() && first.agent.as_deref() == Some("Wget"));
        let [second] = log.ending(".run")[..] else { panic!("{log:?}") };
        assert_eq!((second.status, second.sent, second.range.as_deref()), (Some(206), 7, Some("bytes=5-")));
    }
}
