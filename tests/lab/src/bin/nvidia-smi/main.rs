//! The lab's nvidia-smi: the messages, exit codes and outputs of the real one by branch, from the kernel driver's
//! files in /proc, the library that is installed, and the nodes that really open.
//!
//! There is no driver behind the lab's nodes, so ENXIO on open is what success is on a real host.

mod nvml;
mod print;

use nvml::{Failure, Nvml};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The version of this program. The builder of a runfile writes it over the dots.
static STAMP: [u8; 48] = *b"lab nvidia-smi stamp:...........................";
const STAMP_TEXT_AT: usize = 21;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (text, code) = run(&arguments, &own_version(), Path::new("/"));
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn own_version() -> String {
    // Read as a volatile would be: the compiler must not fold the dots into the code.
    let stamp = std::hint::black_box(&STAMP);
    let text = String::from_utf8_lossy(&stamp[STAMP_TEXT_AT..]);
    text.trim_end_matches('.').to_owned()
}

/// Everything but the printing: what to print and the exit code.
fn run(arguments: &[String], version: &str, root: &Path) -> (String, u8) {
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        return (print::help(version), 0);
    }
    let done = Nvml::init(root).and_then(|nvml| answer(arguments, version, &nvml));
    match done {
        Ok(text) => (text, 0),
        Err(failure) => (failure.message(), failure.code(branch(version))),
    }
}

/// The first number of a version: `580` of `580.95.05`.
fn branch(version: &str) -> u32 {
    version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What one call asks for.
#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Table,
    List,
    Details,
    Version,
    Query { fields: Vec<String>, header: bool },
}

fn answer(arguments: &[String], version: &str, nvml: &Nvml) -> Result<String, Failure> {
    let (ask, only) = parse(arguments, version)?;
    if ask == Ask::Version {
        return Ok(print::version(version, nvml));
    }
    let mut gpus = nvml.gpus()?;
    if let Some(only) = only {
        gpus.retain(|gpu| gpu.is(&only));
    }
    if gpus.is_empty() && ask != Ask::List {
        return Err(Failure::NoDevices);
    }
    match ask {
        Ask::List => Ok(print::list(&gpus)),
        Ask::Details => Ok(print::details(&gpus, version, nvml)),
        Ask::Query { fields, header } => print::query(&gpus, &fields, header, nvml),
        Ask::Table | Ask::Version => Ok(print::table(&gpus, version, nvml)),
    }
}

/// The arguments, once the driver has answered: the real one complains of a bad option only then.
fn parse(arguments: &[String], version: &str) -> Result<(Ask, Option<String>), Failure> {
    let (mut ask, mut only, mut format) = (None, None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let unknown = || Failure::BadOption(argument.clone());
        match (argument.as_str(), argument.split_once('=')) {
            ("-L" | "--list-gpus", _) => ask = Some(Ask::List),
            ("-q" | "--query", _) => ask = Some(Ask::Details),
            ("--version", _) if branch(version) >= 550 => ask = Some(Ask::Version),
            ("-i", _) => only = Some(rest.next().ok_or_else(unknown)?.clone()),
            (_, Some(("--id", value))) => only = Some(value.to_owned()),
            (_, Some(("--query-gpu", value))) => {
                let fields = value.split(',').map(|field| field.trim().to_owned()).collect();
                ask = Some(Ask::Query { fields, header: true });
            }
            (_, Some(("--format", value))) => format = Some(value.to_owned()),
            _ => return Err(unknown()),
        }
    }
    let ask = match (ask.unwrap_or(Ask::Table), format) {
        (Ask::Query { fields, .. }, Some(format)) if format.starts_with("csv") => {
            Ask::Query { fields, header: !format.split(',').any(|word| word == "noheader") }
        }
        (Ask::Query { .. }, _) => return Err(Failure::NoFormat),
        (_, Some(_)) => return Err(Failure::BadOption("--format".to_owned())),
        (other, None) => other,
    };
    Ok((ask, only))
}

#[cfg(test)]
mod tests;
