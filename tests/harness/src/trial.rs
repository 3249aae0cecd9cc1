//! Collects the trials of a test program and runs them: each passes, fails, or is ignored because of
//! the machine.

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::env;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// The name of a test, and what it runs.
pub type Test = (&'static str, fn() -> Result<()>);

/// The trials of a test program.
pub struct Trials {
    arguments: Arguments,
    trials: Vec<Trial>,
}

impl Trials {
    /// Reads the command line. Call [`crate::helper::dispatch`] before.
    pub fn new() -> Self {
        Self { arguments: Arguments::from_args(), trials: Vec::new() }
    }

    /// Adds a trial. `obstacle` is the reason why this machine cannot run it, if there is one.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        obstacle: Option<String>,
        run: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        let run = move || match obstacle {
            _ if is_enough() => Ok(Completion::ignored_with("another trial failed")),
            Some(reason) => skip(reason),
            None => outcome(run()),
        };
        self.trials.push(Trial::ignorable_test(name, run));
    }

    /// Adds a list that [`tests!`](crate::tests!) made, with one obstacle for all.
    pub fn add_all(&mut self, tests: &'static [Test], obstacle: Option<String>) {
        for (name, test) in tests {
            self.add(*name, obstacle.clone(), test);
        }
    }

    /// Runs the trials that the command line selects.
    pub fn run(self) -> ExitCode {
        libtest_mimic::run(&self.arguments, self.trials).exit_code()
    }
}

impl Default for Trials {
    fn default() -> Self {
        Self::new()
    }
}

/// The error of a check, in a line, as the obstacle of the trials that depend on it.
pub fn obstacle<T>(result: Result<T>) -> Option<String> {
    result.err().map(|error| format!("{error:#}"))
}

/// Whether nothing may be skipped: with `PAUSE_NO_SKIP=1`, as in CI.
pub fn no_skip() -> bool {
    env::var_os("PAUSE_NO_SKIP").is_some_and(|value| value == "1")
}

/// Whether a trial has failed.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Whether the remaining trials are not needed: with `PAUSE_FAIL_FAST=1`, after a failure.
fn is_enough() -> bool {
    HAS_FAILED.load(Relaxed) && env::var_os("PAUSE_FAIL_FAST").is_some_and(|value| value == "1")
}

/// Ignores a trial with the reason, or fails it where nothing may be skipped.
pub fn skip(reason: String) -> Result<Completion, Failed> {
    if no_skip() { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) }
}

/// Passes a trial, or fails it with the error and its causes.
pub fn outcome(result: Result<()>) -> Result<Completion, Failed> {
    HAS_FAILED.fetch_or(result.is_err(), Relaxed);
    result.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
}

/// A list of functions with their names: `tests![one, two]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}
