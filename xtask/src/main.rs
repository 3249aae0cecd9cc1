//! `cargo xtask`: development tasks for pause.

mod bench;
mod debian;
mod demo;
mod docs;
mod engines;
mod image;
mod size;
mod stress;
mod verify;

use clap::Parser;
use harness::helper;
use std::process::exit;

/// Development tasks for pause.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
enum Task {
    /// Measure memory, reaping, start and stop, next to upstream's pause and others; needs root
    Bench(bench::Args),
    /// Demonstrate a pod sandbox, without root and without a container engine
    Demo(demo::Args),
    /// Update the generated parts of the documents
    Docs,
    /// Test the image with real container engines
    Engines(engines::Args),
    /// Write the image as an archive that every container engine loads
    Image(image::Args),
    /// Check the sizes of the image against their budgets
    Size(image::Selection),
    /// Stress-test PID 1 with orphans and signals
    Stress(stress::Args),
    /// Rebuild an image and compare it with an archive
    Verify(verify::Args),
}

fn main() {
    helper::dispatch();
    let result = match Task::parse() {
        Task::Bench(args) => bench::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Docs => docs::run(),
        Task::Engines(args) => engines::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Size(args) => size::table(&args).map(|table| println!("{table}")),
        Task::Stress(args) => stress::run(&args),
        Task::Verify(args) => verify::run(&args),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        exit(1);
    }
}
