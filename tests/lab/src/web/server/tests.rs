use super::*;
use crate::web::Fault;
use std::io::{Read, Write};
use std::time::Instant;

/// A server with one document of 300,000 bytes at /a.run.
struct Lab {
    _dir: tempfile::TempDir,
    site: Site,
    server: Server,
    document: Vec<u8>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::create(dir.path()).unwrap();
        let document: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        site.put("/a.run", &document).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::start(listener, site.clone()).unwrap();
        Self { _dir: dir, site, server, document }
    }

    /// Sends one request and reads until the server closes.
    fn ask(&self, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::parse(&bytes)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self { status: 0, head: String::new(), body: Vec::new() };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

#[test]
fn documents_ranges_and_unchanged_ones_are_served() {
    let lab = Lab::new();
    let whole = lab.ask("/a.run", "");
    assert_eq!((whole.status, whole.header("Content-Length")), (200, Some("300000")));
    assert_eq!(whole.body, lab.document);
    let part = lab.ask("/a.run", "Range: bytes=299990-\r\n");
    assert_eq!(part.status, 206);
    assert_eq!(part.header("Content-Range"), Some("bytes 299990-299999/300000"));
    assert_eq!(part.body, lab.document[299_990..]);
    assert_eq!(lab.ask("/a.run", "Range: bytes=300000-\r\n").status, 416);
    let other = lab.ask("/a.run", "Range: bytes=5-\r\nIf-Range: \"other\"\r\n");
    assert_eq!((other.status, other.body.len()), (200, 300_000));
    let date = whole.header("Last-Modified").unwrap();
    assert_eq!(lab.ask("/a.run", &format!("If-Modified-Since: {date}\r\n")).status, 304);
    assert_eq!(lab.ask("/b.run", "").status, 404);
    assert_eq!(lab.ask("/../requests", "").status, 404);
    assert_eq!(lab.ask("/", "").status, 404);
    let log = lab.site.requests().unwrap();
    assert_eq!(log.of("/a.run").len(), 5);
    assert_eq!(log.of("/a.run")[1].range.as_deref(), Some("bytes=299990-"));
    assert_eq!(log.of("/a.run")[0].sent, 300_000);
    assert!(log.all().iter().all(|request| request.ended), "{log:?}");
}

#[test]
fn one_connection_carries_pipelined_requests() {
    let lab = Lab::new();
    lab.site.put("/b", b"bb").unwrap();
    let mut stream = TcpStream::connect(lab.server.address()).unwrap();
    let last = "GET /b HTTP/1.1\r\nConnection: close\r\n\r\n";
    write!(stream, "HEAD /a.run HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n{last}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert_eq!(text.matches("\r\n\r\nbb").count(), 2, "{text}");
}

#[test]
fn faults_strike_where_and_as_often_as_told() {
    let lab = Lab::new();
    let faults = lab.site.faults();
    faults.times("*.run", 1, Fault::Status(503)).unwrap();
    faults.times("*.run", 1, Fault::Cut(1_000)).unwrap();
    faults.times("*.run", 1, Fault::Garbage).unwrap();
    faults.times("*.run", 1, Fault::LoginPage).unwrap();
    faults.times("*.run", 1, Fault::NoRange).unwrap();
    faults.times("*.run", 1, Fault::NoLength).unwrap();
    faults.times("*.run", 1, Fault::Redirect("http://lab/b".to_owned())).unwrap();
    faults.times("*.run", 1, Fault::Hangup).unwrap();
    lab.site.put("/b", b"bb").unwrap();
    assert_eq!(lab.ask("/b", "").status, 200);
    assert_eq!(lab.ask("/a.run", "").status, 503);
    let cut = lab.ask("/a.run", "");
    assert_eq!((cut.header("Content-Length"), cut.body.len()), (Some("300000"), 1_000));
    let garbage = lab.ask("/a.run", "");
    assert!(garbage.status == 200 && garbage.body.len() == 300_000 && garbage.body != lab.document);
    assert!(lab.ask("/a.run", "").head.contains("text/html"));
    assert_eq!(lab.ask("/a.run", "Range: bytes=9-\r\n").status, 200);
    let endless = lab.ask("/a.run", "");
    assert_eq!((endless.header("Content-Length"), endless.body.len()), (None, 300_000));
    assert_eq!(lab.ask("/a.run", "").header("Location"), Some("http://lab/b"));
    assert_eq!(lab.ask("/a.run", "").status, 0);
    assert_eq!(lab.ask("/a.run", "").body, lab.document);
    faults.set("/a.run", Fault::Status(404)).unwrap();
    assert_eq!(lab.ask("/a.run", "").status, 404);
    faults.clear().unwrap();
    assert_eq!(lab.ask("/a.run", "").status, 200);
}

#[test]
fn a_fault_that_is_used_up_stays_so_when_the_server_starts_anew() {
    let mut lab = Lab::new();
    lab.site.faults().times("*", 2, Fault::Status(503)).unwrap();
    assert_eq!(lab.ask("/a.run", "").status, 503);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    lab.server = Server::start(listener, lab.site.clone()).unwrap();
    assert_eq!(lab.ask("/a.run", "").status, 503);
    assert_eq!(lab.ask("/a.run", "").status, 200);
}

#[test]
fn a_stalled_answer_stops_in_the_middle_and_is_logged_at_its_end() {
    let lab = Lab::new();
    lab.site.faults().set("/a.run", Fault::Stall(5_000)).unwrap();
    let mut stream = TcpStream::connect(lab.server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    write!(stream, "GET /a.run HTTP/1.1\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    assert!(stream.read_to_end(&mut bytes).is_err(), "the end came");
    assert_eq!(Answer::parse(&bytes).body.len(), 5_000);
    assert!(!lab.site.requests().unwrap().of("/a.run")[0].ended);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !lab.site.requests().unwrap().of("/a.run")[0].ended {
        assert!(Instant::now() < deadline, "the end of the stall isn't in the log");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_slow_server_is_slow() {
    let lab = Lab::new();
    lab.site.faults().set("/a.run", Fault::Slow(600_000)).unwrap();
    let started = Instant::now();
    assert_eq!(lab.ask("/a.run", "").body, lab.document);
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

/// Gets a URL with wget, a client that is not ours.
fn wget(arguments: &[&str], proxy: &str) -> std::process::Output {
    let mut wget = std::process::Command::new("wget");
    wget.env("http_proxy", proxy).env("https_proxy", proxy).env_remove("no_proxy");
    wget.args(["-q", "-t", "1", "-T", "20", "-O", "-"]).args(arguments).output().unwrap()
}

#[test]
fn tls_is_spoken_with_a_certificate_of_the_labs_authority() {
    let lab = Lab::new();
    let authority = lab.site.base().join("ca.pem");
    std::fs::write(&authority, lab.site.certify().unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = Server::start_tls(listener, lab.site.clone()).unwrap();
    let url = format!("https://{}/a.run", tls.address());
    let trust = format!("--ca-certificate={}", authority.display());
    let trusted = wget(&[&trust, &url], "");
    assert!(trusted.status.success() && trusted.stdout == lab.document, "{:?}", trusted.status);
    assert_eq!(wget(&[&url], "").status.code(), Some(5));
    lab.site.faults().set("*", Fault::Cut(1_000)).unwrap();
    assert!(!wget(&[&trust, &url], "").status.success());
}

#[test]
fn it_is_a_proxy_too() {
    let lab = Lab::new();
    let authority = lab.site.base().join("ca.pem");
    std::fs::write(&authority, lab.site.certify().unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = Server::start_tls(listener, lab.site.clone()).unwrap();
    let proxy = lab.server.url("");
    let plain = wget(&["http://example.com/a.run"], &proxy);
    assert!(plain.stdout == lab.document, "{:?}", plain.status);
    let trust = format!("--ca-certificate={}", authority.display());
    let tunnelled = wget(&[&trust, &format!("https://{}/a.run", tls.address())], &proxy);
    assert!(tunnelled.stdout == lab.document, "{:?}", tunnelled.status);
    let log = lab.site.requests().unwrap();
    let asked: Vec<(&str, bool)> = log.all().iter().map(|one| (one.method.as_str(), one.proxied)).collect();
    assert_eq!(asked, [("GET", true), ("CONNECT", true), ("GET", false)]);
    assert_eq!(log.all()[0].host.as_deref(), Some("example.com"));
}
