//! What makes a runfile's payload NVIDIA's: the compression, the embedded decompressor, `.manifest` and the list for
//! container tools; and what a payload must not have.

use super::tar::Tar;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Stdio};

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As up to driver 313.
    Gzip,
    /// As up to driver 525: without an integrity check.
    Xz,
    /// As from driver 530 on: one frame with a checksum and a window of 128 MiB.
    Zstd,
    /// As no driver.
    Bzip2,
    /// zstd with a window of so many bits, which is more than any driver has.
    Window(u32),
}

impl Compression {
    /// The shell command that undoes it.
    pub(super) fn undo(self) -> &'static str {
        match self {
            Compression::None => "cat",
            Compression::Gzip => "gzip -dc",
            Compression::Xz => "xz -dc",
            Compression::Bzip2 => "bzip2 -dc",
            Compression::Zstd | Compression::Window(_) => "zstd -dc --long=31",
        }
    }

    /// Whether makeself embeds a program for it.
    pub(super) fn embeds(self) -> bool {
        matches!(self, Compression::Xz | Compression::Zstd | Compression::Window(_))
    }

    pub(super) fn of(self, tar: &[u8]) -> Result<Vec<u8>> {
        match self {
            Compression::None => Ok(tar.to_vec()),
            Compression::Gzip => filter(&["gzip", "-cn6"], tar),
            Compression::Xz => filter(&["xz", "-c6", "--check=none"], tar),
            Compression::Bzip2 => Ok([b"BZh9", tar].concat()),
            Compression::Zstd => zstd(tar, 27),
            Compression::Window(bits) => zstd(tar, bits),
        }
    }
}

fn zstd(tar: &[u8], window: u32) -> Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    encoder.include_checksum(true)?;
    // As of a stream: what is small says no size, and has a window all the same.
    encoder.window_log(window)?;
    encoder.write_all(tar)?;
    Ok(encoder.finish()?)
}

fn filter(command: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = crate::starting::start(&mut program).with_context(|| command[0].to_owned())?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        writer.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;
        anyhow::Ok(output?)
    })?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    Ok(output.stdout)
}

/// Stands for the embedded decompressor: an ELF file of many lines, and text that misleads who reads it as such. It ends
/// whoever runs it with 99.
pub(super) fn decompressor() -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01\0\n\n\xff\xfe\nskip=3\nversion_string=1.2.3\n\0\n".to_vec();
    for number in 0..40_u8 {
        program.extend([number, b'\n', 0x80 | number, 0]);
    }
    program
}

/// What a payload must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// A file above its directory.
    Above,
    /// A file with an absolute name.
    Absolute,
    /// Links, devices, a FIFO and a sparse file of a terabyte, with names of libraries; a program with setuid.
    Odd,
    /// A library that says to have more bytes than any.
    Huge,
    /// A library twice.
    Twice,
    /// A name without an end.
    LongName,
}

impl Trap {
    pub(super) fn put(self, tar: &mut Tar, version: &str) {
        let library = |name: &str| format!("{name}.so.{version}");
        match self {
            Trap::Above => tar.file("firmware/../../../etc/phoenix-trap", 0o644, b"trap"),
            Trap::Absolute => tar.file("/etc/phoenix-trap", 0o644, b"trap"),
            Trap::Odd => {
                tar.odd(&library("libnvidia-hard"), b'1', 0, "/etc/passwd");
                tar.odd(&library("libnvidia-soft"), b'2', 0, "/etc/shadow");
                tar.odd(&library("libnvidia-character"), b'3', 0, "");
                tar.odd(&library("libnvidia-block"), b'4', 0, "");
                tar.odd(&library("libnvidia-directory"), b'5', 0, "");
                tar.odd(&library("libnvidia-fifo"), b'6', 0, "");
                // Without blocks of data; its real size is elsewhere in the header.
                tar.odd(&library("libnvidia-sparse"), b'S', 0, "");
                tar.file("nvidia-debugdump", 0o6777, b"#!/bin/sh\n");
            }
            Trap::Huge => tar.odd(&library("libnvidia-huge"), b'0', 7 << 30, ""),
            Trap::Twice => tar.file(&library("libcuda"), 0o755, b"another"),
            Trap::LongName => {
                tar.odd("././@LongLink", b'L', 3 << 30, "");
            }
        }
    }
}

/// The first lines of `.manifest`.
pub(super) fn manifest(version: &str) -> String {
    format!(
        "NVIDIA Accelerated Graphics Driver for Linux\n{version}\n \nnvidia nvidia-uvm  nvidia-modeset\n \n \n \n \n\
         kernel/dkms.conf 0644 DKMS_CONF INHERIT_PATH_DEPTH:1 MODULE:resman\n\
         nvidia-modprobe 04755 NVIDIA_MODPROBE /usr/bin/ MODULE:installer\n\
         nvidia-smi 0755 UTILITY_BINARY MODULE:nvml\n\
         ./32/libcuda.so.{version} 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu\n\
         libGL.so.1.7.0 0755 GLX_CLIENT_LIB NATIVE MODULE:opengl\n"
    )
}

/// A line of `.manifest` for a library, with its link unless that is left to ldconfig.
pub(super) fn library(file: &str, soname: Option<&str>) -> String {
    let link = soname.map(|name| format!("{name} 0000 CUDA_SYMLINK NATIVE / {file} MODULE:gpgpu\n"));
    format!("{file} 0755 CUDA_LIB NATIVE / MODULE:gpgpu\n{}", link.unwrap_or_default())
}

/// An entry of the list for container tools.
pub(super) fn listed(name: &str, kind: &str, category: &str) -> String {
    format!(r#"{{"name": "{name}", "type": "{kind}", "category": ["{category}"]}}"#)
}

/// Stock makeself, of a version that has no `skip=`, around files.
pub(super) fn wrap(name: &str, file: &[u8], times: usize) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    tar.file("./README", 0o644, b"a driver for data centers\n");
    for number in 0..times {
        tar.file(&format!("./{number}/{name}"), 0o755, file);
    }
    let script = "#!/bin/sh\n# This script was generated using Makeself 2.1.4\nCRCsum=\"0\"\n\
        MD5=\"00000000000000000000000000000000\"\nlabel=\"NVIDIA Accelerated Graphics Driver\"\n\
        offset=`head -n 8 \"$0\" | wc -c | tr -d \" \"`\nexit 1\n\n";
    Ok([script.as_bytes(), &Compression::Gzip.of(&tar.finish())?].concat())
}
