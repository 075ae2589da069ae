//! Small shared objects: ldconfig links and lists them and the dynamic linker loads them, since a library that only had
//! the right name would be passed over by both.

const BASE: usize = 64 + 3 * 56;
const PAGE: u64 = 4096;

/// A shared object for this machine with a SONAME and a text in it that tells its version.
pub(crate) fn shared_object(soname: &str, version: &str) -> Vec<u8> {
    let strings = [b"\0", soname.as_bytes(), b"\0"].concat();
    let strings_at = BASE;
    let symbols_at = (strings_at + strings.len()).next_multiple_of(8);
    let hash_at = symbols_at + 24;
    let dynamic_at = (hash_at + 16).next_multiple_of(16);
    // The tags of the dynamic section: HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME, NULL.
    let dynamic: [[usize; 2]; 7] =
        [[4, hash_at], [5, strings_at], [6, symbols_at], [10, strings.len()], [11, 24], [14, 1], [0, 0]];
    let dynamic: Vec<u8> = dynamic.iter().flatten().flat_map(|&word| (word as u64).to_le_bytes()).collect();
    let text = format!("lab nvidia library {version}\0");
    let size = dynamic_at + dynamic.len() + text.len();

    let mut file = header();
    // Writable, since the dynamic linker notes addresses in the dynamic section. The last is GNU_STACK: not executable.
    file.extend(segment(1, 6, 0, size, PAGE));
    file.extend(segment(2, 6, dynamic_at, dynamic.len(), 8));
    file.extend(segment(0x6474_e551, 6, 0, 0, 16));
    file.extend(strings);
    file.resize(hash_at, 0);
    // One bucket and one symbol, the empty one: a table in which nothing is found.
    file.extend([1_u32, 1, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.resize(dynamic_at, 0);
    file.extend(dynamic);
    file.extend(text.bytes());
    file
}

fn header() -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let shared_object: u16 = 3;
    file.extend(shared_object.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    // Entry, program headers, section headers.
    file.extend([0_u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 3, 64, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    file
}

/// A program header; address and place in the file are the same.
fn segment(kind: u32, flags: u32, at: usize, size: usize, align: u64) -> Vec<u8> {
    let mut bytes = [kind, flags].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let [at, size] = [at as u64, size as u64];
    bytes.extend([at, at, at, size, size, align].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_dynamic_linker_takes_it() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let library = dir.path().join("libnvidia-ml.so.580.95.05");
        std::fs::write(&library, shared_object("libnvidia-ml.so.1", "580.95.05"))?;
        let loaded = Command::new("/bin/true").env("LD_PRELOAD", &library).output()?;
        assert!(loaded.status.success(), "{loaded:?}");
        // What can't be loaded is named on stderr and ignored.
        assert_eq!(String::from_utf8_lossy(&loaded.stderr), "");
        let linked = Command::new("/sbin/ldconfig").arg("-n").arg(dir.path()).output()?;
        assert!(linked.status.success(), "{linked:?}");
        let link = std::fs::read_link(dir.path().join("libnvidia-ml.so.1"))?;
        assert_eq!(link.to_str(), Some("libnvidia-ml.so.580.95.05"));
        Ok(())
    }
}
