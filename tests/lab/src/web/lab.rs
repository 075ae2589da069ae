//! The web server of a running lab, at `http://mirror.lab` for its host and its containers; with TLS too, and then under
//! NVIDIA's names if a test wants.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Fault, NAMES, Requests, Site};
use crate::container::Container;
use crate::files::Files;
use crate::host::{ADDRESS, MIRROR};
use crate::lab::Lab;
use crate::nvidia::runfile::Runfile;
use crate::repo::{Repo, catalogue};

/// Where the server's site is on the lab's host.
const BASE: &str = "/run/lab/web";

/// Where a distribution's own packages are.
const DISTRIBUTION: &str = "/debian";

/// The server of a lab. Every method panics, telling what it was about, when it can't do what it is asked for.
pub struct Web<'lab> {
    lab: &'lab Lab,
    site: Site,
    authority: Vec<u8>,
}

impl Lab {
    /// The lab's web server, at `http://mirror.lab` and `https://mirror.lab`, which the host trusts. The first call starts
    /// it, with nothing to serve yet.
    #[track_caller]
    pub fn web(&self) -> Web<'_> {
        let base = self.root().join(BASE.trim_start_matches('/'));
        let site = done(Site::create(&base), "the lab's site");
        let authority = done(site.certify(), "the server's certificate");
        let web = Web { lab: self, site, authority };
        if !self.exists(web.said()) {
            web.trust(&self.files());
            web.start();
        }
        web
    }
}

#[track_caller]
fn done<T>(result: anyhow::Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error:#}"))
}

impl Web<'_> {
    /// Starts the server again after [`Web::stop`].
    #[track_caller]
    pub fn start(&self) {
        let said = self.said();
        let program = "/run/lab/bin/lab-web";
        // In a session of its own: it is nobody's child, and ends with the lab.
        let line = format!(
            ": > {said}; setsid {program} {BASE} 0.0.0.0:80 tls:0.0.0.0:443 < /dev/null > {said} 2>&1 &"
        );
        self.lab.sh(&line).ok();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.lab.read(&said).ends_with('\n') {
            assert!(Instant::now() < deadline, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let said = self.lab.read(&said);
        assert!(said.starts_with("listening "), "{program} does not listen: {said}");
    }

    /// Ends the server: who connects is refused.
    #[track_caller]
    pub fn stop(&self) {
        let said = self.lab.read(self.said());
        let pid = said.trim().trim_start_matches("listening ").to_owned();
        self.lab.run(["kill", "-9", &pid]).ok();
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.lab.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80"]).exit() == Some(0) {
            assert!(Instant::now() < deadline, "process {pid} still listens");
        }
    }

    /// What is served, as files.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The URL of a path, without TLS.
    pub fn url(&self, path: &str) -> String {
        format!("http://{MIRROR}/{}", path.trim_start_matches('/'))
    }

    /// Serves what a test usually needs: a good runfile of each version, NVIDIA's repository for the containers'
    /// releases (toolkits of CUDA 12.4 to 13.1, and the full driver of a newer point release, as in reality), and a
    /// distribution's with nvtop.
    #[track_caller]
    pub fn standard(&self, versions: &[&str]) {
        for version in versions {
            self.runfile(&Runfile::new(version));
        }
        for (distro, key) in [("debian12", "3bf863cc.pub"), ("debian13", "8793F200.pub")] {
            let mut repo = Repo::flat().key_file(key);
            for cuda in ["12-2", "12-4", "12-8", "13-0", "13-1"] {
                repo = repo.packages(catalogue::cuda_toolkit(cuda));
            }
            let (full, names) = (catalogue::Drivers::Full, catalogue::Names::Debian);
            self.cuda_repo(distro, &repo.packages(catalogue::cuda_drivers("580.126.09", full, names)));
        }
        for codename in ["bookworm", "trixie"] {
            let repo = Repo::dists(codename, "main").package(catalogue::nvtop()).key_file("archive.asc");
            self.repo(DISTRIBUTION, &repo);
        }
    }

    /// Serves a runfile at NVIDIA's path, its `.sha256sum` beside it, and tells that path.
    #[track_caller]
    pub fn runfile(&self, runfile: &Runfile) -> String {
        done(runfile.publish(&self.site), &runfile.name())
    }

    /// Serves NVIDIA's repository for a distribution, `debian12` say.
    #[track_caller]
    pub fn cuda_repo(&self, distro: &str, repo: &Repo) {
        self.repo(&format!("/compute/cuda/repos/{distro}/{}", std::env::consts::ARCH), repo);
    }

    /// Serves a repository at a path.
    #[track_caller]
    pub fn repo(&self, path: &str, repo: &Repo) {
        done(repo.publish(&self.site, path), path);
    }

    /// Makes the repository of [`Web::standard`] with nvtop a container's distribution.
    #[track_caller]
    pub fn use_distribution(&self, container: &Container<'_>) {
        let release = container.read("/etc/os-release");
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.unwrap_or_else(|| panic!("no codename in {release}"));
        let key = self.site.www().join("debian/archive.asc");
        let key = std::fs::read(&key).unwrap_or_else(|e| panic!("{}: {e}", key.display()));
        let place = Path::new("/usr/share/keyrings/lab-archive.asc");
        container.write(place, key);
        let url = self.url(DISTRIBUTION);
        let line = format!("deb [signed-by={}] {url} {codename} main\n", place.display());
        container.write("/etc/apt/sources.list", line);
    }

    /// The certificate of the authority behind the server's, PEM.
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// Makes the host take the server for NVIDIA's own: its names lead here. Settings
    /// with `https://us.download.nvidia.com/…` and `https://developer.download.nvidia.com/…` work as they are.
    #[track_caller]
    pub fn play_nvidia(&self) {
        self.pose(&self.lab.files());
    }

    /// The same inside a container, for its apt, with the trust that a container lacks.
    #[track_caller]
    pub fn play_nvidia_in(&self, container: &Container<'_>) {
        self.trust(&container.files());
        self.pose(&container.files());
    }

    #[track_caller]
    fn pose(&self, files: &Files) {
        let names = NAMES.iter().filter(|name| **name != MIRROR);
        files.append("/etc/hosts", names.map(|name| format!("{ADDRESS} {name}\n")).collect::<String>());
    }

    #[track_caller]
    fn trust(&self, files: &Files) {
        files.append("/etc/ssl/certs/ca-certificates.crt", &self.authority);
    }

    /// From now on requests for paths of this pattern (`*`: any characters) fail so.
    #[track_caller]
    pub fn fail(&self, pattern: &str, fault: Fault) {
        done(self.site.faults().set(pattern, fault), pattern);
    }

    /// The next `times` requests for paths of this pattern fail so.
    #[track_caller]
    pub fn fail_times(&self, pattern: &str, times: u64, fault: Fault) {
        done(self.site.faults().times(pattern, times, fault), pattern);
    }

    /// The server is well again.
    #[track_caller]
    pub fn heal(&self) {
        done(self.site.faults().clear(), "clearing the faults");
    }

    /// What was asked for so far.
    #[track_caller]
    pub fn requests(&self) -> Requests {
        done(self.site.requests(), "the request log")
    }

    fn said(&self) -> String {
        format!("{BASE}/said")
    }
}
