// Its own directories.
#![allow(clippy::disallowed_methods)]
use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn version() -> Version {
    "580.95.05".parse().unwrap()
}

/// A host whose driver is copies of this program, which is an ELF file.
fn host() -> (tempfile::TempDir, Trees) {
    let dir = tempfile::tempdir().unwrap();
    let library =
        if cfg!(target_arch = "aarch64") { "usr/lib/aarch64-linux-gnu" } else { "usr/lib/x86_64-linux-gnu" };
    for path in ["libcuda.so.580.95.05", "libnvidia-ml.so.580.95.05"].map(|name| format!("{library}/{name}"))
    {
        put(&dir.path().join(path));
    }
    put(&dir.path().join("usr/bin/nvidia-smi"));
    let trees = Trees { root: dir.path().to_owned(), supply: Supply::default() };
    (dir, trees)
}

fn put(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy("/bin/true", path).unwrap();
    // Of the host, whatever their modes are there.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4711)).unwrap();
}

fn keep(trees: &Trees) -> anyhow::Result<()> {
    trees.keep(&version(), None, &Deadline::secs(60))
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_copy_is_whole_roots_and_without_setuid() {
    let (_dir, trees) = host();
    assert_eq!(trees.check(&version()), Err(Gap::Tree));
    keep(&trees).unwrap();
    let tree = trees.kept(&version());
    assert_eq!(names(&tree), [".phoenix-nvidia", "bin", "libcuda.so.580.95.05", "libnvidia-ml.so.580.95.05"]);
    for (name, mode) in [
        ("", 0o755),
        ("bin", 0o755),
        ("bin/nvidia-smi", 0o755),
        ("libcuda.so.580.95.05", 0o644),
        (MARK, 0o644),
    ] {
        let meta = tree.join(name).metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
    }
    assert_eq!(trees.check(&version()), Err(Gap::Mount));
    // A second time nothing is copied.
    let before = tree.join("libcuda.so.580.95.05").metadata().unwrap().ino();
    keep(&trees).unwrap();
    assert_eq!(tree.join("libcuda.so.580.95.05").metadata().unwrap().ino(), before);
}

#[test]
fn what_a_killed_run_left_goes_and_files_that_are_missing_come_back() {
    let (_dir, trees) = host();
    let above = trees.root.join(KEPT);
    std::fs::create_dir_all(above.join(".580.95.05.4711/share")).unwrap();
    std::fs::create_dir_all(above.join("580.95.05/share")).unwrap();
    // A directory of that name without its list is no tree.
    assert_eq!(trees.check(&version()), Err(Gap::Files(1)));
    keep(&trees).unwrap();
    // Where mount tables cannot be read, somebody may use what was there.
    let aside = mountinfo::all(&Deadline::secs(60), |_| ()).is_err().then_some("old-1-580.95.05");
    assert_eq!(names(&above), ["580.95.05"].into_iter().chain(aside).collect::<Vec<_>>());
    let tree = trees.kept(&version());
    std::fs::remove_file(tree.join("bin/nvidia-smi")).unwrap();
    std::fs::File::options()
        .write(true)
        .open(tree.join("libcuda.so.580.95.05"))
        .unwrap()
        .set_len(10)
        .unwrap();
    assert_eq!(trees.check(&version()), Err(Gap::Files(2)));
    keep(&trees).unwrap();
    assert_eq!(trees.check(&version()), Err(Gap::Mount));
    assert_eq!(std::fs::read(tree.join("bin/nvidia-smi")).unwrap(), std::fs::read("/bin/true").unwrap());
}

#[test]
fn a_host_without_the_files_and_a_time_that_is_over_leave_nothing() {
    let (_dir, trees) = host();
    let other: Version = "590.48.01".parse().unwrap();
    let error = trees.make(&other, &Deadline::secs(60)).unwrap_err();
    assert!(format!("{error:#}").contains("its driver files are 580.95.05"), "{error:#}");
    assert!(format!("{error:#}").contains("not in the cache"), "{error:#}");
    assert_eq!(crate::exit::remedy_of(&error), Some("phoenix-nvidia prepare"));
    let error = trees.make(&version(), &Deadline::secs(0)).unwrap_err();
    assert!(format!("{error:#}").contains("not copied within"), "{error:#}");
    assert_eq!(crate::exit::remedy_of(&error), Some("phoenix-nvidia prefetch"));
    assert_eq!(names(&trees.root.join(KEPT)), [""; 0]);
}

#[test]
fn a_repair_puts_whole_files_in_their_places_and_one_that_fails_changes_nothing() {
    let (_dir, trees) = host();
    keep(&trees).unwrap();
    let tree = trees.kept(&version());
    std::fs::remove_file(tree.join("bin/nvidia-smi")).unwrap();
    let cut = std::fs::File::options().write(true).open(tree.join("libcuda.so.580.95.05")).unwrap();
    cut.set_len(3).unwrap();
    let error = trees.keep(&version(), None, &Deadline::secs(0)).unwrap_err();
    assert!(format!("{error:#}").contains("not copied within"), "{error:#}");
    // Whoever reads it now does not find a part of what was to be put there.
    assert_eq!(std::fs::read(tree.join("libcuda.so.580.95.05")).unwrap(), b"\x7fEL");
    assert!(!tree.join("bin/nvidia-smi").exists());
    let old = tree.join("libcuda.so.580.95.05").metadata().unwrap().ino();
    keep(&trees).unwrap();
    // Not written in place: a program may have the old one mapped.
    assert_ne!(tree.join("libcuda.so.580.95.05").metadata().unwrap().ino(), old);
    assert_eq!(Manifest::read(&tree).unwrap().lacking(&tree), [""; 0]);
    // Nor below a mount: another directory, which a mount of the first is not taken for.
    assert_eq!(names(&trees.root.join(KEPT)), ["580.95.05", "old-1-580.95.05"]);
    let aside = trees.root.join(KEPT).join("old-1-580.95.05");
    assert_eq!(aside.join("libcuda.so.580.95.05").metadata().unwrap().ino(), old);
    assert_ne!(Manifest::read(&tree), Manifest::read(&aside));
    let ml = |tree: &Path| tree.join("libnvidia-ml.so.580.95.05").metadata().unwrap().ino();
    assert_eq!(ml(&tree), ml(&aside), "what both have is there once");
}

/// A package with an encoder came after the copy was made, and another was removed.
#[test]
fn what_the_host_gains_is_added_in_a_new_directory_and_nothing_goes() {
    let (_dir, trees) = host();
    assert!(trees.can_gain(&version()), "all of it");
    keep(&trees).unwrap();
    let (tree, library) = (trees.kept(&version()), trees.root.join("usr/lib/x86_64-linux-gnu"));
    let library = if library.exists() { library } else { trees.root.join("usr/lib/aarch64-linux-gnu") };
    assert!(!trees.can_gain(&version()));
    let encoder = "libnvidia-encode.so.580.95.05";
    put(&library.join(encoder));
    std::fs::remove_file(trees.root.join("usr/bin/nvidia-smi")).unwrap();
    assert!(trees.can_gain(&version()) && trees.gained(&version()) == [encoder]);
    let ino = |path: &Path| path.metadata().unwrap().ino();
    let before = (ino(&tree), ino(&tree.join("libcuda.so.580.95.05")));
    // What fails changes nothing, and is no reason to have no driver.
    trees.keep(&version(), None, &Deadline::secs(0)).unwrap();
    assert_eq!(trees.gained(&version()), [encoder]);
    assert_eq!((ino(&tree), names(&trees.root.join(KEPT)).len()), (before.0, 1));
    keep(&trees).unwrap();
    // Another directory, since a container may have the first one mounted; what both have is there once.
    assert_ne!(ino(&tree), before.0);
    assert_eq!(ino(&tree.join("libcuda.so.580.95.05")), before.1);
    let all = [".phoenix-nvidia", "bin", "libcuda.so.580.95.05", encoder, "libnvidia-ml.so.580.95.05"];
    assert_eq!(names(&tree), all);
    assert_eq!(names(&tree.join("bin")), ["nvidia-smi"]);
    assert_eq!(Manifest::read(&tree).unwrap().lacking(&tree), [""; 0]);
    assert_eq!(tree.join(encoder).metadata().unwrap().permissions().mode() & 0o7777, 0o644);
    assert!(!trees.can_gain(&version()));
    assert_eq!(names(&trees.root.join(KEPT)), ["580.95.05", "old-1-580.95.05"]);
    // One that lacks a file and gains another has both afterwards.
    put(&library.join("libnvidia-opencl.so.580.95.05"));
    std::fs::remove_file(tree.join(encoder)).unwrap();
    keep(&trees).unwrap();
    assert!(tree.join(encoder).exists() && tree.join("libnvidia-opencl.so.580.95.05").exists());
    // What neither has cannot come back, and takes nothing away.
    std::fs::remove_file(tree.join("bin/nvidia-smi")).unwrap();
    let error = keep(&trees).unwrap_err();
    assert!(format!("{error:#}").contains("bin/nvidia-smi"), "{error:#}");
    assert!(tree.join(encoder).exists());
}

/// Killed between the renames of a file system that cannot exchange two names.
#[test]
fn a_tree_whose_exchange_was_cut_off_comes_back_without_the_hosts_files() {
    let cut_off = || {
        let (dir, trees) = host();
        keep(&trees).unwrap();
        let tree = trees.kept(&version());
        std::fs::remove_file(tree.join("bin/nvidia-smi")).unwrap();
        keep(&trees).unwrap();
        // The old one has gone out of its place, and the new one is not there yet.
        let aside = |number: u32| tree.with_file_name(format!("old-{number}-580.95.05"));
        std::fs::rename(aside(1), aside(2)).unwrap();
        std::fs::rename(&tree, aside(1)).unwrap();
        std::fs::remove_dir_all(trees.root.join("usr")).unwrap();
        (dir, trees, tree)
    };
    let is_whole = |tree: &Path| Manifest::read(tree).is_some_and(|list| list.lacking(tree).is_empty());
    let (_dir, trees, tree) = cut_off();
    assert_eq!(trees.possible(&version()).unwrap(), Possible::Kept);
    trees.make_ahead(&version(), &Deadline::secs(60)).unwrap();
    assert!(is_whole(&tree));
    assert_eq!(names(&trees.root.join(KEPT)), ["580.95.05", "old-2-580.95.05"]);
    // What is to be kept is not swept away instead, and what nobody wants is.
    for keep in [Some(&[&version()][..]), None] {
        let (_dir, trees, tree) = cut_off();
        trees.sweep(keep, &Deadline::secs(60));
        assert!(is_whole(&tree));
    }
    let (_dir, trees, tree) = cut_off();
    trees.sweep(Some(&[]), &Deadline::secs(60));
    assert!(!tree.exists());
}

/// Host files that are gone, or of the next driver, are nothing that could be kept.
#[test]
fn a_host_without_the_files_has_nothing_to_gain() {
    let (_dir, trees) = host();
    assert!(!trees.can_gain(&"590.48.01".parse().unwrap()));
}
