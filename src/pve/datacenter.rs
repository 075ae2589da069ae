//! `/etc/pve/datacenter.cfg`: the proxy.

use crate::pve::conf::document::Document;
use crate::sys::url::Url;
use crate::sys::{file, text};
use std::path::Path;

/// Its path.
pub const FILE: &str = "/etc/pve/datacenter.cfg";

/// The limit of a file in /etc/pve, in bytes.
const MAX: u64 = 1 << 20;

/// `http_proxy` in `datacenter.cfg`: a hook's environment has none.
pub fn proxy(datacenter_cfg: &Path) -> Option<Url> {
    let bytes = file::read(datacenter_cfg, MAX).ok()?;
    let named = Document::from(bytes).get("http_proxy")?;
    let url = named.parse();
    url.map_err(|why| {
        log::warn!("ignoring http_proxy in {}: {}: {why}", datacenter_cfg.display(), text::hidden(&named))
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_found_in_datacenter_cfg() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("datacenter.cfg");
        assert!(proxy(&path).is_none());
        let proxy = |text: &str| {
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o640).unwrap();
            proxy(&path).map(|url| url.to_string())
        };
        let text = "keyboard: de\nhttp_proxy: http://user:pw@proxy.example:3128\nmigration: secure\n";
        assert!(proxy(text).is_some_and(|url| url.contains("proxy.example:3128")));
        assert_eq!(proxy("keyboard: de\nhttp_proxy: nonsense\n"), None);
    }
}
