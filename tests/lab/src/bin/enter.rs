//! Runs one command inside a lab: `lab-enter [--terminal] PID COMMAND ARGUMENT…`.
use std::process::ExitCode;

fn main() -> ExitCode {
    phoenix_lab::ns::enter_main()
}
