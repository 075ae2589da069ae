//! UUIDs from nvidia-smi: those of cards not used since boot, and those of MIG
//! instances. Only the driver's library has them; it runs only if a name in the
//! assignment needs them.

use super::gpus::{Gpu, Inventory};
use crate::device::assignment::GpuName;
use crate::device::pci::PciAddress;
use crate::exit;
use crate::sys::look::View;
use crate::sys::process::Cmd;
use crate::sys::time::Deadline;
use anyhow::{Context as _, bail};
use std::time::Duration;

const NVIDIA_SMI: &str = "usr/bin/nvidia-smi";
/// Its timeout: eight sleeping cards take several seconds to wake.
pub const LIMIT: Duration = Duration::from_secs(30);

impl Inventory {
    /// Adds the UUIDs without which these names cannot be resolved, and runs no
    /// program if they need none. Whoever resolves names asks for this first: what
    /// one reader resolves and another does not would change at each look. Returns
    /// what could not be read.
    pub fn add_names<'a>(
        &mut self,
        host: impl Into<View<'a>>,
        names: &[GpuName],
        deadline: &Deadline,
    ) -> Vec<String> {
        let host = host.into();
        let unknown = |gpu: &Gpu| gpu.minor.is_some() && gpu.uuid.is_none();
        let mut results = Vec::new();
        if self.gpus.iter().any(unknown) && names.iter().any(|name| !knows(self, name)) {
            results.push(self.add_uuids(host, deadline));
        }
        let by_uuid = names.iter().any(|name| matches!(name, GpuName::MigUuid(_)));
        if by_uuid && self.mig.iter().any(|m| m.uuid.is_none()) {
            results.push(self.add_mig_uuids(host, deadline));
        }
        let failed = results.into_iter().filter_map(Result::err);
        failed.map(|error| format!("cannot read UUIDs: {}", exit::one_line(&error))).collect()
    }

    /// The same; what could not be read is among the problems.
    pub fn look_up<'a>(&mut self, host: impl Into<View<'a>>, names: &[GpuName], deadline: &Deadline) {
        let failed = self.add_names(host, names, deadline);
        self.problems.extend(failed);
    }

    /// Adds the UUIDs of cards that are unknown so far.
    ///
    /// # Errors
    /// nvidia-smi is missing, fails, or exceeds its timeout.
    pub fn add_uuids<'a>(&mut self, host: impl Into<View<'a>>, deadline: &Deadline) -> anyhow::Result<()> {
        let text = ask(host.into(), &["--query-gpu=pci.bus_id,uuid", "--format=csv,noheader"], deadline)?;
        for (pci, uuid) in card_uuids(&text) {
            for gpu in self.gpus.iter_mut().filter(|gpu| gpu.pci == Some(pci)) {
                gpu.uuid.get_or_insert_with(|| uuid.clone());
            }
        }
        Ok(())
    }

    /// Adds the UUIDs of MIG instances: `nvidia-smi -L` lists them by index,
    /// `-q -x` has the ids of each index.
    ///
    /// # Errors
    /// As [`Inventory::add_uuids`].
    pub fn add_mig_uuids<'a>(
        &mut self,
        host: impl Into<View<'a>>,
        deadline: &Deadline,
    ) -> anyhow::Result<()> {
        let host = host.into();
        let uuids = mig_uuids(&ask(host, &["-L"], deadline)?);
        let places = mig_places(&ask(host, &["-q", "-x"], deadline)?);
        for (card, index, uuid) in uuids {
            let place = places.iter().find(|p| p.card == card && p.index == index);
            let instance = place
                .and_then(|p| self.mig.iter_mut().find(|m| (m.gpu, m.gi, m.ci) == (p.minor, p.gi, p.ci)));
            if let Some(instance) = instance {
                instance.uuid = Some(uuid);
            }
        }
        Ok(())
    }
}

/// Whether a name needs no further UUID.
fn knows(inventory: &Inventory, name: &GpuName) -> bool {
    match name {
        GpuName::Uuid(uuid) => {
            inventory.gpus.iter().flat_map(|g| &g.uuid).any(|u| u.starts_with(uuid.as_str()))
        }
        GpuName::Mig { gpu, .. } => knows(inventory, gpu),
        _ => true,
    }
}

/// The processes that compute, each with the UUID of its card, as nvidia-smi of
/// this host lists them: also those that do so through another process, an MPS
/// server say.
///
/// # Errors
/// nvidia-smi is missing, fails, or exceeds the deadline.
pub fn compute_apps<'a>(
    host: impl Into<View<'a>>,
    deadline: &Deadline,
) -> anyhow::Result<Vec<(i32, String)>> {
    let text = ask(host.into(), &["--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"], deadline)?;
    Ok(apps(&text))
}

/// Parses lines like `4711, GPU-…`.
fn apps(text: &str) -> Vec<(i32, String)> {
    let app = |line: &str| {
        let (pid, uuid) = line.split_once(',')?;
        Some((pid.trim().parse().ok()?, uuid.trim().to_owned()))
    };
    text.lines().filter_map(app).filter(|(_, uuid)| uuid.starts_with("GPU-")).collect()
}

fn ask(host: View<'_>, args: &[&str], deadline: &Deadline) -> anyhow::Result<String> {
    let output = Cmd::new(host.root().join(NVIDIA_SMI))
        .args(args.to_vec())
        .keep(4 << 20)
        .run(&deadline.at_most(LIMIT))?;
    if !output.success() {
        bail!("nvidia-smi {}: {}: {}", args.join(" "), output.ended, output.last_lines(2).join(" | "));
    }
    Ok(output.text())
}

/// Parses lines like `00000000:01:00.0, GPU-…`.
pub fn card_uuids(text: &str) -> Vec<(PciAddress, String)> {
    let pair = |line: &str| {
        let (pci, uuid) = line.split_once(',')?;
        Some((pci.trim().parse().ok()?, uuid.trim().to_owned()))
    };
    text.lines().filter_map(pair).filter(|(_, uuid)| uuid.starts_with("GPU-")).collect()
}

/// Parses `nvidia-smi -L`: UUID of the card, index of the instance, its UUID.
pub fn mig_uuids(text: &str) -> Vec<(String, u32, String)> {
    let mut card = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let Some(uuid) = line.split_once("(UUID: ").and_then(|(_, rest)| rest.trim_end().strip_suffix(')'))
        else {
            continue;
        };
        if line.starts_with("GPU ") {
            uuid.clone_into(&mut card);
        } else if let Some(index) = mig_index(line) {
            found.push((card.clone(), index, uuid.to_owned()));
        }
    }
    found
}

/// N of `  MIG 1g.10gb     Device  N: (UUID: …`.
fn mig_index(line: &str) -> Option<u32> {
    let (_, rest) = line.trim_start().strip_prefix("MIG ")?.split_once("Device")?;
    rest.split_once(':')?.0.trim().parse().ok()
}

/// A MIG instance in `nvidia-smi -q -x`.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// UUID of the card.
    pub card: String,
    /// Minor of the card.
    pub minor: u32,
    /// Index on the card.
    pub index: u32,
    /// Id of the GPU instance.
    pub gi: u32,
    /// Id of the compute instance in it.
    pub ci: u32,
}

/// Parses the needed elements of `nvidia-smi -q -x`: generated text with one
/// element a line, which needs no XML parser.
pub fn mig_places(xml: &str) -> Vec<Place> {
    xml.split("<gpu id=").skip(1).flat_map(|gpu| places_of_card(gpu).unwrap_or_default()).collect()
}

fn places_of_card(gpu: &str) -> anyhow::Result<Vec<Place>> {
    let outside = gpu.split("<mig_devices>").next().unwrap_or_default();
    let after = gpu.split("</mig_devices>").nth(1).unwrap_or_default();
    let of_card =
        |name: &str| element(outside, name).or_else(|| element(after, name)).context(name.to_owned());
    let (card, minor) = (of_card("uuid")?, of_card("minor_number")?.parse()?);
    let place = |mig: &str| {
        let number = |name: &str| element(mig, name)?.parse().ok();
        Some(Place {
            card: card.to_owned(),
            minor,
            index: number("index")?,
            gi: number("gpu_instance_id")?,
            ci: number("compute_instance_id")?,
        })
    };
    Ok(gpu.split("<mig_device>").skip(1).filter_map(place).collect())
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_uuids_come_with_long_addresses() {
        let text = "00000000:01:00.0, GPU-8f3c2a10-1111-2222-3333-444455556666\n00000000:C1:00.0, [N/A]\n\n";
        let found = card_uuids(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.to_string(), "0000:01:00.0");
    }

    #[test]
    fn processes_that_compute_come_with_their_card() {
        let text = "4711, GPU-aa\n4712, GPU-bb\n[N/A], GPU-cc\nNo running processes found\n";
        assert_eq!(apps(text), [(4711, "GPU-aa".to_owned()), (4712, "GPU-bb".to_owned())]);
    }

    #[test]
    fn mig_instances_are_joined_by_card_and_index() {
        let list = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n  MIG 3g.20gb     Device  0: (UUID: MIG-11)\n  \
                    MIG 1g.5gb      Device  1: (UUID: MIG-22)\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)\n";
        assert_eq!(
            mig_uuids(list),
            [("GPU-aa".into(), 0, "MIG-11".into()), ("GPU-aa".into(), 1, "MIG-22".into())]
        );
        let xml = "<nvidia_smi_log>\n<gpu id=\"00000000:07:00.0\">\n<mig_devices>\n<mig_device>\n<index>0</index>\n\
                   <gpu_instance_id>2</gpu_instance_id>\n<compute_instance_id>0</compute_instance_id>\n</mig_device>\n\
                   <mig_device>\n<index>1</index>\n<gpu_instance_id>7</gpu_instance_id>\n\
                   <compute_instance_id>1</compute_instance_id>\n</mig_device>\n</mig_devices>\n<uuid>GPU-aa</uuid>\n\
                   <minor_number>3</minor_number>\n</gpu>\n<gpu id=\"x\">\n<uuid>GPU-bb</uuid>\n\
                   <minor_number>1</minor_number>\n</gpu>\n";
        let place = |index, gi, ci| Place { card: "GPU-aa".into(), minor: 3, index, gi, ci };
        assert_eq!(mig_places(xml), [place(0, 2, 0), place(1, 7, 1)]);
    }

    #[test]
    fn a_real_card_without_mig_has_no_instances() {
        let xml = include_str!("../../tests/fixtures/hosts/h200/smi-q.xml");
        assert_eq!(places_of_card(xml.split("<gpu id=").nth(1).unwrap()).unwrap(), []);
        assert_eq!(mig_uuids(include_str!("../../tests/fixtures/hosts/h200/smi-L.txt")), []);
    }
}
