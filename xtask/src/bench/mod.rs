//! `cargo xtask bench`: measures what the product costs, next to upstream's pause and other programs.

mod churn;
mod instance;
mod life;
mod memory;
mod peer;
mod pods;
mod reaping;
mod report;
mod samples;
mod scale;
mod targets;

use crate::debian::Release;
use crate::image::{Image, Recipe};
use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use nix::unistd::geteuid;
use peer::{Peer, UPSTREAM};
use pods::Pods;
use std::fs;

/// The command line of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Measure very little, to see that it works; the figures mean nothing
    #[arg(long, conflicts_with_all = ["check", "report"])]
    smoke: bool,
    /// Fail if a target is missed
    #[arg(long)]
    check: bool,
    /// Write docs/benchmarks.md with its picture, and the table in README.md
    #[arg(long)]
    report: bool,
    /// Measure pods as well, on the Docker and the containerd of a release of Debian
    #[arg(long, value_name = "RELEASE", value_enum, conflicts_with = "smoke")]
    pods: Option<Release>,
}

/// How much is measured.
struct Plan {
    /// Instances that sleep at once.
    instances: usize,
    memory_rounds: usize,
    orphans: usize,
    reaping_rounds: usize,
    /// Instances that are started and stopped.
    lives: usize,
    churn_seconds: u32,
}

/// The notes of the report name these numbers.
const FULL: Plan = Plan {
    instances: 1000,
    memory_rounds: 3,
    orphans: 2000,
    reaping_rounds: 3,
    lives: 300,
    churn_seconds: 60,
};

const SMOKE: Plan = Plan {
    instances: 20,
    memory_rounds: 1,
    orphans: 100,
    reaping_rounds: 1,
    lives: 10,
    churn_seconds: 2,
};

/// Measures all peers and prints the figures.
pub fn run(args: &Args) -> Result<()> {
    ensure!(geteuid().is_root(), "only root can read the memory of a process that is not dumpable");
    let plan = if args.smoke { SMOKE } else { FULL };
    let (mut peers, versions) = peer::find()?;
    let progress = ProgressBar::new_spinner();
    for peer in &mut peers {
        let bytes = fs::metadata(&peer.program)?.len();
        peer.results.file.push(bytes as f64);
    }
    for peer in &mut peers[..=UPSTREAM] {
        measure_image(peer)?;
    }
    let mut failures = reaping::measure(&mut peers, &plan, &progress);
    failures.extend(churn::measure(&mut peers, &plan, &progress)?);
    life::measure(&mut peers, &plan, &progress)?;
    memory::measure(&mut peers, &plan, &progress)?;
    progress.finish_and_clear();
    let measure_pods = |release| Pods::measure(release, &peers[UPSTREAM]);
    let pods = args.pods.map(measure_pods).transpose()?;

    let mut sections = report::sections(&peers);
    if let Some(pods) = &pods {
        sections += &format!("\n{}", pods.section());
    }
    println!("{sections}");
    for failure in &failures {
        println!("failed: {failure}");
    }
    if args.smoke {
        println!("This was a smoke run, too small for its figures to mean anything.");
        ensure!(failures.is_empty(), "a peer failed");
    }
    if args.report {
        ensure!(failures.is_empty(), "nothing is written, because a peer failed");
        report::write(&peers, &versions, &sections)?;
    }
    if args.check {
        let mut missed = targets::missed(&peers);
        missed.extend(pods.iter().flat_map(Pods::missed));
        ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    }
    Ok(())
}

/// Measures what a node pulls for the program: manifest, configuration and layer.
fn measure_image(peer: &mut Peer) -> Result<()> {
    let recipe = Recipe { program: Some(peer.program.clone()), ..Recipe::default() };
    let image = Image::build(&recipe)?;
    peer.results.pulled.push(image.blobs.iter().map(|blob| blob.bytes.len() as f64).sum());
    Ok(())
}
