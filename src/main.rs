//! The process behind a Kubernetes pod: it holds the namespaces that the pod's containers join,
//! lets no zombie live, and leaves when told to.
//!
//! This file is the life of that process, top to bottom. [`cli`] reads the command line, [`sys`]
//! speaks to the kernel; neither knows why.

#![no_main]
#![cfg_attr(flavor = "freestanding", no_std)]

mod cli;
mod sys;

use cli::Request;
use core::ffi::c_int;
use libc::{SIGINT, SIGTERM, STDERR_FILENO, STDOUT_FILENO};
use sys::{Arguments, IoSlice};

/// Exit code for a wrong command line: `EX_USAGE` of sysexits.h.
const USAGE_ERROR: c_int = 64;

/// Lives the whole life of the process. The entry point of either flavor calls it.
fn live(arguments: Arguments) -> ! {
    // A reader that closes its end of stdout or stderr must not take the pod with it.
    sys::ignore_sigpipe();

    match cli::parse(arguments.first()) {
        Request::Sleep => {}
        Request::Version => answer(cli::VERSION),
        Request::Help => answer(cli::HELP),
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

    // The handlers come before the unblocking: a SIGTERM that waited behind an inherited mask would
    // otherwise meet the default action, which PID 1 ignores and any other process dies of.
    if sys::handle(SIGTERM, stop).is_err() {
        fail(b"pause: cannot handle SIGTERM\n");
    }
    if sys::handle(SIGINT, stop).is_err() {
        fail(b"pause: cannot handle SIGINT\n");
    }
    sys::unblock_signals();

    // From here on the kernel reaps each child as it exits, and nobody is woken for it. What had
    // died before is collected by hand.
    if sys::ignore_sigchld().is_err() {
        fail(b"pause: cannot ignore SIGCHLD\n");
    }
    while sys::reap() {}

    // Nothing that a container of the pod finds under /proc/1 may be worth having: neither this
    // memory, nor a descriptor that the runtime leaked, nor a mount.
    sys::forbid_dump();
    sys::close_from(STDERR_FILENO + 1);
    sys::enter_root();

    if !sys::is_init() {
        warn(b"pause: warning: not PID 1\n");
        sys::become_subreaper();
    }

    sys::sleep(arguments)
}

/// What SIGTERM and SIGINT run.
extern "C" fn stop(signal: c_int) -> ! {
    warn(match signal {
        SIGTERM => b"pause: SIGTERM\n",
        _ => b"pause: SIGINT\n",
    });
    sys::exit(0)
}

/// Prints what was asked for and ends.
fn answer(text: &[u8]) -> ! {
    let written = sys::write(STDOUT_FILENO, text);
    if written.is_ok_and(|bytes| bytes == text.len()) {
        sys::exit(0)
    }
    fail(b"pause: cannot write to stdout\n")
}

/// Says why and ends.
fn fail(message: &[u8]) -> ! {
    warn(message);
    sys::exit(1)
}

/// Writes to stderr. Nobody may be listening, and the pod goes on all the same.
fn warn(message: &[u8]) {
    let _ = sys::write(STDERR_FILENO, message);
}
