//! A row: what is known of one container.

use crate::findings::finding::Level;
use crate::findings::read::Container;
use crate::host::gpus::Gpu;
use crate::job::startable;
use crate::pve::startable::Obstacle;
use crate::settings::keys;
use crate::state::{Outcome, State};
use serde::Serialize;

/// One container.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its number.
    pub ctid: u32,
    /// Its name.
    pub name: Option<String>,
    /// It runs.
    pub running: bool,
    /// It is a template.
    pub template: bool,
    /// GPU_ASSIGNMENT, as it is written.
    pub assignment: Option<String>,
    /// Its GPUs.
    pub gpus: Vec<RowGpu>,
    /// The version of the kernel driver.
    pub kernel_driver: Option<String>,
    /// `install` or `inject`.
    pub driver_mode: &'static str,
    /// The version of the driver inside, as last seen; of the host's what is
    /// mounted now.
    pub container_driver: Option<String>,
    /// `yes`, `no`, `other`, `broken` or `unknown`.
    pub hookscript: &'static str,
    /// What was done last.
    pub last: Option<Last>,
    /// When it last was as its settings say, in seconds since 1970 UTC.
    pub last_success: Option<u64>,
    /// Its services run with the driver from before an install, and the
    /// reboot for that was not made yet.
    pub restart_due: bool,
    /// What its next start would be refused for.
    pub obstacles: Vec<Obstacle>,
    /// The worst level of the findings.
    pub verdict: Level,
    /// The findings; the first is the worst.
    pub reasons: Vec<String>,
}

/// A GPU of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowGpu {
    /// Its minor number.
    pub minor: Option<u32>,
    /// Its model.
    pub model: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its PCI address.
    pub pci: Option<String>,
}

/// What was done last.
#[derive(Clone, Debug, Serialize)]
pub struct Last {
    /// `pre-start`, `check`, `install`, `by hand`.
    pub what: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The exit code that goes with it.
    pub exit_code: u8,
    /// One line about it.
    pub message: String,
    /// When, in seconds since 1970 UTC.
    pub at: u64,
    /// How long it took.
    pub took_ms: u64,
}

impl Row {
    /// That of a container.
    pub fn of(container: &Container, verdict: Level, reasons: Vec<String>) -> Row {
        let Container { ctid, conf, settings, choice, kernel, state, hook, obstacles, running, .. } =
            container;
        Row {
            ctid: ctid.get(),
            name: conf.get("hostname"),
            running: *running,
            template: conf.is_template(),
            assignment: settings.text(keys::GPU_ASSIGNMENT).map(|(text, _)| text.to_owned()),
            gpus: choice.gpus.iter().map(RowGpu::of).collect(),
            kernel_driver: kernel.as_ref().map(ToString::to_string),
            driver_mode: settings.value(keys::DRIVER_MODE).word(),
            container_driver: match &container.host_driver.mounted {
                Some(Ok(mounted)) => Some(mounted.to_string()),
                _ => state.container_driver.clone(),
            },
            hookscript: hook.word(),
            last: Last::of(state),
            last_success: state.last_success,
            restart_due: startable::restart_is_due(state, settings),
            obstacles: obstacles.clone(),
            verdict,
            reasons,
        }
    }
}

impl RowGpu {
    fn of(gpu: &Gpu) -> RowGpu {
        RowGpu {
            minor: gpu.minor,
            model: gpu.model.clone(),
            uuid: gpu.uuid.clone(),
            pci: gpu.pci.map(|pci| pci.to_string()),
        }
    }
}

impl Last {
    fn of(state: &State) -> Option<Last> {
        (state.outcome != Outcome::None).then(|| Last {
            what: state.phase.clone(),
            outcome: state.outcome,
            exit_code: state.code,
            message: state.message.clone(),
            at: state.at,
            took_ms: state.took_ms,
        })
    }
}
