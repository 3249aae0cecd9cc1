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
use std::env;
use std::ffi::OsString;
use std::process::{Command, exit};

/// A function that runs in a process of its own. Declared by [`helper!`](crate::helper!).
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

/// Marks a helper process. The next arguments are the name of the helper, PID 1 of the sandbox that it
/// joins or [`HOST`], and the arguments of the helper.
const FLAG: &str = "--run-helper";
const HOST: &str = "host";

impl Helper {
    /// The helper of this program that has this name.
    pub(crate) fn find(name: &str) -> Result<&'static Self> {
        let helper = HELPERS.iter().find(|helper| helper.name == name);
        helper.with_context(|| format!("there is no helper {name}"))
    }

    /// A command that starts this helper on the host. Add its arguments.
    pub fn command(&self) -> Command {
        self.command_in(HOST)
    }

    /// A command that starts this helper in a sandbox with this PID 1, or on the host.
    pub(crate) fn command_in(&self, sandbox: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args([FLAG, self.name, sandbox]);
        command
    }
}

/// Runs a helper and exits, if this process was started as one. Call it first in `main`, before there is
/// a second thread.
pub fn dispatch() {
    let arguments: Vec<_> = env::args_os().collect();
    if let [_, flag, name, sandbox, arguments @ ..] = &*arguments
        && flag == FLAG
    {
        exit_with(run(&name.to_string_lossy(), &sandbox.to_string_lossy(), arguments));
    }
}

fn run(name: &str, sandbox: &str, arguments: &[OsString]) -> Result<()> {
    let helper = Helper::find(name)?;
    // nohup(1), a shell or another parent may have changed them.
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: no handler is installed.
        unsafe { signal(number, SigHandler::SigDfl)? };
    }
    SigSet::empty().thread_set_mask()?;
    if sandbox == HOST {
        return (helper.run)(arguments).context(helper.name);
    }
    join(sandbox.parse()?)?;
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
