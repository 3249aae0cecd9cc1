//! arm, version 7 and its like, in ARM and in Thumb mode: entry, system call, and what only this
//! architecture needs.

use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_long, c_ulong};
use core::mem::MaybeUninit;

// At the entry the stack pointer is aligned to 16 bytes (the kernel's fs/binfmt_elf.c,
// `STACK_ROUND`); AAPCS32, 6.2.1.2, wants 8. This much is always in ARM mode, so the kernel need not
// be told of another; the linker makes a `blx` of the `bl` where Rust is compiled to Thumb.
global_asm!(
    ".section .text._start, \"ax\", %progbits",
    ".globl _start",
    ".arm",
    "_start:",
    "mov r0, sp",
    "bl {start}",
    start = sym super::start,
);

/// Calls the kernel, the EABI way: syscall(2).
///
/// # Safety
///
/// The arguments that `number` takes are initialized and right for it.
#[inline(always)]
pub unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result: usize;
    // SAFETY: the caller's promise; the kernel changes r0 and no other register, and no stack. The
    // number has to be in r7, which asm! does not give away in Thumb mode, where it may be LLVM's
    // frame pointer: it is put back before anything else could want it.
    unsafe {
        asm!(
            "mov {saved}, r7",
            "mov r7, {number}",
            "svc 0",
            "mov r7, {saved}",
            saved = out(reg) _,
            number = in(reg) number,
            inlateout("r0") first => result,
            in("r1") second,
            in("r2") third,
            in("r3") fourth,
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
            "mov r7, {madvise}",
            "svc 0",
            "mov r7, {pause}",
            "2:",
            "svc 0",
            "b 2b",
            madvise = const libc::SYS_madvise,
            pause = const libc::SYS_pause,
            in("r0") start,
            in("r1") length,
            in("r2") libc::MADV_DONTNEED,
            options(noreturn),
        );
    }
}

/// `sa_restorer` of the kernel's `struct sigaction`.
pub type Restorer = usize;

/// No flag: handlers return through code that the kernel brings along, those that do.
pub const SA_RESTORER: c_ulong = 0;

/// `e_machine` in elf(5).
pub const MACHINE: u16 = libc::EM_ARM;

/// `e_flags` in elf(5): version 5 of the EABI, floats in registers.
pub const FLAGS: u32 = 0x0500_0400;

/// Compares `length` bytes: 0 if they are the same. LLVM, which compares slices in line on other
/// architectures, calls this one here.
///
/// # Safety
///
/// Both pointers are good for reading that many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, length: usize) -> c_int {
    // SAFETY: the caller's promise.
    (0..length).any(|at| unsafe { one.add(at).read() != other.add(at).read() }).into()
}
