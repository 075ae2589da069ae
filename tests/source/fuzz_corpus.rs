//! The fuzz targets' properties (`fuzz/`), shown of the inputs that are kept
//! of fuzzing. `make fuzz` looks for new ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use targets::TARGETS;

/// Of so many inputs the time is taken; `make test-all` has the time.
fn sample() -> usize {
    if phoenix_lab::thorough() { 24 } else { 6 }
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in a directory, without their extensions.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

/// The kept inputs of a target.
fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = fuzz().join("corpus").join(target);
    let files = names(&directory).into_iter().map(|name| directory.join(name));
    let inputs: Vec<_> = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(inputs.len() >= 5, "only {} inputs are kept for {target}", inputs.len());
    inputs
}

/// The time for which this thread was on a processor: a busy machine does not
/// count.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn each_target_has_a_program_a_property_and_a_corpus() {
    let listed: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), listed);
    assert_eq!(names(&fuzz().join("corpus")), listed);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let programs = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"));
    let programs: BTreeSet<String> = programs.map(|file| file.trim_end_matches(".rs\"").to_owned()).collect();
    assert_eq!(programs, listed);
}

#[test]
fn what_holds_for_any_bytes_holds_for_all_inputs_that_are_kept() {
    for (target, holds) in TARGETS {
        for (path, input) in kept(target) {
            // The harness shows the panic; this says of which file it is.
            let result = std::panic::catch_unwind(|| holds(&input));
            assert!(result.is_ok(), "{}", path.display());
        }
    }
}

/// Nobody's file costs more than its length: eight times the input takes about
/// eight times the time.
#[test]
fn time_grows_with_the_input_and_no_faster() {
    for (target, holds) in TARGETS {
        let inputs = kept(target);
        for (path, input) in inputs.iter().step_by(inputs.len() / sample() + 1) {
            let took = |length: usize| {
                let long: Vec<u8> = input.iter().copied().cycle().take(length).collect();
                let begun = cpu_time();
                holds(&long);
                cpu_time() - begun
            };
            let (short, long) = (took(16 << 10), took(128 << 10));
            // What grows with the square takes 64 times as long.
            let most = short * 20 + Duration::from_millis(100);
            assert!(long <= most, "{}: {short:?}, then {long:?}", path.display());
        }
    }
}
