//! riscv64: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
use core::mem::MaybeUninit;

// At the entry the stack pointer is aligned to 16 bytes (RISC-V ELF psABI, "Integer Calling
// Convention"), as `call` wants it.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "mv a0, sp",
    "call {start}",
    start = sym super::start,
);

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_RISCV;

    // Compressed instructions, floats in registers.
    const FLAGS: u32 = 5;

    const RESTORER_FIELDS: usize = 0;

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
        let [first, second, third, fourth] = arguments;
        let result: usize;
        // SAFETY: the caller's promise; the kernel changes a0, vector registers, in which nothing is
        // kept here, and no other register, and no stack.
        unsafe {
            asm!(
                "ecall",
                in("a7") number,
                inlateout("a0") first => result,
                in("a1") second,
                in("a2") third,
                in("a3") fourth,
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
                "ecall",
                "li a7, {ppoll}",
                "li a1, 0",
                "li a2, 0",
                "li a3, 0",
                "2:",
                "li a0, 0",
                "ecall",
                "li t0, {eintr}",
                "beq a0, t0, 2b",
                "j {refused}",
                refused = sym super::refused,
                eintr = const -libc::EINTR,
                ppoll = const libc::SYS_ppoll,
                in("a7") libc::SYS_madvise,
                in("a0") start,
                in("a1") length,
                in("a2") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
