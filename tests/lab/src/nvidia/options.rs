//! Which options an nvidia-installer of a version knows. One that it doesn't know makes it exit with 1 and install
//! nothing, so the lab's must not be more lenient than the real ones.

/// Options without a value, with the first version that has them.
const FLAGS: &[(&str, &str)] = &[
    ("-a", ""),
    ("--accept-license", ""),
    ("-n", ""),
    ("--no-precompiled-interface", ""),
    ("-q", ""),
    ("--no-questions", ""),
    ("--no-x-check", ""),
    ("--no-distro-scripts", ""),
    ("--no-backup", ""),
    ("--no-network", ""),
    ("--no-runlevel-check", ""),
    ("--no-rpms", ""),
    ("--no-recursion", ""),
    ("--no-opengl-headers", ""),
    ("--no-opengl-files", "331"),
    ("--no-nvidia-modprobe", "319"),
    ("--no-rebuild-initramfs", "515"),
    ("--no-check-for-alternate-installs", "325.08"),
    ("--no-install-compat32-libs", "346.16"),
    ("--install-compat32-libs", "346.16"),
    ("--no-drm", "364"),
    ("--no-systemd", "465.19"),
    ("--skip-module-unload", "361.16"),
    ("--skip-depmod", "418.30"),
    ("--dkms", "304"),
    ("--no-dkms", "430"),
];

/// Options with a value, as `--ui=none` or `--ui none`.
const VALUES: &[&str] = &[
    "--tmpdir",
    "--ui",
    "--utility-prefix",
    "--opengl-prefix",
    "--x-prefix",
    "--kernel-name",
    "--concurrency-level",
];

/// The options of one version, as patterns of a shell's `case`.
pub(crate) struct Options {
    pub(crate) flags: String,
    pub(crate) values: String,
    pub(crate) values_joined: String,
    /// Further spellings of `--no-kernel-module`.
    pub(crate) plural: &'static str,
    pub(crate) glvnd: &'static str,
    /// Whether the installer asks about libglvnd at all.
    pub(crate) glvnd_choice: &'static str,
    pub(crate) alternates: &'static str,
}

/// No argument is this: a pattern for what a version lacks.
const NOTHING: &str = "''";

impl Options {
    pub(crate) fn of(version: &str) -> Self {
        let since = |first: &str| numbers(version) >= numbers(first);
        let gated = |first: &str, pattern| if since(first) { pattern } else { NOTHING };
        let flags: Vec<&str> =
            FLAGS.iter().filter(|(_, first)| since(first)).map(|&(name, _)| name).collect();
        let joined: Vec<String> = VALUES.iter().map(|name| format!("{name}=*")).collect();
        Self {
            flags: flags.join(" | "),
            values: VALUES.join(" | "),
            values_joined: joined.join(" | "),
            plural: if since("515.43.04") { " | --no-kernel-modules" } else { "" },
            glvnd: gated("361.16", "--install-libglvnd | --no-install-libglvnd"),
            glvnd_choice: if since("361.16") { "yes" } else { "" },
            alternates: gated("325.08", "--no-check-for-alternate-installs"),
        }
    }
}

/// A version's numbers, to compare; the empty one is before all.
pub(crate) fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_with_their_version() {
        let (old, new) = (Options::of("460.91.03"), Options::of("580.95.05"));
        assert!(!old.flags.contains("--no-systemd") && new.flags.contains("--no-systemd"));
        assert!(old.plural.is_empty() && !new.plural.is_empty());
        assert!(Options::of("515.43.04").plural.contains("modules"));
        assert!(Options::of("515.43.03").plural.is_empty());
        assert_eq!(Options::of("340.108").glvnd, NOTHING);
    }
}
