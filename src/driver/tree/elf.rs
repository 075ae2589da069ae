//! What an ELF file says of itself: machine, SONAME, and the glibc that it needs.

use object::elf::{DT_SONAME, DT_STRSZ, DT_STRTAB, EM_AARCH64, EM_X86_64, FileHeader64, PT_LOAD};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadCache, ReadRef};
use std::fmt;
use std::fs::File;
use std::str::FromStr;

/// So much of a table of names is read, in bytes; libcuda's has 100 kB.
const MOST: u64 = 4 << 20;

/// A version of glibc: 2.34 is (2, 34).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glibc(u32, u32);

impl FromStr for Glibc {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        // 2.2.5 counts as 2.2.
        let mut parts = text.split('.');
        let mut number = || -> anyhow::Result<u32> { Ok(parts.next().unwrap_or_default().parse()?) };
        Ok(Glibc(number()?, number()?))
    }
}

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// An ELF file that this machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// The name under which programs ask for it.
    pub soname: Option<String>,
    /// The newest glibc of which it needs something.
    pub glibc: Option<Glibc>,
}

/// Reads it; `None` for anything else, also for the libraries of another
/// architecture.
pub fn read(file: &File) -> Option<Elf> {
    let data = ReadCache::new(file);
    parse(&data)
}

fn parse<'a, R: ReadRef<'a>>(data: R) -> Option<Elf> {
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let ours = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };
    if header.e_machine(endian) != ours {
        return None;
    }
    let segments = header.program_headers(endian, data).ok()?;
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(endian, data).ok()?);
    // A static program has none.
    let Some(dynamic) = dynamic else { return Some(Elf::default()) };
    let value = |tag| dynamic.iter().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
        return Some(Elf::default());
    };
    let offset = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).find_map(|segment| {
        let inside = address.checked_sub(segment.p_vaddr(endian))?;
        (inside < segment.p_filesz(endian)).then(|| segment.p_offset(endian).checked_add(inside))?
    })?;
    let names = data.read_bytes_at(offset, size.min(MOST)).ok()?;
    let name = |at: u64| {
        let rest = names.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok().map(str::to_owned)
    };
    // A library of NVIDIA's defines no version of that name, so each is a need.
    let needs = names.split(|byte| *byte == 0).filter_map(|name| {
        let version = std::str::from_utf8(name.strip_prefix(b"GLIBC_")?).ok()?;
        version.parse().ok()
    });
    Some(Elf { soname: value(DT_SONAME).and_then(name), glibc: needs.max() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_a_glibc_and_a_text_is_no_elf_file() {
        let own = read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(own.soname.is_none() && own.glibc.unwrap() >= "2.17".parse().unwrap(), "{own:?}");
        assert_eq!(read(&File::open("/proc/self/status").unwrap()), None);
        let libc = std::fs::read_dir("/lib64").unwrap().flatten().map(|entry| entry.path());
        let libc = libc.chain(["/lib/ld-linux-aarch64.so.1".into()]).find(|path| path.is_file()).unwrap();
        assert!(read(&File::open(libc).unwrap()).unwrap().soname.unwrap().starts_with("ld-linux"));
    }

    #[test]
    fn what_is_cut_off_or_of_another_machine_is_none() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(parse(own.as_slice()).is_some());
        for length in [0, 4, 63, 64, 200] {
            assert_eq!(parse(&own[..length]), None, "{length}");
        }
        let mut other = own[..4096].to_vec();
        other[18] = 40;
        assert_eq!(parse(other.as_slice()), None);
        other[4] = 1;
        assert_eq!(parse(other.as_slice()), None);
    }

    #[test]
    fn versions_are_compared_by_number() {
        let version = |text: &str| text.parse::<Glibc>().unwrap();
        assert!(version("2.9") < version("2.34") && version("2.2.5") < version("2.3.4"));
        assert_eq!(version("2.36").to_string(), "2.36");
        for bad in ["", "2", "PRIVATE", "2.x", "x.2"] {
            assert!(bad.parse::<Glibc>().is_err(), "{bad}");
        }
    }
}
