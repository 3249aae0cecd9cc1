//! The operations that `main.rs` is written in, in two flavors. The freestanding one ships; it needs
//! neither a C library nor std. The hosted one is for a Unix that the freestanding one does not
//! support, and the baseline that shows what std costs.

#[cfg(flavor = "freestanding")]
mod freestanding;
#[cfg(flavor = "freestanding")]
pub use freestanding::*;

#[cfg(flavor = "hosted")]
mod hosted;
#[cfg(flavor = "hosted")]
pub use hosted::*;

/// Whether a signal was sent by the kernel, or from outside of this process' PID namespace. (Only
/// Linux has those: elsewhere every signal is.)
///
/// In both cases the kernel sets `si_pid` to 0 (`send_signal_locked` in its signal.c). Other codes are
/// not accepted: a process inside can send a `siginfo_t` of its own making if the code is negative and
/// not SI_TKILL (rt_sigqueueinfo(2)), and with a positive code other fields may take the place of
/// `si_pid`.
pub fn is_from_outside(info: &libc::siginfo_t) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: with these codes the kernel fills in `si_pid`.
    let from_outside = matches!(info.si_code, libc::SI_USER | libc::SI_KERNEL | libc::SI_TKILL)
        && unsafe { info.si_pid() } == 0;
    #[cfg(not(target_os = "linux"))]
    let from_outside = true;
    from_outside
}

/// A system call failed. There is no errno, because the program treats all of them alike.
#[derive(Debug)]
pub struct Error;

/// Number of descriptors that are closed one by one where close_range(2) is unavailable: the default
/// limit of open files.
const MAX_FD_FALLBACK: core::ffi::c_int = 1024;
