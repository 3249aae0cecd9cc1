//! Helpers that make orphans: processes whose parent dies first, and which PID 1 (or a subreaper)
//! adopts. Each takes the number of orphans, and returns when all have been adopted and are about to
//! exit. The caller checks that no zombie is left.

use crate::helper;
use crate::helper::spawn;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getppid, pipe, read, write};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

helper!(
    /// One orphan after the other: each exits as soon as it is adopted.
    pub ORPHANS = orphans
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
    pub THREADED_ORPHANS = threaded_orphans
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
    ensure!(waitpid(parent, None)?.pid() == Some(parent), "cannot wait for the parent");
    Ok(())
}

/// Parses the only argument of a helper, a number.
pub fn number(arguments: &[OsString]) -> Result<usize> {
    let [number] = arguments else { bail!("takes a number") };
    number.to_str().and_then(|number| number.parse().ok()).context("not a number")
}

/// Waits until each holder of the other end of the pipe has reported that it was adopted.
fn all_adopted(reports: OwnedFd, number: usize) -> Result<()> {
    let mut reported = Vec::new();
    File::from(reports).read_to_end(&mut reported)?;
    ensure!(reported.len() == number, "{} of {number} orphans were adopted", reported.len());
    ensure!(reported.iter().all(|&parent| parent == 1), "an orphan was not adopted by PID 1");
    Ok(())
}

/// Reports the parent of this orphan, which should be PID 1.
fn report(reports: &OwnedFd) -> Result<()> {
    write(reports, &[getppid().as_raw() as u8])?;
    Ok(())
}

fn orphans(arguments: &[OsString]) -> Result<()> {
    let number = number(arguments)?;
    for _ in 0..number {
        let (reader, writer) = pipe()?;
        abandon(|| report(&writer))?;
        drop(writer);
        all_adopted(reader, 1)?;
    }
    Ok(())
}

fn simultaneous_orphans(arguments: &[OsString]) -> Result<()> {
    let number = number(arguments)?;
    let (reader, writer) = pipe()?;
    let (barrier_reader, barrier_writer) = pipe()?;
    for _ in 0..number {
        abandon(|| {
            report(&writer)?;
            // Reading ends when the last writer is closed, and this orphan inherited one.
            // SAFETY: this process does not use its copy of the descriptor again.
            unsafe { libc::close(barrier_writer.as_raw_fd()) };
            read(&barrier_reader, &mut [0])?;
            Ok(())
        })?;
    }
    drop(writer);
    let mut one = [0];
    for _ in 0..number {
        ensure!(read(&reader, &mut one)? == 1 && one == [1], "an orphan was not adopted by PID 1");
    }
    drop(barrier_writer);
    all_adopted(reader, 0)
}

fn zombies(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(()))?;
            // Waits for its death, and leaves the zombie.
            waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
            Ok(())
        })?;
        ensure!(waitpid(parent, None) != Err(Errno::ECHILD), "the parent is gone");
    }
    Ok(())
}

fn threaded_orphans(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let (reader, writer) = pipe()?;
        abandon(|| {
            let first = Pid::this();
            for _ in 0..3 {
                let writer = writer.try_clone()?;
                thread::spawn(move || {
                    while crate::proc::state(first) != Some('Z') {
                        thread::yield_now();
                    }
                    report(&writer).expect("the helper reads the reports");
                });
            }
            // SAFETY: ends this thread alone; its memory is freed with the process.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("the first thread has ended");
        })?;
        drop(writer);
        all_adopted(reader, 3)?;
    }
    Ok(())
}
