//! The process behind a Kubernetes pod: it holds the namespaces that the pod's containers join, reaps
//! orphans, and exits on SIGTERM or SIGINT.
//!
//! This file is the whole program, from top to bottom: [`run`] is its start, [`stop`] its end. [`sys`]
//! wraps the system calls; the decisions are made here.

#![no_main]
#![cfg_attr(flavor = "freestanding", no_std)]

mod sys;

use core::ffi::c_int;
use libc::{SIGCHLD, SIGINT, SIGPIPE, SIGTERM, STDERR_FILENO, STDOUT_FILENO, siginfo_t};
use sys::{Arguments, Error};

const VERSION: &[u8] = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n").as_bytes();
const HELP: &[u8] = b"\
Usage: pause [-v|-V|--version|-h|--help]
Holds a pod's namespaces and reaps orphans until SIGTERM or SIGINT.
";

/// Runs the program; does not return. The entry point of either flavor calls it.
fn run(arguments: Arguments) -> ! {
    // Protect /proc/1 from the other containers of the pod before there is anything to see.
    sys::forbid_dump();
    // A reader that closes its end of stdout or stderr must not take the pod with it.
    let _ = sys::ignore(SIGPIPE);

    // Comparisons instead of patterns, because rustc compares a pattern byte by byte.
    let has_unknown_argument = match arguments.first() {
        None => false,
        Some(a) if a == b"-v" || a == b"-V" || a == b"--version" => print_and_exit(VERSION),
        Some(a) if a == b"-h" || a == b"--help" => print_and_exit(HELP),
        Some(_) => true,
    };

    // The handlers are installed before signals are unblocked: a SIGTERM that an inherited mask held
    // back would otherwise get the default action, which PID 1 ignores and any other process dies of.
    require(sys::handle(SIGTERM, stop), b"pause: cannot handle SIGTERM\n");
    require(sys::handle(SIGINT, stop), b"pause: cannot handle SIGINT\n");
    sys::unblock_signals();

    // From here on the kernel reaps each child as it exits, without waking this process. Children that
    // died earlier are collected by hand.
    require(sys::ignore(SIGCHLD), b"pause: cannot ignore SIGCHLD\n");
    while sys::reap() {}

    // Leave nothing of the runtime at /proc/1: neither descriptors that it leaked, nor a mount.
    sys::close_from(STDERR_FILENO + 1);
    sys::enter_root();

    if !sys::is_init() {
        sys::become_subreaper();
        warn(b"pause: warning: not PID 1\n");
    }
    // The container runtime may add a word for all pods of a node: they have to start.
    if has_unknown_argument {
        warn(b"pause: warning: unknown argument ignored\n");
    }

    // Give back the stack but for the arguments, which ps(1) reads, and sleep until `stop` exits.
    sys::sleep(arguments)
}

/// Handler of SIGTERM and SIGINT: the end of the program.
///
/// As PID 1 only a signal from outside of the pod counts, see docs/security.md. Others are ignored
/// without a message, because a flood of them would fill the log.
extern "C" fn stop(signal: c_int, info: &siginfo_t) {
    if !is_from_outside(info) && sys::is_init() {
        return;
    }
    warn(match signal {
        SIGTERM => b"pause: SIGTERM\n",
        _ => b"pause: SIGINT\n",
    });
    sys::exit(0)
}

/// Whether a signal was sent by the kernel, or from outside of this process' PID namespace.
///
/// In both cases the kernel sets `si_pid` to 0 (`send_signal_locked` in its signal.c). Other codes are
/// not accepted: a process inside can send a `siginfo_t` of its own making if the code is negative and
/// not SI_TKILL (rt_sigqueueinfo(2)), and with a positive code other fields may take the place of
/// `si_pid`.
#[cfg(target_os = "linux")]
fn is_from_outside(info: &siginfo_t) -> bool {
    matches!(info.si_code, libc::SI_USER | libc::SI_KERNEL | libc::SI_TKILL)
        // SAFETY: with these codes the kernel fills in `si_pid`.
        && unsafe { info.si_pid() } == 0
}

/// Returns true, because only Linux has PID namespaces.
#[cfg(not(target_os = "linux"))]
fn is_from_outside(_: &siginfo_t) -> bool {
    true
}

/// Called if the kernel refuses to let the process sleep. Trying again would occupy a CPU.
fn cannot_sleep() -> ! {
    fail(b"pause: cannot pause\n")
}

/// Writes `text` to stdout and exits.
fn print_and_exit(text: &[u8]) -> ! {
    let written = sys::write(STDOUT_FILENO, text);
    if written.is_ok_and(|bytes| bytes == text.len()) {
        sys::exit(0)
    }
    fail(b"pause: cannot write to stdout\n")
}

/// Ends the program if it cannot do without what failed.
fn require(result: Result<(), Error>, message: &[u8]) {
    if result.is_err() {
        fail(message)
    }
}

/// Writes the reason to stderr and exits.
fn fail(message: &[u8]) -> ! {
    warn(message);
    sys::exit(1)
}

/// Writes to stderr, unless it is a pipe or terminal that is full: neither start nor stop may wait for
/// its reader. An error is ignored, because the pod has to go on.
fn warn(message: &[u8]) {
    if !sys::would_block(STDERR_FILENO) {
        let _ = sys::write(STDERR_FILENO, message);
    }
}
