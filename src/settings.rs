//! The settings, and where each came from.
//!
//! Nearer wins: the container's conf, the cluster's file, the node's file.
//! The process environment comes first by hand and last in a hook phase,
//! where it is only what leaked from the shell that ran `pct start`.

pub mod envfile;
pub mod keys;
pub mod kinds;
pub mod load;
pub mod secrets;

use crate::exit::{Code, Fault};
use crate::sys::text;
use crate::types::Ctid;
use keys::{Key, Spec};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The cluster's settings file.
pub const CLUSTER_FILE: &str = "etc/pve/phoenix-nvidia/default.env";
/// The node's settings file, the package's conffile.
pub const NODE_FILE: &str = "etc/default/phoenix-nvidia";
/// Set by a call by hand for the `pct` that it runs, to the CTID: the hook of
/// that start then knows that the environment is the orchestrator's.
pub const MARK: &str = "PHOENIX_NVIDIA_CTID";
/// So many lines that cannot be read are told one by one.
const MOST_PROBLEMS: usize = 10;
/// A settings file larger than this is not read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

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

/// Something that cannot be read or is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's name, or the unknown one.
    pub key: String,
    /// One sentence with the place.
    pub message: String,
    /// Where it stands; `None`: nowhere, it is missing.
    pub origin: Option<Origin>,
}

impl Problem {
    /// Whether it is that a required setting stands nowhere.
    pub fn is_missing(&self) -> bool {
        self.origin.is_none() && keys::by_name(&self.key).is_some()
    }

    /// What is to be done about it.
    pub fn remedy(&self, ctid: Option<Ctid>) -> String {
        let key = keys::by_name(&self.key);
        let name = key.map_or("...", |key| key.name);
        let example = key.map(|key| key.example).filter(|text| !text.is_empty()).unwrap_or("...");
        match &self.origin {
            Some(Origin::File(path, line)) => {
                let how = key.map_or_else(String::new, |_| format!(" (like {name}={example})"));
                format!(
                    "correct or remove {} line {line}{how}; phoenix-nvidia.env(5) lists all settings",
                    path.display()
                )
            }
            Some(_) => format!("correct {name} in the environment (like {name}={example}), or: unset {name}"),
            None if key.is_none() => {
                "correct or remove what is named; phoenix-nvidia.env(5) lists all settings".to_owned()
            }
            None => {
                let ctid = ctid.map_or("CTID".to_owned(), |ctid| ctid.to_string());
                format!(
                    "set {name} in the environment, as a line \"lxc.environment: {name}={example}\" in \
                     /etc/pve/lxc/{ctid}.conf, in /{CLUSTER_FILE} or in /{NODE_FILE}; see phoenix-nvidia.env(5)"
                )
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// All settings of one container, as text with origins; typed on request.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, Given>,
    /// Values of the process environment that win by hand over other ones
    /// that the files have: the next start will not know them.
    pub overridden: Vec<(Given, Given)>,
    /// Unknown keys and unreadable lines.
    pub problems: Vec<Problem>,
}

impl Settings {
    /// Joins the sources, the nearest first; in each the first line of a name
    /// counts. An empty value is none: the next place is asked.
    fn join(sources: Vec<Vec<Given>>) -> Settings {
        let mut settings = Settings::default();
        for source in sources {
            let mut seen = std::collections::BTreeSet::new();
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

    /// Reads the files below `root` and joins them with the conf's lines and
    /// the environment. An unreadable file is a problem, not an error: the
    /// cluster's can be out of reach while the container's settings suffice.
    pub fn load(
        root: &Path,
        call: Call,
        conf: Vec<Given>,
        environment: Vec<(String, String)>,
        ctid: Option<Ctid>,
    ) -> Settings {
        let mut problems = Vec::new();
        near_misses(&conf, &mut problems);
        let cluster = read_file(root, CLUSTER_FILE, &mut problems);
        let node = read_file(root, NODE_FILE, &mut problems);
        let ours = environment.iter().any(|(k, v)| k == MARK && ctid.is_some_and(|c| *v == c.to_string()));
        let environment: Vec<Given> = environment
            .into_iter()
            // An empty variable is what a shell leaves behind, not a value.
            .filter(|(key, value)| keys::by_name(key).is_some() && !value.is_empty())
            .map(|(key, value)| Given { key, value, origin: Origin::Environment })
            .collect();
        let mut settings = Settings::join(match call {
            Call::ByHand => vec![environment, conf, cluster, node],
            Call::Hook if ours => vec![environment, conf, cluster, node],
            Call::Hook => vec![conf, cluster, node, environment],
        });
        if call == Call::Hook {
            settings.overridden.clear();
        }
        settings.problems = few(problems);
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

    /// A setting as its type.
    ///
    /// # Errors
    /// [`Problem`]: it is required and missing, or cannot be read.
    pub fn get<T>(&self, key: &Key<T>) -> Result<T, Problem> {
        self.read(key, key.read)
    }

    /// The same for where a value is needed in any case: the default where
    /// what is set cannot be read, which [`Settings::all_problems`] tells.
    pub fn value<T: Default>(&self, key: &Key<T>) -> T {
        let default = || (key.read)(key.default.unwrap_or_default());
        // Every default can be read, which a test shows.
        self.get(key).or_else(|_| default()).unwrap_or_default()
    }

    /// All that cannot be read, and what is required and stands nowhere: each
    /// setting of the table is looked at.
    pub fn all_problems(&self) -> Vec<Problem> {
        let values = keys::ALL.iter().filter_map(|key| self.read(key, key.check).err());
        self.problems.iter().cloned().chain(values).collect()
    }

    fn read<T>(&self, key: &Spec, read: fn(&str) -> kinds::Read<T>) -> Result<T, Problem> {
        let problem = |message, origin| Problem { key: key.name.to_owned(), message, origin };
        let (value, origin) =
            self.text(key).ok_or_else(|| problem(format!("{} is not set", key.name), None))?;
        read(value).map_err(|why| {
            let shown = text::line(text::hidden(value).as_bytes());
            let why = text::without_secrets(&why);
            problem(format!("{}={shown} ({origin}): {why}", key.name), Some(origin))
        })
    }
}

/// A conf of a megabyte can have 28,000 of them: some, and how many more.
fn few(mut problems: Vec<Problem>) -> Vec<Problem> {
    if let Some(more) = problems.len().checked_sub(MOST_PROBLEMS).filter(|more| *more > 0) {
        problems.truncate(MOST_PROBLEMS);
        let message = format!("{more} more lines of the settings cannot be read");
        problems.push(Problem { key: String::new(), message, origin: None });
    }
    problems
}

/// The exit-2 fault for problems by hand, all of them, with what is to be done
/// about the first.
pub fn fault(problems: &[Problem], ctid: Ctid) -> anyhow::Error {
    let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let fault = Fault::new(Code::Input, message);
    match problems.first() {
        Some(first) => fault.remedy(first.remedy(Some(ctid))).into(),
        None => fault.into(),
    }
}

/// Names in a conf that were surely meant to be ours. Others are the
/// container's own business.
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
            });
        }
    }
}

/// A settings file; nothing if there is none.
fn read_file(root: &Path, relative: &str, problems: &mut Vec<Problem>) -> Vec<Given> {
    let shown = Path::new("/").join(relative);
    let mut problem = |key: &str, line: Option<usize>, message: String| {
        let origin = line.map(|line| Origin::File(shown.clone(), line));
        problems.push(Problem { key: key.to_owned(), message, origin });
    };
    let bytes = match read_bounded(&root.join(relative)) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Vec::new(),
        Err(error) => {
            problem("", None, format!("{} cannot be read: {error}", shown.display()));
            return Vec::new();
        }
    };
    let mut given = Vec::new();
    for entry in envfile::parse(&bytes) {
        match entry {
            envfile::Entry::Bad { line } => {
                problem("", Some(line), format!("{} line {line}: not KEY=VALUE", shown.display()))
            }
            envfile::Entry::Set { key, value, line } if keys::by_name(&key).is_some() => {
                given.push(Given { key, value, origin: Origin::File(shown.clone(), line) });
            }
            envfile::Entry::Set { key, line, .. } => {
                let hint = keys::nearest(&key).map_or_else(
                    || "; phoenix-nvidia.env(5) lists all".to_owned(),
                    |k| format!(": did you mean {}?", k.name),
                );
                problem(
                    &key,
                    Some(line),
                    format!("unknown setting {key} ({} line {line}){hint}", shown.display()),
                );
            }
        }
    }
    // A later line of the same file wins, as with systemd.
    given.reverse();
    given
}

fn read_bounded(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match crate::sys::file::read(path, MAX_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "settings/tests.rs"]
mod tests;
