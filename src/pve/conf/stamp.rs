//! Which writing of a conf is there.

use crate::pve::conf::files::Conf;
use crate::pve::conf::open;
use crate::sys::url::hex;
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::MetadataExt as _;

impl Conf {
    /// Another one after each change of the conf, whoever makes it, and so after
    /// each rollback, restore or migration: they write it anew, even if it says
    /// the same. It outlives a reboot of the node, since /etc/pve keeps the time,
    /// in whole seconds. `None` where it cannot be read.
    pub fn stamp(&self) -> Option<String> {
        let (file, meta) = open::open(self.path(), 0).ok()?;
        let sum = Sha256::digest(open::read(&file, &meta).ok()?);
        Some(format!("{}.{:09}-{}", meta.mtime(), meta.mtime_nsec(), hex(&sum[..8])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ctid;

    #[test]
    fn a_conf_that_is_written_anew_has_another_stamp_although_it_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let ctid: Ctid = "101".parse().unwrap();
        let conf = Conf::under(dir.path(), ctid);
        let write = |text: &str, at: u64| {
            crate::sys::replace::replace_own(conf.path(), text.as_bytes(), 0o640).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(at);
            std::fs::File::open(conf.path()).unwrap().set_modified(time).unwrap();
        };
        assert_eq!(conf.stamp(), None);
        std::fs::create_dir_all(conf.path().parent().unwrap()).unwrap();
        write("memory: 5\n", 1000);
        let first = conf.stamp();
        assert!(first.is_some() && conf.stamp() == first);
        write("memory: 5\n", 1001);
        assert_ne!(conf.stamp(), first);
        write("memory: 6\n", 1000);
        assert_ne!(conf.stamp(), first);
    }
}
