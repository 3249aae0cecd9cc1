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

/// Gives up `length` bytes of memory from `start` on, madvise(2), and sleeps for ever. All of it is
/// one block: the compiler keeps nothing in the memory that goes.
///
/// # Safety
///
/// Nothing that is in that memory is read again.
#[inline(always)]
pub unsafe fn sleep(start: usize, length: usize) -> ! {
    // SAFETY: the caller's promise; ppoll waits for no descriptor, without a timeout and
    // without a mask.
    unsafe {
        asm!(
            "svc 0",
            "mov x8, {ppoll}",
            "mov x1, 0",
            "mov x2, 0",
            "mov x3, 0",
            "2:",
            "mov x0, 0",
            "svc 0",
            "b 2b",
            ppoll = const libc::SYS_ppoll,
            in("x8") libc::SYS_madvise,
            in("x0") start,
            in("x1") length,
            in("x2") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// No flag: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_AARCH64;

/// `e_flags` in elf(5): none.
pub const FLAGS: u32 = 0;
