//! Helper processes: they make orphans, attack PID 1 or set up a sandbox.
//!
//! A program starts itself once more as a helper, which runs one function in place of `main`. Such a
//! process has one thread, so it may fork, join namespaces and change its credentials, which a test
//! with its many threads may not.

use crate::sandbox::{ensure_inside, join};
use anyhow::{Context, Result, bail};
use linkme::distributed_slice;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::env;
use std::ffi::OsString;
use std::process::{Command, exit};

/// A function that runs in a process of its own. Declared by [`helper!`](crate::helper!).
#[derive(Debug)]
pub struct Helper {
    /// Name of the static, with its path.
    pub name: &'static str,
    /// The function; it gets the arguments that were added to the command.
    pub run: fn(&[OsString]) -> Result<()>,
}

/// Every helper of this program. The linker collects them.
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

impl Serialize for Helper {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static Helper {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let helper = HELPERS.iter().find(|helper| helper.name == name);
        helper.ok_or_else(|| D::Error::custom(format!("there is no helper {name}")))
    }
}

/// Marks a helper process. The next argument is a [`Start`] in JSON; those of the helper follow.
const FLAG: &str = "--run-helper";

/// What a helper process runs, and where.
#[derive(Deserialize, Serialize)]
struct Start {
    helper: &'static Helper,
    /// PID 1 of the sandbox that it joins first.
    sandbox: Option<i32>,
}

impl Helper {
    /// A command that starts this helper on the host. Add its arguments.
    pub fn command(&'static self) -> Command {
        self.command_in(None)
    }

    /// A command that starts this helper in a sandbox with this PID 1, or on the host.
    pub(crate) fn command_in(&'static self, sandbox: Option<Pid>) -> Command {
        let start = Start { helper: self, sandbox: sandbox.map(Pid::as_raw) };
        let mut command = Command::new("/proc/self/exe");
        command.arg(FLAG).arg(serde_json::to_string(&start).expect("names and numbers"));
        command
    }
}

/// Runs a helper and exits, if this process was started as one; otherwise returns at once.
///
/// Call it first in `main`, before there is a second thread.
pub fn dispatch() {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == FLAG) {
        let start = arguments.next().unwrap_or_default();
        exit_with(run(&start.to_string_lossy(), &arguments.collect::<Vec<_>>()));
    }
}

fn run(start: &str, arguments: &[OsString]) -> Result<()> {
    let Start { helper, sandbox } = serde_json::from_str(start)?;
    // nohup(1), a shell or another parent may have changed them.
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: no handler is installed.
        unsafe { signal(number, SigHandler::SigDfl)? };
    }
    SigSet::empty().thread_set_mask()?;
    let Some(pid) = sandbox else { return (helper.run)(arguments).context(helper.name) };
    join(pid)?;
    // Only a child is in the PID namespace that was joined.
    let child = spawn(|| {
        ensure_inside()?;
        // As in a container. In the session of the tests, the kernel may take them for an orphaned process
        // group with a stopped member, and send SIGHUP to all of it.
        setsid()?;
        (helper.run)(arguments).context(helper.name)
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => exit(code),
        status => bail!("{} ended: {status:?}", helper.name),
    }
}

/// Ends this process. An error goes to stderr.
fn exit_with(result: Result<()>) -> ! {
    if let Err(error) = &result {
        eprintln!("{error:#}");
    }
    exit(result.is_err().into())
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
    let run = || exit_with(child.take().expect("it runs once")());
    let mut stack = vec![0; 256 * 1024];
    // SAFETY: a helper process has one thread, so no lock is held in the child, which has more stack
    // than it needs. If it shares the memory, its parent waits.
    unsafe { clone(Box::new(run), &mut stack, flags, exit_signal) }.context("cannot clone")
}
