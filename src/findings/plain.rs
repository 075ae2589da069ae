//! A container for the tests of checks.

use super::read::Container;
use crate::host::choose::Choice;
use crate::host::facts::Majors;
use crate::job::desired::Software;
use crate::job::injection::Facts;
use crate::pve::conf::document::Document;
use crate::pve::hookscript::Hookscript;
use crate::settings::Settings;
use crate::state::State;

impl Container {
    /// A healthy running container with this conf.
    pub(crate) fn plain(conf: &str) -> Container {
        Container {
            ctid: "101".parse().unwrap(),
            conf: Document::parse(conf.as_bytes()),
            settings: Settings::default(),
            problems: Vec::new(),
            idle: Vec::new(),
            secrets: Vec::new(),
            kernel: "580.95.05".parse().ok(),
            majors: Majors::default(),
            choice: Choice::default(),
            closed: Vec::new(),
            pending: false,
            mounts: Vec::new(),
            new_mounts: false,
            masked: true,
            host_driver: Facts::default(),
            tree: None,
            gained: Vec::new(),
            software: Ok(Software::Off),
            hook: Hookscript::None,
            obstacles: Vec::new(),
            chained: None,
            running: true,
            noted: None,
            ha: false,
            state: State::default(),
            elsewhere: Vec::new(),
            inside: None,
        }
    }
}
