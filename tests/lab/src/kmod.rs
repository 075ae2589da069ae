//! kmod's own modinfo and depmod on the lab's host, from the image of a Debian container, and kernel modules for them: a
//! machine that runs the tests need not have either.

use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::rootfs::{self, Rootfs};

/// Where its files are: not below /run, which is noexec.
const HOME: &str = "/usr/lib/lab-kmod";

impl Lab {
    /// Installs them; /lib/modules has the running kernel, without any module.
    #[track_caller]
    pub fn kmod(&self) {
        let image = rootfs::ensure(Rootfs::Debian12, false).and_then(|name| Ok(rootfs::cache()?.join(name)));
        let image = image.unwrap_or_else(|e| panic!("the image with kmod: {e:#}"));
        let libraries = image.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let loader = beginning(&libraries, "ld-linux");
        self.take(&loader, "ld.so");
        self.take(&image.join("usr/bin/kmod"), "kmod");
        for name in ["libc.so.6", "libzstd.so.1", "liblzma.so.5", "libcrypto.so.3"] {
            self.take(&libraries.join(name), name);
        }
        for name in ["modinfo", "depmod"] {
            let run = format!("exec {HOME}/ld.so --argv0 {name} --library-path {HOME} {HOME}/kmod \"$@\"");
            self.replace_program(format!("/usr/sbin/{name}"), format!("#!/bin/sh\n{run}\n"));
        }
        self.sh("mkdir -p /etc/modprobe.d /lib/modules/$(uname -r) && cd /lib/modules/$(uname -r) && touch modules.order modules.builtin")
            .ok();
    }

    fn take(&self, from: &Path, name: &str) {
        let content = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        self.replace_program(format!("{HOME}/{name}"), content);
    }

    /// The kernel modules on the host's disk are of this driver: the next boot loads it.
    #[track_caller]
    pub fn driver_on_disk(&self, version: &str) {
        self.kmod();
        let kernel = self.sh("uname -r").ok().stdout.trim().to_owned();
        let lines = [&format!("version={version}"), "name=nvidia", "license=NVIDIA"];
        self.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &lines);
    }

    /// A kernel module at this path below /lib/modules, with these lines of information: an ELF file with a section
    /// `.modinfo` and nothing that runs. Compressed where its name ends so.
    #[track_caller]
    pub fn module(&self, path: &str, lines: &[&str]) {
        let line = |(n, line): (usize, &&str)| {
            format!("__attribute__((section(\".modinfo\"), used)) static const char i{n}[] = \"{line}\";\n")
        };
        let source: String = lines.iter().enumerate().map(line).collect();
        self.write("/tmp/module.c", source + "int x;\n");
        let file = format!("/lib/modules/{path}");
        let (plain, pack) = match file.strip_suffix(".xz") {
            Some(plain) => (plain, format!(" && xz --check=crc32 {plain}")),
            None => (file.as_str(), String::new()),
        };
        self.sh(&format!("mkdir -p $(dirname {plain}) && gcc -c -o {plain} /tmp/module.c{pack}")).ok();
        let kernel = path.split('/').next().unwrap_or_default();
        self.sh(&format!(
            "cd /lib/modules/{kernel} && touch modules.order modules.builtin && depmod {kernel}"
        ))
        .ok();
    }
}

fn beginning(directory: &Path, name: &str) -> PathBuf {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(name));
    found.map(|entry| entry.path()).unwrap_or_else(|| panic!("no {name} in {}", directory.display()))
}
