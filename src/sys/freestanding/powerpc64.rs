//! powerpc64, little endian: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
use core::mem::MaybeUninit;

// Functions find what they refer to by the TOC pointer in r2. Here it is made from the entry's own
// address, which the kernel leaves in r12 (arch/powerpc/kernel/process.c, `start_thread`), as it
// does for a signal's handler. It points behind a GOT that holds nothing but its header, 8 bytes that
// the linker makes and aligns and nobody reads; by `got_header` pause.ld lets them pass.
//
// A caller leaves 32 bytes at the end of its frame, into which the function it calls saves registers
// (64-bit ELF V2 ABI, 2.2.3): without them `start` would save its own over argv.
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

/// Calls the kernel: syscall(2), and Documentation/arch/powerpc/syscall64-abi.rst of the kernel.
///
/// # Safety
///
/// The arguments that `number` takes are initialized and right for it.
#[inline(always)]
pub unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
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
            "sc",
            "2:",
            "li 0, {pause}",
            "sc",
            "b 2b",
            pause = const libc::SYS_pause,
            in("r0") libc::SYS_madvise,
            in("r3") start,
            in("r4") length,
            in("r5") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// No flag: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_PPC64;

/// `e_flags` in elf(5): version 2 of the ELF ABI. In version 1 the entry is no code but a pointer to it.
pub const FLAGS: u32 = 2;
