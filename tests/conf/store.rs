//! The conf as a file: locks, faults, leftovers, and what other writers do
//! meanwhile. Each test has a host of its own in a temporary directory; the
//! last test runs all of them again on a file system with pmxcfs's rules.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods)] // other writers' ways are played here

use crate::files;

use files::{Host, ON_PMXCFS, set};
use phoenix_nvidia::exit::{Code, code_of, one_line, remedy_of};
use phoenix_nvidia::pve::conf::document::Document;
use phoenix_nvidia::pve::conf::store::Caller;
use std::cell::Cell;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::time::{Duration, Instant};

#[test]
fn an_edit_is_written_whole_with_mode_and_owner_kept() {
    let host = Host::new();
    std::fs::set_permissions(host.conf.path(), PermissionsExt::from_mode(0o640)).unwrap();
    let before = host.inode();
    assert!(host.set(Caller::ByHand, "1").unwrap());
    assert_eq!(host.text(), "arch: amd64\nmemory: 512\nlxc.environment: A=1\n\n[snap]\nmemory: 256\n");
    let meta = host.conf.path().metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640);
    assert_ne!(meta.ino(), before);
    assert_eq!(host.names(), ["101.conf"]);
}

#[test]
fn owner_and_group_are_kept_where_they_can_be() {
    if !nix::unistd::geteuid().is_root() {
        phoenix_lab::skipped("it needs root");
        return;
    }
    let host = Host::new();
    std::os::unix::fs::chown(host.conf.path(), Some(0), Some(33)).unwrap();
    host.set(Caller::ByHand, "1").unwrap();
    assert_eq!(host.conf.path().metadata().unwrap().gid(), 33);
}

#[test]
fn with_nothing_to_do_there_is_no_lock_and_no_write() {
    let host = Host::new();
    host.set(Caller::Hook, "1").unwrap();
    let inode = host.inode();
    let lock = host.path("run/lock/lxc/pve-config-101.lock");
    std::fs::remove_file(&lock).unwrap();
    // Not even another's locks are looked at.
    let _held = host.hold(host.conf.path().to_owned());
    assert!(!host.set(Caller::Hook, "1").unwrap());
    assert_eq!(host.inode(), inode);
    assert!(!lock.exists());
}

#[test]
fn a_held_lock_of_proxmox_names_its_holder_and_ends_at_the_deadline() {
    let host = Host::new();
    let _held = host.hold_proxmox_lock();
    let started = Instant::now();
    let me = format!("by process {} (", std::process::id());
    host.refuses(Caller::Hook, &me);
    host.refuses(Caller::ByHand, "pve-config-101.lock is locked");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_held_lock_on_the_conf_names_its_holder_and_ends_at_the_deadline() {
    let host = Host::new();
    let _held = host.hold(host.conf.path().to_owned());
    host.refuses(Caller::ByHand, &format!("101.conf is locked by process {}", std::process::id()));
}

#[test]
fn when_the_holder_did_the_work_a_busy_lock_is_no_fault() {
    let host = Host::new();
    let _held = host.hold_proxmox_lock();
    let asked = Cell::new(0);
    let done = host.impatient().edit(Caller::Hook, |document| {
        if asked.replace(asked.get() + 1) == 0 {
            host.replace_as_proxmox("lxc.environment: A=1\n");
        }
        set(document, "1")
    });
    assert!(done.unwrap().is_none());
}

#[test]
fn a_lock_on_a_replaced_file_stops_nobody() {
    let host = Host::new();
    let _held = host.hold(host.conf.path().to_owned());
    host.replace_as_proxmox("memory: 1\n");
    assert!(host.set(Caller::ByHand, "1").unwrap());
    assert_eq!(host.text(), "memory: 1\nlxc.environment: A=1\n");
}

#[test]
fn a_change_made_under_our_hands_is_kept() {
    let host = Host::new();
    let asked = Cell::new(0);
    host.conf
        .edit(Caller::ByHand, |document| {
            // The second time it is asked under both locks.
            if asked.replace(asked.get() + 1) == 1 {
                host.replace_as_proxmox("memory: 777\n");
            }
            set(document, "1")
        })
        .unwrap();
    assert_eq!(host.text(), "memory: 777\nlxc.environment: A=1\n");
    assert_eq!(host.names(), ["101.conf"]);
}

#[test]
fn a_conf_with_a_lock_line_is_not_edited_by_hand() {
    let host = Host::new();
    std::fs::write(host.conf.path(), "lock: backup\nlxc.environment: A=1\n").unwrap();
    host.refuses(Caller::ByHand, "(backup)");
    // What needs no edit is no fault, and in pre-start Proxmox has looked.
    assert!(!host.set(Caller::ByHand, "1").unwrap());
    assert!(host.set(Caller::Hook, "2").unwrap());
}

#[test]
fn a_lock_line_that_comes_while_we_wait_counts() {
    let host = Host::new();
    let asked = Cell::new(0);
    let done = host.conf.edit(Caller::ByHand, |document| {
        if asked.replace(asked.get() + 1) == 0 {
            host.replace_as_proxmox("lock: migrate\n");
        }
        set(document, "1")
    });
    assert!(one_line(&done.unwrap_err()).contains("(migrate)"));
    assert_eq!(host.text(), "lock: migrate\n");
}

#[test]
fn a_name_that_is_missing_for_a_moment_is_waited_for() {
    let host = Host::new();
    let (path, away) = (host.conf.path().to_owned(), host.path("etc/pve/away"));
    std::fs::rename(&path, &away).unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        std::fs::rename(away, path).unwrap();
    });
    assert_eq!(host.conf.read().unwrap().get("memory").as_deref(), Some("512"));
    writer.join().unwrap();
}

#[test]
fn a_container_that_is_not_there_is_3_and_one_that_vanishes_is_4() {
    let host = Host::new();
    let asked = Cell::new(0);
    let vanished = host.conf.edit(Caller::ByHand, |document| {
        if asked.replace(asked.get() + 1) == 0 {
            std::fs::remove_file(host.conf.path()).unwrap();
        }
        set(document, "1")
    });
    let error = vanished.unwrap_err();
    assert_eq!(code_of(&error), Code::Passthrough);
    assert!(one_line(&error).contains("destroyed or migrated"), "{error:#}");
    assert!(host.names().is_empty());

    let error = host.conf.read().unwrap_err();
    assert_eq!(code_of(&error), Code::NoContainer);
    assert!(one_line(&error).contains("container 101 does not exist"), "{error:#}");
}

#[test]
fn a_container_on_another_node_is_named_with_its_node() {
    let host = Host::new();
    std::fs::rename(host.conf.path(), host.path("etc/pve/nodes/two/lxc/101.conf")).unwrap();
    let error = host.conf.read().unwrap_err();
    assert_eq!(code_of(&error), Code::NoContainer);
    assert!(one_line(&error).contains("on node two"), "{error:#}");
    assert_eq!(remedy_of(&error), Some("ssh two phoenix-nvidia 101"));
    host.refuses(Caller::ByHand, "migrated: it is now on node two");
}

#[test]
fn without_etc_pve_the_cluster_file_system_is_named() {
    let mut host = Host::new();
    drop(host.pmxcfs.take());
    std::fs::remove_dir_all(host.path("etc/pve")).unwrap();
    let error = host.conf.read().unwrap_err();
    assert!(remedy_of(&error).unwrap().contains("pve-cluster"), "{error:#}");
}

#[test]
fn what_is_no_file_is_left_alone() {
    let host = Host::new();
    std::fs::remove_file(host.conf.path()).unwrap();
    std::fs::create_dir(host.conf.path()).unwrap();
    host.refuses(Caller::Hook, "is a directory");
    std::fs::remove_dir(host.conf.path()).unwrap();
    if host.on_pmxcfs() {
        return; // neither symlink nor fifo there
    }
    std::fs::write(host.path("target"), files::TEXT).unwrap();
    symlink(host.path("target"), host.conf.path()).unwrap();
    host.refuses(Caller::ByHand, "is a symlink");
    assert!(host.conf.path().is_symlink());

    std::fs::remove_file(host.conf.path()).unwrap();
    nix::unistd::mkfifo(host.conf.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = host.set(Caller::ByHand, "1").unwrap_err();
    assert!(one_line(&error).contains("is a FIFO"), "{error:#}");
}

#[test]
fn a_conf_is_never_made_larger_than_1_mib() {
    let host = Host::new();
    let line = format!("#{}\n", "x".repeat(62));
    std::fs::write(host.conf.path(), line.repeat((1 << 20) / line.len())).unwrap();
    host.refuses(Caller::ByHand, "exceed 1 MiB");
    let room = line.repeat((1 << 20) / line.len() - 1);
    std::fs::write(host.conf.path(), &room).unwrap();
    assert!(host.set(Caller::ByHand, "1").unwrap());
    if !host.on_pmxcfs() {
        std::fs::write(host.conf.path(), vec![b'x'; (1 << 20) + 1]).unwrap();
        host.refuses(Caller::ByHand, "larger than 1 MiB");
    }
}

#[test]
fn what_a_killed_run_left_is_removed_also_when_there_is_nothing_else_to_do() {
    let host = Host::new();
    let leftover = |pid: &str| host.path(&format!("etc/pve/lxc/101.conf.phoenix-nvidia.{pid}"));
    let foreign = ["101.conf.tmp.77", "102.conf.phoenix-nvidia.5", "101.conf.phoenix-nvidia.x"];
    foreign.iter().for_each(|name| std::fs::write(host.path("etc/pve/lxc").join(name), "x").unwrap());

    std::fs::write(leftover("999999"), "half a fi").unwrap();
    std::fs::write(leftover(&std::process::id().to_string()), "of a reused pid").unwrap();
    assert!(host.set(Caller::ByHand, "1").unwrap());
    assert_eq!(host.names().len(), 1 + foreign.len(), "{:?}", host.names());

    std::fs::write(leftover("999999"), "half a fi").unwrap();
    assert!(!host.set(Caller::ByHand, "1").unwrap());
    assert_eq!(host.names().len(), 1 + foreign.len());

    // Somebody is at work: it is his.
    std::fs::write(leftover("999999"), "half a fi").unwrap();
    let _held = host.hold(host.conf.path().to_owned());
    assert!(!host.set(Caller::ByHand, "1").unwrap());
    assert!(leftover("999999").exists());
}

#[test]
fn the_generated_config_is_edited_where_there_is_one() {
    let host = Host::new();
    assert!(host.conf.edit_generated(|d| set(d, "1")).unwrap().is_none());
    let path = host.path("var/lib/lxc/101/config");
    std::fs::write(&path, "lxc.arch = amd64\n").unwrap();
    std::fs::write(host.path("var/lib/lxc/101/config.phoenix-nvidia.999999"), "half").unwrap();
    assert!(host.conf.edit_generated(|d| set(d, "1")).unwrap().is_some());
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("A=1\n"));
    assert_eq!(std::fs::read_dir(host.path("var/lib/lxc/101")).unwrap().count(), 1);
    let inode = path.metadata().unwrap().ino();
    assert!(host.conf.edit_generated(|d| set(d, "1")).unwrap().is_none());
    assert_eq!(path.metadata().unwrap().ino(), inode);

    std::fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    let error = host.conf.edit_generated(|d| set(d, "1")).unwrap_err();
    assert_eq!(code_of(&error), Code::Passthrough);
}

#[test]
fn threads_that_edit_at_once_lose_nothing() {
    let host = Host::new();
    let conf = host.conf.clone();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let conf = &conf;
            scope.spawn(move || {
                let key = format!("K{number}").parse().unwrap();
                conf.edit(Caller::ByHand, |d: &Document| {
                    d.set_environment(&key, Some(&"1".parse().unwrap()))
                })
                .unwrap();
            });
        }
    });
    assert_eq!(conf.read().unwrap().environment().len(), 8);
    assert_eq!(host.names(), ["101.conf"]);
}

#[test]
fn all_of_this_holds_on_pmxcfs_too() {
    if std::env::var_os(ON_PMXCFS).is_some() {
        return;
    }
    if let Some(reason) = phoenix_lab::fuse::unavailable() {
        assert!(!phoenix_lab::required(), "{reason}");
        phoenix_lab::skipped(&reason.to_string());
        return;
    }
    // In a mount namespace of its own, so that nothing stays mounted whatever happens.
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "timeout", "120"])
        .arg(std::env::current_exe().unwrap())
        .args(["store::", "on_pmxcfs::"])
        .env(ON_PMXCFS, "1")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{shown}\n{errors}", output.status);
    assert!(shown.contains("test on_pmxcfs::the_file_system_has_the_rules_of_pmxcfs ... ok"), "{shown}");
}
