//! The container's distribution and C library, as the container says.

use crate::driver::repo::Distribution;
use crate::pve::conf::document::Document;
use crate::sys::text;

/// The C library that the container's programs use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Libc {
    /// glibc, which NVIDIA's libraries need.
    Glibc,
    /// musl, which cannot load NVIDIA's libraries.
    Musl,
    /// No dynamic loader found.
    #[default]
    Unknown,
}

/// What keeps a container from being looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It starts this program instead of an init.
    Application(String),
    /// It has no shell, and what came of running it.
    NoShell(String),
}

/// A container's operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    /// `ID` of os-release, like debian.
    pub id: String,
    /// `ID_LIKE`.
    pub like: Vec<String>,
    /// `VERSION_ID`, like 12 or 24.04.
    pub version: String,
    /// `UBUNTU_CODENAME` (of derivatives), or `VERSION_CODENAME`.
    pub codename: String,
    /// `PRETTY_NAME`, for messages.
    pub name: String,
    /// Its C library.
    pub libc: Libc,
    /// Whether it has the loader of this host's architecture.
    pub native: bool,
    /// Why it was not looked into.
    pub unfit: Option<Unfit>,
    /// Whether it is a NixOS.
    pub nixos: bool,
    /// Whether it has an init.
    pub init: bool,
    /// Whether it has apt-get.
    pub apt: bool,
    /// Whether it has modprobe, which the installer needs.
    pub modprobe: bool,
    /// Whether systemd runs it.
    pub systemd: bool,
}

/// Ubuntu's releases, for derivatives: they have version numbers of their own.
const UBUNTU: [(&str, &str); 4] =
    [("focal", "2004"), ("jammy", "2204"), ("noble", "2404"), ("resolute", "2604")];
/// Debian's releases, for derivatives and for testing, which has no `VERSION_ID`.
const DEBIAN: [(&str, &str); 4] = [("bullseye", "11"), ("bookworm", "12"), ("trixie", "13"), ("forky", "14")];

impl Os {
    /// Reads one line of os-release.
    pub fn release_line(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else { return };
        // Values go into URLs and messages: only characters of names.
        let value = value.trim().trim_matches(['"', '\'']);
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ');
        let clean: String = value.chars().filter(|c| word(*c)).take(64).collect();
        let single = || clean.replace(' ', "");
        match key {
            "ID" => self.id = single(),
            "ID_LIKE" => self.like = clean.split(' ').map(Into::into).collect(),
            "VERSION_ID" => self.version = single(),
            "VERSION_CODENAME" if self.codename.is_empty() => self.codename = single(),
            "UBUNTU_CODENAME" => self.codename = single(),
            "PRETTY_NAME" => self.name = value.chars().filter(|c| !c.is_control()).take(64).collect(),
            _ => {}
        }
    }

    /// Reads the path of an existing dynamic loader.
    pub fn loader(&mut self, path: &str) {
        let file = path.rsplit('/').next().unwrap_or_default();
        if file.starts_with("ld-linux") {
            self.libc = Libc::Glibc;
            let ours = if cfg!(target_arch = "aarch64") { "ld-linux-aarch64" } else { "ld-linux-x86-64" };
            self.native |= file.starts_with(ours);
        } else if self.libc == Libc::Unknown {
            self.libc = Libc::Musl;
        }
    }

    /// Its name in NVIDIA's apt repositories: debian12, ubuntu2404.
    pub fn distro(&self) -> Option<String> {
        let named = |table: &[(&str, &str)], os: &str| {
            table.iter().find(|(name, _)| *name == self.codename).map(|(_, number)| format!("{os}{number}"))
        };
        let major = self.version.split('.').next().unwrap_or_default();
        let like = |what: &str| self.like.iter().any(|l| l == what);
        match self.id.as_str() {
            "debian" if !major.is_empty() => Some(format!("debian{major}")),
            "ubuntu" if !self.version.is_empty() => Some(format!("ubuntu{}", self.version.replace('.', ""))),
            _ => named(&UBUNTU, "ubuntu").or_else(|| {
                (self.id == "debian" || like("debian")).then(|| named(&DEBIAN, "debian")).flatten()
            }),
        }
    }

    /// The distribution, for the repository.
    pub fn distribution(&self) -> Distribution {
        Distribution { name: self.shown().to_owned(), id: self.distro(), codename: self.codename.clone() }
    }

    /// Its name for messages.
    pub fn shown(&self) -> &str {
        match (self.name.is_empty(), self.id.is_empty()) {
            (false, _) => &self.name,
            (true, false) => &self.id,
            _ => "an unknown distribution",
        }
    }

    /// Why NVIDIA's driver cannot work in it, if so.
    pub fn unsupported(&self) -> Option<String> {
        match &self.unfit {
            Some(Unfit::Application(entry)) => return Some(runs_application(entry)),
            Some(Unfit::NoShell(said)) => return Some(format!("cannot run /bin/sh in it ({said})")),
            None => {}
        }
        if self.nixos || self.id == "nixos" || self.like.iter().any(|like| like == "nixos") {
            return Some(of_nixos(self.shown()));
        }
        if !self.init {
            return Some("it has no init (an application container)".into());
        }
        match self.libc {
            Libc::Musl => Some(format!("{} uses musl, and NVIDIA's libraries need glibc", self.shown())),
            Libc::Glibc if !self.native => {
                Some(format!("{} has no {} C library", self.shown(), std::env::consts::ARCH))
            }
            Libc::Glibc => None,
            Libc::Unknown => Some("it has no glibc".into()),
        }
    }
}

fn of_nixos(name: &str) -> String {
    format!("{name} takes its driver from its own configuration (hardware.nvidia)")
}

fn runs_application(entry: &str) -> String {
    format!("it has no init (an application container: {entry})")
}

/// The names of inits: what starts any other program is an application container.
const INITS: [&str; 8] =
    ["init", "systemd", "openrc-init", "runit", "runit-init", "s6-svscan", "dinit", "finit"];

/// What a container starts as its first process, as its conf says, if that is no
/// init: Proxmox' `entrypoint` for OCI images, or LXC's own key, which goes first.
pub fn application(conf: &Document) -> Option<String> {
    let named = |key: &str| Some((key.to_owned(), conf.get(key)?));
    let (key, value) = named("lxc.init.cmd").or_else(|| named("entrypoint"))?;
    let mut words = value.split_ascii_whitespace().map(|word| word.trim_matches(['"', '\'']));
    let mut name = || words.next()?.rsplit('/').next();
    let program = name()?;
    let program = if program == "busybox" { name().unwrap_or(program) } else { program };
    (!INITS.contains(&program)).then(|| text::line(format!("{key}: {value}").as_bytes()))
}

/// Why no driver can be in a container, as far as its conf shows it.
pub fn foreseen(conf: &Document) -> Option<String> {
    if let Some(entry) = application(conf) {
        return Some(runs_application(&entry));
    }
    match conf.get("ostype")?.as_str() {
        "alpine" => Some("Alpine Linux has no glibc, which NVIDIA's driver needs".to_owned()),
        "nixos" => Some(of_nixos("NixOS")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(text: &str) -> Os {
        let mut os = Os::default();
        text.lines().for_each(|l| os.release_line(l));
        os
    }

    #[test]
    fn distributions_have_the_names_of_nvidias_repositories() {
        let names = [
            ("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm", Some("debian12")),
            ("ID=debian\nVERSION_CODENAME=trixie", Some("debian13")),
            ("ID=ubuntu\nVERSION_ID=\"24.04\"\nUBUNTU_CODENAME=noble", Some("ubuntu2404")),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=22\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble",
                Some("ubuntu2404"),
            ),
            ("ID=\"rocky\"\nVERSION_ID=\"9.5\"", None),
            ("ID=arch", None),
            ("", None),
        ];
        for (text, name) in names {
            assert_eq!(os(text).distro().as_deref(), name, "{text}");
        }
    }

    #[test]
    fn what_a_container_says_of_itself_is_only_a_word() {
        let os = os("ID=../../x;rm\u{1b}[31m\nVERSION_ID=1{version}");
        assert_eq!(os.id, "....xrm31m");
        assert_eq!(os.version, "1version");
    }

    #[test]
    fn nixos_is_known_by_its_name_its_family_and_its_mark() {
        let nixos = |text: &str| Os { init: true, libc: Libc::Glibc, native: true, ..os(text) };
        for text in ["ID=nixos\nPRETTY_NAME=\"NixOS 25.05 (Warbler)\"", "ID=mine\nID_LIKE=\"nixos\""] {
            let why = nixos(text).unsupported().unwrap();
            assert!(why.ends_with("takes its driver from its own configuration (hardware.nvidia)"), "{why}");
        }
        assert!(Os { nixos: true, ..nixos("ID=mine") }.unsupported().unwrap().contains("hardware.nvidia"));
        assert_eq!(nixos("ID=gentoo").unsupported(), None);
    }

    #[test]
    fn what_is_no_init_is_an_application() {
        let of = |text: &str| application(&Document::parse(text.as_bytes()));
        for text in [
            "lxc.init.cmd: /usr/bin/sleep 100000\n",
            "entrypoint: /usr/local/bin/ollama serve\n",
            "entrypoint: \"/opt/init.d/run\" x\n",
            "entrypoint: /sbin/init\nlxc.init.cmd: /app\n",
            "lxc.init.cmd: /bin/busybox\n",
            "lxc.init.cmd: /bin/busybox httpd -f init\n",
        ] {
            assert!(of(text).is_some(), "{text}");
        }
        for text in [
            "",
            "entrypoint: /sbin/init\n",
            "lxc.init.cmd = /lib/systemd/systemd --system\n",
            "[old]\nlxc.init.cmd: /app\n",
            "lxc.init.cmd: /bin/busybox init\n",
            "lxc.init.cmd: \"/usr/bin/dinit\" -d /etc/dinit.d\n",
            "lxc.init.cmd: /sbin/finit\n",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        let foreseen = |text: &str| foreseen(&Document::parse(text.as_bytes()));
        assert!(foreseen("entrypoint: /app\nostype: debian\n").unwrap().contains("entrypoint: /app"));
        assert!(foreseen("ostype: nixos\n").unwrap().contains("hardware.nvidia"));
        assert!(foreseen("ostype: gentoo\n").is_none() && foreseen("").is_none());
    }

    #[test]
    fn musl_and_application_containers_are_refused_with_the_reason() {
        let mut alpine = os("ID=alpine\nPRETTY_NAME=\"Alpine Linux v3.20\"");
        alpine.loader("/lib/ld-musl-x86_64.so.1");
        assert!(alpine.unsupported().unwrap().contains("application container"));
        alpine.init = true;
        assert!(alpine.unsupported().unwrap().contains("Alpine Linux v3.20 uses musl"));
        // Alpine with gcompat has both loaders; glibc's name alone decides.
        let mut debian = Os { init: true, ..Os::default() };
        debian.loader("/lib64/ld-linux-x86-64.so.2");
        assert_eq!(debian.unsupported().is_none(), cfg!(target_arch = "x86_64"));
    }
}
