//! Parts that make orphans: processes whose parent dies first, and which PID 1 (or a subreaper)
//! adopts. Each part takes the number of orphans and returns when all have been adopted and are
//! about to exit; that none stays behind as a zombie is for the caller to see.

use crate::actor::{Part, spawn};
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

pub(crate) const PARTS: &[Part] =
    &[("orphans", orphans), ("crowd", crowd), ("late", late), ("threaded", threaded)];

/// Leaves behind an orphan that runs `orphan` as soon as PID 1 has adopted it.
///
/// # Errors
///
/// When fork(2) fails: as a rule the limit of processes.
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

/// The number that a part was given.
///
/// # Errors
///
/// When it was given none.
pub fn number(arguments: &[OsString]) -> Result<usize> {
    let [number] = arguments else { bail!("takes a number") };
    number.to_str().and_then(|number| number.parse().ok()).context("the number is none")
}

/// Waits until each holder of the pipe's other end has said that it was adopted.
fn all_adopted(reports: OwnedFd, number: usize) -> Result<()> {
    let mut reported = Vec::new();
    File::from(reports).read_to_end(&mut reported)?;
    ensure!(reported.len() == number, "{} of {number} orphans were adopted", reported.len());
    ensure!(reported.iter().all(|&parent| parent == 1), "an orphan was not adopted by PID 1");
    Ok(())
}

/// What an orphan reports: its parent, if that is PID 1.
fn report(reports: &OwnedFd) -> Result<()> {
    write(reports, &[getppid().as_raw() as u8])?;
    Ok(())
}

/// One orphan after the other: each exits as soon as it is adopted.
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

/// Orphans that are alive all at once, and exit together.
fn crowd(arguments: &[OsString]) -> Result<()> {
    let number = number(arguments)?;
    let (reader, writer) = pipe()?;
    let (door, key) = pipe()?;
    for _ in 0..number {
        abandon(|| {
            report(&writer)?;
            // The door opens when the last key is gone; this orphan inherited one.
            // SAFETY: this process uses its copy of the descriptor no more.
            unsafe { libc::close(key.as_raw_fd()) };
            read(&door, &mut [0])?;
            Ok(())
        })?;
    }
    drop(writer);
    let mut one = [0];
    for _ in 0..number {
        ensure!(read(&reader, &mut one)? == 1 && one == [1], "an orphan was not adopted by PID 1");
    }
    drop(key);
    all_adopted(reader, 0)
}

/// Orphans that are dead before their parent is: zombies when they are adopted.
fn late(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(()))?;
            // Sees it dead and leaves it a zombie.
            waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
            Ok(())
        })?;
        ensure!(waitpid(parent, None) != Err(Errno::ECHILD), "the parent is gone");
    }
    Ok(())
}

/// Orphans with threads, whose first thread ends before the others do.
fn threaded(arguments: &[OsString]) -> Result<()> {
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
                    report(&writer).expect("the actor listens");
                });
            }
            // SAFETY: ends this thread alone; what it owns is given back with the process.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("the first thread has ended");
        })?;
        drop(writer);
        all_adopted(reader, 3)?;
    }
    Ok(())
}
