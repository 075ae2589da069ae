//! Names of packages as a container tells them.

use anyhow::bail;
use std::fmt;
use std::str::FromStr;

/// A package's name: `[a-z0-9][a-z0-9+.-]*`, with `:ARCHITECTURE` where dpkg
/// says it. It goes into commands that are shown to be pasted, and comes out of
/// a container that may print anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName(String);

impl PackageName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, architecture) = text.split_once(':').map_or((text, None), |(n, a)| (n, Some(a)));
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let word = |text: &str, more: &[u8]| {
            text.bytes().next().is_some_and(alnum) && text.bytes().all(|b| alnum(b) || more.contains(&b))
        };
        if text.len() > 100 || !word(name, b"+.-") || architecture.is_some_and(|a| !word(a, b"-")) {
            bail!("no package name");
        }
        Ok(PackageName(text.to_owned()))
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_nothing_that_a_shell_would_read_otherwise() {
        for good in ["libc6", "libnvidia-ml1:amd64", "g++", "libstdc++6", "python3.11", "0ad"] {
            assert!(good.parse::<PackageName>().is_ok(), "{good}");
        }
        for bad in
            ["", "-y", "--force", "A", "a b", "a;b", "$(id)", "a*", "a:", ":a", "a:b:c", "a:-b", "a\n", "é"]
        {
            assert!(bad.parse::<PackageName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(101).parse::<PackageName>().is_err());
    }
}
