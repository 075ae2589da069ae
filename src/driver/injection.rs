//! Injection: the host's user space bound into a container, in place of an
//! install. What decides before a start: the conf, this machine, and what the
//! last look inside found. Pure.
//!
//! glibc from 2.33 on looks for libraries in `glibc-hwcaps/x86-64-v2` below its
//! directories, up to 2.36 also in `x86_64`: with the driver there nothing has to
//! run inside. A directory that is not looked at does no harm.

use crate::driver::tree::{self, HWCAPS, OWN};
use crate::exit::{Code, Fault};
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::{Mount, RUN, Target, targets};
use crate::types::Ctid;
use std::fmt;

/// Applied as written under every AppArmor profile of Proxmox (measured).
/// Optional: a container starts on a node without the package too.
const OPTIONS: &str = "bind,ro,nosuid,nodev,optional,create=dir";

/// What a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64 with the instructions of x86-64-v2.
    Amd64V2,
    /// An older x86-64: glibc does not look at the hwcaps directory.
    Amd64,
    /// AArch64, which has no such directories.
    Arm64,
}

impl Machine {
    /// This one.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Machine {
        let v2 = std::arch::is_x86_feature_detected!("sse4.2")
            && std::arch::is_x86_feature_detected!("ssse3")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("cmpxchg16b");
        if v2 { Machine::Amd64V2 } else { Machine::Amd64 }
    }

    /// This one.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn here() -> Machine {
        Machine::Arm64
    }

    /// Its name in a conf.
    fn arch(self) -> &'static str {
        match self {
            Machine::Amd64V2 | Machine::Amd64 => "amd64",
            Machine::Arm64 => "arm64",
        }
    }
}

/// Why a container cannot have the host's user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its programs are of another architecture.
    Arch(String),
    /// Its C library is not glibc.
    NoGlibc(String),
    /// No directory of its loader is known.
    NoDirectory(String),
    /// An entry of the user has one of the places.
    Taken {
        /// The line in the conf.
        line: usize,
        /// The place, absolute.
        target: String,
    },
    /// The last look inside found a reason.
    Seen(String),
    /// A directory in it has files of its own, as the last look inside found.
    Hides(String),
    /// Root of a privileged container could change the host's copy.
    NoOverlay,
}

/// What the last look inside found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    /// Why the container cannot use the host's driver.
    pub unfit: Option<&'a str>,
    /// A directory with files of its own, which the mount would hide.
    pub hides: Option<&'a str>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Arch(arch) => {
                write!(f, "the container is {arch}, the host's driver {}", Machine::here().arch())
            }
            Refusal::NoGlibc(ostype) => write!(f, "{ostype} has no glibc, which NVIDIA's driver needs"),
            Refusal::NoDirectory(ostype) => {
                write!(f, "{ostype} has no directory of libraries that its programs search")
            }
            Refusal::Taken { line, target } => write!(f, "line {line} of the conf mounts something at {target}"),
            Refusal::Seen(why) => f.write_str(why),
            Refusal::Hides(path) => {
                write!(f, "{path} in the container has files of its own, which the mount would hide")
            }
            Refusal::NoOverlay => f.write_str(
                "this kernel has no overlay for a read-only copy, and root of a privileged container could write \
                 through a bind mount",
            ),
        }
    }
}

impl Refusal {
    /// The fault of a container that is to have it.
    pub fn fault(&self, ctid: Ctid) -> Fault {
        let remedy = match self {
            Refusal::Taken { .. } => format!("nano /etc/pve/lxc/{ctid}.conf"),
            Refusal::NoOverlay => "modprobe overlay && phoenix-nvidia prepare".to_owned(),
            Refusal::NoGlibc(_) | Refusal::Arch(_) => {
                "create the container from a Debian or Ubuntu template".to_owned()
            }
            Refusal::Hides(_) => format!("phoenix-nvidia attach {ctid} --install"),
            // An installed one could not work either.
            Refusal::NoDirectory(_) | Refusal::Seen(_) => format!("INSTALL=off phoenix-nvidia attach {ctid}"),
        };
        Fault::new(Code::Software, self.what()).remedy(remedy)
    }

    /// What it means.
    pub fn what(&self) -> String {
        format!("the host's driver cannot be mounted: {self}")
    }

    /// Whether it was found inside. Only a running container can be looked into: a
    /// start that is stopped for this would never see it gone.
    pub fn is_found_inside(&self) -> bool {
        matches!(self, Refusal::Seen(_) | Refusal::Hides(_))
    }
}

/// What DRIVER_MODE means for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Injection {
    /// The driver is installed in it.
    #[default]
    Off,
    /// It has the host's, mounted at these places.
    On(Place),
    /// It should have the host's, and cannot.
    Refused(Refusal),
}

/// Where a container has the host's user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The targets, relative to its root.
    pub targets: Vec<String>,
    /// Nothing is found there until a file of `/etc/ld.so.conf.d` names them.
    pub drop_in: bool,
}

impl Injection {
    /// What it means.
    pub fn of(conf: &Document, machine: Machine, seen: Seen<'_>) -> Injection {
        match place(conf, machine, seen) {
            Ok(place) => Injection::On(place),
            Err(refusal) => Injection::Refused(refusal),
        }
    }

    /// The mount entries.
    pub fn mounts(&self) -> Vec<Mount> {
        let Injection::On(place) = self else { return Vec::new() };
        let mount = |target: &String| Mount {
            source: tree::source(),
            target: target.clone(),
            options: OPTIONS.to_owned(),
        };
        place.targets.iter().map(mount).collect()
    }

    /// Whether the container is to have the host's.
    pub fn is_on(&self) -> bool {
        matches!(self, Injection::On(_))
    }
}

/// Whether a mount of ours is one of these.
pub fn is_driver(mount: &Mount) -> bool {
    mount.source.strip_prefix(RUN).is_some_and(|below| below.starts_with("/driver/"))
}

fn place(conf: &Document, machine: Machine, seen: Seen<'_>) -> Result<Place, Refusal> {
    let arch = conf.get("arch").unwrap_or_else(|| "amd64".to_owned());
    if arch != machine.arch() {
        return Err(Refusal::Arch(arch));
    }
    let ostype = conf.get("ostype").unwrap_or_default();
    let debian = match machine {
        Machine::Arm64 => "usr/lib/aarch64-linux-gnu",
        _ => "usr/lib/x86_64-linux-gnu",
    };
    let directories = match ostype.as_str() {
        "alpine" => return Err(Refusal::NoGlibc("Alpine Linux".to_owned())),
        "nixos" => return Err(Refusal::NoDirectory("NixOS".to_owned())),
        "debian" | "ubuntu" | "devuan" => vec![debian],
        "archlinux" => vec!["usr/lib"],
        "centos" | "fedora" | "opensuse" | "gentoo" => vec!["usr/lib64"],
        _ => vec![debian, "usr/lib64"],
    };
    let names: &[&str] = if machine == Machine::Arm64 { &[OWN] } else { &HWCAPS };
    let below = |directory: &&str| names.iter().map(|name| format!("{directory}/{name}")).collect::<Vec<_>>();
    let place =
        Place { targets: directories.iter().flat_map(below).collect(), drop_in: machine != Machine::Amd64V2 };
    let is_below = |path: &str, above: &str| {
        path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let taken = targets(conf).into_iter().find_map(|Target { line, at, entry }| {
        // An entry over a directory above covers ours, which may be the first.
        let covers = |ours: &str| entry && !at.is_empty() && is_below(ours, &at);
        let ours = place.targets.iter().find(|ours| is_below(&at, ours) || covers(ours))?;
        let target = if covers(ours) { format!("/{at}") } else { format!("/{ours}") };
        Some(Refusal::Taken { line, target })
    });
    let unfit = || seen.unfit.map(|why| Refusal::Seen(why.to_owned()));
    let hides = || seen.hides.map(|path| Refusal::Hides(path.to_owned()));
    taken.or_else(unfit).or_else(hides).map_or(Ok(place), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(conf: &str, machine: Machine) -> Injection {
        Injection::of(&Document::parse(conf.as_bytes()), machine, Seen::default())
    }

    fn targets(conf: &str, machine: Machine) -> Vec<String> {
        of(conf, machine).mounts().into_iter().map(|mount| mount.target).collect()
    }

    #[test]
    fn the_places_are_those_that_the_distributions_loader_looks_at() {
        let debian = ["usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2", "usr/lib/x86_64-linux-gnu/x86_64"];
        for ostype in ["debian", "ubuntu", "devuan"] {
            assert_eq!(targets(&format!("ostype: {ostype}\n"), Machine::Amd64V2), debian);
            assert_eq!(targets(&format!("ostype: {ostype}\narch: amd64\n"), Machine::Amd64), debian);
        }
        assert_eq!(targets("ostype: fedora\n", Machine::Amd64V2)[0], "usr/lib64/glibc-hwcaps/x86-64-v2");
        assert_eq!(targets("ostype: archlinux\n", Machine::Amd64V2)[0], "usr/lib/glibc-hwcaps/x86-64-v2");
        for conf in ["ostype: unmanaged\n", ""] {
            let all = targets(conf, Machine::Amd64V2);
            assert_eq!(
                (all.len(), &all[..2], all[2].as_str()),
                (4, &debian.map(str::to_owned)[..], "usr/lib64/glibc-hwcaps/x86-64-v2")
            );
        }
        let everywhere = [Machine::Amd64V2, Machine::Amd64, Machine::Arm64].iter().flat_map(|machine| {
            let arch = machine.arch();
            ["debian", "fedora", "archlinux", "unmanaged"]
                .iter()
                .flat_map(move |ostype| targets(&format!("arch: {arch}\nostype: {ostype}\n"), *machine))
        });
        for target in everywhere {
            assert!(tree::is_place(&format!("/{target}")), "a tree there is not known again: {target}");
        }
        assert_eq!(
            targets("arch: arm64\nostype: debian\n", Machine::Arm64),
            ["usr/lib/aarch64-linux-gnu/phoenix-nvidia"]
        );
    }

    #[test]
    fn what_searches_no_hwcaps_needs_the_drop_in() {
        let drop_in = |conf, machine| match of(conf, machine) {
            Injection::On(place) => place.drop_in,
            other => panic!("{other:?}"),
        };
        assert!(!drop_in("", Machine::Amd64V2));
        assert!(drop_in("", Machine::Amd64) && drop_in("arch: arm64\n", Machine::Arm64));
    }

    #[test]
    fn what_cannot_have_it_is_refused_with_the_reason() {
        for (conf, why) in [
            ("ostype: alpine\n", "Alpine Linux has no glibc"),
            ("ostype: nixos\n", "NixOS has no directory"),
            ("arch: i386\n", "the container is i386"),
            ("arch: arm64\nostype: debian\n", "the container is arm64"),
        ] {
            let Injection::Refused(refusal) = of(conf, Machine::Amd64V2) else { panic!("{conf}") };
            assert!(refusal.to_string().contains(why), "{refusal}");
        }
        let found = |seen| Injection::of(&Document::parse(b""), Machine::Amd64V2, seen);
        let old = found(Seen { unfit: Some("glibc 2.9 is too old"), ..Seen::default() });
        assert_eq!(old, Injection::Refused(Refusal::Seen("glibc 2.9 is too old".to_owned())));
        let hides = found(Seen { hides: Some("/usr/lib/x"), ..Seen::default() });
        assert_eq!(hides, Injection::Refused(Refusal::Hides("/usr/lib/x".to_owned())));
    }

    #[test]
    fn an_entry_of_the_user_at_one_of_the_places_wins() {
        let at = "usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";
        for theirs in [
            format!("lxc.mount.entry: /srv/x {at} none bind 0 0"),
            format!("lxc.mount.entry = /srv/x /{at} none bind 0 0"),
            format!("lxc.mount.entry: /srv/x {at}/ none bind 0 0"),
            format!("lxc.mount.entry: /srv/x {at}/libcuda.so.1 none bind,create=file 0 0"),
            format!("mp0: local:vol,mp=/{at}"),
        ] {
            let conf = format!("ostype: debian\n{theirs}\n");
            let taken = Refusal::Taken { line: 2, target: format!("/{at}") };
            assert_eq!(of(&conf, Machine::Amd64V2), Injection::Refused(taken), "{conf}");
        }
        for above in ["usr", "usr/lib", "/usr/lib/x86_64-linux-gnu/", "usr/lib/x86_64-linux-gnu/glibc-hwcaps"]
        {
            let conf = format!("ostype: debian\nlxc.mount.entry: /srv/x {above} none bind 0 0\n");
            let target = format!("/{}", above.trim_matches('/'));
            let taken = Refusal::Taken { line: 2, target };
            assert_eq!(of(&conf, Machine::Amd64V2), Injection::Refused(taken), "{conf}");
        }
        for beside in [
            "lxc.mount.entry: /srv/x usr/lib/x86 none bind 0 0".to_owned(),
            "lxc.mount.entry: /srv/x usr/lib/x86_64-linux-gnu/nvidia none bind 0 0".to_owned(),
            format!("lxc.mount.entry: /run/phoenix-nvidia/driver/current {at} none bind 0 0"),
            format!("lxc.mount.entry: /srv/x {at}x none bind 0 0"),
            "mp0: local:vol,mp=/usr/lib/x86_64-linux-gnu".to_owned(),
            format!("[snap]\nlxc.mount.entry: /srv/x {at} none bind 0 0"),
        ] {
            assert!(of(&format!("ostype: debian\n{beside}\n"), Machine::Amd64V2).is_on(), "{beside}");
        }
    }
}
