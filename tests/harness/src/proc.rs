//! Reads the state of processes from /proc, and waits for states.

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use procfs::process::{Process, Stat, all_processes};
use procfs::{ProcError, ProcResult};
use std::fs;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Limit for [`wait_until`], to make a failure of a hang.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Waits until `reached` returns true; otherwise the error names `state`.
pub fn wait_until(state: &str, mut reached: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !reached() {
        ensure!(start.elapsed() < TIMEOUT, "timed out after {TIMEOUT:?} waiting until {state}");
        // Some tests wait many thousand times, and mostly for less than a millisecond.
        match start.elapsed() < Duration::from_millis(1) {
            true => yield_now(),
            false => sleep(Duration::from_millis(1)),
        }
    }
    Ok(())
}

/// /proc/PID/stat, or nothing if there is no such process. It panics if /proc cannot be read, because a
/// test must not take that for the end of the process.
fn stat(process: ProcResult<Process>) -> Option<Stat> {
    match process.and_then(|process| process.stat()) {
        Err(ProcError::NotFound(_)) => None,
        stat => Some(stat.expect("/proc can be read")),
    }
}

/// State of a process as /proc/PID/stat tells it (`S` is asleep, `T` stopped, `Z` a zombie), or
/// nothing when there is no such process.
pub fn state(pid: Pid) -> Option<char> {
    stat(Process::new(pid.as_raw())).map(|stat| stat.state)
}

/// Whether the process is pause and sleeps in the call that it is to sleep in.
///
/// Where /proc/PID/syscall may not be read (a process that is not dumpable shows it only to those
/// with capabilities over it), the name and the state have to do.
pub fn is_asleep(pid: Pid) -> bool {
    let stat = stat(Process::new(pid.as_raw()));
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = call.split(' ');
    let number = words.next().and_then(|number| number.parse().ok());
    // With a timeout ppoll only looks whether a message can be written.
    let has_timeout = number == Some(libc::SYS_ppoll) && words.nth(2) != Some("0x0");
    // PID 1 sleeps, too, while it exits and waits for the rest of its namespace.
    let is_exiting = |stat: &Stat| stat.flags & PF_EXITING != 0;
    // A program out of a memfd is named after that, or before Linux 6.14 after its descriptor.
    let is_pause = |comm: &str| comm.ends_with("pause") || comm.parse::<u32>().is_ok();
    stat.is_some_and(|stat| is_pause(&stat.comm) && stat.state == 'S' && !is_exiting(&stat))
        && !has_timeout
        && number.is_none_or(|number| SLEEPING_CALLS.contains(&number))
}

/// Flag of a process that exits: include/linux/sched.h of the kernel.
const PF_EXITING: u32 = 4;

// Some architectures have one call for both.
const SLEEP_AND_POLL: [i64; 2] = cfg_select! {
    any(target_arch = "aarch64", target_arch = "loongarch64", target_arch = "riscv64") => {
        [libc::SYS_ppoll, libc::SYS_ppoll]
    }
    _ => [libc::SYS_pause, libc::SYS_poll],
};
/// The call that pause sleeps in.
pub const SLEEPING_CALL: i64 = SLEEP_AND_POLL[0];
/// The call by which pause looks whether a message can be written.
pub const POLL: i64 = SLEEP_AND_POLL[1];

/// The call that pause sleeps in, and those that an emulator sleeps in for it.
const SLEEPING_CALLS: [i64; 3] = [SLEEPING_CALL, libc::SYS_ppoll, libc::SYS_rt_sigsuspend];

/// The children of a process, zombies among them.
pub fn children(parent: Pid) -> Vec<Pid> {
    let processes = all_processes().expect("/proc can be listed");
    processes
        .filter_map(stat)
        .filter(|stat| stat.ppid == parent.as_raw())
        .map(|stat| Pid::from_raw(stat.pid))
        .collect()
}

/// Times that the process has gone to sleep, and so times that it was woken.
pub fn wake_ups(pid: Pid) -> Result<u64> {
    let status = Process::new(pid.as_raw())?.status()?;
    status.voluntary_ctxt_switches.context("/proc/PID/status does not count them")
}

/// Times that the process has gone to sleep or was interrupted: none while it sleeps.
pub fn context_switches(pid: Pid) -> Result<u64> {
    let interruptions = Process::new(pid.as_raw())?.status()?.nonvoluntary_ctxt_switches;
    Ok(wake_ups(pid)? + interruptions.context("/proc/PID/status does not count them")?)
}

/// Memory of the process that is in RAM, in KiB.
pub fn resident(pid: Pid) -> Result<u64> {
    sum_of(pid, "Rss")
}

/// The part of it that it shares with no file and no other process, in KiB.
pub fn anonymous(pid: Pid) -> Result<u64> {
    sum_of(pid, "Anonymous")
}

/// A line of /proc/PID/smaps_rollup, which counts page by page. (The quicker counters are rounded.)
fn sum_of(pid: Pid, kind: &str) -> Result<u64> {
    let rollup = Process::new(pid.as_raw())?.smaps_rollup()?.memory_map_rollup;
    let bytes = rollup.iter().find_map(|map| map.extension.map.get(kind));
    Ok(bytes.with_context(|| format!("smaps_rollup has no {kind}"))? / 1024)
}
