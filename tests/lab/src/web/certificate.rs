//! A certificate authority of the lab's and the server's certificate, made by openssl once and kept in the cache.

use crate::cache;
use crate::program::run;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The names that the server can prove to have: the lab's own, and those that it plays in the lab.
pub const NAMES: [&str; 4] =
    ["mirror.lab", "us.download.nvidia.com", "download.nvidia.com", "developer.download.nvidia.com"];

/// The directory with `ca.pem`, `server.pem` and `server.key`.
pub(crate) fn build() -> Result<PathBuf> {
    let names: Vec<String> = NAMES.iter().map(|name| format!("DNS:{name}")).collect();
    let names = format!("{},IP:127.0.0.1,IP:192.0.2.1", names.join(","));
    let key = crate::nvidia::runfile::hex(names.as_bytes());
    let key = &key[key.len() - 16..];
    cache::once(&format!("tls/{key}-{}", NAMES.len()), |fresh| {
        fs::create_dir(fresh).with_context(|| format!("making {}", fresh.display()))?;
        let openssl = || {
            let mut openssl = Command::new("openssl");
            openssl.current_dir(fresh);
            openssl
        };
        let elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        run(openssl()
            .args(["req", "-x509", "-days", "3650", "-subj", "/CN=The lab's authority"])
            .args(elliptic)
            .args([
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ]))?;
        run(openssl()
            .args(["req", "-new", "-subj", "/CN=mirror.lab", "-keyout", "server.key", "-out", "server.csr"])
            .args(elliptic))?;
        let extensions = format!(
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName={names}\n"
        );
        fs::write(fresh.join("extensions"), extensions).context("writing the extensions of a certificate")?;
        // A client may refuse a server's certificate that is good for much more than a year.
        run(openssl()
            .args(["x509", "-req", "-days", "365", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"])
            .args(["-CAcreateserial", "-extfile", "extensions", "-out", "server.pem"]))
        .map(drop)
    })
}
