//! The container's side, against what a shell would use: checking a runfile
//! of a real one's size, streaming it into a container, and the look at every
//! start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use phoenix_nvidia::driver::runfile;
use phoenix_nvidia::sys::time::Deadline;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const V: &str = "580.95.05";
/// What NVIDIA's largest runfiles have.
const SIZE: u64 = 460_000_000;

/// Runs a program many times and prints what each run took, in microseconds.
const LOOP: &str = r#"
for ((i = 0; i < 50; i++)); do
    a=$EPOCHREALTIME
    "$@" >/dev/null 2>&1 || exit 1
    b=$EPOCHREALTIME
    echo $((${b/./} - ${a/./}))
done
"#;

fn main() {
    let file = Runfile::new(V).size(SIZE).build().unwrap();
    checking(&file);
    let Some(lab) = Lab::builder().gpus(1).driver(V).start() else { return };
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.append(
        "/etc/default/phoenix-nvidia",
        "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\n",
    );
    lab.create(101, Rootfs::Debian12.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.web().runfile(&Runfile::new(V).size(SIZE));
    lab.run(["pct", "start", "101"]).ok();
    streaming(&lab);
    looking(&lab);
}

fn rate(took: Duration) -> String {
    format!("{:>6.0} MB/s", SIZE as f64 / 1e6 / took.as_secs_f64())
}

/// The best of three, so that the file is in the page cache and a busy
/// machine counts little.
fn best(mut what: impl FnMut()) -> Duration {
    let once = |what: &mut dyn FnMut()| {
        let begun = Instant::now();
        what();
        begun.elapsed()
    };
    (0..3).map(|_| once(&mut what)).min().unwrap()
}

fn checking(path: &Path) {
    println!("checking a runfile of {} MB (best of 3)", SIZE / 1_000_000);
    let version = V.parse().unwrap();
    let ours = best(|| {
        runfile::check(&mut File::open(path).unwrap(), &version, std::env::consts::ARCH, &Deadline::secs(60))
            .unwrap();
    });
    println!("  header, MD5, CRC and SHA-256, ours  {}", rate(ours));
    let mut all = Duration::ZERO;
    for program in ["md5sum", "cksum", "sha256sum"] {
        let took = best(|| {
            let status = Command::new(program).arg(path).stdout(Stdio::null()).status().unwrap();
            assert!(status.success());
        });
        all += took;
        println!("  {program:<36}{}", rate(took));
    }
    println!("  the three one after another         {}", rate(all));
}

/// `… 460 MB into the container in 1.2 s`
fn seconds(log: &str) -> f64 {
    let line = log.lines().find(|l| l.contains("into the container in")).expect("a line about the copy");
    let words: Vec<&str> = line.rsplit(' ').take(2).collect();
    let number: f64 = words[1].parse().unwrap();
    if words[0] == "ms" { number / 1000.0 } else { number }
}

fn streaming(lab: &Lab) {
    println!("streaming it into a container");
    let cat = |script: &str| {
        let line = format!(
            "f=$(ls /run/lab/web/www/XFree86/*/{V}/*.run); cat $f | pct exec 101 -- sh -c '{script}'; pct exec 101 -- rm -f /tmp/x"
        );
        let begun = Instant::now();
        lab.command("sh").args(["-c", &line]).timeout(Duration::from_secs(120)).run().ok();
        begun.elapsed()
    };
    println!("  cat | pct exec … cat                {}", rate(cat("cat >/tmp/x")));
    println!("  the same, then sha256sum inside     {}", rate(cat("cat >/tmp/x; sha256sum </tmp/x")));
    let run = lab.command("phoenix-nvidia").arg("101").timeout(Duration::from_secs(300)).run().ok();
    let took = Duration::from_secs_f64(seconds(&format!("{}{}", run.stdout, run.stderr)));
    println!("  ours, size and SHA-256 told inside  {}", rate(took));
}

fn looking(lab: &Lab) {
    println!("the look at every start, driver right (median of 50; the lab's pct lacks Perl's half second)");
    lab.write("/run/lab/loop", LOOP);
    for (name, words) in [
        ("lxc-attach … true", &["lxc-attach", "-n", "101", "--", "true"][..]),
        ("post-start, ours, whole", &["phoenix-nvidia", "101", "post-start"]),
        ("pct exec … nvidia-smi --version", &["pct", "exec", "101", "--", "nvidia-smi", "--version"]),
    ] {
        let output = lab.command("bash").arg("/run/lab/loop").args(words).run().ok();
        let mut times: Vec<u64> = output.stdout.lines().map(|l| l.trim().parse().unwrap()).collect();
        times.sort_unstable();
        println!("  {name:<36}{:>8.1} ms", times[times.len() / 2] as f64 / 1000.0);
    }
}
