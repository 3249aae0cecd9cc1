//! The image on real container engines: `cargo xtask engines` builds it and runs this, in a Debian
//! system that is thrown away.

mod cli;
mod conformance;
mod containerd;
mod daemon;
mod documents;
mod engine;
mod host;
mod images;
mod kubernetes;
mod registry;
mod report;
mod scenario;
mod wait;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use cli::Cli;
use containerd::Containerd;
use engine::Name;
use images::Image;
use kubernetes::Kubernetes;
use report::Report;
use scenario::Context;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Tries an image on the container engines of this system, and changes the system for it.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    image: Image,
    /// Engines that must not be skipped
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    require: Vec<Name>,
    /// File to write the matrix into
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Wait this many times longer before something counts as hanging
    #[arg(long, default_value_t = 1)]
    slowness: u32,
    /// Number of pods that are many
    #[arg(long, default_value_t = 100)]
    pods: u64,
    /// Run only what has one of these in its name, such as docker::stop
    filter: Vec<String>,
}

/// What only the systems have that `xtask engines` throws away afterwards.
const THROWN_AWAY: &str = "/run/thrown-away";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        Path::new(THROWN_AWAY).exists(),
        "this would remove all containers of the system and overwrite the configuration of its \
         engines: run `cargo xtask engines`, which makes a system for it"
    );
    wait::SLOWNESS.store(args.slowness, Ordering::Relaxed);
    let binary = args.image.binary()?;
    let left_out = RefCell::default();
    let context = Context { image: args.image, binary, pods: args.pods, left_out };
    let mut report = Report::new(args.require, args.filter, context);
    for name in Name::value_variants() {
        match name {
            Name::Docker | Name::Podman | Name::PodmanRootless => report.on::<Cli>(*name).await?,
            Name::Containerd => report.on::<Containerd>(*name).await?,
            Name::Kubernetes => report.on::<Kubernetes>(*name).await?,
        }
    }
    if let Some(path) = args.report {
        report.write(&path)?;
    }
    let failed = report.failed();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
