//! The operations as plain system calls.
//!
//! What differs between architectures is described by [`Abi`] and implemented in one file for each;
//! everything else is here, once.

#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(target_arch = "arm", path = "arm.rs")]
#[cfg_attr(target_arch = "loongarch64", path = "loongarch64.rs")]
#[cfg_attr(target_arch = "powerpc64", path = "powerpc64.rs")]
#[cfg_attr(target_arch = "riscv64", path = "riscv64.rs")]
#[cfg_attr(target_arch = "s390x", path = "s390x.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
mod arch;
mod header;

use super::{Error, MAX_FD_FALLBACK};
use arch::Arch;
use core::arch::asm;
use core::ffi::{CStr, c_int, c_long, c_ulong};
use core::mem::MaybeUninit;
use core::panic::PanicInfo;
use libc::siginfo_t;

/// What differs between architectures. Each one's file implements this for its `Arch`, and defines
/// `_start`, which calls [`start`].
trait Abi {
    /// `e_machine` in elf(5).
    const MACHINE: u16;

    /// `e_flags` in elf(5).
    const FLAGS: u32 = 0;

    /// An instruction that the kernel answers with a fatal signal.
    const TRAP: u32 = 0;

    /// Flag of sigaction(2) for a handler that returns through [`Abi::restorer`]. Where it is 0, handlers
    /// return through the vDSO or other code that the kernel provides.
    const SA_RESTORER: c_ulong = 0;

    /// Number of `sa_restorer` fields in the kernel's `struct sigaction`: 1 or 0.
    const RESTORER_FIELDS: usize = 1;

    /// Address of the code that handlers return to.
    fn restorer() -> usize {
        0
    }

    /// Makes a system call, and returns what the kernel does: from -4095 to -1 it is an errno.
    ///
    /// # Safety
    ///
    /// The arguments that `number` takes are initialized and right for it.
    unsafe fn syscall(number: c_long, arguments: [MaybeUninit<usize>; 4]) -> isize;

    /// Gives up `length` bytes of memory from `start` on, madvise(2), and sleeps: pause(2), or ppoll(2)
    /// on nothing and without a timeout where an architecture has no pause. Sleeps again after EINTR;
    /// after another error it jumps to [`refused`].
    ///
    /// All of it is one block of assembly, because the compiler may keep things in that memory.
    ///
    /// # Safety
    ///
    /// Nothing that is in that memory is read again.
    unsafe fn sleep(start: usize, length: usize) -> !;
}

/// The entry point. `_start` passes the stack pointer as the kernel set it.
///
/// # Safety
///
/// `stack` points to what execve(2) left there: argc, then that many pointers to strings that end
/// in NUL and live as long as the process, then a null pointer.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    crate::run(Arguments { stack })
}

/// The command line, where the kernel put it on the stack: see [`start`].
pub struct Arguments {
    stack: *const usize,
}

impl Arguments {
    /// The first argument, if there is one.
    pub fn first(&self) -> Option<&'static [u8]> {
        // SAFETY: argc is there, and when it is over 1 also argv[1] with its string.
        unsafe { if *self.stack > 1 { Some(bytes(*self.stack.add(2) as *const u8)) } else { None } }
    }
}

/// The bytes of a C string, without its NUL.
///
/// # Safety
///
/// `string` points to bytes that end in NUL and are neither changed nor freed any more.
unsafe fn bytes(string: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: no read passes the NUL, and the slice ends before it.
    unsafe {
        // Volatile, or LLVM sees strlen in this loop and calls it.
        while string.add(length).read_volatile() != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(string, length)
    }
}

/// Calls a function that does not exist, so that the program does not link if anything can panic.
#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    unsafe extern "C" {
        safe fn something_can_panic() -> !;
    }
    something_can_panic()
}

/// Compares `length` bytes: 0 if they are the same. LLVM calls it on arm; on other architectures it
/// compares slices in line.
///
/// # Safety
///
/// Both pointers are good for reading that many bytes.
#[cfg(target_arch = "arm")]
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, length: usize) -> c_int {
    // SAFETY: the caller's promise.
    (0..length).any(|at| unsafe { one.add(at).read() != other.add(at).read() }).into()
}

/// Makes a system call: syscall(2). A result from -4095 to -1 is an errno, see intro(2).
///
/// It is inlined, so that a call is one instruction and the loading of its registers. Registers that
/// the call does not use are not loaded.
///
/// # Safety
///
/// The arguments are right for the call, pointers included.
#[inline(always)]
unsafe fn syscall<const N: usize>(number: c_long, arguments: [usize; N]) -> Result<usize, Error> {
    let register = |index| match arguments.get(index) {
        Some(&argument) => MaybeUninit::new(argument),
        None => MaybeUninit::uninit(),
    };
    // SAFETY: the caller's promise.
    let result =
        unsafe { Arch::syscall(number, [register(0), register(1), register(2), register(3)]) };
    if result < 0 { Err(Error) } else { Ok(result as usize) }
}

/// Writes `text` to descriptor `fd`: write(2).
///
/// Every error is possible (EBADF: closed, EPIPE: no reader, ENOSPC: full, EAGAIN, EIO). On stdout
/// the program reports it and fails; on stderr it goes on.
pub fn write(fd: c_int, text: &[u8]) -> Result<usize, Error> {
    // SAFETY: the kernel only reads `text`.
    unsafe { syscall(libc::SYS_write, [fd as usize, text.as_ptr() as usize, text.len()]) }
}

/// Whether a write to descriptor `fd` would have to wait: poll(2) without waiting, or ppoll(2) where an
/// architecture has no poll.
///
/// Errors: EINVAL (RLIMIT_NOFILE is 0), ENOMEM; those of a seccomp filter. They mean no: the write is
/// tried.
pub fn would_block(fd: c_int) -> bool {
    let mut stream = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let stream = &raw mut stream as usize;
    #[cfg(not(any(
        target_arch = "aarch64",
        target_arch = "loongarch64",
        target_arch = "riscv64"
    )))]
    // SAFETY: `stream` is one pollfd; the timeout is zero.
    let ready = unsafe { syscall(libc::SYS_poll, [stream, 1, 0]) };
    #[cfg(any(target_arch = "aarch64", target_arch = "loongarch64", target_arch = "riscv64"))]
    // SAFETY: `stream` is one pollfd, and `now` a timeout; there is no mask.
    let ready = unsafe {
        // LLVM would clear both words by a vector instruction, which not every processor has.
        let zero = core::hint::black_box(0);
        let mut now = libc::timespec { tv_sec: zero, tv_nsec: zero };
        syscall(libc::SYS_ppoll, [stream, 1, &raw mut now as usize, 0])
    };
    matches!(ready, Ok(0))
}

/// Exits with `code`: exit_group(2), which has no errors and does not return. If a seccomp filter refuses
/// it, the only thread exits, exit(2), or a trap kills the process: trying again would occupy a CPU.
pub fn exit(code: c_int) -> ! {
    // SAFETY: nothing needs a cleanup.
    let _ = unsafe { syscall(libc::SYS_exit_group, [code as usize]) };
    // SAFETY: as above.
    let _ = unsafe { syscall(libc::SYS_exit, [code as usize]) };
    // SAFETY: the kernel kills the process.
    unsafe { asm!(".4byte {}", const Arch::TRAP, options(noreturn)) }
}

/// The kernel's own `struct sigaction`, which is not libc's.
#[repr(C)]
struct Action {
    handler: usize,
    flags: c_ulong,
    restorer: [usize; Arch::RESTORER_FIELDS],
    mask: SignalSet,
}

/// The kernel's `sigset_t`: 64 signals in words, on every architecture here.
type SignalSet = [usize; 8 / size_of::<usize>()];

/// Sets the disposition of `signal`: rt_sigaction(2), see sigaction(2).
///
/// Errors: EINVAL (no such signal), EFAULT; with these arguments only those of a seccomp filter.
fn set_action(signal: c_int, handler: usize) -> Result<(), Error> {
    let action = Action {
        handler,
        flags: libc::SA_SIGINFO as c_ulong | Arch::SA_RESTORER,
        restorer: [Arch::restorer(); Arch::RESTORER_FIELDS],
        // Block all signals in the handler, so that messages do not interleave.
        mask: [usize::MAX; 8 / size_of::<usize>()],
    };
    let arguments = [signal as usize, &raw const action as usize, 0, size_of::<SignalSet>()];
    // SAFETY: `action` is what the kernel expects, and handlers come from [`handle`] alone.
    unsafe { syscall(libc::SYS_rt_sigaction, arguments) }.map(drop)
}

/// Calls `handler` when `signal` arrives: sigaction(2).
pub fn handle(signal: c_int, handler: extern "C" fn(c_int, &siginfo_t)) -> Result<(), Error> {
    set_action(signal, handler as usize)
}

/// Ignores `signal`: SIG_IGN in sigaction(2). With SIGPIPE ignored, a write without a reader fails with
/// EPIPE. With SIGCHLD ignored, the kernel reaps each child at the moment it exits, the adopted ones too
/// (`do_notify_parent` in its signal.c).
pub fn ignore(signal: c_int) -> Result<(), Error> {
    set_action(signal, libc::SIG_IGN)
}

/// Unblocks every signal: rt_sigprocmask(2), see sigprocmask(2).
///
/// Errors: EINVAL, EFAULT; with these arguments only those of a seccomp filter. They are ignored, because
/// usually nothing was blocked.
pub fn unblock_signals() {
    let none: SignalSet = [0; 8 / size_of::<usize>()];
    let how = libc::SIG_SETMASK as usize;
    let arguments = [how, &raw const none as usize, 0, size_of::<SignalSet>()];
    // SAFETY: `none` is a signal set that the kernel only reads.
    let _ = unsafe { syscall(libc::SYS_rt_sigprocmask, arguments) };
}

/// Reaps one zombie, if there is one: wait4(2), with `__WALL` whatever its exit signal is.
///
/// Errors: ECHILD (there is no child); like 0 (no child is dead) it means that no zombie is left.
pub fn reap() -> bool {
    let options = libc::WNOHANG | libc::__WALL;
    // SAFETY: the status and resource pointers are null, so nothing is written.
    let reaped = unsafe { syscall(libc::SYS_wait4, [usize::MAX, 0, options as usize, 0]) };
    matches!(reaped, Ok(1..))
}

/// Protects /proc/self from processes of the same user (ptrace, fd, root, mem):
/// PR_SET_DUMPABLE(2const) in prctl(2).
///
/// Errors: EINVAL (never for 0); those of a seccomp filter. Ignored: the process stays dumpable.
pub fn forbid_dump() {
    // SAFETY: a flag of this process, no pointers.
    let _ = unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0]) };
}

/// Closes every descriptor from `first` up: close_range(2).
///
/// Errors: ENOSYS (Linux before 5.9) and EPERM (an old engine's seccomp filter). Then each descriptor
/// up to the default limit is closed by close(2), whose EBADF means that it was closed already.
pub fn close_from(first: c_int) {
    // SAFETY: the program uses no descriptor but the three standard ones.
    if unsafe { syscall(libc::SYS_close_range, [first as usize, usize::MAX, 0]) }.is_err() {
        let mut fd = first as usize;
        while fd < MAX_FD_FALLBACK as usize {
            // SAFETY: as above.
            let _ = unsafe { syscall(libc::SYS_close, [fd]) };
            fd += 1;
        }
    }
}

/// Moves to `/`: chdir(2).
///
/// Errors: EACCES (no search permission on the root) and those of a broken root. Ignored: a mount
/// stays busy as long as the pod exists.
pub fn enter_root() {
    const ROOT: &CStr = c"/";
    // SAFETY: the path ends in NUL.
    let _ = unsafe { syscall(libc::SYS_chdir, [ROOT.as_ptr() as usize]) };
}

/// Whether this process is the init of its PID namespace: getpid(2), which has no errors.
pub fn is_init() -> bool {
    // SAFETY: no arguments, no effects.
    matches!(unsafe { syscall(libc::SYS_getpid, []) }, Ok(1))
}

/// Adopts orphans among the descendants: PR_SET_CHILD_SUBREAPER(2const) in prctl(2).
///
/// Errors: EINVAL (Linux before 3.4); those of a seccomp filter. Ignored: the init of the namespace
/// reaps them.
pub fn become_subreaper() {
    // SAFETY: a flag of this process, no pointers.
    let _ = unsafe { syscall(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as usize, 1]) };
}

/// The kernel does not let the process sleep. [`Abi::sleep`] jumps here by name, because an indirect
/// jump could be led elsewhere.
extern "C" fn refused() -> ! {
    crate::cannot_sleep()
}

/// Gives back the stack that is not needed any more, madvise(2), and sleeps forever: pause(2), or
/// ppoll(2) where an architecture has no pause.
///
/// The kernel puts the strings of the arguments at the top of the stack, the first one lowest, and
/// argc, argv and the rest up to two pages below; the program's own frames follow. ps(1) reads the
/// strings, so they stay. Nothing reads the pages below them any more.
///
/// Errors: EINVAL from madvise (larger pages, see below), ENOMEM, EAGAIN; those of a seccomp filter.
/// Ignored: the pages stay. From pause EINTR after a handler has returned, and then it is called again;
/// otherwise only those of a seccomp filter, and then [`refused`] is called.
pub fn sleep(arguments: Arguments) -> ! {
    const PAGE: usize = 4096;
    let stack = arguments.stack.addr();
    // SAFETY: argv[0] is there, or the null pointer after an empty argv.
    let strings = unsafe { *arguments.stack.add(1) } & !(PAGE - 1);
    // One or two pages below that of argc, and an odd multiple of 4 KiB: a kernel with larger pages
    // refuses to begin there, where it would round the length up and take the strings as well.
    let start = (stack - 2 * PAGE) & !(2 * PAGE - 1) | PAGE;
    // SAFETY: this function does not return, so nothing below the strings is read again; signal handlers
    // and `refused` run on fresh pages. The length wraps where argv is empty, and is refused.
    unsafe { Arch::sleep(start, strings.wrapping_sub(start)) }
}
