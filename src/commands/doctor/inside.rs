//! What a running container shows. It is not trusted: what it prints may
//! mislead its own report, and no more.

use super::finding::Finding;
use crate::device::CAPS_DIR;
use crate::guest::driver_state::DriverState;
use crate::guest::exec::Guest;
use crate::guest::install::steps::{InstallStep, InstallSteps};
use crate::guest::probe::Check;
use crate::guest::verify::Opened;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};
use std::collections::BTreeSet;
use std::time::Duration;

const SCRIPT: &str = include_str!("inside.sh");
/// A container that does not answer in this time is not looked into.
const LIMIT: Duration = Duration::from_secs(15);

/// What the script printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(BTreeSet<String>);

impl Seen {
    /// The known lines; anything else that the container may print is
    /// dropped. `None` if the script did not get to its end.
    fn parse(text: &str) -> Option<Seen> {
        let known = [
            "persistenced enabled",
            "persistenced running",
            "docker installed",
            "docker running",
            "toolkit config",
            "toolkit installed",
            "no-cgroups true",
            "runfile installed",
        ];
        let lines = text.lines().map(str::trim);
        let seen = lines.clone().filter(|line| known.contains(line)).map(str::to_owned).collect();
        lines.clone().any(|line| line == "end 1").then_some(Seen(seen))
    }

    fn has(&self, line: &str) -> bool {
        self.0.contains(line)
    }
}

/// Looks inside.
///
/// # Errors
/// Why that could not be done.
pub fn look(ctid: Ctid) -> Result<Seen, String> {
    let output =
        Guest::new(ctid).attach_sh(SCRIPT, []).run(&Deadline::after(LIMIT)).map_err(|e| e.to_string())?;
    let last = || output.last_lines(1).pop().unwrap_or_else(|| output.ended.to_string());
    Seen::parse(&output.text()).ok_or_else(last)
}

/// The persistence daemon fails in a container, and its unit with it.
pub fn persistenced(ctid: Ctid, seen: &Seen) -> Option<Finding> {
    (seen.has("persistenced enabled") || seen.has("persistenced running")).then(|| {
        Finding::warning("persistenced", "nvidia-persistenced is started in the container")
            .cause(
                "persistence is the host's business: in a container the daemon fails, or keeps the GPU busy",
            )
            .mend(format!("pct exec {ctid} -- systemctl mask --now nvidia-persistenced"))
    })
}

/// Docker's NVIDIA runtime tries to change device rules, which a container
/// may not.
pub fn docker(ctid: Ctid, seen: &Seen) -> Option<Finding> {
    let docker = seen.has("docker installed") || seen.has("docker running");
    let toolkit = seen.has("toolkit config") || seen.has("toolkit installed");
    (docker && toolkit && !seen.has("no-cgroups true")).then(|| {
        Finding::warning("docker", "Docker's NVIDIA runtime in the container is not set to no-cgroups")
            .cause("it tries to set device rules of its own, which a container is not allowed to")
            .mend(format!(
                "pct exec {ctid} -- nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place"
            ))
    })
}

/// The driver inside against the kernel's.
pub fn version(ctid: Ctid, check: &Check, seen: Option<&Seen>, wanted: &Version) -> Finding {
    let mend = format!("phoenix-nvidia {ctid}");
    match &check.driver {
        DriverState::Matching => {
            Finding::ok("version", format!("the driver in the container is {wanted}, as the kernel's"))
        }
        DriverState::Missing => {
            Finding::failure("version", "no driver is installed in the container").mend(mend)
        }
        DriverState::Other { version } => Finding::failure(
            "version",
            format!("the driver in the container is {version}, wanted is {wanted}"),
        )
        .cause("user space and kernel driver must be equal to the last digit")
        .mend(mend),
        DriverState::Incomplete { why, .. } => {
            Finding::failure("version", format!("the driver in the container is incomplete: {why}"))
                .mend(mend)
        }
        DriverState::Packaged { .. } => {
            let runfile = seen.is_some_and(|seen| seen.has("runfile installed"));
            let what = if runfile {
                "a runfile's driver and apt's are mixed"
            } else {
                "the driver is apt's, not the host's"
            };
            let remove = check.driver.remove(ctid).map_or_else(String::new, |remove| format!("{remove}; "));
            Finding::failure("mixed-driver", format!("{what}: {}", check.driver.owners()))
                .cause(
                    "either breaks the other at its next upgrade; phoenix-nvidia installs none beside apt's",
                )
                .mend(format!("{remove}phoenix-nvidia {ctid}"))
        }
        DriverState::Unsupported { why } => {
            Finding::failure("version", format!("no driver can work in the container: {why}"))
                .mend("a container with glibc, Debian or Ubuntu say")
        }
    }
}

/// What apt in the container has to do, the driver apart: a run does it.
pub fn packages(ctid: Ctid, steps: &InstallSteps) -> Vec<Finding> {
    let finding = |step: &InstallStep| {
        Finding::warning("packages", format!("to do: {step}")).mend(format!("phoenix-nvidia {ctid}"))
    };
    steps.iter().filter(|step| !matches!(step, InstallStep::Driver { .. })).map(finding).collect()
}

/// What the kernel says the running container has, against what is wanted.
pub fn devices(ctid: Ctid, differences: Result<Vec<String>, String>) -> Vec<Finding> {
    match differences {
        Err(why) => {
            vec![Finding::unknown("devices", format!("which devices it has could not be seen: {why}"))]
        }
        Ok(differences) if differences.is_empty() => {
            vec![Finding::ok("devices", "the running container has the devices that it is to have")]
        }
        Ok(differences) => differences
            .into_iter()
            .map(|difference| {
                Finding::failure("devices", difference)
                    .cause("its settings or the host changed after its start")
                    .mend(format!("phoenix-nvidia {ctid}"))
            })
            .collect(),
    }
}

/// What opening its nodes from inside came to.
pub fn rules(ctid: Ctid, opened: &[(String, Opened)]) -> Vec<Finding> {
    let bad = |(node, opened): &(String, Opened)| {
        let what = format!("{node} {opened}");
        match opened {
            // What is not there at all is among the devices that it lacks.
            Opened::Allowed | Opened::Absent => None,
            Opened::Other(_) => Some(Finding::unknown("rules", what)),
            Opened::Mode => {
                // A MIG capability is only read.
                let mode = if node.starts_with(CAPS_DIR) { "444" } else { "666" };
                Some(Finding::failure("rules", what).mend(format!("chmod {mode} {node} on the host")))
            }
            Opened::NoRule | Opened::File => {
                Some(Finding::failure("rules", what).mend(format!("phoenix-nvidia {ctid}")))
            }
        }
    };
    let findings: Vec<Finding> = opened.iter().filter_map(bad).collect();
    if findings.is_empty() && !opened.is_empty() {
        return vec![Finding::ok(
            "rules",
            format!("its device rules let it open all {} nodes", opened.len()),
        )];
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::level::Level;

    fn ctid() -> Ctid {
        "101".parse().unwrap()
    }

    fn seen(lines: &str) -> Seen {
        Seen::parse(&format!("begin 1\n{lines}\nend 1\n")).unwrap()
    }

    #[test]
    fn only_known_lines_count_and_an_early_end_is_not_knowing() {
        assert_eq!(Seen::parse("persistenced enabled\n"), None);
        assert_eq!(seen("\u{1b}[2Jboo\nanything"), Seen::default());
    }

    #[test]
    fn docker_matters_only_with_the_runtime_and_without_the_setting() {
        assert_eq!(docker(ctid(), &seen("docker running")), None);
        assert_eq!(docker(ctid(), &seen("docker running\ntoolkit config\nno-cgroups true")), None);
        assert_eq!(docker(ctid(), &seen("toolkit config")), None);
        assert!(docker(ctid(), &seen("docker installed\ntoolkit config")).is_some());
        assert!(persistenced(ctid(), &seen("persistenced running")).is_some());
        assert_eq!(persistenced(ctid(), &seen("")), None);
    }

    #[test]
    fn a_node_that_could_not_be_tried_is_not_wrong() {
        let node = |opened| vec![("/dev/nvidia0".to_owned(), opened)];
        assert_eq!(rules(ctid(), &node(Opened::Allowed))[0].level, Level::Ok);
        assert_eq!(rules(ctid(), &node(Opened::NoRule))[0].level, Level::Failure);
        assert_eq!(rules(ctid(), &node(Opened::Other("x".into())))[0].level, Level::Unknown);
        assert!(rules(ctid(), &[]).is_empty());
    }
}
