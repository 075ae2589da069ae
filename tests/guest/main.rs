//! The software inside a container: installed, checked, told from what the container says.

#[path = "../support/mod.rs"]
mod support;

mod apt;
mod broken;
mod driver;
mod here;
mod one_source;
mod packaged;
mod real_driver;
mod real_runfile;
mod real_smi;
mod scripts;
mod secrets;
mod smi;
mod unfit;
mod without_cuda;
