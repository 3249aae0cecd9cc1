//! s390x: entry, system call, and what only this architecture needs.

use super::Abi;
use core::arch::{asm, global_asm};
use core::ffi::c_long;
use core::mem::MaybeUninit;

// A caller leaves 160 bytes at the end of its frame, where the function that it calls saves registers
// (s390x ELF ABI, 1.2.2.2): without them `start` would overwrite what the kernel put there.
global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "lgr %r2, %r15",
    "aghi %r15, -160",
    "brasl %r14, {start}",
    start = sym super::start,
);

/// What [`Abi`] describes.
pub struct Arch;

impl Abi for Arch {
    const MACHINE: u16 = libc::EM_S390;

    #[inline(always)]
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
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

    #[inline(always)]
    unsafe fn sleep(start: usize, length: usize) -> ! {
        // SAFETY: the caller's promise; pause takes no argument.
        unsafe {
            asm!(
                "svc 0",
                "lghi %r1, {pause}",
                "2:",
                "svc 0",
                "cghi %r2, {eintr}",
                "je 2b",
                "jg {refused}",
                refused = sym super::refused,
                eintr = const -libc::EINTR,
                pause = const libc::SYS_pause,
                in("r1") libc::SYS_madvise,
                in("r2") start,
                in("r3") length,
                in("r4") libc::MADV_DONTNEED,
                options(noreturn),
            );
        }
    }
}
