//! loongarch64: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
use core::mem::MaybeUninit;

// The stack pointer is always aligned to 16 bytes (LoongArch ELF psABI, "Stack"), at the entry too.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "move $a0, $sp",
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
    // SAFETY: the caller's promise; the kernel changes a0 and the temporaries and no other register
    // (its `SYM_CODE_START(handle_syscall)` saves no t register), and no stack.
    unsafe {
        asm!(
            "syscall 0",
            in("$a7") number,
            inlateout("$a0") first => result,
            in("$a1") second,
            in("$a2") third,
            in("$a3") fourth,
            lateout("$t0") _,
            lateout("$t1") _,
            lateout("$t2") _,
            lateout("$t3") _,
            lateout("$t4") _,
            lateout("$t5") _,
            lateout("$t6") _,
            lateout("$t7") _,
            lateout("$t8") _,
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
