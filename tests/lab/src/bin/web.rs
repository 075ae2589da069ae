//! `lab-web BASE ADDRESS…`: serves the site at BASE on each ADDRESS (`192.0.2.1:80`, or `tls:192.0.2.1:443` with the
//! site's certificate), in the network namespace that it is started in. Prints `listening PID` once clients can connect, and serves until it is killed.

use anyhow::{Context, Result, bail};
use phoenix_lab::web::{Site, serve};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((base, addresses)) = arguments.split_first() else {
        bail!("usage: lab-web BASE ADDRESS…");
    };
    let listen =
        |address: &str| TcpListener::bind(address).with_context(|| format!("listening on {address}"));
    let (mut plain, mut with_tls) = (Vec::new(), Vec::new());
    for address in addresses {
        match address.strip_prefix("tls:") {
            Some(address) => with_tls.push(listen(address)?),
            None => plain.push(listen(address)?),
        }
    }
    let site = Site::create(Path::new(base))?;
    writeln!(std::io::stdout(), "listening {}", std::process::id())
        .context("telling that the server is ready")?;
    serve(plain, with_tls, site)
}
