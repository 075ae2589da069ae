//! Passwords and tokens in settings that stand where others can read them.

use crate::driver::template::Template;
use crate::settings::keys::{self, Spec};
use crate::settings::{CLUSTER_FILE, NODE_FILE, Origin, Settings};
use crate::sys::look::Look;
use crate::types::Ctid;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A secret that others can read.
#[derive(Debug, PartialEq, Eq)]
pub struct Exposed {
    /// What is where, and who reads it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// The URLs with a login or a query that the container, or any user of this
/// node, can read.
pub fn exposed(look: &Look, settings: &Settings, ctid: Ctid) -> Vec<Exposed> {
    let urls: [(&Spec, Option<Template>); 3] = [
        (keys::NVIDIA_REPO_URL, settings.get(keys::NVIDIA_REPO_URL).ok()),
        (keys::NVIDIA_RUNFILE_URL, settings.get(keys::NVIDIA_RUNFILE_URL).ok()),
        (keys::NVIDIA_REPO_KEY_URL, settings.value(keys::NVIDIA_REPO_KEY_URL)),
    ];
    let secret = urls.iter().filter(|(_, url)| url.as_ref().is_some_and(Template::has_secret));
    let mut found: Vec<Exposed> = Vec::new();
    for (name, origin) in secret.filter_map(|(key, _)| Some((key.name, settings.text(key)?.1))) {
        let Origin::File(path, line) = origin else { continue };
        let at = format!("{} line {line}", path.display());
        if path.starts_with("/etc/pve") && path != Path::new("/").join(CLUSTER_FILE) {
            found.push(Exposed {
                what: format!("{at}: the container can read the password or token in {name}"),
                remedy: format!(
                    "move the line to /{CLUSTER_FILE} or /{NODE_FILE} (without lxc.environment:), then: pct reboot {ctid}"
                ),
            });
        } else if readable(look, &path) {
            found.push(Exposed {
                what: format!("{at}: every user of this node can read the password or token in {name}"),
                remedy: format!("chmod 600 {}", path.display()),
            });
        }
    }
    found
}

fn readable(look: &Look, path: &Path) -> bool {
    let meta = std::fs::metadata(look.at(&path.to_string_lossy()));
    meta.is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Call, Given};

    #[test]
    fn a_secret_in_the_conf_or_in_a_file_for_all_is_told_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join(NODE_FILE);
        std::fs::create_dir_all(node.parent().unwrap()).unwrap();
        let text = b"NVIDIA_RUNFILE_URL=https://h/x.run?token=geheim\nNVIDIA_REPO_KEY_URL=https://h/key\n";
        crate::sys::replace::replace_own(&node, text, 0o644).unwrap();
        let told = || {
            let conf = vec![Given {
                key: "NVIDIA_REPO_URL".into(),
                value: "https://me:geheim@h/".into(),
                origin: Origin::File("/etc/pve/lxc/101.conf".into(), 7),
            }];
            let settings = Settings::load(dir.path(), Call::Hook, conf, Vec::new(), None);
            exposed(&Look::new(dir.path()), &settings, "101".parse().unwrap())
        };
        let both = told();
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(both[0].what.starts_with("/etc/pve/lxc/101.conf line 7: the container can read"), "{both:?}");
        assert_eq!(both[1].remedy, "chmod 600 /etc/default/phoenix-nvidia");
        assert!(!format!("{both:?}").contains("geheim"));
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(told().len(), 1);
    }
}
