//! NVIDIA's user space, simulated: the runfile and what it installs.
//!
//! Real are the format of the file and its sums, the unpacking, the options' check, the files with the version in their
//! names (loadable shared objects), the log of what was installed, and an nvidia-smi that opens the nodes. Simulated is
//! what the libraries would do.

mod cksum;
mod elf;
mod options;
pub mod package;
pub mod runfile;
mod tar;
pub mod userspace;

pub(crate) use elf::shared_object;
