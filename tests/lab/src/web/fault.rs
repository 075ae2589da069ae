//! What goes wrong on demand: rules in a file that the server reads anew at every request.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// One way in which a server fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status and a short page.
    Status(u16),
    /// Takes the request and never answers.
    Silent,
    /// Sends a right head and this many bytes of the body, then nothing more, with the connection open.
    Stall(u64),
    /// Sends a right head and this many bytes of the body, then closes the connection.
    Cut(u64),
    /// Closes the connection without a word.
    Hangup,
    /// Sends other bytes than the document's, of the right length.
    Garbage,
    /// Answers 200 with a login page of HTML, as the network of a hotel does.
    LoginPage,
    /// Ignores ranges and sends the whole document, 200.
    NoRange,
    /// Sends no Content-Length; the end is where the connection ends.
    NoLength,
    /// Sends this many bytes a second.
    Slow(u64),
    /// Sends the client to another URL.
    Redirect(String),
    /// Says that the body has this many bytes, and sends the document.
    Length(u64),
    /// Sends no Content-Length, and zeros behind the document until the client goes.
    Endless,
    /// Answers a request for a range with one that begins so many bytes later.
    OtherRange(u64),
    /// Answers 416, naming this as the document's length.
    NotThere(u64),
    /// Answers 401 to who doesn't send this `user:password`.
    Login(String),
    /// Answers 403 to who doesn't send this query.
    Query(String),
}

impl Fault {
    fn write(&self) -> String {
        match self {
            Self::Status(code) => format!("status {code}"),
            Self::Silent => "silent".to_owned(),
            Self::Stall(bytes) => format!("stall {bytes}"),
            Self::Cut(bytes) => format!("cut {bytes}"),
            Self::Hangup => "hangup".to_owned(),
            Self::Garbage => "garbage".to_owned(),
            Self::LoginPage => "login-page".to_owned(),
            Self::NoRange => "no-range".to_owned(),
            Self::NoLength => "no-length".to_owned(),
            Self::Slow(rate) => format!("slow {rate}"),
            Self::Redirect(url) => format!("redirect {url}"),
            Self::Length(bytes) => format!("length {bytes}"),
            Self::Endless => "endless".to_owned(),
            Self::OtherRange(bytes) => format!("other-range {bytes}"),
            Self::NotThere(bytes) => format!("not-there {bytes}"),
            Self::Login(login) => format!("login {login}"),
            Self::Query(query) => format!("query {query}"),
        }
    }

    fn read(text: &str) -> Result<Self> {
        let (name, argument) = text.split_once(' ').unwrap_or((text, ""));
        let number = || argument.parse::<u64>().with_context(|| format!("fault {text:?}"));
        Ok(match name {
            "status" => Self::Status(argument.parse().with_context(|| format!("fault {text:?}"))?),
            "silent" => Self::Silent,
            "stall" => Self::Stall(number()?),
            "cut" => Self::Cut(number()?),
            "hangup" => Self::Hangup,
            "garbage" => Self::Garbage,
            "login-page" => Self::LoginPage,
            "no-range" => Self::NoRange,
            "no-length" => Self::NoLength,
            "slow" => Self::Slow(number()?.max(1)),
            "redirect" => Self::Redirect(argument.to_owned()),
            "length" => Self::Length(number()?),
            "endless" => Self::Endless,
            "other-range" => Self::OtherRange(number()?),
            "not-there" => Self::NotThere(number()?),
            "login" => Self::Login(argument.to_owned()),
            "query" => Self::Query(argument.to_owned()),
            _ => bail!("unknown fault {text:?}"),
        })
    }
}

/// A fault, the paths it holds for, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Tells two rules of the same words apart, so that the server counts each by itself.
    pub(crate) id: String,
    pattern: String,
    /// How many requests fail; nothing: all.
    pub(crate) times: Option<u64>,
    pub(crate) fault: Fault,
}

impl Rule {
    /// Whether the rule holds for a URL path: `*` in its pattern stands for any characters.
    pub(crate) fn matches(&self, path: &str) -> bool {
        glob(&self.pattern, path)
    }

    fn write(&self) -> String {
        let times = self.times.map_or("-".to_owned(), |times| times.to_string());
        format!("{}\t{}\t{times}\t{}\n", self.id, self.pattern, self.fault.write())
    }

    fn read(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let [id, pattern, times, fault] = fields[..] else {
            bail!("fault rule {line:?} hasn't four fields");
        };
        let times = match times {
            "-" => None,
            number => Some(number.parse().with_context(|| format!("fault rule {line:?}"))?),
        };
        let (id, pattern) = (id.to_owned(), pattern.to_owned());
        Ok(Self { id, pattern, times, fault: Fault::read(fault)? })
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            let Some(rest) = text.strip_prefix(head) else {
                return false;
            };
            (0..=rest.len()).filter(|&at| rest.is_char_boundary(at)).any(|at| glob(tail, &rest[at..]))
        }
    }
}

/// The rules of a site. The first that matches and isn't used up holds.
#[derive(Debug, Clone)]
pub struct Faults {
    file: PathBuf,
}

impl Faults {
    pub(crate) fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// From now on every request for a path of this pattern (`*`: any characters) fails so.
    pub fn set(&self, pattern: &str, fault: Fault) -> Result<()> {
        self.add(pattern, None, fault)
    }

    /// The next `times` requests for a path of this pattern fail so.
    pub fn times(&self, pattern: &str, times: u64, fault: Fault) -> Result<()> {
        self.add(pattern, Some(times), fault)
    }

    /// The server is well again.
    pub fn clear(&self) -> Result<()> {
        self.replace("")
    }

    /// The rules as they stand; a missing file holds none.
    pub(crate) fn rules(&self) -> Result<Vec<Rule>> {
        self.text()?.lines().map(Rule::read).collect()
    }

    fn add(&self, pattern: &str, times: Option<u64>, fault: Fault) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let rule = Rule { id, pattern: pattern.to_owned(), times, fault };
        let text = self.text()? + &rule.write();
        self.replace(&text)
    }

    fn text(&self) -> Result<String> {
        match fs::read_to_string(&self.file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.with_context(|| format!("reading {}", self.file.display())),
        }
    }

    /// By rename, so that the server never reads half a rule.
    fn replace(&self, text: &str) -> Result<()> {
        let fresh = sibling(&self.file);
        fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &self.file).with_context(|| format!("replacing {}", self.file.display()))
    }
}

fn sibling(file: &Path) -> PathBuf {
    file.with_extension(format!("{}.new", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_survives_the_file() -> Result<()> {
        let all = [
            Fault::Status(503),
            Fault::Silent,
            Fault::Stall(0),
            Fault::Cut(1_048_576),
            Fault::Hangup,
            Fault::Garbage,
            Fault::LoginPage,
            Fault::NoRange,
            Fault::NoLength,
            Fault::Slow(1_000),
            Fault::Redirect("http://192.0.2.1/other path".to_owned()),
            Fault::Length(u64::MAX),
            Fault::Endless,
            Fault::OtherRange(1),
            Fault::NotThere(7),
            Fault::Login("me:pass word".to_owned()),
            Fault::Query("token=a".to_owned()),
        ];
        let dir = tempfile::tempdir()?;
        let faults = Faults::at(dir.path().join("faults"));
        for fault in &all {
            faults.times("/a/*.run", 2, fault.clone())?;
        }
        let read: Vec<Fault> = faults.rules()?.into_iter().map(|rule| rule.fault).collect();
        assert_eq!(read, all);
        faults.clear()?;
        assert_eq!(faults.rules()?, []);
        Ok(())
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(glob("*", "/anything"));
        assert!(glob("/a/*.run", "/a/b/c.run"));
        assert!(glob("/a", "/a"));
        assert!(glob("*Release*", "/debian12/InRelease"));
        assert!(!glob("/a/*.run", "/a/c.run.sha256sum"));
        assert!(!glob("/a", "/a/b"));
    }
}
