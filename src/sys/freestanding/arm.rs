//! arm, version 7 and compatible ones: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
use core::mem::MaybeUninit;

// At the entry the stack pointer is aligned to 16 bytes (the kernel's fs/binfmt_elf.c,
// `STACK_ROUND`); AAPCS32, 6.2.1.2, wants 8.
global_asm!(
    ".section .text._start, \"ax\", %progbits",
    ".globl _start",
    "_start:",
    "mov r0, sp",
    "bl {start}",
    start = sym super::start,
);

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_ARM;
    const TRAP: u32 = 0xe7f0_00f0; // udf

    // Version 5 of the EABI, floats in registers.
    const FLAGS: u32 = 0x0500_0400;

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
        let [first, second, third, fourth] = arguments;
        let result: usize;
        // SAFETY: the caller's promise; the kernel changes r0 and no other register, and no stack.
        unsafe {
            asm!(
                "svc 0",
                in("r7") number,
                inlateout("r0") first => result,
                in("r1") second,
                in("r2") third,
                in("r3") fourth,
                options(nostack),
            );
        }
        result as isize
    }

    #[inline(always)]
    unsafe fn sleep(start: usize, length: usize) -> ! {
        // SAFETY: the caller's promise; pause takes no argument.
        unsafe {
            asm!(
                "svc 0",
                "mov r7, {pause}",
                "2:",
                "svc 0",
                "cmn r0, {eintr}",
                "beq 2b",
                "b {refused}",
                refused = sym super::refused,
                eintr = const libc::EINTR,
                pause = const libc::SYS_pause,
                in("r7") libc::SYS_madvise,
                in("r0") start,
                in("r1") length,
                in("r2") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
