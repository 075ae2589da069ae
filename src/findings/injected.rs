//! The host's driver in a container: what DRIVER_MODE=inject needs.

use super::finding::Finding;
use super::inside::software_seen;
use super::read::Container;
use crate::driver::injection::{Injection, Place, Refusal};
use crate::driver::tree::Shown;
use crate::exit::Fault;
use crate::guest::driver_state::DriverState;
use crate::guest::probe::Check;
use crate::job::injection::{self, remove_beside};
use crate::job::occupied;
use crate::sys::text;
use crate::types::Version;

/// So many files are named.
const FEW: usize = 4;

/// Where the container is to have the host's driver, and can.
fn place(c: &Container) -> Option<&Place> {
    match &c.host_driver.injection {
        Injection::On(place) => Some(place),
        _ => None,
    }
}

fn refused(c: &Container, refusal: &Refusal) -> Finding {
    let Fault { message, remedy, .. } = injection::refused(c.ctid, refusal);
    Finding::failure("inject", message).why("the container starts without a driver").fix_if(remedy)
}

/// Whether a start finds what it mounts.
pub fn tree(c: &Container) -> Vec<Finding> {
    let shown = c.tree.as_ref().map(|tree| &tree.shown);
    let finding = match (&c.host_driver.injection, shown, &c.kernel) {
        (Injection::Refused(refusal), ..) => refused(c, refusal),
        (Injection::On(_), Some(Err(gap)), Some(kernel)) => {
            let why = match c.tree.as_ref().and_then(|tree| tree.material.as_ref()) {
                Some(Err(why)) => format!("a start cannot make it: {why}"),
                Some(Ok(how)) => format!("a start makes it, {how}, within PRE_START_TIMEOUT"),
                None => "a start makes it, within PRE_START_TIMEOUT".to_owned(),
            };
            Finding::failure("tree", gap.of(kernel)).why(why).fix("phoenix-nvidia prepare")
        }
        (Injection::On(_), Some(Ok(Shown::Bind)), _)
            if c.conf.get("unprivileged").as_deref() != Some("1") =>
        {
            refused(c, &Refusal::NoOverlay)
        }
        (Injection::On(_), Some(Ok(_)), Some(kernel)) if !c.gained.is_empty() => {
            let names = text::few(c.gained.clone(), FEW).join(", ");
            let what =
                format!("the copy of driver {kernel} for containers is older than {names} of this host");
            Finding::warning("tree", what)
                .why("a start mounts what the copy has")
                .fix("phoenix-nvidia prepare")
        }
        (Injection::On(_), Some(Ok(_)), Some(kernel)) => {
            Finding::ok("tree", format!("driver {kernel} of this host is ready for containers"))
        }
        _ => return Vec::new(),
    };
    vec![finding]
}

/// Whether the running container has it, of the version of the kernel driver.
pub fn mounted(c: &Container) -> Vec<Finding> {
    let fix = format!("phoenix-nvidia {}", c.ctid);
    let finding = match (place(c), &c.host_driver.mounted, &c.kernel) {
        (Some(_), Some(Ok(has)), Some(kernel)) if has == kernel => {
            Finding::ok("mounted", format!("driver {has} of this host is mounted in the container"))
        }
        (Some(_), Some(Ok(has)), Some(kernel)) => {
            let what =
                format!("driver {has} of this host is mounted in the container, {kernel} in the kernel");
            Finding::failure("mounted", what)
                .why("a running container keeps its driver until its next start")
                .fix(fix)
        }
        (Some(_), None, Some(kernel)) if c.running => {
            let what = format!("driver {kernel} of this host is not mounted in the running container");
            Finding::failure("mounted", what).why("a start mounts it").fix(fix)
        }
        (None, Some(Ok(has)), _) => {
            let what = format!("the running container still has driver {has} of this host mounted");
            Finding::warning("mounted", what).why("its next start is without it").fix(fix)
        }
        (_, Some(Err(why)), _) => {
            Finding::unknown("mounted", format!("cannot see which driver is mounted in the container: {why}"))
        }
        _ => return Vec::new(),
    };
    vec![finding]
}

/// What a running container has that the host's driver, which its next start mounts,
/// meets there.
pub fn before(c: &Container, check: &Check) -> Vec<Finding> {
    let Some(place) = place(c) else { return Vec::new() };
    if let Some(refusal) = occupied::of(check, place) {
        return vec![refused(c, &refusal)];
    }
    let version = |version: &Version| Some(version).filter(|it| c.kernel.as_ref() != Some(*it)).cloned();
    let goes = check.runfile.as_ref().map(|version| {
        let what = format!("driver {version}, which a runfile installed in the container, goes");
        Finding::warning("beside", what)
            .why("the next start runs its nvidia-uninstall: programs use the host's")
    });
    let other = check.beside.as_ref().filter(|_| check.runfile.is_none()).and_then(|beside| match beside {
        DriverState::Other { version: it } | DriverState::Incomplete { version: Some(it), .. } => version(it),
        DriverState::Packaged { version: Some(it), .. } => version(it),
        _ => None,
    });
    let stays = other.map(|other| {
        let what = format!("driver {other} is installed in the container too");
        let finding = Finding::warning("beside", what)
            .why("programs that start before the first step inside find that one: AFTER_INSTALL applies");
        finding.fix_if(check.beside.as_ref().map(|beside| remove_beside(c.ctid, beside, check)))
    });
    goes.into_iter().chain(stays).collect()
}

/// Whether programs find it that do not look where it is mounted.
pub fn links(c: &Container) -> Vec<Finding> {
    let Some(place) = place(c).filter(|_| c.running) else { return Vec::new() };
    // Where nothing can be run there are none, and nobody misses them.
    let seen = software_seen(c).filter(|check| check.os.unfit.is_none());
    let why = "nvidia-smi may not be on the PATH, nor the driver in ldconfig -p";
    let (what, why) = match seen {
        _ if place.drop_in && c.state.injected.linked.is_none() => {
            ("programs do not find the host's driver yet", "this machine needs an ld.so.conf.d file for it")
        }
        Some(check) if !check.links => ("no links to the host's driver", why),
        Some(check) if check.lost => ("links to the host's driver are gone", why),
        _ => return Vec::new(),
    };
    vec![Finding::warning("links", what).why(why).fix(format!("phoenix-nvidia {}", c.ctid))]
}

/// A driver that is installed in the container all the same.
pub fn beside(c: &Container) -> Vec<Finding> {
    let Some(check) = software_seen(c).filter(|_| place(c).is_some()) else { return Vec::new() };
    let finding = |beside| {
        let finding =
            Finding::warning("beside", format!("a driver is installed in the container too: {beside}"))
                .why("programs use the host's, which is mounted; that one only takes space");
        finding.fix(match &check.runfile {
            Some(_) => format!("phoenix-nvidia {}", c.ctid),
            None => remove_beside(c.ctid, beside, check),
        })
    };
    check.beside.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::driver::injection::{Machine, Seen};
    use crate::job::injection::Facts;
    use crate::pve::conf::document::Document;

    /// A running container that is to have the host's driver, with what its mount table shows.
    fn found(mounted: Option<Result<&str, &str>>) -> Vec<(Level, String)> {
        let injection = Injection::of(&Document::parse(b""), Machine::Amd64V2, Seen::default());
        let mounted = mounted.map(|has| has.map(|v| v.parse().unwrap()).map_err(str::to_owned));
        let c = Container { host_driver: Facts { injection, mounted }, ..Container::plain("") };
        super::mounted(&c).into_iter().map(|finding| (finding.level, finding.what)).collect()
    }

    #[test]
    fn a_mount_table_that_cannot_be_read_is_unknown_and_no_missing_mount() {
        let unseen = "cannot see which driver is mounted in the container: Permission denied";
        assert_eq!(found(Some(Err("Permission denied"))), [(Level::Unknown, unseen.to_owned())]);
        assert_eq!(found(None)[0].0, Level::Failure);
        assert_eq!(found(Some(Ok("570.86.15")))[0].0, Level::Failure);
        assert_eq!(found(Some(Ok("580.95.05")))[0].0, Level::Ok);
    }
}
