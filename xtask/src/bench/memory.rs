//! What sleeping instances cost in memory.

use super::figures::{Figure, Section};
use super::instance::Instance;
use super::peer::Peer;
use super::{Plan, Progress};
use anyhow::{Context, Result, bail};
use procfs::process::Process;
use procfs::{Current, Meminfo};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What of /proc/meminfo grows with each process.
pub const KINDS: [&str; 4] = ["AnonPages", "PageTables", "KernelStack", "Slab"];

/// The same as the first two of them, as each process accounts for it.
pub const OWN: [&str; 2] = ["Anonymous", "VmPTE"];

/// The topmost page table of a process, in KiB: twice 4, where user space has one of its own (against
/// Meltdown).
const TOPMOST_TABLE: f64 = 8.0;

/// Measures how memory grows with the number of instances.
///
/// # Errors
///
/// When so many instances cannot be started.
pub fn measure(peers: &[Peer], plan: &Plan, progress: &Progress) -> Result<Vec<Section>> {
    let figure = |name: &str| Figure::new(name, "KiB", 1, peers.len());
    let mut kinds = KINDS.map(figure);
    let mut sum = figure("together");
    let steps = steps(plan.instances);
    let mut growth: Vec<_> =
        steps.iter().map(|step| figure(&format!("{step} instances"))).collect();
    let mut one = ["Rss", "Pss"].map(figure);
    let mut own = OWN.map(figure);
    let mut charge = figure("charged to the cgroup");
    let mut cgroup = Cgroup::new();

    for round in 0..plan.memory_rounds {
        for (index, peer) in peers.iter().enumerate() {
            progress.say(&format!("memory of {}, round {}", peer.name, round + 1));
            if let Ok(cgroup) = &cgroup {
                cgroup.enter()?;
            }
            let before = settled(plan.patience)?;
            let charged_before = cgroup.as_ref().ok().map(Cgroup::charge).transpose()?;
            let mut instances = Vec::new();
            for (step, growth) in steps.iter().zip(&mut growth) {
                while instances.len() < *step {
                    instances.push(Instance::start(peer)?);
                    progress.tick();
                }
                instances.iter().try_for_each(Instance::wait_until_asleep)?;
                let now = settled(plan.patience)?;
                let each = |kind: usize| (now[kind] - before[kind]) / *step as f64;
                // The first two are up to the program; what the kernel keeps at hand for the others,
                // of processes that have ended, makes few instances look cheaper than many.
                growth.samples[index].push(each(0) + each(1));
                if *step == plan.instances {
                    for (kind, figure) in kinds.iter_mut().enumerate() {
                        figure.samples[index].push(each(kind));
                    }
                    sum.samples[index].push((0..KINDS.len()).map(each).sum());
                }
            }
            let middle = &instances[instances.len() / 2];
            // Unprivileged, not every process lets itself be looked at.
            if let Ok(account) = account_of(middle) {
                one[0].samples[index].push(account.rss);
                one[1].samples[index].push(account.pss);
            }
            if let Ok(accounts) = instances.iter().map(account_of).collect::<Result<Vec<_>>>() {
                let mean = |of: fn(&Account) -> f64| {
                    accounts.iter().map(of).sum::<f64>() / accounts.len() as f64
                };
                own[0].samples[index].push(mean(|account| account.anonymous));
                own[1].samples[index].push(mean(|account| account.page_tables));
            }
            if let (Ok(cgroup), Some(before)) = (&cgroup, charged_before) {
                charge.samples[index].push((cgroup.charge()? - before) / plan.instances as f64);
            }
        }
    }
    let cgroup_note = match &mut cgroup {
        Ok(_) => "The charge is the growth of a memory cgroup that they all are in.".to_owned(),
        Err(reason) => format!("The memory cgroup's charge is left out: {reason:#}."),
    };
    let disagreement = disagreement(peers, &kinds, &own);
    let mut figures = Vec::from(kinds);
    figures.push(sum);
    let [rss, pss] = one;
    let [anonymous, page_tables] = own;
    Ok(vec![
        Section {
            title: "Memory of a sleeping instance",
            note: format!(
                "Growth of /proc/meminfo over {} instances, each PID 1 of a PID namespace of its \
                 own, divided by their number. KernelStack and Slab are the kernel's own, and the \
                 same for every process.{disagreement}",
                super::figures::number(plan.instances as f64, 0)
            ),
            figures,
            chart: Some(("memory", "Memory of a sleeping instance, by kind")),
        },
        Section {
            title: "Memory as others count it",
            note: format!(
                "Rss and Pss of one instance among all the others, its command included: what is \
                 shared counts in Rss in full. Anonymous and VmPTE are the mean of all instances, \
                 by the kernel's account of each process: whatever else the machine does cannot \
                 disturb them. (VmPTE leaves out the topmost table, PageTables may not.) \
                 {cgroup_note}"
            ),
            figures: vec![rss, pss, anonymous, page_tables, charge],
            chart: None,
        },
        Section {
            title: "Growth with the number of instances",
            note: "AnonPages and PageTables, for each instance: flat is good.".to_owned(),
            figures: growth,
            chart: None,
        },
    ])
}

/// Numbers of instances to look at, the last being all of them.
fn steps(instances: usize) -> Vec<usize> {
    let mut steps: Vec<_> = [20, 4, 1].iter().map(|part| instances.div_ceil(*part)).collect();
    steps.dedup();
    steps
}

/// The counters of [`KINDS`] in KiB, once they have come to rest: what has ended before is given
/// back in the kernel's own time. On a busy machine they never do, which the spread then shows.
fn settled(patience: Duration) -> Result<[f64; 4]> {
    let start = Instant::now();
    let mut last = read()?;
    loop {
        sleep(Duration::from_millis(50));
        let now = read()?;
        let is_at_rest = now.iter().zip(&last).all(|(now, last)| (now - last).abs() <= 256.0);
        if is_at_rest || start.elapsed() > patience {
            return Ok(now);
        }
        last = now;
    }
}

fn read() -> Result<[f64; 4]> {
    // Makes each CPU hand in what it has counted by itself; root's to do.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let info = Meminfo::current()?;
    let bytes = [
        info.anon_pages.context("no AnonPages")?,
        info.page_tables.context("no PageTables")?,
        info.kernel_stack.context("no KernelStack")?,
        info.slab,
    ];
    Ok(bytes.map(|bytes| bytes as f64 / 1024.0))
}

/// Says of which peers /proc/meminfo, which counts the whole machine, and the kernel's accounts of
/// the instances tell different things.
fn disagreement(peers: &[Peer], kinds: &[Figure], own: &[Figure]) -> String {
    let differ = |index: &usize| {
        let sum = |figures: &[Figure]| {
            figures[..2].iter().map(|it| Some(it.summary(*index)?.median)).sum::<Option<f64>>()
        };
        let (Some(machine), Some(own)) = (sum(kinds), sum(own)) else { return false };
        !agree(machine, own)
    };
    let names: Vec<_> =
        (0..peers.len()).filter(differ).map(|index| peers[index].name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        " AnonPages and PageTables are more than a tenth away from what the processes themselves \
         account for, so something else was at work on this machine; of: {}.",
        names.join("; ")
    )
}

/// Whether the machine's count and the processes' own can be of the same thing: both in KiB.
pub fn agree(machine: f64, own: f64) -> bool {
    (machine - own).abs() <= TOPMOST_TABLE + own / 10.0
}

/// What the kernel has on record for the processes of one instance, in KiB.
#[derive(Default)]
struct Account {
    rss: f64,
    pss: f64,
    anonymous: f64,
    page_tables: f64,
}

/// Reads the account of an instance.
fn account_of(instance: &Instance) -> Result<Account> {
    let mut account = Account::default();
    for pid in instance.processes() {
        let process = Process::new(pid.as_raw())?;
        let rollup = process.smaps_rollup()?;
        let map = rollup.memory_map_rollup.iter().next().context("an empty smaps_rollup")?;
        let bytes = |name: &str| map.extension.map.get(name).copied().unwrap_or(0) as f64;
        account.rss += bytes("Rss") / 1024.0;
        account.pss += bytes("Pss") / 1024.0;
        // RssAnon of /proc/PID/status is the same, rounded.
        account.anonymous += bytes("Anonymous") / 1024.0;
        account.page_tables += process.status()?.vmpte.unwrap_or(0) as f64;
    }
    Ok(account)
}

/// A memory cgroup for what this process starts.
struct Cgroup {
    folder: PathBuf,
    /// Where this process came from.
    home: PathBuf,
    counter: &'static str,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let cgroups = Process::myself()?.cgroups()?;
        for (controller, root, counter) in [
            ("memory", "/sys/fs/cgroup/memory", "memory.usage_in_bytes"),
            ("", "/sys/fs/cgroup", "memory.current"),
        ] {
            let is_it = |it: &&procfs::ProcessCGroup| {
                it.controllers.iter().map(String::as_str).eq([controller])
                    || (controller.is_empty() && it.hierarchy == 0)
            };
            let Some(own) = cgroups.0.iter().find(is_it) else { continue };
            let root = Path::new(root);
            let home = root.join(own.pathname.trim_start_matches('/'));
            let folder = root.join(format!("pause-bench-{}", std::process::id()));
            if !root.join("cgroup.procs").exists() {
                continue;
            }
            fs::create_dir(&folder)
                .context("no memory cgroup can be made, which is root's to do")?;
            let cgroup = Self { folder, home, counter };
            cgroup.charge().context("the memory controller is not there")?;
            return Ok(cgroup);
        }
        bail!("there is no memory cgroup")
    }

    fn enter(&self) -> Result<()> {
        fs::write(self.folder.join("cgroup.procs"), "0").context("cannot enter the memory cgroup")
    }

    /// What is charged to it, in KiB.
    fn charge(&self) -> Result<f64> {
        let text = fs::read_to_string(self.folder.join(self.counter))?;
        Ok(text.trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.home.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.folder);
    }
}
