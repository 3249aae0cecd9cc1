//! s390x: entry, system call, and what only this architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_long, c_ulong};
use core::mem::MaybeUninit;

// A caller leaves 160 bytes at the end of its frame for the registers of the function it calls
// (s390x ELF ABI, 1.2.2.2): without them `start` would save its own over what the kernel left there.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "lgr %r2, %r15",
    "aghi %r15, -160",
    "brasl %r14, {start}",
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
    // SAFETY: the caller's promise; the kernel changes r2 and no other register, and no stack. The
    // number is in r1: the instruction itself has room for those below 256 alone.
    unsafe {
        asm!(
            "svc 0",
            in("r1") number,
            inlateout("r2") first => result,
            in("r3") second,
            in("r4") third,
            in("r5") fourth,
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
            "svc 0",
            "lghi %r1, {pause}",
            "2:",
            "svc 0",
            "j 2b",
            pause = const libc::SYS_pause,
            in("r1") libc::SYS_madvise,
            in("r2") start,
            in("r3") length,
            in("r4") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// No flag: handlers return through the vDSO, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_S390;

/// `e_flags` in elf(5): none.
pub const FLAGS: u32 = 0;
