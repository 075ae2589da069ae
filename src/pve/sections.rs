//! The format that Proxmox's files under /etc/pve share (`storage.cfg`,
//! `ha/resources.cfg`, `replication.cfg`, `mapping/pci.cfg`): a header, then
//! indented lines `key value`. Pure.

use super::property;

/// One section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The type: `dir`, `ct`, `local`; empty where the file has none.
    pub kind: String,
    /// The name.
    pub id: String,
    keys: Vec<(String, String)>,
}

impl Section {
    /// The value of a key; empty for a key that stands alone.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// The values of a key that may come several times.
    pub fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.keys.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// A value that is a list, by commas or blanks.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        let words = self.get(key)?.split([',', ' ', ';']).filter(|word| !word.is_empty());
        Some(words.map(str::to_owned).collect())
    }

    /// Whether a key is set to true; one that stands alone is.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.is_empty() || property::boolean(value) == Some(true))
    }
}

/// The sections of a file with headers `type: id`. Lines that belong to none
/// are skipped: an empty line ends a section.
pub fn parse(text: &str) -> Vec<Section> {
    let header = |line: &str| line.split_once(':').map(|(kind, id)| (kind.to_owned(), id.to_owned()));
    read(text, header)
}

/// The sections of a file whose headers are names alone.
pub fn parse_named(text: &str) -> Vec<Section> {
    read(text, |line| (!line.trim().is_empty()).then(|| (String::new(), line.to_owned())))
}

fn read(text: &str, header: fn(&str) -> Option<(String, String)>) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut ended = true;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let section = sections.last_mut().filter(|_| !ended && !key.is_empty());
            if let Some(section) = section {
                section.keys.push((key.to_owned(), value.trim().to_owned()));
            }
        } else if let Some((kind, id)) = header(line) {
            let (kind, id) = (kind.trim().to_owned(), id.trim().to_owned());
            sections.push(Section { kind, id, keys: Vec::new() });
            ended = false;
        }
        ended |= line.is_empty();
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keys_and_flags_are_read() {
        let text = "# a comment\ndir: local\n\tpath /var/lib/vz\n\tcontent iso, snippets\n\tdisable\n\nnfs: share\n\tshared 1\n";
        let all = parse(text);
        assert_eq!((all[0].kind.as_str(), all[0].id.as_str()), ("dir", "local"));
        assert_eq!(all[0].get("path"), Some("/var/lib/vz"));
        assert_eq!(all[0].list("content").unwrap(), ["iso", "snippets"]);
        assert!(all[0].flag("disable") && !all[0].flag("shared") && all[1].flag("shared"));
        assert!(parse("\tkey without section\nnothing\n").is_empty());
        let ended = parse("dir: a\nnothing\n\tpath /a\n\n\tshared 1\n");
        assert!(ended[0].get("path").is_some() && !ended[0].flag("shared"));
    }
}
