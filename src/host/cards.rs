//! Which branch of the driver and which kernel module drive which card, by its
//! PCI device id. Pure.
//!
//! The ranges agree with the list that NVIDIA ships with 590
//! (`supported-gpus.json`, all 1,168 ids); the first branches are those whose
//! changelog or open module names a card of the generation first. An id in no
//! range is newer than this table: then nothing is said.

use super::kernel_driver::{KernelDriver, ModuleKind};

/// What drives a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// The name of its generation, if known.
    pub generation: Option<&'static str>,
    /// The first branch with a card of its generation.
    pub first: u32,
    /// The last branch that drives it; `None` if the newest does.
    pub last: Option<u32>,
    /// Whether the open kernel module drives it.
    pub open: bool,
    /// Whether the proprietary one does.
    pub proprietary: bool,
}

/// The generations, and their device ids. The first row with an id counts.
type Row = (&'static str, u32, Option<u32>, Modules, &'static [(u16, u16)]);

/// The kernel modules that drive a generation.
#[derive(Clone, Copy)]
enum Modules {
    Proprietary,
    Both,
    Open,
}

const ROWS: &[Row] = &[
    (
        "pre-Fermi",
        0,
        Some(340),
        Modules::Proprietary,
        &[(0x0000, 0x06bf), (0x06e0, 0x0d94), (0x10c0, 0x10d8)],
    ),
    (
        "Fermi",
        195,
        Some(390),
        Modules::Proprietary,
        &[(0x06c0, 0x06df), (0x0dc0, 0x0f06), (0x1040, 0x109f), (0x1140, 0x1140), (0x1200, 0x127f)],
    ),
    // GRID K1, K2 and K340.
    ("Kepler", 295, Some(367), Modules::Proprietary, &[(0x0fef, 0x0fef), (0x0ff2, 0x0ff2), (0x11bf, 0x11bf)]),
    ("Kepler", 295, Some(470), Modules::Proprietary, &[(0x0fc0, 0x103f), (0x1180, 0x11ff), (0x1280, 0x130f)]),
    (
        "Maxwell",
        337,
        Some(580),
        Modules::Proprietary,
        &[(0x1340, 0x15bf), (0x1600, 0x171f), (0x1740, 0x17ff)],
    ),
    ("Pascal", 367, Some(580), Modules::Proprietary, &[(0x15c0, 0x15ff), (0x1720, 0x173f), (0x1b00, 0x1d7f)]),
    ("Volta", 384, Some(580), Modules::Proprietary, &[(0x1d80, 0x1dff)]),
    ("Turing", 410, None, Modules::Both, &[(0x1e00, 0x1fff), (0x2180, 0x21ff)]),
    ("Ampere", 450, None, Modules::Both, &[(0x2080, 0x20ff), (0x2200, 0x22ff), (0x2400, 0x25ff)]),
    ("Grace Hopper", 535, None, Modules::Open, &[(0x2340, 0x237f)]),
    ("Hopper", 520, None, Modules::Both, &[(0x2300, 0x233f), (0x2380, 0x23ff)]),
    ("Ada", 520, None, Modules::Both, &[(0x2600, 0x28ff)]),
    ("Blackwell", 570, None, Modules::Open, &[(0x2900, 0x31ff)]),
];

/// The first branch with an open kernel module.
pub const FIRST_OPEN: u32 = 515;

/// Why a driver does not drive a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// One sentence.
    pub why: String,
    /// What drives the card: `branch 580 with the proprietary kernel module`.
    pub needs: String,
}

impl Unfit {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        format!("install a driver of {} on this host, then reboot it", self.needs)
    }
}

/// What drives the card with this device id; `None` for one that is newer than
/// the table.
pub fn support(id: u16) -> Option<Support> {
    let has = |ids: &[(u16, u16)]| ids.iter().any(|(from, to)| (*from..=*to).contains(&id));
    let (generation, first, last, modules, _) = ROWS.iter().find(|(.., ids)| has(ids))?;
    Some(Support {
        generation: Some(generation),
        first: *first,
        last: *last,
        open: !matches!(modules, Modules::Proprietary),
        proprietary: !matches!(modules, Modules::Open),
    })
}

impl Support {
    /// Why this driver does not drive the card; `None` if nothing tells against
    /// it.
    pub fn unfit(&self, driver: &KernelDriver) -> Option<Unfit> {
        let KernelDriver { version, kind } = driver;
        let card = self.generation.map_or_else(|| "card".to_owned(), |name| format!("{name} card"));
        let branch = version.branch();
        let why = match (self.last, kind) {
            (Some(last), _) if branch > last => {
                format!("driver {version} does not drive this {card}: branch {last} was the last that did")
            }
            _ if branch < self.first => {
                format!("driver {version} does not drive this {card}: branch {} was the first", self.first)
            }
            (_, Some(ModuleKind::Open)) if !self.open => {
                format!("the open kernel module {version} does not drive this {card}, which has no GSP")
            }
            (_, Some(ModuleKind::Proprietary)) if !self.proprietary => {
                format!(
                    "the proprietary kernel module {version} does not drive this {card}, only the open one does"
                )
            }
            _ => return None,
        };
        Some(Unfit { why, needs: self.needs() })
    }

    /// The branches and kernel modules that drive it.
    pub fn needs(&self) -> String {
        let first = if self.proprietary { self.first } else { self.first.max(FIRST_OPEN) };
        let branch = match self.last {
            Some(last) => format!("branch {last}"),
            None if first == 0 => "a new branch".to_owned(),
            None => format!("branch {first} or newer"),
        };
        match (self.open, self.proprietary) {
            (true, true) => format!("{branch} with either kernel module"),
            (true, false) => format!("{branch} with the open kernel module"),
            (false, _) => format!("{branch} with the proprietary kernel module"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfit(id: u16, version: &str, kind: Option<ModuleKind>) -> Option<String> {
        let driver = KernelDriver { version: version.parse().unwrap(), kind };
        support(id)?.unfit(&driver).map(|unfit| format!("{}; {}", unfit.why, unfit.needs))
    }

    /// Cards as NVIDIA's own list names them: id, last branch, open, proprietary.
    #[test]
    fn each_generation_has_its_last_branch_and_its_modules() {
        let table = [
            (0x0640, Some(340), false, true), // GeForce 9500 GT
            (0x06cd, Some(390), false, true), // GeForce GTX 470
            (0x0ff2, Some(367), false, true), // GRID K1
            (0x1004, Some(470), false, true), // GeForce GTX 780
            (0x102d, Some(470), false, true), // Tesla K80
            (0x13c2, Some(580), false, true), // GeForce GTX 970
            (0x17fd, Some(580), false, true), // Tesla M40
            (0x15f8, Some(580), false, true), // Tesla P100
            (0x1b81, Some(580), false, true), // GeForce GTX 1070
            (0x1bb3, Some(580), false, true), // Tesla P4
            (0x1db4, Some(580), false, true), // Tesla V100
            (0x1eb8, None, true, true),       // Tesla T4
            (0x2184, None, true, true),       // GeForce GTX 1660
            (0x20b0, None, true, true),       // A100
            (0x2204, None, true, true),       // GeForce RTX 3090
            (0x2335, None, true, true),       // H200
            (0x2342, None, true, false),      // GH200
            (0x2684, None, true, true),       // GeForce RTX 4090
            (0x2b85, None, true, false),      // GeForce RTX 5090
            (0x3182, None, true, false),      // B300
        ];
        for (id, last, open, proprietary) in table {
            let found = support(id).unwrap_or_else(|| panic!("{id:04x}"));
            assert_eq!((found.last, found.open, found.proprietary), (last, open, proprietary), "{id:04x}");
        }
        for unknown in [0x0da0, 0x1330, 0x2000, 0x3200, 0xffff] {
            assert_eq!(support(unknown), None, "{unknown:04x}");
        }
    }

    #[test]
    fn no_id_is_in_two_ranges_but_the_grid_cards() {
        for id in 0..=u16::MAX {
            let rows = ROWS.iter().filter(|row| row.4.iter().any(|(a, b)| (*a..=*b).contains(&id))).count();
            let grid = [0x0fef, 0x0ff2, 0x11bf].contains(&id);
            assert!(rows <= 1 || (grid && rows == 2), "{id:04x}");
        }
    }

    #[test]
    fn a_driver_that_does_not_drive_a_card_is_told_with_what_does() {
        let (open, closed) = (Some(ModuleKind::Open), Some(ModuleKind::Proprietary));
        let said = |id, version, kind| unfit(id, version, kind).unwrap();
        assert_eq!(
            said(0x15f8, "595.45.04", closed),
            "driver 595.45.04 does not drive this Pascal card: branch 580 was the last that did; branch 580 with the proprietary kernel module"
        );
        assert_eq!(
            said(0x1bb3, "580.95.05", open),
            "the open kernel module 580.95.05 does not drive this Pascal card, which has no GSP; branch 580 with the proprietary kernel module"
        );
        assert!(said(0x1004, "535.288.01", None).contains("Kepler card: branch 470 was the last"));
        assert!(said(0x06cd, "470.256.02", closed).contains("Fermi card: branch 390 was the last"));
        assert!(said(0x1db4, "590.48.01", open).contains("Volta card: branch 580"));
        assert!(
            said(0x2b85, "580.95.05", closed).ends_with("branch 570 or newer with the open kernel module")
        );
        assert!(said(0x2342, "550.163.01", closed).contains("Grace Hopper card, only the open one does"));
        assert!(said(0x2b85, "550.163.01", open).contains("branch 570 was the first"));
        assert!(
            said(0x2684, "470.256.02", closed).ends_with("branch 520 or newer with either kernel module")
        );
        let fit = [
            (0x15f8, "580.95.05", closed),
            (0x15f8, "580.95.05", None),
            (0x1004, "470.256.02", closed),
            (0x1eb8, "595.45.04", open),
            (0x1eb8, "590.48.01", closed),
            (0x2b85, "590.48.01", open),
            (0x2b85, "590.48.01", None),
            (0x3300, "390.157", closed),
        ];
        for (id, version, kind) in fit {
            assert_eq!(unfit(id, version, kind), None, "{id:04x} {version}");
        }
    }
}
