//! What the kernel says of the driver in its log, read with `dmesg`: a bounded
//! program with a deadline, and only where something is wrong already.

use crate::device::pci::PciAddress;
use crate::sys::look::View;
use crate::sys::process::{self, Cmd};
use crate::sys::text;
use crate::sys::time::Deadline;
use std::time::Duration;

/// The timeout of dmesg, which reads the kernel's memory.
const LIMIT: Duration = Duration::from_secs(5);
/// The limit of its output, in bytes: a kernel's buffer has one MiB at most by default.
const KEEP: usize = 2 << 20;
/// The most lines of one message.
const LINES: usize = 5;
/// How the driver's messages about a card that it does not drive begin.
const BEGINS: [&str; 3] = ["The NVIDIA ", "The Unknown NVIDIA ", "Open nvidia.ko is only ready"];

/// The kernel's log; empty if it is not readable.
#[derive(Clone, Debug, Default)]
pub struct KernelLog(String);

impl KernelLog {
    /// Reads it.
    pub fn read<'a>(host: impl Into<View<'a>>, deadline: &Deadline) -> KernelLog {
        let dmesg = host.into().root().join("usr/bin/dmesg");
        if !process::installed(&dmesg) {
            return KernelLog::default();
        }
        let output = Cmd::new(dmesg).arg("--notime").keep(KEEP).run(&deadline.at_most(LIMIT));
        KernelLog::parse(&output.map(|output| output.text()).unwrap_or_default())
    }

    /// The log without times.
    pub fn parse(text: &str) -> KernelLog {
        KernelLog(text.to_owned())
    }

    /// Why the driver has no card, in its own words: the last such message.
    pub fn refusal(&self) -> Option<String> {
        self.message(|line| BEGINS.iter().any(|begin| line.starts_with(begin)))
    }

    /// The same about this card.
    pub fn about(&self, card: PciAddress) -> Option<String> {
        let address = card.to_string();
        self.message(|line| line.contains(&address))
    }

    /// Why the kernel rejected the module: Secure Boot, or a signature that is
    /// enforced otherwise.
    pub fn rejection(&self) -> Option<String> {
        let rejects = |line: &&str| {
            (line.starts_with("Loading of ") && line.ends_with(" is rejected"))
                || (line.starts_with("Lockdown: ") && line.contains("module loading is restricted"))
        };
        self.0.lines().rev().map(str::trim).find(rejects).map(|line| text::line(line.as_bytes()))
    }

    /// The last message of the driver that begins with such a line, with the
    /// lines that continue it.
    fn message(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let lines: Vec<&str> =
            self.0.lines().filter_map(|line| line.trim().strip_prefix("NVRM: ")).map(str::trim).collect();
        let first = lines.iter().rposition(|line| is_it(line))?;
        // Only what begins so has further lines, up to a full stop.
        let many = BEGINS.iter().any(|begin| lines[first].starts_with(begin));
        let rest = lines.get(first..first + if many { LINES.min(lines.len() - first) } else { 1 })?;
        let end = rest.iter().position(|line| line.ends_with('.')).map_or(rest.len(), |end| end + 1);
        Some(text::line(rest[..end].join(" ").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_is_told_whole() {
        let log = KernelLog::parse(
            "nvidia: loading out-of-tree module taints kernel.\n\
             NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:1b81)\n\
             NVRM: installed in this system is not supported by open\n\
             NVRM: nvidia.ko because it does not include the required GPU\n\
             NVRM: System Processor (GSP).\n\
             NVRM: Please see the 'Open Linux Kernel Modules' chapter\n\
             NVRM: No NVIDIA GPU found.\n",
        );
        let whole = "The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:1b81) installed in this system is not supported by open \
                     nvidia.ko because it does not include the required GPU System Processor (GSP).";
        assert_eq!(log.refusal().as_deref(), Some(whole));
        assert_eq!(log.about("01:00.0".parse().unwrap()).as_deref(), Some(whole));
        assert_eq!(log.about("02:00.0".parse().unwrap()), None);
        let failed = "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x22:0x56:884)\nNVRM: GPU 0000:01:00.0: rm_init_adapter failed\n";
        let said = KernelLog::parse(failed).about("01:00.0".parse().unwrap());
        assert_eq!(said.as_deref(), Some("GPU 0000:01:00.0: rm_init_adapter failed"));
        assert_eq!(KernelLog::parse(failed).refusal(), None);
    }

    #[test]
    fn a_rejected_module_is_told_in_the_kernels_words() {
        for line in [
            "Loading of module with unavailable key is rejected",
            "Loading of unsigned module is rejected",
            "Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7",
        ] {
            assert_eq!(KernelLog::parse(&format!("a\n{line}\nb\n")).rejection().as_deref(), Some(line));
        }
        assert_eq!(KernelLog::parse("nvidia: module verification failed\n").rejection(), None);
    }
}
