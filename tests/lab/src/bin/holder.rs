//! Holds the namespaces of one lab for as long as its standard input stays open.
use std::process::ExitCode;

fn main() -> ExitCode {
    phoenix_lab::ns::holder_main()
}
