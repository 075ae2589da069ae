//! What the node knows about the network.

use crate::sys::url::Url;
use crate::sys::{file, text};
use std::path::Path;

/// What a file of /etc/pve can hold, in bytes.
const MAX: u64 = 1 << 20;

/// `http_proxy` of /etc/pve/datacenter.cfg: a hook's environment has none.
pub fn datacenter_proxy(root: &Path) -> Option<Url> {
    let text = file::text(&root.join("etc/pve/datacenter.cfg"), MAX).ok()?;
    let named = proxy_in(&text)?;
    let url = named.parse();
    url.map_err(|why| log::warn!("http_proxy in datacenter.cfg is not used: {}: {why}", text::hidden(&named)))
        .ok()
}

/// The value of `http_proxy` in the text of datacenter.cfg. **May hold a
/// password.**
pub fn proxy_in(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("http_proxy:"))?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_found_in_datacenter_cfg() {
        let text = "keyboard: de\nhttp_proxy: http://user:pw@proxy.example:3128\nmigration: secure\n";
        assert_eq!(proxy_in(text).as_deref(), Some("http://user:pw@proxy.example:3128"));
        assert_eq!(proxy_in("keyboard: de\n"), None);
    }
}
