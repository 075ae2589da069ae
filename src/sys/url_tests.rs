use super::*;
use crate::sys::text;

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let whole = url("https://me:p%40ss@host:8443/a/b.run?token=abc#x");
    for shown in [whole.to_string(), format!("{whole:?}"), whole.bare().to_string(), whole.identity()] {
        for secret in ["me", "p%40ss", "p@ss", "abc"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    assert_eq!(whole.to_string(), "https://…@host:8443/a/b.run?…");
    assert_eq!(whole.request(), "https://host:8443/a/b.run?token=abc");
    let login = whole.login().unwrap();
    assert_eq!((login.user.as_str(), login.password.as_str()), ("me", "p@ss"));
    assert_eq!(format!("{login:?}"), "Login(…)");
    assert!(whole.has_secret() && !whole.bare().has_secret());
    assert_eq!(whole.machine().unwrap(), "host:8443/a/b.run");
}

/// In a message a URL ends at a quote; in itself it does not.
#[test]
fn a_quote_in_a_password_or_a_token_hides_nothing_of_it_from_us() {
    for text in ["https://me:ge'heim@h/x", "https://h/x?token=ge'heim", "https://h/x#ge'heim"] {
        let whole = url(text);
        for shown in [format!("{whole} {whole:?}"), shown(text), text::hidden(text)] {
            assert!(!shown.contains("heim"), "{shown}");
        }
    }
    assert_eq!(url("https://me:p'q@h:8/x?t'u").to_string(), "https://…@h:8/x?…");
    assert_eq!(url("https://h/x?").to_string(), "https://h/x?");
}

#[test]
fn only_this_machine_and_https_are_trusted_ways() {
    for good in
        ["https://h/x", "http://127.0.0.1:8/x", "http://[::1]/x", "http://localhost/x", "/x", "file:///x"]
    {
        assert!(url(good).has_trusted_transport(), "{good}");
    }
    for bad in [
        "http://h/x",
        "http://127.0.0.1.evil/x",
        "http://localhost.evil/x",
        "http://192.0.2.1/x",
        "http://localhost@evil/x",
        "http://evil/?@localhost/",
    ] {
        assert!(!url(bad).has_trusted_transport(), "{bad}");
    }
}

#[test]
fn a_path_is_changed_before_the_query() {
    let with = url("https://u:p@h/x.run?t=1").with_suffix(".sha256sum");
    assert_eq!(with.request(), "https://h/x.run.sha256sum?t=1");
    assert!(with.login().is_some());
    assert_eq!(url("https://h").directory().request(), "https://h/");
    assert_eq!(url("https://h/a//?q").directory().request(), "https://h/a/?q");
    assert!(url("https://h/a/?q").is_directory() && !url("https://h/a?q=/").is_directory());
    assert_eq!(url("/srv/x").with_suffix(".y"), url("/srv/x.y"));
}

#[test]
fn a_location_is_read_as_the_standard_has_it_and_never_with_a_login() {
    let from = url("https://u:p@h:8/a/b?q");
    for (location, to) in [
        ("http://o/x", "http://o/x"),
        ("HTTPS://o/x", "https://o/x"),
        ("//o/x", "https://o/x"),
        ("/x?y", "https://h:8/x?y"),
        ("x", "https://h:8/a/x"),
        ("?z", "https://h:8/a/b?z"),
        ("https://me:pw@o/x", "https://o/x"),
    ] {
        let followed = from.follow(location).unwrap();
        assert_eq!((followed.request().as_str(), followed.login()), (to, None), "{location}");
    }
    for bad in ["file:///etc/shadow", "gopher://x", "http://", "https://h/a b", "https://a\\@b/x"] {
        assert!(from.follow(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_server_is_its_scheme_host_and_port() {
    assert!(url("https://u:p@H/x").same_server(&url("https://h:443/y")));
    for other in ["http://h/x", "https://h:444/x", "https://h.evil/x", "/x"] {
        assert!(!url("https://h/x").same_server(&url(other)), "{other}");
    }
}

#[test]
fn what_is_no_url_is_refused_without_being_repeated() {
    for bad in [
        "",
        "ftp://u:secret@h",
        "h/secret",
        "https://u:secret@",
        "https://u:se/cret@h/",
        "http://[::x]/se",
        "https://h:65536/se",
        "https://h\\x/",
    ] {
        let error = bad.parse::<Url>().unwrap_err();
        assert!(!format!("{error:#}").contains("se"), "{error:#}");
    }
    assert!(format!("https://h/{}", "x".repeat(MAX)).parse::<Url>().is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic_or_shows_a_password(text in ".{0,40}", path in "[a-z/?#%@:]{0,20}") {
        if let Ok(url) = text.parse::<Url>() {
            let _ = (url.request(), url.login(), url.follow(&text), url.is_loopback());
        }
        if let Ok(url) = format!("https://us:GEHEIM@h/{path}?GEHEIM").parse::<Url>() {
            let _ = url.follow(&path);
            proptest::prop_assert!(!url.to_string().contains("GEHEIM"), "{}", url);
        }
    }
}
