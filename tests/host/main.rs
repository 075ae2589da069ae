//! The machine: its cards, its driver, its device nodes.

#[path = "../fixtures/hosts.rs"]
mod hosts;
#[path = "../fixtures/shown.rs"]
mod shown;

mod causes;
mod choice;
mod h200;
mod inventory;
mod lab;
mod nested;
mod nodes;
mod properties;
mod unit;
