//! NVIDIA's own list of the cards that a driver drives, `supported-gpus.json`,
//! where a driver package left it on this host.

use super::cards::{self, Support};
use crate::sys::look::Look;
use crate::types::Version;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where the runfile installs it; Debian's package compresses it.
const PLACES: [&str; 2] = [
    "/usr/share/doc/NVIDIA_GLX-1.0/supported-gpus/supported-gpus.json",
    "/usr/share/doc/nvidia-driver/supported-gpus.json",
];
/// Ubuntu's package, with the branch in its name.
const UBUNTU: &str = "nvidia-kernel-common-";
/// The installer's state, whose first line has its version.
const STATE: &str = "/var/lib/nvidia/log";

/// The list; empty where the host has none.
#[derive(Clone, Debug, Default)]
pub struct Supported {
    cards: BTreeMap<u16, Listed>,
    /// It is the list of the driver that was asked for, and so complete.
    exact: bool,
    /// It knows which cards the proprietary kernel module drives.
    knows_proprietary: bool,
}

/// A card in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    name: String,
    /// The last branch that drives it, where that is not the list's own.
    last: Option<u32>,
    open: bool,
    proprietary: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    chips: Vec<Chip>,
}

#[derive(Deserialize)]
struct Chip {
    devid: String,
    #[serde(default)]
    name: String,
    legacybranch: Option<String>,
    #[serde(default)]
    features: Vec<String>,
}

impl Supported {
    /// Reads the list of this driver, or that of another version.
    pub fn read(look: &mut Look<'_>, driver: &Version) -> Supported {
        let ubuntu = look.names("/usr/share/doc").unwrap_or_default().into_iter().filter_map(|name| {
            let branch = name.strip_prefix(UBUNTU)?.split('-').next()?.parse::<u32>().ok()?;
            Some((format!("/usr/share/doc/{name}/supported-gpus.json"), branch == driver.branch()))
        });
        let mut places: Vec<(String, bool)> = ubuntu.collect();
        let installed = look.text(STATE).and_then(|text| Version::find(text.lines().next()?));
        places.extend(PLACES.map(|path| (path.to_owned(), installed.as_ref() == Some(driver))));
        places.sort_by_key(|(_, exact)| !exact);
        places
            .into_iter()
            .find_map(|(path, exact)| Supported::parse(&look.text(&path)?, exact))
            .unwrap_or_default()
    }

    /// Parses a list; `None` if it is none.
    pub fn parse(text: &str, exact: bool) -> Option<Supported> {
        let file: File = serde_json::from_str(text).ok()?;
        let mut list = Supported { exact, ..Supported::default() };
        for chip in file.chips {
            let Ok(id) = u16::from_str_radix(chip.devid.trim_start_matches("0x"), 16) else { continue };
            let has = |feature: &str| chip.features.iter().any(|f| f == feature);
            let last = chip.legacybranch.as_deref().and_then(|b| b.split('.').next()?.parse().ok());
            let listed = Listed {
                name: crate::sys::text::line(chip.name.as_bytes()),
                last,
                open: has("kernelopen"),
                proprietary: has("gsp_proprietary_supported"),
            };
            list.knows_proprietary |= listed.proprietary;
            list.cards.entry(id).or_insert(listed);
        }
        Some(list)
    }

    /// The name of a card.
    pub fn name(&self, id: u16) -> Option<&str> {
        self.cards.get(&id).map(|card| card.name.as_str()).filter(|name| !name.is_empty())
    }

    /// What drives a card: the table, with what the list knows better.
    pub fn support(&self, id: u16) -> Option<Support> {
        let known = cards::support(id);
        let Some(listed) = self.cards.get(&id) else { return known };
        let open_only = listed.last.is_none() && listed.open && !listed.proprietary && self.knows_proprietary;
        // 590's list wrongly says `kernelopen` of legacy cards.
        let unknown = Support {
            generation: None,
            first: 0,
            last: None,
            open: listed.open && listed.last.is_none(),
            proprietary: true,
        };
        let card = known.unwrap_or(unknown);
        let last = if self.exact { listed.last } else { listed.last.or(card.last) };
        Some(Support { last, proprietary: card.proprietary && !open_only, ..card })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"license": "…", "chips": [
        {"devid": "0x1B81", "name": "NVIDIA GeForce GTX 1070", "legacybranch": "580.xx", "features": ["kernelopen"]},
        {"devid": "0x1EB8", "name": "Tesla T4", "features": ["kernelopen", "gsp_proprietary_supported"]},
        {"devid": "0x3500", "name": "NVIDIA New", "features": ["kernelopen"]},
        {"devid": "0x3501", "name": "NVIDIA Old", "legacybranch": "610.xx", "features": []},
        {"devid": "0x2684", "name": "NVIDIA GeForce RTX 4090", "subdevid": "0x1", "legacybranch": "620.xx"},
        {"devid": "what"}
    ]}"#;

    #[test]
    fn the_list_knows_cards_that_the_table_does_not() {
        let list = Supported::parse(LIST, false).unwrap();
        let of = |id| list.support(id).map(|card| (card.last, card.open, card.proprietary));
        assert_eq!(of(0x1b81), Some((Some(580), false, true)));
        assert_eq!(of(0x1eb8), Some((None, true, true)));
        assert_eq!(of(0x3500), Some((None, true, false)));
        assert_eq!(of(0x3501), Some((Some(610), false, true)));
        assert_eq!(of(0x2684).unwrap().0, Some(620));
        assert_eq!(of(0x1004), Some((Some(470), false, true)), "from the table");
        assert_eq!((of(0x3502), list.name(0x3500)), (None, Some("NVIDIA New")));
    }

    #[test]
    fn a_list_without_the_feature_says_nothing_of_the_proprietary_module() {
        let old = LIST.replace(", \"gsp_proprietary_supported\"", "");
        assert!(Supported::parse(&old, false).unwrap().support(0x3500).unwrap().proprietary);
        assert!(Supported::parse("3", false).is_none() && Supported::parse("{", false).is_none());
    }

    #[test]
    fn the_list_of_the_very_driver_goes_before_the_table() {
        let text = LIST.replace("\"legacybranch\": \"580.xx\", ", "");
        let last = |exact| Supported::parse(&text, exact).unwrap().support(0x1b81).unwrap().last;
        assert_eq!((last(false), last(true)), (Some(580), None));
    }

    #[test]
    fn the_list_is_found_where_each_package_has_it() {
        let host = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = host.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[allow(clippy::disallowed_methods)] // a file of a test
            std::fs::write(path, text).unwrap();
        };
        let read = |v: &str| Supported::read(&mut Look::new(host.path()), &v.parse().unwrap());
        assert!(read("590.48.01").cards.is_empty());
        write("usr/share/doc/NVIDIA_GLX-1.0/supported-gpus/supported-gpus.json", LIST);
        write("var/lib/nvidia/log", "1.0-5904801 (590.48.01)\n");
        assert!(read("590.48.01").exact && !read("580.95.05").exact);
        write("usr/share/doc/nvidia-kernel-common-580-server/supported-gpus.json", "{\"chips\": []}");
        assert!(read("580.95.05").exact && read("580.95.05").cards.is_empty());
        assert_eq!(read("590.48.01").cards.len(), 5);
    }
}
