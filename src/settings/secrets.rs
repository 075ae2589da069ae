//! Passwords and tokens in settings that others can read.

use crate::driver::template::Template;
use crate::settings::keys::{self, Spec};
use crate::settings::{CLUSTER_DIRECTORY, CLUSTER_FILE, Origin, Settings};
use crate::types::Ctid;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A secret that others can read.
#[derive(Debug, PartialEq, Eq)]
pub struct Exposed {
    /// What is where, and who can read it.
    pub what: String,
    /// What ends that.
    pub remedy: String,
}

/// The URLs with a login or a query that the container, or any user of this
/// node, can read.
pub fn exposed(settings: &Settings, ctid: Ctid) -> Vec<Exposed> {
    let urls: [(&Spec, Option<Template>); 3] = [
        (keys::NVIDIA_REPO_URL, settings.get(keys::NVIDIA_REPO_URL).ok()),
        (keys::NVIDIA_RUNFILE_URL, settings.get(keys::NVIDIA_RUNFILE_URL).ok()),
        (keys::NVIDIA_REPO_KEY_URL, settings.value(keys::NVIDIA_REPO_KEY_URL)),
    ];
    let secret = urls.iter().filter(|(_, url)| url.as_ref().is_some_and(Template::has_secret));
    let origins = secret.filter_map(|(key, _)| Some((key.name, settings.text(key)?.1)));
    origins.filter_map(|(name, origin)| exposed_by(name, &origin, ctid)).collect()
}

fn exposed_by(name: &str, origin: &Origin, ctid: Ctid) -> Option<Exposed> {
    let Origin::File(path, line) = origin else { return None };
    let at = format!("{} line {line}", path.display());
    if path.starts_with("/etc/pve") && path != Path::new(CLUSTER_FILE) {
        return Some(Exposed {
            what: format!(
                "{at}: the container can read the password or token in {name} (the fix makes it the setting of all containers of the cluster)"
            ),
            remedy: moved(name, path, ctid),
        });
    }
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| Exposed {
        what: format!("{at}: every user of this node can read the password or token in {name}"),
        remedy: format!("chmod 600 {}", path.display()),
    })
}

/// Moves a line of the conf's main section to the cluster's file, which root and
/// www-data can read.
fn moved(name: &str, conf: &Path, ctid: Ctid) -> String {
    let conf = conf.display();
    let line = format!("^lxc\\.environment *[:=] *{name}=");
    format!(
        "mkdir -p {CLUSTER_DIRECTORY} && sed -n '/^\\[/q; s/{line}/{name}=/p' {conf} >>{CLUSTER_FILE} && \
         sed -i '1,/^\\[/{{/{line}/d}}' {conf} && {{ pct status {ctid} | grep -q stopped || pct reboot {ctid}; }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Call, Given, Places};

    #[test]
    fn a_secret_in_the_conf_or_in_a_file_for_all_is_told_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("phoenix-nvidia");
        crate::sys::replace::replace_own(&node, b"", 0o644).unwrap();
        let line = |key: &str, value: &str, file: &Path| Given {
            key: key.into(),
            value: value.into(),
            origin: Origin::File(file.into(), 7),
        };
        let told = || {
            let lines = vec![
                line("NVIDIA_REPO_URL", "https://me:geheim@h/", Path::new("/etc/pve/lxc/101.conf")),
                line("NVIDIA_RUNFILE_URL", "https://h/x.run?token=geheim", &node),
                line("NVIDIA_REPO_KEY_URL", "https://h/key", &node),
            ];
            let (cluster, node) = (Ok(Vec::new()), Ok(Vec::new()));
            let places = Places { conf: lines, cluster, node, environment: Vec::new() };
            exposed(&Settings::of(Call::Hook, places, None), "101".parse().unwrap())
        };
        let both = told();
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(both[0].what.starts_with("/etc/pve/lxc/101.conf line 7: the container can read"), "{both:?}");
        assert_eq!(both[1].remedy, format!("chmod 600 {}", node.display()));
        assert!(!format!("{both:?}").contains("geheim"));
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(told().len(), 1);
    }
}
