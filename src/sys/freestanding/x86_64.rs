//! x86_64: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
use core::mem::MaybeUninit;

// The x32 ABI shares the name of the architecture, but not its numbers.
const _: () = assert!(size_of::<usize>() == 8);

// At the entry the stack pointer is aligned to 16 bytes (System V ABI, 3.4.1), as `call` wants it.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "call {start}",
    start = sym super::start,
);

/// Calls the kernel: "A.2.1 Calling Conventions" of the System V ABI, syscall(2).
///
/// # Safety
///
/// The arguments that `number` takes are initialized and right for it.
#[inline(always)]
pub unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result;
    // SAFETY: the caller's promise; the kernel changes rax, rcx and r11 and no other register. It
    // leaves the stack alone too, but `nostack` would cost 17 bytes: with it LLVM keeps a red zone
    // below the stack pointer and can no longer load small constants by push and pop.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// Gives up `length` bytes of memory from `start` on, madvise(2), and sleeps for ever. All of it is
/// one block: the compiler keeps nothing in the memory that goes.
///
/// # Safety
///
/// Nothing that is in that memory is read again.
#[inline(always)]
pub unsafe fn sleep(start: usize, length: usize) -> ! {
    // SAFETY: the caller's promise; pause takes no argument.
    unsafe {
        asm!(
            "syscall",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            pause = const libc::SYS_pause,
            in("rax") libc::SYS_madvise,
            in("rdi") start,
            in("rsi") length,
            in("rdx") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// Flag without which the kernel delivers no signal here (arch/x86/kernel/signal_64.c): it vouches
/// for a restorer, the code that a handler returns to. Ours never return, so it may be null.
pub const SA_RESTORER: c_ulong = 0x0400_0000;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_X86_64;

/// `e_flags` in elf(5): none.
pub const FLAGS: u32 = 0;
