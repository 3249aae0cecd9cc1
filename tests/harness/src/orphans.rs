//! Helpers that make orphans: processes whose parent dies first, and which PID 1 (or a subreaper)
//! adopts. Each takes the number of orphans, and returns when all have been adopted and exit. The caller
//! checks that no zombie is left.

use crate::helper;
use crate::helper::{spawn, spawn_with};
use crate::proc::{children, state, wait_until};
use crate::sandbox::ensure_inside;
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getppid, pause};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::thread;

helper!(
    /// One orphan after the other: each exits as soon as it is adopted.
    pub ORPHANS = |arguments| one_by_one(arguments, || Ok(()))
);
helper!(
    /// Orphans that are alive all at once and exit together.
    pub SIMULTANEOUS_ORPHANS = simultaneous_orphans
);
helper!(
    /// Orphans that are zombies already when they are adopted.
    pub ZOMBIES = zombies
);
helper!(
    /// Orphans with threads, whose first thread ends before the others do.
    pub THREADED_ORPHANS = |arguments| one_by_one(arguments, end_first_thread)
);
helper!(
    /// Orphans that are traced when they exit: of three one is killed, one is detached first, and one
    /// is left by a tracer that exits before it.
    pub TRACED_ORPHANS = traced_orphans
);
helper!(
    /// Orphans that were created with another exit signal than SIGCHLD, with none, or by vfork: those
    /// share the memory of a parent that was killed while it waited for them.
    pub CLONED_ORPHANS = cloned_orphans
);
helper!(
    /// Orphans that are stopped when they are adopted, and continued.
    pub STOPPED_ORPHANS = stopped_orphans
);

/// Leaves behind an orphan that runs `orphan` as soon as PID 1 has adopted it.
pub fn abandon(orphan: impl FnOnce() -> Result<()>) -> Result<()> {
    let parent = spawn(|| {
        let parent = Pid::this();
        spawn(|| {
            while getppid() == parent {
                thread::yield_now();
            }
            orphan()
        })
        .map(drop)
    })?;
    succeeds(parent)
}

/// Waits for a child, which has to exit with 0.
fn succeeds(child: Pid) -> Result<()> {
    let status = waitpid(child, None)?;
    ensure!(status == WaitStatus::Exited(child, 0), "{status:?}");
    Ok(())
}

/// Sleeps until a signal ends it.
pub fn sleep_on() -> Result<()> {
    loop {
        pause();
    }
}

/// Sends a signal to every process of the PID namespace but PID 1 and this one.
fn signal_all(signal: Signal) -> Result<()> {
    ensure_inside()?;
    Ok(kill(Pid::from_raw(-1), signal)?)
}

/// Parses the only argument of a helper, a number.
pub fn number(arguments: &[OsString]) -> Result<usize> {
    let [number] = arguments else { bail!("takes a number") };
    number.to_str().and_then(|number| number.parse().ok()).context("not a number")
}

/// Leaves orphans, and waits for the end of each before the next.
fn one_by_one(arguments: &[OsString], orphan: fn() -> Result<()>) -> Result<()> {
    for _ in 0..number(arguments)? {
        // The last copy of the writing end is closed when the orphan ends.
        let (mut end, writer) = io::pipe()?;
        abandon(orphan)?;
        drop(writer);
        end.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// Ends the first thread of this process. The others end when that is a zombie.
fn end_first_thread() -> Result<()> {
    let first = Pid::this();
    for _ in 0..3 {
        thread::spawn(move || {
            while state(first) != Some('Z') {
                thread::yield_now();
            }
        });
    }
    // SAFETY: ends this thread alone; its memory is freed with the process.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the first thread has ended");
}

fn simultaneous_orphans(arguments: &[OsString]) -> Result<()> {
    let mut all = vec![0; number(arguments)?];
    let (mut adopted, report) = io::pipe()?;
    let (barrier, mut open) = io::pipe()?;
    for _ in 0..all.len() {
        abandon(|| {
            (&report).write_all(&[0])?;
            Ok((&barrier).read_exact(&mut [0])?)
        })?;
    }
    drop(report);
    adopted.read_exact(&mut all).context("an orphan ended too early")?;
    open.write_all(&all)?;
    adopted.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn zombies(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(()))?;
            // Waits for its death, and leaves the zombie.
            waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
            Ok(())
        })?;
        waitpid(parent, None)?;
    }
    Ok(())
}

fn traced_orphans(arguments: &[OsString]) -> Result<()> {
    ensure_inside()?;
    for _ in 0..number(arguments)? {
        abandon(sleep_on)?;
    }
    let tracer = spawn(|| {
        for (index, orphan) in children(Pid::from_raw(1)).into_iter().enumerate() {
            ptrace::seize(orphan, Options::empty())?;
            if index % 3 == 0 {
                kill(orphan, Signal::SIGKILL)?;
                continue;
            }
            kill(orphan, Signal::SIGTERM)?;
            waitpid(orphan, None)?;
            if index % 3 == 1 {
                ptrace::detach(orphan, Signal::SIGTERM)?;
            }
        }
        Ok(())
    })?;
    succeeds(tracer)?;
    signal_all(Signal::SIGKILL)
}

fn cloned_orphans(arguments: &[OsString]) -> Result<()> {
    let vfork = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let nothing = CloneFlags::empty();
    let ways = [(nothing, Some(libc::SIGUSR1)), (nothing, None), (vfork, Some(libc::SIGCHLD))];
    for (flags, signal) in ways.into_iter().cycle().take(number(arguments)?) {
        let parent = spawn(|| {
            spawn_with(flags, signal, sleep_on)?;
            sleep_on()
        })?;
        wait_until("there is a child", || !children(parent).is_empty())?;
        kill(parent, Signal::SIGKILL)?;
        waitpid(parent, None)?;
    }
    signal_all(Signal::SIGKILL)
}

fn stopped_orphans(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(raise(Signal::SIGSTOP)?))?;
            waitid(Id::Pid(child), WaitPidFlag::WSTOPPED)?;
            Ok(())
        })?;
        succeeds(parent)?;
    }
    signal_all(Signal::SIGCONT)
}
