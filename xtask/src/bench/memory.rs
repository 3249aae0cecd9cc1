//! Memory of sleeping instances.

use super::Plan;
use super::instance::Instance;
use super::peer::{Peer, Results};
use anyhow::{Context, Result};
use harness::proc;
use indicatif::ProgressBar;
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process;
use procfs::{Current, Meminfo};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

/// Starts many instances of each peer, and measures their memory while they sleep.
pub fn measure(peers: &mut [Peer], plan: &Plan, progress: &ProgressBar) -> Result<()> {
    for round in 1..=plan.memory_rounds {
        for peer in &mut *peers {
            progress.set_message(format!("memory of {}, round {round}", peer.name));
            let before = settled()?;
            let instances = (0..plan.instances).map(|_| Instance::start(peer));
            let instances = instances.collect::<Result<Vec<_>>>()?;
            instances.iter().try_for_each(Instance::wait_until_asleep)?;
            let after = settled()?;
            read_accounts(&instances, &mut peer.results)?;
            let growth = own_memory(&after) as f64 - own_memory(&before) as f64;
            peer.results.growth.push(growth / 1024.0 / plan.instances as f64);
        }
    }
    Ok(())
}

/// Memory of the machine, once it rests: the kernel frees in its own time what ended before. On a busy
/// machine it does not rest.
fn settled() -> Result<Meminfo> {
    let mut last = Meminfo::current()?;
    for _ in 0..40 {
        sleep(Duration::from_millis(50));
        // Makes each CPU report what it has counted by itself.
        let _ = fs::read("/proc/sys/vm/stat_refresh");
        let now = Meminfo::current()?;
        if own_memory(&now).abs_diff(own_memory(&last)) <= 256 * 1024 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// What processes allocate for themselves, in bytes.
fn own_memory(info: &Meminfo) -> u64 {
    info.anon_pages.unwrap_or(0) + info.page_tables.unwrap_or(0)
}

/// Adds the mean of the kernel's accounts of the processes.
fn read_accounts(instances: &[Instance], results: &mut Results) -> Result<()> {
    // VmPTE leaves out the topmost page table.
    let topmost = sysconf(SysconfVar::PAGE_SIZE)?.context("unknown page size")? as f64 / 1024.0;
    let [mut anonymous, mut page_tables, mut resident] = [0.0; 3];
    for instance in instances {
        for pid in instance.processes()? {
            let status = Process::new(pid.as_raw())?.status()?;
            page_tables += status.vmpte.context("no VmPTE")? as f64 + topmost;
            anonymous += proc::anonymous(pid)? as f64;
            resident += proc::resident(pid)? as f64;
        }
    }
    let number = instances.len() as f64;
    results.anonymous.push(anonymous / number);
    results.page_tables.push(page_tables / number);
    results.own_memory.push((anonymous + page_tables) / number);
    results.resident.push(resident / number);
    Ok(())
}
