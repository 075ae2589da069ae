// Tests damage files as nothing else does.
#![allow(clippy::disallowed_methods)]
use super::*;
use crate::driver::runfile;
use crate::driver::tree::copy::{self, Source};
use phoenix_lab::nvidia::package::{Compression, Trap};
use phoenix_lab::nvidia::runfile::Runfile;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

const VERSION: &str = "580.95.05";

fn version() -> Version {
    VERSION.parse().unwrap()
}

/// What became of a runfile: the tree, if one was made, and what else is in its place.
fn made(runfile: &Path, deadline: &Deadline) -> (tempfile::TempDir, anyhow::Result<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join(VERSION);
    let done = copy::make(&Source::Runfile(runfile.to_owned()), &version(), &at, deadline);
    if done.is_err() {
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{done:?}");
    }
    (dir, done.map(|()| at))
}

fn tree(runfile: &Runfile) -> (tempfile::TempDir, PathBuf) {
    let (dir, made) = made(&runfile.build().unwrap(), &Deadline::secs(60));
    (dir, made.unwrap_or_else(|why| panic!("{why:#}")))
}

fn refused(runfile: &Runfile) -> String {
    format!("{:#}", made(&runfile.build().unwrap(), &Deadline::secs(60)).1.unwrap_err())
}

/// All paths below a directory, with what a link leads to.
fn listing(at: &Path, below: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(at.join(below)).unwrap().flatten() {
        let path = format!("{below}{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all.extend(listing(at, &format!("{path}/"))),
            kind if kind.is_symlink() => {
                all.push(format!("{path} -> {}", std::fs::read_link(entry.path()).unwrap().display()));
            }
            _ => all.push(path),
        }
    }
    all.sort();
    all
}

const WHOLE: [&str; 24] = [
    ".phoenix-nvidia",
    "bin/nvidia-smi",
    "libGLX_indirect.so.0 -> libGLX_nvidia.so.0",
    "libGLX_nvidia.so.0 -> libGLX_nvidia.so.580.95.05",
    "libGLX_nvidia.so.580.95.05",
    "libcuda.so -> libcuda.so.1",
    "libcuda.so.1 -> libcuda.so.580.95.05",
    "libcuda.so.580.95.05",
    "libnvcuvid.so.1 -> libnvcuvid.so.580.95.05",
    "libnvcuvid.so.580.95.05",
    "libnvidia-cfg.so.1 -> libnvidia-cfg.so.580.95.05",
    "libnvidia-cfg.so.580.95.05",
    "libnvidia-encode.so.1 -> libnvidia-encode.so.580.95.05",
    "libnvidia-encode.so.580.95.05",
    "libnvidia-ml.so.1 -> libnvidia-ml.so.580.95.05",
    "libnvidia-ml.so.580.95.05",
    "libnvidia-opencl.so.1 -> libnvidia-opencl.so.580.95.05",
    "libnvidia-opencl.so.580.95.05",
    "libnvidia-ptxjitcompiler.so.1 -> libnvidia-ptxjitcompiler.so.580.95.05",
    "libnvidia-ptxjitcompiler.so.580.95.05",
    "share/OpenCL/vendors/nvidia.icd",
    "share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "share/glvnd/egl_vendor.d/10_nvidia.json",
    "share/vulkan/icd.d/nvidia_icd.json",
];

#[test]
fn every_compression_gives_the_same_tree_and_nothing_of_the_host() {
    for compression in [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let (_dir, tree) = tree(&Runfile::new(VERSION).compressed(compression));
        assert_eq!(listing(&tree, ""), WHOLE, "{compression:?}");
        for (name, mode) in
            [("", 0o755), ("share/vulkan", 0o755), ("bin/nvidia-smi", 0o755), ("libcuda.so.580.95.05", 0o644)]
        {
            let meta = tree.join(name).metadata().unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, nix::unistd::getuid().as_raw()), "{name}");
        }
    }
}

#[test]
fn nvidias_own_list_decides_where_it_is_there() {
    let (_dir, tree) = tree(&Runfile::new(VERSION).listed());
    let unlisted = |path: &&str| {
        path.contains("nvcuvid") || (path.starts_with("share/") && *path != "share/OpenCL/vendors/nvidia.icd")
    };
    let listed: Vec<&str> = WHOLE.into_iter().filter(|path| !unlisted(path)).collect();
    assert_eq!(listing(&tree, ""), listed);
    assert!(!tree.join("share/vulkan").exists());
}

#[test]
fn what_a_driver_has_not_is_refused_or_left_out() {
    for (trap, why) in [
        (Trap::Above, "outside of its directory: firmware/../../../etc/phoenix-trap"),
        (Trap::Absolute, "outside of its directory: /etc/phoenix-trap"),
        (Trap::Huge, "more than a driver"),
        (Trap::Twice, "File exists"),
        (Trap::LongName, "could not be unpacked"),
    ] {
        let error = refused(&Runfile::new(VERSION).compressed(Compression::Zstd).trap(trap));
        assert!(error.contains(why), "{trap:?}: {error}");
    }
    let (_dir, tree) = tree(&Runfile::new(VERSION).trap(Trap::Odd));
    let mut with = WHOLE.map(str::to_owned).to_vec();
    with.push("bin/nvidia-debugdump".to_owned());
    with.sort();
    assert_eq!(listing(&tree, ""), with);
    assert_eq!(tree.join("bin/nvidia-debugdump").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn what_is_compressed_in_another_way_or_needs_too_much_memory_is_refused() {
    let error = refused(&Runfile::new(VERSION).compressed(Compression::Bzip2));
    assert!(error.contains("bzip2"), "{error}");
    let error = refused(&Runfile::new(VERSION).compressed(Compression::Window(28)));
    assert!(error.contains("too much memory"), "{error}");
}

#[test]
fn a_file_that_changed_since_it_was_verified_or_is_of_another_version_is_refused() {
    for compression in [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let good = Runfile::new(VERSION).compressed(compression).build().unwrap();
        let whole = std::fs::read(&good).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.run");
        // In the payload, and cut.
        let mut damaged = whole.clone();
        let middle = damaged.len() - damaged.len() / 8;
        damaged[middle] ^= 1;
        for bytes in [&damaged[..], &whole[..whole.len() / 2], &whole[..whole.len() - 5]] {
            std::fs::write(&file, bytes).unwrap();
            assert!(made(&file, &Deadline::secs(60)).1.is_err(), "{compression:?} {}", bytes.len());
        }
        // What is behind the payload counts too.
        std::fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
        let error = format!("{:#}", made(&file, &Deadline::secs(60)).1.unwrap_err());
        assert!(error.contains("its MD5 differs"), "{compression:?}: {error}");
    }
    let other = Runfile::new("570.86.15").build().unwrap();
    let error = format!("{:#}", made(&other, &Deadline::secs(60)).1.unwrap_err());
    assert!(error.contains("no libcuda.so.580.95.05") || error.contains("is of driver 570.86.15"), "{error}");
}

#[test]
fn a_time_that_is_over_leaves_nothing() {
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::None] {
        let file = Runfile::new(VERSION).compressed(compression).build().unwrap();
        let error = made(&file, &Deadline::secs(0)).1.unwrap_err();
        assert!(format!("{error:#}").contains("not unpacked within"), "{error:#}");
        assert!(crate::sys::time::is_late(&error), "{error:?}");
    }
}

#[test]
fn the_payload_begins_behind_the_embedded_program_however_many_lines_that_has() {
    for compression in [Compression::Xz, Compression::Zstd] {
        let bytes = std::fs::read(Runfile::new(VERSION).compressed(compression).build().unwrap()).unwrap();
        let header = runfile::Header::parse(&bytes).unwrap();
        let payload = &bytes[usize::try_from(header.payload).unwrap()..];
        assert!(runfile::payload::Compression::of(payload).is_ok(), "{:?}", &payload[..8]);
        // And its lines are none of the header's.
        assert_eq!(header.version.as_str(), VERSION);
    }
}

#[test]
fn files_that_are_missing_come_back_out_of_the_runfile() {
    let runfile = Runfile::new(VERSION).compressed(Compression::Zstd);
    let (_dir, tree) = tree(&runfile);
    std::fs::remove_file(tree.join("bin/nvidia-smi")).unwrap();
    std::fs::remove_file(tree.join("libcuda.so")).unwrap();
    std::fs::write(tree.join("libcuda.so.580.95.05"), "cut").unwrap();
    let lacking = ["bin/nvidia-smi", "libcuda.so.580.95.05", "libcuda.so"].map(str::to_owned);
    let repair = |runfile: &Runfile| {
        let source = Source::Runfile(runfile.build().unwrap());
        copy::repair(&source, &tree, &lacking, &Deadline::secs(60))
    };
    let error = repair(&runfile.clone().listed()).unwrap_err();
    assert!(error.to_string().contains("not those of which it was made"), "{error:#}");
    repair(&runfile).unwrap();
    assert_eq!(listing(&tree, ""), WHOLE);
    assert!(tree.join("libcuda.so.580.95.05").metadata().unwrap().len() > 100);
    assert_eq!(std::fs::read_dir(tree.parent().unwrap()).unwrap().count(), 2);
}

#[test]
fn a_place_in_the_tree_is_known_by_the_name() {
    for (name, to) in [
        ("libcuda.so.580.95.05", Some("libcuda.so.580.95.05")),
        ("libnvidia-egl-gbm.so.1.1.3", Some("libnvidia-egl-gbm.so.1.1.3")),
        ("nvidia-cuda-mps-server", Some("bin/nvidia-cuda-mps-server")),
        (
            "nvidia-application-profiles-580.95.05-rc",
            Some("share/nvidia/nvidia-application-profiles-580.95.05-rc"),
        ),
        ("nvidia-application-profiles-570.86.15-rc", None),
        ("nvoptix.bin", Some("share/nvidia/nvoptix.bin")),
        ("10_nvidia.json", Some("share/glvnd/egl_vendor.d/10_nvidia.json")),
        ("99_nvidia_wayland2.json", Some("share/egl/egl_external_platform.d/99_nvidia_wayland2.json")),
        ("nvidia_icd_vksc.json", None),
        ("sandboxutils-filelist.json", None),
        ("nvidia_drv.so", None),
        ("32/libcuda.so.580.95.05", None),
        ("nvidia-smi.1.gz", None),
        ("libx\u{fc}.so.580.95.05", None),
        ("", None),
    ] {
        assert_eq!(place(name, &version()).as_deref(), to, "{name}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn a_place_is_below_the_tree(name in "(\\PC|[./a-z_-]){0,30}") {
        if let Some(to) = place(&name, &version()) {
            proptest::prop_assert!(!to.starts_with('/') && !to.split('/').any(|part| part == ".." || part.is_empty()), "{to}");
        }
    }

    /// Any bytes in the place of the payload leave nothing, in time.
    #[test]
    fn no_payload_makes_it_panic(magic in 0..4_usize, tail: Vec<u8>) {
        let magics: [&[u8]; 4] = [b"\x1f\x8b\x08\0", b"\xfd7zXZ\0\0\0", b"\x28\xb5\x2f\xfd\x04\x88", b""];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.run");
        let head = b"#!/bin/sh\nCRCsum=0\nMD5=00112233445566778899aabbccddeeff\nskip=7\nversion_string=580.95.05\nTARGET_ARCH=x\n";
        std::fs::write(&file, [&head[..], magics[magic], &tail].concat()).unwrap();
        proptest::prop_assert!(made(&file, &Deadline::secs(20)).1.is_err());
    }
}
