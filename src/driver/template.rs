//! URLs and package names with placeholders.

use crate::exit::{Code, Context as _, Fault};
use crate::sys::text;
use crate::sys::url::{self, Url};
use crate::types::Version;
use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// `{arch}` in runfile names, on this host.
pub const RUNFILE_ARCH: &str = std::env::consts::ARCH;
/// `{arch}` in NVIDIA's repositories.
const REPOSITORY_ARCH: &str = if cfg!(target_arch = "aarch64") { "sbsa" } else { std::env::consts::ARCH };

/// The values of the placeholders.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `{version}`, `{branch}` and, by a table, `{cuda}`.
    version: &'a Version,
    /// `{arch}`: x86_64, or aarch64 in runfile names and sbsa in repositories.
    arch: &'a str,
    /// `{distro}`: the container's, like debian12; unknown outside one.
    distro: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// For the URL of a runfile for `arch`.
    pub fn runfile(version: &'a Version, arch: &'a str) -> Self {
        Facts { version, arch, distro: None }
    }

    /// For a repository's URL and its packages.
    pub fn repository(version: &'a Version, distro: Option<&'a str>) -> Self {
        Facts { version, arch: REPOSITORY_ARCH, distro }
    }
}

/// A URL (https, http, file) or absolute path with placeholders. `Display` and
/// `Debug` leave out what may be secret, as those of [`Url`] do.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// The URL or path with every placeholder filled in.
    ///
    /// # Errors
    /// A placeholder without a value, or the result is not a URL.
    pub fn fill(&self, facts: &Facts<'_>) -> anyhow::Result<Url> {
        fill(&self.0, facts)?.parse().with_context(|| self.to_string())
    }

    /// Whether it names a file or directory of this host.
    pub fn is_local(&self) -> bool {
        self.example().is_ok_and(|url| url.local().is_some())
    }

    /// Whether nothing but a checksum vouches for what it names: http from another
    /// host.
    pub fn needs_checksum(&self) -> bool {
        self.example().is_ok_and(|url| !url.has_trusted_transport())
    }

    /// Whether it has a user name.
    pub fn has_login(&self) -> bool {
        self.example().is_ok_and(|url| url.login().is_some())
    }

    /// Whether it has something secret.
    pub fn has_secret(&self) -> bool {
        self.example().is_ok_and(|url| url.has_secret())
    }

    /// The URL with a word for each placeholder.
    fn example(&self) -> anyhow::Result<Url> {
        example(&self.0)?.parse()
    }

    /// A hash of it, to tell it from others.
    pub fn identity(&self) -> String {
        url::hex(&Sha256::digest(self.0.as_bytes()))
    }
}

impl FromStr for Template {
    type Err = anyhow::Error;

    /// No error repeats the text: it may hold a password.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.len() > LONGEST_URL {
            bail!("longer than {LONGEST_URL} characters");
        }
        url::check(text)?;
        let template = Template(text.to_owned());
        template.example()?;
        Ok(template)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&url::shown(&self.0))
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({self})")
    }
}

/// The name of a package, with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageTemplate(String);

impl PackageTemplate {
    /// The name with every placeholder filled in.
    ///
    /// # Errors
    /// [`Code::Software`]: a placeholder without a value.
    pub fn fill(&self, facts: &Facts<'_>) -> anyhow::Result<String> {
        fill(&self.0, facts)
            .fault(|| Fault::new(Code::Software, format!("cannot fill in the package name {self}")))
    }
}

impl FromStr for PackageTemplate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.len() > LONGEST_NAME {
            bail!("package name longer than {LONGEST_NAME} characters");
        }
        let plain = example(text)?;
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
        if plain.is_empty() || !plain.bytes().all(good) || !plain.as_bytes()[0].is_ascii_alphanumeric() {
            bail!("{text:?} is not a package name");
        }
        Ok(PackageTemplate(text.to_owned()))
    }
}

impl fmt::Display for PackageTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The most packages in a list.
const MOST_PACKAGES: usize = 100;
/// The longest URL, in characters.
const LONGEST_URL: usize = 4096;
/// The longest package name, in characters.
const LONGEST_NAME: usize = 200;

/// A list of package names, separated by commas or blanks.
///
/// # Errors
/// One is not a package name, or there are too many.
pub fn packages(text: &str) -> anyhow::Result<Vec<PackageTemplate>> {
    let words = || text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    if words().nth(MOST_PACKAGES).is_some() {
        bail!("more than {MOST_PACKAGES} packages");
    }
    words().map(str::parse).collect()
}

/// The known placeholders.
const PLACEHOLDERS: [&str; 6] = ["version", "branch", "cuda", "arch", "platform", "distro"];

/// A piece of a template: a placeholder's name, or the text between two.
struct Piece<'a> {
    name: bool,
    text: &'a str,
}

/// The pieces of `text` in one pass; an unknown or unclosed placeholder is an
/// error and the last piece.
fn pieces(text: &str) -> impl Iterator<Item = anyhow::Result<Piece<'_>>> {
    let mut rest = text;
    // Never show a password with braces in it.
    let plain = !text.contains(['@', '?']);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (text, after) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
        if !text.is_empty() {
            rest = after;
            return Some(Ok(Piece { name: false, text }));
        }
        // A name is short: don't search the whole text for the brace.
        let longest = rest.len().min(16);
        let close =
            rest.as_bytes()[..longest].iter().position(|b| *b == b'}').filter(|_| rest.starts_with('{'));
        let name = close.and_then(|close| rest.get(1..close));
        let known = name.filter(|name| PLACEHOLDERS.contains(name));
        let Some(text) = known else {
            rest = "";
            let what = match name {
                Some(name) if plain => format!("unknown placeholder {{{}}}", text::line(name.as_bytes())),
                _ => "a brace outside a placeholder".to_owned(),
            };
            return Some(Err(anyhow::anyhow!("{what}; known: {{{}}}", PLACEHOLDERS.join("}, {"))));
        };
        rest = &rest[text.len() + 2..];
        Some(Ok(Piece { name: true, text }))
    })
}

/// The text with a word for each placeholder.
fn example(text: &str) -> anyhow::Result<String> {
    pieces(text).map(|piece| piece.map(|p| if p.name { "x" } else { p.text })).collect()
}

/// The text with every placeholder filled in, in one pass: values are not
/// filled in again.
fn fill(text: &str, facts: &Facts<'_>) -> anyhow::Result<String> {
    let shown = || text::hidden(text);
    let mut filled = String::with_capacity(text.len() + 64);
    for piece in pieces(text) {
        let piece = piece?;
        match (piece.name, piece.text) {
            (false, text) => filled.push_str(text),
            (_, "version") => filled.push_str(facts.version.as_str()),
            (_, "branch") => filled.push_str(&facts.version.branch().to_string()),
            (_, "arch") => filled.push_str(facts.arch),
            (_, "platform") => filled.push_str(&platform(facts.arch)),
            (_, "distro") => filled
                .push_str(facts.distro.with_context(|| format!("no value for {{distro}}: {}", shown()))?),
            _ => filled.push_str(newest_cuda(facts.version.branch()).with_context(|| {
                format!("no CUDA version known for driver branch {}: {}", facts.version.branch(), shown())
            })?),
        }
    }
    Ok(filled)
}

/// `{platform}`: NVIDIA's directory of the runfiles for an architecture.
pub fn platform(arch: &str) -> String {
    match arch {
        "aarch64" | "sbsa" => "aarch64".to_owned(),
        arch => format!("Linux-{arch}"),
    }
}

/// The newest CUDA version of a driver branch, as in package names. A newer
/// branch than those known runs the newest one known too.
pub fn newest_cuda(branch: u32) -> Option<&'static str> {
    Some(match branch {
        367..=377 => "8-0",
        378..=386 => "9-0",
        387..=395 => "9-1",
        396..=409 => "9-2",
        410..=417 => "10-0",
        418..=439 => "10-1",
        440..=449 => "10-2",
        450..=454 => "11-0",
        455..=459 => "11-1",
        460..=464 => "11-2",
        465..=469 => "11-3",
        470..=494 => "11-4",
        495..=509 => "11-5",
        510..=514 => "11-6",
        515..=519 => "11-7",
        520..=524 => "11-8",
        525..=529 => "12-0",
        530..=534 => "12-1",
        535..=544 => "12-2",
        545..=549 => "12-3",
        550..=554 => "12-4",
        555..=559 => "12-5",
        560..=564 => "12-6",
        565..=569 => "12-7",
        570..=574 => "12-8",
        575..=579 => "12-9",
        580..=589 => "13-0",
        590..=594 => "13-1",
        595..=609 => "13-2",
        610..=614 => "13-3",
        615.. => "13-4",
        _ => return None,
    })
}

/// Whether the branch is newer than all whose newest CUDA version is known.
pub fn is_newer_than_known(branch: u32) -> bool {
    branch > 619
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(version: &'a Version, distro: Option<&'a str>) -> Facts<'a> {
        Facts { version, arch: "x86_64", distro }
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let version = "580.95.05".parse().unwrap();
        let template: Template =
            "https://h/{distro}/{arch}/{platform}/{branch}/{cuda}/{version}.run".parse().unwrap();
        let filled = template.fill(&facts(&version, Some("debian12"))).unwrap();
        assert_eq!(filled.request(), "https://h/debian12/x86_64/Linux-x86_64/580/13-0/580.95.05.run");
        let error = template.fill(&facts(&version, None)).unwrap_err();
        assert!(error.to_string().contains("no value for {distro}"), "{error}");
    }

    #[test]
    fn a_bad_url_is_refused_at_the_door() {
        for good in ["https://h/x", "http://127.0.0.1/{version}", "file:///srv/x.run", "/srv/x.run"] {
            assert!(good.parse::<Template>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ftp://h/x",
            "h/x",
            "https://",
            "file://x",
            "https://h/{v}",
            "https://h/{",
            "https://h/a b",
            "/x\n",
        ] {
            assert!(bad.parse::<Template>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_long_template_is_filled_in_one_pass() {
        let version = "580.95.05".parse().unwrap();
        // 256 KiB, as much as a settings file may hold.
        let text = "/{branch}".repeat(256 * 1024 / 9);
        let begun = std::time::Instant::now();
        let filled = fill(&text, &facts(&version, None)).unwrap();
        assert_eq!(filled, text.replace("{branch}", "580"));
        let open = "{".repeat(256 * 1024);
        assert!(fill(&open, &facts(&version, None)).is_err());
        // Minutes, if each were looked for from the beginning.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
        // As a setting it is refused at the door.
        assert!(text.parse::<Template>().is_err());
        assert!("x ".repeat(MOST_PACKAGES + 1).parse::<PackageTemplate>().is_err());
        assert!(packages(&"x ".repeat(MOST_PACKAGES)).is_ok());
        assert!(packages(&"x ".repeat(MOST_PACKAGES + 1)).is_err());
    }

    #[test]
    fn what_a_value_holds_is_not_filled_in_again() {
        let version = "580.95.05".parse().unwrap();
        assert_eq!(fill("{distro}{arch}", &facts(&version, Some("{version}"))).unwrap(), "{version}x86_64");
    }

    #[test]
    fn neither_a_template_nor_its_errors_show_a_password() {
        let template: Template = "https://me:geheim@h/{distro}?token=geheim".parse().unwrap();
        let version = "580.95.05".parse().unwrap();
        let error = template.fill(&facts(&version, None)).unwrap_err();
        let shown = format!("{template} {template:?} {error:#} {}", template.identity());
        assert!(!shown.contains("geheim"), "{shown}");
        // In a message a URL ends at a quote; a password need not.
        let quoted: Template = "https://me:ge'heim@h/{distro}?token=ge'heim".parse().unwrap();
        assert_eq!(format!("{quoted} {quoted:?}").matches("heim").count(), 0);
        for bad in [
            "https://me:ge/heim@h/",
            "https://me:ge heim@h/",
            "me:geheim@h/",
            "https://me:geheim@h/{geheim}x{",
            "https://me:ge'heim@h/{v}",
        ] {
            let error = bad.parse::<Template>().unwrap_err();
            assert!(!format!("{error:#}").contains("heim"), "{error:#}");
        }
    }

    #[test]
    fn the_table_of_cuda_versions_is_the_guides() {
        let guide = "390 9.1 · 418 10.1 · 450 11.0 · 460 11.2 · 470 11.4 · 495 11.5 · 510 11.6 · 515 11.7 · 520 11.8 · \
                     525 12.0 · 530 12.1 · 535 12.2 · 545 12.3 · 550 12.4 · 555 12.5 · 560 12.6 · 565 12.7 · 570 12.8 · \
                     575 12.9 · 580 13.0 · 590 13.1 · 595 13.2 · 610 13.3 · 615 13.4";
        for pair in guide.split(" · ") {
            let (branch, cuda) = pair.split_once(' ').unwrap();
            assert_eq!(newest_cuda(branch.parse().unwrap()), Some(cuda.replace('.', "-").as_str()), "{pair}");
        }
        assert_eq!((newest_cuda(340), newest_cuda(640)), (None, Some("13-4")));
        assert!(is_newer_than_known(620) && !is_newer_than_known(615));
    }
}
