//! `cargo xtask bench`: what the product costs, measured beside its peers.

mod bars;
mod bytes;
mod charts;
mod figures;
mod instance;
mod life;
mod memory;
mod peer;
mod reaping;
mod report;
mod trace;

use crate::apt;
use anyhow::{Context, Result, bail};
use figures::Section;
use indicatif::{ProgressBar, ProgressStyle};
use instance::Instance;
use peer::{Named, Peer};
use report::Report;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The command line of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Install the peers first, with apt
    #[arg(long)]
    install: bool,
    /// Measure this command too, such as --peer 'mine=/opt/mine --quiet'; can be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Named>,
    /// Instances that sleep at once
    #[arg(long, value_name = "NUMBER", default_value_t = 2000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    instances: u64,
    /// Orphans that die
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    orphans: u64,
    /// Lives from clone to the end
    #[arg(long, value_name = "NUMBER", default_value_t = 500)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    lives: u64,
    /// A little of everything, to see that it works; the figures mean nothing
    #[arg(long, conflicts_with_all = ["report", "instances", "orphans", "lives"])]
    smoke: bool,
    /// Write all figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/benchmarks.md with its charts, and the table in the README
    #[arg(long)]
    report: bool,
}

/// How much of everything.
pub struct Plan {
    instances: usize,
    memory_rounds: usize,
    /// How long to wait at most for the machine's memory to come to rest.
    patience: Duration,
    orphans: usize,
    reaping_rounds: usize,
    warm_up: usize,
    lives: usize,
    traces: usize,
}

/// How long a peer gets to do what the others do in a millisecond, until it is said not to do it.
const ENOUGH: Duration = Duration::from_secs(2);

/// Measures the peers and tells about it.
///
/// # Errors
///
/// When one of the peers asked for is not there or does not sleep, or this machine lets nobody measure.
pub fn run(args: &Args) -> Result<()> {
    if args.install {
        apt::install(&peer::PACKAGES)?;
    }
    let plan = if args.smoke {
        Plan {
            instances: 20,
            memory_rounds: 1,
            patience: Duration::ZERO,
            orphans: 100,
            reaping_rounds: 1,
            warm_up: 1,
            lives: 10,
            traces: 1,
        }
    } else {
        Plan {
            instances: args.instances as usize,
            memory_rounds: 3,
            patience: Duration::from_secs(2),
            orphans: args.orphans as usize,
            reaping_rounds: 3,
            warm_up: 20,
            lives: args.lives as usize,
            traces: 3,
        }
    };
    let (mut peers, mut left_out) = peer::find(&args.peer)?;
    for peer in &mut peers {
        get_to_know(peer).with_context(|| format!("cannot measure {}", peer.name))?;
        match &peer.reaps {
            Ok(true) => {}
            Ok(false) => left_out.push(format!("orphans of {}: it does not reap", peer.name)),
            Err(reason) => left_out.push(format!("orphans of {}: {reason}", peer.name)),
        }
        if !peer.leaves {
            left_out.push(format!("life of {}: it does not leave on SIGTERM", peer.name));
        }
    }
    let sections = measure(&peers, &plan)?;
    let report = Report::new(peers, sections, left_out)?;
    println!("{}", report.terminal());
    if args.smoke {
        println!("\nThis was a smoke run, too small for its figures to mean anything.");
    }
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.json());
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.report {
        report.write()?;
    }
    Ok(())
}

fn measure(peers: &[Peer], plan: &Plan) -> Result<Vec<Section>> {
    let each = plan.memory_rounds * plan.instances
        + plan.reaping_rounds * plan.orphans
        + plan.warm_up
        + plan.lives
        + plan.traces;
    let progress = Progress::new(each * peers.len())?;
    let mut sections = vec![bytes::measure(peers)?];
    sections.extend(memory::measure(peers, plan, &progress)?);
    sections.push(reaping::measure(peers, plan, &progress)?);
    sections.push(life::measure(peers, plan, &progress)?);
    sections.push(trace::measure(peers, plan, &progress)?);
    Ok(sections)
}

/// Sees that a peer sleeps, and whether it leaves and reaps.
fn get_to_know(peer: &mut Peer) -> Result<()> {
    let instance = Instance::start(peer)?;
    instance.wait_until_asleep()?;
    peer.leaves = leaves(&instance)?;
    drop(instance);
    peer.reaps = reaping::is_reaped(peer).map_err(|error| format!("{error:#}"));
    Ok(())
}

/// Whether SIGTERM ends it.
fn leaves(instance: &Instance) -> Result<bool> {
    use nix::sys::signal::{Signal, kill};
    kill(instance.pid, Signal::SIGTERM)?;
    let start = Instant::now();
    while start.elapsed() < ENOUGH {
        match harness::proc::state(instance.pid) {
            Some('Z') => return Ok(true),
            None => bail!("it is gone without a trace"),
            Some(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(false)
}

/// A bar for people to watch.
pub struct Progress(ProgressBar);

impl Progress {
    fn new(steps: usize) -> Result<Self> {
        let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} %")?;
        Ok(Self(ProgressBar::new(steps as u64).with_style(style)))
    }

    /// What is being done.
    fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// So many steps are done.
    fn add(&self, steps: usize) {
        self.0.inc(steps as u64);
    }

    /// One step is done.
    fn tick(&self) {
        self.add(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
