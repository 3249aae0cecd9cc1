//! What goes wrong around the process, tried on the release binary: system calls that fail, limits
//! that leave it nothing, a SIGTERM that comes too early.
//!
//! Each trial is a part that an actor plays in a sandbox: it starts `/pause` there as often as it
//! likes, see [`support::life`], as PID 1 and elsewhere. Only the freestanding binary is tried, and
//! only where it is this machine's: the other flavor makes its C library's calls too, and an emulator
//! makes calls of its own.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, SysconfVar, getppid, sysconf, write};
use std::ffi::OsString;
use std::hint::spin_loop;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::thread;
use std::time::Instant;
use support::actor::{self, Part, spawn};
use support::artifact::{self, Flavor};
use support::calls::{self, Call, Refused};
use support::cgroup::Cgroup;
use support::life::{Life, Start};
use support::proc::{activity, catches, children, wait_until};
use support::sandbox::{self, Sandbox, Setup};
use support::{seccomp, trial};

const STOPPED: &str = "pause: SIGTERM\n";
const WARNING: &str = "pause: warning: not PID 1\n";

/// Trials that take nothing but a sandbox.
const PARTS: &[Part] = &[
    ("its_system_calls_are_those_listed", play_trace),
    ("the_listed_system_calls_are_enough", play_allow_only),
    ("sigterm_before_any_instruction", play_steps),
    ("sigterm_after_any_delay", play_delays),
    ("limits_of_zero", play_limits_of_zero),
    ("little_address_space", play_little_address_space),
    ("little_stack", play_little_stack),
];

/// Parts of those that take more.
const OTHER_PARTS: &[Part] = &[
    ("refused", play_refused),
    ("in-cgroup", play_in_cgroup),
    ("in-full-cgroup", play_in_full_cgroup),
];

/// A trial that needs a control group: what it is called, the group's controller, and what to do.
type InCgroup = (&'static str, &'static str, fn(&Cgroup) -> Result<()>);

const IN_CGROUPS: &[InCgroup] = &[
    ("little_memory", "memory", little_memory),
    ("little_cpu_time", "cpu", little_cpu_time),
    ("a_full_pid_namespace", "pids", a_full_pid_namespace),
];

fn main() -> ExitCode {
    actor::take_the_stage(&[PARTS, OTHER_PARTS].concat());
    let arguments = Arguments::from_args();
    let obstacle = sandbox::is_available().err().map(|error| format!("{error:#}"));

    let mut trials = Vec::new();
    let mut add = |name: &str, run: Box<dyn FnOnce() -> Result<Completion, Failed> + Send>| {
        let obstacle = obstacle.clone();
        trials.push(Trial::ignorable_test(name, || obstacle.map_or_else(run, trial::skip)));
    };
    for (part, _) in PARTS {
        add(part, Box::new(|| trial::outcome(act(part, &[]))));
    }
    for (index, call) in calls::until_asleep(false).enumerate() {
        let run = move || trial::outcome(act("refused", &[&index.to_string()]));
        add(&format!("refused::{}", call.name), Box::new(run));
    }
    for (name, controller, run) in IN_CGROUPS {
        add(
            name,
            Box::new(|| match Cgroup::new(controller) {
                Ok(group) => trial::outcome(run(&group)),
                Err(error) => trial::skip(format!("{error:#}")),
            }),
        );
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn act(part: &str, arguments: &[&str]) -> Result<()> {
    stage()?.act(part, arguments).map(drop)
}

/// A sandbox to start lives in.
fn stage() -> Result<Sandbox> {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        artifact::build(Flavor::Freestanding).expect("the release binary can be built")
    });
    let sandbox = Setup::new(&BINARY).start()?;
    sandbox.wait_until_asleep()?;
    Ok(sandbox)
}

// System calls.

/// Refuses a system call for every reason that there is.
fn play_refused(arguments: &[OsString]) -> Result<()> {
    let [index] = arguments else { bail!("takes the index of a call") };
    let index = index.to_str().context("a number")?.parse()?;
    let call = calls::until_asleep(false).nth(index).context("no such call")?;
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
    let mut life = Start { is_init, argument: None, prepare: &prepare }.begin()?;
    let warning = if is_init { "" } else { WARNING };
    let said = match call.refused {
        Refused::Continues => format!("{warning}{STOPPED}"),
        Refused::Mistaken => format!("{WARNING}{STOPPED}"),
        Refused::Mute => String::new(),
        Refused::Spins => {
            wait_until("it spins", || activity(life.pid).is_ok_and(|it| it.cpu_ticks > 0))?;
            format!("{warning}{STOPPED}")
        }
        Refused::Fails(complaint) => {
            let (end, said) = life.end()?;
            let said = said.strip_prefix(warning).unwrap_or(&said);
            ensure!(end == Ok(1) && said == complaint, "{end:?}, {said:?}");
            return Ok(());
        }
    };
    if call.refused != Refused::Spins {
        life.settle()?;
    }
    ensure!(!life.is_over(), "it ended: {:?}", life.end()?);
    for child in children(life.pid) {
        kill(child, Signal::SIGKILL)?;
    }
    wait_until("its child is reaped", || children(life.pid).is_empty())?;
    ends_well(life, &said)
}

/// Starts a child that stays as long as its parent.
fn spawn_child() -> Result<()> {
    let parent = Pid::this();
    let stay = || {
        set_pdeathsig(Signal::SIGKILL)?;
        // (The parent may have ended before that.)
        while getppid() == parent {
            thread::park();
        }
        Ok(())
    };
    spawn(stay).map(drop)
}

/// Ends a life by SIGTERM: exit code 0, and nothing on stderr but `said`.
fn ends_well(life: Life, said: &str) -> Result<()> {
    life.signal(Signal::SIGTERM)?;
    let end = life.end()?;
    ensure!(end == (Ok(0), said.to_owned()), "{end:?}");
    Ok(())
}

/// Compares the calls of whole lives with the list.
fn play_trace(_: &[OsString]) -> Result<()> {
    for is_init in [true, false] {
        let expected: Vec<_> = calls::until_asleep(is_init)
            .map(|call| (call.number, call.first))
            .chain(calls::END.map(|number| (number, None)))
            .collect();
        let mut life = Start { is_init, argument: None, prepare: &|| Ok(()) }.begin_traced()?;
        let mut made = Vec::new();
        let mut signal = None;
        loop {
            ptrace::syscall(life.pid, signal.take())?;
            life.settle()?;
            if life.status().is_none() {
                life.signal(Signal::SIGTERM)?;
                life.wait()?;
            }
            match life.status() {
                Some(WaitStatus::PtraceSyscall(_)) => {
                    let call = ptrace::syscall_info(life.pid)?;
                    if call.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                        // SAFETY: at the entry of a system call it is this one of the union.
                        let call = unsafe { call.u.entry };
                        let known = expected.get(made.len()).and_then(|(_, first)| *first);
                        made.push((call.nr as i64, known.map(|_| call.args[0] as i32)));
                    }
                }
                Some(WaitStatus::Stopped(_, stopped_by)) => signal = Some(stopped_by),
                _ => break,
            }
        }
        ensure!(made == expected, "PID 1 {is_init}: {made:?} instead of {expected:?}");
    }
    Ok(())
}

/// Kills the process at any call that is not listed.
fn play_allow_only(_: &[OsString]) -> Result<()> {
    let prepare = || {
        spawn_child()?;
        seccomp::allow_only(calls::all())
    };
    for (is_init, warning) in [(true, ""), (false, WARNING)] {
        let start = Start { is_init, argument: None, prepare: &prepare };
        let mut life = start.begin()?;
        life.settle()?;
        for child in children(life.pid) {
            kill(child, Signal::SIGKILL)?;
        }
        wait_until("its child is reaped", || children(life.pid).is_empty())?;
        ends_well(life, &format!("{warning}{STOPPED}"))?;
        for (argument, code) in [(c"--version", 0), (c"--help", 0), (c"x", 64)] {
            let (end, _) = Start { argument: Some(argument), ..start }.begin()?.end()?;
            ensure!(end == Ok(code), "{argument:?}: {end:?}");
        }
    }
    Ok(())
}

// Time.

/// Sends SIGTERM before the first instruction, before the second, and so on until it sleeps: PID 1
/// ignores it, and any other process dies of it, as long as there is no handler; from then on, or if
/// it waits behind a mask until then, it ends the process with exit code 0.
fn play_steps(_: &[OsString]) -> Result<()> {
    let deaf = || Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?);
    for is_init in [true, false] {
        let begin = Start { is_init, argument: None, prepare: &|| Ok(()) };
        for (start, is_deaf) in [(begin, false), (Start { prepare: &deaf, ..begin }, true)] {
            let mut instructions = 0;
            let mut life = start.begin_traced()?;
            while life.step()? {
                instructions += 1;
            }
            drop(life);
            for done in 0..=instructions {
                let mut life = start.begin_traced()?;
                for _ in 0..done {
                    life.step()?;
                }
                let is_ready = is_deaf || catches(life.pid, Signal::SIGTERM);
                life.signal(Signal::SIGTERM)?;
                ptrace::detach(life.pid, None)?;
                let allowed = if is_ready { Early::Obeyed } else { Early::before_handler(is_init) };
                let seen = early(life)?;
                ensure!(
                    seen == allowed,
                    "after {done} of {instructions} instructions (PID 1 {is_init}, \
                     deaf {is_deaf}): {seen:?} instead of {allowed:?}"
                );
            }
        }
    }
    Ok(())
}

/// What becomes of a process that SIGTERM meets in its early life.
#[derive(Debug, PartialEq)]
enum Early {
    /// It exits with 0.
    Obeyed,
    /// It sleeps, and a second SIGTERM makes it exit with 0.
    Ignored,
    /// It dies of the signal, as the kernel has it.
    Killed,
}

impl Early {
    fn before_handler(is_init: bool) -> Self {
        if is_init { Self::Ignored } else { Self::Killed }
    }
}

/// Sees what becomes of a life that SIGTERM was sent to.
fn early(mut life: Life) -> Result<Early> {
    life.settle()?;
    let is_over = life.is_over();
    if !is_over {
        life.signal(Signal::SIGTERM)?;
    }
    match life.end()? {
        (Ok(0), _) if is_over => Ok(Early::Obeyed),
        (Ok(0), _) => Ok(Early::Ignored),
        (Err(Signal::SIGTERM), _) => Ok(Early::Killed),
        end => bail!("it ended with {end:?}"),
    }
}

/// Sends SIGTERM after delays from the clone on, which cover what the tracer does not see: the
/// kernel's part of the birth.
fn play_delays(_: &[OsString]) -> Result<()> {
    const LIVES: u32 = 4500;
    for is_init in [true, false] {
        let start = Start { is_init, argument: None, prepare: &|| Ok(()) };
        let until_asleep = || {
            let born = Instant::now();
            start.begin()?.settle()?;
            Ok(born.elapsed())
        };
        // The quickest of some: the others were held up by other processes.
        let lives = (0..20).map(|_| until_asleep()).collect::<Result<Vec<_>>>()?;
        let until_asleep = *lives.iter().min().context("there are lives")?;
        for life in 0..LIVES {
            let delay = until_asleep * 2 * life / LIVES;
            let life = start.begin()?;
            let born = Instant::now();
            while born.elapsed() < delay {
                spin_loop();
            }
            life.signal(Signal::SIGTERM)?;
            let early = early(life)?;
            ensure!(
                [Early::Obeyed, Early::before_handler(is_init)].contains(&early),
                "after {delay:?} (PID 1 {is_init}): {early:?}"
            );
        }
    }
    Ok(())
}

// Starvation.

/// Lives with what `prepare` leaves it: true if it slept and stopped as always, false if the kernel
/// did not let it come to its first instruction, or killed it for lack of memory.
fn lives(is_init: bool, prepare: &dyn Fn() -> Result<()>) -> Result<bool> {
    let mut life = Start { is_init, argument: None, prepare }.begin_traced()?;
    if life.is_over() {
        return Ok(false);
    }
    // (Killed in this moment it cannot be let go.)
    let _ = ptrace::detach(life.pid, None);
    life.settle()?;
    life.signal(Signal::SIGTERM)?;
    let (end, said) = life.end()?;
    let all_said = said == format!("{}{STOPPED}", if is_init { "" } else { WARNING });
    // Nobody sends this signal but the kernel's OOM killer.
    ensure!(end == Ok(0) && all_said || end == Err(Signal::SIGKILL), "{end:?}, {said:?}");
    Ok(end.is_ok())
}

/// Sets each limit to nothing.
fn play_limits_of_zero(_: &[OsString]) -> Result<()> {
    use Resource::*;
    for resource in [
        RLIMIT_CORE,
        RLIMIT_CPU,
        RLIMIT_DATA,
        RLIMIT_FSIZE,
        RLIMIT_LOCKS,
        RLIMIT_MEMLOCK,
        RLIMIT_MSGQUEUE,
        RLIMIT_NICE,
        RLIMIT_NOFILE,
        RLIMIT_NPROC,
        RLIMIT_RSS,
        RLIMIT_RTPRIO,
        RLIMIT_RTTIME,
        RLIMIT_SIGPENDING,
    ] {
        for is_init in [true, false] {
            let lived = lives_within(resource, 0, is_init)?;
            // The kernel kills what has no time left when a tick of its clock meets it.
            ensure!(lived || resource == RLIMIT_CPU, "no exec with {resource:?}");
        }
    }
    Ok(())
}

/// Allows no page of address space, one page, and so on until there is more than enough.
fn play_little_address_space(_: &[OsString]) -> Result<()> {
    for is_init in [true, false] {
        let lived = pages(0).map(|bytes| lives_within(Resource::RLIMIT_AS, bytes, is_init));
        let lived = lived.collect::<Result<Vec<_>>>()?;
        ensure!(lived.contains(&true) && lived.contains(&false), "all limits are alike: {lived:?}");
    }
    Ok(())
}

/// Allows the stack that the kernel needs to deliver a signal, whatever program it is for, and more.
fn play_little_stack(_: &[OsString]) -> Result<()> {
    // SAFETY: reads what the kernel told this process at its start; 0 where it tells nothing.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    // `arch_align_stack` in the kernel's process.c begins up to so far below the top.
    let randomized = 8192;
    for is_init in [true, false] {
        for bytes in pages(frame.max(4096) + randomized) {
            ensure!(lives_within(Resource::RLIMIT_STACK, bytes, is_init)?, "no exec with {bytes}");
        }
    }
    Ok(())
}

/// Sizes in bytes, from `least` on in whole pages.
fn pages(least: u64) -> impl Iterator<Item = u64> {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().expect("a page has a size") as u64;
    (least.div_ceil(size)..).take(200).map(move |pages| pages * size)
}

fn lives_within(resource: Resource, bytes: u64, is_init: bool) -> Result<bool> {
    lives(is_init, &|| Ok(setrlimit(resource, bytes, bytes)?))
        .with_context(|| format!("{resource:?} is {bytes}, PID 1 {is_init}"))
}

/// Plays a part in a control group: the actor finds the way in on its stdin.
fn act_in(group: &Cgroup, part: &str) -> Result<String> {
    let sandbox = stage()?;
    let output = sandbox.actor(part).stdin(group.door()?).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Moves this process to the control group.
fn enter_cgroup() -> Result<()> {
    write(io::stdin(), b"0")?;
    Ok(())
}

fn play_in_cgroup(_: &[OsString]) -> Result<()> {
    for is_init in [true, false] {
        print!("{} ", lives(is_init, &enter_cgroup)?);
    }
    Ok(())
}

fn little_memory(group: &Cgroup) -> Result<()> {
    let mut lived = String::new();
    for kib in (0..512).step_by(16) {
        let bytes = (kib * 1024).to_string();
        group.set(("memory.limit_in_bytes", &bytes), ("memory.max", &bytes))?;
        lived += &act_in(group, "in-cgroup").with_context(|| format!("{kib} KiB"))?;
    }
    ensure!(lived.contains("true") && lived.contains("false"), "{lived}");
    Ok(())
}

fn little_cpu_time(group: &Cgroup) -> Result<()> {
    // The least that the kernel takes: a millisecond in each second.
    group.set(("cpu.cfs_period_us", "1000000"), ("cpu.max", "1000 1000000"))?;
    group.set(("cpu.cfs_quota_us", "1000"), ("cpu.max", "1000 1000000"))?;
    let lived = act_in(group, "in-cgroup")?;
    ensure!(lived == "true true ", "{lived}");
    Ok(())
}

fn a_full_pid_namespace(group: &Cgroup) -> Result<()> {
    group.set(("pids.max", "100"), ("pids.max", "100"))?;
    let lived = act_in(group, "in-full-cgroup")?;
    ensure!(lived == "true", "{lived}");
    Ok(())
}

/// Lives as PID 1 of a namespace that no other process can be started in.
fn play_in_full_cgroup(_: &[OsString]) -> Result<()> {
    let prepare = || {
        enter_cgroup()?;
        while spawn_child().is_ok() {}
        Ok(())
    };
    print!("{}", lives(true, &prepare)?);
    Ok(())
}
