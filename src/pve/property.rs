//! Proxmox's property strings: `a=1,b=2`, where one value may have no key. Pure.
//!
//! As strict as pve-common's `PVE::JSONSchema::parse_property_string`: blanks
//! belong to key and value, empty parts are skipped, any other part without key
//! or value is an error.

use anyhow::{Result, bail};

/// Keys and values in their order; a value alone gets `default_key`.
///
/// # Errors
/// Whatever Proxmox rejects: a repeated key, an empty key or value, two values
/// without key. The caller checks which keys exist.
pub fn parse<'a>(text: &'a str, default_key: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for part in text.split(',').filter(|part| !part.trim_ascii().is_empty()) {
        let (key, value) = match part.split_once('=') {
            None => (default_key, part),
            Some((key, value)) if !key.is_empty() && !value.is_empty() => (key, value),
            Some(_) => bail!("'{}' has no key or no value", part.escape_debug()),
        };
        if all.iter().any(|(known, _)| *known == key) {
            bail!("'{}' is given twice", key.escape_debug());
        }
        all.push((key, value));
    }
    Ok(all)
}

/// The value of `key`; none if Proxmox cannot read the string.
pub fn get(text: &str, key: &str, default_key: &str) -> Option<String> {
    let parts = parse(text, default_key).ok()?;
    parts.into_iter().find(|(k, _)| *k == key).map(|(_, value)| value.to_owned())
}

/// A boolean as Proxmox writes and reads it.
pub fn boolean(text: &str) -> Option<bool> {
    let is = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    match text {
        _ if is(["1", "on", "yes", "true"]) => Some(true),
        _ if is(["0", "off", "no", "false"]) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_with_and_without_their_key() {
        let pairs = |text| parse(text, "path").unwrap();
        assert_eq!(pairs("/dev/a,gid=44"), [("path", "/dev/a"), ("gid", "44")]);
        assert_eq!(pairs("gid=44,path=/dev/a=b"), [("gid", "44"), ("path", "/dev/a=b")]);
        assert_eq!(pairs(",gid=44, ,/dev/a,"), [("gid", "44"), ("path", "/dev/a")]);
        assert_eq!(pairs("/dev/a, gid=44"), [("path", "/dev/a"), (" gid", "44")]);
        assert_eq!(pairs(""), []);
    }

    #[test]
    fn what_proxmox_refuses_is_refused() {
        for text in ["/dev/a,/dev/b", "/dev/a,path=/dev/b", "path=/dev/a,/dev/b", "gid=1,gid=1", "gid=", "=1"]
        {
            assert!(parse(text, "path").is_err(), "{text:?}");
        }
    }

    #[test]
    fn booleans_have_four_words_each() {
        assert_eq!(["1", "ON", "Yes", "true"].map(boolean), [Some(true); 4]);
        assert_eq!(["0", "off", "NO", "False"].map(boolean), [Some(false); 4]);
        assert_eq!(["", "2", "y", " 1"].map(boolean), [None; 4]);
    }
}
