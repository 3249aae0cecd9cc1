//! The artifact as it ships: what `cargo build --release` makes, never a test build of it.

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use std::env;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The two ways to build the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// No C library, no std: what ships.
    Freestanding,
    /// On std, libc and signal-hook.
    Hosted,
}

/// The top folder of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/support has a project")
}

/// Builds the release binary of `flavor` and returns its path.
///
/// # Errors
///
/// When cargo cannot be run, or says why the build failed.
pub fn build(flavor: Flavor) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(project());
    build.args(["build", "--release", "--quiet", "--package=pause"]);
    build.arg("--message-format=json-render-diagnostics");
    if flavor == Flavor::Hosted {
        // A folder of its own, or each flavor would overwrite the other at target/release/pause.
        build.args(["--features=hosted", "--target-dir=target/hosted"]);
    }
    let mut child = build.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let messages = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut binary = None;
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read from cargo")? {
            binary = artifact.executable.or(binary);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{build:?}: {status}");
    match binary {
        Some(path) => Ok(path.into()),
        None => bail!("{build:?} made no binary"),
    }
}
