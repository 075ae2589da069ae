//! What a command leaves behind: processes, mounts, temporary files; and what it started.

use crate::command::Output;
use crate::lab::Lab;

/// What there is in a lab at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Running programs, each as `NAME ARGUMENT…`; containers' processes among them.
    pub processes: Vec<String>,
    /// Where something is mounted on the host.
    pub mounts: Vec<String>,
    /// Files in /tmp, /var/tmp, /run and /etc/pve/lxc.
    pub files: Vec<String>,
}

impl Leftovers {
    /// What is there now and was not there before.
    pub fn since(&self, before: &Leftovers) -> Leftovers {
        Leftovers {
            processes: more(&self.processes, &before.processes),
            mounts: more(&self.mounts, &before.mounts),
            files: more(&self.files, &before.files),
        }
    }

    /// Is there nothing?
    pub fn none(&self) -> bool {
        *self == Leftovers::default()
    }
}

/// `now` less `before`, counting equal entries.
fn more(now: &[String], before: &[String]) -> Vec<String> {
    let mut known = before.to_vec();
    let mut rest = now.to_vec();
    rest.retain(|entry| match known.iter().position(|old| old == entry) {
        Some(at) => {
            known.swap_remove(at);
            false
        }
        None => true,
    });
    rest
}

/// A command that was watched by strace.
pub struct Trace {
    /// How it ended.
    pub output: Output,
    /// Every program that was started, the command itself first: its path and its arguments as strace prints them.
    pub execs: Vec<String>,
}

/// A command whose calls with a file's name were watched by strace.
pub struct FileCalls {
    /// How it ended.
    pub output: Output,
    /// The calls of the command itself, as strace prints them, the one that started it first.
    pub own: Vec<String>,
    /// Those of what it started.
    pub others: Vec<String>,
}

impl Lab {
    /// Processes, mounts and temporary files that are there now.
    pub fn leftovers(&self) -> Leftovers {
        let files = self.files();
        let pids = files.list("/run/lab/proc").into_iter().filter(|name| name.parse::<u32>().is_ok());
        let mut processes: Vec<String> = pids.filter_map(|pid| self.program_of(&pid)).collect();
        let mountinfo =
            std::fs::read_to_string(format!("/proc/{}/mountinfo", self.init_pid())).unwrap_or_default();
        let mut mounts: Vec<String> =
            mountinfo.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect();
        let find = "find /tmp /var/tmp /run /etc/pve/lxc -xdev -not -path '/run/lab*' -type f";
        let mut found: Vec<String> = self.sh(find).stdout.lines().map(str::to_owned).collect();
        for list in [&mut processes, &mut mounts, &mut found] {
            list.sort();
        }
        Leftovers { processes, mounts, files: found }
    }

    /// The command line of a process; none for kernel threads, for the dead, and for the lab's own process 1.
    fn program_of(&self, pid: &str) -> Option<String> {
        if pid == "1" {
            return None;
        }
        let path = self.root().join("run/lab/proc").join(pid).join("cmdline");
        let line = std::fs::read(path).ok().filter(|line| !line.is_empty())?;
        let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        Some(words.collect::<Vec<_>>().join(" ").trim_end().to_owned())
    }

    /// Runs a command under `strace -f` and tells every call that has a file's name in it.
    #[track_caller]
    pub fn trace_files<A: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> FileCalls {
        let log = "/run/lab/trace-files";
        let options = ["-f", "-qq", "-s", "512", "-e", "trace=%file", "-e", "signal=none", "-o", log, "--"];
        let output = self.command("strace").args(options).args(argv).run();
        let text = self.read(log);
        let calls: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.trim_start().split_once(' ')).collect();
        let first = calls.first().map_or("", |(pid, _)| pid);
        let begun = |mine: bool| {
            let of = calls.iter().filter(|(pid, call)| (*pid == first) == mine && !call.contains("resumed>"));
            of.map(|(_, call)| call.trim_start().to_owned()).collect()
        };
        FileCalls { own: begun(true), others: begun(false), output }
    }

    /// Runs a command under `strace -f` and tells every program that it and its children started.
    #[track_caller]
    pub fn trace<A: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Trace {
        let log = "/run/lab/trace";
        let command = self.command("strace").args([
            "-f",
            "-qq",
            "-s",
            "512",
            "-e",
            "trace=execve",
            "-e",
            "signal=none",
        ]);
        let output = command.args(["-o", log, "--"]).args(argv).run();
        let text = self.read(log);
        let started = text.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0"));
        let execs = started.filter_map(|line| line.split_once("execve(").map(|(_, rest)| rest.to_owned()));
        Trace { output, execs: execs.collect() }
    }
}
