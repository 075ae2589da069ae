//! The edge of the operating system. Knows none of the project's own types.

pub mod armour;
pub mod detached;
pub mod fetch;
pub mod file;
pub mod inside;
pub mod lock;
pub mod log;
pub mod look;
pub mod mount;
pub mod mountinfo;
pub mod out;
pub mod pidfd;
pub mod private;
pub mod process;
mod raw;
pub mod replace;
pub mod signal;
pub mod spawn;
pub mod sums;
pub mod text;
pub mod time;
pub mod url;
