//! NVIDIA's apt repository, as the host sees it: where its index is, and its
//! key. Containers often lack the means to fetch either.

use super::apt::packages;
use super::cache::Cache;
use super::os::{Os, repo_arch};
use super::wishes::{Facts, Wishes};
use crate::exit::{Code, Context as _, Fault};
use crate::sys::armour;
use crate::sys::fetch::{self, Client, FetchError};
use crate::sys::file;
use crate::sys::replace::replace_own;
use crate::sys::signal;
use crate::sys::time::Deadline;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Our files in the container.
pub const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
const KEY: &str = "/usr/share/keyrings/phoenix-nvidia.asc";
const PREFERENCES: &str = "/etc/apt/preferences.d/phoenix-nvidia";
/// NVIDIA's keys: the newer one first used with Debian 13, whose apt rejects
/// the older.
const KEYS: [&str; 2] = ["3bf863cc.pub", "8793F200.pub"];
/// An index or a key is smaller than this, in bytes.
const SMALL: usize = 1 << 20;

/// A repository that answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its address, with a slash at the end.
    pub uri: String,
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
    pub fn find(cache: &Cache, wishes: &Wishes, os: &Os) -> anyhow::Result<Repository> {
        let distro = os.distro();
        let facts = Facts { version: &wishes.driver, arch: repo_arch(), distro: distro.as_deref() };
        let fault = || {
            Fault::new(Code::Software, format!("repository: not usable for {}", os.shown()))
                .remedy("check NVIDIA_REPO_URL; CUDA_PACKAGES=none does without a repository")
        };
        let url = wishes.repo_url.fill(&facts).fault(fault)?;
        if fetch::local(&url).is_some() {
            let why = anyhow::anyhow!("{url}: apt in the container needs a URL of http or https");
            return Err(why).fault(fault);
        }
        let uri = format!("{}/", url.trim_end_matches('/'));
        let patient = Patient {
            client: cache.client(&wishes.limits),
            deadline: Deadline::after(wishes.limits.network.max(Duration::from_secs(1))),
        };
        let layout = patient.layout(&uri, os).fault(fault)?;
        let keys: Vec<String> = match &wishes.repo_key_url {
            Some(template) => {
                let url = template.fill(&facts).fault(fault)?;
                if url.ends_with('/') { beside(&url, os) } else { vec![url] }
            }
            None => beside(&uri, os),
        };
        let key = patient.key(cache, &keys).fault(|| {
            Fault::new(Code::Software, format!("repository: the key of {uri} cannot be had"))
                .remedy("set NVIDIA_REPO_KEY_URL to an https URL, or to a file on this host")
        })?;
        Ok(Repository { uri, layout, key })
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

    /// The files for the container: each a path and its text.
    pub fn files(&self) -> [(&'static str, String); 3] {
        [(PREFERENCES, packages::preferences()), (KEY, self.key.clone()), (SOURCE, self.source())]
    }
}

/// The keys that may lie in a directory, the likelier first.
fn beside(directory: &str, os: &Os) -> Vec<String> {
    let newer =
        os.id == "debian" && os.version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0) >= 13;
    let names = if newer { [KEYS[1], KEYS[0]] } else { KEYS };
    names.iter().map(|name| format!("{directory}{name}")).collect()
}

/// Asks a server for small files, and again while the network comes up.
struct Patient {
    client: Client,
    deadline: Deadline,
}

impl Patient {
    fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        loop {
            let limit =
                self.deadline.at_most(Duration::from_secs(60)).remaining().max(Duration::from_secs(5));
            match fetch::small(&self.client, url, SMALL, &Deadline::after(limit)) {
                Err(FetchError::Unreachable(url, why)) if !self.deadline.passed() => {
                    log::debug!("repository: {url}: {why}; trying again");
                    signal::sleep(Duration::from_secs(1)).map_err(FetchError::Interrupted)?;
                }
                other => return other,
            }
        }
    }

    /// The index, or `None` where there is none.
    fn index(&self, url: &str) -> anyhow::Result<Option<String>> {
        match self.get(url) {
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
    fn layout(&self, uri: &str, os: &Os) -> anyhow::Result<Layout> {
        for name in ["InRelease", "Release"] {
            if self.index(&format!("{uri}{name}"))?.is_some() {
                return Ok(Layout::Flat);
            }
        }
        let suite = &os.codename;
        if !suite.is_empty() {
            for name in ["InRelease", "Release"] {
                if let Some(text) = self.index(&format!("{uri}dists/{suite}/{name}"))? {
                    return Ok(Layout::Dists { suite: suite.clone(), components: components(&text) });
                }
            }
        }
        anyhow::bail!("no index answers at {uri} (neither InRelease nor Release, nor dists/{suite}/)")
    }

    fn key(&self, cache: &Cache, urls: &[String]) -> anyhow::Result<String> {
        let mut missing = String::new();
        for url in urls {
            if !fetch::is_trusted_way(url) {
                anyhow::bail!("{url}: a key that came over http could be anybody's");
            }
            match self.get(url) {
                Ok(bytes) => {
                    let key = armour::public_key(&bytes).with_context(|| url.clone())?;
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

fn key_file(cache: &Cache, url: &str) -> std::path::PathBuf {
    let sum = Sha256::digest(url.as_bytes());
    let name: String = sum[..8].iter().map(|b| format!("{b:02x}")).collect();
    cache.directory().join(format!("key-{name}.asc"))
}

fn keep(cache: &Cache, url: &str, key: &str) {
    let path = key_file(cache, url);
    let done =
        std::fs::create_dir_all(cache.directory()).and_then(|()| replace_own(&path, key.as_bytes(), 0o644));
    if let Err(error) = done {
        log::debug!("{}: {error}", path.display());
    }
}

fn kept(cache: &Cache, url: &str) -> Option<String> {
    file::text(&key_file(cache, url), SMALL as u64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(version: &str) -> Os {
        Os { id: "debian".into(), version: version.into(), ..Os::default() }
    }

    #[test]
    fn a_flat_source_is_right_to_the_last_slash() {
        let mut repository =
            Repository { uri: "https://h/debian12/x86_64/".into(), layout: Layout::Flat, key: String::new() };
        assert_eq!(
            repository.source(),
            "# Written by phoenix-nvidia; changes are overwritten.\nTypes: deb\nURIs: https://h/debian12/x86_64/\n\
             Suites: /\nSigned-By: /usr/share/keyrings/phoenix-nvidia.asc\n"
        );
        repository.layout = Layout::Dists { suite: "bookworm".into(), components: "main".into() };
        assert!(repository.source().contains("Suites: bookworm\nComponents: main\n"));
    }

    #[test]
    fn debian_13_has_a_key_of_its_own() {
        assert_eq!(beside("https://h/", &debian("12"))[0], "https://h/3bf863cc.pub");
        assert_eq!(beside("https://h/", &debian("13"))[0], "https://h/8793F200.pub");
    }

    #[test]
    fn components_are_words_only() {
        assert_eq!(components("Origin: x\nComponents: main contrib\n"), "main contrib");
        assert_eq!(components("Components: $(id) main\n"), "main");
        assert_eq!(components(""), "main");
    }
}
