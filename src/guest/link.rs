//! What a container with the host's driver mounted gets inside, once after a
//! change: links for programs that do not search the mount, and a new cache of
//! the dynamic linker. Nothing of it is needed by a program that the dynamic
//! linker starts, unless a machine needs the drop-in.

use super::exec::{Guest, fields};
use super::os::{Libc, Os};
use crate::driver::injection::Place;
use crate::driver::tree::Glibc;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::process::Output;
use crate::sys::time::{Deadline, human};
use crate::types::Version;

const LINK: &str = concat!(include_str!("scripts/libc.sh"), include_str!("scripts/link.sh"));

/// What was found and done inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linked {
    /// It has a shell: nothing was done in one without.
    pub shell: bool,
    /// Where the driver was found.
    pub mounted: Option<String>,
    /// The C library's version.
    pub glibc: Option<Glibc>,
    /// It has another C library.
    pub musl: bool,
    /// Nothing of it was done before, or not all.
    pub first: bool,
    /// The version of another driver that is installed in it.
    pub other: Option<Version>,
    /// A directory below a mount that has files of its own.
    pub hidden: Option<String>,
    /// The dynamic linker's cache is new.
    pub ldconfig: bool,
}

impl Linked {
    fn parse(answer: &[u8]) -> Option<Linked> {
        let (mut linked, mut os, mut complete) =
            (Linked { shell: true, ..Linked::default() }, Os::default(), false);
        for (key, value) in fields(answer) {
            match key.as_str() {
                "mounted" => linked.mounted = Some(value),
                "loader" => os.loader(&value),
                "musl" => os.libc = Libc::Musl,
                "first" => linked.first = true,
                "other" => linked.other = value.parse().ok(),
                "glibc" => linked.glibc = glibc(&value),
                "hidden" if linked.hidden.is_none() => linked.hidden = Some(value),
                "ldconfig" => linked.ldconfig = true,
                "end" => complete = true,
                _ => {}
            }
        }
        linked.musl = os.libc == Libc::Musl;
        complete.then_some(linked)
    }

    /// Whether what runs since the start found another driver, or none.
    pub fn late(&self, drop_in: bool) -> bool {
        self.first && self.ldconfig && (drop_in || self.other.is_some())
    }

    /// Why the driver cannot be used in it, if so; `needs` is the glibc of which
    /// the driver needs something, and `drop_in` whether it is found only by what
    /// is done inside.
    pub fn unfit(&self, needs: Option<Glibc>, drop_in: bool) -> Option<String> {
        if drop_in && !self.shell {
            return Some(
                "the container has no shell, and the dynamic linker of this machine does not search the mount"
                    .to_owned(),
            );
        }
        if self.musl {
            return Some("the container has musl, and NVIDIA's driver needs glibc".to_owned());
        }
        let (has, needs) = (self.glibc?, needs?);
        (has < needs).then(|| format!("the container's glibc is {has}, the driver needs {needs}"))
    }
}

/// The version in what glibc says of itself: `GNU C Library (Debian GLIBC
/// 2.36-9) stable release version 2.36.`
fn glibc(line: &str) -> Option<Glibc> {
    line.rsplit_once("version ")?.1.trim_end_matches('.').parse().ok()
}

/// Makes the links of `version`, mounted at `place`.
///
/// # Errors
/// [`Code::Software`]: it could not be done, which says nothing about the driver.
pub fn link(guest: &Guest, place: &Place, version: &Version, deadline: &Deadline) -> anyhow::Result<Linked> {
    let targets: Vec<String> = place.targets.iter().map(|target| format!("/{target}")).collect();
    let drop_in = if place.drop_in { "drop-in" } else { "none" };
    let args = ["link", drop_in, version.as_str()].into_iter().chain(targets.iter().map(String::as_str));
    let fault = || {
        Fault::new(Code::Software, format!("cannot make links to the driver in container {}", guest.ctid()))
    };
    answer(&guest.attach_sh(LINK, args).run(deadline).fault(fault)?, fault)
}

fn cut_off(output: &Output) -> anyhow::Error {
    anyhow::anyhow!("ended early, {}: {}", output.ended, output.last_lines(3).join(" | "))
}

/// What would keep the driver from the container, where it is not mounted at
/// `place`. Changes nothing.
///
/// # Errors
/// [`Code::Software`]: nobody could look.
pub fn look(guest: &Guest, place: &Place, deadline: &Deadline) -> anyhow::Result<Linked> {
    let targets: Vec<String> = place.targets.iter().map(|target| format!("/{target}")).collect();
    let args = ["look", "none", "-"].into_iter().chain(targets.iter().map(String::as_str));
    let fault = || Fault::new(Code::Software, format!("cannot look into container {}", guest.ctid()));
    answer(&guest.attach_sh(LINK, args).run(deadline).fault(fault)?, fault)
}

/// What it answered.
fn answer(output: &Output, fault: impl Fn() -> Fault) -> anyhow::Result<Linked> {
    // lxc-attach cannot run a shell.
    if matches!(output.code(), Some(126 | 127)) && output.stdout.is_empty() {
        return Ok(Linked::default());
    }
    let linked = Linked::parse(&output.stdout).ok_or_else(|| cut_off(output).context(fault()))?;
    log::debug!("links to the driver: {linked:?}, {}", human(output.took));
    Ok(linked)
}

/// Removes all of it: before a driver is installed, and with `detach`. Returns
/// how many files went.
///
/// # Errors
/// [`Code::Software`]: some may still be there, and are in their list.
pub fn unlink(guest: &Guest, deadline: &Deadline) -> anyhow::Result<usize> {
    let ctid = guest.ctid();
    let fault = || {
        Fault::new(
            Code::Software,
            format!("cannot remove the links to the host's driver from container {ctid}"),
        )
    };
    let output = guest.attach_sh(LINK, ["unlink", "none", "-"]).run(deadline).fault(fault)?;
    // Without a shell inside none was ever made.
    if matches!(output.code(), Some(126 | 127)) && output.stdout.is_empty() {
        return Ok(0);
    }
    let removed = fields(&output.stdout).filter(|(key, _)| key == "removed").count();
    if removed > 0 {
        log::info!("removed {removed} links to the host's driver from container {ctid}");
    }
    must_be_unlinked(&output).fault(fault)?;
    Ok(removed)
}

fn must_be_unlinked(output: &Output) -> anyhow::Result<()> {
    if let Some((_, path)) = fields(&output.stdout).find(|(key, _)| key == "left") {
        let why = output.last_lines(1).pop().unwrap_or_default();
        anyhow::bail!("{path} cannot be removed: {why}");
    }
    match output.success() && fields(&output.stdout).any(|(key, _)| key == "end") {
        true => Ok(()),
        false => Err(cut_off(output)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_container_says_is_read_and_an_early_end_is_none() {
        let answer = b"begin 1\nloader /lib64/ld-linux-x86-64.so.2\n\
            glibc GNU C Library (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36.\n\
            mounted /usr/lib/x\nlinked /usr/bin/nvidia-smi\nldconfig yes\nend 1\n";
        let linked = Linked::parse(answer).unwrap();
        assert_eq!(
            (linked.mounted.as_deref(), linked.musl, linked.ldconfig),
            (Some("/usr/lib/x"), false, true)
        );
        assert_eq!(linked.glibc, "2.36".parse().ok());
        assert_eq!(Linked::parse(&answer[..answer.len() - 6]), None);
        let two = Linked::parse(b"hidden /usr/lib/x\nhidden /usr/lib/y\nend 1\n").unwrap();
        assert_eq!(two.hidden.as_deref(), Some("/usr/lib/x"));
    }

    #[test]
    fn what_started_before_the_first_step_needs_a_restart_where_it_found_something_else() {
        let late = |lines: &str, drop_in| {
            Linked::parse(format!("{lines}\nend 1\n").as_bytes()).unwrap().late(drop_in)
        };
        assert!(late("first yes\nother 570.86.15\nldconfig yes", false));
        assert!(late("first yes\nldconfig yes", true));
        for not in ["first yes\nldconfig yes", "other 570.86.15\nldconfig yes", "first yes\nother 570.86.15"]
        {
            assert!(!late(not, false), "{not}");
        }
    }

    #[test]
    fn a_c_library_that_cannot_load_the_driver_is_told() {
        let needs = "2.14".parse().ok();
        let of =
            |lines: &str| Linked::parse(format!("{lines}\nend 1\n").as_bytes()).unwrap().unfit(needs, false);
        assert!(of("loader /lib/ld-musl-x86_64.so.1").unwrap().contains("musl"));
        let old = "glibc GNU C Library stable release version 2.12, by Roland McGrath et al.";
        assert_eq!(of(old), None, "a form that nobody knows is no reason");
        let old = "glibc GNU C Library stable release version 2.12.";
        assert_eq!(of(old).as_deref(), Some("the container's glibc is 2.12, the driver needs 2.14"));
        assert_eq!(of("glibc GNU C Library (Ubuntu GLIBC 2.39-0ubuntu8) stable release version 2.39."), None);
        assert_eq!(of("mounted /x"), None);
        assert!(of("loader /lib/ld-musl-x86_64.so.1\nloader /lib64/ld-linux-x86-64.so.2").is_none());
        let stand_in = "loader /lib/ld-musl-x86_64.so.1\nloader /lib64/ld-linux-x86-64.so.2\nmusl /bin/sh";
        assert!(of(stand_in).unwrap().contains("musl"));
        // What has no shell has it without a step inside, or not at all.
        assert_eq!(Linked::default().unfit(needs, false), None);
        assert!(Linked::default().unfit(needs, true).unwrap().contains("no shell"));
    }
}
