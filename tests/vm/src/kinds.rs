//! The kinds of container that Proxmox makes, as far as AppArmor is concerned.

use crate::{ROOTFS, ROOTFS_OLD, old_processor};
use phoenix_lab::Spec;
use std::fmt;

/// What confines a container.
pub enum Profile {
    /// The one that LXC generates for each container, with the rules that Proxmox adds.
    Generated {
        /// May it have containers of its own?
        nesting: bool,
    },
    /// One that the conf names.
    Named(&'static str),
}

/// One kind.
pub struct Kind {
    /// Its container's number: LXC's profiles carry it, and the kernel keeps them.
    pub id: u32,
    /// Is root inside root?
    pub privileged: bool,
    /// What confines it.
    pub profile: Profile,
}

const fn kind(id: u32, privileged: bool, profile: Profile) -> Kind {
    Kind { id, privileged, profile }
}

/// All of them.
pub const ALL: &[Kind] = &[
    kind(101, true, Profile::Generated { nesting: false }),
    kind(102, true, Profile::Generated { nesting: true }),
    kind(103, true, Profile::Named("lxc-container-default-cgns")),
    kind(104, true, Profile::Named("unconfined")),
    kind(105, false, Profile::Generated { nesting: false }),
    kind(106, false, Profile::Generated { nesting: true }),
    kind(107, false, Profile::Named("lxc-container-default-cgns")),
    kind(108, false, Profile::Named("unconfined")),
];

/// Those that are shown on an old processor.
const OLD: &[Kind] = &[
    kind(101, true, Profile::Generated { nesting: false }),
    kind(105, false, Profile::Generated { nesting: false }),
];

/// Those for this machine.
pub fn here() -> &'static [Kind] {
    if old_processor() { OLD } else { ALL }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}privileged, ", self.id, if self.privileged { "" } else { "un" })?;
        match &self.profile {
            Profile::Generated { nesting } => write!(f, "generated, nesting={}", u8::from(*nesting)),
            Profile::Named(name) => f.write_str(name),
        }
    }
}

impl Kind {
    /// A container of this kind, to be created.
    pub fn spec(&self) -> Spec {
        let root = if old_processor() { ROOTFS_OLD } else { ROOTFS };
        let spec = if self.privileged { root.privileged() } else { root.unprivileged() };
        match self.profile {
            Profile::Generated { nesting } => {
                spec.option("--features", if nesting { "nesting=1" } else { "nesting=0" })
            }
            Profile::Named(_) => spec,
        }
    }

    /// What its conf has to say of the profile.
    pub fn conf(&self) -> String {
        match self.profile {
            Profile::Generated { .. } => String::new(),
            Profile::Named(name) => format!("lxc.apparmor.profile: {name}\n"),
        }
    }

    /// What the kernel calls the confinement of its process 1.
    pub fn label(&self) -> String {
        let id = self.id;
        match self.profile {
            // Stacked on a namespace of policies that is the container's own.
            Profile::Generated { .. } => {
                format!("lxc-{id}_</var/lib/lxc>//&:lxc-{id}_<-var-lib-lxc>:unconfined (enforce)")
            }
            Profile::Named("unconfined") => "unconfined".to_owned(),
            Profile::Named(name) => format!("{name} (enforce)"),
        }
    }
}
