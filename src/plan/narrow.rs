//! What the environment of the container's own program takes away from its
//! assignment: NVIDIA_VISIBLE_DEVICES and NVIDIA_DRIVER_CAPABILITIES, as OCI images
//! carry them and Proxmox 9.1 puts them into the conf. Ordinary users may change
//! them there, so they narrow what the settings give, and never widen it. A list
//! of indices that has none of theirs counts in another way, and narrows nothing:
//! what the settings give is the container's in any case. Pure.

use crate::device::assignment::{Assignment, GpuName};
use crate::host::choose::{Capabilities, Choice};
use crate::pve::conf::document::Document;
use crate::settings::{Settings, keys};
use crate::sys::text;
use crate::types::Ctid;

const DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
const CAPABILITIES: &str = "NVIDIA_DRIVER_CAPABILITIES";
/// NVIDIA's words for no GPU: the second also means no driver.
const NO_GPU: [&str; 3] = ["none", "void", ""];

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// `NVIDIA_VISIBLE_DEVICES` as it is written, and its GPUs; none for all.
    devices: Option<(String, Option<Vec<GpuName>>)>,
    /// `NVIDIA_DRIVER_CAPABILITIES` as it is written.
    words: Option<String>,
}

/// What is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// A warning: it does not do what it says.
    pub level: log::Level,
    /// What it does.
    pub line: String,
}

impl Told {
    fn info(line: String) -> Told {
        Told { level: log::Level::Info, line }
    }

    /// The command for a warning. No other changes a line of `lxc.`.
    pub fn fix(&self, ctid: Ctid) -> Option<String> {
        (self.level == log::Level::Warn).then(|| format!("nano /etc/pve/lxc/{ctid}.conf"))
    }
}

impl Narrowing {
    /// Of a conf.
    pub fn of(conf: &Document) -> Narrowing {
        let program = conf.of_program();
        let all = |value: &str| value.trim().eq_ignore_ascii_case("all");
        let value = |name: &str| program.get(name).filter(|value| !all(value)).cloned();
        let devices = value(DEVICES).map(|value| {
            let read = names(value.trim());
            (value, read)
        });
        Narrowing { devices, words: value(CAPABILITIES).filter(|words| !words.trim().is_empty()) }
    }

    /// What is left of an assignment.
    pub fn assignment(&self, of: Assignment) -> Assignment {
        match &self.devices {
            Some((_, Some(to))) if to.is_empty() => Assignment::None,
            Some((_, Some(to))) if of != Assignment::None => {
                Assignment::Narrowed { of: Box::new(of), to: to.clone() }
            }
            _ => of,
        }
    }

    /// What is left of the capabilities. compute and utility are always given.
    pub fn capabilities(&self, of: Capabilities) -> Capabilities {
        let Some(words) = &self.words else { return of };
        let has = |word: &str| words.split(',').any(|w| w.trim().eq_ignore_ascii_case(word));
        let all = has("all");
        Capabilities {
            graphics: of.graphics && (all || has("graphics")),
            display: of.display && (all || has("display")),
            ..of
        }
    }

    /// One line for each that takes something away, or cannot do so; `choice` is
    /// what came of it.
    pub fn told(&self, settings: &Settings, choice: &Choice) -> Vec<Told> {
        let mut told = Vec::new();
        let shown = |value: &str| text::line(value.as_bytes());
        if let (Some((value, read)), Ok(of)) = (&self.devices, settings.get(keys::GPU_ASSIGNMENT)) {
            let left = self.assignment(of.clone());
            if read.is_none() {
                told.push(Told::info(format!(
                    "{DEVICES}={} of the container cannot be read, and narrows nothing",
                    shown(value)
                )));
            } else if choice.unmatched {
                let left = if choice.gpus.is_empty() { "leaves none" } else { "narrows nothing" };
                let line = format!(
                    "{DEVICES}={} of the container names no GPU of GPU_ASSIGNMENT={of}, and {left}",
                    shown(value)
                );
                told.push(Told { level: log::Level::Warn, line });
            } else if left != of {
                let line = format!("{DEVICES}={} of the container narrows GPU_ASSIGNMENT={of}", shown(value));
                told.push(Told::info(line));
            }
        }
        let of = settings.value(keys::GPU_CAPABILITIES);
        if let Some(words) = self.words.as_ref().filter(|_| self.capabilities(of) != of) {
            told.push(Told::info(format!(
                "{CAPABILITIES}={} of the container narrows GPU_CAPABILITIES={of}",
                shown(words)
            )));
        }
        told
    }
}

/// The GPUs of a list; `None` for one that cannot be read.
fn names(value: &str) -> Option<Vec<GpuName>> {
    if NO_GPU.iter().any(|word| value.eq_ignore_ascii_case(word)) {
        return Some(Vec::new());
    }
    match value.parse() {
        Ok(Assignment::List(names)) => Some(names),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> Narrowing {
        Narrowing::of(&Document::parse(lines.as_bytes()))
    }

    fn left(visible: &str, assignment: &str) -> String {
        let narrowing = of(&format!("lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES={visible}\n"));
        narrowing.assignment(assignment.parse().unwrap()).to_string()
    }

    #[test]
    fn an_image_can_take_gpus_away_and_never_add_one() {
        for all in ["all", "ALL"] {
            assert_eq!([left(all, "0"), left(all, "all"), left(all, "none")], ["0", "all", "none"]);
        }
        for none in ["none", "void", ""] {
            assert_eq!([left(none, "0"), left(none, "all")], ["none", "none"], "{none}");
        }
        assert_eq!(left("0", "all"), "all (of it 0)");
        assert_eq!(left("0,GPU-8f3c", "0,1"), "0,1 (of it 0,GPU-8f3c)");
        assert_eq!(left("0", "none"), "none");
        // What nobody can read takes nothing away.
        assert_eq!(left("0:1", "all"), "all");
    }

    #[test]
    fn the_last_line_counts_and_lines_of_root_and_of_snapshots_do_not() {
        let narrows = |conf: &str| of(conf).devices.is_some();
        assert!(narrows(
            "lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=all\nlxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=0\n"
        ));
        assert!(!narrows(
            "lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=0\nlxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=all\n"
        ));
        assert!(narrows("env: PATH=/bin\0NVIDIA_VISIBLE_DEVICES=0\0A=b\n"));
        assert!(!narrows("lxc.environment: NVIDIA_VISIBLE_DEVICES=0\n"));
        assert!(!narrows("memory: 5\n[snap]\nlxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=0\n"));
    }

    #[test]
    fn capabilities_lose_what_the_image_does_not_name_and_gain_nothing() {
        let left = |words: &str, of_settings: &str| {
            let conf = format!("lxc.environment.runtime: NVIDIA_DRIVER_CAPABILITIES={words}\n");
            of(&conf).capabilities(of_settings.parse().unwrap()).to_string()
        };
        assert_eq!(left("compute,utility", "all"), "compute,utility");
        assert_eq!(left("graphics,video", "all"), "compute,utility,graphics");
        assert_eq!(left("all", "compute,utility"), "compute,utility");
        assert_eq!(left("all", "all"), "compute,utility,graphics,display");
        assert_eq!(left("", "compute,utility,graphics"), "compute,utility,graphics");
    }
}
