//! A URL or path to fetch from. User name, password and query may be secret:
//! no output has them, except of the methods marked **secret**.

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The length limit, in bytes, far beyond that of any server.
const MAX: usize = 128 * 1024;

/// A URL (https, http, `file:///`) or an absolute path. `Display` and `Debug`
/// omit user name, password and query.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

/// A user name and password, decoded (`%40` is `@`).
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password; empty if none.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// Checks a URL or path, which may have placeholders.
///
/// # Errors
/// What is wrong, without the text itself.
pub fn check(text: &str) -> anyhow::Result<()> {
    if text.len() > MAX {
        bail!("longer than {MAX} characters");
    }
    if let Some(bad) = text.chars().find(|c| c.is_control() || c.is_whitespace() || !c.is_ascii()) {
        bail!("a URL cannot contain {bad:?}");
    }
    let rest = ["https://", "http://", "file:///"].iter().find_map(|s| text.strip_prefix(s));
    match rest.or(text.strip_prefix('/')) {
        None => bail!("neither a URL (https://, http://, file:///) nor an absolute path"),
        Some("") => bail!("names no host or file"),
        Some(_) => Ok(()),
    }
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        check(text)?;
        let url = Url(text.to_owned());
        if let Some(parts) = url.parts() {
            parts.server().context("names no host that a URL can have")?;
            // Programs read these differently.
            if text.contains(['\\', '"', '<', '>']) {
                bail!("a URL cannot contain a backslash, a quote or angle brackets");
            }
        }
        Ok(url)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not with without_secrets(), which ends a URL at a quote: a password may
        // have one.
        let Some(parts) = self.parts() else { return f.pad(&self.0) };
        let user = if parts.user.is_some() { "…@" } else { "" };
        let behind = &parts.rest[parts.path().len()..];
        let (sign, hidden) = behind.split_at(behind.len().min(1));
        let hidden = if hidden.is_empty() { "" } else { "…" };
        f.pad(&format!("{}://{user}{}{}{sign}{hidden}", parts.scheme, parts.place, parts.path()))
    }
}

/// A text that may have placeholders, displayed like a URL.
pub fn shown(text: &str) -> String {
    Url(text.to_owned()).to_string()
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

/// The pieces of an http or https URL.
struct Parts<'a> {
    scheme: &'a str,
    /// The part before the last `@` of the authority.
    user: Option<&'a str>,
    /// Host and port.
    place: &'a str,
    /// Path, query and fragment.
    rest: &'a str,
}

impl<'a> Parts<'a> {
    /// Host and port, if they are valid and unambiguous.
    fn server(&self) -> Option<(String, Option<u16>)> {
        let (host, port) = match self.place.rsplit_once(':') {
            Some((host, port)) if !self.place.ends_with(']') => (host, Some(port)),
            _ => (self.place, None),
        };
        let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok())?;
        let port = match port {
            Some(port) => Some(digits(port)?),
            None => None,
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(name),
        };
        good.then(|| (host.to_ascii_lowercase(), port))
    }

    /// Path and query, without the fragment.
    fn requested(&self) -> &'a str {
        self.rest.split('#').next().unwrap_or_default()
    }

    fn path(&self) -> &'a str {
        self.rest.split(['?', '#']).next().unwrap_or_default()
    }
}

impl Url {
    fn parts(&self) -> Option<Parts<'_>> {
        let (scheme, all) = self.0.split_once("://").filter(|(s, _)| matches!(*s, "https" | "http"))?;
        let (authority, rest) = all.split_at(all.find(['/', '?', '#']).unwrap_or(all.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        Some(Parts { scheme, user, place, rest })
    }

    /// A file of this host, whose path may have any characters.
    pub fn of_file(path: &str) -> Url {
        Url(path.to_owned())
    }

    /// The local file that it names.
    pub fn local(&self) -> Option<PathBuf> {
        let text = self.0.as_str();
        text.strip_prefix("file://").or(text.starts_with('/').then_some(text)).map(PathBuf::from)
    }

    /// Whether it is https.
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// Whether its server is this machine.
    pub fn is_loopback(&self) -> bool {
        let Some((host, _)) = self.parts().and_then(|parts| parts.server()) else { return false };
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether nobody can tamper with the transfer: https, a local file, or a
    /// server on this machine.
    pub fn has_trusted_transport(&self) -> bool {
        self.is_https() || self.local().is_some() || self.is_loopback()
    }

    /// Its user name and password. **Secret**: only for the server itself, or for
    /// a file that only root can read.
    pub fn login(&self) -> Option<Login> {
        let (user, password) = self.parts()?.user.map(|u| u.split_once(':').unwrap_or((u, "")))?;
        Some(Login { user: decode(user), password: decode(password) })
    }

    /// The URL of a request: without user name and fragment. **May be secret**:
    /// it has the query.
    pub fn request(&self) -> String {
        match self.parts() {
            Some(parts) => format!("{}://{}{}", parts.scheme, parts.place, parts.requested()),
            None => self.0.clone(),
        }
    }

    /// Passes the whole text on, with login and query. **Secret**: only to code
    /// that connects.
    pub fn with_login<T>(&self, use_it: impl FnOnce(&str) -> T) -> T {
        use_it(&self.0)
    }

    /// Whether it has a secret.
    pub fn has_secret(&self) -> bool {
        self.parts().is_some_and(|parts| parts.user.is_some()) || self.has_query()
    }

    /// Whether it has a query (`?token=…`).
    pub fn has_query(&self) -> bool {
        self.parts().is_some_and(|parts| parts.requested().contains('?'))
    }

    /// The same without user name, query and fragment.
    #[must_use]
    pub fn bare(&self) -> Url {
        match self.parts() {
            Some(parts) => Url(format!("{}://{}{}", parts.scheme, parts.place, parts.path())),
            None => self.clone(),
        }
    }

    /// Host, port and path, as in apt's auth file.
    pub fn machine(&self) -> Option<String> {
        self.parts().map(|parts| format!("{}{}", parts.place, parts.path()))
    }

    /// A hash of it.
    pub fn identity(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes()))
    }

    /// Whether both have the same server, so that a password is for both.
    pub fn same_server(&self, other: &Url) -> bool {
        let server = |url: &Url| {
            let parts = url.parts()?;
            let (host, port) = parts.server()?;
            let usual = if parts.scheme == "https" { 443 } else { 80 };
            Some((parts.scheme.to_owned(), host, port.unwrap_or(usual)))
        };
        server(self).is_some_and(|one| server(other) == Some(one))
    }

    /// The same with another path.
    pub fn map_path(&self, change: impl FnOnce(&str) -> Option<String>) -> Option<Url> {
        let Some(parts) = self.parts() else { return change(&self.0).map(Url) };
        let head = &self.0[..self.0.len() - parts.rest.len()];
        let path = parts.path();
        Some(Url(format!("{head}{}{}", change(path)?, &parts.rest[path.len()..])))
    }

    /// With `suffix` at the end of its path.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Url {
        self.map_path(|path| Some(format!("{path}{suffix}"))).unwrap_or_else(|| self.clone())
    }

    /// As a directory: its path ends in one slash.
    #[must_use]
    pub fn directory(&self) -> Url {
        self.map_path(|path| Some(format!("{}/", path.trim_end_matches('/')))).unwrap_or_else(|| self.clone())
    }

    /// Whether its path ends in a slash.
    pub fn is_directory(&self) -> bool {
        self.parts().map_or(self.0.as_str(), |parts| parts.path()).ends_with('/')
    }

    /// The target of a `Location` (RFC 9110, section 10.2.2). Ignores a login in
    /// it.
    ///
    /// # Errors
    /// It is not an http or https URL.
    pub fn follow(&self, location: &str) -> anyhow::Result<Url> {
        let parts = self.parts().context("not a URL")?;
        let root = format!("{}://{}", parts.scheme, parts.place);
        let before = location.split(['/', '?', '#']).next().unwrap_or_default();
        let text = match location {
            _ if before.ends_with(':') => {
                let scheme = before.to_ascii_lowercase();
                format!("{scheme}{}", &location[before.len()..])
            }
            _ if location.starts_with("//") => format!("{}:{location}", parts.scheme),
            _ if location.starts_with('/') => format!("{root}{location}"),
            _ if location.starts_with('?') => format!("{root}{}{location}", parts.path()),
            _ => {
                let path = parts.path();
                format!("{root}{}{location}", path.rfind('/').map_or("/", |end| &path[..=end]))
            }
        };
        let url: Url = text.parse()?;
        let parts = url.parts().context("neither http nor https")?;
        Ok(Url(format!("{}://{}{}", parts.scheme, parts.place, parts.rest)))
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Decodes `%40` to `@`; leaves invalid codes.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|d| *first == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
