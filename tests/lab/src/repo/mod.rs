//! Signed apt repositories: real packages made by dpkg-deb, real indexes, real signatures.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use phoenix_lab::repo::{Repo, Signing, catalogue};
//! # let dir = tempfile::tempdir()?;
//! # let site = phoenix_lab::web::Site::create(dir.path())?;
//!
//! Repo::flat()
//!     .packages(catalogue::cuda_toolkit("13-0"))
//!     .package(catalogue::nvtop())
//!     .publish(&site, "/compute/cuda/repos/debian12/x86_64")?;
//! // One that apt must refuse:
//! Repo::flat().signing(Signing::OtherKey).publish(&site, "/stranger")?;
//! # Ok(()) }
//! ```

pub mod catalogue;
mod index;
mod key;
mod package;

pub use index::{Repo, Signing};
pub use package::Package;
