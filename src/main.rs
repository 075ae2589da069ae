//! phoenix-nvidia: parse, run, exit code. Nothing else ends the process.

fn main() -> std::process::ExitCode {
    phoenix_nvidia::commands::main()
}
