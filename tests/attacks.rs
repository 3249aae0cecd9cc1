//! Attacks of a hostile container on PID 1 of a pod whose PID namespace it shares. They run against the
//! release binary, without a seccomp filter and without an LSM profile.
//!
//! Each attack first runs against an unprotected process, where it has to succeed: otherwise its failure
//! would prove nothing. docs/security.md lists what the kernel alone decides, and what is not tested here.

use anyhow::{Context, Result, bail, ensure};
use caps::{CapSet, CapsHashSet};
use harness::build::Flavor;
use harness::helper;
use harness::helper::spawn;
use harness::orphans::sleep_on;
use harness::proc::{state, wait_until, wake_ups};
use harness::sandbox::{self, STOPPED, Setup, USER, become_user, ensure_inside};
use harness::trial::{Trials, obstacle};
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use procfs::process::Process;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::ptr::null_mut;

struct Attack {
    /// First part of the trials' names.
    name: &'static str,
    run: fn(Pid) -> io::Result<()>,
    /// What happens to PID 1.
    outcome: Outcome,
}

#[derive(PartialEq)]
enum Outcome {
    /// The kernel denies access.
    Denied,
    /// The kernel drops the signals without waking PID 1.
    Dropped,
    /// PID 1 is woken and sleeps again.
    Ignored,
    /// PID 1 exits with 0.
    Exits,
}
use Outcome::{Denied, Dropped, Exits, Ignored};

const ATTACKS: &[Attack] = &[
    Attack { name: "proc_root", run: list_root, outcome: Denied },
    Attack { name: "sigterm_and_sigint", run: terminate, outcome: Ignored },
    Attack { name: "sigqueue", run: queue_each_code, outcome: Ignored },
    Attack { name: "sigio", run: send_sigio, outcome: Ignored },
    Attack { name: "other_signals", run: send_others, outcome: Dropped },
    Attack { name: "lost_siginfo", run: lose_siginfo, outcome: Exits },
];

/// Who attacks: PID 1's user without capabilities; root with Docker's default capabilities; or PID 1's
/// user as root of a nested user namespace, with its children in a nested PID namespace.
const ATTACKERS: [&str; 3] = ["user", "root", "nested"];

/// The capabilities that Docker gives to a container by default.
const DOCKER_CAPABILITIES: &str = "CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID \
    CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP \
    CAP_SETUID CAP_SYS_CHROOT";

/// What the attacker prints if the kernel denies it access.
const DENIED: &str = "access denied\n";

helper!(ATTACKER = attack);

fn main() -> Result<ExitCode> {
    let mut trials = Trials::new();
    let setup = Setup::of(Flavor::Freestanding)?;
    let no_sandbox = obstacle(sandbox::is_available());
    let no_root = (!geteuid().is_root())
        .then(|| "only root can attack as another user than that of PID 1".to_owned());

    for attack in ATTACKS {
        for attacker in ATTACKERS {
            // `cap_ptrace_access_check` refuses this to every nested user namespace.
            if attack.outcome == Denied && attacker == "nested" {
                continue;
            }
            let no_attacker = no_root.clone().filter(|_| attacker == "root");
            let setup = setup.clone();
            trials.add(
                format!("freestanding::{}::{attacker}", attack.name),
                no_sandbox.clone().or(no_attacker),
                move || check(setup, attack, attacker),
            );
        }
    }
    let run = || obeys_tgkill_from_outside(setup);
    trials.add("freestanding::tgkill_from_outside", no_sandbox, run);
    Ok(trials.run())
}

/// Checks the outcome of an attack on PID 1, and that PID 1 works afterwards.
fn check(setup: Setup, attack: &Attack, attacker: &str) -> Result<()> {
    let sandbox = setup.asleep()?;
    let before = wake_ups(sandbox.pid)?;
    let printed = sandbox.run(&ATTACKER, &[attack.name, attacker]);
    if attack.outcome == Exits {
        // The attacker is killed together with PID 1.
        return sandbox.ends(0, STOPPED);
    }
    let printed = printed?;
    ensure!((printed == DENIED) == (attack.outcome == Denied), "it prints {printed:?}");
    sandbox.wait_until_asleep()?;
    let was_woken = wake_ups(sandbox.pid)? != before;
    ensure!(was_woken == (attack.outcome == Ignored), "PID 1 was woken: {was_woken}");
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

/// The kernel gives the signals of tgkill another code than those of kill.
fn obeys_tgkill_from_outside(setup: Setup) -> Result<()> {
    let sandbox = setup.asleep()?;
    tgkill(sandbox.pid)?;
    sandbox.ends(0, STOPPED)
}

/// Attacks an unprotected process, which has to succeed, and then PID 1.
fn attack(arguments: &[OsString]) -> Result<()> {
    let [name, attacker] = arguments else { bail!("takes an attack and an attacker") };
    let attack = ATTACKS.iter().find(|it| name == it.name).context("no such attack")?;
    ensure_inside()?;
    become_attacker(attacker, attack)?;

    let control = spawn(sleep_on)?;
    wait_until("the unprotected process sleeps", || state(control) == Some('S'))?;
    (attack.run)(control).context("the attack fails on an unprotected process")?;
    if attack.outcome != Denied {
        let has_effect = || state(control) == Some('Z');
        wait_until("the unprotected process has ended", has_effect)?;
    }
    if attacker == "nested" {
        unshare(CloneFlags::CLONE_NEWPID)?;
    }
    match (attack.run)(Pid::from_raw(1)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => print!("{DENIED}"),
        result => result?,
    }
    Ok(())
}

/// Turns root of the sandbox into one of [`ATTACKERS`].
fn become_attacker(attacker: &OsString, attack: &Attack) -> Result<()> {
    let mut kept = CapsHashSet::new();
    if attacker == "root" {
        kept = DOCKER_CAPABILITIES.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    } else {
        become_user(USER)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let capabilities = caps::read(None, set)?;
        caps::set(None, set, &capabilities.intersection(&kept).copied().collect())?;
    }
    if [Denied, Exits].contains(&attack.outcome) {
        // The kernel allows it to the user of the process alone. Root may become that user, by CAP_SETUID and
        // CAP_SETGID, and loses all capabilities then.
        become_user(USER)?;
    }
    // The unprotected process inherits this, and `uid_map` can only be written with it.
    set_dumpable(true)?;
    if attacker == "nested" {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        fs::write("/proc/self/uid_map", format!("0 {USER} 1"))?;
    }
    Ok(())
}

/// `ptrace_may_access` decides here as for its memory, descriptors and environment. (Yama, which an
/// unprivileged ptrace meets first on many machines, has no say.)
fn list_root(pid: Pid) -> io::Result<()> {
    fs::read_dir(format!("/proc/{pid}/root/")).map(drop)
}

fn send(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: the arguments are numbers. (nix has no real-time signals.)
    Ok(Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)?)
}

fn tgkill(pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw();
    // SAFETY: the arguments are numbers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGTERM) };
    Ok(Errno::result(sent).map(drop)?)
}

fn terminate(pid: Pid) -> io::Result<()> {
    [libc::SIGTERM, libc::SIGINT].into_iter().try_for_each(|signal| send(pid, signal))
}

fn send_others(pid: Pid) -> io::Result<()> {
    let mut signals = (1..=64).filter(|signal| ![libc::SIGTERM, libc::SIGINT].contains(signal));
    signals.try_for_each(|signal| send(pid, signal))
}

/// Sends SIGTERM with each code that the kernel lets a process choose, in a siginfo that says that PID 0
/// has sent it.
fn queue_each_code(pid: Pid) -> io::Result<()> {
    // The kernel drops a SIGTERM while another one is pending. (It stays pending in a zombie.)
    let is_taken = || {
        let status = Process::new(pid.as_raw()).and_then(|process| process.status());
        let is_pending = |mask: u64| mask & 1 << (libc::SIGTERM - 1) != 0;
        state(pid) == Some('Z') || status.is_ok_and(|status| !is_pending(status.shdpnd))
    };
    for code in (-128..0).chain([c_int::MIN]).filter(|&code| code != libc::SI_TKILL) {
        // SAFETY: a siginfo_t may be all zeros.
        let mut info: libc::siginfo_t = unsafe { zeroed() };
        info.si_signo = libc::SIGTERM;
        info.si_code = code;
        let (call, info) = (libc::SYS_rt_sigqueueinfo, &raw const info);
        // SAFETY: the kernel reads a siginfo_t, and gets one.
        Errno::result(unsafe { libc::syscall(call, pid.as_raw(), libc::SIGTERM, info) })?;
        wait_until("SIGTERM was taken", is_taken).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Makes the kernel send SIGTERM with a positive code, because a socket has input.
fn send_sigio(pid: Pid) -> io::Result<()> {
    const F_SETSIG: c_int = 10;
    let (socket, mut peer) = UnixStream::pair()?;
    for (command, argument) in
        [(libc::F_SETOWN, pid.as_raw()), (F_SETSIG, libc::SIGTERM), (libc::F_SETFL, libc::O_ASYNC)]
    {
        // SAFETY: the arguments are numbers.
        Errno::result(unsafe { libc::fcntl(socket.as_raw_fd(), command, argument) })?;
    }
    let writer = spawn(|| Ok(peer.write_all(&[0])?)).map_err(io::Error::other)?;
    match waitpid(writer, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        status => Err(io::Error::other(format!("the writer ended: {status:?}"))),
    }
}

/// Makes the kernel drop the siginfo of a SIGTERM, because no signal may be queued for the process.
fn lose_siginfo(pid: Pid) -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call reads a limit and writes none.
    Errno::result(unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_SIGPENDING, &none, null_mut())
    })?;
    tgkill(pid)
}
