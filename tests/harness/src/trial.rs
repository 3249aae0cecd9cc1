//! Collects the trials of a test program and runs them. A trial is one test on one thing, such as a
//! flavor or a target: it passes, fails, or is ignored because of the machine.

use crate::helper;
use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Completion, Trial};
use std::env;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// A function that tests something, with its name. [`tests!`](crate::tests!) makes lists of them.
pub struct Test<F = fn() -> Result<()>> {
    /// Name in the names of its trials.
    pub name: &'static str,
    /// The function.
    pub run: F,
}

/// The trials of a test program.
#[derive(Default)]
pub struct Trials(Vec<Trial>);

impl Trials {
    /// Makes an empty list; in a helper process, runs the helper instead. Call it first in `main`.
    pub fn new() -> Self {
        helper::dispatch();
        Self::default()
    }

    /// Adds a trial. `obstacle` is the reason why this machine cannot run it, if there is one.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        obstacle: Option<String>,
        run: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        let run = move || {
            let result = match obstacle {
                _ if HAS_FAILED.load(Relaxed) && is_set("PAUSE_FAIL_FAST") => {
                    return Ok(Completion::ignored_with("another trial failed"));
                }
                Some(reason) if !is_set("PAUSE_NO_SKIP") => {
                    return Ok(Completion::ignored_with(reason));
                }
                Some(reason) => Err(anyhow!(reason)),
                None => run(),
            };
            HAS_FAILED.fetch_or(result.is_err(), Relaxed);
            result.map(|()| Completion::Completed).map_err(|error| format!("{error:#}").into())
        };
        self.0.push(Trial::ignorable_test(name, run));
    }

    /// Adds a list that [`tests!`](crate::tests!) made, with one obstacle for all.
    pub fn add_all(&mut self, tests: &'static [Test], obstacle: Option<String>) {
        for test in tests {
            self.add(test.name, obstacle.clone(), test.run);
        }
    }

    /// Runs the trials that the command line selects.
    pub fn run(self) -> ExitCode {
        libtest_mimic::run(&Arguments::from_args(), self.0).exit_code()
    }
}

/// Whether a trial has failed. With `PAUSE_FAIL_FAST=1` the remaining ones are not needed then.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// The error of a check, in a line, as the obstacle of the trials that depend on it.
pub fn obstacle<T>(result: Result<T>) -> Option<String> {
    result.err().map(|error| format!("{error:#}"))
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| value == "1")
}

/// A list of [`Test`]s: `tests![function, another]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$($crate::trial::Test { name: stringify!($name), run: $name }),*] };
}
