//! What only pmxcfs does. Outside the run on its rules these do nothing.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a failing helper fails its test; other writers are played here

use crate::files::Host;
use phoenix_nvidia::exit::{Code, code_of, one_line, remedy_of};
use phoenix_nvidia::pve::conf::store::Caller;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

#[test]
fn without_quorum_only_what_must_be_written_fails() {
    let host = Host::new();
    if !host.on_pmxcfs() {
        return;
    }
    host.set(Caller::Hook, "1").unwrap();
    for trouble in ["no-quorum", "eio"] {
        host.writes_meet(trouble);
        assert!(!host.set(Caller::Hook, "1").unwrap(), "already right, nothing to write");
        let error = host.set(Caller::Hook, "2").unwrap_err();
        assert_eq!(code_of(&error), Code::Passthrough);
        assert!(one_line(&error).contains("no quorum"), "{error:#}");
        assert!(remedy_of(&error).unwrap().contains("pvecm status"));
        std::fs::remove_file(host.path("control").join(trouble)).unwrap();
    }
    assert!(host.text().contains("A=1") && host.names() == ["101.conf"]);
    assert!(host.set(Caller::Hook, "2").unwrap());
}

#[test]
fn a_full_disk_leaves_the_old_conf_and_no_temp_file() {
    let host = Host::new();
    if !host.on_pmxcfs() {
        return;
    }
    host.writes_meet("full");
    host.refuses(Caller::Hook, "no space left");
}

#[test]
fn the_file_system_has_the_rules_of_pmxcfs() {
    let host = Host::new();
    if !host.on_pmxcfs() {
        return;
    }
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    let path = host.conf.path();
    let meta = path.metadata().unwrap();
    assert_eq!((meta.mode(), meta.uid(), meta.gid(), meta.mtime_nsec()), (0o100_640, 0, 33, 0));
    assert_eq!(errno(std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))), nix::libc::EPERM);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(errno(std::os::unix::fs::chown(path, Some(1), Some(1))), nix::libc::EPERM);
    assert_eq!(errno(symlink("x", host.path("etc/pve/link"))), nix::libc::ENOSYS);
    assert_eq!(errno(std::fs::hard_link(path, host.path("etc/pve/link"))), nix::libc::EPERM);
    let big = host.path("etc/pve/big");
    assert_eq!(errno(std::fs::write(&big, vec![0; (1 << 20) + 1])), nix::libc::EFBIG);
    assert_eq!(big.metadata().unwrap().len(), 1 << 20);
    let secret = host.path("etc/pve/priv/x");
    std::fs::write(&secret, "x").unwrap();
    assert_eq!(secret.metadata().unwrap().mode() & 0o777, 0o600);
    let held = host.hold(path.to_owned());
    let other = File::open(path).unwrap();
    assert!(fs2::FileExt::try_lock_exclusive(&other).is_err());
    drop(held);
    assert!(fs2::FileExt::try_lock_exclusive(&other).is_ok());
}
