//! What Proxmox calls: the phases of a container's life.

pub mod post_start;
pub mod pre_start;

use crate::exit::{self, Code};
use crate::job::{chain, in_force};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::settings::{Call, load};
use crate::types::{Ctid, Phase};

/// One phase.
///
/// # Errors
/// In pre-start what START_POLICY lets through, in post-start what failed.
pub fn run(ctid: Ctid, phase: &Phase) -> anyhow::Result<Code> {
    match phase {
        Phase::PreStart => pre_start::run(ctid),
        Phase::PostStart => {
            in_force::note_start(&Conf::of(ctid));
            post_start::run(ctid)
        }
        Phase::PreStop | Phase::PostStop => quiet(ctid, phase),
        Phase::Unknown(word) => {
            log::warn!("unknown phase '{word}': nothing to do");
            quiet(ctid, phase)
        }
    }
}

/// The phases in which we have nothing to do: touches nothing and succeeds
/// at once, but for a chained hookscript. post-stop runs in the private mount
/// namespace of lxc-start, and a conf that cannot be read there is no fault.
fn quiet(ctid: Ctid, phase: &Phase) -> anyhow::Result<Code> {
    let conf = Conf::of(ctid);
    let document = conf.read().unwrap_or_else(|error| {
        log::debug!("{}", exit::one_line(&error));
        // The files may name a chained script for all containers.
        Document::parse(b"")
    });
    let settings = load::of(ctid, Call::Hook, &conf, &document);
    chain::run(&settings, ctid, phase)?;
    Ok(Code::Success)
}
