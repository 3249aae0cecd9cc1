//! x86_64: entry, system call, and what only this architecture needs.

use super::Abi;
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

// The kernel leaves the stack pointer where rt_sigreturn(2) expects it, so that no instruction may
// come before the call.
global_asm!(
    ".section .text.restorer, \"ax\", @progbits",
    "restorer:",
    "mov eax, {rt_sigreturn}",
    "syscall",
    "ud2",
    rt_sigreturn = const libc::SYS_rt_sigreturn,
);

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_X86_64;
    const TRAP: u32 = 0x0b0f; // ud2

    // Without a restorer the kernel delivers no signal (arch/x86/kernel/signal_64.c).
    const SA_RESTORER: c_ulong = 0x0400_0000;

    fn restorer() -> usize {
        let address;
        // SAFETY: computes an address. (Rust itself would read it from the GOT.)
        unsafe {
            asm!("lea {}, [rip + restorer]", out(reg) address, options(nomem, preserves_flags))
        };
        address
    }

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
        let [first, second, third, fourth] = arguments;
        let result;
        // SAFETY: the caller's promise; the kernel changes rax, rcx and r11 and no other register. It
        // leaves the stack alone, too, but with `nostack` LLVM keeps a red zone below the stack pointer
        // and can no longer load small constants by push and pop.
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

    #[inline(always)]
    unsafe fn sleep(start: usize, length: usize) -> ! {
        // SAFETY: the caller's promise; pause takes no argument.
        unsafe {
            asm!(
                "syscall",
                "2:",
                "mov eax, {pause}",
                "syscall",
                "cmp eax, {eintr}",
                "je 2b",
                "call {refused}",
                refused = sym super::refused,
                eintr = const -libc::EINTR,
                pause = const libc::SYS_pause,
                in("rax") libc::SYS_madvise,
                in("rdi") start,
                in("rsi") length,
                in("rdx") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
