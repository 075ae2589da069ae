//! `GPU_ASSIGNMENT`: which GPUs a container gets. Syntax only.

use super::pci::PciAddress;
use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;

/// The value of `GPU_ASSIGNMENT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// `none`: control devices and software, no GPU.
    None,
    /// `all`: every GPU of the host, and every MIG instance.
    All,
    /// A comma list, in the order written.
    List(Vec<GpuName>),
    /// Those of `of` that `to` names too. Never written: the container's own
    /// environment narrows what it was assigned.
    Narrowed {
        /// What the settings say.
        of: Box<Assignment>,
        /// What is left of it.
        to: Vec<GpuName>,
    },
}

impl Assignment {
    /// What the settings say.
    pub fn written(&self) -> &Assignment {
        match self {
            Assignment::Narrowed { of, .. } => of.written(),
            written => written,
        }
    }

    /// All GPUs that it names.
    pub fn names(&self) -> Vec<GpuName> {
        match self {
            Assignment::None | Assignment::All => Vec::new(),
            Assignment::List(names) => names.clone(),
            Assignment::Narrowed { of, to } => [of.names(), to.clone()].concat(),
        }
    }
}

/// One GPU, or one MIG instance of it, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuName {
    /// `0`: the number of the node, `/dev/nvidia0`.
    Index(u32),
    /// `GPU-…`, complete or an unambiguous prefix; lower case after `GPU-`.
    Uuid(String),
    /// `0000:01:00.0` and its other forms.
    Pci(PciAddress),
    /// `GPU:GI/CI`: the compute instance CI of the GPU instance GI.
    Mig {
        /// The card.
        gpu: Box<GpuName>,
        /// The GPU instance's id.
        gi: u32,
        /// The compute instance's id.
        ci: u32,
    },
    /// `MIG-…` of driver 470 and later; only the driver can resolve it.
    MigUuid(String),
}

impl FromStr for Assignment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("none") {
            return Ok(Assignment::None);
        }
        if text.eq_ignore_ascii_case("all") {
            return Ok(Assignment::All);
        }
        if text.is_empty() {
            bail!("is empty; {EXPECTED}");
        }
        let names: anyhow::Result<Vec<GpuName>> = text.split(',').map(|item| item.trim().parse()).collect();
        Ok(Assignment::List(names?))
    }
}

const EXPECTED: &str = "expected none, all, or a comma list of indices (0,1), UUIDs (GPU-…), PCI addresses \
                        (0000:01:00.0) or MIG instances (0:1/0)";

impl FromStr for GpuName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        parse_name(text).with_context(|| match text {
            "" => format!("empty item in the list; {EXPECTED}"),
            "all" | "none" => format!("'{text}' is not allowed in a list"),
            _ => format!("'{}' is not a GPU; {EXPECTED}", text.escape_debug()),
        })
    }
}

fn parse_name(text: &str) -> anyhow::Result<GpuName> {
    if let Some(rest) = strip_prefix_ignoring_case(text, "MIG-") {
        return parse_mig_uuid(rest);
    }
    if text.contains('/') {
        let (gpu, instance) =
            text.rsplit_once(':').context("a MIG instance is written GPU:GI/CI, like 0:1/0")?;
        return mig(parse_card(gpu)?, instance);
    }
    parse_card(text)
}

/// A whole card: an index, a UUID or a PCI address.
fn parse_card(text: &str) -> anyhow::Result<GpuName> {
    if let Some(rest) = strip_prefix_ignoring_case(text, "GPU-") {
        return Ok(GpuName::Uuid(format!("GPU-{}", uuid_part(rest)?)));
    }
    if text.contains(':') || text.contains('.') {
        return Ok(GpuName::Pci(text.parse()?));
    }
    Ok(GpuName::Index(number(text)?))
}

/// `MIG-<uuid>`, or `MIG-GPU-<uuid>/GI/CI` of drivers before 470, which includes
/// the place of the instance.
fn parse_mig_uuid(rest: &str) -> anyhow::Result<GpuName> {
    if strip_prefix_ignoring_case(rest, "GPU-").is_none() {
        return Ok(GpuName::MigUuid(format!("MIG-{}", uuid_part(rest)?)));
    }
    let (gpu, instance) = rest.split_once('/').context("this form of a MIG UUID is MIG-GPU-<uuid>/GI/CI")?;
    mig(parse_card(gpu)?, instance)
}

fn mig(gpu: GpuName, instance: &str) -> anyhow::Result<GpuName> {
    let (gi, ci) = instance.split_once('/').context("a MIG instance is written GPU:GI/CI, like 0:1/0")?;
    Ok(GpuName::Mig { gpu: Box::new(gpu), gi: number(gi)?, ci: number(ci)? })
}

/// The digits of a UUID, complete or a prefix.
fn uuid_part(text: &str) -> anyhow::Result<String> {
    if text.is_empty() || text.len() > 36 || !text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        bail!("a UUID has up to 32 hexadecimal digits in groups, like 8f3c2a10-…");
    }
    let group_of = |i: usize| matches!(i, 8 | 13 | 18 | 23);
    if text.bytes().enumerate().any(|(i, b)| (b == b'-') != group_of(i)) {
        bail!("a UUID's groups have 8, 4, 4, 4 and 12 digits");
    }
    Ok(text.to_ascii_lowercase())
}

/// A number without sign and leading zeros (`01` may be meant as a bus).
fn number(text: &str) -> anyhow::Result<u32> {
    let plain = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        bail!("'{}' is not a number", text.escape_debug());
    }
    Ok(text.parse()?)
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    if head.eq_ignore_ascii_case(prefix) { text.get(prefix.len()..) } else { None }
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Assignment::None => f.write_str("none"),
            Assignment::All => f.write_str("all"),
            Assignment::List(names) => {
                for (i, name) in names.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{name}")?;
                }
                Ok(())
            }
            Assignment::Narrowed { of, to } => {
                write!(f, "{of} (of it {})", Assignment::List(to.clone()))
            }
        }
    }
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuName::Index(n) => n.fmt(f),
            GpuName::Uuid(uuid) | GpuName::MigUuid(uuid) => f.write_str(uuid),
            GpuName::Pci(address) => address.fmt(f),
            GpuName::Mig { gpu, gi, ci } => write!(f, "{gpu}:{gi}/{ci}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Assignment>().unwrap_or_else(|e| panic!("{text:?}: {e:#}")).to_string()
    }

    #[test]
    fn the_forms_are_read_and_shown_in_one_way() {
        let table = [
            ("none", "none"),
            (" All ", "all"),
            ("0", "0"),
            ("0,1", "0,1"),
            (" 1 , 0 ", "1,0"),
            ("GPU-8F3C2A10-1111-2222-3333-444455556666", "GPU-8f3c2a10-1111-2222-3333-444455556666"),
            ("gpu-8f3c", "GPU-8f3c"),
            ("01:00.0", "0000:01:00.0"),
            ("00000000:C1:00.0,0", "0000:c1:00.0,0"),
            ("0:1/0", "0:1/0"),
            ("01:00.0:13/2", "0000:01:00.0:13/2"),
            ("GPU-8f3c:7/0", "GPU-8f3c:7/0"),
            (
                "MIG-GPU-8f3c2a10-1111-2222-3333-444455556666/1/0",
                "GPU-8f3c2a10-1111-2222-3333-444455556666:1/0",
            ),
            ("MIG-0b3c2a10-1111-5222-8333-444455556666", "MIG-0b3c2a10-1111-5222-8333-444455556666"),
            ("0,GPU-8f3c,c1:00.0,1:2/0", "0,GPU-8f3c,0000:c1:00.0,1:2/0"),
        ];
        for (text, want) in table {
            assert_eq!(shown(text), want, "{text:?}");
            assert_eq!(shown(want), want, "shown form of {text:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_named() {
        let bad = [
            "",
            " ",
            ",",
            "0,",
            ",0",
            "0,,1",
            "0 1",
            "0;1",
            "-1",
            "+1",
            "00",
            "01",
            "0x1",
            "nvidia0",
            "/dev/nvidia0",
            "all,0",
            "none,0",
            "GPU-",
            "GPU-xyz",
            "GPU-8f3c2a1011112222",
            "GPU-8f3c2a10-1111-2222-3333-4444555566667",
            "MIG-",
            "MIG-GPU-8f3c/1",
            "MIG-GPU-8f3c",
            "0:1",
            "0:1/",
            "0:/0",
            "0:1/0/0",
            "1/0",
            "MIG-1:1/0",
            "01:00",
            "0-3",
            "0\n1",
            "９",
            "all all",
            "0000:01:00.0/1/0",
        ];
        for text in bad {
            let error = text.parse::<Assignment>().expect_err(text);
            assert!(!format!("{error:#}").contains('\n'), "{error:#}");
        }
        let error = "0,x\u{1b}[1m".parse::<Assignment>().unwrap_err();
        assert!(
            format!("{error:#}").starts_with("'x\\u{1b}[1m' is not a GPU; expected none, all"),
            "{error:#}"
        );
    }
}
