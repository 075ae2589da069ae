//! The settings, and where each came from.
//!
//! Nearer wins: the container's conf, the cluster's file, the node's file.
//! The process environment comes first by hand and last in a hook phase,
//! where it is only what leaked from the shell that ran `pct start`.

pub mod envfile;
pub mod idle;
pub mod keys;
pub mod load;
pub mod secrets;
pub mod values;

use crate::exit::{Code, Fault};
use crate::pve::conf::PVE_CLUSTER;
use crate::sys::file::in_its_place;
use crate::sys::text;
use crate::types::Ctid;
use envfile::EnvLine;
use keys::{Key, Optional, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::{fmt, io};

/// The directory of the cluster's settings file.
pub const CLUSTER_DIRECTORY: &str = "/etc/pve/phoenix-nvidia";
/// The cluster's settings file.
pub const CLUSTER_FILE: &str = "/etc/pve/phoenix-nvidia/default.env";
/// The node's settings file, the package's conffile.
pub const NODE_FILE: &str = "/etc/default/phoenix-nvidia";
/// Set by a call by hand for the `pct` that it runs, to the CTID: the hook of
/// that start then knows that the environment is the orchestrator's.
pub const MARK: &str = "PHOENIX_NVIDIA_CTID";
/// At most so many unreadable lines are shown.
const MOST_PROBLEMS: usize = 10;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file; lines count from 1.
    File(PathBuf, usize),
    /// The process environment.
    Environment,
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path, line) => write!(f, "{} line {line}", path.display()),
            Origin::Environment => f.write_str("the environment"),
            Origin::Default => f.write_str("the default"),
        }
    }
}

/// How this process came to run: decides where the environment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// By a person or an orchestrator.
    ByHand,
    /// By Proxmox, at a start.
    Hook,
}

/// One `KEY=VALUE` of a source.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// The name.
    pub key: String,
    /// The text.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

impl Given {
    /// The value, fit to be shown.
    pub fn shown(&self) -> String {
        text::line(text::hidden(&self.value).as_bytes())
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} ({})", self.key, self.shown(), self.origin)
    }
}

/// A setting that cannot be read or is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's name, or the unknown one.
    pub key: String,
    /// One sentence with the place.
    pub message: String,
    /// Where it stands; `None`: nowhere, it is missing.
    pub origin: Option<Origin>,
    /// The command for what is no setting: a file that cannot be read.
    pub fix: Option<String>,
}

impl Problem {
    /// Whether a required setting stands nowhere.
    pub fn is_missing(&self) -> bool {
        self.origin.is_none() && keys::by_name(&self.key).is_some()
    }

    /// The command that ends it where there is one, or what to do by hand.
    pub fn remedy(&self, ctid: Option<Ctid>) -> String {
        let key = keys::by_name(&self.key);
        let name = key.map_or("", |key| key.name);
        let example = key.map_or("", |key| key.example);
        let like = if example.is_empty() { String::new() } else { format!(", for example {name}={example}") };
        match &self.origin {
            Some(Origin::File(path, line)) => {
                format!("correct or remove line {line} of {}{like}", path.display())
            }
            Some(_) => format!("correct {name} in the environment{like}"),
            None if name == keys::GPU_ASSIGNMENT.name => {
                let ctid = ctid.map_or_else(|| "CTID".to_owned(), |ctid| ctid.to_string());
                format!("phoenix-nvidia attach {ctid} --gpus 0")
            }
            None if key.is_some() => format!("echo '{name}={example}' >>{NODE_FILE}"),
            None => self.fix.clone().unwrap_or_else(|| "man phoenix-nvidia.env".to_owned()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// What a settings file holds; nothing where there is none.
pub type Content = io::Result<Vec<u8>>;

/// What each place says.
#[derive(Debug)]
pub struct Places {
    /// Lines of the container's conf, the last one first.
    pub conf: Vec<Given>,
    /// [`CLUSTER_FILE`].
    pub cluster: Content,
    /// [`NODE_FILE`].
    pub node: Content,
    /// The process environment.
    pub environment: Vec<(String, String)>,
}

/// All settings of one container, as text with origins; typed on request.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, Given>,
    /// By hand: values of the environment that differ from those of the
    /// files, which are what the next start reads.
    pub overridden: Vec<(Given, Given)>,
    /// Unknown keys and unreadable lines.
    pub problems: Vec<Problem>,
}

impl Settings {
    /// Joins what the places say. An unreadable file is a problem, not an
    /// error: the cluster's can be out of reach while the container's settings
    /// suffice.
    pub fn of(call: Call, places: Places, ctid: Option<Ctid>) -> Settings {
        let Places { conf, cluster, node, environment } = places;
        let mut problems = Vec::new();
        near_misses(&conf, &mut problems);
        let cluster = lines_of(CLUSTER_FILE, cluster, &mut problems);
        let node = lines_of(NODE_FILE, node, &mut problems);
        let ours = environment.iter().any(|(k, v)| k == MARK && ctid.is_some_and(|c| *v == c.to_string()));
        let environment: Vec<Given> = environment
            .into_iter()
            // An empty variable is what a shell leaves behind, not a value.
            .filter(|(key, value)| keys::by_name(key).is_some() && !value.is_empty())
            .map(|(key, value)| Given { key, value, origin: Origin::Environment })
            .collect();
        let mut settings = Settings::join(match call {
            Call::Hook if !ours => [conf, cluster, node, environment],
            Call::ByHand | Call::Hook => [environment, conf, cluster, node],
        });
        if call == Call::Hook {
            settings.overridden.clear();
        }
        settings.problems = few(problems);
        settings
    }

    /// Joins the sources, the nearest first; in each the first line of a name
    /// counts. An empty value is none: the next place is asked.
    fn join(sources: [Vec<Given>; 4]) -> Settings {
        let mut settings = Settings::default();
        for source in sources {
            let mut seen = BTreeSet::new();
            for given in source {
                let Some(key) = keys::by_name(&given.key) else { continue };
                if !seen.insert(key.name) || given.value.trim().is_empty() {
                    continue;
                }
                match settings.values.get(key.name) {
                    None => drop(settings.values.insert(key.name, given)),
                    Some(nearer) if nearer.origin == Origin::Environment && nearer.value != given.value => {
                        if !settings.overridden.iter().any(|(n, _)| n.key == given.key) {
                            settings.overridden.push((nearer.clone(), given));
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        settings
    }

    /// The text of a setting and its origin; `None` if it is required and
    /// stands nowhere.
    pub fn text(&self, key: &Spec) -> Option<(&str, Origin)> {
        match self.values.get(key.name) {
            Some(given) => Some((given.value.trim(), given.origin.clone())),
            None => key.default.map(|text| (text, Origin::Default)),
        }
    }

    /// The same with this value of one: what a word that leaves it open stands for.
    #[must_use]
    pub fn with(mut self, key: &Spec, value: &str) -> Settings {
        let origin = self.text(key).map_or(Origin::Default, |(_, origin)| origin);
        let given = Given { key: key.name.to_owned(), value: value.to_owned(), origin };
        self.values.insert(key.name, given);
        self
    }

    /// A setting as its type.
    ///
    /// # Errors
    /// [`Problem`]: it is required and missing, or cannot be read.
    pub fn get<T, D>(&self, key: &Key<T, D>) -> Result<T, Problem> {
        self.read(key, key.read)
    }

    /// The same where a start needs a value in any case: the default where the
    /// text cannot be read, which [`Settings::all_problems`] tells.
    pub fn value<T>(&self, key: &Key<T, Optional>) -> T {
        self.get(key).unwrap_or_else(|_| key.fallback())
    }

    /// All that cannot be read, and what is required and stands nowhere: each
    /// setting of the table is looked at.
    pub fn all_problems(&self) -> Vec<Problem> {
        let values = keys::ALL.iter().filter_map(|key| self.read(key, key.check).err());
        self.problems.iter().cloned().chain(values).collect()
    }

    fn read<T>(&self, key: &Spec, read: fn(&str) -> values::Read<T>) -> Result<T, Problem> {
        let problem = |message, origin| Problem { key: key.name.to_owned(), message, origin, fix: None };
        let (value, origin) =
            self.text(key).ok_or_else(|| problem(format!("{} is not set", key.name), None))?;
        read(value).map_err(|why| {
            let shown = text::line(text::hidden(value).as_bytes());
            let why = text::without_secrets(&why);
            problem(format!("{}={shown} ({origin}): {why}", key.name), Some(origin))
        })
    }
}

/// A conf of a megabyte can have 28,000 of them: shows some, and counts the
/// others.
fn few(mut problems: Vec<Problem>) -> Vec<Problem> {
    if let Some(more) = problems.len().checked_sub(MOST_PROBLEMS).filter(|more| *more > 0) {
        problems.truncate(MOST_PROBLEMS);
        let message = format!("{more} more lines of the settings cannot be read");
        problems.push(Problem { key: String::new(), message, origin: None, fix: None });
    }
    problems
}

/// The exit-2 fault for problems by hand: all of them, with the remedy of the
/// first.
pub fn fault(problems: &[Problem], ctid: Ctid) -> anyhow::Error {
    let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let fault = Fault::new(Code::Input, message);
    match problems.first() {
        Some(first) => fault.remedy(first.remedy(Some(ctid))).into(),
        None => fault.into(),
    }
}

/// Names in a conf that are misspelt ones of ours. Others are the container's
/// own.
fn near_misses(conf: &[Given], problems: &mut Vec<Problem>) {
    // A conf may repeat one thousands of times.
    let mut known: BTreeMap<&str, Option<&'static Spec>> = BTreeMap::new();
    for given in conf.iter().filter(|g| keys::by_name(&g.key).is_none()) {
        let nearest = *known.entry(given.key.as_str()).or_insert_with(|| keys::nearest(&given.key));
        if let Some(key) = nearest {
            problems.push(Problem {
                key: given.key.clone(),
                message: format!(
                    "unknown setting {} ({}): did you mean {}?",
                    given.key, given.origin, key.name
                ),
                origin: Some(given.origin.clone()),
                fix: None,
            });
        }
    }
}

/// The assignments in a settings file, the last line first: it wins, as with
/// systemd.
fn lines_of(file: &'static str, content: Content, problems: &mut Vec<Problem>) -> Vec<Given> {
    let mut unreadable = None;
    let bytes = content.unwrap_or_else(|error| {
        unreadable = Some(Problem {
            key: String::new(),
            message: format!("cannot read {file}: {error}"),
            origin: None,
            fix: Some(match in_its_place(&error) {
                Some(_) => format!("mv {file} {file}.aside && touch {file}"),
                // Whoever looks at it waits too.
                None if error.kind() == io::ErrorKind::TimedOut => PVE_CLUSTER.to_owned(),
                None => format!("ls -l {file}"),
            }),
        });
        Vec::new()
    });
    problems.extend(unreadable);
    let mut problem = |key: &str, line: usize, message: String| {
        let origin = Some(Origin::File(file.into(), line));
        problems.push(Problem { key: key.to_owned(), message, origin, fix: None });
    };
    let mut given = Vec::new();
    for line in envfile::parse(&bytes) {
        match line {
            EnvLine::Bad { line } => problem("", line, format!("{file} line {line}: not KEY=VALUE")),
            EnvLine::Set { key, value, line } if keys::by_name(&key).is_some() => {
                given.push(Given { key, value, origin: Origin::File(file.into(), line) });
            }
            EnvLine::Set { key, line, .. } => {
                let hint = keys::nearest(&key).map_or_else(
                    || "; phoenix-nvidia.env(5) lists all".to_owned(),
                    |k| format!(": did you mean {}?", k.name),
                );
                problem(&key, line, format!("unknown setting {key} ({file} line {line}){hint}"));
            }
        }
    }
    given.reverse();
    given
}

#[cfg(test)]
#[path = "settings/tests.rs"]
mod tests;
