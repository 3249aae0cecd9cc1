//! `cargo xtask`: development tasks for pause.
//!
//! `.cargo/config.toml` builds it without its default feature `full`, so that the demo, which needs few
//! libraries, starts soon. For any other task it builds and runs itself with that feature.

#[cfg(feature = "full")]
mod apt;
#[cfg(feature = "full")]
mod audit;
#[cfg(feature = "full")]
mod bench;
#[cfg(feature = "full")]
mod debian;
mod demo;
#[cfg(feature = "full")]
mod docs;
#[cfg(feature = "full")]
mod engines;
#[cfg(feature = "full")]
mod image;
#[cfg(feature = "full")]
mod release;
#[cfg(feature = "full")]
mod sbom;
#[cfg(feature = "full")]
mod size;
#[cfg(feature = "full")]
mod stress;
#[cfg(feature = "full")]
mod verify;

use anyhow::Context;
use clap::{Parser, Subcommand};
use harness::helper;
use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Development tasks for pause.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// List the functions and system calls of the shipped binary, and check them
    #[cfg(feature = "full")]
    Audit(audit::Args),
    /// Measure memory, reaping and start-up, next to other init programs
    #[cfg(feature = "full")]
    Bench(bench::Args),
    /// Demonstrate a pod sandbox, without root and without a container engine
    Demo(demo::Args),
    /// Update the generated parts of the documents
    #[cfg(feature = "full")]
    Docs(docs::Args),
    /// Test the image with real container engines
    #[cfg(feature = "full")]
    Engines(engines::Args),
    /// Write the image as an archive that every container engine loads
    #[cfg(feature = "full")]
    Image(image::Args),
    /// Try the steps of the release workflow, without publishing anything
    #[cfg(feature = "full")]
    Release(release::Args),
    /// Write a bill of materials of the image, in CycloneDX
    #[cfg(feature = "full")]
    Sbom(sbom::Args),
    /// Check the sizes of the image against their budgets
    #[cfg(feature = "full")]
    Size(size::Args),
    /// Stress-test PID 1 with orphans, fork bombs and signals
    #[cfg(feature = "full")]
    Stress(stress::Args),
    /// Build an image again and compare it with a given one
    #[cfg(feature = "full")]
    Verify(verify::Args),
}

fn main() -> ExitCode {
    helper::dispatch();
    let is_demo = env::args().nth(1).is_some_and(|task| task == "demo");
    let result = match is_demo || cfg!(feature = "full") {
        true => run(Cli::parse().task),
        false => run_full(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes this program with all of its tasks.
fn run_full() -> anyhow::Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    cargo.args(["run", "--quiet", "--manifest-path", manifest, "--"]).args(env::args_os().skip(1));
    Err(cargo.exec()).context("cannot run cargo")
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        #[cfg(feature = "full")]
        Task::Audit(args) => audit::run(&args),
        #[cfg(feature = "full")]
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        #[cfg(feature = "full")]
        Task::Docs(args) => docs::run(&args),
        #[cfg(feature = "full")]
        Task::Engines(args) => engines::run(&args),
        #[cfg(feature = "full")]
        Task::Image(args) => image::run(&args),
        #[cfg(feature = "full")]
        Task::Release(args) => release::run(&args),
        #[cfg(feature = "full")]
        Task::Sbom(args) => sbom::run(&args),
        #[cfg(feature = "full")]
        Task::Size(args) => size::run(&args),
        #[cfg(feature = "full")]
        Task::Stress(args) => stress::run(&args),
        #[cfg(feature = "full")]
        Task::Verify(args) => verify::run(&args),
    }
}
