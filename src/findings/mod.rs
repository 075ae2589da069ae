//! What is wrong: with what, why, and the one remedy. `doctor`, `status` and
//! `attach` say the same things in the same words; each has a list of the
//! checks that it makes.
//!
//! A check is a pure function of what was read ([`read::Host`],
//! [`read::Container`]), so that its test needs no host. To add one:
//!
//! 1. Where it needs a fact that nobody reads yet: a field in [`read`], and
//!    there the reading, with "could not look" kept apart from "is not so".
//! 2. A function that returns the findings, in the file of its subject: the
//!    host ([`host`]), the settings and devices ([`assigned`]), the lines of
//!    the conf ([`conf`]), the next start ([`start`]), the last run
//!    ([`record`]), the running container ([`inside`]), the other nodes
//!    ([`elsewhere`]). What was found and on what is one sentence; the remedy
//!    is one command that is right also when the conf has changed meanwhile.
//! 3. Its name in the list of `commands/doctor.rs`, and in those of `status`
//!    and `attach` where they show it too.
//! 4. A lab in `tests/ops/doctor.rs` that is broken in just that way: a test
//!    fails for a check that no lab shows.

mod answers;
pub mod assigned;
pub mod caps;
pub mod conf;
#[cfg(test)]
mod conf_tests;
pub mod elsewhere;
pub mod finding;
pub mod host;
pub mod injected;
pub mod inside;
pub mod nested;
mod ours;
#[cfg(test)]
mod plain;
pub mod read;
pub mod record;
pub mod seen;
pub mod services;
pub mod start;
