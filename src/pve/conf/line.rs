//! One line of a conf, read as Proxmox's parser reads it.

/// How a setting is written: as in Proxmox's conf, or as in LXC's config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `key: value`
    Pve,
    /// `lxc.key = value`
    Lxc,
}

impl Form {
    /// The line, without its ending.
    pub fn write(self, key: &str, value: &str) -> String {
        match self {
            Form::Pve => format!("{key}: {value}"),
            Form::Lxc => format!("{key} = {value}"),
        }
    }
}

/// A line that sets something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting<'a> {
    /// The key, always ASCII.
    pub key: &'a str,
    /// How the line is written.
    pub form: Form,
    /// The value, trimmed.
    pub value: &'a [u8],
}

/// A blank as in Perl's `\s`, a carriage return included: Proxmox reads CRLF
/// files.
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// The text without leading and trailing blanks.
pub fn trim(text: &[u8]) -> &[u8] {
    let Some(start) = text.iter().position(|b| !is_blank(*b)) else { return &[] };
    let end = text.iter().rposition(|b| !is_blank(*b)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// The name of a section, if the line is a header.
///
/// Proxmox knows `[pve:pending]` and snapshot names. A newer version may know
/// other headers: whatever is in brackets counts, so that nothing below is ever
/// edited.
pub fn header(line: &[u8]) -> Option<&[u8]> {
    let text = line.strip_prefix(b"[")?;
    let end = text.iter().rposition(|b| !is_blank(*b))?;
    (text[end] == b']').then(|| &text[..end])
}

/// The setting of a line: `None` for comments, blank lines, headers, and
/// whatever Proxmox's parser rejects (a leading blank, a blank before the colon).
pub fn setting(line: &[u8]) -> Option<Setting<'_>> {
    if line.starts_with(b"lxc.") { raw_lxc(line) } else { plain(line) }
}

/// `lxc.key: value` and `lxc.key = value`; only `=` may have a blank before it.
fn raw_lxc(line: &[u8]) -> Option<Setting<'_>> {
    let in_key = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
    let length = line.iter().position(|b| !in_key(b))?;
    if length <= "lxc.".len() {
        return None;
    }
    let (key, rest) = line.split_at(length);
    let (form, value) = match rest.strip_prefix(b":") {
        Some(value) => (Form::Pve, value),
        None => (Form::Lxc, trim(rest).strip_prefix(b"=")?),
    };
    Some(Setting { key: std::str::from_utf8(key).ok()?, form, value: trim(value) })
}

/// `key: value`, where a key is letters and an optional number.
fn plain(line: &[u8]) -> Option<Setting<'_>> {
    let colon = line.iter().position(|b| *b == b':')?;
    let key = std::str::from_utf8(&line[..colon]).ok()?;
    let letters = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let shaped = letters.starts_with(|c: char| c.is_ascii_lowercase())
        && letters.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let value = trim(&line[colon + 1..]);
    (shaped && !value.is_empty()).then_some(Setting { key, form: Form::Pve, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<(&str, &str)> {
        setting(line.as_bytes()).map(|s| (s.key, std::str::from_utf8(s.value).unwrap()))
    }

    #[test]
    fn both_forms_are_read_as_proxmox_reads_them() {
        let entry = Some(("lxc.mount.entry", "/dev/c dev/c none bind"));
        assert_eq!(read("lxc.mount.entry: /dev/c dev/c none bind"), entry);
        assert_eq!(read("lxc.mount.entry:   /dev/c dev/c none bind  \r\n"), entry);
        assert_eq!(read("lxc.mount.entry=/dev/c dev/c none bind\n"), entry);
        assert_eq!(read("lxc.mount.entry \t=\t/dev/c dev/c none bind\n"), entry);
        assert_eq!(read("unprivileged: 1\r\n"), Some(("unprivileged", "1")));
        assert_eq!(
            read("net0: name=eth0,hwaddr=BC:24:11:00:00:01"),
            Some(("net0", "name=eth0,hwaddr=BC:24:11:00:00:01"))
        );
        assert_eq!(read("lxc.cap.drop:\n"), Some(("lxc.cap.drop", "")));
    }

    #[test]
    fn what_proxmox_drops_is_no_setting() {
        for dropped in [
            " lxc.mount.entry: /dev/a dev/a none bind",
            "\tlxc.mount.entry: /dev/b dev/b none bind",
            "lxc.mount.entry : /dev/e dev/e none bind",
            "bogusline without colon",
            "#memory: 5",
            "memory:",
            "memory = 5",
            "Memory: 5",
            "9memory: 5",
            "me5mory: 5",
            "lxc.: x",
            "[snap]",
            "",
            "\n",
        ] {
            assert_eq!(read(dropped), None, "{dropped:?}");
        }
        assert_eq!(setting(b"\xff\xfe: 1"), None);
    }

    #[test]
    fn headers_are_all_in_brackets() {
        assert_eq!(header(b"[pve:pending]\r\n"), Some(&b"pve:pending"[..]));
        assert_eq!(header(b"[1new-kind]  \n"), Some(&b"1new-kind"[..]));
        assert_eq!(header(b"[]"), Some(&b""[..]));
        for no in [&b" [snap]"[..], b"[snap", b"[snap] x", b"[", b"x[snap]"] {
            assert_eq!(header(no), None);
        }
    }
}
