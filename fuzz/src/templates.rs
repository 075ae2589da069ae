//! URLs and package names with placeholders, and what is told of URLs.

use phoenix_nvidia::driver::desired::CudaPackages;
use phoenix_nvidia::driver::template::{Facts, PackageTemplate, Template, packages};
use phoenix_nvidia::sys::text;
use phoenix_nvidia::sys::url::Url;

/// What is taken is one word, is filled in wholly and in one way, and only
/// grows by what its placeholders stand for.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let version = "580.95.05".parse().expect("a version");
    let facts = Facts::repository(&version, Some("debian12"));
    let outside = Facts::repository(&version, None);
    match text.parse::<Template>() {
        Ok(template) => {
            let shown = template.to_string();
            if text.starts_with(['/', 'f']) || !text.contains(['@', '?', '#']) {
                assert_eq!(shown, text);
            }
            assert!(
                !shown.contains('?') || shown.ends_with(['?', '…']) || shown.starts_with(['/', 'f']),
                "{shown}"
            );
            assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
            let url = template.fill(&facts).unwrap_or_else(|why| panic!("{text:?}: {why:#}"));
            url.with_login(|url| filled(&text, url));
            assert_eq!(template.fill(&outside).is_err(), text.contains("{distro}"));
            // What a URL without placeholders stands for is itself.
            let again = url.with_login(|url| url.parse::<Template>());
            assert_eq!(again.ok().and_then(|t| t.fill(&facts).ok()), Some(url.clone()));
            way(&url);
            sent(&url);
        }
        Err(why) => shown(&format!("{why:#}")),
    }
    for word in text.split([',', ' ', '\t']) {
        match word.parse::<PackageTemplate>() {
            Ok(template) => {
                let name = template.fill(&facts).unwrap_or_else(|why| panic!("{word:?}: {why:#}"));
                filled(word, &name.replace("x86_64", "x86-64"));
                let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-._".contains(&b);
                assert!(name.bytes().all(good) && name.as_bytes()[0].is_ascii_alphanumeric(), "{name:?}");
            }
            Err(why) => shown(&format!("{why:#}")),
        }
    }
    match (packages(&text), text.parse::<CudaPackages>()) {
        (Ok(list), Ok(CudaPackages::List(same))) => assert_eq!(list, same),
        (_, Ok(CudaPackages::None)) => assert!(text.trim().eq_ignore_ascii_case("none"), "{text:?}"),
        (Ok(list), Err(_)) => assert!(list.is_empty()),
        (Err(_), Ok(_)) => panic!("{text:?}"),
        (Err(_), Err(_)) => {}
    }
    secrets(&text);
}

fn filled(text: &str, filled: &str) {
    assert!(!filled.contains(['{', '}']), "{filled:?}");
    assert!(filled.len() <= text.len() * 2, "{text:?}: {filled:?}");
}

/// What came over http without a checksum came from this machine.
fn way(url: &Url) {
    if !url.has_trusted_transport() || url.is_https() || url.local().is_some() {
        return;
    }
    let url = url.request();
    let authority = url.trim_start_matches("http://").split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let name = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let here = name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    assert!(here, "{url:?} is trusted");
}

/// What is sent to a server names no user, what is shown no query either; and
/// wherever the server leads, it is a URL that can be asked for.
fn sent(url: &Url) {
    let request = url.request();
    let authority = request.split_once("://").map_or("", |(_, rest)| rest);
    if url.local().is_none() {
        assert!(!authority.split(['/', '?', '#']).next().unwrap_or_default().contains('@'), "{url:?}");
        assert!(!url.bare().has_secret() && url.bare().login().is_none(), "{url:?}");
        let next = url.follow(&request).unwrap_or_else(|why| panic!("{url:?}: {why:#}"));
        assert!(next.same_server(url) && next.login().is_none(), "{url:?}");
    }
    let _ = (url.machine(), url.follow(&url.bare().request()), url.directory(), url.with_suffix(".x"));
}

/// A user's name, a password and a query are not shown, and the rest is.
fn secrets(text: &str) {
    let shown = text::without_secrets(text);
    assert!(shown.len() <= text.len() * 2, "{text:?}: {shown:?}");
    assert_eq!(text::without_secrets(&shown), shown);
    if !text.contains(['@', '?', '#']) {
        assert_eq!(shown, text);
    }
    let secret: String = text.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    if secret.len() > 8 {
        let url = format!("https://{secret}:{secret}@mirror/path?token={secret}");
        assert!(!text::without_secrets(&url).contains(&secret), "{url}");
        assert!(
            !text::hidden(&url).contains(&secret) && !text::hidden(&url[8..]).contains(&format!("{secret}@"))
        );
    }
}

/// An error may quote the value, but only what a line can hold.
fn shown(why: &str) {
    assert!(!why.chars().any(char::is_control), "{why:?}");
}
