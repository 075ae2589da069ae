//! apt in the container: never at the driver's expense, and never a package of
//! another driver.

pub mod failure;
pub mod simulate;

use crate::driver::cache::Cache;
use crate::driver::desired::{CudaPackages, Desired};
use crate::driver::repo::{PREFERENCES, Repository, SOURCE};
use crate::driver::template::{Facts, PackageTemplate, is_newer_than_known};
use crate::exit::{self, Code, Context as _, Fault};
use crate::guest::exec::{self, ExecError, Guest, fields};
use crate::guest::os::Os;
use crate::guest::own::REMOVE_SOURCE;
use crate::guest::probe::Check;
use crate::sys::signal;
use crate::sys::text::size;
use crate::sys::time::{Deadline, human};
use failure::{UpdateError, UpdateFailure, reasons};
use simulate::{Refusal, Simulation};
use std::time::{Duration, Instant};

const KMOD: &str = include_str!("../scripts/kmod.sh");
const PREPARE: &str = concat!(
    include_str!("../scripts/apt-own.sh"),
    include_str!("../scripts/apt-aside.sh"),
    include_str!("../scripts/apt-prepare.sh")
);
const UPDATE: &str = include_str!("../scripts/apt-update.sh");
const SIMULATE: &str = include_str!("../scripts/apt-simulate.sh");
const INSTALL: &str = include_str!("../scripts/apt-install.sh");
const ASIDE: &str = concat!(include_str!("../scripts/apt-aside.sh"), "aside \"$1\"\n");

/// The source that the script before this program wrote.
const OLD_SOURCE: &str = "/etc/apt/sources.list.d/nvidia.list";
/// How long to wait for dpkg's lock, in seconds: a new container may run
/// unattended-upgrades.
const LOCK_SECONDS: &str = "300";

/// Installs modprobe, which NVIDIA's installer needs even without kernel
/// modules.
pub(super) fn install_kmod(guest: &Guest, os: &Os, desired: &Desired) -> anyhow::Result<()> {
    let what = || {
        Fault::new(
            Code::Software,
            format!("cannot install kmod in {}: NVIDIA's installer needs its modprobe", os.shown()),
        )
        .remedy(if os.apt {
            format!("pct exec {} -- apt-get install -y kmod", guest.ctid())
        } else {
            format!("install the package kmod in container {}", guest.ctid())
        })
    };
    let deadline = Deadline::after(desired.limits.apt);
    let output = guest.pct_sh(KMOD, [LOCK_SECONDS]).must(&deadline).fault(what)?;
    log::info!("driver: installed kmod for the installer in {}", human(output.took));
    Ok(())
}

/// apt in one container, for one install.
pub(super) struct Apt<'a> {
    guest: &'a Guest,
    desired: &'a Desired,
    os: &'a Os,
    /// Packages hold the driver: apt may upgrade it.
    packaged: bool,
    deadline: Deadline,
}

impl<'a> Apt<'a> {
    pub(super) fn new(guest: &'a Guest, desired: &'a Desired, os: &'a Os, packaged: bool) -> Self {
        Apt { guest, desired, os, packaged, deadline: Deadline::after(desired.limits.apt) }
    }

    /// Installs the CUDA packages.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub(super) fn cuda(&self, check: &Check, cache: &Cache) -> anyhow::Result<()> {
        let CudaPackages::List(all) = &self.desired.cuda else { return Ok(()) };
        // After an interrupted run ask for all: apt knows what is installed.
        let wanted = if check.cuda_interrupted { all } else { &check.cuda_missing };
        let names = self.names(wanted)?;
        let repository = Repository::find(cache, self.desired, &self.os.distribution())?;
        self.set_up(&repository)?;
        if names.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let simulation = self.simulate(&names)?;
        if let Some(refusal) = simulation.refusal() {
            return Err(self.refused(&names, refusal, &repository));
        }
        let count = simulation.install.len();
        if count > 0 || check.cuda_interrupted {
            self.install(&names, "cuda")?;
            let (names, size) = (names.join(", "), size(simulation.need.0));
            let took = human(started.elapsed());
            log::info!("cuda: installed {names} ({count} packages, {size} to download) in {took}");
        }
        Ok(())
    }

    fn names(&self, templates: &[PackageTemplate]) -> anyhow::Result<Vec<String>> {
        let distro = self.os.distro();
        let facts = Facts::repository(&self.desired.driver, distro.as_deref());
        templates.iter().map(|t| t.fill(&facts)).collect()
    }

    /// Writes source, key and preferences and fetches the index. If that fails,
    /// removes the source: apt must keep working for the container's owner.
    fn set_up(&self, repository: &Repository) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut prepared = self.prepare(repository)?;
        if let Some(said) = &prepared.unreadable {
            let message =
                format!("repository: apt in container {} cannot read its sources: {said}", self.guest.ctid());
            let remedy = format!("pct exec {} -- apt-get check", self.guest.ctid());
            return Err(Fault::new(Code::Software, message).remedy(remedy).into());
        }
        let mut done = self.update(Some(prepared.file()));
        // The script before this program wrote a suite, which a flat repository
        // does not have.
        if prepared.elsewhere.as_deref() == Some(OLD_SOURCE) && done.as_ref().is_err_and(|e| e.no_release) {
            self.aside(OLD_SOURCE)?;
            prepared = self.prepare(repository)?;
            done = self.update(Some(prepared.file()));
        }
        let done = done.map_err(anyhow::Error::from);
        // Packages need the distribution's lists; one that fails may not matter.
        if done.is_ok() && !prepared.lists {
            if let Err(error) = self.update(None) {
                log::warn!("repository: cannot update the other sources: {error}");
            }
        }
        if let Err(error) = done {
            if prepared.elsewhere.is_none() {
                self.undo();
            }
            return Err(error).fault(|| {
                Fault::new(Code::Software, format!("repository: cannot use {}", repository.uri))
                    .remedy("correct NVIDIA_REPO_URL and NVIDIA_REPO_KEY_URL, or set CUDA_PACKAGES=none")
            });
        }
        if prepared.changed {
            log::info!("repository: set up {} in {}", repository.uri, human(started.elapsed()));
        }
        Ok(())
    }

    fn prepare(&self, repository: &Repository) -> anyhow::Result<AptSetup> {
        // By stdin, since everybody can read a command line.
        let mut input = format!("{}\n", repository.uri.request());
        for (path, mode, text) in repository.files() {
            // Ours would keep apt from upgrading its own driver.
            let text = if self.packaged && path == PREFERENCES { String::new() } else { text };
            input.push_str(&format!("{path} {mode:o} {}\n{text}", text.lines().count()));
        }
        let cmd = self.guest.pct_sh(PREPARE, []).stdin(std::io::Cursor::new(input));
        let result = cmd.must(&self.deadline);
        // If it ended, dpkg failed. If it did not, the other command shows why.
        let command = match &result {
            Err(ExecError::Failed(_)) => "apt-get check",
            _ => "dpkg --configure -a",
        };
        let output = result.fault(|| {
            Fault::new(Code::Software, format!("cannot prepare apt in container {}", self.guest.ctid()))
                .remedy(format!("pct exec {} -- {command}", self.guest.ctid()))
        })?;
        Ok(AptSetup::parse(&output.stdout))
    }

    /// Moves a source aside that apt cannot use; never deletes one.
    fn aside(&self, file: &str) -> anyhow::Result<()> {
        let what = || Fault::new(Code::Software, format!("repository: cannot move {file} aside"));
        let output = self.guest.pct_sh(ASIDE, [file]).must(&self.deadline).fault(what)?;
        log::info!("repository: {file} leads to no repository");
        AptSetup::parse(&output.stdout);
        Ok(())
    }

    /// `apt-get update`, of one source or of all; retried while another process
    /// holds the lock or the network is down.
    fn update(&self, file: Option<&str>) -> Result<(), UpdateError> {
        let network = Deadline::after(self.desired.limits.network);
        loop {
            let output = self.guest.pct_sh(UPDATE, [file.unwrap_or_default()]).run(&self.deadline);
            let output = output.map_err(|error| UpdateError::from(anyhow::Error::new(error)))?;
            let until = match UpdateFailure::of(&output) {
                None => return Ok(()),
                Some(UpdateFailure::Locked) => &self.deadline,
                Some(UpdateFailure::Network) => &network,
                Some(UpdateFailure::Other) => return Err(UpdateError::of(&output)),
            };
            if until.remaining() < Duration::from_secs(3) {
                return Err(UpdateError::of(&output));
            }
            log::debug!("apt-get update: {}; retrying", reasons(&output));
            signal::sleep(Duration::from_secs(3))
                .map_err(|signal| UpdateError::from(anyhow::Error::new(signal)))?;
        }
    }

    fn undo(&self) {
        // After a signal there are five seconds for all that is left.
        let deadline = Deadline::secs(if signal::check().is_err() { 1 } else { 30 });
        if let Err(error) = self.guest.attach_sh(REMOVE_SOURCE, []).even_when_stopping().run(&deadline) {
            log::warn!("repository: cannot remove {SOURCE} from the container: {error}");
        }
    }

    fn simulate(&self, names: &[String]) -> anyhow::Result<Simulation> {
        let what =
            || Fault::new(Code::Software, format!("cannot simulate the install of {}", names.join(", ")));
        let args = names.iter().map(String::as_str);
        let output = self.guest.pct_sh(SIMULATE, args).keep(1 << 20).must(&self.deadline).fault(what)?;
        Ok(Simulation::parse(&output.stdout))
    }

    fn install(&self, names: &[String], what: &str) -> anyhow::Result<()> {
        let args = std::iter::once(LOCK_SECONDS).chain(names.iter().map(String::as_str));
        let output =
            self.guest.pct_sh(INSTALL, args).run(&self.deadline).fault(|| {
                Fault::new(Code::Software, format!("{what}: cannot install {}", names.join(", ")))
            })?;
        if output.success() {
            return Ok(());
        }
        let message =
            format!("{what}: apt-get install {}: {}, {}", names.join(" "), output.ended, reasons(&output));
        Err(Fault::new(Code::Software, message)
            .remedy(format!("pct exec {} -- apt-get install {}", self.guest.ctid(), names.join(" ")))
            .into())
    }

    fn refused(&self, names: &[String], refusal: Refusal, repository: &Repository) -> anyhow::Error {
        let (what, ctid) = (names.join(", "), self.guest.ctid());
        let by_hand = || format!("pct exec {ctid} -- apt-get install {}", names.join(" "));
        let toolkit = || format!("phoenix-nvidia attach {ctid} --cuda 'cuda-toolkit-{{cuda}}'");
        let (why, remedy) = match refusal {
            Refusal::Unknown(said) => (
                format!("{what} not found in {} ({said}){}", repository.uri, self.assumed()),
                format!("phoenix-nvidia attach {ctid} --cuda none"),
            ),
            Refusal::Kernel(packages) => (
                format!("{what} refused: would install kernel modules ({packages}) in a container"),
                toolkit(),
            ),
            Refusal::Driver(packages) => (
                format!(
                    "{what} refused: would install another driver ({packages}) over the {} {}",
                    if self.desired.injected { "host's" } else { "runfile's" },
                    self.desired.driver
                ),
                toolkit(),
            ),
            Refusal::Removes(packages) => (format!("{what} refused: would remove {packages}"), by_hand()),
            Refusal::Space(short) => (
                format!("not enough space for {what} in container {ctid}: {short}"),
                format!("pct resize {ctid} rootfs +10G"),
            ),
            Refusal::Impossible(said) => (format!("cannot install {what}: {said}"), by_hand()),
        };
        Fault::new(Code::Software, format!("cuda: {why}")).remedy(remedy).into()
    }

    /// Where the CUDA version of the driver is a guess, that is said.
    fn assumed(&self) -> String {
        let branch = self.desired.driver.branch();
        let newer = is_newer_than_known(branch);
        let assumed =
            || format!("; CUDA version of driver branch {branch} unknown: newest known one assumed");
        newer.then(assumed).unwrap_or_default()
    }

    /// Installs the utilities, each by itself, since one may fail. Returns the
    /// failures.
    pub(super) fn utilities(&self, missing: &[PackageTemplate]) -> Vec<String> {
        let mut warnings = Vec::new();
        for package in missing {
            match self.utility(package) {
                Ok(()) => {}
                Err(error) if exec::ended(&error) => break,
                Err(error) => {
                    warnings.push(format!("cannot install {package}: {}", exit::one_line(&error)));
                }
            }
        }
        warnings
    }

    fn utility(&self, package: &PackageTemplate) -> anyhow::Result<()> {
        let started = Instant::now();
        let names = self.names(std::slice::from_ref(package))?;
        let mut simulation = self.simulate(&names)?;
        if matches!(simulation.refusal(), Some(Refusal::Unknown(_))) {
            self.update(None)?;
            simulation = self.simulate(&names)?;
        }
        match simulation.refusal() {
            None => {}
            Some(Refusal::Unknown(_)) => anyhow::bail!("not in the sources of {}", self.os.shown()),
            Some(Refusal::Driver(p) | Refusal::Kernel(p)) => anyhow::bail!("would install a driver ({p})"),
            Some(Refusal::Removes(p)) => anyhow::bail!("would remove {p}"),
            Some(Refusal::Space(why) | Refusal::Impossible(why)) => anyhow::bail!(why),
        }
        self.install(&names, "utilities")?;
        log::info!("utilities: installed {} in {}", names.join(", "), human(started.elapsed()));
        Ok(())
    }
}

/// The result of the preparation.
#[derive(Debug, Default)]
struct AptSetup {
    changed: bool,
    lists: bool,
    elsewhere: Option<String>,
    /// With our source, or without it too.
    unreadable: Option<String>,
}

impl AptSetup {
    /// The source file of the repository.
    fn file(&self) -> &str {
        self.elsewhere.as_deref().unwrap_or(SOURCE)
    }

    fn parse(answer: &[u8]) -> AptSetup {
        let mut prepared = AptSetup::default();
        for (key, value) in fields(answer) {
            match key.as_str() {
                "interrupted" => log::info!("apt: completed an interrupted dpkg run"),
                "aside" => log::info!("repository: moved aside, since apt cannot read it: {value}"),
                "elsewhere" if value.starts_with("/etc/apt/") && !value.contains("..") => {
                    log::info!("repository: already in {value}");
                    prepared.elsewhere = Some(value);
                }
                "unreadable" => prepared.unreadable = Some(value),
                "wrote" => prepared.changed = true,
                "lists" => prepared.lists = true,
                _ => {}
            }
        }
        prepared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_elsewhere_is_believed_only_below_etc_apt() {
        let of = |text: &str| AptSetup::parse(text.as_bytes()).elsewhere;
        assert_eq!(
            of("elsewhere /etc/apt/sources.list.d/cuda.list\n").as_deref(),
            Some("/etc/apt/sources.list.d/cuda.list")
        );
        assert_eq!(of("elsewhere /etc/shadow\n"), None);
    }
}
