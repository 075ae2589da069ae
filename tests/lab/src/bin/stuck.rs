//! A file system that never answers, as a dead server, a lost card and a hostile container have it.
//!
//! `lab-stuck TARGET [PID]` mounts it over TARGET, a file or a directory, in the mount namespace of process PID. Whoever
//! looks at it waits in a system call that no signal ends, until this program does.
//!
//! `lab-stuck --lower TARGET PID` also answers what an overlay asks of a lower layer: how large it is, and attributes
//! that it has none of.
//!
//! `lab-stuck --memory DIRECTORY` starts a process that maps a file of it, writes to it and maps something else over it:
//! the kernel waits for the write with the lock on that process's memory held, and whoever reads its
//! `/proc/PID/environ`, `cmdline` or `maps` waits for the lock. An ordinary user can do this.
//!
//! Both say `stuck` once that is so.
#![allow(unsafe_code)] // mapped memory

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::path::Path;

const PAGE: usize = 4096;
/// The size of the one file, in bytes.
const SIZE: u64 = 1 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--memory", directory] => memory(Path::new(directory)),
        ["--map", target] => map(Path::new(target)),
        ["--lower", target, pid] => stuck(Path::new(target), Some(pid), LOWER),
        [target] => stuck(Path::new(target), None, &[]),
        [target, pid] => stuck(Path::new(target), Some(pid), &[]),
        _ => bail!("usage: lab-stuck [--lower] TARGET [PID] | lab-stuck --memory DIRECTORY"),
    }
}

fn stuck(target: &Path, pid: Option<&str>, answered: &[u32]) -> Result<()> {
    let mut fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    if let Some(pid) = pid {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
        setns(namespace, CloneFlags::CLONE_NEWNS).context("the mount namespace")?;
    }
    lay(&fuse, target)?;
    say("stuck")?;
    serve(&mut fuse, answered)
}

fn lay(fuse: &File, target: &Path) -> Result<()> {
    let directory = target.metadata()?.is_dir();
    let mode = if directory { "40000" } else { "100000" };
    let options = format!("fd={},rootmode={mode},user_id=0,group_id=0,allow_other", fuse.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("stuck"), target, Some("fuse"), flags, Some(options.as_str())).context("mounting")
}

fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// statfs and getxattr.
const LOWER: &[u32] = &[17, 22];
/// What it takes to be opened and read: getattr, open, read, write and statx.
const OPENED: &[u32] = &[3, 14, 15, 16, 52];

/// Answers what it takes to be mounted, and these; nothing else.
fn serve(fuse: &mut File, answered: &[u32]) -> Result<()> {
    let mut request = vec![0; 2 << 20];
    loop {
        let length = fuse.read(&mut request).context("reading a request")?;
        let number =
            |at: usize| request.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let (Some(opcode), Some(unique)) = (number(4), request.get(8..16)) else { bail!("{length} bytes") };
        let body = match opcode {
            26 => init(),
            // Closing it: release and flush.
            18 | 25 => Vec::new(),
            other if !answered.contains(&other) => continue,
            3 => attributes(),
            14 => vec![0; 16],
            // The write that a page is read for.
            15 => vec![0; number(56).map_or(PAGE, |size| size as usize)],
            // fuse_statfs_out: names of 255 bytes.
            17 => [[0u32; 11].as_slice(), &[255], &[0; 8]]
                .concat()
                .iter()
                .flat_map(|n| n.to_ne_bytes())
                .collect(),
            16 => {
                say("stuck")?;
                continue;
            }
            // statx, for which there is getattr, and getxattr: ENOSYS.
            52 | 22 => {
                fuse.write_all(&[&16u32.to_ne_bytes()[..], &(-38i32).to_ne_bytes(), unique].concat())?;
                continue;
            }
            _ => continue,
        };
        let length = u32::try_from(16 + body.len())?;
        let answer = [&length.to_ne_bytes()[..], &0i32.to_ne_bytes(), unique, &body].concat();
        fuse.write_all(&answer).context("answering")?;
    }
}

/// fuse_init_out of protocol 7.31.
fn init() -> Vec<u8> {
    let words = [7u32, 31, 0, 0, 0, 4096, 1, 0, 0];
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    body.resize(64, 0);
    body
}

/// fuse_attr_out: a regular file of [`SIZE`], for a long time.
fn attributes() -> Vec<u8> {
    let mut body: Vec<u8> =
        [3600u64, 0, 1, SIZE, SIZE / 512, 0, 0, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let words = [0u32, 0, 0, 0o100_644, 1, 0, 0, 0, 4096, 0];
    body.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    body
}

/// Two processes, so that the one that waits does not wait for itself when it is killed: this one serves.
fn memory(directory: &Path) -> Result<()> {
    let target = directory.join("stuck");
    File::create(&target)?;
    let mut fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    lay(&fuse, &target)?;
    std::process::Command::new(std::env::current_exe()?).arg("--map").arg(&target).spawn()?;
    serve(&mut fuse, OPENED)
}

/// And this one has the memory.
fn map(target: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(target)?;
    // What is behind the end of a file cannot be written to: the kernel is to know its size.
    file.metadata()?;
    let length = NonZeroUsize::new(PAGE).context("0")?;
    let (both, none) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, ProtFlags::PROT_NONE);
    // SAFETY: a mapping of its own at a place that the kernel chooses.
    let memory = unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0) }?;
    // SAFETY: it was just mapped, can be written to, and is as long.
    unsafe { memory.cast::<u8>().write_volatile(1) };
    // SAFETY: nobody uses the mapping that goes.
    unsafe {
        mmap_anonymous(Some(memory.addr()), length, none, MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED)
    }?;
    bail!("it did not wait")
}
