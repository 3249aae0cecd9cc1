//! aarch64: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
use core::mem::MaybeUninit;

// The stack pointer is always aligned to 16 bytes (AAPCS64, 6.4.5.1), at the entry too.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "mov x0, sp",
    "bl {start}",
    start = sym super::start,
);

/// Calls the kernel: syscall(2).
///
/// # Safety
///
/// The arguments that `number` takes are initialized and right for it.
#[inline(always)]
pub unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result: usize;
    // SAFETY: the caller's promise; the kernel changes x0 and no other register, and no stack.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second,
            in("x2") third,
            in("x3") fourth,
            options(nostack),
        );
    }
    result as isize
}

/// The call that sleeps: there is no pause here, so ppoll.
pub const SYS_PAUSE: c_long = libc::SYS_ppoll;

/// Its arguments: no descriptors, none of them, no timeout, no mask.
pub const NO_ARGUMENTS: [usize; 4] = [0; 4];

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// No flag: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;
