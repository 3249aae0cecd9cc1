//! aarch64: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
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

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_AARCH64;

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
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

    #[inline(always)]
    unsafe fn sleep(start: usize, length: usize) -> ! {
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
                "cmn x0, {eintr}",
                "b.eq 2b",
                "b {refused}",
                refused = sym super::refused,
                eintr = const libc::EINTR,
                ppoll = const libc::SYS_ppoll,
                in("x8") libc::SYS_madvise,
                in("x0") start,
                in("x1") length,
                in("x2") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
