//! The lab is as unkind as what it stands for.

mod debian;
mod ends;
mod nvidia;
mod pct;
mod smoke;
