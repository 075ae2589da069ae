use super::transfer::content_range;
use super::*;
use phoenix_lab::web::{Fault, Server, Site};

/// A server, its directory, and the URL of its one file of `length` bytes.
struct Web {
    _dir: tempfile::TempDir,
    _server: Server,
    site: Site,
    url: String,
    body: Vec<u8>,
    part: PathBuf,
}

fn web(length: usize) -> Web {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::create(dir.path()).unwrap();
    let body: Vec<u8> = (0..length).map(|n| (n / 7 % 251) as u8).collect();
    site.put("/f", &body).unwrap();
    let server = Server::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), site.clone()).unwrap();
    let url = format!("http://{}/f", server.address());
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
}

impl Watch for Notes {
    fn room(&mut self, _more: u64) -> io::Result<()> {
        if self.full { Err(io::Error::other("no space")) } else { Ok(()) }
    }
    fn progress(&mut self, got: u64, _of: Option<u64>) {
        self.last = got;
    }
    fn retry(&mut self, trouble: &FetchError) {
        self.retries.push(trouble.to_string());
    }
}

fn get(web: &Web, notes: &mut Notes) -> Result<bool, FetchError> {
    download(&client(), &web.url, &web.part, &Deadline::secs(20), notes)
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
        small(&quick, &web.url, 100, &Deadline::secs(5)).unwrap_err()
    };
    let silent = small(Fault::Silent);
    assert!(matches!(silent, FetchError::Stalled { .. } | FetchError::Unreachable(..)), "{silent}");
    assert!(matches!(small(Fault::Hangup), FetchError::Unreachable(..)));
    let missing = small(Fault::Status(404));
    assert!(missing.is_missing() && missing.to_string().contains("404 (not found)"), "{missing}");
    assert!(!small(Fault::Status(503)).is_missing());
    web.site.faults().clear().unwrap();
    assert_eq!(super::small(&client(), &web.url, 100, &Deadline::secs(5)).unwrap(), web.body);
    assert!(matches!(
        super::small(&client(), &web.url, 5, &Deadline::secs(5)).unwrap_err(),
        FetchError::TooLarge(..)
    ));
}

#[test]
fn no_space_is_found_out_before_the_first_byte() {
    let web = web(100_000);
    let error = get(&web, &mut Notes { full: true, ..Notes::default() }).unwrap_err();
    assert!(matches!(error, FetchError::Local(..)), "{error}");
    assert!(!web.part.exists());
}

#[test]
fn local_files_are_fetched_too_and_a_fifo_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::File::create(&path).unwrap().write_all(b"here").unwrap();
    let get = |url: &str| small(&client(), url, 100, &Deadline::secs(5));
    assert_eq!(get(&format!("file://{}", path.display())).unwrap(), b"here");
    assert_eq!(get(&path.display().to_string()).unwrap(), b"here");
    assert!(get("/nowhere/x").unwrap_err().is_missing());
    nix::unistd::mkfifo(&dir.path().join("p"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(get(&dir.path().join("p").display().to_string()).is_err());
}

#[test]
fn only_this_machine_and_https_are_trusted_ways() {
    for good in
        ["https://h/x", "http://127.0.0.1:8/x", "http://[::1]/x", "http://localhost/x", "/x", "file:///x"]
    {
        assert!(is_trusted_way(good), "{good}");
    }
    for bad in ["http://h/x", "http://127.0.0.1.evil/x", "http://localhost.evil/x", "http://192.0.2.1/x"] {
        assert!(!is_trusted_way(bad), "{bad}");
    }
}

#[test]
fn a_content_range_is_read() {
    assert_eq!(content_range("bytes 100-199/200"), Some((100, Some(200))));
    assert_eq!(content_range("bytes 0-1/*"), Some((0, None)));
    assert_eq!(content_range("none"), None);
}
