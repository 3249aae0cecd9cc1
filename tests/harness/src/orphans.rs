//! Helpers that make orphans: processes whose parent dies first, and which PID 1 (or a subreaper)
//! adopts. Each takes the number of orphans, and returns when all have been adopted and exit. The caller
//! checks that no zombie is left.

use crate::helper;
use crate::helper::spawn;
use crate::proc::state;
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getppid};
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
    let status = waitpid(parent, None)?;
    ensure!(status == WaitStatus::Exited(parent, 0), "{status:?}");
    Ok(())
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
