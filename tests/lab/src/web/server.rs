//! Accepting connections: a thread for each, since a lab has a handful of clients.

use super::Site;
use super::fault::Fault;
use super::http::Head;
use super::log::{self, Writer};
use super::respond::{Outcome, respond};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::BufReader;
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

    fn connection(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_nodelay(true)?;
        let mut to = stream.try_clone()?;
        let mut from = BufReader::new(stream);
        while let Some(head) = Head::read(&mut from)? {
            let range = head.header("range");
            let id = self.log.request(&head.method, &head.path, range, head.header("user-agent"));
            let fault = self.fault(&id, &head.path);
            let mut outcome = Outcome::default();
            let sent = respond(&head, &self.site, fault.as_ref(), &mut to, &mut outcome);
            self.log.answer(&id, outcome.status, outcome.sent);
            sent?;
            if outcome.close || !head.keep_alive() {
                break;
            }
        }
        // The peer learns of the end even while another handle of the socket lives.
        to.shutdown(Shutdown::Both)?;
        Ok(())
    }
}

/// Serves a site on listeners until the process ends: the body of `lab-web`.
pub fn serve(listeners: Vec<TcpListener>, site: Site) -> Result<()> {
    let shared = Arc::new(Shared::new(site)?);
    let loops: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(&listener, &shared))
        })
        .collect();
    for each in loops {
        let _ = each.join();
    }
    Ok(())
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // Out of file descriptors, or a client that is gone already: the next one may be luckier.
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let shared = Arc::clone(shared);
        // A broken connection is the client's business; what was sent is in the log.
        thread::spawn(move || shared.connection(stream).ok());
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
        let address = listener.local_addr().context("asking a listener for its address")?;
        let shared = Arc::new(Shared::new(site)?);
        let for_loop = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, &for_loop));
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
