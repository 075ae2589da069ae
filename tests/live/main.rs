//! A running container changes without a restart: `apply`, `attach --live`, `detach --live`.

#[path = "../support/mod.rs"]
mod support;

mod cards;
mod common;
mod exclusive;
mod hidden;
mod hostile;
mod refused;
mod tree;
