//! `cargo xtask bench`: measures what the product costs, next to upstream's pause and others.

use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor, project};
use harness::markdown::{self, update_section};
use harness::orphans::ORPHANS;
use harness::proc::{anonymous, children, state, wait_until, wake_ups};
use harness::sandbox::Setup;
use indicatif::HumanFloatCount;
use nix::libc::SIGCHLD;
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, execve, geteuid};
use procfs::process::Process;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// The command line of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Quick smoke run; the numbers are meaningless
    #[arg(long, conflicts_with_all = ["check", "report"])]
    smoke: bool,
    /// Fail if a figure, relative to upstream's, is 10 % worse than in docs/benchmarks.md
    #[arg(long)]
    check: bool,
    /// Update docs/benchmarks.md and the table in README.md
    #[arg(long)]
    report: bool,
}

const FILE: &str = "file, bytes";
const MEMORY: &str = "private memory incl. page tables, KiB";
const WAKE_UPS: &str = "wake-ups of PID 1 per 1,000 orphans";
const CPU: &str = "CPU time of PID 1 per 1,000 orphans, ms";
const LIFE: &str = "start to stop, µs";

/// Everything that is measured, in the order of the columns.
const FIGURES: [&str; 5] = [FILE, MEMORY, WAKE_UPS, CPU, LIFE];

/// Number of rounds. docs/benchmarks.md repeats the numbers.
const ROUNDS: u32 = 3;
/// Instances that are started and stopped, one after the other, per round.
const LIVES: u32 = 100;
/// Instances that sleep at the same time, per round.
const INSTANCES: u32 = 1000;
const ORPHANS_PER_ROUND: u32 = 2000;

/// A regression is a ratio that is worse than the committed one by more than this factor.
const TOLERANCE: f64 = 1.1;

/// The peer that is the product, and the one that it replaces.
const OURS: &str = "pause";
const UPSTREAM: &str = "upstream";
/// The peer that the README does not show.
const HOSTED: &str = "pause, hosted";

/// Builds the peers that are not of this project, and prints their versions.
const BUILD_PEERS: &str = "xtask/build-peers target/peers";

struct Peer {
    name: &'static str,
    program: PathBuf,
    argument: Option<&'static str>,
    /// The samples of each figure.
    samples: BTreeMap<&'static str, Vec<f64>>,
}

/// Measures all peers and prints the figures.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "bench needs root: it reads /proc/PID/smaps_rollup of processes that are not dumpable"
    );
    let document = project().join("docs/benchmarks.md");
    let committed = fs::read_to_string(&document).context("cannot read docs/benchmarks.md")?;
    let mut peers = build_peers()?;
    for round in 1..=ROUNDS {
        // In turn, so that what else the machine does affects all of them.
        for peer in &mut peers {
            eprintln!("Round {round} of {ROUNDS}: {}", peer.name);
            peer.measure(if args.smoke { 50 } else { 1 }).context(peer.name)?;
        }
    }
    println!("{}", table(&peers, &[]));
    if args.smoke {
        println!("This was a smoke run: the numbers are meaningless.");
    }
    if args.report {
        let section = [setting()?, chart(&peers), table(&peers, &[])].join("\n\n");
        update_section(&document, "cargo xtask bench", &section)?;
        let short = table(&peers, &[HOSTED]);
        update_section(&project().join("README.md"), "cargo xtask bench", &short)?;
    }
    if args.check {
        let worse = regressions(&peers, &committed)?;
        ensure!(worse.is_empty(), "worse than docs/benchmarks.md: {}", worse.join("; "));
    }
    Ok(())
}

fn build_peers() -> Result<Vec<Peer>> {
    build::stdout_of(Command::new("sh").args(["-c", BUILD_PEERS]))
        .context("cannot build the peers; this needs go, gcc, musl-tools and catatonit")?;
    let folder = project().join("target/peers");
    let peer = |name, program| Peer { name, program, argument: None, samples: BTreeMap::new() };
    Ok(vec![
        peer(OURS, build::build(Flavor::Freestanding)?),
        peer(UPSTREAM, folder.join("upstream")),
        peer("upstream, musl", folder.join("upstream-musl")),
        Peer { argument: Some("-P"), ..peer("catatonit -P", folder.join("catatonit")) },
        peer(HOSTED, build::build(Flavor::Hosted)?),
    ])
}

impl Peer {
    /// Takes the samples of a round. A smoke run measures only one instance or orphan in `part`.
    fn measure(&mut self, part: u32) -> Result<()> {
        self.add(FILE, fs::metadata(&self.program)?.len() as f64);
        for _ in 0..LIVES / part {
            let start = Instant::now();
            let pid = self.start()?;
            wait_until_asleep(pid)?;
            stop(pid)?;
            self.add(LIFE, start.elapsed().as_secs_f64() * 1e6);
        }
        self.measure_memory(INSTANCES / part)?;
        self.measure_reaping(ORPHANS_PER_ROUND / part)
    }

    fn add(&mut self, figure: &'static str, sample: f64) {
        self.samples.entry(figure).or_default().push(sample);
    }

    /// What the tables show of a figure, and what [`regressions`] compares: the 10th percentile of its
    /// samples, because what else the machine does can only make a sample worse.
    fn figure(&self, name: &str) -> f64 {
        let mut samples = self.samples.get(name).cloned().unwrap_or_default();
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 10).copied().unwrap_or(f64::NAN)
    }

    /// Starts many instances and measures their memory while they sleep: the mean of the kernel's
    /// accounts of the processes, which other programs do not influence.
    fn measure_memory(&mut self, number: u32) -> Result<()> {
        let instances = (0..number).map(|_| self.start()).collect::<Result<Vec<_>>>()?;
        let mut sum = 0;
        for &pid in &instances {
            wait_until_asleep(pid)?;
            let page_tables = Process::new(pid.as_raw())?.status()?.vmpte.context("no VmPTE")?;
            // VmPTE leaves out the topmost page table.
            sum += page_tables + procfs::page_size() / 1024 + anonymous(pid)?;
        }
        self.add(MEMORY, sum as f64 / f64::from(number));
        instances.into_iter().try_for_each(stop)
    }

    /// Makes orphans, one after the other, and measures what they cost PID 1.
    fn measure_reaping(&mut self, orphans: u32) -> Result<()> {
        let arguments = self.argument.into_iter().map(Into::into).collect();
        let setup = Setup { libraries: true, arguments, ..Setup::new(&self.program) };
        let sandbox = setup.start()?;
        wait_until("PID 1 sleeps", || state(sandbox.pid) == Some('S'))?;
        let process = Process::new(sandbox.pid.as_raw())?;
        let nanoseconds = || process.schedstat().map(|it| it.sum_exec_runtime);
        let (wake_ups_before, nanoseconds_before) = (wake_ups(sandbox.pid)?, nanoseconds()?);
        sandbox.run(&ORPHANS, &[&orphans.to_string()])?;
        wait_until("all orphans are gone", || children(sandbox.pid).is_empty())?;
        let thousands = f64::from(orphans) / 1000.0;
        self.add(WAKE_UPS, (wake_ups(sandbox.pid)? - wake_ups_before) as f64 / thousands);
        self.add(CPU, (nanoseconds()? - nanoseconds_before) as f64 / 1e6 / thousands);
        Ok(())
    }

    /// Starts an instance, as PID 1 of a PID namespace of its own, with no other new namespace. The
    /// program has been executed when this returns. It ends at the latest when this process does.
    fn start(&self) -> Result<Pid> {
        let null = File::options().write(true).open("/dev/null")?;
        let mut words = vec![CString::new(self.program.as_os_str().as_bytes())?];
        words.extend(self.argument.map(CString::new).transpose()?);
        let become_peer = || {
            let _ = set_pdeathsig(Signal::SIGKILL)
                .and_then(|()| dup2_stderr(&null))
                .and_then(|()| execve(&words[0], &words, &[c"PATH=/usr/bin:/bin"]));
            127
        };
        // The cheapest way to start a process, so that little but the peer is measured: the child
        // borrows this memory, and this thread waits until it has executed the program.
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID;
        let mut stack = [0; 64 * 1024];
        // SAFETY: this is the only thread, and it waits; the child has more stack than it needs.
        let pid = unsafe { clone(Box::new(become_peer), &mut stack, flags, Some(SIGCHLD)) };
        pid.context("cannot make a PID namespace")
    }
}

/// Waits until an instance sleeps, or has ended. How long this takes is measured, so the state is read again
/// and again from one open file.
fn wait_until_asleep(pid: Pid) -> Result<()> {
    let stat = File::open(format!("/proc/{pid}/stat"))?;
    let mut buffer = [0; 64];
    wait_until("it sleeps", || {
        let is_read = stat.read_at(&mut buffer, 0).is_ok();
        // The state comes after the name, which is in parentheses.
        is_read && buffer.windows(4).any(|part| part == b") S " || part == b") Z ")
    })
}

/// Ends an instance by SIGTERM, and waits until it is gone.
fn stop(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGTERM)?;
    let status = waitpid(pid, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "it was sent SIGTERM, but: {status:?}");
    Ok(())
}

fn find<'a>(peers: &'a [Peer], name: &str) -> &'a Peer {
    peers.iter().find(|peer| peer.name == name).expect("the peer is in the list")
}

/// A table of all figures of the peers but those in `hidden`, with ratios to upstream's.
fn table(peers: &[Peer], hidden: &[&str]) -> String {
    let upstream = find(peers, UPSTREAM);
    let shown = peers.iter().filter(|peer| !hidden.contains(&peer.name));
    let rows = shown.map(|peer| {
        let cells = FIGURES.map(|figure| cell(peer.figure(figure), upstream.figure(figure)));
        [&[peer.name.to_owned()], &cells[..]].concat()
    });
    markdown::table([&["program"], &FIGURES[..]].concat(), rows)
}

/// A value, and its ratio to upstream's unless one of them is 0 or both are the same.
fn cell(value: f64, upstream: f64) -> String {
    // Three digits, or all before the point.
    let decimals = [10.0, 100.0].iter().filter(|limit| value < **limit).count();
    let text = format!("{:.decimals$}", HumanFloatCount(value));
    match value / upstream {
        ratio if ratio == 0.0 || ratio == 1.0 || !ratio.is_finite() => text,
        ratio if ratio < 0.1 => format!("{text} (1/{:.0})", 1.0 / ratio),
        ratio => format!("{text} ({ratio:.2}×)"),
    }
}

/// The figures of ours that are worse than in the committed table. Ratios to upstream's are compared,
/// because those hold across machines.
fn regressions(peers: &[Peer], document: &str) -> Result<Vec<String>> {
    let mut regressions = Vec::new();
    let [ours, upstream] = [OURS, UPSTREAM].map(|name| committed(document, name));
    for (figure, (ours, upstream)) in FIGURES.iter().zip(ours?.into_iter().zip(upstream?)) {
        let old = ours / upstream;
        let new = find(peers, OURS).figure(figure) / find(peers, UPSTREAM).figure(figure);
        // A comparison with NaN is false, and that is a regression.
        let is_kept = new <= old * TOLERANCE;
        if !is_kept {
            regressions.push(format!("{figure}: {new:.4} of upstream's, not {old:.4}"));
        }
    }
    Ok(regressions)
}

/// The figures of a peer in docs/benchmarks.md.
fn committed(document: &str, name: &str) -> Result<[f64; FIGURES.len()]> {
    let mut rows = document.lines().map(|line| line.split('|').map(str::trim));
    let row = rows.find(|row| row.clone().nth(1) == Some(name));
    let cells = row.into_iter().flatten().skip(2);
    let numbers = cells.filter_map(|cell| cell.split(' ').next()?.replace(',', "").parse().ok());
    let numbers: Vec<_> = numbers.collect();
    numbers.try_into().ok().with_context(|| format!("docs/benchmarks.md has no full row {name:?}"))
}

fn chart(peers: &[Peer]) -> String {
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    let bars: Vec<_> = peers.iter().map(|peer| peer.figure(MEMORY).round()).collect();
    format!(
        "```mermaid\nxychart-beta horizontal\n  title \"Memory of a sleeping instance\"\n  x-axis \
         {names:?}\n  y-axis \"{MEMORY}\"\n  bar {bars:?}\n```"
    )
}

/// A table of where the figures are from.
fn setting() -> Result<String> {
    let commands = [
        ("machine", "echo $(nproc) × $(lscpu | sed --quiet 's/^Model name: *//p')"),
        ("kernel", "uname --kernel-name --kernel-release --machine"),
        ("peers", BUILD_PEERS),
        ("compiler", "rustc --version"),
        ("commit", "git describe --always --dirty"),
        ("date", "date --utc +%F"),
    ];
    let mut rows = Vec::new();
    for (name, command) in commands {
        let output = build::stdout_of(Command::new("sh").args(["-c", command]))?;
        rows.push([name, output.trim()].map(str::to_owned));
    }
    Ok(markdown::table(["", ""], rows))
}
