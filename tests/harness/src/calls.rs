//! The system calls of the freestanding binary: the one list of them, which the tests compare with
//! what the binary does, call by call. There are two more: close(2) in place of close_range(2), and
//! exit(2) in place of exit_group(2), where those are refused.

use crate::proc::{POLL, SLEEPING_CALL};
use nix::libc;

/// A system call that the binary makes.
pub struct Call {
    /// Name in the documents.
    pub name: &'static str,
    /// The kernel's number.
    pub number: i64,
    /// The first argument, where it distinguishes calls with the same number.
    pub first: Option<i32>,
    /// What happens if the kernel refuses it.
    pub refused: Refused,
}

/// What the process does after a refused system call.
#[derive(Clone, Copy, PartialEq)]
pub enum Refused {
    /// Sleeps, reaps and stops as always.
    Continues,
    /// Continues without any message.
    Silent,
    /// Continues, but PID 1 takes itself for another process: it warns, and obeys every SIGTERM.
    AssumesNotInit,
    /// Prints this and exits with 1.
    Fails(&'static str),
}

use Refused::{AssumesNotInit, Continues, Fails, Silent};

/// The calls until it sleeps, in their order.
const CALLS: &[Call] = &[
    call("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, Some(libc::PR_SET_DUMPABLE), Continues),
    call("rt_sigaction(SIGPIPE)", libc::SYS_rt_sigaction, Some(libc::SIGPIPE), Continues),
    call("rt_sigaction(SIGTERM)", libc::SYS_rt_sigaction, Some(libc::SIGTERM), NO_SIGTERM),
    call("rt_sigaction(SIGINT)", libc::SYS_rt_sigaction, Some(libc::SIGINT), NO_SIGINT),
    call("rt_sigprocmask", libc::SYS_rt_sigprocmask, None, Continues),
    call("rt_sigaction(SIGCHLD)", libc::SYS_rt_sigaction, Some(libc::SIGCHLD), NO_SIGCHLD),
    call("wait4", libc::SYS_wait4, None, Continues),
    call("close_range", libc::SYS_close_range, None, Continues),
    call("chdir", libc::SYS_chdir, None, Continues),
    call("getpid", libc::SYS_getpid, None, AssumesNotInit),
    call("prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, SUBREAPER, Continues),
    call(POLL_NAME, POLL, None, NO_POLL),
    call("write", libc::SYS_write, None, Silent),
    call("madvise", libc::SYS_madvise, None, Continues),
    call(SLEEPING_NAME, SLEEPING_CALL, None, CANNOT_SLEEP),
];

/// Those that PID 1 does not make.
const NOT_PID_1: [&str; 3] = ["prctl(PR_SET_CHILD_SUBREAPER)", POLL_NAME, "write"];

const NO_SIGTERM: Refused = Fails("pause: cannot handle SIGTERM\n");
const NO_SIGINT: Refused = Fails("pause: cannot handle SIGINT\n");
const NO_SIGCHLD: Refused = Fails("pause: cannot ignore SIGCHLD\n");
const CANNOT_SLEEP: Refused = Fails("pause: cannot pause\n");
const SUBREAPER: Option<i32> = Some(libc::PR_SET_CHILD_SUBREAPER);
const POLL_NAME: &str = if POLL == SLEEPING_CALL { "ppoll(stderr)" } else { "poll" };
const NO_POLL: Refused = if POLL == SLEEPING_CALL { CANNOT_SLEEP } else { Continues };
const SLEEPING_NAME: &str = if SLEEPING_CALL == libc::SYS_ppoll { "ppoll" } else { "pause" };

/// The calls of the handler when it exits. It makes the first only if the sender is inside of the PID
/// namespace.
pub const END: [i64; 4] = [libc::SYS_getpid, POLL, libc::SYS_write, libc::SYS_exit_group];

/// The calls with `--version` or `--help`.
pub const PRINT: [i64; 4] =
    [libc::SYS_prctl, libc::SYS_rt_sigaction, libc::SYS_write, libc::SYS_exit_group];

/// The calls of PID 1 when it ignores a signal.
pub const IGNORE: [i64; 3] = [libc::SYS_getpid, libc::SYS_rt_sigreturn, SLEEPING_CALL];

const fn call(name: &'static str, number: i64, first: Option<i32>, refused: Refused) -> Call {
    Call { name, number, first, refused }
}

/// The calls until it sleeps, in their order.
pub fn until_asleep(is_init: bool) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| !(is_init && NOT_PID_1.contains(&call.name)))
}
