//! The verbs for people: attach, detach, plan, status, doctor, prefetch, and the package.

#[path = "../robust/support/mod.rs"]
mod robust_support;
#[path = "../support/mod.rs"]
mod support;

mod attach;
mod detach;
mod doctor;
mod elsewhere;
mod injected;
mod nested;
mod package;
mod package_trees;
mod plan;
mod recorded;
mod settings;
mod status;
mod storage;
mod undo;
mod upgrade;
