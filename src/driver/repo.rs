//! NVIDIA's apt repository, as the host sees it: where its index is, and its
//! key. Containers often lack the means to fetch either.

use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::driver::packages;
use crate::driver::template::Facts;
use crate::exit::{Code, Context as _, Fault};
use crate::guest::os::Os;
use crate::guest::os::repo_arch;
use crate::sys::armour;
use crate::sys::fetch::{self, Client, FetchError, Way};
use crate::sys::file;
use crate::sys::replace::replace_own;
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::sys::url::{Login, Url};
use anyhow::Context as _;
use std::time::Duration;

/// Our files in the container.
pub const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
const KEY: &str = "/usr/share/keyrings/phoenix-nvidia.asc";
/// Name and password for the repository, for root alone: apt_auth.conf(5).
pub const AUTH: &str = "/etc/apt/auth.conf.d/phoenix-nvidia.conf";
const PREFERENCES: &str = "/etc/apt/preferences.d/phoenix-nvidia";
/// NVIDIA's keys: the newer one first used with Debian 13, whose apt rejects
/// the older.
const KEYS: [&str; 2] = ["3bf863cc.pub", "8793F200.pub"];
/// A key is smaller than this, in bytes.
const KEY_LIMIT: usize = 64 * 1024;
/// An index (Debian's largest has 250 kB) is smaller than this, in bytes.
const INDEX_LIMIT: usize = 1 << 20;

/// A repository that answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its address, with a slash at the end and without a login.
    pub uri: Url,
    /// What apt's auth file is to say, where it wants a login.
    pub auth: Option<String>,
    /// How it is laid out.
    pub layout: Layout,
    /// Its key, armoured.
    pub key: String,
}

/// The two kinds of repository.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout {
    /// NVIDIA's: the index lies beside the packages.
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
    /// Looks for it, from the host.
    ///
    /// # Errors
    /// [`Code::Software`], naming what did not answer.
    pub fn find(cache: &Cache, desired: &Desired, os: &Os) -> anyhow::Result<Repository> {
        let distro = os.distro();
        let facts = Facts { version: &desired.driver, arch: repo_arch(), distro: distro.as_deref() };
        let fault = || {
            Fault::new(Code::Software, format!("repository: not usable for {}", os.shown()))
                .remedy("check NVIDIA_REPO_URL; CUDA_PACKAGES=none does without a repository")
        };
        let url = desired.repo_url.fill(&facts).fault(fault)?;
        let (uri, auth) = for_apt(&url).fault(fault)?;
        let asked = url.directory();
        let patient = Patient {
            client: cache.client(&desired.limits),
            deadline: Deadline::after(desired.limits.network.max(Duration::from_secs(1))),
        };
        let layout = patient.layout(&asked, os).fault(fault)?;
        let keys: Vec<Url> = match &desired.repo_key_url {
            Some(template) => {
                let url = template.fill(&facts).fault(fault)?;
                if url.is_directory() { beside(&url, os) } else { vec![url] }
            }
            None => beside(&asked, os),
        };
        let key = patient.key(cache, &keys).fault(|| {
            Fault::new(Code::Software, format!("repository: the key of {uri} cannot be had"))
                .remedy("set NVIDIA_REPO_KEY_URL to an https URL, or to a file on this host")
        })?;
        Ok(Repository { uri, auth, layout, key })
    }

    /// The source in apt's newer form, correct to the last slash.
    pub fn source(&self) -> String {
        let place = match &self.layout {
            Layout::Flat => "Suites: /".to_owned(),
            Layout::Dists { suite, components } => format!("Suites: {suite}\nComponents: {components}"),
        };
        format!(
            "# Written by phoenix-nvidia; changes are overwritten.\nTypes: deb\nURIs: {}\n{place}\nSigned-By: {KEY}\n",
            self.uri
        )
    }

    /// The files for the container, in the order in which they are to be
    /// written: each a path, its mode and its text; an empty one is to go.
    /// **Secret**: a password may be in them.
    pub fn files(&self) -> [(&'static str, u32, String); 4] {
        [
            (PREFERENCES, 0o644, packages::preferences()),
            (KEY, 0o644, self.key.clone()),
            (AUTH, 0o600, self.auth.clone().unwrap_or_default()),
            (SOURCE, 0o644, self.source()),
        ]
    }
}

/// A repository's URL as apt takes it: what its source says, which everybody
/// in the container can read, and what its auth file says.
///
/// # Errors
/// A URL that apt cannot use.
pub fn for_apt(url: &Url) -> anyhow::Result<(Url, Option<String>)> {
    let uri = url.bare().directory();
    let Some(machine) = uri.machine() else {
        anyhow::bail!("{url}: apt in the container needs a URL of http or https");
    };
    if url.has_query() {
        anyhow::bail!(
            "{url}: apt cannot send a query (?...) to a repository; it can send a name and a password"
        );
    }
    let Some(Login { user, password }) = url.login() else { return Ok((uri, None)) };
    // Words between blanks, without any quoting.
    let word = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if !word(&user) || !word(&password) {
        anyhow::bail!("{url}: apt takes no name or password that is empty or has a blank in it");
    }
    let mut auth = format!("machine {machine} login {user} password {password}\n");
    // Since 2.1.9 an entry without a scheme is for https alone, and until then
    // none could have one: for http both.
    if !url.is_https() {
        auth.insert_str(0, &format!("machine http://{machine} login {user} password {password}\n"));
    }
    Ok((uri, Some(auth)))
}

/// The keys that may lie in a directory, the likelier first.
fn beside(directory: &Url, os: &Os) -> Vec<Url> {
    let newer =
        os.id == "debian" && os.version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0) >= 13;
    let names = if newer { [KEYS[1], KEYS[0]] } else { KEYS };
    names.iter().map(|name| directory.with_suffix(name)).collect()
}

/// Asks a server for small files, and again while the network comes up.
struct Patient {
    client: Client,
    deadline: Deadline,
}

impl Patient {
    fn get(&self, url: &Url, way: Way, most: usize) -> Result<Vec<u8>, FetchError> {
        loop {
            let limit =
                self.deadline.at_most(Duration::from_secs(60)).remaining().max(Duration::from_secs(5));
            match fetch::small(&self.client, url, way, most, &Deadline::after(limit)) {
                Err(FetchError::Unreachable(url, why)) if !self.deadline.passed() => {
                    log::debug!("repository: {url}: {why}; trying again");
                    signal::sleep(Duration::from_secs(1)).map_err(FetchError::Interrupted)?;
                }
                other => return other,
            }
        }
    }

    /// The index, or `None` where there is none. apt looks at its signature.
    fn index(&self, url: &Url) -> anyhow::Result<Option<String>> {
        match self.get(url, Way::Any, INDEX_LIMIT) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                // A login page answers to everything.
                Ok(text.lines().any(|l| l.starts_with("SHA256:") || l.starts_with("Date:")).then_some(text))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Which kind it is: the index that answers tells.
    fn layout(&self, uri: &Url, os: &Os) -> anyhow::Result<Layout> {
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
        anyhow::bail!("no index answers at {uri} (neither InRelease nor Release, nor dists/{suite}/)")
    }

    fn key(&self, cache: &Cache, urls: &[Url]) -> anyhow::Result<String> {
        let mut missing = String::new();
        for url in urls {
            if !url.is_trusted_way() {
                anyhow::bail!("{url}: a key that came over http could be anybody's");
            }
            match self.get(url, Way::Trusted, KEY_LIMIT) {
                Ok(bytes) => {
                    let key = armour::public_key(&bytes).with_context(|| url.to_string())?;
                    keep(cache, url, &key);
                    return Ok(key);
                }
                Err(FetchError::Interrupted(signal)) => return Err(signal.into()),
                Err(error) if error.is_missing() => missing = error.to_string(),
                Err(error) => match kept(cache, url) {
                    Some(key) => {
                        log::warn!("repository: {error}; using the key that was fetched before");
                        return Ok(key);
                    }
                    None => return Err(error.into()),
                },
            }
        }
        anyhow::bail!("it is not there: {missing}")
    }
}

/// `Components:` of a Release file; main where it names none that is a word.
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

    fn debian(version: &str) -> Os {
        Os { id: "debian".into(), version: version.into(), ..Os::default() }
    }

    #[test]
    fn a_flat_source_is_right_to_the_last_slash() {
        let (uri, auth) = for_apt(&"https://h/debian12/x86_64".parse().unwrap()).unwrap();
        let mut repository = Repository { uri, auth, layout: Layout::Flat, key: String::new() };
        assert_eq!(
            repository.source(),
            "# Written by phoenix-nvidia; changes are overwritten.\nTypes: deb\nURIs: https://h/debian12/x86_64/\n\
             Suites: /\nSigned-By: /usr/share/keyrings/phoenix-nvidia.asc\n"
        );
        repository.layout = Layout::Dists { suite: "bookworm".into(), components: "main".into() };
        assert!(repository.source().contains("Suites: bookworm\nComponents: main\n"));
    }

    #[test]
    fn a_password_goes_into_the_auth_file_and_nowhere_else() {
        let of = |url: &str| for_apt(&url.parse().unwrap());
        let (uri, auth) = of("https://me:ge%68eim@h:8443/cuda").unwrap();
        assert_eq!(uri.request(), "https://h:8443/cuda/");
        assert_eq!(auth.clone().unwrap(), "machine h:8443/cuda/ login me password geheim\n");
        let repository = Repository { uri, auth, layout: Layout::Flat, key: String::new() };
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
        let first = |version| beside(&"https://h/?t=1".parse().unwrap(), &debian(version))[0].request();
        assert_eq!(first("12"), "https://h/3bf863cc.pub?t=1");
        assert_eq!(first("13"), "https://h/8793F200.pub?t=1");
    }

    #[test]
    fn components_are_words_only() {
        assert_eq!(components("Origin: x\nComponents: main contrib\n"), "main contrib");
        assert_eq!(components("Components: $(id) main\n"), "main");
        assert_eq!(components(""), "main");
    }
}
