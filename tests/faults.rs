//! Faults injected around the release binary: system calls that fail, and signals during start-up.
//!
//! Each trial is a helper in a sandbox that starts `/pause` many times, see [`Spawn`], as PID 1 and not as
//! PID 1. Only the native freestanding binary is tested: the hosted flavor and emulators make additional
//! system calls.

#![expect(clippy::incompatible_msrv, reason = "only the product supports an older Rust")]

use anyhow::{Context, Result, bail, ensure};
use harness::build::Flavor;
use harness::calls::{self, Refused};
use harness::helper;
use harness::helper::{spawn, spawn_with};
use harness::proc::{SLEEPING_CALL, children, is_asleep, wait_until};
use harness::sandbox::{self, STOPPED, Sandbox, Setup, USER, WARNING, become_user};
use harness::trial::{Test, Trials, obstacle};
use harness::{seccomp, tests};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, execv, getppid};
use procfs::process::Process;
use std::ffi::{CStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::{mem, thread};

helper!(RUN_TEST = run_test);

/// A test that starts processes, as PID 1 or as another process.
type FaultTest = Test<fn(bool) -> Result<()>>;

const TESTS: &[FaultTest] = tests![
    its_system_calls_are_those_listed,
    exits_without_exit_group,
    sigterm_before_any_instruction,
    sigterm_at_the_death_of_its_parent,
];

/// What the names of tests that refuse a system call begin with. The name of the call follows.
const REFUSED: &str = "refused::";

fn main() -> Result<ExitCode> {
    let mut trials = Trials::new();
    let setup = Setup::of(Flavor::Freestanding)?;
    let no_sandbox = obstacle(sandbox::is_available());
    let calls = calls::until_asleep(false).map(|call| format!("{REFUSED}{}", call.name));
    for name in TESTS.iter().map(|test| test.name.to_owned()).chain(calls) {
        let setup = setup.clone();
        trials.add(format!("freestanding::{name}"), no_sandbox.clone(), move || {
            setup.asleep()?.run(&RUN_TEST, &[&name]).map(drop)
        });
    }
    Ok(trials.run())
}

/// Runs the test that the argument names.
fn run_test(arguments: &[OsString]) -> Result<()> {
    let [name] = arguments else { bail!("takes the name of a test") };
    let name = name.to_string_lossy();
    let run = |is_init| match name.strip_prefix(REFUSED) {
        Some(call) => refuse_call(call, is_init),
        None => {
            let test = TESTS.iter().find(|test| test.name == name).context("no such test")?;
            (test.run)(is_init)
        }
    };
    [true, false]
        .into_iter()
        .try_for_each(|is_init| run(is_init).with_context(|| format!("PID 1: {is_init}")))
}

// System calls.

/// Refuses a system call with every errno.
fn refuse_call(name: &str, is_init: bool) -> Result<()> {
    let call = calls::until_asleep(false).find(|it| it.name == name).context("no such call")?;
    (1..=libc::EHWPOISON).try_for_each(|errno| {
        let prepare = || {
            spawn_child()?;
            seccomp::refuse(call.number, call.first, errno)
        };
        let process = Spawn { prepare: &prepare, ..Spawn::new(is_init) }.spawn()?;
        check_refused_call(call, errno, is_init, process)
            .with_context(|| io::Error::from_raw_os_error(errno).to_string())
    })
}

fn check_refused_call(
    call: &calls::Call,
    errno: i32,
    is_init: bool,
    process: Sandbox,
) -> Result<()> {
    let stderr = match call.refused {
        // To the process, EINTR of the filter looks as if a handler had returned.
        Refused::Fails(_) if call.number == SLEEPING_CALL && errno == libc::EINTR => {
            let stat = || Process::new(process.pid.as_raw())?.stat();
            let calls = || stat().is_ok_and(|it| it.utime + it.stime > 0);
            wait_until("the process calls again and again", calls)?;
            return process.stops(Signal::SIGTERM, &messages(is_init));
        }
        Refused::Fails(message) => {
            let (end, stderr) = process.wait()?;
            let stderr = stderr.strip_prefix(WARNING).unwrap_or(&stderr);
            ensure!(end == Ok(1) && stderr == message, "{end:?}, {stderr:?}");
            return Ok(());
        }
        Refused::Continues => messages(is_init),
        Refused::AssumesNotInit => messages(false),
        Refused::Silent => String::new(),
    };
    reaps_and_stops(process, &stderr)
}

/// What a process prints until SIGTERM has ended it.
fn messages(is_init: bool) -> String {
    format!("{}{STOPPED}", if is_init { "" } else { WARNING })
}

/// Waits until the process sleeps, kills its children, which have to be reaped, and ends it.
fn reaps_and_stops(process: Sandbox, stderr: &str) -> Result<()> {
    process.wait_until_asleep()?;
    for child in children(process.pid) {
        kill(child, Signal::SIGKILL)?;
    }
    wait_until("its child is reaped", || children(process.pid).is_empty())?;
    process.stops(Signal::SIGTERM, stderr)
}

/// Starts a child that ends with its parent.
fn spawn_child() -> Result<()> {
    let parent = Pid::this();
    let stay = || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before that.
        while getppid() == parent {
            thread::park();
        }
        Ok(())
    };
    spawn(stay).map(drop)
}

/// Compares the system calls from start to end with the list. PID 1 gets a SIGTERM from its child first.
fn its_system_calls_are_those_listed(is_init: bool) -> Result<()> {
    let (reader, mut writer) = io::pipe()?;
    let terminate_parent = || {
        set_pdeathsig(Signal::SIGKILL)?;
        (&reader).read_exact(&mut [0])?;
        Ok(kill(getppid(), Signal::SIGTERM)?)
    };
    let prepare = || spawn(terminate_parent).map(drop);
    let mut is_next_from_inside = is_init;
    let (ignored, end) = if is_init { (&calls::IGNORE[..], 1) } else { (&[][..], 0) };
    let last = ignored.iter().chain(&calls::END[end..]);
    makes(
        Spawn { prepare: &prepare, ..Spawn::new(is_init) },
        calls::until_asleep(is_init)
            .map(|call| (call.number, call.first))
            .chain(last.map(|&number| (number, None)))
            .collect(),
        |process| match mem::take(&mut is_next_from_inside) {
            true => Ok(writer.write_all(&[0])?),
            false => process.signal(Signal::SIGTERM),
        },
    )?;
    [c"--version", c"--help"].into_iter().try_for_each(|argument| {
        let spawn = Spawn { argument: Some(argument), ..Spawn::new(is_init) };
        let expected = calls::PRINT.map(|number| (number, None)).to_vec();
        makes(spawn, expected, |_| bail!("it sleeps"))
    })
}

/// Traces a process until it ends, and compares its system calls, and their first arguments where those
/// are listed. Calls `wake` when it sleeps.
fn makes(
    spawn: Spawn<'_>,
    expected: Vec<(i64, Option<i32>)>,
    mut wake: impl FnMut(&Sandbox) -> Result<()>,
) -> Result<()> {
    let process = spawn.spawn_traced()?;
    let mut made = Vec::new();
    let mut signal = None;
    // One call too many is enough to fail.
    while made.len() <= expected.len() {
        ptrace::syscall(process.pid, signal.take())?;
        let mut status = wait_until_asleep_or_changed(&process)?;
        if status == WaitStatus::StillAlive {
            wake(&process)?;
            wait_until("it is woken", || {
                status = process.status();
                status != WaitStatus::StillAlive
            })?;
        }
        match status {
            WaitStatus::PtraceSyscall(_) => {
                let call = ptrace::syscall_info(process.pid)?;
                if call.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: at the entry of a system call it is this one of the union.
                    let call = unsafe { call.u.entry };
                    let known = expected.get(made.len()).and_then(|(_, first)| *first);
                    made.push((call.nr as i64, known.map(|_| call.args[0] as i32)));
                }
            }
            WaitStatus::PtraceEvent(_, Signal::SIGTERM, _) => signal = Some(Signal::SIGTERM),
            _ => break,
        }
    }
    ensure!(made == expected, "{made:?} instead of {expected:?}");
    Ok(())
}

/// The signal by which the kernel answers the instruction `Abi::TRAP` of the product.
const TRAP: Signal = cfg_select! {
    any(target_arch = "loongarch64", target_arch = "powerpc64") => Signal::SIGTRAP,
    _ => Signal::SIGILL,
};

/// Refuses exit_group(2), then exit(2) as well: the process ends in any case.
fn exits_without_exit_group(is_init: bool) -> Result<()> {
    let calls = [libc::SYS_exit_group, libc::SYS_exit];
    for (refused, expected) in [(&calls[..1], Ok(0)), (&calls, Err(TRAP))] {
        let prepare =
            || refused.iter().try_for_each(|&call| seccomp::refuse(call, None, libc::EPERM));
        let process = Spawn { prepare: &prepare, ..Spawn::new(is_init) }.spawn()?;
        process.wait_until_asleep()?;
        process.signal(Signal::SIGTERM)?;
        let (end, stderr) = process.wait()?;
        ensure!(end == expected && stderr == messages(is_init), "{end:?}, {stderr:?}");
    }
    Ok(())
}

// Time.

/// Sends SIGTERM before the first instruction, before the second, and so on until it sleeps. While
/// there is no handler, PID 1 does not get the signal, and any other process dies of it. From then on,
/// or if the signal waits behind a mask until then, the process exits with 0.
fn sigterm_before_any_instruction(is_init: bool) -> Result<()> {
    let block = || Ok(SigSet::from(Signal::SIGTERM).thread_set_mask()?);
    let open = Spawn::new(is_init);
    let blocked = Spawn { prepare: &block, ..open };
    for (spawn, is_blocked) in [(open, false), (blocked, true)] {
        for done in 0.. {
            let process = spawn.spawn_traced()?;
            if !(0..done).try_fold(true, |_, _| step(&process))? {
                break;
            }
            let caught = Process::new(process.pid.as_raw())?.status()?.sigcgt;
            let has_handler = caught >> (Signal::SIGTERM as i32 - 1) & 1 == 1;
            process.signal(Signal::SIGTERM)?;
            ptrace::detach(process.pid, None)?;
            let was_dropped = wait_until_asleep_or_changed(&process)? == WaitStatus::StillAlive;
            process.signal(Signal::SIGTERM)?;
            let (end, _) = process.wait()?;
            let expected = match has_handler || is_blocked {
                true => (false, Ok(0)),
                false if is_init => (true, Ok(0)),
                false => (false, Err(Signal::SIGTERM)),
            };
            ensure!(
                (was_dropped, end) == expected,
                "after {done} instructions (blocked {is_blocked}): dropped {was_dropped}, {end:?}"
            );
        }
    }
    Ok(())
}

/// The parent-death signal, which the kernel sends in the name of the parent, ends it.
fn sigterm_at_the_death_of_its_parent(is_init: bool) -> Result<()> {
    set_child_subreaper(true)?;
    let (stderr, writer) = io::pipe()?;
    let parent = spawn(|| {
        let prepare = || {
            dup2_stderr(&writer)?;
            Ok(set_pdeathsig(Signal::SIGTERM)?)
        };
        let process = Spawn { prepare: &prepare, ..Spawn::new(is_init) }.spawn()?;
        process.wait_until_asleep()?;
        // It has to outlive this process.
        mem::forget(process);
        Ok(())
    })?;
    drop(writer);
    waitpid(parent, None)?;
    let pid = *children(Pid::this()).first().context("the process was not adopted")?;
    let process = Sandbox { pid, stderr: Some(OwnedFd::from(stderr).into()) };
    process.ends(0, &messages(is_init))
}

// Processes.

/// How to start a process.
#[derive(Clone, Copy)]
struct Spawn<'a> {
    /// Whether the process is PID 1 of a new PID namespace.
    is_init: bool,
    /// Argument of `/pause`, if there is one.
    argument: Option<&'a CStr>,
    /// Runs in the process, as the user of the image, right before exec.
    prepare: &'a dyn Fn() -> Result<()>,
}

impl Spawn<'_> {
    /// Without argument and preparation.
    fn new(is_init: bool) -> Self {
        Spawn { is_init, argument: None, prepare: &|| Ok(()) }
    }

    /// Starts the process. Its stderr has the errors that follow.
    fn spawn(self) -> Result<Sandbox> {
        let (stderr, writer) = io::pipe()?;
        let flags = if self.is_init { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let words: Vec<_> = [c"/pause"].into_iter().chain(self.argument).collect();
        let pid = spawn_with(flags, Some(libc::SIGCHLD), || {
            dup2_stderr(&writer)?;
            become_user(USER)?;
            (self.prepare)()?;
            match execv(words[0], &words).context("cannot start /pause")? {}
        })?;
        Ok(Sandbox { pid, stderr: Some(OwnedFd::from(stderr).into()) })
    }

    /// Starts a process that ptrace(2) has stopped before its first instruction.
    fn spawn_traced(self) -> Result<Sandbox> {
        let prepare = || {
            (self.prepare)()?;
            Ok(ptrace::traceme()?)
        };
        let process = Spawn { prepare: &prepare, ..self }.spawn()?;
        let stopped = WaitStatus::PtraceEvent(process.pid, Signal::SIGTRAP, 0);
        let is_stopped = || process.status() == stopped;
        wait_until("exec has stopped the process", is_stopped)?;
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(process.pid, options)?;
        Ok(process)
    }
}

/// Waits until the process sleeps, or has ended or is stopped for its tracer.
fn wait_until_asleep_or_changed(process: &Sandbox) -> Result<WaitStatus> {
    let mut status = WaitStatus::StillAlive;
    wait_until("the process sleeps, has ended or is stopped", || {
        status = process.status();
        status != WaitStatus::StillAlive || is_asleep(process.pid)
    })?;
    Ok(status)
}

/// Executes one instruction of a process that is stopped for its tracer; returns false if it sleeps now.
fn step(process: &Sandbox) -> Result<bool> {
    ptrace::step(process.pid, None)?;
    match wait_until_asleep_or_changed(process)? {
        WaitStatus::StillAlive => Ok(false),
        WaitStatus::PtraceEvent(_, Signal::SIGTRAP, _) => Ok(true),
        status => bail!("unexpected {status:?}"),
    }
}
