//! The directory that a server serves, seen from the side of the test.

use super::{Faults, Requests};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// A directory with what is served (`www/`), how it fails (`faults`) and what was asked for (`requests`).
#[derive(Debug, Clone)]
pub struct Site {
    base: PathBuf,
}

impl Site {
    /// Makes the directory, or takes the one that is there.
    pub fn create(base: &Path) -> Result<Self> {
        let www = base.join("www");
        fs::create_dir_all(&www).with_context(|| format!("making {}", www.display()))?;
        Ok(Self { base: base.to_owned() })
    }

    /// The directory given to [`Site::create`].
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The directory of the documents.
    pub fn www(&self) -> PathBuf {
        self.base.join("www")
    }

    /// The fault rules; every change is seen by the next request.
    pub fn faults(&self) -> Faults {
        Faults::at(self.base.join("faults"))
    }

    /// What was asked for so far.
    pub fn requests(&self) -> Result<Requests> {
        Requests::read(&self.log())
    }

    /// The file that the server appends its requests to.
    pub fn log(&self) -> PathBuf {
        self.base.join("requests")
    }

    /// Where a certificate and its key lie once the site speaks TLS.
    pub(crate) fn tls(&self) -> [PathBuf; 2] {
        ["tls.pem", "tls.key"].map(|name| self.base.join(name))
    }

    /// Gives the site a certificate for [`super::NAMES`], and tells the authority behind it, PEM.
    pub fn certify(&self) -> Result<Vec<u8>> {
        let made = super::certificate::build()?;
        let [certificate, key] = self.tls();
        for (from, to) in [("server.pem", certificate), ("server.key", key)] {
            fs::copy(made.join(from), &to).with_context(|| format!("copying {from} to {}", to.display()))?;
        }
        fs::read(made.join("ca.pem")).context("reading the lab's authority")
    }

    /// The file behind a URL path, or nothing when the path would lead out of the site.
    pub fn file(&self, url_path: &str) -> Option<PathBuf> {
        let relative = Path::new(url_path.trim_start_matches('/'));
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        inside.then(|| self.www().join(relative))
    }

    /// Publishes bytes at a URL path. A reader of the old document keeps it: the new one is renamed into place.
    pub fn put(&self, url_path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.place(url_path)?;
        let fresh = beside(&path);
        fs::write(&fresh, bytes).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("publishing {}", path.display()))
    }

    /// Publishes a file at a URL path, keeping its modification time.
    pub fn put_file(&self, url_path: &str, file: &Path) -> Result<()> {
        let path = self.place(url_path)?;
        let fresh = beside(&path);
        fs::copy(file, &fresh)
            .with_context(|| format!("copying {} to {}", file.display(), fresh.display()))?;
        let modified = fs::metadata(file).and_then(|data| data.modified());
        let opened = fs::File::options().write(true).open(&fresh);
        modified
            .and_then(|time| opened.and_then(|out| out.set_modified(time)))
            .with_context(|| format!("setting the time of {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("publishing {}", path.display()))
    }

    /// Publishes a whole directory below a URL path.
    pub fn put_dir(&self, url_path: &str, dir: &Path) -> Result<()> {
        let listing = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
        for entry in listing {
            let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                bail!("{} holds a name that is not UTF-8", dir.display());
            };
            let below = format!("{}/{name}", url_path.trim_end_matches('/'));
            if entry.path().is_dir() {
                self.put_dir(&below, &entry.path())?;
            } else {
                self.put_file(&below, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes a document away; one that isn't there is no error.
    pub fn remove(&self, url_path: &str) -> Result<()> {
        let path = self.place(url_path)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn place(&self, url_path: &str) -> Result<PathBuf> {
        let Some(path) = self.file(url_path) else {
            bail!("{url_path:?} is no path that a site can hold");
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        Ok(path)
    }
}

/// A name in the same directory that no URL of a test asks for.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}
