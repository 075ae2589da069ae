//! What was found in a container, as long as it is the same contents.

use crate::driver::injection::Seen;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::state::injected::Injected;
use crate::types::Ctid;

/// What of a record keeps a container from having the host's driver.
pub fn found<'a>(seen: &'a Injected, conf: &Document) -> Seen<'a> {
    match holds(seen, conf) {
        true => Seen { unfit: seen.unfit.as_deref(), hides: seen.hides.as_deref() },
        false => Seen::default(),
    }
}

/// Whether the reasons of a record hold: not for what was restored from something
/// else, on another root volume.
pub fn holds(seen: &Injected, conf: &Document) -> bool {
    seen.of.as_ref().is_some_and(|of| *of == contents(conf))
}

/// What tells the contents of a container from others, and stays through a rollback.
fn contents(conf: &Document) -> String {
    let root = conf.get("rootfs").unwrap_or_default();
    let root = root.split(',').next().unwrap_or_default().to_owned();
    let words = ["arch", "ostype"].map(|key| conf.get(key).unwrap_or_default());
    words.into_iter().chain([root]).collect::<Vec<_>>().join(" ")
}

/// The same of the container as it is now.
pub fn contents_now(ctid: Ctid) -> Option<String> {
    Conf::of(ctid).read().ok().map(|conf| contents(&conf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_holds_for_the_contents_that_it_was_found_in() {
        let conf = |text: &str| Document::parse(text.as_bytes());
        let musl = "ostype: unmanaged\nrootfs: local:subvol-101-disk-0,size=8G\n";
        let of = Some(contents(&conf(musl)));
        let seen = Injected { unfit: Some("musl".to_owned()), of, ..Injected::default() };
        let why = |text: &str| found(&seen, &conf(text)).unfit.map(str::to_owned);
        assert_eq!(why(musl).as_deref(), Some("musl"));
        assert_eq!(why(&musl.replace("size=8G", "size=9G")).as_deref(), Some("musl"), "the same, larger");
        assert_eq!(why(&musl.replace("disk-0", "disk-1")), None, "restored");
        assert_eq!(why(&musl.replace("unmanaged", "debian")), None);
        let unknown = Injected { of: None, ..seen.clone() };
        assert_eq!(found(&unknown, &conf(musl)).unfit, None, "nobody knows where");
    }
}
