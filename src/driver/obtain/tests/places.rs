//! Where a runfile is looked for: NVIDIA's places, and files of this host.

use super::*;
use sha2::Digest as _;

/// With the default of earlier versions too, of which NVIDIA has nothing on ARM.
#[test]
fn the_runfile_of_an_arm_host_is_found_where_nvidia_has_it() {
    let mut node = node();
    node.cache.arch = "aarch64";
    let lab = Lab::new(V).arch("aarch64");
    let path = lab.publish(&node.site).unwrap();
    assert!(path.starts_with("/XFree86/aarch64/"), "{path}");
    for (template, asked) in [("/Linux-{arch}/", 2), ("/{platform}/", 3)] {
        node.url = node.url.to_string().replace("/Linux-{arch}/", template).parse().unwrap();
        let runfile = node.obtain(V).unwrap();
        assert!(runfile.fresh && runfile.path.ends_with(lab.name()), "{runfile:?}");
        let requests = node.site.requests().unwrap();
        assert_eq!(requests.ending(".run").len(), asked);
        std::fs::remove_dir_all(node.cache.directory()).unwrap();
    }
    // Of the datacenter branch; and a file for the other architecture is none.
    node.site.remove(&path).unwrap();
    let x86 = std::fs::read(Lab::new(V).arch("x86_64").build().unwrap()).unwrap();
    node.site.put(&lab.tesla_path(), &x86).unwrap();
    assert!(node.refused(V).contains("built for x86_64, this host is aarch64"));
    lab.publish_at(&node.site, &lab.tesla_path()).unwrap();
    node.obtain(V).unwrap();
}

#[test]
fn a_url_that_ends_in_a_slash_gets_the_usual_name() {
    let mut node = node();
    let server = node.url.to_string().split('/').nth(2).unwrap().to_owned();
    let lab = Lab::new(V);
    lab.publish_at(&node.site, &format!("/mine/{}", lab.name())).unwrap();
    node.url = format!("http://{server}/mine/").parse().unwrap();
    node.obtain(V).unwrap();
}

/// The error of a file of this host, with its remedy; it is still there.
#[track_caller]
fn refused_here(node: &mut Node, url: &str) -> String {
    node.url = url.parse().unwrap();
    let error = node.obtain(V).unwrap_err();
    assert!(node.files().is_empty(), "{:?}", node.files());
    let text = crate::exit::one_line(&error);
    assert!(text.starts_with(&format!("no runfile of driver {V}: ")), "{text}");
    let remedy = crate::exit::remedy_of(&error).unwrap();
    assert!(remedy.contains("the file that the host's driver was installed from"), "{remedy}");
    for word in ["delete", "retr", "download", "server", "again", "attempt"] {
        assert!(!text.contains(word) && !remedy.contains(word), "{word}: {text}; {remedy}");
    }
    text
}

#[test]
fn a_closed_network_gives_it_as_a_file_or_as_a_directory() {
    let mut node = node();
    let mine = node.dir.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    let mine = mine.display().to_string();
    let name = format!("NVIDIA-Linux-{ARCH}-{V}-grid.run");
    std::fs::copy(Lab::new(V).build().unwrap(), format!("{mine}/{name}")).unwrap();
    for url in [
        format!("file://{mine}/NVIDIA-Linux-{{arch}}-{{version}}-grid.run"),
        format!("{mine}/{name}"),
        mine.clone(),
        format!("{mine}/"),
        format!("file://{mine}"),
        format!("file://{mine}/"),
    ] {
        node.url = url.parse().unwrap();
        assert!(node.obtain(V).unwrap().fresh, "{url}");
        assert!(Path::new(&format!("{mine}/{name}")).exists());
        std::fs::remove_dir_all(node.cache.directory()).unwrap();
    }
}

#[test]
fn a_file_of_this_host_that_does_not_fit_is_told_in_one_sentence_and_left_alone() {
    let mut node = node();
    let mine = node.dir.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    let at = |name: &str| mine.join(name).display().to_string();
    let other = std::fs::read(Lab::new("580.76.05").build().unwrap()).unwrap();
    let whole = std::fs::read(Lab::new(V).size(600_000).build().unwrap()).unwrap();
    replace_own(&mine.join("other.run"), &other, 0o644).unwrap();
    std::fs::copy(Lab::new(V).arch("riscv64").build().unwrap(), at("arch.run")).unwrap();
    replace_own(&mine.join("page.run"), b"<!doctype html><title>Login", 0o644).unwrap();
    replace_own(&mine.join("start.run"), &whole[..200], 0o644).unwrap();
    replace_own(&mine.join("half.run"), &whole[..whole.len() / 2], 0o644).unwrap();
    nix::unistd::mkfifo(&mine.join("fifo.run"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, says) in [
        ("other.run", "other.run: contains driver 580.76.05, expected 580.95.05"),
        ("arch.run", "arch.run: built for riscv64, this host is "),
        ("page.run", "page.run: not a runfile (a web page)"),
        ("start.run", "start.run: "),
        ("half.run", "half.run: its MD5 differs from its header: damaged or truncated"),
        ("fifo.run", "fifo.run: it is a FIFO, not a regular file"),
        ("none.run", "no such file: "),
        ("other.run/x", "other.run/x"),
    ] {
        let text = refused_here(&mut node, &at(name));
        assert!(text.contains(says), "{name}: {text}");
    }
    // Whole beside damaged ones of the same version, then without.
    let good = at("NVIDIA 580 (1).run");
    replace_own(Path::new(&good), &whole, 0o644).unwrap();
    node.url = at("").parse().unwrap();
    node.obtain(V).unwrap();
    std::fs::remove_dir_all(node.cache.directory()).unwrap();
    std::fs::remove_file(good).unwrap();
    assert!(refused_here(&mut node, &at("")).contains("half.run: its MD5"));
    std::fs::remove_file(mine.join("half.run")).unwrap();
    let text = refused_here(&mut node, &at(""));
    assert!(text.ends_with("mine/ has only driver 580.76.05, driver 580.95.05 for riscv64"), "{text}");
    assert_eq!(std::fs::read(mine.join("other.run")).unwrap(), other);
}

#[test]
fn each_way_in_which_a_file_is_refused_has_its_own_remedy() {
    let node = node();
    let path = Lab::new(V).publish(&node.site).unwrap();
    let fails = |error: anyhow::Error| {
        (crate::exit::one_line(&error), crate::exit::remedy_of(&error).unwrap_or_default().to_owned())
    };
    for (status, says, remedy) in [
        (401, "HTTP 401 (access denied)", "name, password or token"),
        (403, "HTTP 403 (access denied)", "name, password or token"),
        (407, "HTTP 407 (proxy authentication required)", "http_proxy"),
        (503, "HTTP 503 (server error)", "download the file elsewhere"),
    ] {
        node.site.faults().set(&path, Ill::Status(status)).unwrap();
        let (text, fix) = fails(node.obtain(V).unwrap_err());
        assert!(text.contains(says) && fix.contains(remedy), "{text}; {fix}");
        assert!(!text.contains("not published"), "{text}");
        node.site.faults().clear().unwrap();
    }
    node.site.faults().set(&path, Ill::Redirect("http://192.0.2.1/f.run".into())).unwrap();
    let (text, fix) = fails(node.obtain(V).unwrap_err());
    assert!(text.contains("redirect to http://192.0.2.1/f.run refused"), "{text}");
    assert_eq!(fix, "set NVIDIA_RUNFILE_URL to an https URL, or set NVIDIA_RUNFILE_SHA256");
    node.site.faults().clear().unwrap();
    node.site.faults().set(&path, Ill::Redirect("ftp://192.0.2.1/f.run".into())).unwrap();
    let (_, fix) = fails(node.obtain(V).unwrap_err());
    assert_eq!(fix, "set NVIDIA_RUNFILE_URL to the https URL of the file itself");
    node.site.faults().clear().unwrap();
    let (text, fix) = fails(node.obtain_with(V, Some(&Sha256([7; 32]))).unwrap_err());
    assert!(text.contains("NVIDIA_RUNFILE_SHA256 is 0707"), "{text}");
    assert_eq!(fix, "correct NVIDIA_RUNFILE_SHA256, or remove it");
}

/// As drivers for data centers are published: the cache has NVIDIA's own.
#[test]
fn a_runfile_in_an_archive_of_stock_makeself_is_taken_out_of_it() {
    let node = node();
    let (lab, plain) = (Lab::new(V).wrapped(1), Lab::new(V));
    lab.publish(&node.site).unwrap();
    let outer = Sha256(sha2::Sha256::digest(std::fs::read(lab.build().unwrap()).unwrap()).into());
    let inner = std::fs::read(plain.build().unwrap()).unwrap();
    let runfile = node.obtain(V).unwrap();
    assert_eq!(std::fs::read(&runfile.path).unwrap(), inner);
    assert_eq!(runfile.sha256, Sha256(sha2::Sha256::digest(&inner).into()));
    let names = [plain.name(), format!("{}.checked", plain.name())];
    assert_eq!(node.files(), names);
    // The checksum of the settings is that of either.
    for sum in [&outer, &runfile.sha256] {
        assert!(!node.obtain_with(V, Some(sum)).unwrap().fresh);
    }
    let version = V.parse().unwrap();
    assert_eq!(
        cached(&node.cache, &version, Some(&outer), &Deadline::secs(60)).unwrap().sha256,
        runfile.sha256
    );
    let other = Sha256([7; 32]);
    assert!(cached(&node.cache, &version, Some(&other), &Deadline::secs(60)).is_err());
    assert_eq!(node.files(), names, "a look removes nothing");
}

#[test]
fn what_holds_no_or_two_runfiles_or_another_or_a_damaged_one_is_refused() {
    for (lab, why) in [
        (Lab::new(V).wrapped(2), "more than one runfile"),
        (Lab::new("570.86.15").wrapped(1), "contains driver 570.86.15"),
        (Lab::new(V).flaw(Flaw::Damaged).wrapped(1), "MD5"),
    ] {
        let node = node();
        lab.publish_at(&node.site, &Lab::new(V).url_path()).unwrap();
        let error = format!("{:#}", node.obtain(V).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert_eq!(node.files(), [""; 0], "{why}");
    }
}

/// The time may pass, or the disk fill, at any byte of it.
#[test]
fn a_wrapped_runfile_that_was_not_unpacked_in_time_or_for_want_of_space_is_none_that_is_bad() {
    let file = std::fs::File::open(Lab::new(V).wrapped(1).build().unwrap()).unwrap();
    let start = runfile::outer::payload_of(&file).unwrap().unwrap();
    let directory = Path::new("/var/cache/here");
    let new = tempfile::tempfile().unwrap();
    let over = Deadline::secs(0);
    let late = inner::unwrap(&file, start, &new, 1 << 30, |_| Ok(()), &over).unwrap_err();
    assert!(format!("{late:#}").contains("not unpacked within") && lacked_time(&late), "{late:#}");
    assert!(matches!(fault::unaccepted(late, directory, &over), Unaccepted::Local(_)));
    let in_time = Deadline::secs(60);
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let room = |_| Err(io::Error::new(kind, "9 GB needed"));
        let why = inner::unwrap(&file, start, &new, 1 << 30, room, &in_time).unwrap_err();
        let Unaccepted::Local(why) = fault::unaccepted(why, directory, &in_time) else { panic!("{kind}") };
        let text = crate::exit::one_line(&why);
        assert!(text.starts_with("not enough space for the runfile in /var/cache/here: "), "{text}");
        assert!(text.ends_with("9 GB needed"), "{text}");
        assert!(crate::exit::remedy_of(&why).unwrap().starts_with("df -h /var/cache/here && "));
    }
    let bad = inner::unwrap(&file, start, &new, 1, |_| Ok(()), &in_time).unwrap_err();
    assert!(matches!(fault::unaccepted(bad, directory, &in_time), Unaccepted::Bad(_)));
}

/// A download, and the check of a file that is there already.
#[test]
fn what_lacked_time_has_the_command_with_more_of_it() {
    let mut node = node();
    let path = Lab::new(V).publish(&node.site).unwrap();
    let more = |error: &anyhow::Error| crate::exit::remedy_of(error).unwrap_or_default().to_owned();
    node.limits.download = Duration::from_millis(200);
    node.site.faults().set(&path, Ill::Stall(1000)).unwrap();
    let slow = node.obtain(V).unwrap_err();
    assert!(format!("{slow:#}").contains("timed out after 200 ms (1000 bytes received)"), "{slow:#}");
    assert_eq!(more(&slow), format!("DOWNLOAD_TIMEOUT=7200 phoenix-nvidia prefetch {V}"));
    node.site.faults().clear().unwrap();
    node.limits.download = Duration::from_secs(20);
    let file = node.obtain(V).unwrap().path;
    std::fs::remove_file(crate::driver::cache::record(&file)).unwrap();
    node.limits.download = Duration::ZERO;
    let late = node.obtain(V).unwrap_err();
    assert!(format!("{late:#}").contains("not read within 0 ms"), "{late:#}");
    assert_eq!(more(&late), format!("DOWNLOAD_TIMEOUT=7200 phoenix-nvidia prefetch {V}"));
    // More than what was too little, and no more than the setting takes.
    let version = V.parse().unwrap();
    for (limit, seconds) in [(1800, 7200), (3600, 14_400), (604_800, 604_800)] {
        let says = format!("DOWNLOAD_TIMEOUT={seconds} phoenix-nvidia prefetch {V}");
        assert_eq!(fault::longer(&version, Duration::from_secs(limit)), says);
    }
}
