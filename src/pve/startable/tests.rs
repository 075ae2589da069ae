use super::*;
use crate::sys::look::View;
use crate::sys::time::Deadline;
use std::path::Path;

/// A host with quorum, a hookscript, a directory and a device.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in ["etc/pve/nodes/pve1", "dev", "srv/there", "var/lib/vz/snippets"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    std::os::unix::fs::symlink("nodes/pve1", dir.path().join("etc/pve/local")).unwrap();
    let file = |path: &str, mode| {
        crate::sys::replace::replace_own(&dir.path().join(path), b"x", mode).unwrap();
    };
    file("dev/there", 0o644);
    file("var/lib/vz/snippets/mine", 0o755);
    file("var/lib/vz/snippets/plain", 0o644);
    dir
}

fn of(root: &Path, conf: &str) -> Vec<Obstacle> {
    obstacles(&mut Look::new(root), &Look::new(root), &Document::parse(conf.as_bytes()))
}

#[test]
fn a_container_with_all_that_it_needs_is_startable() {
    let dir = host();
    let conf = "rootfs: local:101/x.raw,size=4G\nhookscript: local:snippets/mine\ndev0: /dev/there,gid=4\n\
                mp0: /srv/there,mp=/there\nmp1: local:101/y.raw,mp=/y\ntemplate: 0\n\n[snap]\nlock: backup\n";
    assert_eq!(of(dir.path(), conf), []);
    let ctid: Ctid = "101".parse().unwrap();
    assert_eq!(judge(ctid, Vec::new()).unwrap().ctid(), ctid);
    assert_eq!(judge(ctid, vec![Obstacle::NoQuorum]).unwrap_err(), [Obstacle::NoQuorum]);
}

#[test]
fn each_thing_that_is_missing_is_named() {
    let dir = host();
    let said = |conf: &str| list(&of(dir.path(), conf));
    for (line, wanted) in [
        ("template: 1", "it is a template"),
        ("lock: backup", "its conf is locked (backup)"),
        ("hookscript: local:snippets/gone", "its hookscript local:snippets/gone does not exist"),
        ("hookscript: local:snippets/plain", "its hookscript local:snippets/plain cannot be executed"),
        ("hookscript: gone:snippets/mine", "its hookscript gone:snippets/mine is in no storage of this node"),
        ("dev3: gid=4,path=/dev/gone", "dev3 passes /dev/gone, which does not exist"),
        ("dev3: gid=4", "dev3 cannot be read: has no path"),
        ("mp0: /srv/gone,mp=/x", "mp0 mounts /srv/gone, which does not exist"),
        ("mp0: mp=/x,volume=/dev/gone", "mp0 mounts /dev/gone, which does not exist"),
        ("mp1: gone:vm-101-disk-1,mp=/x", "mp1 is on storage gone, which does not exist"),
    ] {
        assert_eq!(said(&format!("{line}\n")), wanted, "{line}");
    }
    // What is pending is what the next start goes by.
    assert_eq!(said("dev0: /dev/gone\n[pve:pending]\ndelete: dev0\n"), "");
    assert_eq!(said("[pve:pending]\ndev0: /dev/gone\n"), "dev0 passes /dev/gone, which does not exist");
}

/// A server that is dead has the sources of many.
#[test]
fn of_many_mount_points_few_are_named() {
    let dir = host();
    let conf = |count: usize| (0..count).map(|n| format!("mp{n}: /srv/gone,mp=/x{n}\n")).collect::<String>();
    let said = |count: usize| list(&of(dir.path(), &conf(count)));
    assert_eq!(said(3).matches("does not exist").count(), 3);
    assert!(!said(3).contains("more"), "{}", said(3));
    let many = said(40);
    assert!(many.matches("does not exist").count() == 3 && many.ends_with("; and 37 more"), "{many}");
}

/// The parent of a mount point's source is a file: nothing is there. What
/// gives another error is not said to be missing.
#[test]
fn what_could_not_be_looked_at_is_not_missing_and_nothing_is_stopped_for_it() {
    let dir = host();
    assert_eq!(
        list(&of(dir.path(), "mp0: /dev/there/x,mp=/x\n")),
        "mp0 mounts /dev/there/x, which does not exist"
    );
    std::os::unix::fs::symlink("loop", dir.path().join("srv/loop")).unwrap();
    let found = of(dir.path(), "mp0: /srv/loop,mp=/x\nmp1: /dev/../srv/loop,mp=/y\n");
    let text = list(&found);
    assert!(
        text.starts_with("mp0: cannot check /srv/loop: ") && text.contains("; mp1: cannot check"),
        "{text}"
    );
    assert!(found.iter().all(|o| o.passes() && o.refuses_start()));
    assert_eq!(judge("101".parse().unwrap(), found).unwrap_err().len(), 2);
}

#[test]
fn all_that_may_lie_on_a_storage_is_asked_of_the_files() {
    let dir = host();
    let conf = Document::parse(
        b"rootfs: local:101/x.raw\nhookscript: local:snippets/mine\nmp0: /srv/there,mp=/x\nmp1: volume=/dev/sda,mp=/y\n\
          mp2: local:101/y.raw,mp=/z\n[pve:pending]\nmp3: /srv/gone,mp=/g\n",
    );
    let storages = storage::parse("");
    let asked: Vec<String> = questions(&storages, &conf).into_iter().map(|q| q.path).collect();
    assert_eq!(asked, ["/var/lib/vz/snippets/mine", "/srv/there", "/dev/sda", "/srv/gone"]);
    // Answers to nothing: no file is looked at behind their back.
    let none =
        Look::at_files(View::apart(dir.path(), &Deadline::secs(1)), vec![Question::new(Op::Stat, "/x")]);
    let found = obstacles(&mut Look::new(dir.path()), &none, &conf);
    assert_eq!(found.len(), asked.len(), "{found:?}");
    assert!(found.iter().all(|o| matches!(o, Obstacle::Silent { .. })), "{found:?}");
}

#[test]
fn a_path_in_a_remedy_is_one_word() {
    let ctid: Ctid = "101".parse().unwrap();
    let (key, source, why) = ("mp0".to_owned(), "/srv/a b;reboot".to_owned(), String::new());
    let silent = Obstacle::Silent { key: key.clone(), source: source.clone(), why };
    let hookscript = Obstacle::Hookscript {
        volume: "local:snippets/x".to_owned(),
        why: "cannot be executed",
        path: Some(source.clone()),
    };
    for obstacle in [silent, hookscript, Obstacle::MountPoint { key, source }] {
        let remedy = obstacle.remedy(ctid);
        assert!(remedy.contains(" '/srv/a b;reboot'"), "{remedy}");
    }
}

#[test]
fn without_a_local_directory_there_is_no_quorum() {
    let dir = host();
    std::fs::remove_file(dir.path().join("etc/pve/local")).unwrap();
    assert_eq!(of(dir.path(), ""), [Obstacle::NoQuorum]);
}

#[test]
fn the_lock_of_a_mounted_container_refuses_no_start() {
    let lock = |owner: &str| Obstacle::Lock { owner: owner.to_owned() };
    assert!(!lock("mounted").refuses_start() && lock("backup").refuses_start());
    assert!(lock("backup").passes() && !Obstacle::Template.passes());
}

#[test]
fn a_field_tells_what_it_is() {
    let text = serde_json::to_string(&Obstacle::Lock { owner: "backup".into() }).unwrap();
    assert_eq!(text, r#"{"kind":"lock","owner":"backup"}"#);
    assert_eq!(serde_json::to_string(&Obstacle::NoQuorum).unwrap(), r#"{"kind":"no-quorum"}"#);
}

#[test]
fn no_container_is_told_to_do_without_its_root_file_system() {
    let ctid = "101".parse().unwrap();
    let remedy = |key: &str| {
        let (key, source) = (key.to_owned(), "/srv/x".to_owned());
        let storage = Obstacle::Storage { key: key.clone(), storage: "gone".into() };
        (Obstacle::MountPoint { key, source }.remedy(ctid), storage.remedy(ctid))
    };
    assert_eq!(remedy("rootfs"), ("mount or create /srv/x".to_owned(), "define storage gone".to_owned()));
    let without = ", or, to start without what is on it: pct set 101 --delete mp0";
    assert_eq!(
        remedy("mp0"),
        (format!("mount or create /srv/x{without}"), format!("define storage gone{without}"))
    );
}
