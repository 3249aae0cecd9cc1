//! Looking at processes through /proc, and waiting until they are in the state that is asked for.

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use std::fs;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// How long a state may take to come about. Only there to turn a hang into a failure: nothing here
/// takes a hundredth of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `reached` says so.
///
/// # Errors
///
/// Names `state` when it does not come about.
pub fn wait_until(state: &str, mut reached: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !reached() {
        if start.elapsed() > PATIENCE {
            bail!("waited {} s in vain until {state}", PATIENCE.as_secs());
        }
        // What takes a moment only is not slept over: there are tests that wait many thousand times.
        match start.elapsed() < Duration::from_millis(1) {
            true => yield_now(),
            false => sleep(Duration::from_millis(1)),
        }
    }
    Ok(())
}

/// State of a process as /proc/PID/stat tells it (`S` is asleep, `T` stopped, `Z` a zombie), or
/// nothing when there is no such process.
pub fn state(pid: Pid) -> Option<char> {
    Process::new(pid.as_raw()).and_then(|process| process.stat()).map(|stat| stat.state).ok()
}

/// Whether the process is pause and sleeps in the call that it is to sleep in.
///
/// Where /proc/PID/syscall may not be read (a process that is not dumpable shows it only to those
/// with capabilities over it), the name and the state have to do.
pub fn is_asleep(pid: Pid) -> bool {
    let asleep = Process::new(pid.as_raw())
        .and_then(|process| process.stat())
        .is_ok_and(|stat| stat.comm == "pause" && stat.state == 'S');
    asleep && sleeping_call(pid).is_none_or(|number| SLEEPING_CALLS.contains(&number))
}

/// The number of the system call that the process is in, where that may be known.
pub fn sleeping_call(pid: Pid) -> Option<i64> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    call.split(' ').next()?.parse().ok()
}

/// The call that pause sleeps in: pause, or ppoll where there is none.
#[cfg(target_arch = "x86_64")]
pub const SLEEPING_CALL: i64 = libc::SYS_pause;
/// The call that pause sleeps in: pause, or ppoll where there is none.
#[cfg(not(target_arch = "x86_64"))]
pub const SLEEPING_CALL: i64 = libc::SYS_ppoll;

/// That call, and those that an emulator sleeps in for it.
const SLEEPING_CALLS: [i64; 3] = [SLEEPING_CALL, libc::SYS_ppoll, libc::SYS_rt_sigsuspend];

/// Whether the process has a handler for `signal`.
pub fn catches(pid: Pid, signal: Signal) -> bool {
    let caught = Process::new(pid.as_raw()).and_then(|process| process.status());
    caught.is_ok_and(|status| status.sigcgt >> (signal as i32 - 1) & 1 == 1)
}

/// The children of a process, zombies among them.
pub fn children(parent: Pid) -> Vec<Pid> {
    let all = all_processes().into_iter().flatten().flatten();
    all.filter_map(|process| process.stat().ok())
        .filter(|stat| stat.ppid == parent.as_raw())
        .map(|stat| Pid::from_raw(stat.pid))
        .collect()
}

/// What a process has cost the scheduler: none of it moves while the process sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Times it went to sleep, and so times that it was woken.
    pub voluntary_switches: u64,
    /// Times it was interrupted.
    pub involuntary_switches: u64,
    /// Time on a CPU, in ticks of the clock.
    pub cpu_ticks: u64,
}

/// What the process has cost the scheduler so far.
///
/// # Errors
///
/// When there is no such process.
pub fn activity(pid: Pid) -> Result<Activity> {
    let process = Process::new(pid.as_raw())?;
    let (status, stat) = (process.status()?, process.stat()?);
    Ok(Activity {
        voluntary_switches: status.voluntary_ctxt_switches.unwrap_or(0),
        involuntary_switches: status.nonvoluntary_ctxt_switches.unwrap_or(0),
        cpu_ticks: stat.utime + stat.stime,
    })
}

/// Memory of the process that is in RAM, in KiB.
///
/// # Errors
///
/// When there is no such process, or it does not let itself be looked at.
pub fn resident(pid: Pid) -> Result<u64> {
    sum_of(pid, "Rss")
}

/// The part of it that it shares with no file and no other process, in KiB.
///
/// # Errors
///
/// As [`resident`].
pub fn anonymous(pid: Pid) -> Result<u64> {
    sum_of(pid, "Anonymous")
}

/// A line of /proc/PID/smaps_rollup, which counts page by page. (The quicker counters are rounded.)
fn sum_of(pid: Pid, kind: &str) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let sum = rollup.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'));
    let sum = sum.with_context(|| format!("smaps_rollup has no {kind}"))?;
    Ok(sum.trim_end_matches("kB").trim().parse()?)
}
