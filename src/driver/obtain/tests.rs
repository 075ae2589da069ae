use super::*;
use crate::driver::cache::version_of;
use crate::sys::look::View;
use crate::sys::replace::replace_own;
use phoenix_lab::nvidia::runfile::{Flaw, Runfile as Lab};
use phoenix_lab::web::{Fault as Ill, Server, Site};
use std::time::Duration;

mod places;

struct Node {
    dir: tempfile::TempDir,
    _server: Server,
    site: Site,
    url: Template,
    cache: Cache,
    limits: Limits,
}

const ARCH: &str = std::env::consts::ARCH;

fn view(_: &Deadline) -> View<'static> {
    View::from(Path::new("/"))
}

fn cache_in(directory: &Path) -> Cache {
    Cache { directory: directory.into(), locks: directory.join("locks"), proxy: |_| None, arch: ARCH, view }
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::create(&dir.path().join("site")).unwrap();
    let server = Server::start(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), site.clone()).unwrap();
    let url = format!(
        "http://{}/XFree86/Linux-{{arch}}/{{version}}/NVIDIA-Linux-{{arch}}-{{version}}.run",
        server.address()
    );
    let cache = cache_in(&dir.path().join("cache"));
    let limits = Limits {
        download: Duration::from_secs(20),
        stall: Duration::from_millis(300),
        ..Limits::all(std::time::Duration::from_secs(60))
    };
    Node { dir, _server: server, site, url: url.parse().unwrap(), cache, limits }
}

impl Node {
    fn obtain(&self, version: &str) -> anyhow::Result<Runfile> {
        self.obtain_with(version, None)
    }

    fn obtain_with(&self, version: &str, sha256: Option<&Sha256>) -> anyhow::Result<Runfile> {
        let version = version.parse().unwrap();
        obtain(
            &self.cache,
            &RunfileRequest { version: &version, url: &self.url, sha256, limits: &self.limits },
        )
    }

    /// The files in the cache, without locks.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cache.directory()) else { return Vec::new() };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n != "locks").collect();
        names.sort();
        names
    }

    fn refused(&self, version: &str) -> String {
        let error = self.obtain(version).unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Software);
        assert!(!self.files().iter().any(|f| f.ends_with(".run")), "{:?}", self.files());
        crate::exit::one_line(&error)
    }
}

const V: &str = "580.95.05";

#[test]
fn a_second_use_asks_the_server_for_nothing() {
    let node = node();
    let path = Lab::new(V).publish(&node.site).unwrap();
    assert!(node.obtain(V).unwrap().fresh);
    let again = node.obtain(V).unwrap();
    assert!(!again.fresh);
    assert_eq!(again.size, again.path.metadata().unwrap().len());
    let requests = node.site.requests().unwrap();
    assert_eq!(requests.of(&path).len(), 1);
    assert_eq!(requests.of(&format!("{path}.sha256sum")).len(), 1);
}

#[test]
fn twenty_at_once_ask_the_server_once() {
    let node = node();
    let path = Lab::new(V).size(2_000_000).publish(&node.site).unwrap();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..20).map(|_| scope.spawn(|| node.obtain(V).unwrap())).collect();
        let fresh = all.into_iter().map(|t| t.join().unwrap().fresh).filter(|f| *f).count();
        assert_eq!(fresh, 1);
    });
    assert_eq!(node.site.requests().unwrap().of(&path).len(), 1);
}

#[test]
fn a_download_cut_at_every_tenth_is_never_offered_and_goes_on_later() {
    let node = node();
    let lab = Lab::new(V).size(200_000);
    let whole = std::fs::read(lab.build().unwrap()).unwrap();
    for tenth in 0..10 {
        let at = whole.len() * tenth / 10;
        // A mirror whose own copy is cut: nothing on the way tells.
        node.site.put(&lab.url_path(), &whole[..at]).unwrap();
        let text = node.refused(V);
        assert!(text.contains("rejected and deleted, not run"), "{tenth}: {text}");
        assert!(node.files().is_empty(), "{:?}", node.files());
        // A connection that is cut: the rest comes in a second request.
        let path = lab.publish(&node.site).unwrap();
        node.site.faults().times(&path, 1, Ill::Cut(at as u64)).unwrap();
        let good = node.obtain(V).unwrap();
        assert_eq!(std::fs::read(&good.path).unwrap(), whole);
        std::fs::remove_file(record(&good.path)).unwrap();
        std::fs::remove_file(good.path).unwrap();
    }
}

#[test]
fn a_connection_that_is_always_cut_is_given_up_and_resumed_by_the_next_run() {
    let node = node();
    let path = Lab::new(V).size(200_000).publish(&node.site).unwrap();
    node.site.faults().set(&path, Ill::Cut(1000)).unwrap();
    let text = node.refused(V);
    assert!(text.contains("cut off after"), "{text}");
    node.site.faults().clear().unwrap();
    node.obtain(V).unwrap();
    let last = node.site.requests().unwrap().of(&path).len();
    assert!(last > 1, "{last}");
}

#[test]
fn garbage_a_login_page_and_a_damaged_file_are_refused_by_name() {
    let node = node();
    let path = Lab::new(V).publish(&node.site).unwrap();
    node.site.faults().set(&path, Ill::Garbage).unwrap();
    assert!(node.refused(V).contains("rejected and deleted, not run: not a runfile"));
    node.site.faults().clear().unwrap();
    node.site.faults().set(&path, Ill::LoginPage).unwrap();
    assert!(node.refused(V).contains("a web page"));
    node.site.faults().clear().unwrap();
    Lab::new(V).flaw(Flaw::Damaged).publish(&node.site).unwrap();
    let text = node.refused(V);
    assert!(text.contains("MD5") && text.contains(&path), "{text}");
    assert!(node.files().is_empty(), "{:?}", node.files());
    // The server is well again: nothing of before is in the way.
    Lab::new(V).publish(&node.site).unwrap();
    node.obtain(V).unwrap();
}

#[test]
fn another_version_another_architecture_and_a_wrong_checksum_are_refused() {
    let node = node();
    let other = std::fs::read(Lab::new("580.76.05").build().unwrap()).unwrap();
    let path = Lab::new(V).url_path();
    node.site.put(&path, &other).unwrap();
    let text = node.refused(V);
    assert!(text.contains("contains driver 580.76.05, expected 580.95.05"), "{text}");

    let arch = ARCH;
    let foreign =
        String::from_utf8_lossy(&other).replace(&format!("TARGET_ARCH={arch}"), "TARGET_ARCH=riscv64");
    node.site.put(&path, foreign.as_bytes()).unwrap();
    assert!(node.refused(V).contains("built for riscv64"));

    Lab::new(V).publish(&node.site).unwrap();
    node.site.put(&format!("{path}.sha256sum"), format!("{}  x\n", "ab".repeat(32)).as_bytes()).unwrap();
    assert!(node.refused(V).contains("sha256sum says abab"));
    node.site.put(&format!("{path}.sha256sum"), b"<html>").unwrap();
    assert!(node.refused(V).contains("has no SHA-256"));
    let error = node.obtain_with(V, Some(&"cd".repeat(32).parse().unwrap())).unwrap_err();
    assert!(crate::exit::one_line(&error).contains("NVIDIA_RUNFILE_SHA256 is cdcd"));
}

#[test]
fn a_missing_published_checksum_is_only_a_warning() {
    let node = node();
    let file = Lab::new(V).build().unwrap();
    node.site.put_file(&Lab::new(V).url_path(), &file).unwrap();
    node.obtain(V).unwrap();
}

#[test]
fn the_datacenter_place_is_tried_where_the_usual_one_has_nothing() {
    let node = node();
    let file = Lab::new(V).build().unwrap();
    let error = node.obtain(V).unwrap_err();
    let text = crate::exit::one_line(&error);
    assert!(text.contains("404") && text.contains("/XFree86/") && text.contains("/tesla/"), "{text}");
    assert!(text.contains("vGPU, GRID and OEM drivers are not public"), "{text}");
    assert_eq!(crate::exit::remedy_of(&error), Some(source::remedy()));
    node.site.put_file(&format!("/tesla/{V}/{}", Lab::new(V).name()), &file).unwrap();
    node.obtain(V).unwrap();
}

#[test]
fn a_cached_file_that_was_tampered_with_is_replaced() {
    let node = node();
    Lab::new(V).publish(&node.site).unwrap();
    let path = node.obtain(V).unwrap().path;
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace_own(&path, &bytes, 0o644).unwrap();
    let again = node.obtain(V).unwrap();
    assert!(again.fresh);
    // Without its record it is read again, and found good.
    std::fs::remove_file(record(&path)).unwrap();
    assert!(!node.obtain(V).unwrap().fresh);
}

#[test]
fn plain_http_to_another_machine_needs_a_checksum() {
    let node = node();
    let version: Version = V.parse().unwrap();
    let url = "http://192.0.2.77/{version}.run".parse().unwrap();
    let request = RunfileRequest { version: &version, url: &url, sha256: None, limits: &node.limits };
    let error = obtain(&node.cache, &request).unwrap_err();
    assert!(crate::exit::remedy_of(&error).unwrap().contains("NVIDIA_RUNFILE_SHA256"));
}

#[test]
fn old_versions_go_but_the_newest_two_and_the_used_stay() {
    let node = node();
    for version in ["570.10.01", "580.65.06", "580.76.05", "580.95.05"] {
        Lab::new(version).publish(&node.site).unwrap();
        node.obtain(version).unwrap();
    }
    node.cache.prune(&[&"570.10.01".parse().unwrap()]);
    let left: Vec<_> =
        node.files().into_iter().filter_map(|f| version_of(&f)).map(|v| v.to_string()).collect();
    assert_eq!(left, ["570.10.01", "580.76.05", "580.95.05"]);
    assert!(node.dir.path().exists());
}

#[test]
fn downloads_that_nobody_goes_on_with_are_removed_after_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache_in(dir.path());
    let name = |version: &str, end: &str| format!("NVIDIA-Linux-x86_64-{version}.run.part{end}");
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(90_000);
    for (version, at) in [("570.10.01", Some(yesterday)), ("580.76.05", Some(yesterday)), ("580.95.05", None)]
    {
        for end in ["", ".from"] {
            let file = std::fs::File::create(dir.path().join(name(version, end))).unwrap();
            file.set_modified(at.unwrap_or_else(std::time::SystemTime::now)).unwrap();
        }
    }
    cache.prune(&[&"580.76.05".parse().unwrap()]);
    let there = |version: &str| ["", ".from"].map(|end| dir.path().join(name(version, end)).exists());
    assert_eq!(there("570.10.01"), [false, false]);
    assert_eq!((there("580.76.05"), there("580.95.05")), ([true, true], [true, true]));
}

#[test]
fn what_is_no_runfile_is_ended_in_its_first_bytes() {
    let node = node();
    let path = Lab::new(V).url_path();
    // As much as a disk holds, without a length, without a header.
    node.site.put(&path, b"").unwrap();
    node.site.faults().set(&path, Ill::Endless).unwrap();
    let begun = std::time::Instant::now();
    let text = node.refused(V);
    assert!(text.contains("rejected and deleted, not run: not a runfile"), "{text}");
    assert!(node.files().is_empty(), "{:?}", node.files());
    // The server notices that nobody listens any more.
    std::thread::sleep(Duration::from_millis(500));
    let sent = node.site.requests().unwrap().of(&path)[0].sent;
    assert!(sent < 64 << 20 && begun.elapsed() < Duration::from_secs(10), "{sent}");
}

#[test]
fn a_good_header_before_a_body_without_an_end_fills_no_disk() {
    let node = node();
    let path = Lab::new(V).publish(&node.site).unwrap();
    node.site.faults().set(&path, Ill::Endless).unwrap();
    let limits = Limits { download_max: 24 << 20, ..node.limits };
    let version = V.parse().unwrap();
    let request = RunfileRequest { version: &version, url: &node.url, sha256: None, limits: &limits };
    let error = obtain(&node.cache, &request).unwrap_err();
    let text = crate::exit::one_line(&error);
    assert!(text.contains("exceeds DOWNLOAD_MAX (24 MiB)") && text.contains("limit of 25 MB"), "{text}");
    assert!(crate::exit::remedy_of(&error).unwrap().contains("DOWNLOAD_MAX"));
    assert!(node.files().is_empty(), "{:?}", node.files());
    // Lengths that no disk holds, one of which wraps around.
    for length in [u64::MAX, 1 << 60] {
        node.site.faults().clear().unwrap();
        node.site.faults().set(&path, Ill::Length(length)).unwrap();
        assert!(node.refused(V).contains("larger than"), "{length}");
        assert!(node.files().is_empty(), "{:?}", node.files());
    }
    node.site.faults().clear().unwrap();
    node.obtain(V).unwrap();
}

#[test]
fn a_redirect_away_from_this_machine_needs_a_checksum() {
    let node = node();
    let file = Lab::new(V).build().unwrap();
    let other = format!("/other/{V}.run");
    node.site.put_file(&other, &file).unwrap();
    let path = Lab::new(V).url_path();
    // Another name of the same server, which is this machine for nobody.
    let authority = node.url.to_string().split('/').nth(2).unwrap().replace("127.0.0.1", "0.0.0.0");
    node.site.faults().set(&path, Ill::Redirect(format!("http://{authority}{other}"))).unwrap();
    let text = node.refused(V);
    assert!(text.contains("redirect to http://0.0.0.0") && text.contains("without a checksum"), "{text}");
    assert_eq!(node.site.requests().unwrap().of(&other).len(), 0);
    let good = crate::sys::sums::Sums::of(&std::fs::File::open(&file).unwrap(), 0, &Deadline::secs(60))
        .unwrap()
        .sha256;
    node.obtain_with(V, Some(&Sha256(good))).unwrap();
}

#[test]
fn a_token_is_sent_and_stands_in_no_file_and_no_message() {
    let mut node = node();
    node.url = format!("{}?token=geheim", node.url).parse().unwrap();
    let path = Lab::new(V).size(200_000).publish(&node.site).unwrap();
    node.site.faults().set(&path, Ill::Cut(1000)).unwrap();
    let text = node.refused(V);
    assert!(!text.contains("geheim"), "{text}");
    let parts: Vec<_> = node.files().into_iter().filter(|name| name.contains(".part")).collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    for name in parts {
        let bytes = std::fs::read(node.cache.directory().join(&name)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("geheim"), "{name}");
    }
    node.site.faults().clear().unwrap();
    node.site.faults().set("*", Ill::Query("token=geheim".into())).unwrap();
    node.obtain(V).unwrap();
}
