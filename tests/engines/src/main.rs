//! The image on real container engines: `cargo xtask engines` builds it and runs this.

mod bundle;
mod containerd;
mod daemon;
mod docker;
mod engine;
mod host;
mod images;
mod kind;
mod pod;
mod podman;
mod report;
mod scenario;
mod scenes;
mod stage;
mod toolchain;
mod wait;

use bundle::{Bundles, Crun, Runc};
use clap::Parser;
use containerd::Containerd;
use docker::Docker;
use podman::Podman;
use report::Report;
use stage::{Props, Stage};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tries an image on real container engines.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    props: Props,
    /// Engines that must not be skipped
    #[arg(long, value_name = "ENGINE", value_delimiter = ',')]
    require: Vec<kind::Engine>,
    /// Document to write the matrix into
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Run only what has this in its name, such as docker::stop
    #[arg(default_value = "")]
    filter: String,
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
    host::adopt()?;
    let stage = Stage::set(args.props)?;
    let mut report = Report::new(args.require, args.filter)?;
    report.on::<Docker>(&stage).await;
    report.on::<Containerd>(&stage).await;
    report.on::<Podman<false>>(&stage).await;
    report.on::<Podman<true>>(&stage).await;
    report.on::<Bundles<Runc>>(&stage).await;
    report.on::<Bundles<Crun>>(&stage).await;
    let written = args.report.map_or(Ok(()), |document| report.write(&document));
    let code = report.close();
    written.and(Ok(code))
}
