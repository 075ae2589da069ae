//! The scripts that run as root in a container, beside a user of that container who means ill.
#![allow(clippy::unwrap_used)] // a failing helper fails its test

use phoenix_lab::Lab;

const PLACES: &str = include_str!("../../src/guest/scripts/places.sh");
const RECEIVE: &str = include_str!("../../src/guest/scripts/receive.sh");

/// Stands before the real rm in PATH: right after each `rm -rf` of ours, nobody puts a fifo where our file was, and
/// once it was written to, a script of his own.
const QUICK: &str = r##"#!/bin/sh
/bin/rm "$@"
[ "$1" = -rf ] || exit 0
for file in /tmp/phoenix-nvidia.try /tmp/nvidia-driver-installer.run; do
    case " $* " in *" $file "*) ;; *) continue ;; esac
    setpriv --reuid 65534 --clear-groups sh -c '
        PATH=/usr/bin:/bin
        mkfifo -m 666 "$1"
        { cat "$1" && rm -f "$1" && printf "#!/bin/sh\nid -u >/run/owned\n" >"$1" && chmod 755 "$1"; } >/dev/null 2>&1 &
    ' sh "$file"
done
"##;

/// The lab's host stands for the container here: it has the same /tmp for everybody. What comes behind our write is
/// slowed down, so that the other one is always first.
fn beside_nobody(lab: &Lab, script: &str, line: &str) -> phoenix_lab::Output {
    lab.write("/srv/quick/rm", QUICK);
    lab.write("/srv/quick/chmod", "#!/bin/sh\nsleep 0.5\nexec /bin/chmod \"$@\"\n");
    lab.write("/srv/script.sh", script);
    lab.sh("chmod 755 /srv/quick/*; chmod 1777 /tmp").ok();
    lab.sh(&format!("PATH=/srv/quick:/usr/sbin:/usr/bin:/sbin:/bin sh /srv/script.sh {line}"))
}

#[test]
fn nobody_gets_his_own_script_run_in_place_of_our_trial() {
    let Some(lab) = Lab::builder().start() else { return };
    beside_nobody(&lab, PLACES, "").ok().says_not("place /tmp tmpfs exec");
    assert!(!lab.exists("/run/owned"));
}

#[test]
fn nobody_gets_his_own_file_taken_for_the_runfile() {
    let Some(lab) = Lab::builder().start() else { return };
    let said = beside_nobody(&lab, RECEIVE, "/tmp/nvidia-driver-installer.run <<END\nrunfile\nEND\n");
    said.code(1).says("is not the file that was made there").says_not("sha256");
    let plain = "sh /srv/script.sh /tmp/nvidia-driver-installer.run <<END\nrunfile\nEND\n";
    lab.sh(plain).ok().says("size 8").says("sha256 ");
}
