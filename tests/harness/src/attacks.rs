//! What a hostile container tries on PID 1 of a pod whose PID namespace it shares, and what happens:
//! the one table of attacks. `tests/attacks.rs` tries each row, and `docs/security.md` shows them.

use crate::helper::{spawn, spawn_with};
use crate::proc::{LIMITS, set_limit, state, wait_until};
use anyhow::{Result, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::mount::{MsFlags, mount};
use nix::mqueue::{MQ_OFlag, MqAttr, mq_open, mq_send, mq_unlink};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::stat::Mode;
use nix::sys::timer::Timer;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::ClockId;
use nix::unistd::{Pid, alarm, getpgid, getppid, getuid, setpgid, setsid, tcsetpgrp};
use rustix::process::{self, PidfdFlags, PidfdGetfdFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::thread;

/// A row of the table.
pub struct Attack {
    /// Name of the trial.
    pub name: &'static str,
    /// What is tried, in Markdown.
    pub attempt: &'static str,
    /// Tries it on a process, and prints what it has learned or changed, if that is worth a word.
    pub run: fn(Pid) -> io::Result<()>,
    /// Whether only a process itself is allowed to do this, so that the control has to be that one.
    pub on_itself: bool,
    user: Outcome,
    root: Outcome,
    nested: Outcome,
}

/// What happens after an attempt, in Markdown: one of these constants, or what the attempt prints if it
/// is done.
pub type Outcome = &'static str;

/// The kernel refuses it.
pub const DENIED: Outcome = "refused";
/// The kernel accepts it and does nothing: PID 1 is not woken.
pub const DROPPED: Outcome = "nothing";
/// PID 1 is woken, and sleeps on.
pub const IGNORED: Outcome = "ignored";
/// The kernel sends a signal, but not to PID 1.
pub const MISSES: Outcome = "never reaches it";
/// It ends the pod.
pub const ENDS: Outcome = "**ends the pod**, exit code 0";

/// Who attacks: PID 1 runs as `pod_user`, and the attacker has become what `become_attacker` makes it.
pub struct Attacker {
    /// Name in the names of the trials.
    pub name: &'static str,
    /// User and group of PID 1.
    pub pod_user: u32,
    /// Turns root of the sandbox into the attacker.
    pub become_attacker: fn(u32) -> Result<()>,
    /// Column of the table.
    pub outcome: fn(&Attack) -> Outcome,
}

/// Every attacker.
pub const ATTACKERS: [Attacker; 6] = [
    attacker("user", 65535, become_user_without_capabilities, |attack| attack.user),
    attacker("user_1000", 1000, become_user_without_capabilities, |attack| attack.user),
    attacker("user_0", 0, become_user_without_capabilities, Attack::outcome_for_user_0),
    attacker("root", 65535, become_container_root, |attack| attack.root),
    attacker("root_of_0", 0, become_container_root, Attack::outcome_for_user_0),
    attacker("nested", 65535, become_nested_root, |attack| attack.nested),
];

const fn attacker(
    name: &'static str,
    pod_user: u32,
    become_attacker: fn(u32) -> Result<()>,
    outcome: fn(&Attack) -> Outcome,
) -> Attacker {
    Attacker { name, pod_user, become_attacker, outcome }
}

const ZERO_LIMITS: Outcome = "the limits are 0; PID 1 needs none of them";
const FIRST_KILLED: Outcome = "it is 1000: **PID 1 is killed first where memory runs out**";
const STANDARD_STREAMS: Outcome = "sees that 0, 1 and 2 are open";

/// Every attack.
pub const ATTACKS: &[Attack] = &[
    attack("ptrace_attach", "`ptrace`, attach", |pid| Ok(ptrace::attach(pid)?), DENIED, DENIED),
    attack("ptrace_seize", "`ptrace`, seize", ptrace_seize, DENIED, DENIED),
    attack("vm_read", "`process_vm_readv`", vm_read, DENIED, DENIED),
    attack("vm_write", "`process_vm_writev`", vm_write, DENIED, DENIED),
    attack("mem", "open `/proc/1/mem` for writing", |pid| write_to(pid, "mem"), DENIED, DENIED),
    attack("environ", "read `/proc/1/environ`", |pid| read(pid, "environ"), DENIED, DENIED),
    attack("maps", "read `/proc/1/maps`", |pid| read(pid, "maps"), DENIED, DENIED),
    attack("fd_list", "list `/proc/1/fd`", list_descriptors, DENIED, STANDARD_STREAMS),
    attack("fd", "open `/proc/1/fd/*`", |pid| open_any(pid, "fd"), DENIED, DENIED),
    attack("pidfd_getfd", "`pidfd_getfd`", pidfd_getfd, DENIED, DENIED),
    attack("kcmp", "`kcmp`", kcmp, DENIED, DENIED),
    attack("root", "enter `/proc/1/root`", |pid| names(pid, "root/").map(drop), DENIED, DENIED),
    attack("cwd", "enter `/proc/1/cwd`", |pid| names(pid, "cwd/").map(drop), DENIED, DENIED),
    attack("exe", "open `/proc/1/exe`, to write or to read", exe, DENIED, DENIED),
    attack("ns", "open `/proc/1/ns/*`", |pid| open_any(pid, "ns"), DENIED, DENIED),
    attack("prlimit", "`prlimit`: every limit but CPU time to 0", prlimit, ZERO_LIMITS, DENIED),
    attack("oom_score_adj", "`/proc/1/oom_score_adj` to 1000", oom_adjust, DENIED, FIRST_KILLED),
    attack("sigkill", "SIGKILL", |pid| send(pid, libc::SIGKILL), DROPPED, DROPPED),
    attack("sigstop", "SIGSTOP", |pid| send(pid, libc::SIGSTOP), DROPPED, DROPPED),
    attack("others", "each signal but SIGTERM, SIGINT", |pid| others(pid, send), DROPPED, DROPPED),
    attack("others_queued", "the same, forged", |pid| others(pid, queue), DROPPED, DROPPED),
    attack("sigterm", "SIGTERM by `kill`", |pid| send(pid, libc::SIGTERM), IGNORED, IGNORED),
    attack("sigint", "SIGINT by `kill`", |pid| send(pid, libc::SIGINT), IGNORED, IGNORED),
    attack("kill_all", "`kill` of all processes", kill_all, DROPPED, DROPPED),
    attack("kill_group", "`kill` of its process group", kill_group, DROPPED, DROPPED),
    attack("tgkill", "`tgkill`", tgkill, IGNORED, IGNORED),
    attack("pidfd", "`pidfd_send_signal`", pidfd, IGNORED, IGNORED),
    attack("pidfd_siginfo", "the same with a forged siginfo", pidfd_siginfo, IGNORED, IGNORED),
    attack("pidfd_of_parent", "the same on a parent's pidfd", pidfd_of_parent, IGNORED, IGNORED)
        .by_nested(DENIED),
    attack("forged", "`rt_sigqueueinfo`, each negative code", forged, IGNORED, IGNORED),
    attack("forged_others", "the same with any other code", forged_others, DENIED, DENIED)
        .on_itself(),
    attack("lost_siginfo", "the same, RLIMIT_SIGPENDING being 0", lost_siginfo, ENDS, DENIED),
    attack("sigio", "`F_SETOWN`, `F_SETSIG` and input", sigio, IGNORED, IGNORED),
    attack("lease", "`F_SETLEASE`, broken", lease, IGNORED, IGNORED),
    attack("dnotify", "`F_NOTIFY`", dnotify, IGNORED, IGNORED),
    attack("exit_signal", "`clone` with SIGTERM as exit signal", exit_signal, MISSES, MISSES),
    attack("timer", "`timer_create`", timer, DENIED, DENIED).on_itself(),
    attack("pdeathsig", "`PR_SET_PDEATHSIG`", pdeathsig, MISSES, MISSES),
    attack("mq_notify", "`mq_notify`", mq_notify, MISSES, MISSES),
    attack("terminal", "Ctrl-C and hang-up of a terminal", terminal, MISSES, MISSES),
];

const fn attack(
    name: &'static str,
    attempt: &'static str,
    run: fn(Pid) -> io::Result<()>,
    user: Outcome,
    root: Outcome,
) -> Attack {
    Attack { name, attempt, run, on_itself: false, user, root, nested: user }
}

impl Attack {
    const fn on_itself(self) -> Self {
        Self { on_itself: true, ..self }
    }

    const fn by_nested(self, nested: Outcome) -> Self {
        Self { nested, ..self }
    }

    /// User 0 is the pod's user and root at the same time.
    fn outcome_for_user_0(&self) -> Outcome {
        if self.user == DENIED { self.root } else { self.user }
    }
}

/// The default capabilities of Docker, Podman and containerd's CRI plugin, or more.
const DEFAULTS: &str = "CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL \
    CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID \
    CAP_SYS_CHROOT";

/// Becomes the pod's user, without capabilities.
fn become_user_without_capabilities(user: u32) -> Result<()> {
    crate::sandbox::become_user(user)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// Becomes root with the capabilities that a container engine leaves to it.
pub fn become_container_root(_: u32) -> Result<()> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let defaults = DEFAULTS.split(' ').map(str::parse).collect::<Result<CapsHashSet, _>>()?;
    let keep: CapsHashSet = defaults.intersection(&permitted).copied().collect();
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::all().difference(&keep) {
            let _ = caps::drop(None, CapSet::Bounding, *capability);
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &keep)?;
    }
    Ok(())
}

/// Becomes the pod's user, and then root of a new user namespace.
fn become_nested_root(user: u32) -> Result<()> {
    become_user_without_capabilities(user)?;
    let user = getuid();
    // A process that is not dumpable may not write its map.
    set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    Ok(fs::write("/proc/self/uid_map", format!("0 {user} 1"))?)
}

/// Moves the children of this process to a new PID namespace. The first is its init.
pub fn nest_children() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let init = spawn(park)?;
    wait_until("the nested init sleeps", || state(init) == Some('S'))
}

/// Never returns. A process that does this is a control: like PID 1, but unprotected.
pub fn park() -> Result<()> {
    set_dumpable(true)?;
    // It would keep the attacker's stdout open.
    set_pdeathsig(Signal::SIGKILL)?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    SigSet::empty().thread_set_mask()?;
    loop {
        thread::park();
    }
}

/// Prepares this process for the attacks while it still has all capabilities: some send signals to
/// its process group, one needs terminals, and one a file.
pub fn prepare() -> Result<()> {
    let init = fs::read_to_string("/proc/1/comm")?;
    ensure!(init == "pause\n", "attacks are for sandboxes, but PID 1 is {init}");
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    fs::create_dir("/pts")?;
    fs::create_dir("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o777))?;
    let options = Some("newinstance,ptmxmode=0666");
    mount(None::<&str>, "/pts", Some("devpts"), MsFlags::empty(), options)?;
    Ok(SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]).thread_block()?)
}

// Memory and files.

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
    // EFAULT means that the attacker has access, but the variable is read-only.
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

/// Lists a folder of the process, and returns the sorted names.
fn names(pid: Pid, folder: &str) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/{folder}"))?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into());
    let mut names = entries.map(name).collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn list_descriptors(pid: Pid) -> io::Result<()> {
    let names = names(pid, "fd")?;
    let (last, others) = names.split_last().ok_or(io::ErrorKind::NotFound)?;
    print!("sees that {} and {last} are open", others.join(", "));
    Ok(())
}

/// Opens each link in a folder of the process; refused if that is so for all of them.
fn open_any(pid: Pid, folder: &str) -> io::Result<()> {
    // PID 1 may not let itself be listed, but has the same namespaces, and at least these descriptors.
    let mut result = Err(io::ErrorKind::NotFound.into());
    for name in names(Pid::this(), folder)? {
        match File::open(format!("/proc/{pid}/{folder}/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => result = result.or(Err(error)),
            Ok(_) => result = Ok(()),
        }
    }
    result
}

fn exe(pid: Pid) -> io::Result<()> {
    write_to(pid, "exe").or_else(|_| read(pid, "exe"))
}

fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    let pid = process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
    Ok(process::pidfd_open(pid, PidfdFlags::empty())?)
}

fn pidfd_getfd(pid: Pid) -> io::Result<()> {
    process::pidfd_getfd(pidfd_open(pid)?, 0, PidfdGetfdFlags::empty())?;
    Ok(())
}

fn kcmp(pid: Pid) -> io::Result<()> {
    const KCMP_VM: c_int = 1;
    let this = Pid::this().as_raw();
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid.as_raw(), this, KCMP_VM, 0, 0) })?;
    Ok(())
}

fn prlimit(pid: Pid) -> io::Result<()> {
    // Without CPU time it is killed, if a tick of the kernel's clock meets it while it exits.
    for resource in LIMITS.filter(|&resource| resource != libc::RLIMIT_CPU) {
        set_limit(pid, resource, 0)?;
        if set_limit(pid, resource, 0)? != 0 {
            return Err(io::Error::other("the limit is not 0"));
        }
    }
    print!("the limits are 0; PID 1 needs none of them");
    Ok(())
}

fn oom_adjust(pid: Pid) -> io::Result<()> {
    let file = format!("/proc/{pid}/oom_score_adj");
    fs::write(&file, "1000")?;
    let now = fs::read_to_string(file)?;
    print!("it is {}: **PID 1 is killed first where memory runs out**", now.trim_end());
    Ok(())
}

// Signals.

fn send(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: numbers only; nix has no realtime signals.
    Ok(Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)?)
}

fn siginfo(signal: c_int, code: c_int) -> libc::siginfo_t {
    // SAFETY: all bytes zero is a siginfo_t. So the sender's PID is 0.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    (info.si_signo, info.si_code) = (signal, code);
    info
}

fn queue_code(pid: Pid, signal: c_int, code: c_int) -> io::Result<()> {
    let (call, info) = (libc::SYS_rt_sigqueueinfo, siginfo(signal, code));
    // SAFETY: the kernel reads a siginfo_t, and gets one.
    Errno::result(unsafe { libc::syscall(call, pid.as_raw(), signal, &raw const info) })?;
    Ok(())
}

fn queue(pid: Pid, signal: c_int) -> io::Result<()> {
    queue_code(pid, signal, libc::SI_QUEUE)
}

/// Sends all signals but those that have a handler.
fn others(pid: Pid, send: fn(Pid, c_int) -> io::Result<()>) -> io::Result<()> {
    let mut signals = (1..=64).filter(|signal| ![libc::SIGTERM, libc::SIGINT].contains(signal));
    signals.try_for_each(|signal| send(pid, signal))
}

fn kill_all(_: Pid) -> io::Result<()> {
    send(Pid::from_raw(-1), libc::SIGTERM)
}

fn kill_group(pid: Pid) -> io::Result<()> {
    // PID 1's group may have no number in this namespace. Then this is 0, and means the caller's.
    send(Pid::from_raw(-getpgid(Some(pid))?.as_raw()), libc::SIGTERM)
}

fn tgkill(pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw();
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGTERM) })?;
    Ok(())
}

fn pidfd(pid: Pid) -> io::Result<()> {
    Ok(process::pidfd_send_signal(pidfd_open(pid)?, process::Signal::TERM)?)
}

fn pidfd_siginfo(pid: Pid) -> io::Result<()> {
    let (call, pidfd) = (libc::SYS_pidfd_send_signal, pidfd_open(pid)?);
    let (pidfd, info) = (pidfd.as_raw_fd(), siginfo(libc::SIGTERM, libc::SI_QUEUE));
    // SAFETY: the kernel reads a siginfo_t, and gets one.
    Errno::result(unsafe { libc::syscall(call, pidfd, libc::SIGTERM, &raw const info, 0) })?;
    Ok(())
}

fn pidfd_of_parent(pid: Pid) -> io::Result<()> {
    let pidfd = pidfd_open(pid)?;
    in_child(|| Ok(process::pidfd_send_signal(&pidfd, process::Signal::TERM)?))
}

/// Tries every code of `siginfo_t` that any process may invent.
fn forged(pid: Pid) -> io::Result<()> {
    let mut codes = (-128..0).chain([c_int::MIN]).filter(|&code| code != libc::SI_TKILL);
    codes.try_for_each(|code| queue_code(pid, libc::SIGTERM, code))
}

/// Succeeds if the kernel takes any of these codes.
fn forged_others(pid: Pid) -> io::Result<()> {
    let mut codes = [libc::SI_USER, libc::SI_KERNEL, libc::SI_TKILL].into_iter().chain(1..10);
    let is_taken = codes.any(|code| queue_code(pid, libc::SIGTERM, code).is_ok());
    if is_taken { Ok(()) } else { Err(Errno::EPERM.into()) }
}

/// The kernel forgets who sent a signal where the limit of queued signals is reached.
fn lost_siginfo(pid: Pid) -> io::Result<()> {
    set_limit(pid, libc::RLIMIT_SIGPENDING, 0)?;
    queue(pid, libc::SIGTERM)
}

/// fcntl(2) with a command that takes a number.
fn control(fd: &impl AsRawFd, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: numbers only.
    Ok(Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) }).map(drop)?)
}

/// Lets the kernel send SIGTERM to the process about events of a descriptor.
fn own(fd: &impl AsRawFd, pid: Pid) -> io::Result<()> {
    const F_SETSIG: c_int = 10;
    control(fd, libc::F_SETOWN, pid.as_raw())?;
    control(fd, F_SETSIG, libc::SIGTERM)
}

fn sigio(pid: Pid) -> io::Result<()> {
    let (socket, mut other) = UnixStream::pair()?;
    own(&socket, pid)?;
    control(&socket, libc::F_SETFL, libc::O_ASYNC)?;
    in_child(|| other.write_all(&[0]))
}

fn lease(pid: Pid) -> io::Result<()> {
    let path = "/tmp/lease";
    let file = File::create(path)?;
    own(&file, pid)?;
    control(&file, libc::F_SETLEASE, libc::F_WRLCK)?;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    match options.read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => Err(io::Error::other(format!("nothing broke the lease: {other:?}"))),
    }
}

fn dnotify(pid: Pid) -> io::Result<()> {
    const DN_ACCESS: c_int = 1;
    let folder = File::open("/")?;
    own(&folder, pid)?;
    control(&folder, libc::F_NOTIFY, DN_ACCESS)?;
    fs::read("/pause").map(drop)
}

// Signals that cannot be aimed at another process: these attempts check that there was one.

/// Runs a part of an attempt in a child process.
fn in_child(run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child =
        spawn(|| exit(run().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::ENOSYS))));
    match waitpid(child.map_err(io::Error::other)?, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        status => Err(io::Error::other(format!("{status:?}"))),
    }
}

/// Takes a signal that is blocked, and waits for it if necessary.
fn expect(signal: Signal) -> io::Result<()> {
    // If it does not come, this process dies of another one.
    alarm::set(10);
    SigSet::from(signal).wait()?;
    alarm::cancel();
    Ok(())
}

fn exit_signal(_: Pid) -> io::Result<()> {
    let (mut exited, writer) = io::pipe()?;
    let spawn = |flags, child: &dyn Fn() -> Result<()>| {
        spawn_with(flags, Some(libc::SIGTERM), child).map_err(io::Error::other)
    };
    in_child(|| {
        spawn(CloneFlags::empty(), &|| Ok(()))?;
        expect(Signal::SIGTERM)?;
        // PID 1 adopts the next one, which makes another child of PID 1.
        let parent = Pid::this();
        let orphan = || {
            while getppid() == parent {
                thread::yield_now();
            }
            Ok(spawn(CloneFlags::CLONE_PARENT, &|| Ok(())).map(drop)?)
        };
        spawn(CloneFlags::empty(), &orphan).map(drop)
    })?;
    drop(writer);
    exited.read_to_end(&mut Vec::new()).map(drop)
}

fn timer(pid: Pid) -> io::Result<()> {
    let thread_id = pid.as_raw();
    let notify = SigevNotify::SigevThreadId { signal: Signal::SIGTERM, thread_id, si_value: 0 };
    Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
    Ok(())
}

fn pdeathsig(_: Pid) -> io::Result<()> {
    let ((mut received, writer), (mut is_ready, ready)) = (io::pipe()?, io::pipe()?);
    in_child(|| {
        let orphan = || {
            set_pdeathsig(Signal::SIGTERM)?;
            (&ready).write_all(&[0])?;
            expect(Signal::SIGTERM)?;
            Ok((&writer).write_all(&[0])?)
        };
        spawn(orphan).map_err(io::Error::other)?;
        is_ready.read_exact(&mut [0])
    })?;
    drop(writer);
    received.read_exact(&mut [0])
}

fn mq_notify(_: Pid) -> io::Result<()> {
    let flags = MQ_OFlag::O_RDWR | MQ_OFlag::O_CREAT;
    let attributes = MqAttr::new(0, 1, 1, 0);
    let queue = mq_open("/pause", flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes))?;
    let notify = SigevNotify::SigevSignal { signal: Signal::SIGTERM, si_value: 0 };
    // SAFETY: the call reads a sigevent, and gets one.
    Errno::result(unsafe {
        libc::mq_notify(queue.as_raw_fd(), &SigEvent::new(notify).sigevent())
    })?;
    mq_send(&queue, b"", 0)?;
    mq_unlink("/pause")?;
    expect(Signal::SIGTERM)
}

fn terminal(pid: Pid) -> io::Result<()> {
    in_child(|| {
        setsid()?;
        let mut master = File::options().read(true).write(true).open("/pts/ptmx")?;
        unlockpt(&master)?;
        // This makes it the terminal of the new session.
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR)?;
        if tcsetpgrp(slave, getpgid(Some(pid))?).is_ok() {
            return Err(io::Error::other("the process is in the foreground of another terminal"));
        }
        master.write_all(b"\x03")?;
        expect(Signal::SIGINT)?;
        drop(master);
        expect(Signal::SIGHUP)
    })
}
