//! What apt says it would do, and whether it may.

use crate::driver::packages::{is_driver, is_kernel};
use crate::guest::exec::fields;
use crate::guest::package::PackageName;
use crate::sys::fetch::size;

/// What a simulation said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Packages that would be installed or upgraded, with their versions.
    pub install: Vec<(String, String)>,
    /// Packages that would be removed.
    pub remove: Vec<String>,
    /// Packages of a driver among those that it would need if they were not
    /// kept out.
    pub driver: Vec<(String, String)>,
    /// Packages with kernel modules among them.
    pub kernel: Vec<String>,
    /// Whether the simulation succeeded.
    pub possible: bool,
    /// apt's words, if it did not.
    pub errors: Vec<String>,
    /// Bytes to download and to unpack.
    pub need: (u64, u64),
    /// Bytes free where they go to; `None` where df did not tell.
    pub free: (Option<u64>, Option<u64>),
}

/// Why a plan is not carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// apt does not know the package.
    Unknown(String),
    /// It would bring kernel modules.
    Kernel(String),
    /// It would bring a driver.
    Driver(String),
    /// It would remove packages.
    Removes(String),
    /// There is no space for it.
    Space(String),
    /// apt cannot do it.
    Impossible(String),
}

impl Plan {
    /// Reads the script's lines.
    pub fn parse(answer: &[u8]) -> Plan {
        let mut plan = Plan::default();
        for (key, value) in fields(answer) {
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            match key.as_str() {
                "sim" => plan.simulated(&value, &words),
                "sim-rc" => plan.possible = value == "0",
                "open" => plan.unpinned(&words),
                "size" => plan.sized(&words),
                "free" => {
                    let kb = |n: usize| words.get(n)?.parse::<u64>().ok().map(|kb| kb.saturating_mul(1024));
                    plan.free = (kb(0), kb(1));
                }
                _ => {}
            }
        }
        plan
    }

    fn simulated(&mut self, line: &str, words: &[&str]) {
        match words {
            ["Inst", name, rest @ ..] => {
                self.note_kind(name, rest);
                self.install.push((shown(name), version(rest)));
            }
            ["Remv", name, ..] => self.remove.push(shown(name)),
            ["E:", ..] => self.errors.push(line.trim_start_matches("E: ").to_owned()),
            [_, ":", "Depends:", ..] => self.errors.push(line.to_owned()),
            _ => {}
        }
    }

    /// A line of the simulation without our preferences, which is only made
    /// to name the reason.
    fn unpinned(&mut self, words: &[&str]) {
        if let ["Inst", name, rest @ ..] = words {
            self.note_kind(name, rest);
        }
    }

    fn note_kind(&mut self, name: &str, rest: &[&str]) {
        if is_kernel(name) {
            self.kernel.push(shown(name));
        } else if is_driver(name) {
            self.driver.push((shown(name), version(rest)));
        }
    }

    /// The archive's size is in bytes, what it unpacks to in kB.
    fn sized(&mut self, words: &[&str]) {
        let number = |word: &str| word.parse::<u64>().unwrap_or(0);
        match words {
            ["archive", bytes] => self.need.0 = self.need.0.saturating_add(number(bytes)),
            ["unpacked", kb] => self.need.1 = self.need.1.saturating_add(number(kb).saturating_mul(1024)),
            _ => {}
        }
    }

    /// Why it must not be done, if so.
    pub fn refusal(&self) -> Option<Refusal> {
        if !self.kernel.is_empty() {
            return Some(Refusal::Kernel(list(&self.kernel)));
        }
        if !self.driver.is_empty() {
            let named: Vec<String> =
                self.driver.iter().map(|(n, v)| format!("{n} {v}").trim().to_owned()).collect();
            return Some(Refusal::Driver(list(&named)));
        }
        if !self.possible {
            let said = self.errors.join(" | ");
            let unknown = ["Unable to locate package", "has no installation candidate"];
            return Some(match unknown.iter().any(|u| said.contains(u)) {
                true => Refusal::Unknown(said),
                false => Refusal::Impossible(said),
            });
        }
        if !self.remove.is_empty() {
            return Some(Refusal::Removes(list(&self.remove)));
        }
        let (archives, unpacked) = self.need;
        // Usually both are on one file system, and the archives stay there
        // while they are unpacked. Where df did not tell, apt finds out.
        let all = archives.saturating_add(unpacked);
        let less = |free: Option<u64>, need: u64| free.filter(|free| *free < need);
        let short = less(self.free.0, archives).into_iter().chain(less(self.free.1, all)).min()?;
        Some(Refusal::Space(format!("{} are needed, {} are free", size(all), size(short))))
    }

    /// The names to be installed.
    pub fn names(&self) -> Vec<String> {
        self.install.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// A name as it is shown: the container may call anything a package.
fn shown(name: &str) -> String {
    name.parse::<PackageName>().map_or_else(|_| "(no name)".to_owned(), |name| name.to_string())
}

/// The new version in `Inst NAME [old] (new origin [arch])`; what is none
/// (deb-version(7)) is left out.
fn version(rest: &[&str]) -> String {
    let good = |v: &&str| v.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-:~".contains(&b));
    rest.iter().find_map(|word| word.strip_prefix('(')).filter(good).unwrap_or_default().to_owned()
}

fn list(names: &[String]) -> String {
    match names.len() {
        0..=6 => names.join(", "),
        more => format!("{} and {} more", names[..6].join(", "), more - 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "sim NOTE: This is only a simulation!\n\
        sim Inst cuda-toolkit-config-common (13.0.1 NVIDIA:1 [all])\n\
        sim Inst libc6 [2.36-9] (2.36-10 Debian:12 [amd64])\n\
        sim Conf cuda-toolkit-config-common (13.0.1 NVIDIA:1 [all])\n\
        sim-rc 0\n\
        size archive 3000000000\nsize unpacked 7000000\nsize archive 210000000\nsize unpacked 600000\n\
        size archive nonsense\n";

    fn plan(text: &str) -> Plan {
        Plan::parse(text.as_bytes())
    }

    #[test]
    fn a_harmless_plan_is_carried_out_if_there_is_space() {
        let good = plan(&format!("{GOOD}free 20000000 20000000\n"));
        assert_eq!(good.refusal(), None);
        assert_eq!(good.install[1], ("libc6".into(), "2.36-10".into()));
        assert_eq!(good.need, (3_210_000_000, 7_600_000 * 1024));
        let tight = plan(&format!("{GOOD}free 9000000 9000000\n"));
        assert_eq!(tight.refusal(), Some(Refusal::Space("10 GB are needed, 9216 MB are free".into())));
        for untold in ["free - -\n", "free - 20000000\n", ""] {
            assert_eq!(plan(&format!("{GOOD}{untold}")).refusal(), None, "{untold}");
        }
        let usr = plan(&format!("{GOOD}free - 100\n"));
        assert_eq!(usr.refusal(), Some(Refusal::Space("10 GB are needed, 102 kB are free".into())));
    }

    #[test]
    fn kernel_modules_driver_libraries_and_removals_are_refused_by_name() {
        let with = |line: &str| plan(&format!("{GOOD}{line}\nfree 99999999 99999999\n")).refusal();
        assert_eq!(
            with("sim Inst nvidia-kernel-open-dkms (580.126.09-1 NVIDIA [amd64])"),
            Some(Refusal::Kernel("nvidia-kernel-open-dkms".into()))
        );
        assert_eq!(
            with("sim Inst libnvidia-ml1 (580.126.09-1 NVIDIA [amd64])"),
            Some(Refusal::Driver("libnvidia-ml1 580.126.09-1".into()))
        );
        assert_eq!(with("sim Remv python3 [3.11]"), Some(Refusal::Removes("python3".into())));
        // What is no name is refused without being repeated.
        assert_eq!(with("sim Remv $(reboot) [1]"), Some(Refusal::Removes("(no name)".into())));
        assert_eq!(
            with("sim Inst libnvidia-ml1 (1;reboot x [amd64])"),
            Some(Refusal::Driver("libnvidia-ml1".into()))
        );
    }

    #[test]
    fn the_reason_of_an_impossible_plan_is_what_the_pins_keep_out() {
        let text = "sim The following packages have unmet dependencies:\n\
            sim  cuda-drivers-580 : Depends: nvidia-open-580 but it is not installable\n\
            sim E: Unable to correct problems, you have held broken packages.\nsim-rc 100\n";
        assert!(
            matches!(plan(text).refusal(), Some(Refusal::Impossible(said)) if said.contains("nvidia-open-580"))
        );
        let text = format!("{text}open Inst libnvidia-ml1 (580.126.09-1 NVIDIA [amd64])\n");
        assert_eq!(plan(&text).refusal(), Some(Refusal::Driver("libnvidia-ml1 580.126.09-1".into())));
        let text = "sim E: Unable to locate package cuda-toolkit-99-0\nsim-rc 100\n";
        assert!(matches!(plan(text).refusal(), Some(Refusal::Unknown(_))));
    }
}
