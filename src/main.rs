//! The process behind a Kubernetes pod: it holds the namespaces that the pod's containers join, reaps
//! orphans, and exits on SIGTERM or SIGINT.
//!
//! This file is the whole program, from top to bottom. [`cli`] parses the arguments, [`sys`] wraps the
//! system calls; the decisions are made here.

#![no_main]
#![cfg_attr(flavor = "freestanding", no_std)]

mod cli;
mod sys;

use cli::Request;
use core::ffi::c_int;
use libc::{SIGINT, SIGTERM, STDERR_FILENO, STDOUT_FILENO, siginfo_t};
use sys::{Arguments, IoSlice};

/// Exit code for a wrong command line: `EX_USAGE` of sysexits.h.
const USAGE_ERROR: c_int = 64;

/// Runs the program; does not return. The entry point of either flavor calls it.
fn run(arguments: Arguments) -> ! {
    // A reader that closes its end of stdout or stderr must not take the pod with it.
    sys::ignore_sigpipe();

    match cli::parse(arguments.first()) {
        Request::Sleep => {}
        Request::Version => print_and_exit(cli::VERSION),
        Request::Help => print_and_exit(cli::HELP),
        Request::Unknown(argument) => {
            let message = [
                IoSlice::new(b"pause: unknown argument: "),
                IoSlice::new(argument),
                IoSlice::new(b"\nTry pause --help.\n"),
            ];
            let _ = sys::write_parts(STDERR_FILENO, &message);
            sys::exit(USAGE_ERROR)
        }
    }

    // The handlers are installed before signals are unblocked: a SIGTERM that an inherited mask held
    // back would otherwise get the default action, which PID 1 ignores and any other process dies of.
    if sys::handle(SIGTERM, stop).is_err() {
        fail(b"pause: cannot handle SIGTERM\n");
    }
    if sys::handle(SIGINT, stop).is_err() {
        fail(b"pause: cannot handle SIGINT\n");
    }
    sys::unblock_signals();

    // From here on the kernel reaps each child as it exits, without waking this process. Children that
    // died earlier are collected by hand.
    if sys::ignore_sigchld().is_err() {
        fail(b"pause: cannot ignore SIGCHLD\n");
    }
    while sys::reap() {}

    // Protect /proc/1 from the other containers of the pod: its memory, descriptors that the runtime
    // leaked, and mounts.
    sys::forbid_dump();
    sys::close_from(STDERR_FILENO + 1);
    sys::enter_root();

    if !sys::is_init() {
        warn(b"pause: warning: not PID 1\n");
        sys::become_subreaper();
    }

    sys::sleep(arguments)
}

/// Handler of SIGTERM and SIGINT.
///
/// As PID 1 only a signal from outside of the pod counts: nobody inside can end the pod. Others are
/// ignored without a message, because a flood of them would fill the log.
extern "C" fn stop(signal: c_int, info: &siginfo_t) {
    if !sys::is_from_outside(info) && sys::is_init() {
        return;
    }
    warn(match signal {
        SIGTERM => b"pause: SIGTERM\n",
        _ => b"pause: SIGINT\n",
    });
    sys::exit(0)
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

/// Writes the reason to stderr and exits.
fn fail(message: &[u8]) -> ! {
    warn(message);
    sys::exit(1)
}

/// Writes to stderr. The pod has to go on where that fails, too.
fn warn(message: &[u8]) {
    let _ = sys::write(STDERR_FILENO, message);
}
