use super::answer::Range;
use super::*;
use phoenix_lab::web::{Fault, Server, Site};
use std::path::PathBuf;

/// A server, its directory, and the URL of its one file of `length` bytes.
struct Web {
    _dir: tempfile::TempDir,
    _server: Server,
    site: Site,
    url: Url,
    body: Vec<u8>,
    part: PathBuf,
}

fn web(length: usize) -> Web {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::create(dir.path()).unwrap();
    let body: Vec<u8> = (0..length).map(|n| (n / 7 % 251) as u8).collect();
    site.put("/f", &body).unwrap();
    let server = Server::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), site.clone()).unwrap();
    let url = format!("http://{}/f", server.address()).parse().unwrap();
    let part = dir.path().join("f.part");
    Web { _dir: dir, _server: server, site, url, body, part }
}

fn client() -> Client {
    Client { connect: Duration::from_secs(2), stall: Duration::from_millis(300), proxy: None }
}

#[derive(Default)]
struct Notes {
    retries: Vec<String>,
    last: u64,
    full: bool,
    /// How often room was asked for, and the most that was asked for.
    asked: (u32, u64),
    /// Refuses what does not begin so.
    wanted: Option<&'static [u8]>,
    seen: usize,
}

impl Watch for Notes {
    fn room(&mut self, more: u64) -> io::Result<()> {
        self.asked = (self.asked.0 + 1, self.asked.1.max(more));
        if self.full { Err(io::Error::new(io::ErrorKind::StorageFull, "no space")) } else { Ok(()) }
    }
    fn begins(&mut self, bytes: &[u8]) -> Result<bool, String> {
        self.seen = bytes.len();
        match self.wanted {
            Some(wanted) if !bytes.starts_with(wanted) => Err("not that".into()),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }
    fn progress(&mut self, got: u64, _of: Option<u64>) {
        self.last = got;
    }
    fn retry(&mut self, trouble: &FetchError) {
        self.retries.push(trouble.to_string());
    }
}

const MAX: u64 = 64 << 20;

fn get(web: &Web, notes: &mut Notes) -> Result<bool, FetchError> {
    get_of(&web.url, Transport::Trusted, web, notes)
}

fn get_of(url: &Url, transport: Transport, web: &Web, notes: &mut Notes) -> Result<bool, FetchError> {
    let order = Order { url, transport, part: &web.part, max: MAX };
    download(&client(), &order, &Deadline::secs(20), notes)
}

/// Nothing is left of a download.
#[track_caller]
fn nothing_left(web: &Web) {
    assert!(!web.part.exists() && !Resume::notes(&web.part).exists());
}

#[test]
fn a_transfer_that_is_cut_goes_on_where_it_was() {
    let web = web(1_000_000);
    web.site.faults().times("/f", 1, Fault::Cut(300_000)).unwrap();
    let mut notes = Notes::default();
    assert!(get(&web, &mut notes).unwrap());
    assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
    assert_eq!(notes.retries.len(), 1, "{:?}", notes.retries);
    assert_eq!(notes.last, 1_000_000);
    assert!(!Resume::notes(&web.part).exists());
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole_again() {
    let web = web(200_000);
    web.site.faults().times("/f", 1, Fault::Cut(100_000)).unwrap();
    web.site.faults().set("/f", Fault::NoRange).unwrap();
    assert!(!get(&web, &mut Notes::default()).unwrap());
    assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
}

#[test]
fn a_part_of_an_older_file_is_not_continued() {
    let web = web(200_000);
    std::fs::File::create(&web.part).unwrap().write_all(b"old bytes").unwrap();
    Resume::write(&web.part, &web.url, Some("\"another\"")).unwrap();
    assert!(!get(&web, &mut Notes::default()).unwrap());
    assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
}

#[test]
fn a_stalled_server_is_left_and_said_so() {
    let web = web(200_000);
    web.site.faults().set("/f", Fault::Stall(1000)).unwrap();
    let mut notes = Notes::default();
    let error = get(&web, &mut notes).unwrap_err();
    assert!(matches!(error, FetchError::Stalled { .. }), "{error}");
    assert!(error.to_string().contains("stalled"), "{error}");
}

#[test]
fn a_silent_server_a_hangup_and_a_status_are_told_apart() {
    let web = web(10);
    let small = |fault: Fault| {
        web.site.faults().clear().unwrap();
        web.site.faults().set("/f", fault).unwrap();
        let quick = Client { connect: Duration::from_millis(200), ..client() };
        small(&quick, &web.url, Transport::Trusted, 100, &Deadline::secs(5)).unwrap_err()
    };
    let silent = small(Fault::Silent);
    assert!(matches!(silent, FetchError::Stalled { .. } | FetchError::Unreachable(..)), "{silent}");
    assert!(matches!(small(Fault::Hangup), FetchError::Unreachable(..)));
    let missing = small(Fault::Status(404));
    assert!(missing.is_missing() && missing.to_string().contains("404 (not found)"), "{missing}");
    assert!(!small(Fault::Status(503)).is_missing());
    web.site.faults().clear().unwrap();
    let whole = |limit| super::small(&client(), &web.url, Transport::Trusted, limit, &Deadline::secs(5));
    assert_eq!(whole(100).unwrap(), web.body);
    for fault in [Fault::NoRange, Fault::NoLength, Fault::Endless, Fault::Length(u64::MAX)] {
        web.site.faults().clear().unwrap();
        web.site.faults().set("/f", fault).unwrap();
        assert!(matches!(whole(5).unwrap_err(), FetchError::TooLarge(..)));
    }
}

#[test]
fn no_space_is_found_out_before_the_first_byte() {
    let web = web(100_000);
    let error = get(&web, &mut Notes { full: true, ..Notes::default() }).unwrap_err();
    assert!(matches!(error, FetchError::Full(..)), "{error}");
    nothing_left(&web);
}

#[test]
fn a_body_without_an_end_is_ended_at_the_cap_and_leaves_nothing() {
    let web = web(1000);
    web.site.faults().set("/f", Fault::Endless).unwrap();
    let mut notes = Notes::default();
    let error = get(&web, &mut notes).unwrap_err();
    assert!(matches!(error, FetchError::TooLarge(_, MAX)), "{error}");
    assert!(notes.last <= MAX && notes.asked.0 as u64 >= MAX / STEP, "{:?} {}", notes.asked, notes.last);
    nothing_left(&web);
}

#[test]
fn a_length_that_wraps_around_is_refused_before_a_byte_is_written() {
    for length in [u64::MAX, u64::MAX - (64 << 20), MAX + 1] {
        let web = web(1000);
        web.site.faults().set("/f", Fault::Length(length)).unwrap();
        let mut notes = Notes::default();
        let error = get(&web, &mut notes).unwrap_err();
        assert!(matches!(error, FetchError::TooLarge(..)), "{error}");
        assert_eq!((notes.asked, notes.last), ((0, 0), 0));
        nothing_left(&web);
    }
}

#[test]
fn room_is_asked_for_while_a_body_of_unknown_length_comes() {
    let web = web(3 * STEP as usize);
    web.site.faults().set("/f", Fault::NoLength).unwrap();
    let mut notes = Notes::default();
    get(&web, &mut notes).unwrap();
    assert!(notes.asked.0 >= 3 && notes.asked.1 >= STEP, "{:?}", notes.asked);
}

#[test]
fn what_begins_wrongly_is_ended_at_once() {
    let web = web(1000);
    web.site.faults().set("/f", Fault::Endless).unwrap();
    let mut notes = Notes { wanted: Some(b"#!"), ..Notes::default() };
    let error = get(&web, &mut notes).unwrap_err();
    assert!(matches!(error, FetchError::Refused(..)), "{error}");
    assert_eq!(notes.last, 0);
    nothing_left(&web);
}

#[test]
fn a_part_that_is_continued_is_judged_by_its_own_beginning() {
    let web = web(1_000_000);
    web.site.faults().times("/f", 1, Fault::Cut(300_000)).unwrap();
    let first: &'static [u8] = web.body[..100].to_vec().leak();
    let mut notes = Notes { wanted: Some(first), ..Notes::default() };
    assert!(get(&web, &mut notes).unwrap());
    assert!(notes.seen >= 100);
}

#[test]
fn a_part_that_cannot_be_continued_is_fetched_anew() {
    // Another range, a length that is another file's, a part of too much.
    for fault in [Fault::OtherRange(1), Fault::OtherRange(1_000_000), Fault::NotThere(5)] {
        let web = web(200_000);
        web.site.faults().times("/f", 1, Fault::Cut(100_000)).unwrap();
        web.site.faults().times("/f", 1, fault.clone()).unwrap();
        let mut notes = Notes::default();
        assert!(!get(&web, &mut notes).unwrap(), "{fault:?}");
        assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
        assert_eq!(notes.retries.len(), 2, "{:?}", notes.retries);
    }
    let web = web(1000);
    let file = std::fs::File::create(&web.part).unwrap();
    file.set_len(MAX + 1).unwrap();
    Resume::write(&web.part, &web.url, Some("\"x\"")).unwrap();
    assert!(!get(&web, &mut Notes::default()).unwrap());
    assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
}

#[test]
fn a_whole_part_is_whole() {
    let web = web(1000);
    get(&web, &mut Notes::default()).unwrap();
    let requests = web.site.requests().unwrap();
    assert_eq!(requests.of("/f").len(), 1);
    // Only its end was lost: the server says that there is no more.
    web.site.faults().set("/f", Fault::NotThere(1000)).unwrap();
    Resume::write(&web.part, &web.url, Some("\"x\"")).unwrap();
    assert!(get(&web, &mut Notes::default()).unwrap());
    assert_eq!(std::fs::read(&web.part).unwrap(), web.body);
}

/// Another name for the same server, which is this machine for nobody.
fn elsewhere(web: &Web) -> String {
    web.url.request().replace("127.0.0.1", "0.0.0.0")
}

#[test]
fn a_redirect_is_held_to_the_rule_of_the_first_url() {
    let web = web(1000);
    let ask = |transport| small(&client(), &web.url, transport, 10_000, &Deadline::secs(5));
    web.site.put("/g", b"g").unwrap();
    let to = |location: &str| {
        web.site.faults().clear().unwrap();
        web.site.faults().set("/f", Fault::Redirect(location.into())).unwrap();
    };
    // From this machine to another by http: only where a checksum vouches for it.
    to(&elsewhere(&web).replace("/f", "/g"));
    let error = ask(Transport::Trusted).unwrap_err();
    assert!(matches!(error, FetchError::Redirect(..)) && error.to_string().contains("0.0.0.0"), "{error}");
    assert_eq!(web.site.requests().unwrap().of("/g").len(), 0, "nobody was asked");
    assert_eq!(ask(Transport::Any).unwrap(), b"g");
    to("/g");
    assert_eq!(ask(Transport::Trusted).unwrap(), b"g");
    for bad in ["file:///etc/passwd", "gopher://x/", ""] {
        to(bad);
        assert!(matches!(ask(Transport::Any).unwrap_err(), FetchError::Redirect(..)), "{bad}");
    }
    // In a circle.
    to("/f");
    let error = ask(Transport::Trusted).unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[test]
fn https_never_becomes_http() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::create(dir.path()).unwrap();
    site.certify().unwrap();
    site.put("/g", b"g").unwrap();
    let plain = Server::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), site).unwrap();
    let worker = super::transfer::hop(
        Transport::Any,
        &"https://me:geheim@h/x".parse().unwrap(),
        &format!("http://u:geheim@{}/g?token=geheim", plain.address()),
    );
    let text = worker.unwrap_err().to_string();
    assert!(text.contains("https to http") && !text.contains("geheim"), "{text}");
}

#[test]
fn a_login_is_for_the_server_that_it_was_given_for() {
    let web = web(1000);
    web.site.put("/g", b"g").unwrap();
    let with = |path: &str| -> Url {
        web.url.request().replace("http://", "http://me:ge%68eim@").replace("/f", path).parse().unwrap()
    };
    web.site.faults().set("/g", Fault::Login("me:geheim".into())).unwrap();
    let ask = |url: &Url| small(&client(), url, Transport::Any, 10_000, &Deadline::secs(5));
    assert_eq!(ask(&with("/g")).unwrap(), b"g");
    let error = ask(&web.url.map_path(|_| Some("/g".into())).unwrap()).unwrap_err();
    assert!(matches!(error, FetchError::Status(_, 401)), "{error}");
    // The same server by a path, and another by its name.
    web.site.faults().times("/f", 1, Fault::Redirect("/g".into())).unwrap();
    assert_eq!(ask(&with("/f")).unwrap(), b"g");
    web.site.faults().times("/f", 1, Fault::Redirect(elsewhere(&web).replace("/f", "/g"))).unwrap();
    let error = ask(&with("/f")).unwrap_err();
    assert!(matches!(error, FetchError::Status(_, 401)), "{error}");
    let requests = web.site.requests().unwrap();
    let last = requests.of("/g").last().unwrap().authorization.clone();
    assert_eq!(last, None);
    for shown in [error.to_string(), format!("{error:?}"), with("/f").to_string()] {
        assert!(!shown.contains("geheim") && !shown.contains("ge%68eim"), "{shown}");
    }
}

#[test]
fn a_query_is_sent_and_never_shown_or_kept() {
    let web = web(200_000);
    let url: Url = format!("{}?token=geheim", web.url.request()).parse().unwrap();
    web.site.faults().times("/f", 1, Fault::Cut(100_000)).unwrap();
    web.site.faults().times("/f", 1, Fault::Status(404)).unwrap();
    let mut notes = Notes::default();
    let error = get_of(&url, Transport::Trusted, &web, &mut notes).unwrap_err();
    let kept = std::fs::read_to_string(Resume::notes(&web.part)).unwrap();
    for shown in [error.to_string(), notes.retries.concat(), kept] {
        assert!(!shown.contains("geheim"), "{shown}");
    }
    web.site.faults().set("/f", Fault::Query("token=geheim".into())).unwrap();
    assert!(get_of(&url, Transport::Trusted, &web, &mut Notes::default()).unwrap(), "it was not continued");
}

#[test]
fn local_files_are_fetched_too_and_a_fifo_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::File::create(&path).unwrap().write_all(b"here").unwrap();
    let get =
        |url: &str| small(&client(), &url.parse().unwrap(), Transport::Trusted, 100, &Deadline::secs(5));
    assert_eq!(get(&format!("file://{}", path.display())).unwrap(), b"here");
    assert_eq!(get(&path.display().to_string()).unwrap(), b"here");
    assert!(get("/nowhere/x").unwrap_err().is_missing());
    nix::unistd::mkfifo(&dir.path().join("p"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(get(&dir.path().join("p").display().to_string()).is_err());
}

#[test]
fn a_content_range_is_read() {
    let range = |span, whole| Some(Range { span, whole });
    assert_eq!(Range::parse("bytes 100-199/200"), range(Some((100, 199)), Some(200)));
    assert_eq!(Range::parse("bytes 0-1/*"), range(Some((0, 1)), None));
    assert_eq!(Range::parse("bytes */200"), range(None, Some(200)));
    for bad in
        ["none", "bytes 1/2", "bytes -1-2/3", "bytes 1-2", "bytes 1-2/x", "bytes 1-18446744073709551616/2"]
    {
        assert_eq!(Range::parse(bad), None, "{bad}");
    }
    let rest = |text: &str, announced| Range::parse(text).unwrap().is_rest(100, announced);
    assert!(rest("bytes 100-199/200", Some(100)) && rest("bytes 100-199/200", None));
    for (text, announced) in [
        ("bytes 100-199/200", Some(99)),
        ("bytes 100-198/200", None),
        ("bytes 99-199/200", None),
        ("bytes 100-199/*", None),
        ("bytes */200", None),
        ("bytes 100-18446744073709551615/0", None),
        ("bytes 100-99/100", None),
    ] {
        assert!(!rest(text, announced), "{text}");
    }
}
