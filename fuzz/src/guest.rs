//! What comes out of a container: the probe's answer, apt's plan, os-release,
//! apt's words. The container prints what it likes.

use phoenix_nvidia::driver::desired::{CudaPackages, Desired, Limits};
use phoenix_nvidia::driver::template::{Facts, Template};
use phoenix_nvidia::guest::driver_state::DriverState;
use phoenix_nvidia::guest::install::apt::failure::{UpdateFailure, reasons};
use phoenix_nvidia::guest::install::apt::simulate::Simulation;
use phoenix_nvidia::guest::os::Os;
use phoenix_nvidia::guest::probe::{state_version, understand};
use phoenix_nvidia::sys::armour::public_key;
use phoenix_nvidia::sys::process::{Ended, Output};
use std::time::Duration;

/// The most that a line of an answer makes of itself, in characters, and a
/// list of them in a message.
const SHOWN: usize = 64 * 1024;

/// No answer makes more of a message than a message may hold, no control
/// character passes, and nothing but names goes where a shell, apt or a URL
/// would read it.
pub fn holds(data: &[u8]) {
    let desired = desired();
    if let Some(check) = understand(data, &desired) {
        clean(&check.driver.to_string());
        match &check.driver {
            DriverState::Packaged { packages, .. } => {
                clean(&packages.shown());
                let remove = packages.remove("101".parse().expect("a number"));
                assert_eq!(remove.is_some(), !packages.names.is_empty());
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b" +-.:".contains(&b);
                let words = remove.as_deref().unwrap_or("pct exec 101 -- ");
                let rest = words.strip_prefix("pct exec 101 -- ").unwrap_or("?");
                assert!(rest.bytes().all(|b| plain(b) || rest.starts_with("pacman -R ")), "{remove:?}");
            }
            DriverState::Other { version } => assert_ne!(*version, desired.driver),
            _ => {}
        }
        system(&check.os);
        assert!(check.cuda_missing.len() <= 1 && check.utilities_missing.len() <= 1);
        // Only a whole answer counts, whatever follows it.
        let more = [data, b"\nunheard of\n"].concat();
        let again = understand(&more, &desired).map(|c| (c.driver, c.cuda_missing, c.os));
        assert_eq!(again, Some((check.driver, check.cuda_missing, check.os)));
    }
    let mut os = Os::default();
    String::from_utf8_lossy(data).lines().for_each(|line| os.release_line(line));
    system(&os);
    plan(data);
    words(data);
    if let Ok(key) = public_key(data) {
        assert!(
            key.starts_with("-----BEGIN PGP")
                && key.ends_with("-----\n")
                && key.len() <= data.len() * 2 + 200
        );
        assert_eq!(public_key(key.as_bytes()).ok(), Some(key));
    }
}

/// The container's own words for itself go into URLs.
fn system(os: &Os) {
    clean(os.shown());
    assert!(os.id.len() <= 64 && os.version.len() <= 64 && os.codename.len() <= 64);
    if let Some(distro) = os.distro() {
        let version = "580.95.05".parse().expect("a version");
        let template: Template = "https://h/{distro}/x".parse().expect("a template");
        let facts = Facts::repository(&version, Some(&distro));
        let url = template.fill(&facts).unwrap_or_else(|why| panic!("{distro:?}: {why:#}"));
        assert_eq!(url.request().matches('/').count(), 4, "{url:?}");
    }
    if let Some(why) = os.unsupported() {
        clean(&why);
    }
}

fn plan(data: &[u8]) {
    let plan = Simulation::parse(data);
    assert!(plan.install.len() + plan.remove.len() + plan.driver.len() + plan.kernel.len() <= 4000);
    if let Some(refusal) = plan.refusal() {
        clean(&format!("{refusal:?}").replace('\\', ""));
    } else {
        assert!(plan.possible && plan.kernel.is_empty() && plan.driver.is_empty() && plan.remove.is_empty());
    }
    plan.names().iter().for_each(|name| clean(name));
}

fn words(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let said = |code| Output {
        ended: Ended::Code(code),
        stdout: first.to_vec(),
        stderr: second.to_vec(),
        took: Duration::ZERO,
    };
    assert!(UpdateFailure::of(&said(0)).is_none() && UpdateFailure::of(&said(100)).is_some());
    clean(&reasons(&said(100)));
    if let Some(version) = state_version(&String::from_utf8_lossy(data)) {
        assert!(String::from_utf8_lossy(data).contains(version.as_str()));
    }
}

fn clean(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() <= SHOWN, "{} characters", text.chars().count());
}

fn desired() -> Desired {
    let url = |text: &str| text.parse().expect("a template");
    Desired {
        injected: false,
        driver: "580.95.05".parse().expect("a version"),
        kernel: None,
        runfile_url: url("/srv/{version}.run"),
        sha256: None,
        repo_url: url("https://mirror/{distro}/{arch}/"),
        repo_key_url: None,
        cuda: "cuda-toolkit-{cuda}".parse().unwrap_or(CudaPackages::None),
        cuda_named: false,
        utilities: vec!["nvtop".parse().expect("a package")],
        limits: Limits::all(std::time::Duration::from_secs(60)),
        gpus: Some(1),
    }
}
