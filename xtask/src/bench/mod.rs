//! `cargo xtask bench`: measures what the product costs, next to upstream's pause and other programs.

mod figures;
mod instance;
mod orphans;
mod peer;
mod pods;
mod report;
mod scale;
mod targets;

use crate::debian::Release;
use crate::image::{Image, Recipe};
use anyhow::{Context, Result, ensure};
use figures::{FILE, PULLED};
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

/// How much is measured; the notes of the report name these numbers.
const ROUNDS: u32 = 3;
/// Instances that sleep at once, in each round.
const INSTANCES: u32 = 1000;
/// Orphans in each round.
const ORPHANS: u32 = 2000;
const CHURN_SECONDS: u32 = 60;
/// Instances of each peer that are started and stopped.
const LIVES: u32 = 300;

/// Measures all peers and prints the figures.
pub fn run(args: &Args) -> Result<()> {
    ensure!(geteuid().is_root(), "only root can read the memory of a process that is not dumpable");
    let (mut peers, versions) = peer::find()?;
    measure(&mut peers, if args.smoke { 50 } else { 1 })?;
    let measure_pods = |release| Pods::measure(release, &peers[UPSTREAM]);
    let pods = args.pods.map(measure_pods).transpose()?;

    let mut sections = report::sections(&peers);
    if let Some(pods) = &pods {
        sections += &format!("\n{}", pods.section());
    }
    println!("{sections}");
    if args.smoke {
        println!("This was a smoke run, too small for its figures to mean anything.");
    }
    if args.report {
        report::write(&peers, &versions, &sections)?;
    }
    if args.check {
        let mut missed = targets::missed(&peers);
        missed.extend(pods.iter().flat_map(Pods::missed));
        ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    }
    Ok(())
}

/// Measures everything but pods, or less of it: only one in `part`.
fn measure(peers: &mut [Peer], part: u32) -> Result<()> {
    let lives = LIVES / part * peers.len() as u32;
    eprintln!("Starting and stopping {lives} instances");
    for _ in 0..lives {
        // The kernel cleans up after an instance in its own time: not always at the cost of the same
        // peer.
        let peer = fastrand::choice(&mut *peers).context("no peers")?;
        instance::measure_life(peer).context(peer.name)?;
    }
    for round in 1..=ROUNDS {
        for peer in &mut *peers {
            eprintln!("Memory and orphans of {}, round {round}", peer.name);
            instance::measure_memory(peer, INSTANCES / part).context(peer.name)?;
            if peer.is_init() {
                orphans::measure_reaping(peer, ORPHANS / part).context(peer.name)?;
            }
        }
    }
    for peer in &mut *peers {
        peer.results.add(FILE, fs::metadata(&peer.program)?.len() as f64);
    }
    for peer in &mut peers[..=UPSTREAM] {
        let seconds = CHURN_SECONDS / part;
        eprintln!("Churn of {}, {seconds} s", peer.name);
        orphans::measure_churn(peer, seconds).context(peer.name)?;
        let recipe = Recipe { program: Some(peer.program.clone()), ..Recipe::default() };
        let pulled = Image::build(&recipe)?.blobs;
        peer.results.add(PULLED, pulled.iter().map(|blob| blob.bytes.len() as f64).sum());
    }
    Ok(())
}
