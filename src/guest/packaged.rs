//! A driver that the container's own packages hold: apt's to upgrade, and never
//! mixed with a runfile's.

use super::exec::{Guest, fields};
use super::install::apt::simulate::Simulation;
use crate::driver::packages::PackageName;
use crate::sys::text::few;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};

const APT_DRIVER: &str = include_str!("scripts/apt-driver.sh");

/// A package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian's.
    Dpkg,
    /// Fedora's.
    Rpm,
    /// Arch's.
    Pacman,
}

/// So many are named in a message: the container chooses how many there are.
const NAMED: usize = 10;

/// The packages that hold a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packages {
    /// Those with a valid name.
    pub names: Vec<PackageName>,
    /// Their package manager.
    pub manager: Manager,
}

impl Packages {
    /// Their names, for messages.
    pub fn shown(&self) -> String {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        if names.is_empty() { "(invalid names)".to_owned() } else { few(names, NAMED).join(", ") }
    }

    /// The names for a command line.
    fn words(&self) -> String {
        self.names.iter().map(PackageName::as_str).collect::<Vec<_>>().join(" ")
    }

    /// The command that removes them, to be pasted on the host; `None` without
    /// any.
    pub fn remove(&self, ctid: Ctid) -> Option<String> {
        let verb = match self.manager {
            Manager::Dpkg => "apt-get purge",
            Manager::Rpm => "dnf remove",
            Manager::Pacman => "pacman -R",
        };
        (!self.names.is_empty()).then(|| format!("pct exec {ctid} -- {verb} {}", self.words()))
    }

    /// The command with which apt brings this version, if a simulation in the
    /// container says that it can; `None` also where nothing answers in time.
    pub(super) fn upgrade(&self, guest: &Guest, to: &Version, deadline: &Deadline) -> Option<String> {
        let answer = self.ask(guest, ["to", to.as_str()], deadline)?;
        let install = upgrade(&answer)?;
        Some(format!(
            "pct exec {} -- apt-get install --allow-change-held-packages {}",
            guest.ctid(),
            install.join(" ")
        ))
    }

    /// What apt's next upgrade does to them; `None` if that is not known.
    pub(super) fn next(&self, guest: &Guest, deadline: &Deadline) -> Option<NextUpgrade> {
        NextUpgrade::parse(&self.ask(guest, ["next", "-"], deadline)?)
    }

    fn ask(&self, guest: &Guest, ask: [&str; 2], deadline: &Deadline) -> Option<Vec<u8>> {
        if self.manager != Manager::Dpkg || self.names.is_empty() {
            return None;
        }
        let args = ask.into_iter().chain(self.names.iter().map(PackageName::as_str));
        let output = guest.attach_sh(APT_DRIVER, args).keep(256 * 1024).run(deadline);
        output
            .map_err(|error| log::debug!("packages of the driver: {error}"))
            .ok()
            .map(|output| output.stdout)
    }

    /// The command that keeps apt from upgrading them.
    pub fn hold(&self, ctid: Ctid) -> String {
        format!("pct exec {ctid} -- apt-mark hold {}", self.words())
    }
}

/// The arguments of the install that the script simulated.
fn upgrade(answer: &[u8]) -> Option<Vec<String>> {
    let (mut wanted, mut lacks) = (Vec::new(), false);
    for (key, value) in fields(answer) {
        match key.as_str() {
            "want" => wanted.push(package_of_version(&value)?),
            "lacks" => lacks = true,
            _ => {}
        }
    }
    let simulation = Simulation::parse(answer);
    let sound = simulation.possible && simulation.remove.is_empty() && simulation.kernel.is_empty();
    (sound && !lacks && !wanted.is_empty()).then_some(wanted)
}

/// `NAME=VERSION`, with nothing in it that a shell would read otherwise.
fn package_of_version(text: &str) -> Option<String> {
    let (name, version) = text.split_once('=')?;
    name.parse::<PackageName>().ok()?;
    let plain = version.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:~".contains(&b));
    let first = version.bytes().next().is_some_and(|b| b.is_ascii_digit());
    (plain && first && version.len() <= 100).then(|| text.to_owned())
}

/// What apt's next upgrade does to a driver's packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextUpgrade {
    /// All of them are held.
    pub held: bool,
    /// The version that it brings, where that is another one.
    pub other: Option<String>,
}

impl NextUpgrade {
    fn parse(answer: &[u8]) -> Option<NextUpgrade> {
        let (mut now, mut next, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in fields(answer) {
            let words: Vec<&str> = value.split(' ').collect();
            match (key.as_str(), words.as_slice()) {
                ("now", [want, _, version]) => {
                    now.push((*version).to_owned());
                    held.push(*want == "hold");
                }
                ("next", [_, version]) if *version != "(none)" => next.push((*version).to_owned()),
                _ => {}
            }
        }
        let other = next.into_iter().find(|version| !now.contains(version));
        (!now.is_empty()).then(|| NextUpgrade { held: held.iter().all(|held| *held), other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_packages_few_are_named() {
        let names = (0..40).map(|n| format!("libnvidia-x{n}").parse().unwrap()).collect();
        let shown = Packages { names, manager: Manager::Dpkg }.shown();
        assert!(shown.ends_with("libnvidia-x9, and 30 more"), "{shown}");
    }

    #[test]
    fn apt_may_upgrade_what_a_simulation_shows_and_nothing_of_which_a_part_is_missing() {
        let good = "want libcuda1:amd64=535.261.03-1\nsim Inst libcuda1 [1] (535.261.03-1 x)\nsim-rc 0\n";
        assert_eq!(upgrade(good.as_bytes()).unwrap(), ["libcuda1:amd64=535.261.03-1"]);
        for bad in [
            "lacks nvidia-smi\n",
            "sim Remv gimp [1]\n",
            "sim Inst dkms (3.0 x)\n",
            "sim-rc 100\n",
            "want a=1;reboot\n",
            "want -y=1\n",
            "want a=$(id)\n",
        ] {
            assert_eq!(upgrade(format!("{good}{bad}").as_bytes()), None, "{bad}");
        }
        assert_eq!(upgrade(b"sim-rc 0\n"), None);
    }

    #[test]
    fn the_next_upgrade_is_known_by_candidate_and_hold() {
        let of = |text: &str| NextUpgrade::parse(text.as_bytes());
        let now = "now install libcuda1:amd64 535.261.03-1\nnext libcuda1:amd64 535.261.03-1\n";
        assert_eq!(of(now), Some(NextUpgrade::default()));
        let other = now.replace("next libcuda1:amd64 535.261.03-1", "next libcuda1:amd64 550.1-1");
        assert_eq!(of(&other).unwrap().other.as_deref(), Some("550.1-1"));
        assert!(of(&now.replace("install", "hold")).unwrap().held);
        assert_eq!(of("next libcuda1 (none)\n"), None);
        assert_eq!(
            of(&now.replace("next libcuda1:amd64 535.261.03-1", "next libcuda1 (none)")).unwrap().other,
            None
        );
    }
}
