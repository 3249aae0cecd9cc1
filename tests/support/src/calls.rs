//! The system calls of the freestanding binary. This list is the one place that tells them: the
//! tests compare the binary with it, call by call.

use crate::proc::SLEEPING_CALL;
use nix::libc;

/// A system call that the binary makes.
pub struct Call {
    /// As the documents call it.
    pub name: &'static str,
    /// The kernel's number.
    pub number: i64,
    /// The first argument, where it tells calls of the same number apart.
    pub first: Option<i32>,
    /// What comes of it when the kernel refuses.
    pub refused: Refused,
    /// Whether it is not made as PID 1.
    pub only_elsewhere: bool,
}

/// What a process does that is refused a system call.
#[derive(Clone, Copy, PartialEq)]
pub enum Refused {
    /// What it would do anyway: it sleeps, reaps and stops.
    Continues,
    /// The same, without a word.
    Mute,
    /// The same, and as PID 1 it warns that it were not.
    Mistaken,
    /// It asks again without end, and stops all the same.
    Spins,
    /// Says so and exits with 1.
    Fails(&'static str),
}

use Refused::{Continues, Fails, Mistaken, Mute, Spins};

/// All until it sleeps, in their order.
const CALLS: &[Call] = &[
    call("rt_sigaction(SIGPIPE)", libc::SYS_rt_sigaction, Some(libc::SIGPIPE), Continues),
    call("rt_sigaction(SIGTERM)", libc::SYS_rt_sigaction, Some(libc::SIGTERM), NO_SIGTERM),
    call("rt_sigaction(SIGINT)", libc::SYS_rt_sigaction, Some(libc::SIGINT), NO_SIGINT),
    call("rt_sigprocmask", libc::SYS_rt_sigprocmask, None, Continues),
    call("rt_sigaction(SIGCHLD)", libc::SYS_rt_sigaction, Some(libc::SIGCHLD), NO_SIGCHLD),
    call("wait4", libc::SYS_wait4, None, Continues),
    call("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, Some(libc::PR_SET_DUMPABLE), Continues),
    call("close_range", libc::SYS_close_range, None, Continues),
    call("chdir", libc::SYS_chdir, None, Continues),
    call("getpid", libc::SYS_getpid, None, Mistaken),
    elsewhere(call("write", libc::SYS_write, None, Mute)),
    elsewhere(call("prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, SUBREAPER, Continues)),
    call("madvise", libc::SYS_madvise, None, Continues),
    call(SLEEPING_NAME, SLEEPING_CALL, None, Spins),
];

const NO_SIGTERM: Refused = Fails("pause: cannot handle SIGTERM\n");
const NO_SIGINT: Refused = Fails("pause: cannot handle SIGINT\n");
const NO_SIGCHLD: Refused = Fails("pause: cannot ignore SIGCHLD\n");
const SUBREAPER: Option<i32> = Some(libc::PR_SET_CHILD_SUBREAPER);
const SLEEPING_NAME: &str = if SLEEPING_CALL == libc::SYS_ppoll { "ppoll" } else { "pause" };

/// Those that it ends with.
pub const END: [i64; 2] = [libc::SYS_write, libc::SYS_exit_group];

/// The one that stands in for close_range(2).
pub const CLOSE: i64 = libc::SYS_close;

/// The one that tells of an unknown argument.
pub const UNKNOWN: i64 = libc::SYS_writev;

const fn call(name: &'static str, number: i64, first: Option<i32>, refused: Refused) -> Call {
    Call { name, number, first, refused, only_elsewhere: false }
}

const fn elsewhere(call: Call) -> Call {
    Call { only_elsewhere: true, ..call }
}

/// Those that it makes until it sleeps, in their order.
pub fn until_asleep(is_init: bool) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| !(is_init && call.only_elsewhere))
}

/// The numbers of all that it ever makes.
pub fn all() -> impl Iterator<Item = i64> {
    until_asleep(false).map(|call| call.number).chain(END).chain([CLOSE, UNKNOWN])
}
