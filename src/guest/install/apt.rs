//! apt in the container: never at the driver's expense, never a package that
//! brings another driver.

pub mod simulate;
pub mod trouble;

use super::Installed;
use super::steps::{Steps, no_apt};
use crate::driver::cache::Cache;
use crate::driver::desired::CudaPackages;
use crate::driver::desired::Desired;
use crate::driver::repo::Repository;
use crate::driver::repo::SOURCE;
use crate::driver::template::Facts;
use crate::driver::template::PackageTemplate;
use crate::exit::{self, Code, Context as _, Fault};
use crate::guest::exec::{ExecError, Guest, fields};
use crate::guest::os::{Os, repo_arch};
use crate::guest::probe::Check;
use crate::sys::fetch::size;
use crate::sys::signal;
use crate::sys::time::{Deadline, human};
use simulate::{Plan, Refusal};
use std::time::{Duration, Instant};
use trouble::{NoUpdate, Trouble, reasons};

const KMOD: &str = include_str!("../scripts/kmod.sh");
const PREPARE: &str =
    concat!(include_str!("../scripts/apt-aside.sh"), include_str!("../scripts/apt-prepare.sh"));
const UPDATE: &str = include_str!("../scripts/apt-update.sh");
const PLAN: &str = include_str!("../scripts/apt-plan.sh");
const INSTALL: &str = include_str!("../scripts/apt-install.sh");
const ASIDE: &str = concat!(include_str!("../scripts/apt-aside.sh"), "aside \"$1\"\n");
const UNDO: &str = include_str!("../scripts/apt-undo.sh");

/// The source that the older script of this purpose wrote.
const OLD_SOURCE: &str = "/etc/apt/sources.list.d/nvidia.list";
/// How long dpkg's lock is waited for, in seconds: a fresh container may run
/// unattended-upgrades.
const LOCK_SECONDS: &str = "300";

/// Installs modprobe, which NVIDIA's installer insists on even without
/// kernel modules.
pub(super) fn install_kmod(guest: &Guest, os: &Os, desired: &Desired) -> anyhow::Result<()> {
    let what = || {
        Fault::new(
            Code::Software,
            format!("NVIDIA's installer needs modprobe, and kmod could not be installed in {}", os.shown()),
        )
        .remedy(if os.apt {
            format!("pct exec {} -- apt-get install -y kmod", guest.ctid())
        } else {
            format!("install the package kmod: pct enter {}", guest.ctid())
        })
    };
    let deadline = Deadline::after(desired.limits.apt);
    let output = guest.pct_sh(KMOD, [LOCK_SECONDS]).must(&deadline).fault(what)?;
    log::info!("driver: installed kmod, which the installer needs, in {}", human(output.took));
    Ok(())
}

/// The CUDA packages and the utilities, after the driver.
///
/// # Errors
/// [`Code::Software`] when the CUDA packages could not be installed; the
/// utilities only warn.
pub(super) fn software(
    guest: &Guest,
    desired: &Desired,
    check: &Check,
    steps: &Steps,
    cache: &Cache,
    installed: &mut Installed,
) -> anyhow::Result<()> {
    let apt = Apt { guest, desired, os: &check.os, deadline: Deadline::after(desired.limits.apt) };
    let cuda = if steps.software() { apt.cuda(check, cache) } else { Ok(Vec::new()) };
    let failed = match cuda {
        Ok(names) => {
            installed.cuda = names;
            None
        }
        Err(error) => Some(error),
    };
    let stop = failed
        .as_ref()
        .is_some_and(|e| crate::guest::exec::is_gone(e) || crate::guest::exec::is_interrupted(e));
    if !stop {
        apt.utilities(steps.utilities(), installed);
    }
    failed.map_or(Ok(()), Err)
}

/// apt in one container, for one install.
struct Apt<'a> {
    guest: &'a Guest,
    desired: &'a Desired,
    os: &'a Os,
    deadline: Deadline,
}

impl Apt<'_> {
    fn cuda(&self, check: &Check, cache: &Cache) -> anyhow::Result<Vec<String>> {
        let CudaPackages::List(all) = &self.desired.cuda else { return Ok(Vec::new()) };
        if !self.os.apt {
            return Err(no_apt(self.guest.ctid(), check).into());
        }
        // After an interrupted run all are asked for: apt knows what is there.
        let wanted = if check.software_cut { all } else { &check.cuda_missing };
        let names = self.names(wanted)?;
        let repository = Repository::find(cache, self.desired, self.os)?;
        self.offer(&repository)?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let plan = self.plan(&names)?;
        if let Some(refusal) = plan.refusal() {
            return Err(self.refused(&names, refusal, &repository));
        }
        if plan.install.is_empty() && !check.software_cut {
            return Ok(Vec::new());
        }
        self.install(&names, "CUDA packages")?;
        log::info!(
            "cuda: installed {} ({} packages, {} to download) in {}",
            names.join(", "),
            plan.install.len(),
            size(plan.need.0),
            human(started.elapsed())
        );
        Ok(plan.names())
    }

    fn names(&self, templates: &[PackageTemplate]) -> anyhow::Result<Vec<String>> {
        let distro = self.os.distro();
        let facts = Facts { version: &self.desired.driver, arch: repo_arch(), distro: distro.as_deref() };
        templates.iter().map(|t| t.fill(&facts)).collect::<anyhow::Result<_>>().fault(|| {
            Fault::new(Code::Software, "CUDA_PACKAGES cannot be filled in")
                .remedy("name the packages, like CUDA_PACKAGES=cuda-toolkit-12-8, or CUDA_PACKAGES=none")
        })
    }

    /// Puts source, key and preferences in place and fetches the index. When
    /// that fails, the source is taken away again: apt must go on working for
    /// the container's owner.
    fn offer(&self, repository: &Repository) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut prepared = self.prepare(repository)?;
        let mut done = self.update(Some(prepared.file()));
        // What the older script of this purpose wrote: a suite that a flat
        // repository does not have.
        if prepared.elsewhere.as_deref() == Some(OLD_SOURCE) && done.as_ref().is_err_and(|e| e.no_release) {
            self.aside(OLD_SOURCE)?;
            prepared = self.prepare(repository)?;
            done = self.update(Some(prepared.file()));
        }
        let done = done.map_err(anyhow::Error::from);
        // Without the distribution's lists nothing can be resolved; one that
        // fails need not matter.
        if done.is_ok() && !prepared.lists {
            if let Err(error) = self.update(None) {
                log::warn!("repository: the container's other sources: {error}");
            }
        }
        if let Err(error) = done {
            if prepared.elsewhere.is_none() {
                self.undo();
            }
            return Err(error).fault(|| {
                Fault::new(Code::Software, format!("repository: {} cannot be used", repository.uri)).remedy(
                    "check NVIDIA_REPO_URL and NVIDIA_REPO_KEY_URL; CUDA_PACKAGES=none does without it",
                )
            });
        }
        if prepared.changed {
            log::info!("repository: {} in place in {}", repository.uri, human(started.elapsed()));
        }
        Ok(())
    }

    fn prepare(&self, repository: &Repository) -> anyhow::Result<Prepared> {
        // By stdin, since what stands in a command line is for everybody.
        let mut input = format!("{}\n", repository.uri.request());
        for (path, mode, text) in repository.files() {
            input.push_str(&format!("{path} {mode:o} {}\n{text}", text.lines().count()));
        }
        let cmd = self.guest.pct_sh(PREPARE, []).stdin(std::io::Cursor::new(input));
        let result = cmd.must(&self.deadline);
        // One that ended has been stopped by dpkg. The other command shows why
        // one does not end, or names dpkg's.
        let mends = match &result {
            Err(ExecError::Failed(_)) => "apt-get check",
            _ => "dpkg --configure -a",
        };
        let output = result.fault(|| {
            Fault::new(Code::Software, format!("apt in container {} cannot be prepared", self.guest.ctid()))
                .remedy(format!("pct exec {} -- {mends}", self.guest.ctid()))
        })?;
        Ok(Prepared::parse(&output.stdout))
    }

    /// Moves a source aside that apt cannot use; nothing is ever deleted.
    fn aside(&self, file: &str) -> anyhow::Result<()> {
        let what = || Fault::new(Code::Software, format!("repository: {file} cannot be moved aside"));
        let output = self.guest.pct_sh(ASIDE, [file]).must(&self.deadline).fault(what)?;
        log::info!("repository: apt finds nothing where {file} leads");
        Prepared::parse(&output.stdout);
        Ok(())
    }

    /// `apt-get update`, of one source or of all; repeated while somebody
    /// holds the lock or the network is not up yet.
    fn update(&self, file: Option<&str>) -> Result<(), NoUpdate> {
        let network = Deadline::after(self.desired.limits.network);
        loop {
            let output = self.guest.pct_sh(UPDATE, [file.unwrap_or_default()]).run(&self.deadline);
            let output = output.map_err(|error| NoUpdate::from(anyhow::Error::new(error)))?;
            let trouble = Trouble::of(&output);
            let until = match trouble {
                None => return Ok(()),
                Some(Trouble::Locked) => &self.deadline,
                Some(Trouble::Network) => &network,
                Some(Trouble::Final) => return Err(NoUpdate::of(&output)),
            };
            if until.remaining() < Duration::from_secs(3) {
                return Err(NoUpdate::of(&output));
            }
            log::debug!("apt-get update: {}; trying again", reasons(&output));
            signal::sleep(Duration::from_secs(3))
                .map_err(|signal| NoUpdate::from(anyhow::Error::new(signal)))?;
        }
    }

    fn undo(&self) {
        // A stopped task has five seconds for all that it still does.
        let deadline = Deadline::secs(if signal::check().is_err() { 1 } else { 30 });
        if let Err(error) = self.guest.attach_sh(UNDO, []).even_when_stopping().run(&deadline) {
            log::warn!("repository: {SOURCE} may be left in the container: {error}");
        }
    }

    fn plan(&self, names: &[String]) -> anyhow::Result<Plan> {
        let what = || Fault::new(Code::Software, format!("apt cannot plan {}", names.join(", ")));
        let args = names.iter().map(String::as_str);
        let output = self.guest.pct_sh(PLAN, args).keep(1 << 20).must(&self.deadline).fault(what)?;
        Ok(Plan::parse(&output.stdout))
    }

    fn install(&self, names: &[String], what: &str) -> anyhow::Result<()> {
        let args = std::iter::once(LOCK_SECONDS).chain(names.iter().map(String::as_str));
        let output =
            self.guest.pct_sh(INSTALL, args).run(&self.deadline).fault(|| {
                Fault::new(Code::Software, format!("{what}: {} not installed", names.join(", ")))
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
        let what = names.join(", ");
        let driver = &self.desired.driver;
        let (why, remedy) = match refusal {
            Refusal::Unknown(said) => (
                format!("{what}: not in {} ({said})", repository.uri),
                "set CUDA_PACKAGES to what is there, or to none".to_owned(),
            ),
            Refusal::Kernel(packages) => (
                format!(
                    "{what} is refused: it would bring kernel modules ({packages}), and a container has no kernel"
                ),
                "set CUDA_PACKAGES=cuda-toolkit-{cuda}, which holds no driver".to_owned(),
            ),
            Refusal::Driver(packages) => (
                format!(
                    "{what} is refused: it would put a driver by apt ({packages}) over the runfile's {driver}"
                ),
                "set CUDA_PACKAGES=cuda-toolkit-{cuda}, which holds no driver".to_owned(),
            ),
            Refusal::Removes(packages) => (
                format!("{what} is refused: it would remove {packages}"),
                format!("pct exec {} -- apt-get install {}", self.guest.ctid(), names.join(" ")),
            ),
            Refusal::Space(short) => (
                format!("{what}: {short} in container {}", self.guest.ctid()),
                format!("pct resize {} rootfs +10G", self.guest.ctid()),
            ),
            Refusal::Impossible(said) => (
                format!("{what} cannot be installed: {said}"),
                format!("pct exec {} -- apt-get install {}", self.guest.ctid(), names.join(" ")),
            ),
        };
        Fault::new(Code::Software, format!("cuda: {why}")).remedy(remedy).into()
    }

    /// One by one, since one that cannot be had must not cost the others.
    fn utilities(&self, missing: &[PackageTemplate], installed: &mut Installed) {
        for package in missing {
            match self.utility(package) {
                Ok(name) => installed.utilities.push(name),
                Err(error)
                    if crate::guest::exec::is_gone(&error) || crate::guest::exec::is_interrupted(&error) =>
                {
                    return;
                }
                Err(error) => {
                    installed.warnings.push(format!("utility {package}: {}", exit::one_line(&error)))
                }
            }
        }
    }

    fn utility(&self, package: &PackageTemplate) -> anyhow::Result<String> {
        let started = Instant::now();
        let names = self.names(std::slice::from_ref(package))?;
        let mut plan = self.plan(&names)?;
        if matches!(plan.refusal(), Some(Refusal::Unknown(_))) {
            self.update(None)?;
            plan = self.plan(&names)?;
        }
        match plan.refusal() {
            None => {}
            Some(Refusal::Unknown(_)) => anyhow::bail!("{} does not have it in its sources", self.os.shown()),
            Some(Refusal::Driver(p) | Refusal::Kernel(p)) => {
                anyhow::bail!("it would bring a driver by apt ({p})")
            }
            Some(Refusal::Removes(p)) => anyhow::bail!("it would remove {p}"),
            Some(Refusal::Space(why) | Refusal::Impossible(why)) => anyhow::bail!(why),
        }
        self.install(&names, "utilities")?;
        log::info!("utility: installed {} in {}", names.join(", "), human(started.elapsed()));
        Ok(names.join(", "))
    }
}

/// What the preparation found and did.
#[derive(Debug, Default)]
struct Prepared {
    changed: bool,
    lists: bool,
    elsewhere: Option<String>,
}

impl Prepared {
    /// The file that names the repository.
    fn file(&self) -> &str {
        self.elsewhere.as_deref().unwrap_or(SOURCE)
    }

    fn parse(answer: &[u8]) -> Prepared {
        let mut prepared = Prepared::default();
        for (key, value) in fields(answer) {
            match key.as_str() {
                "interrupted" => log::info!("apt: an interrupted dpkg run was completed"),
                "aside" => log::info!("repository: moved aside what apt cannot read: {value}"),
                "elsewhere" if value.starts_with("/etc/apt/") && !value.contains("..") => {
                    log::info!("repository: {value} names it already");
                    prepared.elsewhere = Some(value);
                }
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
        let of = |text: &str| Prepared::parse(text.as_bytes()).elsewhere;
        assert_eq!(
            of("elsewhere /etc/apt/sources.list.d/cuda.list\n").as_deref(),
            Some("/etc/apt/sources.list.d/cuda.list")
        );
        assert_eq!(of("elsewhere /etc/shadow\n"), None);
    }
}
