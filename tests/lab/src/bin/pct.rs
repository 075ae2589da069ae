//! The lab's `pct`, and the LXC hooks that come with it, told apart by the name it is called by.
use std::process::ExitCode;

fn main() -> ExitCode {
    phoenix_lab::pct::main()
}
