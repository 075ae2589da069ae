//! Accepting connections: a thread for each, since a lab has a handful of clients.

use super::Site;
use super::fault::Fault;
use super::http::Head;
use super::log::{self, Writer};
use super::respond::{Outcome, respond};
use super::wire::{self, Wire};
use anyhow::{Context, Result};
use rustls::ServerConfig;
use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// An idle connection is closed after this; apt and ureq open a new one by themselves.
const IDLE: Duration = Duration::from_secs(60);

/// What the threads of a server share.
struct Shared {
    site: Site,
    log: Writer,
    /// How often each fault rule has struck, by its id.
    struck: Mutex<HashMap<String, u64>>,
    stop: AtomicBool,
}

impl Shared {
    fn new(site: Site) -> Result<Self> {
        let log = Writer::open(&site.log())?;
        // What struck under a server before this one stays used up.
        let mut struck: HashMap<String, u64> = HashMap::new();
        for id in log::struck(&site.log())? {
            *struck.entry(id).or_insert(0) += 1;
        }
        Ok(Self { site, log, struck: Mutex::new(struck), stop: AtomicBool::new(false) })
    }

    /// The fault for a request. A rule file that can't be read is a fault too: the test is to see it, not to pass.
    fn fault(&self, request: &str, path: &str) -> Option<Fault> {
        let Ok(rules) = self.site.faults().rules() else {
            return Some(Fault::Status(500));
        };
        let mut struck = self.struck.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for rule in rules.into_iter().filter(|rule| rule.matches(path)) {
            let count = struck.entry(rule.id.clone()).or_insert(0);
            if rule.times.is_none_or(|times| *count < times) {
                *count += 1;
                self.log.fault(request, &rule.id);
                return Some(rule.fault);
            }
        }
        None
    }

    fn connection(&self, socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Result<()> {
        socket.set_read_timeout(Some(IDLE))?;
        socket.set_nodelay(true)?;
        let mut wire = BufReader::new(Wire::new(socket, tls)?);
        let mut torn = false;
        while let Some(head) = Head::read(&mut wire)? {
            let id = self.log.request(&head);
            let fault = self.fault(&id, &head.path);
            if head.method == "CONNECT" && fault.is_none() {
                return self.tunnel(&id, &head.path, wire);
            }
            let mut outcome = Outcome::default();
            let sent = respond(&head, &self.site, fault.as_ref(), wire.get_mut(), &mut outcome);
            self.log.answer(&id, outcome.status, outcome.sent);
            sent?;
            torn = outcome.torn;
            if outcome.close || !head.keep_alive() {
                break;
            }
        }
        let wire = wire.get_mut();
        if torn {
            wire.socket().shutdown(Shutdown::Both)?
        } else {
            wire.end()?
        }
        Ok(())
    }

    /// As a proxy does for https: connects to the host that was asked for and passes the bytes on, both ways.
    fn tunnel(&self, id: &str, target: &str, wire: BufReader<Wire>) -> Result<()> {
        let mut client = wire.get_ref().socket().try_clone()?;
        let Ok(mut server) = TcpStream::connect(target) else {
            self.log.answer(id, Some(502), 0);
            return Ok(client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")?);
        };
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        server.write_all(wire.buffer())?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let upward = thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            to_server.shutdown(Shutdown::Write)
        });
        let sent = std::io::copy(&mut server, &mut client);
        client.shutdown(Shutdown::Both)?;
        let _ = upward.join();
        self.log.answer(id, Some(200), sent.unwrap_or(0));
        Ok(())
    }
}

/// Serves a site until the process ends, on listeners without and with TLS (which needs [`Site::certify`] first): the
/// body of `lab-web`.
pub fn serve(plain: Vec<TcpListener>, with_tls: Vec<TcpListener>, site: Site) -> Result<()> {
    let config = if with_tls.is_empty() { None } else { Some(config(&site)?) };
    let shared = Arc::new(Shared::new(site)?);
    let plain = plain.into_iter().map(|listener| (listener, None));
    let all = plain.chain(with_tls.into_iter().map(|listener| (listener, config.clone())));
    let loops: Vec<_> = all
        .map(|(listener, tls)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(&listener, tls.as_ref(), &shared))
        })
        .collect();
    for each in loops {
        let _ = each.join();
    }
    Ok(())
}

fn config(site: &Site) -> Result<Arc<ServerConfig>> {
    let [certificate, key] = site.tls();
    wire::config(&certificate, &key)
}

fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>, shared: &Arc<Shared>) {
    for socket in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // Out of file descriptors, or a client that is gone already: the next one may be luckier.
        let Ok(socket) = socket else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        // A broken connection is the client's business; what was sent is in the log.
        thread::spawn(move || shared.connection(socket, tls.as_ref()).ok());
    }
}

/// A server in this process; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("site", &self.site).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves a site on a listener.
    pub fn start(listener: TcpListener, site: Site) -> Result<Self> {
        Self::with(listener, None, site)
    }

    /// Serves a site with TLS; it needs [`Site::certify`] first.
    pub fn start_tls(listener: TcpListener, site: Site) -> Result<Self> {
        let tls = config(&site)?;
        Self::with(listener, Some(tls), site)
    }

    fn with(listener: TcpListener, tls: Option<Arc<ServerConfig>>, site: Site) -> Result<Self> {
        let address = listener.local_addr().context("asking a listener for its address")?;
        let shared = Arc::new(Shared::new(site)?);
        let for_loop = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, tls.as_ref(), &for_loop));
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.address, path.trim_start_matches('/'))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the loop, which otherwise waits for a client.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok();
        if let (true, Some(accepting)) = (woken, self.accepting.take()) {
            let _ = accepting.join();
        }
    }
}

#[cfg(test)]
mod tests;
