//! NVIDIA's apt repository: its layout and its signing key, fetched from the
//! host, since a container often has no program to fetch them with.

use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::driver::packages;
use crate::driver::template::Facts;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::armour;
use crate::sys::fetch::{self, Client, FetchError, Transport};
use crate::sys::file;
use crate::sys::replace::replace_own;
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::sys::url::{Login, Url};
use anyhow::Context as _;
use std::time::Duration;

/// Our files in the container.
pub const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
/// The key, where it is not NVIDIA's.
pub const KEY: &str = "/usr/share/keyrings/phoenix-nvidia.gpg";
/// Where NVIDIA's own package cuda-keyring has NVIDIA's keys: a source of its
/// repository with another `Signed-By` would make all of apt unreadable.
const NVIDIAS_KEYRING: &str = "/usr/share/keyrings/cuda-archive-keyring.gpg";
/// Name and password for the repository, for root alone: apt_auth.conf(5).
pub const AUTH: &str = "/etc/apt/auth.conf.d/phoenix-nvidia.conf";
/// Our preferences file.
pub const PREFERENCES: &str = "/etc/apt/preferences.d/phoenix-nvidia";
/// NVIDIA's signing keys. Debian 13's apt rejects the first, which is older.
const KEYS: [&str; 2] = ["3bf863cc.pub", "8793F200.pub"];
/// The size limit of a key, in bytes.
const KEY_LIMIT: usize = 64 * 1024;
/// The size limit of an index, in bytes; Debian's largest has 250 kB.
const INDEX_LIMIT: usize = 1 << 20;

/// The distribution of a container.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// Its name for messages.
    pub name: String,
    /// Its name in NVIDIA's repositories (debian12), if it has one.
    pub id: Option<String>,
    /// Its codename, empty if unknown.
    pub codename: String,
}

/// A repository whose index and key were found.
#[derive(Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its URL, with a slash at the end and without a login.
    pub uri: Url,
    /// The text of apt's auth file, if the URL has a login.
    pub auth: Option<String>,
    /// Its layout.
    pub layout: Layout,
    /// Its key, armoured.
    pub key: String,
    /// The key is published under the name of NVIDIA's.
    pub nvidias: bool,
}

/// The layout of a repository.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout {
    /// NVIDIA's: index and packages in one directory.
    Flat,
    /// A distribution's: `dists/SUITE/`.
    Dists {
        /// The suite, which is the container's codename.
        suite: String,
        /// Its components.
        components: String,
    },
}

impl Repository {
    /// Finds its index and its key, from the host.
    ///
    /// # Errors
    /// [`Code::Software`], with the URL that failed.
    pub fn find(cache: &Cache, desired: &Desired, os: &Distribution) -> anyhow::Result<Repository> {
        let facts = Facts::repository(&desired.driver, os.id.as_deref());
        let fault = || {
            Fault::new(Code::Software, format!("repository: cannot use NVIDIA_REPO_URL for {}", os.name))
                .remedy("correct NVIDIA_REPO_URL or set CUDA_PACKAGES=none")
        };
        let url = desired.repo_url.fill(&facts).fault(fault)?;
        let (uri, auth) = for_apt(&url).fault(fault)?;
        let asked = url.directory();
        let deadline = Deadline::after(desired.limits.network.max(Duration::from_secs(1)));
        let server = Server { client: cache.client(&desired.limits, &deadline), deadline };
        let layout = server.layout(&asked, os).fault(fault)?;
        let keys: Vec<Url> = match &desired.repo_key_url {
            Some(template) => {
                let url = template.fill(&facts).fault(fault)?;
                if url.is_directory() { keys_in(&url, os) } else { vec![url] }
            }
            None => keys_in(&asked, os),
        };
        let (key, nvidias) = server.key(cache, &keys).fault(|| {
            Fault::new(Code::Software, format!("repository: cannot download signing key of {uri}"))
                .remedy("set NVIDIA_REPO_KEY_URL to an https URL or a file on this host")
        })?;
        Ok(Repository { uri, auth, layout, key, nvidias })
    }

    fn keyring(&self) -> &'static str {
        if self.nvidias { NVIDIAS_KEYRING } else { KEY }
    }

    /// The source, in apt's deb822 format.
    pub fn source(&self) -> String {
        let place = match &self.layout {
            Layout::Flat => "Suites: /".to_owned(),
            Layout::Dists { suite, components } => format!("Suites: {suite}\nComponents: {components}"),
        };
        format!(
            "# Written by phoenix-nvidia; changes are overwritten.\nTypes: deb\nURIs: {}\n{place}\nSigned-By: {}\n",
            self.uri,
            self.keyring()
        )
    }

    /// The files for the container, in the order of writing: path, mode and
    /// text, of a key in base64; an empty text removes the file. **Secret**: may hold
    /// a password.
    pub fn files(&self) -> [(&'static str, u32, String); 4] {
        [
            (PREFERENCES, 0o644, packages::preferences()),
            (self.keyring(), 0o644, armour::base64(&self.key)),
            (AUTH, 0o600, self.auth.clone().unwrap_or_default()),
            (SOURCE, 0o644, self.source()),
        ]
    }
}

/// A repository's URL for apt: the URL for the source, which everybody in the
/// container can read, and the text of the auth file.
///
/// # Errors
/// A URL that apt does not support.
pub fn for_apt(url: &Url) -> anyhow::Result<(Url, Option<String>)> {
    let uri = url.bare().directory();
    let Some(machine) = uri.machine() else {
        anyhow::bail!("{url}: apt needs an http or https URL");
    };
    if url.has_query() {
        anyhow::bail!("{url}: apt supports no query (?...); use a user name and a password");
    }
    let Some(Login { user, password }) = url.login() else { return Ok((uri, None)) };
    // Words separated by blanks; the format has no quoting.
    let word = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if !word(&user) || !word(&password) {
        anyhow::bail!("{url}: user name or password is empty or has a blank, which apt does not support");
    }
    let mut auth = format!("machine {machine} login {user} password {password}\n");
    // From apt 2.1.9 an entry without a scheme applies to https only; before
    // that, a scheme was not supported. For http write both.
    if !url.is_https() {
        auth.insert_str(0, &format!("machine http://{machine} login {user} password {password}\n"));
    }
    Ok((uri, Some(auth)))
}

/// The keys in a repository's directory, the likelier first.
fn keys_in(directory: &Url, os: &Distribution) -> Vec<Url> {
    let debian = os.id.as_ref().and_then(|id| id.strip_prefix("debian")?.parse::<u32>().ok());
    let newer = debian.is_some_and(|version| version >= 13);
    let names = if newer { [KEYS[1], KEYS[0]] } else { KEYS };
    names.iter().map(|name| directory.with_suffix(name)).collect()
}

/// Whether a key has the file name of one of NVIDIA's.
fn is_nvidias(url: &Url) -> bool {
    let path = url.bare().request();
    KEYS.iter().any(|name| path.strip_suffix(name).is_some_and(|rest| rest.ends_with('/')))
}

/// The server of a repository: requests are retried while the network comes up.
struct Server {
    client: Client,
    deadline: Deadline,
}

impl Server {
    fn get(&self, url: &Url, transport: Transport, most: usize) -> Result<Vec<u8>, FetchError> {
        loop {
            let limit =
                self.deadline.at_most(Duration::from_secs(60)).remaining().max(Duration::from_secs(5));
            match fetch::small(&self.client, url, transport, most, &Deadline::after(limit)) {
                Err(FetchError::Unreachable(url, why)) if !self.deadline.passed() => {
                    log::debug!("repository: {url}: {why}; retrying");
                    signal::sleep(Duration::from_secs(1)).map_err(FetchError::Interrupted)?;
                }
                other => return other,
            }
        }
    }

    /// The index, `None` if there is none. apt verifies its signature.
    fn index(&self, url: &Url) -> anyhow::Result<Option<String>> {
        match self.get(url, Transport::Any, INDEX_LIMIT) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                // A login page answers every request.
                Ok(text.lines().any(|l| l.starts_with("SHA256:") || l.starts_with("Date:")).then_some(text))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The layout, from the place of its index.
    fn layout(&self, uri: &Url, os: &Distribution) -> anyhow::Result<Layout> {
        for name in ["InRelease", "Release"] {
            if self.index(&uri.with_suffix(name))?.is_some() {
                return Ok(Layout::Flat);
            }
        }
        let suite = &os.codename;
        if !suite.is_empty() {
            for name in ["InRelease", "Release"] {
                if let Some(text) = self.index(&uri.with_suffix(&format!("dists/{suite}/{name}")))? {
                    return Ok(Layout::Dists { suite: suite.clone(), components: components(&text) });
                }
            }
        }
        anyhow::bail!("no index at {uri} (no InRelease, no Release, no dists/{suite}/)")
    }

    fn key(&self, cache: &Cache, urls: &[Url]) -> anyhow::Result<(String, bool)> {
        let mut missing = String::new();
        for url in urls {
            if !url.has_trusted_transport() {
                anyhow::bail!("{url}: a key downloaded over http is not trusted");
            }
            match self.get(url, Transport::Trusted, KEY_LIMIT) {
                Ok(bytes) => {
                    let key = armour::public_key(&bytes).with_context(|| url.to_string())?;
                    keep(cache, url, &key);
                    return Ok((key, is_nvidias(url)));
                }
                Err(FetchError::Interrupted(signal)) => return Err(signal.into()),
                Err(error) if error.is_missing() => missing = error.to_string(),
                Err(error) => match kept(cache, url) {
                    Some(key) => {
                        log::warn!("repository: {error}; using the key downloaded earlier");
                        return Ok((key, is_nvidias(url)));
                    }
                    None => return Err(error.into()),
                },
            }
        }
        anyhow::bail!("not found: {missing}")
    }
}

/// `Components:` of a Release file; main if it has none.
fn components(release: &str) -> String {
    let line = release.lines().find_map(|l| l.strip_prefix("Components:")).unwrap_or_default();
    let word =
        |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    let words: Vec<&str> = line.split_whitespace().filter(word).take(8).collect();
    if words.is_empty() { "main".to_owned() } else { words.join(" ") }
}

fn key_file(cache: &Cache, url: &Url) -> std::path::PathBuf {
    cache.directory().join(format!("key-{}.asc", &url.identity()[..16]))
}

fn keep(cache: &Cache, url: &Url, key: &str) {
    let path = key_file(cache, url);
    let done =
        std::fs::create_dir_all(cache.directory()).and_then(|()| replace_own(&path, key.as_bytes(), 0o644));
    if let Err(error) = done {
        log::debug!("{}: {error}", path.display());
    }
}

fn kept(cache: &Cache, url: &Url) -> Option<String> {
    file::text(&key_file(cache, url), 2 * KEY_LIMIT as u64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(version: &str) -> Distribution {
        Distribution { id: Some(format!("debian{version}")), ..Distribution::default() }
    }

    #[test]
    fn a_flat_source_is_right_to_the_last_slash() {
        let (uri, auth) = for_apt(&"https://h/debian12/x86_64".parse().unwrap()).unwrap();
        let mut repository =
            Repository { uri, auth, layout: Layout::Flat, key: String::new(), nvidias: false };
        assert_eq!(
            repository.source(),
            "# Written by phoenix-nvidia; changes are overwritten.\nTypes: deb\nURIs: https://h/debian12/x86_64/\n\
             Suites: /\nSigned-By: /usr/share/keyrings/phoenix-nvidia.gpg\n"
        );
        // The very path of cuda-keyring's own source.
        repository.nvidias = true;
        assert!(repository.source().ends_with("Signed-By: /usr/share/keyrings/cuda-archive-keyring.gpg\n"));
        repository.layout = Layout::Dists { suite: "bookworm".into(), components: "main".into() };
        assert!(repository.source().contains("Suites: bookworm\nComponents: main\n"));
    }

    #[test]
    fn a_password_goes_into_the_auth_file_and_nowhere_else() {
        let of = |url: &str| for_apt(&url.parse().unwrap());
        let (uri, auth) = of("https://me:ge%68eim@h:8443/cuda").unwrap();
        assert_eq!(uri.request(), "https://h:8443/cuda/");
        assert_eq!(auth.clone().unwrap(), "machine h:8443/cuda/ login me password geheim\n");
        let repository = Repository { uri, auth, layout: Layout::Flat, key: String::new(), nvidias: true };
        for (path, mode, text) in repository.files() {
            assert_eq!(text.contains("geheim"), path == AUTH, "{path}");
            assert_eq!(mode, if path == AUTH { 0o600 } else { 0o644 }, "{path}");
        }
        let (_, auth) = of("http://me:geheim@h/").unwrap();
        assert_eq!(
            auth.unwrap(),
            "machine http://h/ login me password geheim\nmachine h/ login me password geheim\n"
        );
        assert_eq!(of("https://h/x").unwrap().1, None);
        for bad in [
            "https://h/x?token=geheim",
            "https://me:ge%20heim@h/",
            "https://me:ge%0aheim@h/",
            "https://:geheim@h/",
            "/srv/x",
        ] {
            let error = of(bad).unwrap_err();
            assert!(!format!("{error:#}").contains("eim"), "{error:#}");
        }
    }

    #[test]
    fn debian_13_has_a_key_of_its_own() {
        let first = |version| keys_in(&"https://h/?t=1".parse().unwrap(), &debian(version))[0].request();
        assert_eq!(first("12"), "https://h/3bf863cc.pub?t=1");
        assert_eq!(first("13"), "https://h/8793F200.pub?t=1");
    }

    #[test]
    fn nvidias_key_is_known_by_its_file_name() {
        for (url, nvidias) in [
            ("https://h/debian12/x86_64/3bf863cc.pub", true),
            ("https://me:x@h/8793F200.pub?token=1", true),
            ("https://h/my-3bf863cc.pub", false),
            ("https://h/3bf863cc.pub/", false),
            ("/srv/keys/3bf863cc.pub", true),
            ("/srv/mirror.asc", false),
        ] {
            assert_eq!(is_nvidias(&url.parse().unwrap()), nvidias, "{url}");
        }
    }

    #[test]
    fn components_are_words_only() {
        assert_eq!(components("Origin: x\nComponents: main contrib\n"), "main contrib");
        assert_eq!(components("Components: $(id) main\n"), "main");
        assert_eq!(components(""), "main");
    }
}
