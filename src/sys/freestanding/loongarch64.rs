//! loongarch64: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
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

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    // EM_LOONGARCH, which libc does not define.
    const MACHINE: u16 = 258;
    const TRAP: u32 = 0x002a_0000; // break

    // Floats in registers, version 1 of the object format.
    const FLAGS: u32 = 0x43;

    const RESTORER_FIELDS: usize = 0;

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
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

    #[inline(always)]
    unsafe fn sleep(start: usize, length: usize) -> ! {
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
                "addi.d $a0, $a0, {eintr}",
                "beqz $a0, 2b",
                "b {refused}",
                refused = sym super::refused,
                eintr = const libc::EINTR,
                ppoll = const libc::SYS_ppoll,
                in("$a7") libc::SYS_madvise,
                in("$a0") start,
                in("$a1") length,
                in("$a2") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
