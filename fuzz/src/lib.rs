//! What holds for any bytes in the place of those that others write. Each
//! module has one `holds`, which panics where it does not. The fuzz targets
//! call them with what libFuzzer makes up, `tests/fuzz_corpus.rs` with what
//! is kept of that in `corpus/`.

pub mod conf;
pub mod guest;
pub mod proc;
pub mod pve;
pub mod runfile;
pub mod settings;
pub mod smi;
pub mod state;
pub mod templates;
pub mod text;
pub mod unpack;

/// A target's name, which is also its corpus's, and what holds for its input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("conf", conf::holds),
    ("runfile", runfile::holds),
    ("templates", templates::holds),
    ("unpack", unpack::holds),
    ("guest", guest::holds),
    ("pve", pve::holds),
    ("settings", settings::holds),
    ("proc", proc::holds),
    ("smi", smi::holds),
    ("text", text::holds),
    ("state", state::holds),
];
