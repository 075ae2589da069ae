//! PCI addresses, in all their forms.

use anyhow::bail;
use std::fmt;
use std::str::FromStr;

/// The address of a card: `0000:01:00.0`.
///
/// /proc and /sys write the domain with four digits in lower case, nvidia-smi
/// with eight in upper case, lspci omits it if it is zero. Reads all of these,
/// writes the form of /sys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain; may have more than four digits, behind an Intel VMD.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, up to 31.
    pub device: u8,
    /// Function, up to 7.
    pub function: u8,
}

impl FromStr for PciAddress {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let malformed = || anyhow::anyhow!("a PCI address looks like 0000:01:00.0 or 01:00.0");
        let (head, function) = text.rsplit_once('.').ok_or_else(malformed)?;
        let (head, device) = head.rsplit_once(':').ok_or_else(malformed)?;
        let (domain, bus) = head.split_once(':').unwrap_or(("0000", head));
        let address = PciAddress {
            domain: hex(domain, 4..=8).ok_or_else(malformed)?,
            bus: hex(bus, 2..=2).and_then(|n| u8::try_from(n).ok()).ok_or_else(malformed)?,
            device: hex(device, 2..=2).and_then(|n| u8::try_from(n).ok()).ok_or_else(malformed)?,
            function: hex(function, 1..=1).and_then(|n| u8::try_from(n).ok()).ok_or_else(malformed)?,
        };
        if address.device > 0x1f || address.function > 7 {
            bail!("a PCI address has devices 00 to 1f and functions 0 to 7");
        }
        Ok(address)
    }
}

/// Hexadecimal digits alone (`from_str_radix` would take a sign).
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u32::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_form_is_the_same_address() {
        for text in ["01:00.0", "0000:01:00.0", "00000000:01:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:01:00.0", "{text}");
        }
        let smi: PciAddress = "00000000:C1:1F.7".parse().unwrap();
        assert_eq!(smi.to_string(), "0000:c1:1f.7");
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:e1:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let bad = [
            "",
            "01:00",
            "1:00.0",
            "01:0.0",
            "01:00.8",
            "01:20.0",
            "01:00.00",
            "000:01:00.0",
            "0000:01:00.0:",
            "000000000:01:00.0",
            "+1:00.0",
            "0g:00.0",
            "0000:0000:01:00.0",
            "01:00.0 ",
            "x01:00.0",
        ];
        for text in bad {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }
}
