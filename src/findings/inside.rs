//! What a running container shows. It is not trusted: what it prints may
//! mislead its own report, and no more.

use super::finding::Finding;
use super::read::Container;
use super::seen::Inside;
use super::services::Services;
use super::{assigned, conf};
use crate::device::DevicePath;
use crate::driver::repo::{PREFERENCES, SOURCE};
use crate::exit::Fault;
use crate::guest::driver_state::DriverState;
use crate::guest::install::steps::{InstallStep, InstallSteps, cuda_foreseen, cuda_refused, without_driver};
use crate::guest::os;
use crate::guest::own;
use crate::guest::packaged::{NextUpgrade, Packages};
use crate::guest::probe::{Check, SourceTwice};
use crate::guest::verify::Opened;
use crate::settings::keys;
use crate::settings::values::Nested;
use crate::types::Version;

/// The findings of a look inside, where one was taken.
fn of(c: &Container, findings: impl Fn(&Inside) -> Vec<Finding>) -> Vec<Finding> {
    c.inside.as_ref().map(findings).unwrap_or_default()
}

/// Whether it has the devices that it should have, as the kernel shows them.
pub fn devices(c: &Container) -> Vec<Finding> {
    of(c, |inside| {
        let mut findings: Vec<Finding> =
            inside.unseen.iter().map(|unseen| Finding::unknown("devices", unseen.clone())).collect();
        match &inside.differences {
            Err(why) => {
                findings.push(Finding::unknown("devices", format!("cannot check its devices: {why}")))
            }
            Ok(differences) if differences.is_empty() && findings.is_empty() => {
                findings.push(Finding::ok("devices", "the running container has its devices"));
            }
            Ok(differences) => findings.extend(differences.iter().map(|difference| {
                Finding::failure("devices", difference.clone())
                    .why("its settings or the host changed after its start")
                    .fix(format!("phoenix-nvidia {}", c.ctid))
            })),
        }
        findings
    })
}

/// What opening its nodes from inside came to.
pub fn rules(c: &Container) -> Vec<Finding> {
    of(c, |inside| {
        let bad = |(node, opened): &(DevicePath, Opened)| {
            let what = format!("{node} {opened}");
            match opened {
                // What is not there at all is among the devices that it lacks.
                Opened::Allowed | Opened::Absent => None,
                Opened::Other(_) => Some(Finding::unknown("rules", what)),
                Opened::Mode if node.is_drm() => Some(closed_drm(c, *node, what)),
                Opened::Mode => {
                    // A MIG capability is only read.
                    let mode = if matches!(node, DevicePath::CapFile(_)) { "444" } else { "666" };
                    Some(Finding::failure("rules", what).fix(format!("chmod {mode} {node}")))
                }
                Opened::NoRule | Opened::File => {
                    Some(Finding::failure("rules", what).fix(format!("phoenix-nvidia {}", c.ctid)))
                }
            }
        };
        let findings: Vec<Finding> = inside.opened.iter().filter_map(bad).collect();
        if findings.is_empty() && !inside.opened.is_empty() {
            let what = format!("device rules allow all {} nodes", inside.opened.len());
            return vec![Finding::ok("rules", what)];
        }
        findings
    })
}

/// A DRM node that its mode keeps closed: ours, the host's in its place, or that
/// of an entry which the next start replaces.
fn closed_drm(c: &Container, node: DevicePath, what: String) -> Finding {
    let finding = Finding::failure("rules", what);
    if c.closed.contains(&node) {
        return finding.why(assigned::DRM_MODE).fix(assigned::DRM_FIX);
    }
    match conf::covering(c, node) {
        Some(why) => finding.why(format!("{why}; {}", conf::COVERED)).fix(conf::edit(c)),
        None => finding.fix(format!("pct reboot {}", c.ctid)),
    }
}

/// nvidia-smi, where devices, rules and driver are right and it fails: the
/// reason is the host's.
pub fn nvidia_smi(c: &Container) -> Vec<Finding> {
    let undriven = c.choice.gpus.iter().find_map(|gpu| Some((gpu.undriven()?, gpu.unfit.as_ref()?.remedy())));
    of(c, |inside| {
        let Some(why) = inside.smi.as_ref().filter(|_| !inside.installing) else { return Vec::new() };
        let finding = Finding::failure("nvidia-smi", format!("nvidia-smi in the container: {why}"));
        let finding = match &undriven {
            Some((why, fix)) => finding.why(why.clone()).fix(fix.clone()),
            None => finding
                .why(
                    "devices, rules and driver in the container are right: the host's driver does not answer",
                )
                .fix("nvidia-smi; dmesg | grep NVRM | tail"),
        };
        vec![finding]
    })
}

/// The driver inside against the kernel's, and what apt has to do.
pub fn software(c: &Container) -> Vec<Finding> {
    of(c, |inside| match (&inside.software, c.desired()) {
        // What it finds half done is what is being done.
        _ if inside.installing => {
            let log = format!("tail -f /var/log/phoenix-nvidia/{}.log", c.ctid);
            vec![Finding::ok("version", format!("an install is running: {log}"))]
        }
        (Some(Ok(check)), Some(desired)) => {
            let mut findings = Vec::new();
            if !desired.injected {
                findings.push(version(c, check, inside.services.as_ref().ok(), &desired.driver));
            }
            // A run does the rest.
            let steps = InstallSteps::of(check, desired, true);
            let told = |step: &&InstallStep| {
                use InstallStep::{Driver, OneSource, Uninstall};
                matches!(step, Driver { .. } | OneSource(_) | Uninstall(_))
            };
            let rest = steps.iter().filter(|step| !told(step));
            findings.extend(rest.map(|step| {
                Finding::warning("packages", format!("to do: {step}"))
                    .fix(format!("phoenix-nvidia {}", c.ctid))
            }));
            // An application container with the host's driver lacks nothing.
            let refused =
                cuda_refused(c.ctid, check).filter(|_| !desired.injected || check.os.unfit.is_none());
            findings.extend(refused.map(without_cuda));
            findings.extend(check.source_twice.iter().map(|twice| one_source(c, twice)));
            findings
        }
        (Some(Err(why)), _) => vec![Finding::unknown("version", why.clone())],
        _ => Vec::new(),
    })
}

/// Ours and another file have one repository.
fn one_source(c: &Container, twice: &SourceTwice) -> Finding {
    let both = format!("{SOURCE} and {} have the same repository", twice.file);
    let finding = match twice.unreadable {
        true => Finding::failure("apt-source", format!("apt cannot read its sources: {both}"))
            .why("with different keys for one repository apt rejects all sources"),
        false => Finding::warning("apt-source", both).why("apt warns of it at every call"),
    };
    finding.fix(format!("phoenix-nvidia {}", c.ctid))
}

/// Files of ours in a container that has no settings any more. With a driver, the
/// preferences may have been kept for it.
pub fn left_files(c: &Container) -> Vec<Finding> {
    if c.settings.text(keys::GPU_ASSIGNMENT).is_some() || c.hook.is_meant() {
        return Vec::new();
    }
    with_services(c, |services| {
        let there = |file: &&&str| services.has(&[format!("left {file}").as_str()]);
        let left: Vec<&str> = own::FILES.iter().filter(there).copied().collect();
        let kept = left == [PREFERENCES] && services.has(&["runfile installed"]);
        (!left.is_empty() && !kept).then(|| {
            let what = format!("files of phoenix-nvidia in the container: {}", left.join(", "));
            let why = match left == [own::MARKS] {
                true => "it is detached, and links to the host's driver may lead nowhere",
                false => {
                    "it is detached, and they keep apt from installing a driver or from reading its sources"
                }
            };
            Finding::warning("left-files", what).why(why).fix(format!("phoenix-nvidia detach {}", c.ctid))
        })
    })
}

/// What a look found installed, if one was taken.
pub fn software_seen(c: &Container) -> Option<&Check> {
    c.inside.as_ref()?.software.as_ref()?.as_ref().ok()
}

/// CUDA packages that no start will install, seen before one.
pub fn foreseen(c: &Container) -> Vec<Finding> {
    let looked = c.inside.as_ref().is_some_and(|inside| matches!(inside.software, Some(Ok(_))));
    let Some(desired) = c.desired().filter(|_| !looked && os::foreseen(&c.conf).is_none()) else {
        return Vec::new();
    };
    let ostype = c.conf.get("ostype").unwrap_or_default();
    cuda_foreseen(c.ctid, desired, &ostype).map(without_cuda).into_iter().collect()
}

fn without_cuda(refused: Fault) -> Finding {
    let finding = Finding::warning("packages", refused.message).why("the driver is installed without them");
    refused.remedy.into_iter().fold(finding, Finding::fix)
}

fn version(c: &Container, check: &Check, services: Option<&Services>, desired: &Version) -> Finding {
    let fix = format!("phoenix-nvidia {}", c.ctid);
    let failure = |what: String| Finding::failure("version", what);
    match &check.driver {
        DriverState::Matching => match &check.packages {
            None => Finding::ok("version", format!("driver {desired}, as in the kernel")),
            Some(packages) => of_packages(c, desired, packages, check.next_upgrade.as_ref()),
        },
        DriverState::Missing => failure(format!("no driver in the container, {desired} desired")).fix(fix),
        DriverState::Other { version } => {
            failure(format!("driver {version} in the container, {desired} desired"))
                .why("user space and kernel driver must be the same version, to the last digit")
                .fix(fix)
        }
        DriverState::Incomplete { why, .. } => {
            failure(format!("driver in the container incomplete: {why}")).fix(fix)
        }
        DriverState::Packaged { packages, version, upgrade, mixed } => {
            let runfile = *mixed || services.is_some_and(|services| services.has(&["runfile installed"]));
            let remove = packages.remove(c.ctid).map_or_else(String::new, |remove| format!("{remove} && "));
            let remove = format!("{remove}{fix}");
            if runfile {
                let what = format!("driver files of a runfile and of apt are mixed: {}", packages.shown());
                return Finding::failure("mixed-driver", what)
                    .why("either breaks the other at its next upgrade")
                    .fix(remove);
            }
            let has =
                version.as_ref().map_or_else(|| "a part of a driver".to_owned(), |v| format!("driver {v}"));
            let finding = Finding::failure(
                "mixed-driver",
                format!("packages installed {has}, {desired} desired: {}", packages.shown()),
            );
            match upgrade {
                Some(upgrade) => {
                    finding.why(format!("apt can upgrade it, or remove it: {remove}")).fix(upgrade.clone())
                }
                None => finding.why("phoenix-nvidia installs no driver beside that of packages").fix(remove),
            }
        }
        DriverState::Unsupported { why } => {
            Finding::warning("version", format!("no driver can work in the container: {why}: devices only"))
                .why("nothing is missing that it could have; with INSTALL=off nobody looks for a driver")
                .fix(without_driver(c.ctid))
        }
        found @ DriverState::HostFiles { .. } => {
            Finding::failure("host-files", format!("no driver is installed over {found}"))
                .why(conf::HOST_FILES)
                .fix(conf::edit(c))
        }
    }
}

/// A right driver of packages, until apt's next upgrade.
fn of_packages(c: &Container, desired: &Version, packages: &Packages, next: Option<&NextUpgrade>) -> Finding {
    let what = format!("driver {desired} from packages, as in the kernel");
    let why = match next {
        Some(NextUpgrade { held: true, .. }) => return Finding::ok("version", what),
        // Not apt's, or it did not answer.
        None => return Finding::ok("version", what),
        Some(NextUpgrade { other: Some(version), .. }) => format!("apt's next upgrade brings {version}"),
        Some(_) => "apt upgrades it as soon as there is another version".to_owned(),
    };
    Finding::warning("version", format!("{what}: {why}"))
        .why("user space of another version than the kernel driver does not work")
        .fix(packages.hold(c.ctid))
}

/// Descriptions of a driver that has gone, each with the command that makes it
/// anew.
const DESCRIPTIONS: [(&str, &str, &str, &str); 2] = [
    (
        "stale cdi",
        "a CDI file in the container names driver files that are not there",
        "it was made for another driver version: podman and Docker fail on it",
        "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    ),
    (
        "stale opencl",
        "/etc/OpenCL/vendors/nvidia.icd in the container names a library that is not there",
        "it is of another driver version: OpenCL finds no device",
        "sh -c 'echo libnvidia-opencl.so.1 >/etc/OpenCL/vendors/nvidia.icd'",
    ),
];

/// What describes a driver version that is not there any more.
pub fn stale_files(c: &Container) -> Vec<Finding> {
    // The description for engines is told apart where it is ours to be right.
    let told = c.settings.value(keys::NESTED) != Nested::None;
    let all = DESCRIPTIONS.iter().filter(|(line, ..)| !told || *line != "stale cdi");
    let finding = |(line, what, why, fix): &(&str, &str, &str, &str)| {
        with_services(c, |services| {
            let finding = Finding::warning("stale-files", *what).why(*why);
            services.has(&[line]).then(|| finding.fix(format!("pct exec {} -- {fix}", c.ctid)))
        })
    };
    all.flat_map(finding).collect()
}

/// The persistence daemon fails in a container, and its unit with it.
pub fn persistenced(c: &Container) -> Vec<Finding> {
    with_services(c, |services| {
        let started = services.has(&["persistenced enabled", "persistenced running"]);
        started.then(|| {
            Finding::warning("persistenced", "nvidia-persistenced runs in the container")
                .why("persistence mode belongs to the host: in a container the daemon fails or keeps the GPU busy")
                .fix(format!("pct exec {} -- systemctl mask --now nvidia-persistenced", c.ctid))
        })
    })
}

/// Docker's NVIDIA runtime tries to change device rules, which a container
/// may not.
pub fn docker(c: &Container) -> Vec<Finding> {
    with_services(c, |services| {
        let docker = services.has(&["docker installed", "docker running"]);
        let toolkit = services.has(&["toolkit config", "toolkit installed"]);
        (docker && toolkit && !services.has(&["no-cgroups true"])).then(|| {
            let set = "nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place";
            Finding::warning("docker", "no-cgroups is not set for Docker's NVIDIA runtime in the container")
                .why("the runtime sets device rules, which it may not in a container")
                .fix(format!("pct exec {} -- {set}", c.ctid))
        })
    })
}

fn with_services(c: &Container, finding: impl Fn(&Services) -> Option<Finding>) -> Vec<Finding> {
    of(c, |inside| inside.services.iter().filter_map(&finding).collect())
}

/// A container that could not be looked into.
pub fn unseen(c: &Container) -> Vec<Finding> {
    let finding = |why: &String| Finding::unknown("inside", format!("cannot look into the container: {why}"));
    of(c, |inside| {
        // What has no shell is no fault: the driver's finding tells it.
        let unfit = |check: &Check| matches!(check.driver, DriverState::Unsupported { .. });
        let told = matches!(&inside.software, Some(Ok(check)) if unfit(check));
        inside.services.as_ref().err().filter(|_| !told).map(finding).into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    /// A container that shows this.
    fn with(services: &str, opened: Option<Opened>) -> Container {
        let inside = Inside {
            differences: Ok(Vec::new()),
            host_directory: false,
            unseen: Vec::new(),
            installing: false,
            opened: opened.into_iter().map(|opened| (DevicePath::Gpu(0), opened)).collect(),
            software: None,
            smi: None,
            engines: None,
            services: Services::parse(&format!("begin 1\n{services}\nend 1\n")).ok_or_else(String::new),
        };
        Container { inside: Some(inside), ..Container::plain("") }
    }

    #[test]
    fn only_known_lines_count_and_an_early_end_is_not_knowing() {
        assert_eq!(Services::parse("persistenced enabled\n"), None);
        let odd = Services::parse("\u{1b}[2Jboo\nanything\nend 1\n");
        assert_eq!(odd, Some(Services::default()));
    }

    #[test]
    fn docker_matters_only_with_the_runtime_and_without_the_setting() {
        let found = |lines| !docker(&with(lines, None)).is_empty();
        assert!(!found("docker running"));
        assert!(!found("docker running\ntoolkit config\nno-cgroups true"));
        assert!(!found("toolkit config"));
        assert!(found("docker installed\ntoolkit config"));
        assert_eq!(persistenced(&with("persistenced running", None)).len(), 1);
        assert!(persistenced(&with("", None)).is_empty());
    }

    #[test]
    fn a_node_that_could_not_be_tried_is_not_wrong() {
        let level = |opened| rules(&with("", opened)).first().map(|finding| finding.level);
        assert_eq!(level(Some(Opened::Allowed)), Some(Level::Ok));
        assert_eq!(level(Some(Opened::NoRule)), Some(Level::Failure));
        assert_eq!(level(Some(Opened::Other("x".into()))), Some(Level::Unknown));
        assert_eq!(level(None), None);
    }
}
