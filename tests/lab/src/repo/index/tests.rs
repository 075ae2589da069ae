use super::*;
use crate::repo::catalogue::{self, Drivers, Names};
use crate::web::Server;
use std::net::TcpListener;
use std::process::Output;

/// A server and an apt that has nothing of this machine's but its programs.
struct Apt {
    dir: tempfile::TempDir,
    server: Server,
}

impl Apt {
    fn new(repo: &Repo) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::create(&dir.path().join("site")).unwrap();
        repo.publish(&site, "/repo").unwrap();
        let server = Server::start(TcpListener::bind("127.0.0.1:0").unwrap(), site).unwrap();
        for place in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "cache/archives/partial",
            "state/lists/partial",
        ] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        fs::write(dir.path().join("status"), "").unwrap();
        let apt = Self { dir, server };
        let key = apt.dir.path().join("key.asc");
        fs::copy(apt.dir.path().join("site/www/repo/3bf863cc.pub"), &key).unwrap();
        let suite = repo.dist.as_ref().map_or("/".to_owned(), |(code, part)| format!("{code} {part}"));
        let line = format!("deb [signed-by={}] {} {suite}\n", key.display(), apt.server.url("repo/"));
        fs::write(apt.dir.path().join("etc/sources.list"), line).unwrap();
        apt
    }

    fn get(&self, arguments: &[&str]) -> Output {
        let dir = self.dir.path().display();
        Command::new("apt-get")
            .env("LC_ALL", "C")
            .args(["-o", &format!("Dir::Etc={dir}/etc"), "-o", &format!("Dir::State={dir}/state")])
            .args(["-o", &format!("Dir::Cache={dir}/cache"), "-o", "APT::Sandbox::User=root"])
            .args(["-o", &format!("Dir::State::status={dir}/status"), "-o", "Acquire::http::Proxy=DIRECT"])
            .args(["-o", "APT::Update::Error-Mode=any"])
            .args(arguments)
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{:?}\n{out}{err}", output.status)
}

fn all() -> Repo {
    Repo::flat()
        .packages(catalogue::cuda_toolkit("13-0"))
        .packages(catalogue::cuda_toolkit("12-9"))
        .packages(catalogue::cuda_drivers("580.126.09", Drivers::Full, Names::Debian))
        .package(catalogue::nvtop())
}

#[test]
fn apt_reads_a_flat_one_and_gets_its_packages() {
    let apt = Apt::new(&all());
    let update = apt.get(&["update"]);
    assert!(update.status.success(), "{}", said(&update));
    let plan = apt.get(&["-s", "install", "cuda-toolkit-13-0", "nvtop"]);
    assert!(plan.status.success(), "{}", said(&plan));
    let text = said(&plan);
    assert!(text.contains("Inst cuda-nvcc-13-0 (13.0.2-1 NVIDIA CUDA"), "{text}");
    assert!(!text.contains("dkms") && !text.contains("libnvidia"), "{text}");
    let full = said(&apt.get(&["-s", "install", "cuda-drivers-580"]));
    for package in ["nvidia-kernel-dkms", "dkms", "libnvidia-ml1", "libcuda1"] {
        assert!(full.contains(&format!("Inst {package} (")), "{full}");
    }
    let download = apt.get(&["-y", "-d", "install", "cuda-toolkit-12-9", "cuda-drivers-580"]);
    assert!(download.status.success(), "{}", said(&download));
    let archives = fs::read_dir(apt.dir.path().join("cache/archives")).unwrap().count();
    assert!(archives >= 10, "{archives} files");
}

#[test]
fn apt_reads_one_with_dists() {
    let apt = Apt::new(&Repo::dists("bookworm", "contrib").package(catalogue::nvtop()));
    let update = apt.get(&["update"]);
    assert!(update.status.success(), "{}", said(&update));
    let download = apt.get(&["-y", "-d", "install", "nvtop"]);
    assert!(download.status.success(), "{}", said(&download));
}

#[test]
fn apt_refuses_what_is_not_rightly_signed() {
    for (signing, reason) in [
        (Signing::Unsigned, "is not signed"),
        (Signing::OtherKey, "NO_PUBKEY"),
        (Signing::Sha1, "signatures were invalid"),
        (Signing::Altered, "BADSIG"),
    ] {
        let apt = Apt::new(&Repo::flat().package(catalogue::nvtop()).signing(signing));
        let update = apt.get(&["update"]);
        assert!(!update.status.success(), "{signing:?}: {}", said(&update));
        // Debian 13's apt verifies with another program and says it in other words.
        let old = said(&apt.get(&["--version"])).contains("apt 2.");
        assert!(!old || said(&update).contains(reason), "{signing:?}: {}", said(&update));
    }
}

#[test]
fn a_key_bound_by_sha1_is_made() {
    let dir = Repo::flat().package(catalogue::nvtop()).signing(Signing::Sha1Bound).build().unwrap();
    let packets = run(Command::new("gpg").arg("--list-packets").arg(dir.join("3bf863cc.pub"))).unwrap();
    let packets = String::from_utf8_lossy(&packets).into_owned();
    assert!(packets.contains("digest algo 2,"), "{packets}");
}

#[test]
fn ubuntu_has_other_names() {
    let packages = catalogue::cuda_drivers("580.126.09", Drivers::Full, Names::Ubuntu);
    let names: Vec<&str> = packages.iter().map(Package::name).collect();
    assert!(names.contains(&"nvidia-dkms-580") && names.contains(&"libnvidia-compute-580"), "{names:?}");
    let alone = catalogue::cuda_drivers("580.126.09", Drivers::Alone, Names::Debian);
    assert_eq!(alone.len(), 1);
}
