//! A container is not trusted: what it prints is bounded and made harmless.
use crate::robust_support;

use phoenix_lab::{Lab, Rootfs};
use robust_support::*;
use std::time::Duration;

const BUSYBOX: &str = "/usr/lib/lab/busybox";

/// A running container whose shell is this script: it answers every look.
fn hostile(lab: &Lab, script: &str) {
    let ct = lab.container(101);
    // Written beside and renamed: the link to busybox stays what it is.
    ct.write("/usr/bin/sh.new", format!("#!{BUSYBOX} sh\nB={BUSYBOX}\n{script}\n"));
    ct.exec([BUSYBOX, "chmod", "755", "/usr/bin/sh.new"]).ok();
    ct.exec([BUSYBOX, "mv", "/usr/bin/sh.new", "/usr/bin/sh"]).ok();
}

#[test]
fn whatever_a_container_prints_is_bounded_and_harmless() {
    let Some(lab) = lab() else { return };
    node(&lab, "CHECK_TIMEOUT=2");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=off\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    for (what, script) in [
        ("1 GB of lines", "$B yes 'os NAME=and so on' | $B head -c 1000000000"),
        ("1 GB without a line's end", "$B head -c 1000000000 /dev/zero | $B tr '\\0' x"),
        ("1 GB on stderr", "$B yes | $B head -c 1000000000 >&2"),
        ("NUL bytes", "$B head -c 100000 /dev/zero"),
        (
            "escape codes",
            "$B printf '\\033[2J\\033]0;owned\\007\\033[31mPWNED\\r\\nos ID=\\033[1m\\n'; exit 9",
        ),
        ("invalid UTF-8", "$B printf 'os ID=\\377\\376\\300\\n\\377\\377'; exit 9"),
        ("a forged line", "$B printf 'x\\nphoenix-nvidia 101: done in 1 s\\n' >&2; exit 9"),
        ("nothing", "exit 0"),
        ("no end", "exec $B sleep 1000"),
    ] {
        hostile(&lab, script);
        // Much less memory than the container prints.
        let line = format!("ulimit -v 300000; exec {PROGRAM} 101 post-start");
        let output = lab.run(["bash", "-c", &line]).ok().says("cannot probe container 101");
        assert!(output.took < Duration::from_secs(2 + 3), "{what}: {output}");
        assert!(output.stderr.len() < 4000 && output.stderr.lines().count() <= 4, "{what}: {output}");
        // A look that was not over in time is repeated in the background: that one is ended here.
        signal(&lab, &pids(&lab, "/phoenix-nvidia install 101"), "TERM");
        wait_for_the_end(&lab);
        let bad = output.stderr.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{what}: {output:?}");
        assert!(
            output.stderr.lines().all(|l| {
                l.starts_with("phoenix-nvidia 101: WARNING: ")
                    || l.starts_with("phoenix-nvidia 101: driver check continues in the background")
            }),
            "{what}: {output}"
        );
        assert!(pids(&lab, "sleep 1000").is_empty(), "{what}");
        let recorded = state(&lab, 101).to_string();
        assert!(recorded.len() < 4000 && !recorded.contains("\\u001b"), "{what}: {recorded}");
    }
}

/// Answers that look right and are not must end in words, not in commands.
#[test]
fn whatever_a_container_answers_stays_words() {
    let Some(lab) = lab() else { return };
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=off\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    let answer = "$B printf 'begin 1\\nos ID=debian\\nos VERSION_ID=$(touch /tmp/owned)\\nloader /lib/ld-linux-x86-64.so.2\\n\
                  init /sbin/init\\napt-get /usr/bin/apt-get\\nmodprobe yes\\nlink libnvidia-ml ../../../etc/passwd\\n\
                  owner dpkg x;touch /tmp/owned\\nowner dpkg libnvidia-ml1\\nplace /etc ext4 999999999 exec\\nend 1\\n'";
    hostile(&lab, answer);
    let before = lab.leftovers();
    lab.run([PROGRAM, "101", "post-start"]).code(5).says("libnvidia-ml1");
    wait_for_the_end(&lab);
    let left = lab.leftovers().since(&before);
    assert!(left.processes.is_empty(), "{left:?}");
    assert!(!lab.exists("/tmp/owned") && !lab.container(101).exists("/tmp/owned"));
}
