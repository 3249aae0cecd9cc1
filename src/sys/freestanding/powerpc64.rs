//! powerpc64, little endian: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
use core::mem::MaybeUninit;

// Functions address data relative to the TOC pointer in r2. It is computed from the entry's own
// address, which the kernel leaves in r12 (arch/powerpc/kernel/process.c, `start_thread`), as it does
// for a signal handler. The linker always emits an 8-byte GOT header, aligned to 8; `got_header`
// makes pause.ld accept it.
//
// A caller leaves 32 bytes at the end of its frame, where the function that it calls saves registers
// (64-bit ELF V2 ABI, 2.2.3): without them `start` would overwrite argv.
global_asm!(
    ".globl got_header",
    ".set got_header, 8 + 7",
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "addis 2, 12, .TOC.-_start@ha",
    "addi 2, 2, .TOC.-_start@l",
    "mr 3, 1",
    "li 0, 0",
    "stdu 0, -32(1)",
    "bl {start}",
    start = sym super::start,
);

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_PPC64;
    const TRAP: u32 = 0x7fe0_0008; // trap

    // Version 2 of the ELF ABI: in version 1 the entry is a pointer to the code.
    const FLAGS: u32 = 2;

    // Documentation/arch/powerpc/syscall64-abi.rst of the kernel.
    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
        let [first, second, third, fourth] = arguments;
        let result: usize;
        // SAFETY: the caller's promise; the kernel changes what a function call may change but the link
        // register, and no stack. It marks an error in cr0 and returns the errno, which is made negative
        // here as it is elsewhere.
        unsafe {
            asm!(
                "sc",
                "bns+ 2f",
                "neg 3, 3",
                "2:",
                inlateout("r0") number => _,
                inlateout("r3") first => result,
                inlateout("r4") second => _,
                inlateout("r5") third => _,
                inlateout("r6") fourth => _,
                lateout("r7") _,
                lateout("r8") _,
                lateout("r9") _,
                lateout("r10") _,
                lateout("r11") _,
                lateout("r12") _,
                lateout("cr0") _,
                lateout("cr1") _,
                lateout("cr5") _,
                lateout("cr6") _,
                lateout("cr7") _,
                lateout("ctr") _,
                lateout("xer") _,
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
                "sc",
                "2:",
                "li 0, {pause}",
                "sc",
                "cmpwi 3, {eintr}",
                "beq 2b",
                "b {refused}",
                refused = sym super::refused,
                eintr = const libc::EINTR,
                pause = const libc::SYS_pause,
                in("r0") libc::SYS_madvise,
                in("r3") start,
                in("r4") length,
                in("r5") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
