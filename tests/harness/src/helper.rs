//! Helper processes: they make orphans, attack PID 1 or set up a sandbox beside the program under
//! test.
//!
//! A program starts itself once more as a helper, which runs one function in place of `main`. Such a
//! process has one thread, so it may fork, join namespaces and change its credentials, as a test
//! with its many threads may not.

use anyhow::{Context, Result};
use linkme::distributed_slice;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::Pid;
use std::env;
use std::ffi::{OsStr, OsString};
use std::process::{Command, exit};

/// A function that runs in a process of its own. Declared by [`helper!`](crate::helper!).
#[derive(Debug)]
pub struct Helper {
    /// Name of the static, with its path.
    pub name: &'static str,
    /// The function; it gets the arguments that were added to the command.
    pub run: fn(&[OsString]) -> Result<()>,
}

/// Every helper of this program. The linker makes this list, so that nobody has to keep it.
#[distributed_slice]
pub static HELPERS: [Helper];

/// Declares a [`Helper`]: `helper!(pub ORPHANS = orphans);`.
#[macro_export]
macro_rules! helper {
    ($(#[$meta:meta])* $visibility:vis $NAME:ident = $run:expr) => {
        $(#[$meta])*
        #[$crate::linkme::distributed_slice($crate::helper::HELPERS)]
        #[linkme(crate = $crate::linkme)]
        $visibility static $NAME: $crate::helper::Helper = $crate::helper::Helper {
            name: concat!(module_path!(), "::", stringify!($NAME)),
            run: $run,
        };
    };
}

/// The first argument of a helper process.
const FLAG: &str = "--run-helper";

/// Runs a helper and exits, if this process was started as one; otherwise returns at once.
///
/// Call it first in `main`, before there is a second thread.
pub fn dispatch() {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new(FLAG)) {
        let name = arguments.next().unwrap_or_default();
        let arguments: Vec<OsString> = arguments.collect();
        restore_signals().expect("dispositions can be set");
        exit(run(&name, &arguments));
    }
}

/// Undoes what nohup(1), a shell or another parent has done to signals: what a process inherits would
/// decide what they do to it.
fn restore_signals() -> Result<()> {
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: no handler is installed.
        unsafe { signal(number, SigHandler::SigDfl)? };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Runs the helper `name` in this process and returns its exit code. Errors go to stderr.
pub(crate) fn run(name: &OsStr, arguments: &[OsString]) -> i32 {
    let helper = HELPERS.iter().find(|helper| name == helper.name);
    let result = helper.context("no such helper").and_then(|helper| (helper.run)(arguments));
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}: {error:#}", name.display());
            1
        }
    }
}

impl Helper {
    /// A command that starts this helper on the host. Add its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(FLAG).arg(self.name);
        command
    }
}

/// Runs `child` in a new process, which exits when the function returns.
pub fn spawn(child: impl FnOnce() -> Result<()>) -> Result<Pid> {
    spawn_with(CloneFlags::empty(), Some(libc::SIGCHLD), child)
}

/// The same with flags of clone(2), and with another signal to the parent at the end, or none.
pub fn spawn_with(
    flags: CloneFlags,
    exit_signal: Option<i32>,
    child: impl FnOnce() -> Result<()>,
) -> Result<Pid> {
    let mut child = Some(child);
    let run = || match child.take().expect("it runs once")() {
        Ok(()) => exit(0),
        Err(error) => {
            eprintln!("{error:#}");
            exit(1)
        }
    };
    let mut stack = vec![0; 256 * 1024];
    // SAFETY: a helper process has one thread, so no lock is held in the child, which has more stack
    // than it needs. If it shares the memory, its parent waits.
    unsafe { clone(Box::new(run), &mut stack, flags, exit_signal) }.context("cannot clone")
}
