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
mod kubelet;
mod kubernetes;
mod matrix;
mod registry;
mod scenario;
mod wait;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use cli::Cli;
use containerd::Containerd;
use engine::Engine;
use images::Candidate;
use kubelet::Kubelet;
use kubernetes::Kubernetes;
use matrix::Matrix;
use scenario::Run;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Tests an image on the container engines of this system, and changes the system for it.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    candidate: Candidate,
    /// Engines that must not be skipped
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    require: Vec<Engine>,
    /// File to write the matrix into
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Multiply all timeouts by this factor
    #[arg(long, default_value_t = 1)]
    slowness: u32,
    /// Run only what has one of these in its name, such as docker::stop (default: all but kubernetes and kubelet)
    filter: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Only the systems that `xtask engines` throws away afterwards have it.
    ensure!(
        Path::new("/run/thrown-away").exists(),
        "this would remove all containers of the system and overwrite the configuration of its \
         engines: run `cargo xtask engines`, which makes a system for it"
    );
    wait::SLOWNESS.store(args.slowness, Ordering::Relaxed);
    let binary = fs::read(&args.candidate.binary).context("cannot read the program")?;
    let run = Run { candidate: args.candidate, binary, left_out: RefCell::default() };
    let mut matrix = Matrix::new(args.require, args.filter, run);
    for engine in Engine::value_variants() {
        match engine {
            Engine::Docker | Engine::Podman | Engine::PodmanRootless => {
                matrix.test::<Cli>(*engine)?
            }
            Engine::Containerd => matrix.test::<Containerd>(*engine)?,
            Engine::Kubernetes => matrix.test::<Kubernetes>(*engine)?,
            Engine::Kubelet => matrix.test::<Kubelet>(*engine)?,
        }
    }
    if let Some(path) = args.report {
        matrix.write(&path)?;
    }
    ensure!(matrix.failed.is_empty(), "failed: {}", matrix.failed.join(", "));
    Ok(())
}
