//! Settings that have no effect as they stand: those that another setting
//! overrules, by one table, and lines that nobody reads.

use crate::device::assignment::Assignment;
use crate::driver::desired::CudaPackages;
use crate::pve::conf::document::{Document, Entry};
use crate::settings::keys::{self, Spec};
use crate::settings::values::{AfterInstall, DriverVersion};
use crate::settings::{CLUSTER_FILE, NODE_FILE, Origin, Settings};
use crate::sys::text;
use std::collections::BTreeSet;
use std::path::Path;

/// A setting without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Which, where, and that it has no effect.
    pub what: String,
    /// Why.
    pub why: String,
    /// What ends that.
    pub fix: String,
}

/// Settings that another one leaves without effect.
struct Rule {
    /// The other one.
    by: &'static Spec,
    /// The value of it that does.
    when: fn(&Settings) -> bool,
    /// Those without effect.
    idle: &'static [&'static Spec],
    /// Why.
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        by: keys::INSTALL.spec(),
        when: |settings| !settings.value(keys::INSTALL),
        idle: &[
            keys::DRIVER_MODE.spec(),
            keys::NVIDIA_DRIVER_VERSION.spec(),
            keys::NVIDIA_REPO_URL.spec(),
            keys::NVIDIA_REPO_KEY_URL.spec(),
            keys::NVIDIA_RUNFILE_URL.spec(),
            keys::NVIDIA_RUNFILE_SHA256.spec(),
            keys::CUDA_PACKAGES.spec(),
            keys::UTILITY_PACKAGES.spec(),
            keys::INSTALL_WAIT.spec(),
            keys::AFTER_INSTALL.spec(),
            keys::REBOOT_WAIT.spec(),
        ],
        why: "INSTALL=off: nothing is installed",
    },
    Rule {
        by: keys::GPU_ASSIGNMENT.spec(),
        when: |settings| settings.get(keys::GPU_ASSIGNMENT) == Ok(Assignment::None),
        idle: &[keys::GPU_CAPABILITIES.spec(), keys::GPU_EXCLUSIVE.spec()],
        why: "GPU_ASSIGNMENT=none: the container gets no GPU",
    },
    Rule {
        by: keys::CUDA_PACKAGES.spec(),
        when: |settings| settings.get(keys::CUDA_PACKAGES) == Ok(CudaPackages::None),
        idle: &[keys::NVIDIA_REPO_URL.spec(), keys::NVIDIA_REPO_KEY_URL.spec()],
        why: "CUDA_PACKAGES=none: no repository is configured",
    },
    Rule {
        by: keys::AFTER_INSTALL.spec(),
        when: |settings| settings.get(keys::AFTER_INSTALL) == Ok(AfterInstall::None),
        idle: &[keys::REBOOT_WAIT.spec()],
        why: "AFTER_INSTALL=none: no reboot follows an install",
    },
];

/// All settings without effect: of those that were read, and of the lines of the
/// conf that nobody reads.
pub fn all(settings: &Settings, conf: &Document, path: &Path) -> Vec<Idle> {
    let rules = || RULES.iter().filter(|rule| (rule.when)(settings));
    let by_rules = |key: &&Spec| {
        let mut rules = rules().filter(|rule| rule.idle.iter().any(|idle| idle.name == key.name));
        rules.find_map(|rule| overruled(settings, rule, key))
    };
    let mut all: Vec<Idle> = keys::ALL.iter().filter_map(by_rules).collect();
    all.extend(checksum_of_one(settings));
    all.extend(for_this_call(settings));
    all.extend(unread(conf, path));
    all
}

/// A setting that a rule leaves without effect, if it asks for something there.
fn overruled(settings: &Settings, rule: &Rule, key: &Spec) -> Option<Idle> {
    let (value, origin) = settings.text(key)?;
    let by = settings.text(rule.by)?.1;
    let nearer = distance(&origin) <= distance(&by);
    let asks = (key.check)(value).is_ok()
        && !["none", "off", "no", "false", "0"].iter().any(|word| value.eq_ignore_ascii_case(word))
        && key.default != Some(value);
    // The conf says what this container is to have; what a file of many says,
    // others may use.
    let of_many = matches!(&origin, Origin::File(file, _) if is_of_many(file));
    if !nearer || !asks || of_many || origin == Origin::Default {
        return None;
    }
    let idle = idle(key, &origin, rule.why);
    // One that is required must stand somewhere: it may be the only place.
    let fix = if key.required() { format!("change {} ({by})", rule.by.name) } else { idle.fix };
    Some(Idle { fix, ..idle })
}

fn is_of_many(file: &Path) -> bool {
    [CLUSTER_FILE, NODE_FILE].iter().any(|of_many| file == Path::new(of_many))
}

/// How near to the container a place is.
fn distance(origin: &Origin) -> u8 {
    match origin {
        Origin::Environment => 0,
        Origin::File(file, _) if file == Path::new(CLUSTER_FILE) => 2,
        Origin::File(file, _) if file == Path::new(NODE_FILE) => 3,
        Origin::File(..) => 1,
        Origin::Default => 4,
    }
}

fn idle(key: &Spec, origin: &Origin, why: &str) -> Idle {
    let fix = match origin {
        Origin::File(path, line) => format!("remove line {line} of {}", path.display()),
        _ => format!("unset {}", key.name),
    };
    Idle { what: format!("{} ({origin}) has no effect", key.name), why: why.to_owned(), fix }
}

/// The checksum of one file, where the version is the host's: after its next
/// upgrade no runfile fits.
fn checksum_of_one(settings: &Settings) -> Option<Idle> {
    let host = settings.get(keys::NVIDIA_DRIVER_VERSION) == Ok(DriverVersion::Host);
    let set = settings.get(keys::NVIDIA_RUNFILE_SHA256).is_ok_and(|sum| sum.is_some());
    let key = keys::NVIDIA_RUNFILE_SHA256;
    let used = settings.value(keys::INSTALL);
    let (_, origin) = settings.text(key).filter(|_| host && set && used)?;
    let why = "NVIDIA_DRIVER_VERSION=host follows the host's driver; the checksum is that of one runfile";
    let what = format!("{} ({origin}) refuses the runfile of the driver's next version", key.name);
    let idle = idle(key, &origin, why);
    let url = settings.get(keys::NVIDIA_RUNFILE_URL).ok();
    let fix = match settings.text(keys::NVIDIA_RUNFILE_URL) {
        // By http nothing else vouches for the file.
        Some((_, place)) if url.is_some_and(|url| url.needs_checksum()) => {
            format!("change NVIDIA_RUNFILE_URL ({place}) to https, then {}", idle.fix)
        }
        _ => idle.fix,
    };
    Some(Idle { what, fix, ..idle })
}

/// Settings of the hook alone, in the environment of a call by hand.
fn for_this_call(settings: &Settings) -> Vec<Idle> {
    let found = |key: &&Spec| settings.text(key).is_some_and(|(_, origin)| origin == Origin::Environment);
    let hooks = [
        (keys::START_POLICY.spec(), "it decides in starts by this call alone; others read the files"),
        (keys::INSTALL_WAIT.spec(), "a call by hand waits for its install in any case"),
    ];
    let hooks = hooks.into_iter().filter(|(key, _)| found(key));
    hooks.map(|(key, why)| idle(key, &Origin::Environment, why)).collect()
}

/// The lines that look like a setting and are none. Those of a snapshot are its
/// own, unless it was appended to: one of a container with our settings has the
/// hookscript too.
fn unread(conf: &Document, path: &Path) -> Vec<Idle> {
    let mut unread = conf.unread(|name| keys::by_name(name).is_some());
    if unread.iter().any(|entry| entry.section.is_some()) {
        let entries = conf.entries().into_iter().filter(|entry| entry.key == "hookscript");
        let hooked: BTreeSet<Option<String>> = entries.map(|entry| entry.section).collect();
        let there: BTreeSet<String> = conf.environment().into_iter().map(|line| line.key).collect();
        unread.retain(|entry| {
            entry.section.is_none() || !hooked.contains(&entry.section) && !there.contains(name_of(entry))
        });
    }
    unread.iter().map(|entry| unread_line(entry, path)).collect()
}

fn unread_line(entry: &Entry, path: &Path) -> Idle {
    let (line, at) = (entry.line, path.display());
    let name = name_of(entry);
    let place = entry.section.as_ref().map(|section| format!("section [{section}] of "));
    let place = text::line(place.unwrap_or_default().as_bytes());
    let key = if entry.key.is_empty() { String::new() } else { format!("{} ", entry.key) };
    let why = match (&entry.section, entry.key.as_str()) {
        (Some(_), _) => "what is appended to the end of the file belongs to its last section",
        (None, "lxc.environment.runtime") => {
            "users who may configure the container can set lxc.environment.runtime (pct set --env): it is never read"
        }
        _ => "settings are lines of lxc.environment",
    };
    Idle {
        what: format!("{key}{name} ({place}{at} line {line}) has no effect"),
        why: why.to_owned(),
        fix: format!("write it as `lxc.environment: {name}=…` above the first section of {at}"),
    }
}

fn name_of(entry: &Entry) -> &str {
    entry.value.split(['=', ':']).next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Call, Given, Places};

    fn settings(conf: &[&str], node: &str, environment: &[(&str, &str)]) -> Settings {
        let given = |(n, line): (usize, &&str)| {
            let (key, value) = line.split_once('=').unwrap();
            let origin = Origin::File("/etc/pve/lxc/101.conf".into(), n + 1);
            Given { key: key.into(), value: value.into(), origin }
        };
        let conf = conf.iter().enumerate().map(given).collect();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (cluster, node) = (Ok(Vec::new()), Ok(node.as_bytes().to_vec()));
        Settings::of(Call::ByHand, Places { conf, cluster, node, environment }, None)
    }

    /// The names of those without effect.
    fn names(settings: &Settings) -> Vec<String> {
        let all = all(settings, &Document::parse(b""), Path::new("/etc/pve/lxc/101.conf"));
        all.iter().map(|idle| idle.what.split(' ').next().unwrap().to_owned()).collect()
    }

    const SUM: &str =
        "NVIDIA_RUNFILE_SHA256=abababababababababababababababababababababababababababababababab";
    const NODE: &str =
        "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=https://h/\nNVIDIA_RUNFILE_URL=https://h/x\n";

    #[test]
    fn what_another_setting_overrules_is_told_once_with_its_place() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["INSTALL=off", "CUDA_PACKAGES=cuda-toolkit-12-8"], &["CUDA_PACKAGES"]),
            (
                &["INSTALL=no", "INSTALL_WAIT=7", "NVIDIA_REPO_URL=https://h/x/"],
                &["NVIDIA_REPO_URL", "INSTALL_WAIT"],
            ),
            (
                &["GPU_ASSIGNMENT=none", "GPU_CAPABILITIES=all", "GPU_EXCLUSIVE=yes"],
                &["GPU_CAPABILITIES", "GPU_EXCLUSIVE"],
            ),
            (&["CUDA_PACKAGES=none", "NVIDIA_REPO_KEY_URL=https://h/k"], &["NVIDIA_REPO_KEY_URL"]),
            (&["AFTER_INSTALL=none", "REBOOT_WAIT=9"], &["REBOOT_WAIT"]),
            (&["INSTALL=off", "DRIVER_MODE=inject"], &["DRIVER_MODE"]),
            (&["INSTALL=off", "DRIVER_MODE=install"], &[]),
            // A host without the driver's user space takes it from there.
            (
                &[
                    "DRIVER_MODE=inject",
                    "NVIDIA_DRIVER_VERSION=580.95.05",
                    "NVIDIA_RUNFILE_URL=https://h/y",
                    SUM,
                ],
                &[],
            ),
            // A driver that was there before is followed by a restart too.
            (&["DRIVER_MODE=inject", "AFTER_INSTALL=none"], &[]),
            (&["DRIVER_MODE=inject", "REBOOT_WAIT=9"], &[]),
            // It may be either at the next start.
            (&["DRIVER_MODE=auto", "NVIDIA_RUNFILE_URL=https://h/y", "AFTER_INSTALL=none"], &[]),
            // CUDA packages are installed there too.
            (&["DRIVER_MODE=inject", "CUDA_PACKAGES=x", "INSTALL_WAIT=7"], &[]),
            // They ask for nothing, or for what is so anyway.
            (&["INSTALL=off", "CUDA_PACKAGES=none", "INSTALL_WAIT=0", "AFTER_INSTALL=reboot"], &[]),
            (&["GPU_ASSIGNMENT=none", "GPU_EXCLUSIVE=no"], &[]),
            (&["GPU_ASSIGNMENT=0", "GPU_EXCLUSIVE=yes", "INSTALL_WAIT=7"], &[]),
            // Not readable: told elsewhere.
            (&["GPU_ASSIGNMENT=x", "GPU_EXCLUSIVE=yes"], &[]),
            (&["INSTALL=off", "CUDA_PACKAGES=a;b"], &[]),
            // By two: told once.
            (&["INSTALL=off", "CUDA_PACKAGES=none", "NVIDIA_REPO_URL=https://h/x"], &["NVIDIA_REPO_URL"]),
        ];
        for (conf, expected) in cases {
            assert_eq!(names(&settings(conf, NODE, &[])), *expected, "{conf:?}");
        }
    }

    #[test]
    fn a_file_of_many_containers_may_say_more_than_one_needs() {
        // A container's own line against what is for all.
        assert!(names(&settings(&["INSTALL=off"], &format!("{NODE}CUDA_PACKAGES=x\n"), &[])).is_empty());
        assert!(names(&settings(&[], &format!("{NODE}INSTALL=off\n"), &[])).is_empty());
        assert_eq!(
            names(&settings(&["CUDA_PACKAGES=x"], &format!("{NODE}INSTALL=off\n"), &[])),
            ["CUDA_PACKAGES"]
        );
        // Other containers may have INSTALL=on.
        let node = format!("{NODE}INSTALL=off\nCUDA_PACKAGES=x\nINSTALL_WAIT=7\nAFTER_INSTALL=none\n");
        assert!(names(&settings(&[], &node, &[])).is_empty());
        assert!(names(&settings(&[], &format!("{NODE}AFTER_INSTALL=none\nREBOOT_WAIT=9\n"), &[])).is_empty());
    }

    #[test]
    fn no_remedy_takes_away_what_is_required() {
        let lines = ["INSTALL=off", "NVIDIA_REPO_URL=https://h/", "CUDA_PACKAGES=x"];
        let all = all(&settings(&lines, "", &[]), &Document::parse(b""), Path::new("/c"));
        let fixes: Vec<&str> = all.iter().map(|idle| idle.fix.as_str()).collect();
        let conf = "/etc/pve/lxc/101.conf";
        assert_eq!(fixes, [format!("change INSTALL ({conf} line 1)"), format!("remove line 3 of {conf}")]);
    }

    #[test]
    fn a_checksum_with_the_hosts_version_and_the_hooks_settings_in_the_environment_are_told() {
        let sum = format!("NVIDIA_RUNFILE_SHA256={}", "ab".repeat(32));
        assert_eq!(names(&settings(&[&sum], NODE, &[])), ["NVIDIA_RUNFILE_SHA256"]);
        assert_eq!(names(&settings(&[&sum, "DRIVER_MODE=inject"], NODE, &[])), ["NVIDIA_RUNFILE_SHA256"]);
        assert!(names(&settings(&[&sum, "NVIDIA_DRIVER_VERSION=580.95.05"], NODE, &[])).is_empty());
        assert_eq!(names(&settings(&[&sum, "INSTALL=off"], NODE, &[])), ["NVIDIA_RUNFILE_SHA256"]);
        let environment = [("START_POLICY", "fail"), ("INSTALL_WAIT", "5"), ("MAX_INSTALLS", "1")];
        assert_eq!(names(&settings(&[], NODE, &environment)), ["START_POLICY", "INSTALL_WAIT"]);
    }

    #[test]
    fn a_checksum_that_http_needs_is_not_taken_away() {
        let fix = |url: &str| {
            let conf = [&format!("NVIDIA_RUNFILE_URL={url}"), SUM];
            let settings = settings(&conf, "NVIDIA_DRIVER_VERSION=host\n", &[]);
            checksum_of_one(&settings).unwrap().fix
        };
        let remove = "remove line 2 of /etc/pve/lxc/101.conf";
        for url in ["https://h/x.run", "http://127.0.0.1/x.run", "/srv/x.run"] {
            assert_eq!(fix(url), remove, "{url}");
        }
        let https = "change NVIDIA_RUNFILE_URL (/etc/pve/lxc/101.conf line 1) to https, then ";
        assert_eq!(fix("http://mirror.lan/{version}.run"), format!("{https}{remove}"));
    }

    #[test]
    fn a_line_that_nobody_reads_is_told_wherever_it_stands() {
        let told = |conf: &str| {
            let conf = Document::parse(conf.as_bytes());
            all(&Settings::default(), &conf, Path::new("/c"))
        };
        for (conf, what) in [
            (
                "lxc.environment.runtime: GPU_ASSIGNMENT=0\n",
                "lxc.environment.runtime GPU_ASSIGNMENT (/c line 1)",
            ),
            ("lxc.environment.hooks = INSTALL=off\n", "lxc.environment.hooks INSTALL (/c line 1)"),
            ("lxc.enviroment: INSTALL=off\n", "lxc.enviroment INSTALL (/c line 1)"),
            ("arch: amd64\nGPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT (/c line 2)"),
            ("GPU_ASSIGNMENT: 0\n", "GPU_ASSIGNMENT (/c line 1)"),
            (
                "hookscript: x\n[snap]\narch: amd64\nlxc.environment: GPU_ASSIGNMENT=0\n",
                "lxc.environment GPU_ASSIGNMENT (section [snap] of /c line 4)",
            ),
        ] {
            let told = told(conf);
            assert_eq!(told.len(), 1, "{conf}: {told:?}");
            assert_eq!(told[0].what, format!("{what} has no effect"));
        }
        for conf in [
            "lxc.environment: GPU_ASSIGNMENT=0\n",
            "lxc.environment = GPU_ASSIGNMENT=0\n",
            "#GPU_ASSIGNMENT=0\ndescription: GPU_ASSIGNMENT=0\nlxc.environment: A=INSTALL=off\n",
            "lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=all\nlxc.environment: INSTALL\n",
            // A snapshot of what is there, or was.
            "lxc.environment: INSTALL=off\n[snap]\nlxc.environment: INSTALL=off\n",
            "arch: amd64\n[snap]\nhookscript: x\nlxc.environment: INSTALL=off\n",
        ] {
            assert!(told(conf).is_empty(), "{conf}: {:?}", told(conf));
        }
    }
}
