//! An image to build in, made from the toolchain of this machine, so that the Dockerfile can be
//! tried without a registry.

use crate::engine::Skip;
use crate::wait::success;
use anyhow::{Result, ensure};
use harness::build::project;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Packs the root of such an image.
const SCRIPT: &str = "tests/engines/toolchain-image.sh";

/// The root of an image to build in.
pub struct Toolchain {
    /// Its archive.
    pub archive: PathBuf,
    /// What its image has to say besides, in the words of a Dockerfile.
    pub changes: [&'static str; 3],
}

/// Packs it into the file `archive`.
///
/// # Errors
///
/// [`Skip`] where the machine has not what it is made from.
pub async fn pack(archive: &Path) -> Result<Toolchain> {
    let needed = ["rustup", "gcc", "dpkg", "ldd"];
    let missing: Vec<_> =
        needed.into_iter().filter(|program| which::which(program).is_err()).collect();
    let reason = format!("no toolchain to make an image of, without {}", missing.join(", "));
    ensure!(missing.is_empty(), Skip(reason));

    success(Command::new("sh").arg(SCRIPT).arg(archive).current_dir(project())).await?;
    let changes = [
        "ENV PATH=/usr/local/rust/bin:/usr/bin",
        "ENV CARGO_HOME=/usr/local/cargo",
        "ENV CARGO_NET_OFFLINE=true",
    ];
    Ok(Toolchain { archive: archive.to_owned(), changes })
}
