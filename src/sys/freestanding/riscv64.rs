//! riscv64: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
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

/// Calls the kernel: syscall(2).
///
/// # Safety
///
/// The arguments that `number` takes are initialized and right for it.
#[inline(always)]
pub unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
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
            "ecall",
            "li a7, {ppoll}",
            "li a1, 0",
            "li a2, 0",
            "li a3, 0",
            "2:",
            "li a0, 0",
            "ecall",
            "j 2b",
            ppoll = const libc::SYS_ppoll,
            in("a7") libc::SYS_madvise,
            in("a0") start,
            in("a1") length,
            in("a2") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// The kernel's `struct sigaction` has no `sa_restorer` here.
pub type Restorer = ();

/// Nor is there a flag for it: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_RISCV;

/// `e_flags` in elf(5): compressed instructions, floats in registers.
pub const FLAGS: u32 = 5;
