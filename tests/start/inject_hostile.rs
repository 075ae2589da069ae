//! What root of a container can do to the host's driver that it has mounted, and what a copy of it carries away.
use crate::inject::{HWCAPS, KEPT, OLD, PROGRAM, SHOWN, finds, injecting, start};

use phoenix_lab::{Container, Lab, Output, Rootfs};

/// The other place of the driver.
const OLDER_PLACE: &str = "/usr/lib/x86_64-linux-gnu/x86_64";
/// Where the hostile program is in a container.
const HOSTILE: &str = "/root/write-through";
/// So many ways it has for each path.
const WAYS: usize = 10;

/// Puts the program into a container that tries to write to what is mounted read-only, and tells where.
pub fn program(lab: &Lab, id: u32) -> &'static str {
    lab.write("/root/write-through.c", include_str!("../vm/write-through.c"));
    lab.sh("gcc -static -O1 -o /root/write-through /root/write-through.c").ok();
    let program = lab.files().bytes("/root/write-through");
    lab.container(id).files().program(HOSTILE, program);
    HOSTILE
}

/// Runs it: nothing was written, and every way was tried.
#[track_caller]
pub fn attack(ct: &Container<'_>, paths: &[String]) -> Output {
    let tried = ct.command(HOSTILE).args(paths).run().code(0);
    assert_eq!(tried.stdout.lines().count(), paths.len() * WAYS, "{tried}");
    tried
}

/// The host's copy and what it shows of it, to the byte.
fn trees(lab: &Lab) -> [String; 2] {
    [KEPT, SHOWN].map(|above| {
        let line = format!(
            "cd {above}/{OLD} && find . -type f -exec md5sum {{}} + | sort
             find . -exec stat -c '%n %F %a %u %g %s %Y' {{}} + | sort"
        );
        let tree = lab.sh(&line).ok().stdout;
        assert!(tree.contains("./bin/nvidia-smi regular file 755 0 0"), "{tree}");
        tree
    })
}

/// As `tests/vm` shows under AppArmor.
#[test]
fn root_inside_changes_nothing_whatever_it_sets() {
    for privileged in [true, false] {
        let spec = if privileged { Rootfs::Debian12.privileged() } else { Rootfs::Debian12.unprivileged() };
        let Some(lab) = injecting(spec) else { return };
        // A directory of the host that nothing but a read-only bind protects.
        lab.sh("mkdir /srv/control").ok();
        lab.append(
            "/etc/pve/lxc/101.conf",
            "lxc.mount.entry: /srv/control srv/control none bind,ro,create=dir 0 0\n",
        );
        start(&lab).ok();
        let ct = lab.container(101);
        program(&lab, 101);
        let before = trees(&lab);
        let files = ["".to_owned(), format!("/libcuda.so.{OLD}"), "/bin/nvidia-smi".to_owned()];
        let paths: Vec<String> = [HWCAPS, OLDER_PLACE]
            .iter()
            .flat_map(|at| files.clone().map(|file| format!("{at}{file}")))
            .collect();
        let tried = attack(&ct, &paths);
        if privileged {
            for way in ["remount,bind,rw", "mount_setattr", "a detached copy", "a bind elsewhere"] {
                tried.clone().says(&format!("{HWCAPS}: {way}: done; write: Read-only file system"));
            }
        } else {
            tried.says_not("mount_setattr: done").says_not("fsconfig rw: done").says_not("rw: done");
        }
        assert_eq!(trees(&lab), before);
        finds(&ct, OLD);
        let control = ct.command(HOSTILE).args(["/srv/control"]).run().code(i32::from(privileged));
        assert_eq!(lab.files().list("/srv/control").is_empty(), !privileged, "{control}");
        // What lies below is the container's own.
        for at in [HWCAPS, OLDER_PLACE] {
            ct.command(HOSTILE).args(["--below", at]).run().code(0).says("write: DONE");
            assert!(ct.exists(format!("{at}/written-through")), "{at}");
            ct.files().remove(format!("{at}/written-through"));
        }
        assert_eq!(trees(&lab), before);
        lab.run([PROGRAM, "prepare"]).ok();
        assert_eq!(trees(&lab), before);
        lab.run(["pct", "stop", "101"]).ok();
        ct.write("/at-boot", "");
        start(&lab).ok().says_not("WARNING");
        finds(&ct, OLD);
    }
}

/// As vzdump's suspend mode copies a running container.
#[test]
fn an_rsync_of_a_running_container_does_not_carry_the_driver() {
    for spec in [Rootfs::Debian12.privileged(), Rootfs::Debian12.unprivileged()] {
        let Some(lab) = injecting(spec) else { return };
        start(&lab).ok();
        let pid = lab.container(101).init_pid().unwrap();
        let library = format!("libcuda.so.{OLD}");
        lab.sh(&format!("test -f /proc/{pid}/root{HWCAPS}/{library}")).ok();
        // With the options of vzdump.
        let rsync = format!(
            "mkdir /root/copy && rsync --stats -h -X -A --numeric-ids -aH --delete --no-whole-file --sparse \
             --one-file-system --relative /proc/{pid}/root//./usr /proc/{pid}/root//./etc /root/copy"
        );
        lab.sh(&rsync).ok();
        let copy =
            lab.sh("cd /root/copy && find . -name 'libc.so.6' -o -name '*cuda*' -o -name x86-64-v2").ok();
        copy.says("/libc.so.6").says("/x86-64-v2").says_not(&library);
        assert_eq!(lab.sh(&format!("ls -A /root/copy{HWCAPS}")).ok().stdout, "");
        assert_eq!(lab.sh(&format!("ls -A /root/copy{OLDER_PLACE}")).ok().stdout, "");
    }
}
