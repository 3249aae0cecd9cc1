//! The contract of the process, tried on the release binary in both flavors and for every
//! architecture: as PID 1 of a sandbox, and as another process in one.
//!
//! What no machine can try has no trial, see [`applies`].

#![expect(clippy::incompatible_msrv, reason = "only the product keeps to an older Rust")]

use anyhow::{Context, Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::{Helper, spawn, spawn_with};
use harness::orphans::{
    CLONED_ORPHANS, ORPHANS, SIMULTANEOUS_ORPHANS, STOPPED_ORPHANS, THREADED_ORPHANS,
    TRACED_ORPHANS, ZOMBIES, abandon,
};
use harness::proc::{anonymous, children, context_switches, is_asleep, state, wait_until};
use harness::sandbox::{self, IGNORED, STOPPED, Sandbox, Setup, SetupTest, WARNING};
use harness::seccomp::refuse;
use harness::target::TARGETS;
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::fcntl::{AtFlags, FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::pty::openpty;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{self, Pid, SysconfVar, dup2_stdout, execv, execveat, getppid, setsid};
use procfs::process::Process;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, io, iter};

const VERSION: &str = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");
const SIGINT_MESSAGE: &str = "pause: SIGINT\n";
const CANNOT_WRITE: &str = "pause: cannot write to stdout\n";

const TESTS: &[SetupTest] = tests![
    ctrl_c_exits_with_0,
    handlers_do_not_interrupt_each_other,
    keeps_one_page_of_anonymous_memory,
    starts_from_memfd_in_empty_root,
    unusable_standard_streams_are_tolerated,
    not_pid_1_warns,
    not_pid_1_is_subreaper,
    not_pid_1_dies_of_other_signals,
    version_and_help_are_printed,
    failed_write_to_stdout_exits_with_1,
    unknown_arguments_are_ignored,
];

/// Tests that differ in what they do, and not in what they check.
const VARIED: &[SetupTest] = &[
    test("sigterm_exits_with_0", |it| sleeps_reaps_and_stops(it.asleep()?)),
    test("sigint_exits_with_0", |it| it.asleep()?.stops(Signal::SIGINT, SIGINT_MESSAGE)),
    test("orphans_are_reaped_without_wake_up", |it| survives(it, &ORPHANS, "10000")),
    test("simultaneous_exits_are_reaped", |it| survives(it, &SIMULTANEOUS_ORPHANS, "500")),
    test("zombies_are_reaped_on_reparenting", |it| survives(it, &ZOMBIES, "500")),
    test("orphans_with_threads_are_reaped", |it| survives(it, &THREADED_ORPHANS, "100")),
    test("traced_orphans_are_reaped", |it| survives(it, &TRACED_ORPHANS, "200")),
    test("orphans_of_any_clone_are_reaped", |it| survives(it, &CLONED_ORPHANS, "300")),
    test("stopped_orphans_are_reaped", |it| survives(it, &STOPPED_ORPHANS, "200")),
    test("children_that_died_before_exec_are_reaped", |it| inherits(it, &LEAVE_DEAD_CHILDREN)),
    test("inherited_dispositions_are_replaced", |it| inherits(it, &IGNORE_SIGNALS)),
    test("inherited_signal_mask_is_cleared", |it| inherits(it, &BLOCK_SIGNALS)),
    test("inherited_descriptors_are_closed", |it| closes_leaked(it, &LEAK_DESCRIPTORS)),
    test("inherited_descriptors_are_closed_without_close_range", |it| {
        closes_leaked(it, &LEAK_ON_OLD_KERNEL)
    }),
    test("changes_to_the_root_directory", |it| inherits(it, &CHANGE_DIRECTORY)),
    test("empty_argv_is_no_argument", |it| inherits(it, &EMPTY_ARGV)),
    // `tests/faults.rs` refuses the other system calls as well.
    test("refused_disposition_is_fatal", |it| {
        it.prepared(&REFUSE_SIGTERM).start()?.ends(1, "pause: cannot handle SIGTERM\n")
    }),
];

const fn test(name: &'static str, run: fn(&Setup) -> Result<()>) -> SetupTest {
    Test { name, run }
}

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let no_sandbox = obstacle(sandbox::is_available());
    for (name, setup) in setups() {
        let setup = match setup {
            Ok(setup) => setup,
            // One trial instead of all tests, because they all lack the same.
            Err(error) => {
                trials.add(name, obstacle::<()>(Err(error)), || Ok(()));
                continue;
            }
        };
        for test in TESTS.iter().chain(VARIED).filter(|test| applies(&setup, test.name)) {
            let setup = setup.clone();
            let run = move || (test.run)(&setup);
            trials.add(format!("{name}::{}", test.name), no_sandbox.clone(), run);
        }
    }
    trials.run()
}

/// Both flavors for this machine, and the freestanding one for every other target.
fn setups() -> impl Iterator<Item = (String, Result<Setup>)> {
    let native = [Flavor::Freestanding, Flavor::Hosted].into_iter();
    let native = native.map(|flavor| (format!("{flavor:?}").to_lowercase(), Setup::of(flavor)));
    let foreign = TARGETS.iter().filter(|target| !target.is_native()).map(|target| {
        let setup = || {
            let emulator = Some(target.user_emulator()?);
            Ok(Setup { emulator, ..Setup::new(&target.build()?) })
        };
        (target.triple.to_owned(), setup())
    });
    native.chain(foreign)
}

/// Whether a test makes sense for this binary. (Only the hosted flavor needs libraries.)
fn applies(setup: &Setup, test: &str) -> bool {
    let emulator = setup.emulator.as_ref().map(|path| path.to_string_lossy());
    let emulates = |arch| emulator.as_ref().is_some_and(|path| path.contains(arch));
    match test {
        // The C library and std, or qemu, have memory of their own. A root without libraries is for the
        // freestanding flavor.
        "keeps_one_page_of_anonymous_memory" | "starts_from_memfd_in_empty_root" => {
            !setup.libraries && emulator.is_none()
        }
        // qemu takes the program from argv, and does not know PR_SET_CHILD_SUBREAPER.
        "empty_argv_is_no_argument" | "not_pid_1_is_subreaper" => emulator.is_none(),
        // qemu looks for the mask of sigaction(2) behind a field that Linux does not have there.
        "handlers_do_not_interrupt_each_other" => !emulates("riscv64") && !emulates("loongarch64"),
        _ => true,
    }
}

fn stream(fd: impl Into<OwnedFd>) -> Option<Arc<OwnedFd>> {
    Some(Arc::new(fd.into()))
}

/// Checks that PID 1 sleeps with nothing that it may have inherited, reaps, and exits with 0 on
/// SIGTERM.
fn sleeps_reaps_and_stops(sandbox: Sandbox) -> Result<()> {
    sandbox.wait_until_asleep()?;
    let blocked = Process::new(sandbox.pid.as_raw())?.status()?.sigblk;
    ensure!(blocked == 0, "{blocked:x} is blocked");
    let metadata = |name| fs::metadata(format!("/proc/{}/{name}", sandbox.pid));
    let (directory, root) = (metadata("cwd/")?, metadata("root/")?);
    ensure!((directory.dev(), directory.ino()) == (root.dev(), root.ino()), "it is not in /");
    // proc(5): the files of a process that is not dumpable belong to root. `tests/attacks.rs` tries
    // what follows from that.
    ensure!(metadata("fd")?.uid() != metadata("")?.uid(), "/proc/1/fd belongs to its user");
    reaps(&sandbox, &ORPHANS, "10")?;
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

/// Runs a helper that makes orphans: none is left, and PID 1 has not been woken for any of them.
fn reaps(sandbox: &Sandbox, helper: &'static Helper, number: &str) -> Result<()> {
    let before = context_switches(sandbox.pid)?;
    sandbox.run(helper, &[number])?;
    no_child_is_left(sandbox)?;
    let after = context_switches(sandbox.pid)?;
    ensure!(before == after, "it was woken: {before:?}, then {after:?}");
    Ok(())
}

fn no_child_is_left(sandbox: &Sandbox) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(sandbox.pid).is_empty())
}

fn survives(setup: &Setup, helper: &'static Helper, number: &str) -> Result<()> {
    let sandbox = setup.asleep()?;
    reaps(&sandbox, helper, number)?;
    sleeps_reaps_and_stops(sandbox)
}

/// Checks a PID 1 that inherits what `helper` leaves to it.
fn inherits(setup: &Setup, helper: &'static Helper) -> Result<()> {
    sleeps_reaps_and_stops(setup.prepared(helper).asleep()?)
}

// Signals.

/// The kernel itself is the sender, as with `docker run -it`.
fn ctrl_c_exits_with_0(setup: &Setup) -> Result<()> {
    let terminal = openpty(None, None)?;
    let sandbox =
        Setup { stdout: stream(terminal.slave), ..setup.prepared(&TAKE_TERMINAL) }.asleep()?;
    unistd::write(&terminal.master, b"\x03")?;
    sandbox.ends(0, SIGINT_MESSAGE)
}

helper!(
    TAKE_TERMINAL = |_| {
        setsid()?;
        // SAFETY: a descriptor and a number.
        ensure!(unsafe { libc::ioctl(1, libc::TIOCSCTTY, 0) } == 0, "stdout is no free terminal");
        Ok(())
    }
);

fn handlers_do_not_interrupt_each_other(setup: &Setup) -> Result<()> {
    let sandbox = setup.asleep()?;
    sandbox.signal(Signal::SIGSTOP)?;
    wait_until("PID 1 is stopped", || state(sandbox.pid) == Some('T'))?;
    sandbox.signal(Signal::SIGTERM)?;
    sandbox.signal(Signal::SIGINT)?;
    // The kernel delivers the lower number first. signal-hook lets the other one interrupt its handler.
    let message = if setup.libraries { STOPPED } else { SIGINT_MESSAGE };
    sandbox.stops(Signal::SIGCONT, message)
}

// Inherited state.

helper!(LEAVE_DEAD_CHILDREN = leave_dead_children);

/// Leaves zombies, of which one has another exit signal than SIGCHLD.
fn leave_dead_children(_: &[OsString]) -> Result<()> {
    spawn(|| Ok(()))?;
    spawn(|| Ok(()))?;
    spawn_with(CloneFlags::empty(), Some(libc::SIGUSR1), || Ok(()))?;
    let zombies = || children(Pid::this()).into_iter().filter(|&pid| state(pid) == Some('Z'));
    wait_until("three children are zombies", || zombies().count() == 3)
}

helper!(
    IGNORE_SIGNALS = |_| {
        for number in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            // SAFETY: no handler is installed.
            unsafe { signal(number, SigHandler::SigIgn)? };
        }
        Ok(())
    }
);
helper!(BLOCK_SIGNALS = |_| Ok(SigSet::all().thread_set_mask()?));
helper!(CHANGE_DIRECTORY = |_| Ok(env::set_current_dir("/proc/self")?));
helper!(
    EMPTY_ARGV = |_| {
        let none: [&CStr; 0] = [];
        execv(c"/pause", &none).map(drop).context("cannot start /pause")
    }
);
helper!(REFUSE_SIGTERM = |_| refuse(libc::SYS_rt_sigaction, Some(libc::SIGTERM), libc::EPERM));

// A way to start it without an image: docs/embedding.md.

/// (No helper can join these mounts: it would not find /proc. But there are children to reap.)
fn starts_from_memfd_in_empty_root(setup: &Setup) -> Result<()> {
    let sandbox = setup.prepared(&MEMFD_IN_EMPTY_ROOT).asleep()?;
    no_child_is_left(&sandbox)?;
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

helper!(MEMFD_IN_EMPTY_ROOT = become_memfd);

/// Becomes a sealed copy of `/pause` in memory, with an empty environment and in an empty root.
fn become_memfd(_: &[OsString]) -> Result<()> {
    leave_dead_children(&[])?;
    let create = |flags| memfd_create(c"pause", MFdFlags::from_bits_retain(flags));
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Linux before 6.3 does not know MFD_EXEC, and makes every memfd executable.
    let mut file: File = create(flags | libc::MFD_EXEC).or_else(|_| create(flags))?.into();
    file.write_all(&fs::read("/pause")?)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;

    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    // The new user namespace has undone this.
    set_pdeathsig(Signal::SIGKILL)?;
    let (none, root) = (None::<&str>, "/emulator");
    mount(none, root, Some("tmpfs"), MsFlags::MS_RDONLY, none)?;
    unistd::chdir(root)?;
    unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;

    let environment: [&CStr; 0] = [];
    execveat(&file, c"", &[c"/pause"], &environment, AtFlags::AT_EMPTY_PATH)
        .map(drop)
        .context("cannot start the file")
}

/// Leaks copies of a pipe. Reading from it ends when the last copy is closed.
fn closes_leaked(setup: &Setup, leak: &'static Helper) -> Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let sandbox = Setup { stdout: stream(writer), ..setup.prepared(leak) }.asleep()?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    ensure!(reader.read(&mut [0]).is_ok_and(|read| read == 0), "a descriptor is still open");
    sleeps_reaps_and_stops(sandbox)
}

helper!(LEAK_DESCRIPTORS = leak_descriptors);

/// Leaves copies of stdout from 3, the first number, to 1023, the last that the default limit allows,
/// and closes stdout. (Not at every number: a dynamic loader needs some.)
fn leak_descriptors(_: &[OsString]) -> Result<()> {
    for number in [3, 4, 5, 100, 1022, 1023] {
        // SAFETY: nothing uses these descriptors before exec but the report of an error.
        ensure!(unsafe { libc::dup2(1, number) } == number, "cannot leak {number}");
    }
    Ok(dup2_stdout(io::stdin())?)
}

helper!(
    LEAK_ON_OLD_KERNEL = |arguments| {
        leak_descriptors(arguments)?;
        refuse(libc::SYS_close_range, None, libc::ENOSYS)
    }
);

fn keeps_one_page_of_anonymous_memory(setup: &Setup) -> Result<()> {
    let page = unistd::sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page")?;
    // Addresses are randomized, so that some starts need one page only in any case.
    for _ in 0..10 {
        let sandbox = setup.asleep()?;
        let kept = anonymous(sandbox.pid)? * 1024;
        ensure!(kept == page as u64, "{kept} bytes, where a page has {page}");
        let strings = fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid))?;
        ensure!(strings == "/pause\0", "ps shows {strings:?}");
        sandbox.stops(Signal::SIGTERM, STOPPED)?;
    }
    Ok(())
}

// Standard streams.

helper!(CLOSE_STREAMS = |_| Ok((0..=2).try_for_each(unistd::close)?));
helper!(CLOSE_STDOUT = |_| Ok(unistd::close(1)?));

/// A full device, and a pipe without a reader.
fn unwritable() -> io::Result<[Option<Arc<OwnedFd>>; 2]> {
    let (_, writer) = io::pipe()?;
    Ok([stream(File::options().write(true).open("/dev/full")?), stream(writer)])
}

fn unusable_standard_streams_are_tolerated(setup: &Setup) -> Result<()> {
    // Nobody reads from this pipe, and nobody closes it, so a write would wait forever.
    let (_reader, mut full_pipe) = io::pipe()?;
    fcntl(&full_pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while full_pipe.write(&[b'.'; 4096]).is_ok() {}
    fcntl(&full_pipe, FcntlArg::F_SETFL(OFlag::empty()))?;
    let [full_device, without_reader] = unwritable()?;
    let streams = [full_device, without_reader, stream(full_pipe)];
    for not_pid_1 in [false, true] {
        let setup = Setup { not_pid_1, ..setup.clone() };
        for (stream, name) in streams.iter().zip(["full device", "no reader", "full pipe"]) {
            let setup = Setup { stdout: stream.clone(), stderr: stream.clone(), ..setup.clone() };
            setup.asleep().and_then(|it| it.stops(Signal::SIGTERM, "")).context(name)?;
        }
        setup.prepared(&CLOSE_STREAMS).asleep()?.stops(Signal::SIGTERM, "").context("closed")?;
    }
    Ok(())
}

// Not PID 1.

/// Each message is one write.
fn not_pid_1_warns(setup: &Setup) -> Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    let setup = Setup { stderr: stream(far), ..with_arguments(setup, &["x"]) };
    setup.asleep()?.stops(Signal::SIGTERM, "")?;
    near.set_nonblocking(true)?;
    let mut buffer = [0; 4096];
    let mut next = || near.recv(&mut buffer).map(|length| buffer[..length].to_vec());
    let messages: Vec<_> = iter::from_fn(|| next().ok()).collect();
    ensure!(messages == [WARNING, IGNORED, STOPPED].map(str::as_bytes), "{messages:?}");
    Ok(())
}

fn not_pid_1_dies_of_other_signals(setup: &Setup) -> Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGALRM] {
        let sandbox = Setup { not_pid_1: true, ..setup.clone() }.asleep()?;
        sandbox.signal(signal)?;
        let (end, _) = sandbox.wait()?;
        ensure!(end == Err(signal), "{end:?} after {signal}");
    }
    Ok(())
}

fn not_pid_1_is_subreaper(setup: &Setup) -> Result<()> {
    let (reader, writer) = io::pipe()?;
    let setup = Setup { not_pid_1: true, ..setup.prepared(&LEAVE_CHILD) };
    let sandbox = Setup { stdout: stream(writer), ..setup }.asleep()?;
    let mut parent = String::new();
    BufReader::new(reader).read_line(&mut parent)?;
    ensure!(parent.trim_end() == sandbox.pid.to_string(), "the orphan was adopted by {parent}");
    no_child_is_left(&sandbox)?;
    sandbox.stops(Signal::SIGTERM, &format!("{WARNING}{STOPPED}"))
}

helper!(LEAVE_CHILD = leave_child);

/// Leaves a child that makes an orphan when `/pause` sleeps. The orphan prints its parent.
fn leave_child(_: &[OsString]) -> Result<()> {
    let print_parent = || {
        println!("{}", getppid());
        Ok(())
    };
    let child = || {
        wait_until("/pause sleeps", || is_asleep(getppid()))?;
        abandon(print_parent)
    };
    spawn(child).map(drop)
}

// Arguments.

/// (PID 1 would survive SIGPIPE and SIGXFSZ in any case.)
fn with_arguments(setup: &Setup, arguments: &[&str]) -> Setup {
    let arguments = arguments.iter().map(OsString::from).collect();
    Setup { arguments, not_pid_1: true, ..setup.clone() }
}

/// Runs a program with arguments, which has to exit with 0, and returns its stdout.
fn output_of(setup: &Setup, arguments: &[&str]) -> Result<String> {
    let (reader, writer) = io::pipe()?;
    let sandbox = Setup { stdout: stream(writer), ..with_arguments(setup, arguments) }.start()?;
    sandbox.ends(0, "").with_context(|| format!("{arguments:?}"))?;
    Ok(io::read_to_string(reader)?)
}

fn version_and_help_are_printed(setup: &Setup) -> Result<()> {
    // The first argument decides.
    for arguments in [&["-v"][..], &["-V"], &["--version"], &["--version", "x"]] {
        let output = output_of(setup, arguments)?;
        ensure!(output == VERSION, "{arguments:?} prints {output:?}");
    }
    for argument in ["-h", "--help"] {
        let output = output_of(setup, &[argument])?;
        for word in ["Usage: pause", "-v", "-V", "--version", "-h", "--help", "SIGTERM", "SIGINT"] {
            ensure!(output.contains(word), "{word} is not in {output:?}");
        }
        ensure!(output.ends_with('\n'));
    }
    Ok(())
}

fn failed_write_to_stdout_exits_with_1(setup: &Setup) -> Result<()> {
    for argument in ["--version", "--help"] {
        let setup = with_arguments(setup, &[argument]);
        // The text is longer than the 5 bytes by which this file may grow.
        let mut file = tempfile::tempfile()?;
        file.write_all(&[b'.'; 507])?;
        for stdout in unwritable()?.into_iter().chain([stream(file)]) {
            let setup = Setup { stdout, ..setup.prepared(&LIMIT_FILES) };
            setup.start()?.ends(1, CANNOT_WRITE)?;
        }
        setup.prepared(&CLOSE_STDOUT).start()?.ends(1, CANNOT_WRITE)?;
        setup.prepared(&CLOSE_STREAMS).start()?.ends(1, "")?;
    }
    Ok(())
}

helper!(LIMIT_FILES = |_| Ok(setrlimit(Resource::RLIMIT_FSIZE, 512, 512)?));

fn unknown_arguments_are_ignored(setup: &Setup) -> Result<()> {
    let is_ignored = |arguments: &[&[u8]]| {
        let arguments = arguments.iter().map(|word| OsStr::from_bytes(word).to_owned()).collect();
        let sandbox = Setup { arguments, ..setup.clone() }.asleep()?;
        sandbox.stops(Signal::SIGTERM, &format!("{IGNORED}{STOPPED}"))
    };
    for argument in ["", "-", "--", "-P", "-H", "-vv", "--versio", "--versions", "--version "] {
        is_ignored(&[argument.as_bytes()]).context(argument)?;
    }
    is_ignored(&[b"x", b"--version"])?;
    is_ignored(&[b"\xff\xfe\x80 not UTF-8 \n\x1b[31m"])?;
    is_ignored(&[&[b'x'; 60_000]])?;
    is_ignored(&[&b"--nothing"[..]; 10_000])?;
    // A single wrong byte.
    for known in ["-v", "-V", "--version", "-h", "--help"] {
        for index in 0..known.len() {
            let mut argument = known.as_bytes().to_vec();
            argument[index] ^= 1;
            is_ignored(&[&argument])?;
        }
    }
    Ok(())
}
