//! `cargo xtask bench`: measures what the product costs, next to upstream's pause and others.

use anyhow::{Context, Result, bail, ensure};
use harness::build::{self, Flavor, project};
use harness::markdown::{self, update_section};
use harness::orphans::ORPHANS;
use harness::proc::{TIMEOUT, activity, anonymous, children, state, wait_until};
use harness::sandbox::Setup;
use indicatif::HumanFloatCount;
use nix::libc::SIGCHLD;
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, geteuid};
use procfs::process::Process;
use procfs::{CpuInfo, Current};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
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

/// How much is measured; docs/benchmarks.md repeats these numbers.
const ROUNDS: u32 = 3;
/// Instances that sleep at the same time, per round.
const INSTANCES: u32 = 1000;
/// Orphans per round.
const ORPHANS_PER_ROUND: u32 = 2000;
/// Instances that are started and stopped, one after the other.
const LIVES: u32 = 300;

/// A regression is a ratio that is worse than the committed one by more than this factor.
const TOLERANCE: f64 = 1.1;

/// The peer that is the product, and the one that it replaces.
const OURS: &str = "pause";
const UPSTREAM: &str = "upstream";
/// The peer that the README does not show.
const HOSTED: &str = "pause, hosted";

/// A program that is measured.
struct Peer {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
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
    let (mut peers, versions) = find_peers()?;
    measure(&mut peers, if args.smoke { 50 } else { 1 })?;
    println!("{}", table(peers.iter(), &peers));
    if args.smoke {
        println!("This was a smoke run: the numbers are meaningless.");
    }
    if args.report {
        let section =
            [setting(&versions)?, chart(&peers), table(peers.iter(), &peers)].join("\n\n");
        update_section(&document, "cargo xtask bench", &section)?;
        let shown = peers.iter().filter(|peer| peer.name != HOSTED);
        update_section(&project().join("README.md"), "cargo xtask bench", &table(shown, &peers))?;
    }
    if args.check {
        let regressions = regressions(&peers, &committed)?;
        ensure!(
            regressions.is_empty(),
            "worse than docs/benchmarks.md: {}",
            regressions.join("; ")
        );
    }
    Ok(())
}

/// Builds all peers. Returns them, and the versions of those that are not of this project.
fn find_peers() -> Result<(Vec<Peer>, String)> {
    let folder = project().join("target/peers");
    let script = project().join("xtask/build-peers");
    let versions = build::stdout_of(Command::new(&script).arg(&folder))
        .context("cannot build the peers; this needs go, gcc, musl-tools and catatonit")?;
    let peer = |name, program, arguments| {
        let samples = BTreeMap::new();
        Peer { name, program, arguments, samples }
    };
    let peers = vec![
        peer(OURS, build::build(Flavor::Freestanding)?, &[][..]),
        peer(UPSTREAM, folder.join("upstream"), &[]),
        peer("upstream, musl", folder.join("upstream-musl"), &[]),
        peer("catatonit -P", folder.join("catatonit"), &["-P"]),
        peer(HOSTED, build::build(Flavor::Hosted)?, &[]),
    ];
    Ok((peers, versions.trim().to_owned()))
}

/// Measures all peers in turn, so that what else the machine does affects all of them. A smoke run
/// measures only one in `part`.
fn measure(peers: &mut [Peer], part: u32) -> Result<()> {
    for peer in &mut *peers {
        let bytes = fs::metadata(&peer.program)?.len();
        peer.add(FILE, bytes as f64);
    }
    eprintln!("Starting and stopping {} instances of each", LIVES / part);
    for _ in 0..LIVES / part {
        for peer in &mut *peers {
            peer.measure_life().context(peer.name)?;
        }
    }
    for round in 1..=ROUNDS {
        for peer in &mut *peers {
            eprintln!("Memory and orphans of {}, round {round}", peer.name);
            peer.measure_memory(INSTANCES / part).context(peer.name)?;
            peer.measure_reaping(ORPHANS_PER_ROUND / part).context(peer.name)?;
        }
    }
    Ok(())
}

impl Peer {
    /// Adds a sample of a figure.
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

    /// Starts an instance and stops it as soon as it sleeps.
    fn measure_life(&mut self) -> Result<()> {
        let start = Instant::now();
        let instance = Instance::start(self)?;
        instance.wait_until_asleep()?;
        instance.stop()?;
        self.add(LIFE, start.elapsed().as_secs_f64() * 1e6);
        Ok(())
    }

    /// Starts many instances and measures their memory while they sleep: the mean of the kernel's
    /// accounts of the processes, which other programs do not influence.
    fn measure_memory(&mut self, number: u32) -> Result<()> {
        let instances = (0..number).map(|_| Instance::start(self));
        let instances = instances.collect::<Result<Vec<_>>>()?;
        let mut sum = 0;
        for instance in &instances {
            instance.wait_until_asleep()?;
            let page_tables = Process::new(instance.pid.as_raw())?.status()?.vmpte;
            // VmPTE leaves out the topmost page table.
            sum += page_tables.context("no VmPTE")? + procfs::page_size() / 1024;
            sum += anonymous(instance.pid)?;
        }
        self.add(MEMORY, sum as f64 / f64::from(number));
        Ok(())
    }

    /// Makes orphans, one after the other, and measures what they cost PID 1.
    fn measure_reaping(&mut self, orphans: u32) -> Result<()> {
        let arguments = self.arguments.iter().map(Into::into).collect();
        let setup = Setup { libraries: true, arguments, ..Setup::new(&self.program) };
        let sandbox = setup.start()?;
        wait_until("PID 1 sleeps", || state(sandbox.pid) == Some('S'))?;
        let before = scheduled(sandbox.pid)?;
        sandbox.run(&ORPHANS, &[&orphans.to_string()])?;
        wait_until("all orphans are gone", || children(sandbox.pid).is_empty())?;
        let after = scheduled(sandbox.pid)?;
        let thousands = f64::from(orphans) / 1000.0;
        self.add(WAKE_UPS, (after.wake_ups - before.wake_ups) as f64 / thousands);
        self.add(CPU, (after.nanoseconds - before.nanoseconds) as f64 / 1e6 / thousands);
        Ok(())
    }
}

/// What a process has cost the scheduler so far.
struct Scheduled {
    wake_ups: u64,
    nanoseconds: u64,
}

fn scheduled(pid: Pid) -> Result<Scheduled> {
    let schedstat = Process::new(pid.as_raw())?.schedstat().context("no /proc/PID/schedstat")?;
    let wake_ups = activity(pid)?.voluntary_switches;
    Ok(Scheduled { wake_ups, nanoseconds: schedstat.sum_exec_runtime })
}

/// A running instance of a peer: PID 1 of a PID namespace of its own, with no other new namespace.
/// Dropping it kills it.
struct Instance {
    /// PID of its PID 1 in this PID namespace.
    pid: Pid,
}

impl Instance {
    /// Starts `peer`, which has been executed when this returns.
    fn start(peer: &Peer) -> Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut words = vec![CString::new(peer.program.as_os_str().as_bytes())?];
        for argument in peer.arguments {
            words.push(CString::new(*argument)?);
        }
        let mut failure = None;
        let become_peer = || {
            let Err(error) = set_pdeathsig(Signal::SIGKILL)
                .and_then(|()| dup2_stdin(&null))
                .and_then(|()| dup2_stdout(&null))
                .and_then(|()| dup2_stderr(&null))
                .and_then(|()| execve(&words[0], &words, &[c"PATH=/usr/bin:/bin"]));
            failure = Some(error);
            127
        };
        // The cheapest way to start a process, so that little but the peer is measured: the child
        // borrows this memory, and this thread waits until it has executed the program.
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID;
        let mut stack = [0; 64 * 1024];
        // SAFETY: this is the only thread, and it waits; the child has more stack than it needs.
        let pid = unsafe { clone(Box::new(become_peer), &mut stack, flags, Some(SIGCHLD)) };
        let instance = Self { pid: pid.context("cannot make a PID namespace")? };
        match failure {
            None => Ok(instance),
            Some(error) => bail!("cannot run {}: {error}", peer.program.display()),
        }
    }

    /// Waits until it sleeps. How long this takes is measured, so the state is read again and again
    /// from one open file.
    fn wait_until_asleep(&self) -> Result<()> {
        let start = Instant::now();
        let stat = File::open(format!("/proc/{}/stat", self.pid))?;
        let mut buffer = [0; 128];
        loop {
            let length = stat.read_at(&mut buffer, 0)?;
            // The state comes after the name, which is in parentheses.
            let has = |state| buffer[..length].windows(4).any(|part| part == state);
            if has(b") S ") {
                return Ok(());
            }
            ensure!(!has(b") Z "), "it ended instead of sleeping");
            ensure!(start.elapsed() < TIMEOUT, "it did not go to sleep in time");
            thread::yield_now();
        }
    }

    /// Ends it by SIGTERM, and waits until it is gone.
    fn stop(self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM)?;
        let status = waitpid(self.pid, None)?;
        // Its PID may belong to another process by now.
        mem::forget(self);
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "on SIGTERM: {status:?}");
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Finds a peer by its name.
fn find<'a>(peers: &'a [Peer], name: &str) -> &'a Peer {
    peers.iter().find(|peer| peer.name == name).expect("the peer is in the list")
}

/// A table of all figures of the peers in `shown`, with ratios to upstream's.
fn table<'a>(shown: impl Iterator<Item = &'a Peer>, peers: &[Peer]) -> String {
    let upstream = find(peers, UPSTREAM);
    let rows = shown.map(|peer| {
        let cell = |name| cell(peer.figure(name), upstream.figure(name));
        [peer.name.to_owned()].into_iter().chain(FIGURES.map(cell)).collect::<Vec<_>>()
    });
    markdown::table([&["program"], &FIGURES[..]].concat(), rows)
}

/// A value, and its ratio to upstream's unless one of them is 0 or both are the same.
fn cell(value: f64, upstream: f64) -> String {
    let text = number(value);
    match value / upstream {
        ratio if ratio == 0.0 || ratio == 1.0 || !ratio.is_finite() => text,
        ratio if ratio < 0.1 => format!("{text} (1/{:.0})", 1.0 / ratio),
        ratio => format!("{text} ({ratio:.2}×)"),
    }
}

/// Formats a number with three digits, or all before the point.
fn number(value: f64) -> String {
    let digits = (2.0 - value.abs().max(1.0).log10().floor()).max(0.0) as usize;
    format!("{:.digits$}", HumanFloatCount(value))
}

/// The figures of ours that are worse than in the committed table. Ratios to upstream's are compared,
/// because those hold across machines.
fn regressions(peers: &[Peer], committed: &str) -> Result<Vec<String>> {
    let mut regressions = Vec::new();
    for (column, figure) in FIGURES.iter().enumerate() {
        let committed = |name| -> Result<f64> {
            let mut rows = committed.lines().map(|line| line.split('|').map(str::trim));
            let row = rows.find(|row| row.clone().nth(1) == Some(name));
            let cell = row.and_then(|mut row| row.nth(column + 2)?.split(' ').next());
            let cell = cell.with_context(|| format!("docs/benchmarks.md has no row {name:?}"))?;
            cell.replace(',', "").parse().with_context(|| format!("not a number: {cell:?}"))
        };
        let old = committed(OURS)? / committed(UPSTREAM)?;
        let new = find(peers, OURS).figure(figure) / find(peers, UPSTREAM).figure(figure);
        // A comparison with NaN is false, and that is a regression.
        let is_kept = new <= old * TOLERANCE;
        if !is_kept {
            regressions.push(format!("{figure}: {new:.4} of upstream's, not {old:.4}"));
        }
    }
    Ok(regressions)
}

/// A chart of the memory of each peer.
fn chart(peers: &[Peer]) -> String {
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    let bars: Vec<_> = peers.iter().map(|peer| peer.figure(MEMORY).round()).collect();
    format!(
        "```mermaid\nxychart-beta horizontal\n  title \"Memory of a sleeping instance\"\n  x-axis \
         {names:?}\n  y-axis \"{MEMORY}\"\n  bar {bars:?}\n```"
    )
}

/// A table of where the figures are from.
fn setting(versions: &str) -> Result<String> {
    let processors = CpuInfo::current()?;
    let model = processors.model_name(0).unwrap_or("unknown processor");
    let first_line = |program: &str, arguments: &[&str]| -> Result<String> {
        let output = build::stdout_of(Command::new(program).args(arguments))?;
        Ok(output.lines().next().unwrap_or("unknown").to_owned())
    };
    let rows = [
        ("machine", format!("{} × {model}", processors.num_cores())),
        ("kernel", first_line("uname", &["--kernel-name", "--kernel-release", "--machine"])?),
        ("peers", versions.to_owned()),
        ("compiler", first_line("rustc", &["--version"])?),
        ("commit", first_line("git", &["describe", "--always", "--dirty"])?),
        ("date", first_line("date", &["--utc", "+%F"])?),
    ];
    Ok(markdown::table(["", ""], rows.map(|(name, value)| [name.to_owned(), value])))
}
