//! The operations on std, libc and signal-hook: for a Unix without a file in `freestanding/`, and
//! as the baseline that shows what std costs. That folder documents the errors of each operation.

use super::{Error, MAX_FD_FALLBACK};
use libc::{c_char, c_int, siginfo_t};
use std::ffi::CStr;
use std::{io, ptr};

/// The entry point. It replaces std's, which opens a closed stdout as /dev/null, so that `--version`
/// would appear to succeed there.
///
/// # Safety
///
/// Only the C library calls it, with argc and argv.
#[unsafe(no_mangle)]
unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: with argc over 1 argv[1] is a string that ends in NUL and lives as long as the process.
    let first = (argc > 1).then(|| unsafe { CStr::from_ptr(*argv.add(1)) }.to_bytes());
    crate::run(Arguments { first })
}

/// The command line.
pub struct Arguments {
    first: Option<&'static [u8]>,
}

impl Arguments {
    /// The first argument, if there is one.
    pub fn first(&self) -> Option<&'static [u8]> {
        self.first
    }
}

/// Converts a result of the C library, where -1 is an error.
fn check(result: isize) -> Result<usize, Error> {
    usize::try_from(result).map_err(|_| Error)
}

/// Writes `text` to descriptor `fd`: write(2).
pub fn write(fd: c_int, text: &[u8]) -> Result<usize, Error> {
    // SAFETY: the call only reads `text`.
    check(unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) })
}

/// Whether a write to descriptor `fd` would have to wait: poll(2).
pub fn would_block(fd: c_int) -> bool {
    let mut stream = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `stream` is one pollfd.
    unsafe { libc::poll(&mut stream, 1, 0) == 0 }
}

/// Ends the process with `code`, from a signal handler too: _exit(2).
pub fn exit(code: c_int) -> ! {
    signal_hook::low_level::exit(code)
}

/// Calls `handler` when `signal` arrives: sigaction(2).
pub fn handle(signal: c_int, handler: extern "C" fn(c_int, &siginfo_t)) -> Result<(), Error> {
    let action = move |info: &siginfo_t| handler(signal, info);
    // SAFETY: the handler makes system calls only, all of which signal-safety(7) allows.
    let id = unsafe { signal_hook_registry::register_sigaction(signal, action) };
    id.map(drop).map_err(|_| Error)
}

/// Ignores `signal`: sigaction(2).
pub fn ignore(signal: c_int) -> Result<(), Error> {
    // SAFETY: no handler is installed.
    let old = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if old == libc::SIG_ERR { Err(Error) } else { Ok(()) }
}

/// Unblocks every signal: sigprocmask(2).
pub fn unblock_signals() {
    // SAFETY: the set is initialized before it is used, and only read by the second call.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Collects one zombie, if there is one: waitpid(2).
pub fn reap() -> bool {
    #[cfg(target_os = "linux")]
    const OPTIONS: c_int = libc::WNOHANG | libc::__WALL;
    #[cfg(not(target_os = "linux"))]
    const OPTIONS: c_int = libc::WNOHANG;
    // SAFETY: the status is not asked for, so nothing is written.
    unsafe { libc::waitpid(-1, ptr::null_mut(), OPTIONS) > 0 }
}

/// Closes /proc/self to processes of the same user: PR_SET_DUMPABLE(2const). Linux only.
pub fn forbid_dump() {
    // SAFETY: a flag of this process, no pointers.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0)
    };
}

/// Closes every descriptor from `first` up: close_range(2), or one after the other.
pub fn close_from(first: c_int) {
    #[cfg(target_os = "linux")]
    // SAFETY: the program uses no descriptor but the three standard ones. Called by its number,
    // because musl and older glibc have no function for it.
    if unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) } == 0 {
        return;
    }
    for fd in first..MAX_FD_FALLBACK {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Moves to `/`: chdir(2).
pub fn enter_root() {
    // SAFETY: the path ends in NUL.
    unsafe { libc::chdir(c"/".as_ptr()) };
}

/// Whether this process is the init of its PID namespace: getpid(2).
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Adopts the orphans among the descendants: PR_SET_CHILD_SUBREAPER(2const). Linux only.
pub fn become_subreaper() {
    // SAFETY: a flag of this process, no pointers.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    };
}

/// Sleeps forever: pause(2).
pub fn sleep(_: Arguments) -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            crate::cannot_sleep();
        }
    }
}
