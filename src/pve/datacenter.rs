//! `/etc/pve/datacenter.cfg`: the proxy.

use crate::pve::conf::document::Document;
use crate::sys::url::Url;
use crate::sys::{file, text};
use std::path::Path;

/// The limit of a file in /etc/pve, in bytes.
const MAX: u64 = 1 << 20;

/// `http_proxy` of /etc/pve/datacenter.cfg: a hook's environment has none.
pub fn datacenter_proxy(root: &Path) -> Option<Url> {
    let bytes = file::read(&root.join("etc/pve/datacenter.cfg"), MAX).ok()?;
    let named = Document::from(bytes).get("http_proxy")?;
    let url = named.parse();
    url.map_err(|why| {
        log::warn!("ignoring http_proxy in /etc/pve/datacenter.cfg: {}: {why}", text::hidden(&named))
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_found_in_datacenter_cfg() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/pve")).unwrap();
        let proxy = |text: &str| {
            let path = dir.path().join("etc/pve/datacenter.cfg");
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o640).unwrap();
            datacenter_proxy(dir.path()).map(|url| url.to_string())
        };
        assert!(datacenter_proxy(dir.path()).is_none());
        let text = "keyboard: de\nhttp_proxy: http://user:pw@proxy.example:3128\nmigration: secure\n";
        assert!(proxy(text).is_some_and(|url| url.contains("proxy.example:3128")));
        assert_eq!(proxy("keyboard: de\nhttp_proxy: nonsense\n"), None);
    }
}
