//! The workshop: everything that is done with the product and is not in it.

mod apt;
mod audit;
mod bench;
mod demo;
mod docs;
mod engines;
mod image;
mod sbom;
mod size;
mod soak;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use support::actor;

/// The workshop of pause.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Tell what the shipped file can do, and check that it is what is documented
    Audit(audit::Args),
    /// Measure what it costs, beside its peers
    Bench(bench::Args),
    /// Act out what a pause container is for, without root and without an engine
    Demo(demo::Args),
    /// Fill in the tables of the documents
    Docs(docs::Args),
    /// Try the image on the container engines of this machine
    Engines(engines::Args),
    /// Write the image as one archive for every container engine
    Image(image::Args),
    /// Write the bill of materials of what ships, in CycloneDX
    Sbom(sbom::Args),
    /// Check the sizes of the image against their budgets
    Size(size::Args),
    /// Let storms rage over PID 1: orphans, forks, signals
    Soak(soak::Args),
    /// Build the image anew, and tell how another one differs from it
    Verify(verify::Args),
}

fn main() -> ExitCode {
    actor::take_the_stage(&[demo::PARTS, soak::PARTS].concat());
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Audit(args) => audit::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Docs(args) => docs::run(&args),
        Task::Engines(args) => engines::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Sbom(args) => sbom::run(&args),
        Task::Size(args) => size::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Verify(args) => verify::run(&args),
    }
}
