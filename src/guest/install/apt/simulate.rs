//! A simulated apt install, and whether to carry it out.

use crate::driver::packages::{PackageName, is_driver, is_kernel};
use crate::guest::exec::fields;
use crate::sys::text::size;

/// The result of a simulated install.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Simulation {
    /// Packages that would be installed or upgraded, with their versions.
    pub install: Vec<(String, String)>,
    /// Packages that would be removed.
    pub remove: Vec<String>,
    /// Packages of a driver among them, without our preferences.
    pub driver: Vec<(String, String)>,
    /// Packages with kernel modules among them.
    pub kernel: Vec<String>,
    /// Whether the simulation succeeded.
    pub possible: bool,
    /// apt's errors.
    pub errors: Vec<String>,
    /// Bytes to download and to unpack.
    pub need: (u64, u64),
    /// Bytes free for them, if known.
    pub free: (Option<u64>, Option<u64>),
}

/// Why an install is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// apt does not know the package.
    Unknown(String),
    /// It would install kernel modules.
    Kernel(String),
    /// It would install a driver.
    Driver(String),
    /// It would remove packages.
    Removes(String),
    /// Not enough space.
    Space(String),
    /// apt cannot do it.
    Impossible(String),
}

impl Simulation {
    /// From the script's output.
    pub fn parse(answer: &[u8]) -> Simulation {
        let mut simulation = Simulation::default();
        for (key, value) in fields(answer) {
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            match key.as_str() {
                "sim" => simulation.simulated(&value, &words),
                "sim-rc" => simulation.possible = value == "0",
                "open" => simulation.unpinned(&words),
                "size" => simulation.sized(&words),
                "free" => {
                    let kb = |n: usize| words.get(n)?.parse::<u64>().ok().map(|kb| kb.saturating_mul(1024));
                    simulation.free = (kb(0), kb(1));
                }
                _ => {}
            }
        }
        simulation
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

    /// A line of the simulation without our preferences, which shows the reason
    /// of a failure.
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

    /// The size of an archive is in bytes, the unpacked size in kB.
    fn sized(&mut self, words: &[&str]) {
        let number = |word: &str| word.parse::<u64>().unwrap_or(0);
        match words {
            ["archive", bytes] => self.need.0 = self.need.0.saturating_add(number(bytes)),
            ["unpacked", kb] => self.need.1 = self.need.1.saturating_add(number(kb).saturating_mul(1024)),
            _ => {}
        }
    }

    /// Why the install is refused, if so.
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
        // during unpacking. If the free space is unknown, apt finds out.
        let all = archives.saturating_add(unpacked);
        let less = |free: Option<u64>, need: u64| free.filter(|free| *free < need);
        let short = less(self.free.0, archives).into_iter().chain(less(self.free.1, all)).min()?;
        Some(Refusal::Space(format!("{} needed, {} free", size(all), size(short))))
    }

    /// The names of the packages to install.
    pub fn names(&self) -> Vec<String> {
        self.install.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// A name for messages: the container may print anything.
fn shown(name: &str) -> String {
    name.parse::<PackageName>().map_or_else(|_| "(invalid name)".to_owned(), |name| name.to_string())
}

/// The new version in `Inst NAME [old] (new origin [arch])`, if it is one
/// (deb-version(7)).
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

    fn simulation(text: &str) -> Simulation {
        Simulation::parse(text.as_bytes())
    }

    #[test]
    fn a_harmless_install_is_carried_out_if_there_is_space() {
        let good = simulation(&format!("{GOOD}free 20000000 20000000\n"));
        assert_eq!(good.refusal(), None);
        assert_eq!(good.install[1], ("libc6".into(), "2.36-10".into()));
        assert_eq!(good.need, (3_210_000_000, 7_600_000 * 1024));
        let tight = simulation(&format!("{GOOD}free 9000000 9000000\n"));
        assert_eq!(tight.refusal(), Some(Refusal::Space("10 GB needed, 9216 MB free".into())));
        for untold in ["free - -\n", "free - 20000000\n", ""] {
            assert_eq!(simulation(&format!("{GOOD}{untold}")).refusal(), None, "{untold}");
        }
        let usr = simulation(&format!("{GOOD}free - 100\n"));
        assert_eq!(usr.refusal(), Some(Refusal::Space("10 GB needed, 102 kB free".into())));
    }

    #[test]
    fn kernel_modules_driver_libraries_and_removals_are_refused_by_name() {
        let with = |line: &str| simulation(&format!("{GOOD}{line}\nfree 99999999 99999999\n")).refusal();
        assert_eq!(
            with("sim Inst nvidia-kernel-open-dkms (580.126.09-1 NVIDIA [amd64])"),
            Some(Refusal::Kernel("nvidia-kernel-open-dkms".into()))
        );
        assert_eq!(
            with("sim Inst libnvidia-ml1 (580.126.09-1 NVIDIA [amd64])"),
            Some(Refusal::Driver("libnvidia-ml1 580.126.09-1".into()))
        );
        assert_eq!(with("sim Remv python3 [3.11]"), Some(Refusal::Removes("python3".into())));
        // An invalid name is never shown.
        assert_eq!(with("sim Remv $(reboot) [1]"), Some(Refusal::Removes("(invalid name)".into())));
        assert_eq!(
            with("sim Inst libnvidia-ml1 (1;reboot x [amd64])"),
            Some(Refusal::Driver("libnvidia-ml1".into()))
        );
    }

    #[test]
    fn the_reason_of_an_impossible_install_is_what_our_preferences_refuse() {
        let text = "sim The following packages have unmet dependencies:\n\
            sim  cuda-drivers-580 : Depends: nvidia-open-580 but it is not installable\n\
            sim E: Unable to correct problems, you have held broken packages.\nsim-rc 100\n";
        assert!(
            matches!(simulation(text).refusal(), Some(Refusal::Impossible(said)) if said.contains("nvidia-open-580"))
        );
        let text = format!("{text}open Inst libnvidia-ml1 (580.126.09-1 NVIDIA [amd64])\n");
        assert_eq!(simulation(&text).refusal(), Some(Refusal::Driver("libnvidia-ml1 580.126.09-1".into())));
        let text = "sim E: Unable to locate package cuda-toolkit-99-0\nsim-rc 100\n";
        assert!(matches!(simulation(text).refusal(), Some(Refusal::Unknown(_))));
    }
}
