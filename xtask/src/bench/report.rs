//! The report: the same tables on the terminal, in docs/benchmarks.md and in README.md.

use super::figures::{
    self, ANONYMOUS, CHURN_CPU, CHURN_INTERRUPTIONS, CHURN_WAKE_UPS, CLONE_TO_GONE, CPU,
    EXEC_TO_ASLEEP, FILE, INTERRUPTIONS, OWN_MEMORY, PAGE_TABLES, PULLED, RESIDENT, WAKE_UPS,
};
use super::peer::{Peer, UPSTREAM};
use super::{scale, targets};
use anyhow::{Context, Result};
use harness::build;
use harness::markdown::{self, update_section};
use procfs::{CpuInfo, Current};
use std::env;
use std::fs;
use std::process::Command;
use std::time::SystemTime;

/// The measurements: titles, notes and figures.
const SECTIONS: [(&str, &str, &[&str]); 5] = [
    (
        "Size",
        "The program alone. Shared libraries that it loads, and the command that it runs, are not \
         counted. What is pulled is the manifest, the configuration and the layer of an image for one \
         platform, made by `cargo xtask image`.",
        &[FILE, PULLED],
    ),
    (
        "Memory of a sleeping instance",
        "Mean of 1,000 instances, each PID 1 of its own PID namespace, by the kernel's account of each \
         process, which other programs cannot disturb: anonymous memory, and VmPTE with the topmost \
         page table, which VmPTE leaves out. Resident memory counts shared pages in full.",
        &[OWN_MEMORY, ANONYMOUS, PAGE_TABLES, RESIDENT],
    ),
    (
        "Reaping",
        "Measured with 2,000 orphans, one after the other, that PID 1 adopts and that exit at once. \
         Interruptions are switches to other processes while PID 1 could have gone on.",
        &[WAKE_UPS, CPU, INTERRUPTIONS],
    ),
    (
        "Churn",
        "A pod that shares its PID namespace, whose containers leave 200 orphans per second for a \
         minute.",
        &[CHURN_WAKE_UPS, CHURN_CPU, CHURN_INTERRUPTIONS],
    ),
    (
        "Start and stop",
        "About 300 instances of each peer, in random order, each PID 1 of its own PID namespace. From \
         clone(2) until wait(2) returns, with SIGTERM as soon as all processes of the instance sleep; \
         and the part of it between the start of the program and that sleep.",
        &[CLONE_TO_GONE, EXEC_TO_ASLEEP],
    ),
];

const TARGETS: &str = "The lowest tenth of the samples counts, for what else the machine does only adds \
    to a figure.";

const SCALE: &str = "Computed from the figures above. Wake-ups and CPU time are those of pods that \
    share their PID namespace and have one orphan every 10 seconds, such as a probe that leaves a \
    process behind; in other pods PID 1 has no orphans and costs nothing with either program.";

/// What the README shows, and the peers that it does not.
const SUMMARY: [&str; 5] = [FILE, OWN_MEMORY, WAKE_UPS, CPU, CLONE_TO_GONE];
const NOT_IN_SUMMARY: [&str; 2] = ["do nothing", "pause, hosted"];

/// A table of the figures of peers.
fn table(figures: &[&str], peers: &[Peer], shown: impl Fn(&&Peer) -> bool) -> String {
    let upstreams = &peers[UPSTREAM].results;
    let rows = peers.iter().filter(shown);
    figures::table(figures, rows.map(|peer| (peer.name.to_owned(), &peer.results, upstreams)))
}

/// The tables of all sections.
pub fn sections(peers: &[Peer]) -> String {
    let mut text = format!("## Targets\n\n{TARGETS}\n\n{}\n", targets::table(peers));
    for (title, note, figures) in SECTIONS {
        text += &format!("\n## {title}\n\n{note}\n\n{}\n", table(figures, peers, |_| true));
    }
    text + &format!("\n## At scale\n\n{SCALE}\n\n{}\n", scale::table(peers))
}

/// Writes docs/benchmarks.md and the table in README.md.
pub fn write(peers: &[Peer], versions: &str, sections: &str) -> Result<()> {
    let intro = format!(
        "# What it costs\n\nWritten by `cargo xtask bench --report`, not by hand. All programs were \
         measured in one run, in turn. A figure is the median; ± is half the distance between the \
         quartiles; in parentheses is how many times upstream's it is, or ≈ where the spread hides the \
         difference; – means that there is nothing to measure.\n\n{}\n\n{}\n\n{}\n",
        markdown::table(
            ["peer", "command", "what it is"],
            peers.iter().map(|peer| [peer.name, peer.command, peer.description]),
        ),
        markdown::table(["", ""], setting(versions)?),
        picture(peers),
    );
    let path = build::project().join("docs/benchmarks.md");
    fs::write(path, intro + sections).context("cannot write docs/benchmarks.md")?;
    let table = table(&SUMMARY, peers, |peer| !NOT_IN_SUMMARY.contains(&peer.name));
    update_section(&build::project().join("README.md"), "cargo xtask bench", &table)
}

/// A chart of the memory of each peer.
fn picture(peers: &[Peer]) -> String {
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    let medians = peers.iter().map(|peer| peer.results.of(OWN_MEMORY).median().round());
    let medians: Vec<_> = medians.collect();
    format!(
        "```mermaid\nxychart-beta horizontal\n  title \"Memory of a sleeping instance\"\n  x-axis \
         {names:?}\n  y-axis \"{OWN_MEMORY}\"\n  bar {medians:?}\n```\n"
    )
}

/// Where the figures are from.
fn setting(versions: &str) -> Result<[[String; 2]; 7]> {
    let processors = CpuInfo::current()?;
    let model = processors.model_name(0).unwrap_or("unknown processor");
    let arguments: Vec<_> = env::args().skip(1).collect();
    Ok([
        ("machine", format!("{} × {model}", processors.num_cores())),
        ("kernel", first_line("uname", &["--kernel-name", "--kernel-release", "--machine"])?),
        ("peers", versions.to_owned()),
        ("compiler", first_line("rustc", &["--version"])?),
        ("commit", first_line("git", &["describe", "--always", "--dirty"])?),
        ("date", humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
        ("command", format!("`cargo xtask {}`", arguments.join(" "))),
    ]
    .map(|(name, value)| [name.to_owned(), value]))
}

/// The first line of a command's output.
fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(build::project()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned())
}
