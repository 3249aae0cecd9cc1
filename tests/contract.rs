//! The contract of the process, tried on the release binary in both flavors and for every
//! architecture: as PID 1 of a sandbox, and as another process in one.
//!
//! What cannot be tried on this machine is ignored with the reason; with `PAUSE_NO_SKIP=1`, as in CI,
//! it fails. What no machine can try is not generated, see [`applies`].

#![expect(clippy::incompatible_msrv, reason = "only the product keeps to an older Rust")]

use anyhow::{Context, Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::{Helper, spawn, spawn_with};
use harness::orphans::{
    CLONED_ORPHANS, ORPHANS, SIMULTANEOUS_ORPHANS, STOPPED_ORPHANS, THREADED_ORPHANS,
    TRACED_ORPHANS, ZOMBIES, abandon,
};
use harness::proc::{TIMEOUT, activity, anonymous, children, is_asleep, state, wait_until};
use harness::sandbox::{self, End, IGNORED, STOPPED, Sandbox, Setup, WARNING};
use harness::seccomp::refuse;
use harness::target::TARGETS;
use harness::tests;
use harness::trial::{Trials, obstacle};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::pty::openpty;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{self, Pid, SysconfVar, dup2_stdout, execv, execve, execveat, getppid, setsid};
use procfs::process::Process;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, io, iter, thread};

const VERSION: &str = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");
const CANNOT_WRITE: &str = "pause: cannot write to stdout\n";

type Test = (&'static str, fn(&Setup) -> Result<()>);

const TESTS: &[Test] = tests![
    ctrl_c_exits_with_0,
    handlers_do_not_interrupt_each_other,
    can_be_stopped_and_continued,
    keeps_one_page_of_anonymous_memory,
    full_standard_streams_are_tolerated,
    stdout_without_reader_is_tolerated,
    stderr_without_reader_is_tolerated,
    full_pipe_as_stderr_is_tolerated,
    exit_ends_all_processes_of_the_namespace,
    refused_disposition_is_fatal,
    not_pid_1_warns,
    not_pid_1_is_subreaper,
    not_pid_1_dies_of_other_signals,
    version_and_help_are_printed,
    failed_write_to_stdout_exits_with_1,
    partial_write_to_stdout_exits_with_1,
    unknown_arguments_are_ignored,
];

/// Tests that differ in what they do, and not in what they check.
const VARIED: &[Test] = &[
    ("sigterm_exits_with_0", |it| still_works(it.clone().asleep()?)),
    ("sigint_exits_with_0", |it| it.clone().asleep()?.stops(Signal::SIGINT, "pause: SIGINT\n")),
    ("orphans_are_reaped_without_wake_up", |it| survives(it, &ORPHANS, "10000")),
    ("simultaneous_exits_are_reaped", |it| survives(it, &SIMULTANEOUS_ORPHANS, "500")),
    ("zombies_are_reaped_on_reparenting", |it| survives(it, &ZOMBIES, "500")),
    ("orphans_with_threads_are_reaped", |it| survives(it, &THREADED_ORPHANS, "100")),
    ("traced_orphans_are_reaped", |it| survives(it, &TRACED_ORPHANS, "200")),
    ("orphans_of_any_clone_are_reaped", |it| survives(it, &CLONED_ORPHANS, "300")),
    ("stopped_orphans_are_reaped", |it| survives(it, &STOPPED_ORPHANS, "200")),
    ("children_that_died_before_exec_are_reaped", |it| inherits(it, &LEAVE_DEAD_CHILDREN)),
    ("inherited_dispositions_are_replaced", |it| inherits(it, &IGNORE_SIGNALS)),
    ("inherited_signal_mask_is_cleared", |it| inherits(it, &BLOCK_SIGNALS)),
    ("inherited_descriptors_are_closed", |it| closes_leaked(it, &LEAK_DESCRIPTORS)),
    ("inherited_descriptors_are_closed_without_close_range", |it| closes_leaked(it, &LEAK_ON_OLD)),
    ("changes_to_the_root_directory", |it| inherits(it, &CHANGE_DIRECTORY)),
    ("empty_argv_is_no_argument", |it| inherits(it, &EMPTY_ARGV)),
    ("environment_is_not_needed", |it| inherits(it, &EMPTY_ENVIRONMENT)),
    ("starts_from_memfd", |it| inherits(it, &MEMFD)),
    ("starts_from_sealed_memfd", |it| inherits(it, &SEALED_MEMFD)),
    ("starts_from_memfd_in_empty_root", |it| starts_in_own_mounts(it, &EMPTY_ROOT)),
    ("starts_from_read_only_mount", |it| starts_in_own_mounts(it, &READ_ONLY_MOUNT)),
    ("closed_standard_streams_are_tolerated", |it| {
        prepared(it, &CLOSE_STREAMS).asleep()?.stops(Signal::SIGTERM, "")
    }),
];

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let no_sandbox = obstacle(sandbox::is_available());
    for (name, setup) in setups() {
        let setup = match setup {
            Ok(setup) => setup,
            // One line in place of all tests: one thing is missing.
            Err(error) => {
                trials.add(name, obstacle::<()>(Err(error)), || Ok(()));
                continue;
            }
        };
        for &(test, run) in TESTS.iter().chain(VARIED).filter(|(test, _)| applies(&setup, test)) {
            let setup = setup.clone();
            trials.add(format!("{name}::{test}"), no_sandbox.clone(), move || run(&setup));
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
        // The C library and std, or qemu, have memory of their own.
        "keeps_one_page_of_anonymous_memory" => !setup.libraries && emulator.is_none(),
        // qemu takes the program from argv, and does not know PR_SET_CHILD_SUBREAPER. The kernel
        // does not start qemu for these.
        "empty_argv_is_no_argument" | "environment_is_not_needed" | "not_pid_1_is_subreaper" => {
            emulator.is_none()
        }
        "starts_from_memfd" | "starts_from_sealed_memfd" => emulator.is_none(),
        // A root without libraries is for the freestanding flavor.
        "starts_from_memfd_in_empty_root" => !setup.libraries && emulator.is_none(),
        "starts_from_read_only_mount" => emulator.is_none(),
        // qemu looks for the mask of sigaction(2) behind a field that Linux does not have there.
        "handlers_do_not_interrupt_each_other" => !emulates("riscv64") && !emulates("loongarch64"),
        _ => true,
    }
}

/// The same, with a helper that runs before PID 1 becomes `/pause`.
fn prepared(setup: &Setup, helper: &'static Helper) -> Setup {
    Setup { preparation: Some(helper), ..setup.clone() }
}

/// A stream of `/pause`.
fn stream(fd: impl Into<OwnedFd>) -> Option<Arc<OwnedFd>> {
    Some(Arc::new(fd.into()))
}

/// Checks that PID 1 sleeps with nothing that it may have inherited, reaps, and exits with 0 on
/// SIGTERM.
fn still_works(sandbox: Sandbox) -> Result<()> {
    sandbox.wait_until_asleep()?;
    let blocked = Process::new(sandbox.pid.as_raw())?.status()?.sigblk;
    ensure!(blocked == 0, "{blocked:x} is blocked");
    let metadata = |name| fs::metadata(format!("/proc/{}/{name}", sandbox.pid));
    let (folder, root) = (metadata("cwd/")?, metadata("root/")?);
    ensure!((folder.dev(), folder.ino()) == (root.dev(), root.ino()), "its directory is not /");
    // proc(5): the files of a process that is not dumpable belong to root. `tests/attacks.rs` tries
    // what follows from that.
    ensure!(metadata("fd")?.uid() != metadata("")?.uid(), "/proc/1/fd belongs to its user");
    reaps(&sandbox, &ORPHANS, "10")?;
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

/// Lets `helper` make orphans: none is left, and PID 1 has not been woken for any of them.
fn reaps(sandbox: &Sandbox, helper: &Helper, number: &str) -> Result<()> {
    let before = activity(sandbox.pid)?;
    sandbox.run(helper, &[number])?;
    no_child_is_left(sandbox)?;
    let after = activity(sandbox.pid)?;
    ensure!(before == after, "it was woken: {before:?}, then {after:?}");
    Ok(())
}

fn no_child_is_left(sandbox: &Sandbox) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(sandbox.pid).is_empty())
}

fn survives(setup: &Setup, helper: &Helper, number: &str) -> Result<()> {
    let sandbox = setup.clone().asleep()?;
    reaps(&sandbox, helper, number)?;
    still_works(sandbox)
}

/// Lets PID 1 inherit what `helper` leaves to it.
fn inherits(setup: &Setup, helper: &'static Helper) -> Result<()> {
    still_works(prepared(setup, helper).asleep()?)
}

// Signals.

/// The kernel itself is the sender, as with `docker run -it`.
fn ctrl_c_exits_with_0(setup: &Setup) -> Result<()> {
    let terminal = openpty(None, None)?;
    let sandbox =
        Setup { stdout: stream(terminal.slave), ..prepared(setup, &TAKE_TERMINAL) }.asleep()?;
    unistd::write(&terminal.master, b"\x03")?;
    sandbox.ends(0, "pause: SIGINT\n")
}

helper!(
    TAKE_TERMINAL = |_| {
        setsid()?;
        // SAFETY: a descriptor and a number.
        ensure!(unsafe { libc::ioctl(1, libc::TIOCSCTTY, 0) } == 0, "stdout is no free terminal");
        Ok(())
    }
);

/// A sandbox whose PID 1 slept until it was stopped.
fn stopped(setup: &Setup) -> Result<Sandbox> {
    let sandbox = setup.clone().asleep()?;
    sandbox.signal(Signal::SIGSTOP)?;
    wait_until("it is stopped", || state(sandbox.pid) == Some('T'))?;
    Ok(sandbox)
}

fn handlers_do_not_interrupt_each_other(setup: &Setup) -> Result<()> {
    let sandbox = stopped(setup)?;
    sandbox.signal(Signal::SIGTERM)?;
    sandbox.signal(Signal::SIGINT)?;
    // The kernel delivers the lower number first. signal-hook lets the other one interrupt its handler.
    let message = if setup.libraries { STOPPED } else { "pause: SIGINT\n" };
    sandbox.stops(Signal::SIGCONT, message)
}

fn can_be_stopped_and_continued(setup: &Setup) -> Result<()> {
    let sandbox = stopped(setup)?;
    sandbox.signal(Signal::SIGCONT)?;
    wait_until("it is asleep again", || is_asleep(sandbox.pid))?;
    still_works(sandbox)
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
        let nothing: [&CStr; 0] = [];
        execv(c"/pause", &nothing).map(drop).context("cannot start /pause")
    }
);

helper!(
    EMPTY_ENVIRONMENT = |_| {
        let nothing: [&CStr; 0] = [];
        execve(c"/pause", &[c"/pause"], &nothing).map(drop).context("cannot start /pause")
    }
);

// Ways to start it without an image: docs/embedding.md.

helper!(MEMFD = |_| exec_from(memfd(0)?));
helper!(
    SEALED_MEMFD = |_| {
        let file = memfd(libc::MFD_ALLOW_SEALING)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
        exec_from(file)
    }
);
helper!(
    EMPTY_ROOT = |_| {
        leave_dead_children(&[])?;
        let file = memfd(0)?;
        own_mounts()?;
        let (nothing, root) = (None::<&str>, "/emulator");
        mount(nothing, root, Some("tmpfs"), MsFlags::MS_RDONLY, nothing)?;
        unistd::chdir(root)?;
        unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        exec_from(file)
    }
);
helper!(
    READ_ONLY_MOUNT = |_| {
        leave_dead_children(&[])?;
        own_mounts()?;
        let (nothing, flags) = (None::<&str>, MsFlags::MS_BIND);
        mount(Some("/pause"), "/pause", nothing, flags, nothing)?;
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(nothing, "/pause", nothing, flags, nothing)?;
        execv(c"/pause", &[c"/pause"]).map(drop).context("cannot start /pause")
    }
);

/// A copy of `/pause` in memory.
fn memfd(flags: u32) -> Result<File> {
    let create = |flags| {
        // SAFETY: a string and a number.
        Errno::result(unsafe { libc::memfd_create(c"pause".as_ptr(), flags) })
    };
    let flags = flags | libc::MFD_CLOEXEC;
    // Linux before 6.3 does not know MFD_EXEC, and makes every memfd executable.
    let fd = create(flags | libc::MFD_EXEC).or_else(|_| create(flags))?;
    // SAFETY: nothing else owns the new descriptor.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&fs::read("/pause")?)?;
    Ok(file)
}

/// Becomes the program in a file, which needs no path.
fn exec_from(file: File) -> Result<()> {
    let nothing: [&CStr; 0] = [];
    execveat(&file, c"", &[c"/pause"], &nothing, AtFlags::AT_EMPTY_PATH)
        .map(drop)
        .context("cannot start the file")
}

/// Moves to mounts of its own, which this process may change.
fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    // The new user namespace has undone this.
    Ok(set_pdeathsig(Signal::SIGKILL)?)
}

/// (No helper can join these mounts: it would not find /proc. But there are children to reap.)
fn starts_in_own_mounts(setup: &Setup, helper: &'static Helper) -> Result<()> {
    let sandbox = prepared(setup, helper).asleep()?;
    let mounts = Process::new(sandbox.pid.as_raw())?.mountinfo()?;
    let last = mounts.into_iter().last().context("there is no mount")?;
    ensure!(last.mount_options.contains_key("ro"), "{} is writable", last.mount_point.display());
    no_child_is_left(&sandbox)?;
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

/// Leaks copies of a pipe. Reading from it ends when the last copy is closed.
fn closes_leaked(setup: &Setup, leak: &'static Helper) -> Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let sandbox = Setup { stdout: stream(writer), ..prepared(setup, leak) }.asleep()?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    ensure!(reader.read(&mut [0]).is_ok_and(|read| read == 0), "a descriptor is still open");
    still_works(sandbox)
}

helper!(LEAK_DESCRIPTORS = leak_descriptors);

/// Leaves copies of stdout from 3, the first number, to 1023, the last that the default limit allows,
/// and closes stdout. (Not at every number: a dynamic loader needs some.)
fn leak_descriptors(_: &[OsString]) -> Result<()> {
    for number in [3, 4, 5, 100, 1022, 1023] {
        // SAFETY: nothing uses these descriptors before exec but the report of an error, and a
        // sandbox without its report does not start.
        ensure!(unsafe { libc::dup2(1, number) } == number, "cannot leak {number}");
    }
    Ok(dup2_stdout(io::stdin())?)
}

helper!(LEAK_ON_OLD = leak_on_old_kernel);

fn leak_on_old_kernel(arguments: &[OsString]) -> Result<()> {
    leak_descriptors(arguments)?;
    refuse(libc::SYS_close_range, None, libc::ENOSYS)
}

fn keeps_one_page_of_anonymous_memory(setup: &Setup) -> Result<()> {
    let page = unistd::sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page")?;
    // Addresses are randomized, so that some starts need one page only in any case.
    for _ in 0..10 {
        let sandbox = setup.clone().asleep()?;
        let kept = anonymous(sandbox.pid)? * 1024;
        ensure!(kept == page as u64, "{kept} bytes, where a page has {page}");
        let strings = fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid))?;
        ensure!(strings == "/pause\0", "ps shows {strings:?}");
        sandbox.stops(Signal::SIGTERM, STOPPED)?;
    }
    Ok(())
}

// Standard streams.

helper!(CLOSE_STREAMS = |_| close(0..3));
helper!(CLOSE_STDOUT = |_| close(1..2));

fn close(streams: Range<i32>) -> Result<()> {
    for fd in streams {
        // SAFETY: nothing here uses this stream any more.
        ensure!(unsafe { libc::close(fd) } == 0, "cannot close {fd}");
    }
    Ok(())
}

fn full() -> io::Result<File> {
    File::options().write(true).open("/dev/full")
}

fn without_reader() -> io::Result<PipeWriter> {
    io::pipe().map(|(_, writer)| writer)
}

fn full_standard_streams_are_tolerated(setup: &Setup) -> Result<()> {
    let setup = Setup { stdout: stream(full()?), stderr: stream(full()?), ..setup.clone() };
    setup.asleep()?.stops(Signal::SIGTERM, "")
}

fn stdout_without_reader_is_tolerated(setup: &Setup) -> Result<()> {
    still_works(Setup { stdout: stream(without_reader()?), ..setup.clone() }.asleep()?)
}

fn stderr_without_reader_is_tolerated(setup: &Setup) -> Result<()> {
    let setup = Setup { not_pid_1: true, stderr: stream(without_reader()?), ..setup.clone() };
    setup.asleep()?.stops(Signal::SIGTERM, "")
}

/// Nobody reads from the pipe, and nobody closes it, so a write would wait forever.
fn full_pipe_as_stderr_is_tolerated(setup: &Setup) -> Result<()> {
    for not_pid_1 in [false, true] {
        let (reader, mut writer) = io::pipe()?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        while writer.write(&[b'.'; 4096]).is_ok() {}
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
        let setup = Setup { not_pid_1, stderr: stream(writer), ..setup.clone() };
        setup.asleep()?.stops(Signal::SIGTERM, "")?;
        drop(reader);
    }
    Ok(())
}

/// All datagrams that were sent to a socket, whose other end is closed by now.
fn datagrams(socket: UnixDatagram) -> Result<Vec<String>> {
    socket.set_nonblocking(true)?;
    let mut buffer = [0; 4096];
    let mut next = || socket.recv(&mut buffer).map(|length| buffer[..length].to_vec());
    let received = iter::from_fn(|| next().ok());
    Ok(received.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect())
}

// Exit.

fn exit_ends_all_processes_of_the_namespace(setup: &Setup) -> Result<()> {
    let sandbox = setup.clone().asleep()?;
    sandbox.run(&THREE_SLEEPERS, &[])?;
    let sleepers = children(sandbox.pid);
    ensure!(sleepers.len() == 3, "{} sleepers", sleepers.len());
    sandbox.stops(Signal::SIGTERM, STOPPED)?;
    // PID 1 ends after all others, so there is nothing to wait for.
    for sleeper in sleepers {
        ensure!(state(sleeper).is_none(), "{sleeper} is still there");
    }
    Ok(())
}

helper!(THREE_SLEEPERS = three_sleepers);

/// Leaves three orphans that never end.
fn three_sleepers(_: &[OsString]) -> Result<()> {
    for _ in 0..3 {
        abandon(|| {
            // The reader of their output would wait for them.
            close(0..3)?;
            loop {
                thread::park();
            }
        })?;
    }
    Ok(())
}

fn refused_disposition_is_fatal(setup: &Setup) -> Result<()> {
    // `tests/faults.rs` refuses the others as well.
    prepared(setup, &REFUSE_SIGTERM).start()?.ends(1, "pause: cannot handle SIGTERM\n")
}

helper!(REFUSE_SIGTERM = |_| refuse(libc::SYS_rt_sigaction, Some(libc::SIGTERM), libc::EPERM));

// Not PID 1.

fn not_pid_1_warns(setup: &Setup) -> Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    let setup = Setup { not_pid_1: true, stderr: stream(far), ..setup.clone() };
    setup.asleep()?.stops(Signal::SIGTERM, "")?;
    let messages = datagrams(near)?;
    ensure!(messages == [WARNING, STOPPED], "{messages:?}");
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
    let (mut near, far) = UnixStream::pair()?;
    near.set_read_timeout(Some(TIMEOUT))?;
    let setup = prepared(setup, &LEAVE_CHILD);
    let sandbox = Setup { not_pid_1: true, stdout: stream(far), ..setup }.asleep()?;
    near.write_all(&[0])?;
    let mut parent = String::new();
    BufReader::new(near).read_line(&mut parent)?;
    ensure!(parent == "2\n", "the orphan was adopted by {parent}");
    no_child_is_left(&sandbox)?;
    sandbox.stops(Signal::SIGTERM, &format!("{WARNING}{STOPPED}"))
}

helper!(LEAVE_CHILD = leave_child);

/// Leaves a child that makes an orphan when it can read from stdout. The orphan prints its parent.
fn leave_child(_: &[OsString]) -> Result<()> {
    let child = || {
        sandbox::close_descriptors()?;
        let mut start = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        start.read_exact(&mut [0])?;
        abandon(|| {
            println!("{}", getppid());
            Ok(())
        })
    };
    spawn(child).map(drop)
}

// Arguments.

/// (PID 1 would survive SIGPIPE and SIGXFSZ in any case.)
fn with_arguments(setup: &Setup, arguments: &[impl AsRef<OsStr>]) -> Setup {
    let arguments = arguments.iter().map(|it| it.as_ref().to_owned()).collect();
    Setup { arguments, not_pid_1: true, ..setup.clone() }
}

/// Runs a program to its end and returns that, its stdout and its stderr.
fn run(setup: Setup) -> Result<(End, Vec<u8>, Vec<u8>)> {
    let (mut reader, writer) = io::pipe()?;
    let (end, stderr) = Setup { stdout: stream(writer), ..setup }.start()?.wait()?;
    let mut stdout = Vec::new();
    reader.read_to_end(&mut stdout)?;
    Ok((end, stdout, stderr))
}

fn version_and_help_are_printed(setup: &Setup) -> Result<()> {
    // The first argument decides.
    for arguments in [&["-v"][..], &["-V"], &["--version"], &["--version", "x"]] {
        let result = run(with_arguments(setup, arguments))?;
        ensure!(result == (Ok(0), VERSION.into(), vec![]), "{arguments:?}: {result:?}");
    }
    for argument in ["-h", "--help"] {
        let (end, stdout, stderr) = run(with_arguments(setup, &[argument]))?;
        ensure!(end == Ok(0) && stderr.is_empty(), "{argument}: {end:?}");
        let text = String::from_utf8(stdout)?;
        for word in ["Usage: pause", "-v", "-V", "--version", "-h", "--help", "SIGTERM", "SIGINT"] {
            ensure!(text.contains(word), "{word} is not in {text:?}");
        }
        ensure!(text.ends_with('\n'));
    }
    Ok(())
}

fn failed_write_to_stdout_exits_with_1(setup: &Setup) -> Result<()> {
    for argument in ["--version", "--help"] {
        let setup = with_arguments(setup, &[argument]);
        for stdout in [stream(full()?), stream(without_reader()?)] {
            Setup { stdout, ..setup.clone() }.start()?.ends(1, CANNOT_WRITE)?;
        }
        prepared(&setup, &CLOSE_STDOUT).start()?.ends(1, CANNOT_WRITE)?;
        prepared(&setup, &CLOSE_STREAMS).start()?.ends(1, "")?;
    }
    Ok(())
}

fn partial_write_to_stdout_exits_with_1(setup: &Setup) -> Result<()> {
    // The message is longer than the rest of what the file may have.
    let mut file = tempfile::tempfile()?;
    file.write_all(&[b'.'; 507])?;
    let setup = prepared(&with_arguments(setup, &["--version"]), &LIMIT_FILES);
    Setup { stdout: stream(file.try_clone()?), ..setup }.start()?.ends(1, CANNOT_WRITE)?;
    ensure!(file.metadata()?.len() == 512, "the file is not full");
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
    // Each message is one write.
    let (near, far) = UnixDatagram::pair()?;
    let setup = Setup { stderr: stream(far), ..with_arguments(setup, &["x"]) };
    setup.asleep()?.stops(Signal::SIGTERM, "")?;
    let messages = datagrams(near)?;
    ensure!(messages == [WARNING, IGNORED, STOPPED], "{messages:?}");
    Ok(())
}
