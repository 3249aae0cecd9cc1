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

/// The call that sleeps: there is no pause here, so ppoll.
pub const SYS_PAUSE: c_long = libc::SYS_ppoll;

/// Its arguments: no descriptors, none of them, no timeout, no mask.
pub const NO_ARGUMENTS: [usize; 4] = [0; 4];

/// The kernel's `struct sigaction` has no `sa_restorer` here.
pub type Restorer = ();

/// Nor is there a flag for it: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;
