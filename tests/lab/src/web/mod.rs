//! The web server of the lab: what NVIDIA's and a distribution's mirrors are to a real host.
//!
//! A [`Site`] is a directory with the documents, the fault rules and the request log. A server ([`Server`] in this
//! process, or the program `lab-web` in the lab's network namespace) knows nothing but that directory, so a test can
//! change what is served, make it fail and count the requests from outside, while the server runs.
//!
//! In a test of a lab:
//!
//! ```no_run
//! use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
//! use phoenix_lab::{Lab, Rootfs, web::Fault};
//!
//! let Some(lab) = Lab::builder().gpus(2).driver("580.95.05").start() else { return };
//! let web = lab.web();
//! // A good runfile of each version, NVIDIA's repository for Debian 12 and 13, a distribution's with nvtop.
//! web.standard(&["580.76.05", "580.95.05"]);
//! let ct = lab.create(101, Rootfs::Debian12.privileged());
//! web.use_distribution(&ct);
//! // An installer that fails; a server that sends 1 MB of each runfile, once, and is down; and well again.
//! web.runfile(&Runfile::new("590.48.01").flaw(Flaw::Fails));
//! web.fail_times("*.run", 1, Fault::Cut(1_000_000));
//! web.stop();
//! web.start();
//! assert_eq!(web.requests().ending(".run").len(), 0);
//! ```
//!
//! Without a lab:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use phoenix_lab::web::{Fault, Server, Site};
//!
//! let dir = tempfile::tempdir()?;
//! let site = Site::create(dir.path())?;
//! site.put("/hello.txt", b"hello\n")?;
//! site.faults().times("/hello.txt", 1, Fault::Status(404))?;
//! let server = Server::start(std::net::TcpListener::bind("127.0.0.1:0")?, site.clone())?;
//! // … the program under test gets format!("http://{}/hello.txt", server.address()) …
//! assert_eq!(site.requests()?.of("/hello.txt").len(), 1);
//! # Ok(()) }
//! ```

mod certificate;
mod date;
mod fault;
mod http;
mod lab;
mod log;
mod respond;
mod server;
mod site;
mod wire;

pub use certificate::NAMES;
pub(crate) use date::format as http_date;
pub use fault::{Fault, Faults};
pub use lab::Web;
pub use log::{Request, Requests};
pub use server::{Server, serve};
pub use site::Site;
