//! A container starts, by Proxmox or by hand, and has what its settings say.

#[path = "../support/mod.rs"]
mod support;

mod by_hand;
mod caps;
mod changing;
mod changing_faults;
mod changing_real;
mod devices;
mod drm;
mod genuine;
mod host_files;
mod inject;
mod inject_hostile;
mod inject_places;
mod inject_reasons;
mod inject_rollback;
mod inject_roots;
mod install;
mod kept;
mod masks;
mod nested;
mod nested_unfit;
mod passthrough;
mod readme;
mod unpack;
mod used;
