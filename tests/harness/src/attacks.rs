//! What a hostile container tries on PID 1 of a pod whose PID namespace it shares, and what happens:
//! the one table of attacks. `tests/attacks.rs` tries each row, and `docs/security.md` shows them.

use crate::helper::spawn;
use crate::proc::{state, wait_until};
use Outcome::{Denied, Done, Dropped, Ends, Ignored, Misses};
use anyhow::{Result, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getppid, getuid, setpgid, setsid};
use rustix::process::{self, PidfdFlags, PidfdGetfdFlags};
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::ptr::{null, null_mut};
use std::thread;

/// What an attempt has learned or changed, if it is not worth a word: empty.
type Effect = io::Result<String>;

const DONE: String = String::new();

/// A row of the table.
pub struct Attack {
    /// Name of the trial.
    pub name: &'static str,
    /// What is tried, in Markdown.
    pub attempt: &'static str,
    /// Tries it on a process.
    pub run: fn(Pid) -> Effect,
    /// Whether only a process itself is allowed to do this, so that the control has to be that one.
    pub on_itself: bool,
    user: Outcome,
    root: Outcome,
    nested: Outcome,
}

/// What happens after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel refuses it.
    Denied,
    /// The kernel accepts it and does nothing: PID 1 is not woken.
    Dropped,
    /// PID 1 is woken, and sleeps on.
    Ignored,
    /// The kernel sends a signal, but not to PID 1.
    Misses,
    /// It is done, with this effect.
    Done(&'static str),
    /// It ends the pod.
    Ends,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Denied => "refused",
            Dropped => "nothing",
            Ignored => "ignored",
            Misses => "never reaches it",
            Done(effect) => effect,
            Ends => "**ends the pod**, exit code 0",
        })
    }
}

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

const ZERO_LIMITS: Outcome = Done("the limits are 0; PID 1 needs none of them");
const FIRST_KILLED: Outcome = Done("it is 1000: **PID 1 is killed first where memory runs out**");
const STANDARD_STREAMS: Outcome = Done("sees that 0, 1 and 2 are open");

/// Every attack.
pub const ATTACKS: &[Attack] = &[
    attack("ptrace_attach", "`ptrace`, attach", ptrace_attach, Denied, Denied),
    attack("ptrace_seize", "`ptrace`, seize", ptrace_seize, Denied, Denied),
    attack("vm_read", "`process_vm_readv`", vm_read, Denied, Denied),
    attack("vm_write", "`process_vm_writev`", vm_write, Denied, Denied),
    attack("mem", "open `/proc/1/mem` for writing", |pid| write_to(pid, "mem"), Denied, Denied),
    attack("environ", "read `/proc/1/environ`", |pid| read(pid, "environ"), Denied, Denied),
    attack("maps", "read `/proc/1/maps`", |pid| read(pid, "maps"), Denied, Denied),
    attack("fd_list", "list `/proc/1/fd`", list_descriptors, Denied, STANDARD_STREAMS),
    attack("fd", "open `/proc/1/fd/*`", |pid| open_any(pid, "fd"), Denied, Denied),
    attack("pidfd_getfd", "`pidfd_getfd`", pidfd_getfd, Denied, Denied),
    attack("kcmp", "`kcmp`", kcmp, Denied, Denied),
    attack("root", "enter `/proc/1/root`", |pid| list(pid, "root/"), Denied, Denied),
    attack("cwd", "enter `/proc/1/cwd`", |pid| list(pid, "cwd/"), Denied, Denied),
    attack("exe", "open `/proc/1/exe`, to write or to read", exe, Denied, Denied),
    attack("ns", "open `/proc/1/ns/*`", |pid| open_any(pid, "ns"), Denied, Denied),
    attack("prlimit", "`prlimit`: every limit but CPU time to 0", prlimit, ZERO_LIMITS, Denied),
    attack("oom_score_adj", "`/proc/1/oom_score_adj` to 1000", oom_adjust, Denied, FIRST_KILLED),
    attack("sigkill", "SIGKILL", |pid| send(pid, libc::SIGKILL), Dropped, Dropped),
    attack("sigstop", "SIGSTOP", |pid| send(pid, libc::SIGSTOP), Dropped, Dropped),
    attack("others", "each signal but SIGTERM, SIGINT", |pid| others(pid, send), Dropped, Dropped),
    attack("others_queued", "the same, forged", |pid| others(pid, queue), Dropped, Dropped),
    attack("sigterm", "SIGTERM by `kill`", |pid| send(pid, libc::SIGTERM), Ignored, Ignored),
    attack("sigint", "SIGINT by `kill`", |pid| send(pid, libc::SIGINT), Ignored, Ignored),
    attack("kill_all", "`kill` of all processes", kill_all, Dropped, Dropped),
    attack("kill_group", "`kill` of its process group", kill_group, Dropped, Dropped),
    attack("tgkill", "`tgkill`", tgkill, Ignored, Ignored),
    attack("pidfd", "`pidfd_send_signal`", pidfd, Ignored, Ignored),
    attack("pidfd_siginfo", "the same with a forged siginfo", pidfd_siginfo, Ignored, Ignored),
    attack("pidfd_of_parent", "the same on a parent's pidfd", pidfd_of_parent, Ignored, Ignored)
        .by_nested(Denied),
    attack("forged", "`rt_sigqueueinfo`, each negative code", forged, Ignored, Ignored),
    attack("forged_others", "the same with any other code", forged_others, Denied, Denied)
        .on_itself(),
    attack("lost_siginfo", "the same, RLIMIT_SIGPENDING being 0", lost_siginfo, Ends, Denied),
    attack("sigio", "`F_SETOWN`, `F_SETSIG` and input", sigio, Ignored, Ignored),
    attack("lease", "`F_SETLEASE`, broken", lease, Ignored, Ignored),
    attack("dnotify", "`F_NOTIFY`", dnotify, Ignored, Ignored),
    attack("exit_signal", "`clone` with SIGTERM as exit signal", exit_signal, Misses, Misses),
    attack("timer", "`timer_create`", timer, Denied, Denied).on_itself(),
    attack("pdeathsig", "`PR_SET_PDEATHSIG`", pdeathsig, Misses, Misses),
    attack("mq_notify", "`mq_notify`", mq_notify, Misses, Misses),
    attack("terminal", "Ctrl-C and hang-up of a terminal", terminal, Misses, Misses),
];

const fn attack(
    name: &'static str,
    attempt: &'static str,
    run: fn(Pid) -> Effect,
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
        if self.user == Denied { self.root } else { self.user }
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

/// Makes this process an unprotected one, like any that has not changed its user.
pub fn unprotect() -> Result<()> {
    Ok(set_dumpable(true)?)
}

/// Never returns. A process that does this is a control: like PID 1, but unprotected.
pub fn park() -> Result<()> {
    unprotect()?;
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

fn ptrace_attach(pid: Pid) -> Effect {
    Ok(ptrace::attach(pid).map(|()| DONE)?)
}

fn ptrace_seize(pid: Pid) -> Effect {
    Ok(ptrace::seize(pid, Options::empty()).map(|()| DONE)?)
}

/// A variable that a process forked from this one has at the same address.
static TARGET: u8 = 1;

fn remote() -> RemoteIoVec {
    RemoteIoVec { base: &raw const TARGET as usize, len: 1 }
}

fn vm_read(pid: Pid) -> Effect {
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut [0])], &[remote()])?;
    Ok(DONE)
}

fn vm_write(pid: Pid) -> Effect {
    // EFAULT means that the attacker has access, but the variable is read-only.
    match process_vm_writev(pid, &[IoSlice::new(&[0])], &[remote()]) {
        Ok(_) | Err(Errno::EFAULT) => Ok(DONE),
        Err(error) => Err(error.into()),
    }
}

fn write_to(pid: Pid, file: &str) -> Effect {
    File::options().write(true).open(format!("/proc/{pid}/{file}")).map(|_| DONE)
}

fn read(pid: Pid, file: &str) -> Effect {
    fs::read(format!("/proc/{pid}/{file}")).map(|_| DONE)
}

/// Lists a folder of the process, and returns the sorted names.
fn names(pid: Pid, folder: &str) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/{folder}"))?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into());
    let mut names = entries.map(name).collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn list(pid: Pid, folder: &str) -> Effect {
    names(pid, folder).map(|_| DONE)
}

fn list_descriptors(pid: Pid) -> Effect {
    let names = names(pid, "fd")?;
    let (last, others) = names.split_last().ok_or(io::ErrorKind::NotFound)?;
    Ok(format!("sees that {} and {last} are open", others.join(", ")))
}

/// Opens each link in a folder of the process; refused if that is so for all of them.
fn open_any(pid: Pid, folder: &str) -> Effect {
    // PID 1 may not let itself be listed, but has the same namespaces, and at least these descriptors.
    let mut result = Err(io::ErrorKind::NotFound.into());
    for name in names(Pid::this(), folder)? {
        match File::open(format!("/proc/{pid}/{folder}/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => result = result.or(Err(error)),
            Ok(_) => result = Ok(DONE),
        }
    }
    result
}

fn exe(pid: Pid) -> Effect {
    write_to(pid, "exe").or_else(|_| read(pid, "exe"))
}

/// Converts a result of libc.
fn check(result: impl Into<c_long>) -> io::Result<c_long> {
    let result = result.into();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
    Ok(process::pidfd_open(pid, PidfdFlags::empty())?)
}

fn pidfd_getfd(pid: Pid) -> Effect {
    process::pidfd_getfd(pidfd_open(pid)?, 0, PidfdGetfdFlags::empty())?;
    Ok(DONE)
}

fn kcmp(pid: Pid) -> Effect {
    const KCMP_VM: c_int = 1;
    let this = Pid::this().as_raw();
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_kcmp, pid.as_raw(), this, KCMP_VM, 0, 0) }).map(|_| DONE)
}

/// Sets and returns a limit of a process.
fn limit(pid: Pid, resource: u32, new: Option<libc::rlimit>) -> io::Result<libc::rlimit> {
    let new = new.as_ref().map_or(null(), |new| new as *const _);
    let mut old = MaybeUninit::zeroed();
    // SAFETY: the new limit is null or a limit, and the old one is written; all bytes zero is one.
    unsafe {
        check(libc::prlimit(pid.as_raw(), resource, new, old.as_mut_ptr()))?;
        Ok(old.assume_init())
    }
}

fn prlimit(pid: Pid) -> Effect {
    let zero = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // Without CPU time it is killed, if a tick of the kernel's clock meets it while it exits.
    for resource in (0..16).filter(|&resource| resource != libc::RLIMIT_CPU) {
        limit(pid, resource, Some(zero))?;
        if limit(pid, resource, None)?.rlim_max != 0 {
            return Err(io::Error::other("the limit is not 0"));
        }
    }
    Ok("the limits are 0; PID 1 needs none of them".to_owned())
}

fn oom_adjust(pid: Pid) -> Effect {
    let file = format!("/proc/{pid}/oom_score_adj");
    fs::write(&file, "1000")?;
    let now = fs::read_to_string(file)?;
    Ok(format!("it is {}: **PID 1 is killed first where memory runs out**", now.trim_end()))
}

// Signals.

fn send(pid: Pid, signal: c_int) -> Effect {
    // SAFETY: numbers only; nix has no realtime signals.
    check(unsafe { libc::kill(pid.as_raw(), signal) }).map(|_| DONE)
}

fn siginfo(signal: c_int, code: c_int) -> libc::siginfo_t {
    // SAFETY: all bytes zero is a siginfo_t. So the sender's PID is 0.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    (info.si_signo, info.si_code) = (signal, code);
    info
}

fn queue_code(pid: Pid, signal: c_int, code: c_int) -> Effect {
    let info = siginfo(signal, code);
    // SAFETY: the kernel reads a siginfo_t, and gets one.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigqueueinfo, pid.as_raw(), signal, &raw const info)
    })?;
    Ok(DONE)
}

fn queue(pid: Pid, signal: c_int) -> Effect {
    queue_code(pid, signal, libc::SI_QUEUE)
}

/// Sends all signals but those that have a handler.
fn others(pid: Pid, send: fn(Pid, c_int) -> Effect) -> Effect {
    let mut signals = (1..=64).filter(|signal| ![libc::SIGTERM, libc::SIGINT].contains(signal));
    signals.try_for_each(|signal| send(pid, signal).map(drop))?;
    Ok(DONE)
}

fn kill_all(_: Pid) -> Effect {
    send(Pid::from_raw(-1), libc::SIGTERM)
}

fn kill_group(pid: Pid) -> Effect {
    // PID 1's group may have no number in this namespace. Then this is 0, and means the caller's.
    send(Pid::from_raw(-getpgid(Some(pid))?.as_raw()), libc::SIGTERM)
}

fn tgkill(pid: Pid) -> Effect {
    let pid = pid.as_raw();
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGTERM) }).map(|_| DONE)
}

fn pidfd_send(pidfd: &OwnedFd, info: Option<libc::siginfo_t>) -> Effect {
    let info = info.as_ref().map_or(null(), |info| info as *const _);
    let (call, pidfd) = (libc::SYS_pidfd_send_signal, pidfd.as_raw_fd());
    // SAFETY: the siginfo_t is null or one.
    check(unsafe { libc::syscall(call, pidfd, libc::SIGTERM, info, 0) }).map(|_| DONE)
}

fn pidfd(pid: Pid) -> Effect {
    pidfd_send(&pidfd_open(pid)?, None)
}

fn pidfd_siginfo(pid: Pid) -> Effect {
    pidfd_send(&pidfd_open(pid)?, Some(siginfo(libc::SIGTERM, libc::SI_QUEUE)))
}

fn pidfd_of_parent(pid: Pid) -> Effect {
    let pidfd = pidfd_open(pid)?;
    in_child(|| pidfd_send(&pidfd, None))
}

/// The codes of `siginfo_t` that any process may invent.
fn negative_codes() -> impl Iterator<Item = c_int> {
    (-128..0).chain([c_int::MIN]).filter(|&code| code != libc::SI_TKILL)
}

fn forged(pid: Pid) -> Effect {
    negative_codes().try_for_each(|code| queue_code(pid, libc::SIGTERM, code).map(drop))?;
    Ok(DONE)
}

/// Succeeds if the kernel takes any of these codes.
fn forged_others(pid: Pid) -> Effect {
    let mut codes = [libc::SI_USER, libc::SI_KERNEL, libc::SI_TKILL].into_iter().chain(1..10);
    let last = Err(io::Error::from(Errno::EPERM));
    codes.find_map(|code| queue_code(pid, libc::SIGTERM, code).ok()).map_or(last, Ok)
}

/// The kernel forgets who sent a signal where the limit of queued signals is reached.
fn lost_siginfo(pid: Pid) -> Effect {
    let old = limit(pid, libc::RLIMIT_SIGPENDING, None)?;
    let zero = libc::rlimit { rlim_cur: 0, ..old };
    limit(pid, libc::RLIMIT_SIGPENDING, Some(zero))?;
    queue(pid, libc::SIGTERM)
}

/// Lets the kernel send SIGTERM to the process about events of a descriptor.
fn own(fd: &impl AsRawFd, pid: Pid) -> io::Result<()> {
    const F_SETSIG: c_int = 10;
    // SAFETY: numbers only.
    unsafe {
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, pid.as_raw()))?;
        check(libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGTERM))?;
    }
    Ok(())
}

fn sigio(pid: Pid) -> Effect {
    let (socket, mut other) = UnixStream::pair()?;
    own(&socket, pid)?;
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC) })?;
    in_child(|| other.write_all(&[0]).map(|()| DONE))
}

fn lease(pid: Pid) -> Effect {
    let path = "/tmp/lease";
    let file = File::create(path)?;
    own(&file, pid)?;
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) })?;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    match options.read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(DONE),
        other => Err(io::Error::other(format!("nothing broke the lease: {other:?}"))),
    }
}

fn dnotify(pid: Pid) -> Effect {
    const DN_ACCESS: c_int = 1;
    let folder = File::open("/")?;
    own(&folder, pid)?;
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(folder.as_raw_fd(), libc::F_NOTIFY, DN_ACCESS) })?;
    fs::read("/pause").map(|_| DONE)
}

// Signals that cannot be aimed at another process: these attempts check that there was one.

/// Runs a part of an attempt in a child process.
fn in_child(run: impl FnOnce() -> Effect) -> Effect {
    let child =
        spawn(|| exit(run().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::ENOSYS))));
    match waitpid(child.map_err(io::Error::other)?, None)? {
        WaitStatus::Exited(_, 0) => Ok(DONE),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        status => Err(io::Error::other(format!("{status:?}"))),
    }
}

/// Takes a signal that is blocked, and waits for it if necessary.
fn expect(signal: Signal) -> io::Result<()> {
    let (set, timeout) = (SigSet::from(signal), libc::timespec { tv_sec: 10, tv_nsec: 0 });
    // SAFETY: the set and the timeout are read, and the siginfo_t is not asked for.
    check(unsafe { libc::sigtimedwait(set.as_ref(), null_mut(), &timeout) }).map(drop)
}

/// Starts a child that sends SIGTERM to its parent when it exits.
fn clone_with_exit_signal(flags: CloneFlags, child: impl FnMut() -> isize) -> io::Result<()> {
    let mut stack = vec![0; 256 * 1024];
    // SAFETY: the child shares no memory, and has more stack than it needs.
    unsafe { clone(Box::new(child), &mut stack, flags, Some(libc::SIGTERM)) }?;
    Ok(())
}

fn exit_signal(_: Pid) -> Effect {
    let (mut exited, writer) = io::pipe()?;
    in_child(|| {
        clone_with_exit_signal(CloneFlags::empty(), || 0)?;
        expect(Signal::SIGTERM)?;
        // PID 1 adopts the next one, which makes another child of PID 1.
        let parent = Pid::this();
        let orphan = || {
            while getppid() == parent {
                thread::yield_now();
            }
            clone_with_exit_signal(CloneFlags::CLONE_PARENT, || 0).is_err().into()
        };
        clone_with_exit_signal(CloneFlags::empty(), orphan).map(|()| DONE)
    })?;
    drop(writer);
    exited.read_to_end(&mut Vec::new()).map(|_| DONE)
}

fn timer(pid: Pid) -> Effect {
    // SAFETY: all bytes zero is a sigevent, which the call reads; it writes the number of the timer.
    unsafe {
        let (mut event, mut timer): (libc::sigevent, c_int) = (zeroed(), 0);
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGTERM;
        event.sigev_notify_thread_id = pid.as_raw();
        let (create, clock) = (libc::SYS_timer_create, libc::CLOCK_MONOTONIC);
        check(libc::syscall(create, clock, &raw mut event, &raw mut timer)).map(|_| DONE)
    }
}

fn pdeathsig(_: Pid) -> Effect {
    let ((mut received, writer), (mut is_ready, ready)) = (io::pipe()?, io::pipe()?);
    in_child(|| {
        let orphan = || {
            set_pdeathsig(Signal::SIGTERM)?;
            (&ready).write_all(&[0])?;
            expect(Signal::SIGTERM)?;
            Ok((&writer).write_all(&[0])?)
        };
        spawn(orphan).map_err(io::Error::other)?;
        is_ready.read_exact(&mut [0]).map(|()| DONE)
    })?;
    drop(writer);
    received.read_exact(&mut [0]).map(|()| DONE)
}

fn mq_notify(_: Pid) -> Effect {
    // SAFETY: the names end in NUL, and all bytes zero is a sigevent.
    unsafe {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let queue = libc::mq_open(c"/pause".as_ptr(), flags, 0o600, null_mut::<libc::mq_attr>());
        check(queue)?;
        let mut event: libc::sigevent = zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGTERM;
        check(libc::mq_notify(queue, &event))?;
        check(libc::mq_send(queue, c"".as_ptr(), 0, 0))?;
        check(libc::mq_unlink(c"/pause".as_ptr()))?;
    }
    expect(Signal::SIGTERM).map(|()| DONE)
}

fn terminal(pid: Pid) -> Effect {
    in_child(|| {
        setsid()?;
        let mut master = File::options().read(true).write(true).open("/pts/ptmx")?;
        let (mut unlocked, mut number): (c_int, c_int) = (0, 0);
        // SAFETY: both calls take the address of a number.
        unsafe {
            check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw mut unlocked))?;
            check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number))?;
        }
        let slave = File::options().read(true).write(true).open(format!("/pts/{number}"))?;
        let group = getpgid(Some(pid))?.as_raw();
        // SAFETY: numbers only.
        if unsafe { libc::tcsetpgrp(slave.as_raw_fd(), group) } == 0 {
            return Err(io::Error::other("the process is in the foreground of another terminal"));
        }
        master.write_all(b"\x03")?;
        expect(Signal::SIGINT)?;
        drop(master);
        expect(Signal::SIGHUP).map(|()| DONE)
    })
}
