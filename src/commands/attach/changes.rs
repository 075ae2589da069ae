//! Which settings `attach` writes into a conf, and how to restore the old ones.

use crate::cli::Attach;
use crate::device::assignment::{Assignment, GpuName};
use crate::exit::{Code, Context as _, Fault};
use crate::host::gpus::Inventory;
use crate::pve::conf::before;
use crate::pve::conf::document::ConfValue;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::EnvKey;
use crate::settings::keys::{self, Spec};
use crate::settings::values::{DriverMode, Nested};
use crate::sys::text;

/// A list of settings of one conf: each gets a value, or goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(Vec<(EnvKey, Option<ConfValue>)>);

impl Changes {
    /// Adds one.
    ///
    /// # Errors
    /// [`Code::Input`]: the value is none of this setting, or cannot stand in
    /// a conf.
    pub fn set(&mut self, key: &Spec, value: Option<&str>) -> anyhow::Result<()> {
        let input = |e: anyhow::Error| e.context(Fault::new(Code::Input, format!("value of {}", key.name)));
        // An empty one would count as not set.
        if value.is_some_and(|text| text.trim().is_empty()) {
            return Err(input(anyhow::anyhow!("is empty")));
        }
        if let Some(Err(why)) = value.map(|text| (key.check)(text)) {
            return Err(input(anyhow::anyhow!(why)));
        }
        let value = value.map(str::parse).transpose().map_err(input)?;
        self.0.push((key.name.parse()?, value));
        Ok(())
    }

    /// Adds the device entries that the conf has before it is attached.
    pub fn remember(&mut self, conf: &Document) {
        let was = conf.environment().iter().any(|line| line.key == keys::GPU_ASSIGNMENT.name);
        let Some(record) = before::record(conf, was) else { return };
        // One that cannot stand in a line is said to go, and does not come back.
        if let (Ok(key), Ok(value)) = (before::KEY.parse(), record.parse()) {
            self.0.push((key, Some(value)));
        }
    }

    /// Whether one of them is of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key.to_string() == name)
    }

    /// The conf with them; `None` when it has them already.
    pub fn apply(&self, conf: &Document) -> Option<Document> {
        conf.set_all(&self.0)
    }

    /// What restores the same settings to what `conf` has now.
    pub fn reverse(&self, conf: &Document) -> Changes {
        let environment = conf.environment();
        let old = |key: &EnvKey| {
            let lines = environment.iter().rev();
            lines.map(|l| (&l.key, &l.value)).find(|(k, _)| **k == key.to_string())
        };
        // A value that stands in a conf can stand there again.
        let value = |key: &EnvKey| old(key).and_then(|(_, value)| value.parse().ok());
        Changes(self.0.iter().map(|(key, _)| (key.clone(), value(key))).collect())
    }

    /// One line for each, for messages.
    pub fn lines(&self) -> Vec<String> {
        let line = |(key, value): &(EnvKey, Option<ConfValue>)| match value {
            Some(value) => format!("{key}={}", text::hidden(&value.to_string())),
            None => format!("{key} removed"),
        };
        let settings = self.0.iter().filter(|(key, _)| key.to_string() != before::KEY);
        settings.map(line).collect()
    }
}

/// The settings that the options of `attach` stand for.
///
/// # Errors
/// [`Code::Input`] for what cannot be read; [`Code::Passthrough`] for a UUID
/// that is not known.
pub fn of_options(options: &Attach, inventory: &Inventory) -> anyhow::Result<Changes> {
    let mut changes = Changes::default();
    if let Some(gpus) = &options.gpus {
        let gpus = if options.by_uuid { by_uuid(gpus, inventory)? } else { gpus.clone() };
        changes.set(keys::GPU_ASSIGNMENT, Some(&gpus.to_string()))?;
    }
    let option = |name: &str| Fault::new(Code::Input, format!("--{name}"));
    if let Some(capabilities) = &options.capabilities {
        changes.set(keys::GPU_CAPABILITIES, Some(&capabilities.to_string()))?;
    }
    if let Some(cuda) = &options.cuda {
        let text = if cuda.as_str() == "toolkit" { "cuda-toolkit-{cuda}" } else { cuda.as_str() };
        changes.set(keys::CUDA_PACKAGES, Some(text)).fault(|| option("cuda"))?;
    }
    if options.inject || options.install {
        let mode = if options.inject { DriverMode::Inject } else { DriverMode::Install };
        changes.set(keys::DRIVER_MODE, Some(mode.word()))?;
    }
    let nested = [
        (options.nested, Nested::Cdi),
        (options.nested_replace, Nested::Replace),
        (options.no_nested, Nested::None),
    ];
    for (_, nested) in nested.into_iter().filter(|(on, _)| *on) {
        changes.set(keys::NESTED, Some(nested.word()))?;
    }
    if let Some(driver) = options.driver.as_ref().map(|d| d.as_str()) {
        changes.set(keys::NVIDIA_DRIVER_VERSION, Some(driver)).fault(|| option("driver"))?;
    }
    Ok(changes)
}

/// The same GPUs by their UUIDs.
fn by_uuid(gpus: &Assignment, inventory: &Inventory) -> anyhow::Result<Assignment> {
    let Assignment::List(names) = gpus else { return Ok(gpus.clone()) };
    let names: anyhow::Result<Vec<GpuName>> = names.iter().map(|name| uuid_of(name, inventory)).collect();
    Ok(Assignment::List(names?))
}

fn uuid_of(name: &GpuName, inventory: &Inventory) -> anyhow::Result<GpuName> {
    let gpu = match name {
        GpuName::Index(minor) => inventory.by_minor(*minor),
        GpuName::Pci(pci) => inventory.gpus.iter().find(|gpu| gpu.pci == Some(*pci)),
        GpuName::Mig { gpu, gi, ci } => {
            let gpu = Box::new(uuid_of(gpu, inventory)?);
            return Ok(GpuName::Mig { gpu, gi: *gi, ci: *ci });
        }
        GpuName::Uuid(_) | GpuName::MigUuid(_) => return Ok(name.clone()),
    };
    let uuid = gpu.and_then(|gpu| gpu.uuid.clone()).ok_or_else(|| {
        Fault::new(Code::Passthrough, format!("cannot read the UUID of GPU {name} on this host"))
            .remedy("nvidia-smi -L")
    })?;
    Ok(GpuName::Uuid(uuid))
}

/// The UUIDs of GPUs that are given by index.
pub fn uuid_hint(gpus: &Assignment, inventory: &Inventory) -> Option<String> {
    let Assignment::List(names) = gpus else { return None };
    let indices: Vec<&GpuName> = names.iter().filter(|n| matches!(n, GpuName::Index(_))).collect();
    let known = |name: &&GpuName| match uuid_of(name, inventory) {
        Ok(GpuName::Uuid(uuid)) => Some(format!("GPU {name} is {uuid}")),
        _ => None,
    };
    let lines: Vec<String> = indices.iter().filter_map(known).collect();
    (!lines.is_empty()).then(|| {
        format!("{}; indices can change with a new card: --by-uuid writes the UUID", lines.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse(text.as_bytes())
    }

    #[test]
    fn changes_are_made_once_and_put_back() {
        let mut changes = Changes::default();
        changes.set(keys::GPU_ASSIGNMENT, Some("0,1")).unwrap();
        changes.set(keys::CUDA_PACKAGES, Some("none")).unwrap();
        let before = document("memory: 5\nlxc.environment: CUDA_PACKAGES=cuda-toolkit-{cuda}\n");
        let after = changes.apply(&before).unwrap();
        assert_eq!(
            String::from_utf8_lossy(after.as_bytes()),
            "memory: 5\nlxc.environment: CUDA_PACKAGES=none\nlxc.environment: GPU_ASSIGNMENT=0,1\n"
        );
        assert_eq!(changes.apply(&after), None);
        assert_eq!(changes.reverse(&before).apply(&after), Some(before));
    }

    #[test]
    fn what_is_empty_no_value_or_cannot_stand_in_a_conf_is_refused() {
        for (key, value) in [
            (keys::CUDA_PACKAGES as &Spec, "a\nb"),
            (keys::CUDA_PACKAGES, ""),
            (keys::NVIDIA_DRIVER_VERSION, " "),
            (keys::HOOK_CHAIN, "mine.sh"),
            (keys::HOOK_CHAIN, "/a\u{7}"),
        ] {
            let mut changes = Changes::default();
            let error = changes.set(key, Some(value)).unwrap_err();
            assert_eq!(crate::exit::code_of(&error), Code::Input);
            assert_eq!(changes, Changes::default(), "{value:?}");
        }
    }
}
