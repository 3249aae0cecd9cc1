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
            "syscall 0",
            "ori $a7, $zero, {ppoll}",
            "move $a1, $zero",
            "move $a2, $zero",
            "move $a3, $zero",
            "2:",
            "move $a0, $zero",
            "syscall 0",
            "b 2b",
            ppoll = const libc::SYS_ppoll,
            in("$a7") libc::SYS_madvise,
            in("$a0") start,
            in("$a1") length,
            in("$a2") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// The kernel's `struct sigaction` has no `sa_restorer` here.
pub type Restorer = ();

/// Nor is there a flag for it: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5): EM_LOONGARCH, which libc does not have.
pub const MACHINE: u16 = 258;

/// `e_flags` in elf(5): floats in registers, version 1 of the object format.
pub const FLAGS: u32 = 0x43;
