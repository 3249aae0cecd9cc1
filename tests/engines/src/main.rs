//! The image on real container engines: `cargo xtask engines` builds it and runs this, in a Debian
//! system that is thrown away.

mod containerd;
mod cost;
mod daemon;
mod docker;
mod engine;
mod host;
mod images;
mod kubernetes;
mod oci;
mod podman;
mod report;
mod scenario;
mod wait;

use clap::Parser;
use containerd::Containerd;
use docker::Docker;
use engine::Name;
use images::Image;
use kubernetes::Kubernetes;
use oci::{Crun, Oci, Runc, Runsc};
use podman::Podman;
use report::Report;
use scenario::Context;
use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
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
    /// Instead of trying the image, measure what pods cost with it and with upstream's pause, of which
    /// this is the archive, and write the samples into the second file
    #[arg(long, num_args = 2, value_names = ["ARCHIVE", "FILE"])]
    cost: Option<Vec<PathBuf>>,
    /// Wait this many times longer before something counts as hanging
    #[arg(long, default_value_t = 1)]
    slowness: u32,
    /// Number of pods that are many
    #[arg(long, default_value_t = 100)]
    pods: u64,
    /// Run only what has one of these in its name, such as docker::stop
    filter: Vec<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> anyhow::Result<ExitCode> {
    wait::SLOWNESS.store(args.slowness, Ordering::Relaxed);
    if let Some([upstream, file]) = args.cost.as_deref() {
        cost::on::<Docker>(&args.image, upstream, file).await?;
        cost::on::<Containerd>(&args.image, upstream, file).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let binary = args.image.binary()?;
    let left_out = RefCell::default();
    let context = Context { image: args.image, binary, pods: args.pods, left_out };
    let mut report = Report::new(args.require, args.filter, context);
    report.on::<Docker>().await?;
    report.on::<Containerd>().await?;
    report.on::<Podman<false>>().await?;
    report.on::<Podman<true>>().await?;
    report.on::<Oci<Runc>>().await?;
    report.on::<Oci<Crun>>().await?;
    report.on::<Oci<Runsc>>().await?;
    report.on::<Kubernetes<Containerd>>().await?;
    report.on::<Kubernetes<Docker>>().await?;
    if let Some(path) = args.report {
        report.write(&path)?;
    }
    Ok(report.close())
}
