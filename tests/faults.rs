//! What goes wrong around the process, tried on the release binary: system calls that fail, limits
//! that are exhausted, signals at a bad time.
//!
//! Each trial is a helper in a sandbox that starts many processes of `/pause`, see [`Spawn`], as PID 1
//! and not as PID 1. Only the native freestanding binary is tried: the hosted flavor and emulators make
//! additional system calls.

#![expect(clippy::incompatible_msrv, reason = "only the product supports an older Rust")]

use anyhow::{Context, Result, bail, ensure};
use harness::build::Flavor;
use harness::calls::{self, Call, Refused};
use harness::cgroup::Cgroup;
use harness::helper;
use harness::helper::{Helper, spawn, spawn_with};
use harness::orphans::number;
use harness::proc::{LIMITS, SLEEPING_CALL, children, is_asleep, set_limit, wait_until};
use harness::sandbox::{self, End, STOPPED, Sandbox, Setup, USER, WARNING, become_user};
use harness::trial::{Trials, obstacle};
use harness::{seccomp, tests};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, SysconfVar, dup2_stderr, execve, getppid, sysconf, write};
use procfs::process::Process;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::{mem, thread};

helper!(INSIDE = inside);
helper!(REFUSED = refused);
helper!(IN_CGROUP = in_cgroup);

/// A trial that needs nothing but a sandbox. It is run as PID 1, and as another process.
type InSandbox = (&'static str, fn(bool) -> Result<()>);

const IN_SANDBOX: &[InSandbox] = tests![
    its_system_calls_are_those_listed,
    the_listed_system_calls_are_enough,
    sigterm_before_any_instruction,
    limits_of_zero,
    little_address_space,
    little_stack,
];

/// A trial that needs a control group: what it is called, the group's controller, and what to do.
type InCgroup = (&'static str, &'static str, fn(&Cgroup) -> Result<()>);

const IN_CGROUPS: &[InCgroup] = &[
    ("little_memory", "memory", little_memory),
    ("little_cpu_time", "cpu", little_cpu_time),
    ("pids_limit_reached", "pids", pids_limit_reached),
];

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let no_sandbox = obstacle(sandbox::is_available());
    for (name, _) in IN_SANDBOX {
        let run = || run_in_sandbox(&INSIDE, name);
        trials.add(format!("freestanding::{name}"), no_sandbox.clone(), run);
    }
    for (index, call) in calls::until_asleep(false).enumerate() {
        let run = move || run_in_sandbox(&REFUSED, &index.to_string());
        trials.add(format!("freestanding::refused::{}", call.name), no_sandbox.clone(), run);
    }
    for (name, controller, run) in IN_CGROUPS {
        let no_group = no_sandbox.clone().or_else(|| obstacle(Cgroup::new(controller)));
        let run = || run(&Cgroup::new(controller)?);
        trials.add(format!("freestanding::{name}"), no_group, run);
    }
    trials.run()
}

fn run_in_sandbox(helper: &Helper, argument: &str) -> Result<()> {
    sandbox()?.run(helper, &[argument]).map(drop)
}

/// A sandbox to start processes in.
fn sandbox() -> Result<Sandbox> {
    static SETUP: LazyLock<Setup> =
        LazyLock::new(|| Setup::of(Flavor::Freestanding).expect("the release binary can be built"));
    SETUP.clone().asleep()
}

/// Runs a trial by its name.
fn inside(arguments: &[OsString]) -> Result<()> {
    let (_, run) = IN_SANDBOX.iter().find(|(name, _)| arguments == [*name]).context("no trial")?;
    for is_init in [true, false] {
        run(is_init).with_context(|| format!("PID 1: {is_init}"))?;
    }
    Ok(())
}

// System calls.

/// Refuses a system call with every errno.
fn refused(arguments: &[OsString]) -> Result<()> {
    let call = calls::until_asleep(false).nth(number(arguments)?).context("no such call")?;
    for errno in 1..=libc::EHWPOISON {
        for is_init in [true, false] {
            refuse(call, errno, is_init).with_context(|| {
                let error = io::Error::from_raw_os_error(errno);
                format!("{} is refused, PID 1 {is_init}: {error}", call.name)
            })?;
        }
    }
    Ok(())
}

fn refuse(call: &Call, errno: i32, is_init: bool) -> Result<()> {
    let prepare = || {
        spawn_child()?;
        seccomp::refuse(call.number, call.first, errno)
    };
    let process = Spawn { is_init, argument: None, prepare: &prepare }.spawn()?;
    let stderr = match call.refused {
        // A filter cannot be distinguished from a handler that returned.
        Refused::Fails(_) if call.number == SLEEPING_CALL && errno == libc::EINTR => {
            let stat = || Process::new(process.pid.as_raw())?.stat();
            let calls = || stat().is_ok_and(|it| it.utime + it.stime > 0);
            wait_until("the process calls again and again", calls)?;
            return process.stops(&messages(is_init));
        }
        Refused::Fails(message) => {
            let (end, stderr) = process.wait_with_stderr()?;
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
fn reaps_and_stops(mut process: PauseProcess, stderr: &str) -> Result<()> {
    process.wait_settled()?;
    ensure!(!process.has_ended(), "it ended: {:?}", process.wait_with_stderr()?);
    for child in children(process.pid) {
        kill(child, Signal::SIGKILL)?;
    }
    wait_until("its child is reaped", || children(process.pid).is_empty())?;
    process.stops(stderr)
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

/// Compares the system calls from start to end with the list. PID 1 gets a SIGTERM from inside first.
fn its_system_calls_are_those_listed(is_init: bool) -> Result<()> {
    let (ignored, end) = if is_init { (&calls::IGNORE[..], 1) } else { (&[][..], 0) };
    let last = ignored.iter().chain(&calls::END[end..]);
    let expected: Vec<_> = calls::until_asleep(is_init)
        .map(|call| (call.number, call.first))
        .chain(last.map(|&number| (number, None)))
        .collect();
    let mut process = Spawn { is_init, argument: None, prepare: &|| Ok(()) }.spawn_traced()?;
    let mut is_next_from_inside = is_init;
    let mut made = Vec::new();
    let mut signal = None;
    // One call too many is enough to fail.
    while made.len() <= expected.len() {
        ptrace::syscall(process.pid, signal.take())?;
        process.wait_settled()?;
        if process.status.is_none() {
            match mem::take(&mut is_next_from_inside) {
                true => terminate_from_inside(process.pid)?,
                false => process.signal(Signal::SIGTERM)?,
            }
            process.wait()?;
        }
        match process.status {
            Some(WaitStatus::PtraceSyscall(_)) => {
                let call = ptrace::syscall_info(process.pid)?;
                if call.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    // SAFETY: at the entry of a system call it is this one of the union.
                    let call = unsafe { call.u.entry };
                    let known = expected.get(made.len()).and_then(|(_, first)| *first);
                    made.push((call.nr as i64, known.map(|_| call.args[0] as i32)));
                }
            }
            Some(WaitStatus::Stopped(_, Signal::SIGTERM)) => signal = Some(Signal::SIGTERM),
            _ => break,
        }
    }
    ensure!(made == expected, "{made:?} instead of {expected:?}");
    Ok(())
}

/// Lets a process in the PID namespace of `init` send SIGTERM to it.
fn terminate_from_inside(init: Pid) -> Result<()> {
    let joiner = spawn(|| {
        setns(File::open(format!("/proc/{init}/ns/pid"))?, CloneFlags::CLONE_NEWPID)?;
        let sender = spawn(|| Ok(kill(Pid::from_raw(1), Signal::SIGTERM)?))?;
        Ok(waitpid(sender, None).map(drop)?)
    })?;
    Ok(waitpid(joiner, None).map(drop)?)
}

/// Kills the process at any call that is not listed.
fn the_listed_system_calls_are_enough(is_init: bool) -> Result<()> {
    let prepare = || {
        spawn_child()?;
        seccomp::allow_only(calls::all())
    };
    let start = Spawn { is_init, argument: None, prepare: &prepare };
    reaps_and_stops(start.spawn()?, &messages(is_init))?;
    for (argument, code) in [(c"--version", 0), (c"--help", 0), (c"x", 64)] {
        let (end, _) = Spawn { argument: Some(argument), ..start }.spawn()?.wait_with_stderr()?;
        ensure!(end == Ok(code), "{argument:?}: {end:?}");
    }
    Ok(())
}

// Time.

/// Sends SIGTERM before the first instruction, before the second, and so on until it sleeps: PID 1
/// ignores it, and any other process dies of it, as long as there is no handler; from then on, or if
/// it waits behind a mask until then, it ends the process with exit code 0. A process that runs
/// meanwhile may have got its handler.
fn sigterm_before_any_instruction(is_init: bool) -> Result<()> {
    let deaf = || Ok(SigSet::all().thread_set_mask()?);
    let begin = Spawn { is_init, argument: None, prepare: &|| Ok(()) };
    let begin_deaf = Spawn { prepare: &deaf, ..begin };
    for (start, is_deaf, runs) in
        [(begin, false, false), (begin, false, true), (begin_deaf, true, false)]
    {
        let mut instructions = 0;
        let mut process = start.spawn_traced()?;
        while process.step()? {
            instructions += 1;
        }
        drop(process);
        for done in 0..=instructions {
            let mut process = start.spawn_traced()?;
            for _ in 0..done {
                process.step()?;
            }
            let caught = Process::new(process.pid.as_raw())?.status()?.sigcgt;
            let is_ready = is_deaf || caught >> (Signal::SIGTERM as i32 - 1) & 1 == 1;
            if runs {
                ptrace::detach(process.pid, None)?;
                process.signal(Signal::SIGTERM)?;
            } else {
                process.signal(Signal::SIGTERM)?;
                ptrace::detach(process.pid, None)?;
            }
            let seen = early(process)?;
            let is_allowed = match seen == OBEYED {
                true => is_ready || runs,
                false => !is_ready && seen == before_handler(is_init),
            };
            ensure!(
                is_allowed,
                "after {done} of {instructions} instructions (deaf {is_deaf}, runs {runs}): {seen:?}"
            );
        }
    }
    Ok(())
}

/// What becomes of a process that gets SIGTERM early: whether it sleeps, and has to get a second one,
/// and how it ends.
type Early = (bool, End);

const OBEYED: Early = (false, Ok(0));

/// What the kernel does: PID 1 does not get the signal.
fn before_handler(is_init: bool) -> Early {
    if is_init { (true, Ok(0)) } else { (false, Err(Signal::SIGTERM)) }
}

/// Sees what becomes of a process that SIGTERM was sent to.
fn early(mut process: PauseProcess) -> Result<Early> {
    process.wait_settled()?;
    let sleeps = !process.has_ended();
    process.signal(Signal::SIGTERM)?;
    Ok((sleeps, process.wait_with_stderr()?.0))
}

// Starvation.

/// Lives with what `prepare` leaves it: true if it slept and stopped as always, false if the kernel
/// did not let it come to its first instruction, or killed it for lack of memory.
fn lives(is_init: bool, prepare: &dyn Fn() -> Result<()>) -> Result<bool> {
    let mut process = Spawn { is_init, argument: None, prepare }.spawn_traced()?;
    if process.has_ended() {
        return Ok(false);
    }
    // (Killed in this moment it cannot be let go.)
    let _ = ptrace::detach(process.pid, None);
    process.wait_settled()?;
    process.signal(Signal::SIGTERM)?;
    let (end, said) = process.wait_with_stderr()?;
    let is_well = end == Ok(0) && said == messages(is_init);
    // Nobody sends this signal but the kernel's OOM killer.
    ensure!(is_well || end == Err(Signal::SIGKILL), "{end:?}, {said:?}");
    Ok(end.is_ok())
}

/// Sets each limit to nothing, but those of which the next two trials look for the least.
fn limits_of_zero(is_init: bool) -> Result<()> {
    let searched = [libc::RLIMIT_AS, libc::RLIMIT_STACK];
    for resource in LIMITS.filter(|resource| !searched.contains(resource)) {
        let lived = lives_within(resource, 0, is_init)?;
        // The kernel kills what has no time left when a tick of its clock meets it.
        ensure!(lived || resource == libc::RLIMIT_CPU, "no exec with a limit {resource} of 0");
    }
    Ok(())
}

/// Allows no page of address space, one page, and so on until there is more than enough.
fn little_address_space(is_init: bool) -> Result<()> {
    let lived = pages(0).map(|bytes| lives_within(libc::RLIMIT_AS, bytes, is_init));
    let lived = lived.collect::<Result<Vec<_>>>()?;
    ensure!(lived.contains(&true) && lived.contains(&false), "all limits are alike: {lived:?}");
    Ok(())
}

/// Allows the stack that the kernel needs to deliver a signal, whatever program it is for, and more.
fn little_stack(is_init: bool) -> Result<()> {
    // SAFETY: reads what the kernel told this process at its start; 0 where it tells nothing.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    // `arch_align_stack` in the kernel's process.c begins up to so far below the top.
    let randomized = 8192;
    // What execve(2) puts there, and the frames of the program.
    let used = 4096;
    for bytes in pages(frame.max(4096) + randomized + used) {
        ensure!(lives_within(libc::RLIMIT_STACK, bytes, is_init)?, "no exec with {bytes}");
    }
    Ok(())
}

/// Sizes in bytes, from `least` on in whole pages.
fn pages(least: u64) -> impl Iterator<Item = u64> {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().expect("a page has a size") as u64;
    (least.div_ceil(size)..).take(200).map(move |pages| pages * size)
}

fn lives_within(resource: u32, bytes: u64, is_init: bool) -> Result<bool> {
    lives(is_init, &|| Ok(set_limit(Pid::this(), resource, bytes).map(drop)?))
        .with_context(|| format!("the limit {resource} is {bytes}"))
}

/// Runs [`IN_CGROUP`], which enters the control group by its stdin.
fn run_in_cgroup(group: &Cgroup, arguments: &[&str]) -> Result<String> {
    let sandbox = sandbox()?;
    let mut command = sandbox.command(&IN_CGROUP);
    let output = command.args(arguments).stdin(group.procs_file()?).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Lives in the control group, with an argument beside as many processes as there may be.
fn in_cgroup(arguments: &[OsString]) -> Result<()> {
    let prepare = || {
        write(io::stdin(), b"0")?;
        while !arguments.is_empty() && spawn_child().is_ok() {}
        Ok(())
    };
    for is_init in [true, false] {
        print!("{} ", lives(is_init, &prepare)?);
    }
    Ok(())
}

fn little_memory(group: &Cgroup) -> Result<()> {
    let mut lived = String::new();
    for kib in (0..512).step_by(16) {
        let bytes = (kib * 1024).to_string();
        group.set(("memory.limit_in_bytes", &bytes), ("memory.max", &bytes))?;
        lived += &run_in_cgroup(group, &[]).with_context(|| format!("{kib} KiB"))?;
    }
    ensure!(lived.contains("true") && lived.contains("false"), "{lived}");
    Ok(())
}

fn little_cpu_time(group: &Cgroup) -> Result<()> {
    // The least that the kernel takes: a millisecond in each second.
    group.set(("cpu.cfs_period_us", "1000000"), ("cpu.max", "1000 1000000"))?;
    group.set(("cpu.cfs_quota_us", "1000"), ("cpu.max", "1000 1000000"))?;
    let lived = run_in_cgroup(group, &[])?;
    ensure!(lived == "true true ", "{lived}");
    Ok(())
}

fn pids_limit_reached(group: &Cgroup) -> Result<()> {
    group.set(("pids.max", "100"), ("pids.max", "100"))?;
    let lived = run_in_cgroup(group, &["full"])?;
    ensure!(lived == "true true ", "{lived}");
    Ok(())
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
    /// Starts the process. [`PauseProcess::wait_with_stderr`] returns errors that follow.
    fn spawn(self) -> Result<PauseProcess> {
        let (stderr, writer) = io::pipe()?;
        let flags = if self.is_init { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let words: Vec<_> = [c"/pause"].into_iter().chain(self.argument).collect();
        // The environment is empty, because its size matters where there is little stack.
        let environment: [&CStr; 0] = [];
        let pid = spawn_with(flags, Some(libc::SIGCHLD), || {
            dup2_stderr(&writer)?;
            become_user(USER)?;
            (self.prepare)()?;
            match execve(words[0], &words, &environment).context("cannot start /pause")? {}
        })?;
        Ok(PauseProcess { pid, stderr, status: None })
    }

    /// Starts a process that ptrace(2) has stopped before its first instruction, or that ended
    /// before.
    fn spawn_traced(self) -> Result<PauseProcess> {
        let (barrier_reader, mut barrier_writer) = io::pipe()?;
        let prepare = || {
            (&barrier_reader).read_exact(&mut [0])?;
            (self.prepare)()
        };
        let mut process = Spawn { prepare: &prepare, ..self }.spawn()?;
        let options = Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(process.pid, options).context("cannot trace")?;
        barrier_writer.write_all(&[0])?;
        loop {
            match process.wait()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Ok(process),
                // With a tracer PID 1 would survive what exec kills it with.
                WaitStatus::Stopped(_, signal) => ptrace::detach(process.pid, signal)?,
                _ if process.has_ended() => return Ok(process),
                status => bail!("unexpected {status:?}"),
            }
        }
    }
}

/// A process that becomes `/pause`. Dropping it kills it.
struct PauseProcess {
    /// PID in the namespace of the helper.
    pid: Pid,
    /// Last status from waitpid(2), or nothing if the process is running or asleep.
    status: Option<WaitStatus>,
    stderr: PipeReader,
}

impl PauseProcess {
    /// Whether the process has ended.
    fn has_ended(&self) -> bool {
        matches!(self.status, Some(WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
    }

    /// Sends a signal to the process, unless it is known to have ended.
    fn signal(&self, signal: Signal) -> Result<()> {
        // Its PID may belong to another process by now.
        if self.has_ended() { Ok(()) } else { Ok(kill(self.pid, signal)?) }
    }

    /// Waits until the process sleeps or has ended.
    fn wait_settled(&mut self) -> Result<()> {
        wait_until("the process sleeps or has ended", || self.has_changed() || is_asleep(self.pid))
    }

    /// Executes one instruction of a process that is stopped for its tracer; returns false if it
    /// sleeps now.
    fn step(&mut self) -> Result<bool> {
        ptrace::step(self.pid, None)?;
        self.wait_settled()?;
        match self.status {
            None => Ok(false),
            Some(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Ok(true),
            status => bail!("unexpected {status:?}"),
        }
    }

    /// Waits until the process has ended or is stopped for its tracer.
    fn wait(&mut self) -> Result<WaitStatus> {
        wait_until("the process has ended or is stopped", || self.has_changed())?;
        self.status.context("no status")
    }

    /// Ends the process by SIGTERM: it has to exit with 0, with nothing on stderr but `stderr`.
    fn stops(self, stderr: &str) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let end = self.wait_with_stderr()?;
        ensure!(end == (Ok(0), stderr.to_owned()), "{end:?}");
        Ok(())
    }

    /// Waits until the process has ended and returns how, and its stderr.
    fn wait_with_stderr(mut self) -> Result<(End, String)> {
        let end = match self.wait()? {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Err(signal),
            status => bail!("unexpected {status:?}"),
        };
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr)?;
        Ok((end, stderr))
    }

    /// Whether waitpid(2) has a new status, or will never have one.
    fn has_changed(&mut self) -> bool {
        if !self.has_ended() {
            let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
            self.status = status.ok().filter(|status| *status != WaitStatus::StillAlive);
        }
        self.status.is_some()
    }
}

impl Drop for PauseProcess {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}
