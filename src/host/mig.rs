//! MIG instances, and the capability nodes that give access to them.

use super::facts::capability_minor;
use crate::sys::look::Look;
use std::fmt;

/// One compute instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigInstance {
    /// Minor of its card.
    pub gpu: u32,
    /// Id of the GPU instance.
    pub gi: u32,
    /// Id of the compute instance in it.
    pub ci: u32,
    /// Minor of the capability of the GPU instance.
    pub gi_minor: u32,
    /// Minor of the capability of the compute instance.
    pub ci_minor: u32,
    /// `None` unless nvidia-smi was asked ([`super::nvidia_smi`]).
    pub uuid: Option<String>,
}

impl fmt::Display for MigInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.gpu, self.gi, self.ci)
    }
}

/// The instances of the card with minor `gpu`, from
/// `/proc/driver/nvidia/capabilities/gpuN/mig` (N is the minor).
pub fn read(look: &mut Look, gpu: u32) -> Vec<MigInstance> {
    let base = format!("/proc/driver/nvidia/capabilities/gpu{gpu}/mig");
    let mut found = Vec::new();
    for gi in ids(look, &base, "gi") {
        let instance = format!("{base}/gi{gi}");
        let Some(gi_minor) = access(look, &instance) else { continue };
        for ci in ids(look, &instance, "ci") {
            if let Some(ci_minor) = access(look, &format!("{instance}/ci{ci}")) {
                found.push(MigInstance { gpu, gi, ci, gi_minor, ci_minor, uuid: None });
            }
        }
    }
    found
}

/// The numbers of the entries `<prefix>N`, in order.
fn ids(look: &mut Look, path: &str, prefix: &str) -> Vec<u32> {
    let names = look.names(path).unwrap_or_default();
    let mut ids: Vec<u32> = names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

fn access(look: &mut Look, directory: &str) -> Option<u32> {
    look.text(&format!("{directory}/access")).and_then(|text| capability_minor(&text))
}
