//! Faults injected around the release binary: system calls that fail, and signals during start-up.
//!
//! Each trial starts `/pause` many times, as PID 1 and not as PID 1. Only the native freestanding binary
//! is tested: the hosted flavor and emulators make additional system calls.

use anyhow::{Context, Result, bail, ensure};
use harness::build::Flavor;
use harness::calls::{self, Call, Refused};
use harness::helper;
use harness::helper::{Helper, spawn};
use harness::orphans::number;
use harness::proc::{SLEEPING_CALL, children, is_asleep, wait_until};
use harness::sandbox::{self, STOPPED, Sandbox, Setup, SetupTest, WARNING, ensure_inside};
use harness::seccomp;
use harness::tests;
use harness::trial::{Trials, obstacle};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, getppid};
use procfs::process::Process;
use std::process::ExitCode;
use std::{io, mem, thread};

const TESTS: &[SetupTest] = tests![
    its_system_calls_are_those_listed,
    exits_without_exit_group,
    sigterm_before_any_instruction,
    sigterm_at_the_death_of_its_parent,
];

fn main() -> Result<ExitCode> {
    let mut trials = Trials::new();
    let setup = Setup::of(Flavor::Freestanding)?;
    let no_sandbox = obstacle(sandbox::is_available());
    for test in TESTS {
        let run = as_pid_1_and_not(setup.clone(), test.run);
        trials.add(format!("freestanding::{}", test.name), no_sandbox.clone(), run);
    }
    for call in calls::until_asleep(false) {
        let run = as_pid_1_and_not(setup.clone(), |setup| refuse_call(setup, call));
        trials.add(format!("freestanding::refused::{}", call.name), no_sandbox.clone(), run);
    }
    Ok(trials.run())
}

/// Runs a test with `/pause` as PID 1, and not as PID 1.
fn as_pid_1_and_not(
    setup: Setup,
    run: impl Fn(&Setup) -> Result<()>,
) -> impl FnOnce() -> Result<()> {
    move || {
        run(&setup).context("as PID 1")?;
        run(&Setup { not_pid_1: true, ..setup }).context("not as PID 1")
    }
}

// System calls.

helper!(
    /// Refuses a system call with an errno. Leaves a child if the process is to go on.
    REFUSE = |arguments| {
        let [name, errno @ ..] = arguments else { bail!("takes a call and an errno") };
        let call = calls::until_asleep(false).find(|it| name == it.name).context("no such call")?;
        if !matches!(call.refused, Refused::Fails(_)) {
            leave_child()?;
        }
        seccomp::refuse(call.number, call.first, number(errno)? as i32)
    }
);

/// Leaves a child that lives until it is killed or its parent ends.
fn leave_child() -> Result<()> {
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

fn refuse_call(setup: &Setup, call: &'static Call) -> Result<()> {
    (1..=libc::EHWPOISON).try_for_each(|errno| {
        let arguments = vec![call.name.into(), errno.to_string().into()];
        let preparation = Some((REFUSE.name.to_owned(), arguments));
        let process = Setup { preparation, ..setup.clone() }.start()?;
        check_refused_call(setup, call, errno, process)
            .with_context(|| io::Error::from_raw_os_error(errno).to_string())
    })
}

fn check_refused_call(setup: &Setup, call: &Call, errno: i32, process: Sandbox) -> Result<()> {
    let stderr = match call.refused {
        // To the process, EINTR of the filter looks as if a handler had returned.
        Refused::Fails(_) if call.number == SLEEPING_CALL && errno == libc::EINTR => {
            let stat = || Process::new(process.pid.as_raw())?.stat();
            let calls = || stat().is_ok_and(|it| it.utime + it.stime > 0);
            wait_until("the process calls again and again", calls)?;
            return process.stops(Signal::SIGTERM, &messages(setup));
        }
        Refused::Fails(message) => {
            let (end, stderr) = process.wait()?;
            let stderr = stderr.strip_prefix(WARNING).unwrap_or(&stderr);
            ensure!(end == Ok(1) && stderr == message, "{end:?}, {stderr:?}");
            return Ok(());
        }
        Refused::Continues => messages(setup),
        Refused::AssumesNotInit => format!("{WARNING}{STOPPED}"),
        Refused::Silent => String::new(),
    };
    process.wait_until_asleep()?;
    for child in children(process.pid) {
        kill(child, Signal::SIGKILL)?;
    }
    wait_until("its child is reaped", || children(process.pid).is_empty())?;
    process.stops(Signal::SIGTERM, &stderr)
}

/// What a process prints until SIGTERM has ended it.
fn messages(setup: &Setup) -> String {
    format!("{}{STOPPED}", if setup.not_pid_1 { WARNING } else { "" })
}

helper!(
    TRACE_WITH_CHILD = |_| {
        leave_child()?;
        Ok(ptrace::traceme()?)
    }
);
helper!(
    TERMINATE_PID_1 = |_| {
        ensure_inside()?;
        Ok(kill(Pid::from_raw(1), Signal::SIGTERM)?)
    }
);

/// Compares the system calls from start to end with the list. PID 1 gets a SIGTERM from inside first.
fn its_system_calls_are_those_listed(setup: &Setup) -> Result<()> {
    let is_init = !setup.not_pid_1;
    let (ignored, end) = if is_init { (&calls::IGNORE[..], 1) } else { (&[][..], 0) };
    let last = ignored.iter().chain(&calls::END[end..]);
    let calls = calls::until_asleep(is_init).map(|call| (call.number, call.first));
    let calls = calls.chain(last.map(|&number| (number, None))).collect();
    let mut is_next_from_inside = is_init;
    makes(setup, calls, |process| match mem::take(&mut is_next_from_inside) {
        true => process.run(&TERMINATE_PID_1, &[]).map(drop),
        false => process.signal(Signal::SIGTERM),
    })?;
    ["--version", "--help"].into_iter().try_for_each(|argument| {
        let setup = Setup { arguments: vec![argument.into()], ..setup.clone() };
        let calls = calls::PRINT.map(|number| (number, None)).to_vec();
        makes(&setup, calls, |_| bail!("it sleeps"))
    })
}

/// Traces a process until it ends, and compares its system calls, and their first arguments where those
/// are listed. Calls `wake` when it sleeps.
fn makes(
    setup: &Setup,
    expected: Vec<(i64, Option<i32>)>,
    mut wake: impl FnMut(&Sandbox) -> Result<()>,
) -> Result<()> {
    let process = start_traced(setup, &TRACE_WITH_CHILD)?;
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

helper!(REFUSE_EXIT_GROUP = |_| seccomp::refuse(libc::SYS_exit_group, None, libc::EPERM));
helper!(
    REFUSE_BOTH_EXITS = |_| {
        seccomp::refuse(libc::SYS_exit_group, None, libc::EPERM)?;
        seccomp::refuse(libc::SYS_exit, None, libc::EPERM)
    }
);

/// The process ends in any case.
fn exits_without_exit_group(setup: &Setup) -> Result<()> {
    for (refuse, expected) in [(&REFUSE_EXIT_GROUP, Ok(0)), (&REFUSE_BOTH_EXITS, Err(TRAP))] {
        let process = setup.prepared(refuse).asleep()?;
        process.signal(Signal::SIGTERM)?;
        let (end, stderr) = process.wait()?;
        ensure!(end == expected && stderr == messages(setup), "{end:?}, {stderr:?}");
    }
    Ok(())
}

// Time.

helper!(TRACE = |_| Ok(ptrace::traceme()?));
helper!(
    TRACE_BLOCKED = |_| {
        SigSet::from(Signal::SIGTERM).thread_set_mask()?;
        Ok(ptrace::traceme()?)
    }
);

/// Sends SIGTERM before the first instruction, before the second, and so on until it sleeps. While
/// there is no handler, PID 1 does not get the signal, and any other process dies of it. From then on,
/// or if the signal waits behind a mask until then, the process exits with 0.
fn sigterm_before_any_instruction(setup: &Setup) -> Result<()> {
    for (trace, is_blocked) in [(&TRACE, false), (&TRACE_BLOCKED, true)] {
        for done in 0.. {
            let process = start_traced(setup, trace)?;
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
                false if setup.not_pid_1 => (false, Err(Signal::SIGTERM)),
                false => (true, Ok(0)),
            };
            ensure!(
                (was_dropped, end) == expected,
                "after {done} instructions (blocked {is_blocked}): dropped {was_dropped}, {end:?}"
            );
        }
    }
    Ok(())
}

helper!(DIE_WITH_PARENT = |_| Ok(set_pdeathsig(Signal::SIGTERM)?));

/// The parent-death signal, which the kernel sends in the name of the parent, ends it. The parent is a
/// thread to the kernel, the one that has started it.
fn sigterm_at_the_death_of_its_parent(setup: &Setup) -> Result<()> {
    let setup_with_signal = setup.prepared(&DIE_WITH_PARENT);
    let parent = thread::spawn(move || setup_with_signal.asleep());
    parent.join().expect("it does not panic")?.ends(0, &messages(setup))
}

// Tracing.

/// Starts a process that ptrace(2) has stopped before its first instruction.
fn start_traced(setup: &Setup, preparation: &Helper) -> Result<Sandbox> {
    let process = setup.prepared(preparation).start()?;
    let stopped = WaitStatus::PtraceEvent(process.pid, Signal::SIGTRAP, 0);
    wait_until("exec has stopped the process", || process.status() == stopped)?;
    ptrace::setoptions(process.pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
    Ok(process)
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
