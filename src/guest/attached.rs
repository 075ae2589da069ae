//! Which NVIDIA devices a running container has, as the kernel says: not what
//! its conf says, nor what this run wrote.

use crate::guest::lifecycle::Init;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// A container's mount table is not trusted to be short, in bytes.
const MAX: u64 = 4 << 20;

/// Device nodes mounted from the host: path in the container to device
/// number; for a directory the number is that of nothing, `(0, 0)`.
pub type Attached = BTreeMap<String, (u32, u32)>;

/// Looks at the mount table of the container's first process and at the
/// nodes' numbers.
///
/// # Errors
/// The process is gone, or /proc cannot be read.
pub fn read(init: &Init) -> std::io::Result<Attached> {
    use std::io::Read as _;
    let process = Path::new("/proc").join(init.pid.to_string());
    let mut table = Vec::new();
    std::fs::File::open(process.join("mountinfo"))?.take(MAX).read_to_end(&mut table)?;
    // The container may name its own mounts in any bytes it likes.
    let table = String::from_utf8_lossy(&table);
    let root = process.join("root");
    let number = |path: &str| {
        // Never followed: the container may put a link anywhere.
        let meta = std::fs::symlink_metadata(root.join(path.trim_start_matches('/'))).ok()?;
        if meta.is_dir() {
            return Some((0, 0));
        }
        let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        meta.file_type().is_char_device().then_some((major as u32, minor as u32))
    };
    Ok(points(&table).into_iter().filter_map(|path| number(&path).map(|n| (path, n))).collect())
}

/// The mount points below /dev that are NVIDIA's or a GPU's, in the text of
/// /proc/PID/mountinfo (proc(5)): the fifth field.
fn points(table: &str) -> Vec<String> {
    let point = |line: &str| {
        let path = line.split(' ').nth(4)?;
        let ours = path.starts_with("/dev/nvidia") || path.starts_with("/dev/dri/");
        (ours && !path.contains('\\')).then(|| path.to_owned())
    };
    table.lines().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounted_nvidia_nodes_count() {
        let table = "\
604 500 0:5 /nvidia0 /dev/nvidia0 rw,nosuid - devtmpfs udev rw\n\
605 500 0:5 /null /dev/null rw - devtmpfs udev rw\n\
606 500 0:5 /nvidia-caps /dev/nvidia-caps rw - devtmpfs udev rw\n\
607 500 0:5 /x /mnt/dev/nvidia1 rw - devtmpfs udev rw\n\
608 500 0:5 /x /dev/nvidia\\040x rw - devtmpfs udev rw\n\n";
        assert_eq!(points(table), ["/dev/nvidia0", "/dev/nvidia-caps"]);
    }
}
