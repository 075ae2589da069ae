//! The keys that sign repositories, made by gpg once and kept in the cache, and the signing.

use crate::cache;
use crate::program::run;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The repository's own.
    Own,
    /// Somebody else's.
    Other,
    /// One whose binding to its name is a SHA-1 signature, which Debian 13's apt no longer takes.
    Sha1Bound,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Other => "other",
            Self::Sha1Bound => "sha1-bound",
        }
    }

    /// The public key, armoured.
    pub(super) fn public(self) -> Result<Vec<u8>> {
        let file = self.pair()?.join("public.asc");
        fs::read(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// The directory with both halves.
    fn pair(self) -> Result<PathBuf> {
        cache::once(&format!("keys/{}", self.name()), |fresh| {
            let home = Home::new()?;
            let owner = format!("The lab's {} key <{}@example.com>", self.name(), self.name());
            let mut make = home.gpg();
            if self == Self::Sha1Bound {
                make.args(["--cert-digest-algo", "SHA1"]);
            }
            run(make.args(["--quick-generate-key", &owner, "rsa3072", "sign", "never"]))?;
            fs::create_dir(fresh).with_context(|| format!("making {}", fresh.display()))?;
            for (option, file) in [("--export", "public.asc"), ("--export-secret-keys", "secret.asc")] {
                run(home.gpg().arg("--armor").arg("--output").arg(fresh.join(file)).arg(option))?;
            }
            Ok(())
        })
    }

    /// Signs `Release` in a directory: `InRelease` and `Release.gpg` beside it.
    pub(super) fn sign(self, dir: &Path, digest: &str) -> Result<()> {
        let home = Home::new()?;
        run(home.gpg().arg("--import").arg(self.pair()?.join("secret.asc")))?;
        for (kind, file) in [("--clearsign", "InRelease"), ("--detach-sign", "Release.gpg")] {
            let mut gpg = home.gpg();
            gpg.args(["--armor", "--digest-algo", digest, "--output"]).arg(dir.join(file));
            run(gpg.arg(kind).arg(dir.join("Release")))?;
        }
        Ok(())
    }
}

/// A gpg home of its own for one job. It lies in /tmp since the path of the agent's socket must be short, and the agent
/// is ended with it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lab-gpg.").tempdir_in("/tmp");
        dir.map(Self).context("making a directory for gpg in /tmp")
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(self.0.path());
        gpg.args(["--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback"]);
        gpg.args(["--passphrase", ""]);
        gpg
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut end = Command::new("gpgconf");
        // Without an agent there is nothing to end; a failure leaves one that ends when its directory is gone.
        let _ = run(end.arg("--homedir").arg(self.0.path()).args(["--kill", "all"]));
    }
}
