//! The images that engines load: the candidate, and those of the containers beside it, which are made
//! from the programs of this machine.

use crate::engine::Skip;
use crate::wait::success;
use anyhow::{Result, ensure};
use harness::build::project;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the image with busybox and nothing else.
pub const BUSYBOX: &str = "localhost/busybox:static";

/// The name of the image with Debian's nginx and `ipcmk`, busybox, and the libraries they need.
pub const NGINX: &str = "localhost/nginx:debian";

/// The name of the image for all platforms, as in the documents.
pub const ALL: &str = concat!("registry.example/infra/pause:", env!("CARGO_PKG_VERSION"));

/// The image that is tested.
#[derive(clap::Args)]
pub struct Candidate {
    /// Archive of the image
    #[arg(long = "image", value_name = "FILE")]
    pub archive: PathBuf,
    /// Name that the archive gives the image
    #[arg(long)]
    pub reference: String,
    /// The program that the image was made with
    #[arg(long, value_name = "FILE")]
    pub binary: PathBuf,
    /// Archive of the image for all platforms, named as in the documents
    #[arg(long, value_name = "FILE")]
    pub all: Option<PathBuf>,
}

impl Candidate {
    /// The archive for all platforms, if it could be built.
    pub fn all(&self) -> Result<&Path> {
        let reason = "there is no core to build it with: rustup target add, or PAUSE_FOREIGN_RUSTC";
        self.all.as_deref().ok_or_else(|| Skip(reason).into())
    }
}

/// The archives of [`BUSYBOX`] and [`NGINX`].
pub fn helpers() -> Result<[&'static Path; 2]> {
    make("helper-images.sh", "/var/tmp/helpers")?;
    Ok(["/var/tmp/helpers/busybox.tar", "/var/tmp/helpers/nginx.tar"].map(Path::new))
}

/// Packs the root of an image to build in, from the Rust toolchain that is shown to this system, so
/// that the Dockerfile can be tried without a registry.
pub fn toolchain() -> Result<&'static str> {
    ensure!(Path::new("/rust").exists(), Skip("this system has no Rust toolchain"));
    make("toolchain-image.sh", "/var/tmp/toolchain.tar")
}

/// Runs a script for the first engine that needs its output.
fn make(script: &str, output: &'static str) -> Result<&'static str> {
    if !Path::new(output).exists() {
        let script = project().join("tests/engines").join(script);
        success(Command::new("sh").arg(script).arg(output))?;
    }
    Ok(output)
}
