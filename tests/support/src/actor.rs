//! Actors: processes that play a part beside the artifact.
//!
//! A part is a function of the program that wants it played. The program starts itself once more
//! and plays the part instead of its own `main`: so an actor has one thread, and may fork, join
//! namespaces and change its credentials as a test with its many threads may not.

use anyhow::{Context, Result};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::{OsStr, OsString};
use std::process::{Command, exit};
use std::sync::OnceLock;
use std::{env, iter};

/// A part: its name, and what to do with the arguments that the actor was given.
pub type Part = (&'static str, fn(&[OsString]) -> Result<()>);

static PARTS: OnceLock<Vec<Part>> = OnceLock::new();

/// The first argument of an actor.
const CUE: &str = "--play-the-part";

/// Plays a part and exits, if this process was started as an actor; otherwise returns at once.
///
/// To be called first in `main`, before there is a second thread, with all parts that the program
/// wants played. Those of [`crate::sandbox`] and [`crate::orphans`] are known without being named.
pub fn take_the_stage(parts: &[Part]) {
    let all = iter::empty().chain(crate::sandbox::PARTS).chain(crate::orphans::PARTS).chain(parts);
    PARTS.set(all.copied().collect()).expect("the stage is taken once");
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new(CUE)) {
        let part = arguments.next().unwrap_or_default();
        let arguments: Vec<OsString> = arguments.collect();
        exit(play(&part, &arguments));
    }
}

/// Plays `part` in this process; returns its exit code. What went wrong is said on stderr.
pub(crate) fn play(part: &OsStr, arguments: &[OsString]) -> i32 {
    let parts = PARTS.get().expect("the program takes the stage first thing in main");
    let found = parts.iter().find(|(name, _)| *name == part);
    let played = found.context("no such part").and_then(|(_, function)| function(arguments));
    match played {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}: {error:#}", part.display());
            1
        }
    }
}

/// A command that starts an actor; add the part's arguments to it.
pub fn command(part: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(CUE).arg(part);
    command
}

/// Runs `child` in a new process, which ends when it returns.
///
/// # Errors
///
/// When fork(2) fails: as a rule the limit of processes.
pub fn spawn(child: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: an actor has one thread, so the child finds every lock as free as it was.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => match child() {
            Ok(()) => exit(0),
            Err(error) => {
                eprintln!("{error:#}");
                exit(1)
            }
        },
    }
}
