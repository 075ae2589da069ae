//! NVIDIA's runfiles and Debian's driver packages as their archives have them: fetched once, into `target/tmp`.
// apt fetches them, within a time limit; helpers of a test may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use phoenix_lab::{Lab, Rootfs};
use std::path::{Path, PathBuf};
use std::process::Command;

/// In a directory of its own: apt knows this one source and nothing of the machine's. What comes after it is done once,
/// by whichever test program is first; the others wait for it.
const BEGIN: &str = r#"
    set -e
    home=$1 source=$2; shift 2
    mkdir -p "$home/lists/partial" && cd "$home"
    exec 9>lock
    flock -w 900 9 || { echo "another test program fetches it, or hangs" >&2; exit 1; }
    [ -e done ] && exit 0
    echo "$source" >source.list
    cat >apt.conf <<CONF
Dir::Etc::sourcelist "$home/source.list"; Dir::Etc::sourceparts "-"; Dir::State::lists "$home/lists";
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; APT::Sandbox::User "root"; APT::Architecture "amd64";
Acquire::Retries "1"; Acquire::http::Timeout "20"; quiet "2";
CONF
    export APT_CONFIG=$home/apt.conf
    timeout 120 apt-get update
"#;

/// The directory `name` with what these lines of shell put there; else why they could not.
fn fetched(name: &str, source: &str, lines: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{BEGIN}{lines}rm -r lists; touch done"), "sh"]);
    let output = command.arg(&home).arg(source).args(arguments).output().unwrap();
    if output.status.success() {
        return Ok(home);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// NVIDIA's newest file of a driver branch, of Ubuntu's source packages, with its version; `None` where the archive
/// does not have it (the reason has been printed).
pub fn runfile(branch: &str) -> Option<(String, PathBuf)> {
    let (archive, key) = phoenix_lab::rootfs::ubuntu();
    let source = ["noble", "noble-updates", "noble-security"]
        .map(|suite| format!("deb-src [signed-by={}] {archive} {suite} restricted", key.display()));
    let lines = r#"
        file=$(apt-get source --download-only --print-uris nvidia-graphics-drivers-$1 | grep orig-amd64)
        uri=$(echo "$file" | cut -d "'" -f 2) sum=$(echo "$file" | cut -d ' ' -f 4)
        timeout 400 /usr/lib/apt/apt-helper download-file "$uri" orig.tar.gz "$sum"
        tar -xzf orig.tar.gz --strip-components 1 --wildcards '*.run'
        rm orig.tar.gz
    "#;
    let home = match fetched(&format!("real-runfile-{branch}"), &source.join("\n"), lines, &[branch]) {
        Ok(home) => home,
        Err(why) => {
            phoenix_lab::skipped(&format!("driver {branch} is not to be had from Ubuntu's archive: {why}"));
            return None;
        }
    };
    let mut names = std::fs::read_dir(home).unwrap().flatten().map(|entry| entry.path());
    let file = names.find(|path| path.extension().is_some_and(|end| end == "run")).unwrap();
    let name = file.file_stem().unwrap().to_str().unwrap();
    Some((name.strip_prefix("NVIDIA-Linux-x86_64-").unwrap().to_owned(), file))
}

/// Of Debian's driver what nvidia-smi and CUDA need.
const DRIVER: [&str; 6] = [
    "nvidia-smi",
    "libnvidia-ml1",
    "libcuda1",
    "libnvidia-ptxjitcompiler1",
    "libnvidia-cfg1",
    "nvidia-opencl-icd",
];

/// The driver of a Debian release: its version, and the directory in which its packages are unpacked; `None` where the
/// archive cannot be reached (the reason has been printed).
pub fn driver(suite: &str) -> Option<(String, PathBuf)> {
    let lines = r#"
        timeout 200 apt-get download "$@"
        mkdir -p root
        for deb in *.deb; do dpkg -x "$deb" root; done
        rm -f *.deb
    "#;
    let home = fetched(&format!("real-driver-{suite}"), &debian(suite, "non-free"), lines, &DRIVER);
    let root = home.inspect_err(|why| not_debians(suite, why)).ok()?.join("root");
    let libraries = std::fs::read_dir(root.join("usr/lib/x86_64-linux-gnu/nvidia/current")).unwrap();
    let mut names = libraries.flatten().map(|entry| entry.file_name().into_string().unwrap());
    let version = names
        .find_map(|name| name.strip_prefix("libcuda.so.").filter(|end| end.contains('.')).map(str::to_owned));
    Some((version.unwrap(), root))
}

/// A directory with these packages of a Debian release and all that they need in a container with this root, as an apt
/// source has them; `None` where the archive cannot be reached (the reason has been printed).
pub fn packages(suite: &str, root: Rootfs, names: &[&str]) -> Option<PathBuf> {
    let lines = r#"
        status=$1; shift
        mkdir -p debs/partial
        timeout 400 apt-get -o Dir::State::status="$status" -o Dir::Cache::archives="$home/debs" \
            install --yes --download-only --no-install-recommends "$@"
        cd debs
        # An epoch in a name is escaped there.
        for deb in *%*.deb; do mv "$deb" "$(echo "$deb" | tr % -)"; done
        for deb in *.deb; do
            dpkg-deb --field "$deb"
            printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" $(stat -c %s "$deb") $(sha256sum <"$deb" | cut -d ' ' -f 1)
        done >Packages
        cd ..
    "#;
    let [image, _] = phoenix_lab::rootfs::make(root).unwrap();
    let status = phoenix_lab::rootfs::cache().unwrap().join(image).join("var/lib/dpkg/status");
    let arguments = [&[status.to_str().unwrap()], names].concat();
    let home = fetched(
        &format!("real-packages-{suite}"),
        &debian(suite, "main contrib non-free"),
        lines,
        &arguments,
    );
    home.inspect_err(|why| not_debians(suite, why)).ok().map(|home| home.join("debs"))
}

/// Gives the lab's host an unpacked [`driver`], as dpkg and its alternatives leave it.
pub fn give(lab: &Lab, root: &Path) {
    let root = root.display();
    lab.sh(&format!(
        "cp -a {root}/usr/lib/. /usr/lib/ && cp -a {root}/etc/. /etc/; ln -sf ../lib/nvidia/current/nvidia-smi /usr/bin/nvidia-smi"
    ))
    .ok();
}

fn debian(suite: &str, areas: &str) -> String {
    let mirror = phoenix_lab::rootfs::mirror().unwrap();
    format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} {areas}")
}

fn not_debians(suite: &str, why: &str) {
    phoenix_lab::skipped(&format!("the driver of {suite} is not to be had from Debian's archive: {why}"));
}
