//! `/etc/pve/datacenter.cfg`: the proxy.

use crate::pve::conf::document::Document;
use crate::sys::look::{Look, Op, Question, View};
use crate::sys::text;
use crate::sys::url::Url;

/// Its path.
const FILE: &str = "/etc/pve/datacenter.cfg";

/// `http_proxy` in `datacenter.cfg`: a hook's environment has none. One that cannot be
/// read is a warning, since most hosts have none.
pub fn proxy(host: View<'_>) -> Option<Url> {
    let mut look = Look::at_files(host, vec![Question::new(Op::Read, FILE)]);
    let bytes = look.bytes(FILE);
    look.problems.iter().for_each(|problem| log::warn!("no http_proxy: {problem}"));
    let named = Document::from(bytes?).get("http_proxy")?;
    let url = named.parse();
    url.map_err(|why| log::warn!("ignoring http_proxy in {FILE}: {}: {why}", text::hidden(&named))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_found_in_datacenter_cfg() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/pve")).unwrap();
        let path = dir.path().join("etc/pve/datacenter.cfg");
        assert!(proxy(View::from(dir.path())).is_none());
        let proxy = |text: &str| {
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o640).unwrap();
            proxy(View::from(dir.path())).map(|url| url.to_string())
        };
        let text = "keyboard: de\nhttp_proxy: http://user:pw@proxy.example:3128\nmigration: secure\n";
        assert!(proxy(text).is_some_and(|url| url.contains("proxy.example:3128")));
        assert_eq!(proxy("keyboard: de\nhttp_proxy: nonsense\n"), None);
    }
}
