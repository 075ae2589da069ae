//! The web server of the lab: what NVIDIA's and a distribution's mirrors are to a real host.
//!
//! A [`Site`] is a directory with the documents, the fault rules and the request log. A server ([`Server`] in this
//! process, or the program `lab-web` in the lab's network namespace) knows nothing but that directory, so a test can
//! change what is served, make it fail and count the requests from outside, while the server runs.
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

mod date;
mod fault;
mod http;
mod lab;
mod log;
mod respond;
mod server;
mod site;

pub(crate) use date::format as http_date;
pub use fault::{Fault, Faults};
pub use lab::Web;
pub use log::{Request, Requests};
pub use server::{Server, serve};
pub use site::Site;
