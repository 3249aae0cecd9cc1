//! What a hostile container tries on PID 1 of a pod whose PID namespace it shares, and what comes of
//! it. This table is the one place that tells it: `tests/attacks.rs` tries every row, and
//! `docs/security.md` shows them.

use crate::sandbox::become_user;
use Outcome::{Denied, Ends, Harmless, Ignored};
use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::sys::prctl::set_dumpable;
use nix::sys::ptrace::{self, Options};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// A row of the table.
pub struct Attack {
    /// What the trial is called.
    pub name: &'static str,
    /// What is tried, in Markdown.
    pub attempt: &'static str,
    /// Tries it on a process.
    pub run: fn(Pid) -> io::Result<()>,
    /// What comes of it where user 65535 tries, without capabilities.
    pub user: Outcome,
    /// What comes of it where root tries, with an engine's default capabilities.
    pub root: Outcome,
}

/// What comes of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel refuses.
    Denied,
    /// The kernel says yes and does nothing.
    Ignored,
    /// The kernel does it. Nothing is learned or changed by that, but for what is told here.
    Harmless(&'static str),
    /// It ends the pod, as any SIGTERM does.
    Ends,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Denied => "refused",
            Ignored => "nothing",
            Harmless(effect) => effect,
            Ends => "**ends the pod**, exit code 0",
        })
    }
}

/// All attempts.
pub const ATTACKS: &[Attack] = &[
    attack("ptrace_attach", "`ptrace`, attach", ptrace_attach, Denied, Denied),
    attack("ptrace_seize", "`ptrace`, seize", ptrace_seize, Denied, Denied),
    attack("vm_read", "`process_vm_readv`", vm_read, Denied, Denied),
    attack("vm_write", "`process_vm_writev`", vm_write, Denied, Denied),
    attack("mem", "open `/proc/1/mem` for writing", |pid| write_to(pid, "mem"), Denied, Denied),
    attack("environ", "read `/proc/1/environ`", |pid| read(pid, "environ"), Denied, Denied),
    attack("maps", "read `/proc/1/maps`", |pid| read(pid, "maps"), Denied, Denied),
    attack(
        "fd_list",
        "list `/proc/1/fd`",
        |pid| list(pid, "fd"),
        Denied,
        Harmless("sees that 0, 1 and 2 are open"),
    ),
    attack("fd", "open `/proc/1/fd/*`", |pid| follow(pid, "fd/0"), Denied, Denied),
    attack("pidfd_getfd", "`pidfd_getfd`", pidfd_getfd, Denied, Denied),
    attack("kcmp", "`kcmp`", kcmp, Denied, Denied),
    attack("root", "enter `/proc/1/root`", |pid| list(pid, "root/"), Denied, Denied),
    attack("cwd", "enter `/proc/1/cwd`", |pid| list(pid, "cwd/"), Denied, Denied),
    attack("exe", "open `/proc/1/exe`, to write or to read", exe, Denied, Denied),
    attack("ns", "open `/proc/1/ns/*`", |pid| follow(pid, "ns/net"), Denied, Denied),
    attack(
        "prlimit",
        "`prlimit`, every limit but CPU time to 0",
        prlimit,
        Harmless("done; it needs nothing that is limited"),
        Denied,
    ),
    attack(
        "oom_score_adj",
        "write to `/proc/1/oom_score_adj`",
        oom_score_adj,
        Denied,
        Harmless("done: **where memory runs out the pod is the first to be killed**"),
    ),
    attack("sigkill", "SIGKILL", |pid| send(pid, libc::SIGKILL), Ignored, Ignored),
    attack("sigstop", "SIGSTOP", |pid| send(pid, libc::SIGSTOP), Ignored, Ignored),
    attack("signals", "every signal but SIGTERM, SIGINT", other_signals, Ignored, Ignored),
    attack("forged_signals", "the same by `rt_sigqueueinfo`, forged", forged, Ignored, Ignored),
    attack("sigterm", "SIGTERM", |pid| send(pid, libc::SIGTERM), Ends, Ends),
    attack("sigint", "SIGINT", |pid| send(pid, libc::SIGINT), Ends, Ends),
    attack(
        "forged_sigterm",
        "SIGTERM by `rt_sigqueueinfo`, forged",
        |pid| queue(pid, libc::SIGTERM),
        Ends,
        Ends,
    ),
];

const fn attack(
    name: &'static str,
    attempt: &'static str,
    run: fn(Pid) -> io::Result<()>,
    user: Outcome,
    root: Outcome,
) -> Attack {
    Attack { name, attempt, run, user, root }
}

/// The capabilities that Docker, Podman and containerd's CRI plugin give by default, or more.
const DEFAULTS: [Capability; 14] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// Becomes the user of PID 1, without capabilities.
///
/// # Errors
///
/// When this process may not.
pub fn become_same_user() -> Result<()> {
    become_user()?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// Becomes root as a container engine makes it.
///
/// # Errors
///
/// When this process is not root.
pub fn become_container_root() -> Result<()> {
    let have = caps::read(None, CapSet::Permitted)?;
    let keep = DEFAULTS.into_iter().filter(|capability| have.contains(capability)).collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &keep)?;
    }
    Ok(())
}

/// Lets others of the same user look into this process, as into any that has not changed its user.
///
/// # Errors
///
/// When the kernel does not know how.
pub fn unprotect() -> Result<()> {
    set_dumpable(true).context("cannot become dumpable")
}

// The attempts.

fn ptrace_attach(pid: Pid) -> io::Result<()> {
    Ok(ptrace::attach(pid)?)
}

fn ptrace_seize(pid: Pid) -> io::Result<()> {
    Ok(ptrace::seize(pid, Options::empty())?)
}

/// A variable that a process forked from this one has at the same address.
static TARGET: u8 = 1;

fn remote() -> RemoteIoVec {
    RemoteIoVec { base: &raw const TARGET as usize, len: 1 }
}

fn vm_read(pid: Pid) -> io::Result<()> {
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut [0])], &[remote()])?;
    Ok(())
}

fn vm_write(pid: Pid) -> io::Result<()> {
    // What cannot be written to was come by, all the same.
    match process_vm_writev(pid, &[IoSlice::new(&[0])], &[remote()]) {
        Ok(_) | Err(Errno::EFAULT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn write_to(pid: Pid, file: &str) -> io::Result<()> {
    File::options().write(true).open(format!("/proc/{pid}/{file}")).map(drop)
}

fn read(pid: Pid, file: &str) -> io::Result<()> {
    fs::read(format!("/proc/{pid}/{file}")).map(drop)
}

fn list(pid: Pid, folder: &str) -> io::Result<()> {
    fs::read_dir(format!("/proc/{pid}/{folder}")).map(drop)
}

fn follow(pid: Pid, link: &str) -> io::Result<()> {
    File::open(format!("/proc/{pid}/{link}")).map(drop)
}

fn exe(pid: Pid) -> io::Result<()> {
    write_to(pid, "exe").or_else(|_| follow(pid, "exe"))
}

/// The result of a system call as libc gives it.
fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pidfd_getfd(pid: Pid) -> io::Result<()> {
    // SAFETY: numbers only.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, 0, 0) }).map(drop)
}

fn kcmp(pid: Pid) -> io::Result<()> {
    const KCMP_VM: c_int = 1;
    let this = Pid::this().as_raw();
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_kcmp, pid.as_raw(), this, KCMP_VM, 0, 0) }).map(drop)
}

fn prlimit(pid: Pid) -> io::Result<()> {
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // (Without CPU time it is killed, if a tick of the kernel's clock meets it while it exits.)
    for resource in (0..16).filter(|&resource| resource != libc::RLIMIT_CPU) {
        // SAFETY: the new limit is read, and the old one is not asked for.
        check(unsafe { libc::prlimit(pid.as_raw(), resource, &nothing, null_mut()) }.into())?;
    }
    Ok(())
}

fn oom_score_adj(pid: Pid) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")
}

fn send(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: numbers only; nix has no realtime signals.
    check(unsafe { libc::kill(pid.as_raw(), signal) }.into()).map(drop)
}

/// All signals but those that are to end PID 1.
fn signals() -> impl Iterator<Item = c_int> {
    (1..=64).filter(|signal| ![libc::SIGTERM, libc::SIGINT].contains(signal))
}

fn other_signals(pid: Pid) -> io::Result<()> {
    signals().try_for_each(|signal| send(pid, signal))
}

/// Sends a signal that claims to be process 0's. (One that claims to be the kernel's, by its code, is
/// refused to everybody.)
fn queue(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: all bytes zero is a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
    (info.si_signo, info.si_code) = (signal, libc::SI_QUEUE);
    let info: *const libc::siginfo_t = &info;
    // SAFETY: the kernel reads a siginfo_t, and gets one.
    check(unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, pid.as_raw(), signal, info) })?;
    Ok(())
}

fn forged(pid: Pid) -> io::Result<()> {
    signals().try_for_each(|signal| queue(pid, signal))
}
