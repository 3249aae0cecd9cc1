//! The contract of the process, tried on the release binary in both flavors: as PID 1 of a new PID
//! namespace, and as an ordinary process.
//!
//! What cannot be tried on this machine is ignored with the reason; with `PAUSE_NO_SKIP=1`, as in CI,
//! it fails. What no machine can try is not generated, see [`Subject::applies`].

#![expect(clippy::incompatible_msrv, reason = "only the product keeps to an older Rust")]

use anyhow::{Context, Result, bail, ensure};
use harness::build::{self, Flavor};
use harness::helper;
use harness::helper::{Helper, spawn};
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS, THREADED_ORPHANS, ZOMBIES, abandon};
use harness::proc::{TIMEOUT, activity, anonymous, children, is_asleep, state, wait_until};
use harness::sandbox::{self, Sandbox, Setup};
use harness::seccomp::refuse;
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Trials, obstacle};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::openpty;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::unistd::{self, Pid, SysconfVar, dup2_stdout, execv, getppid, setsid};
use procfs::process::Process;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::{env, io, iter, thread};

const STOPPED: &str = "pause: SIGTERM\n";
const WARNING: &str = "pause: warning: not PID 1\n";
const VERSION: &str = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");

/// The binary under test.
#[derive(Clone)]
struct Subject {
    flavor: Flavor,
    binary: PathBuf,
    /// Program that runs the binary where the machine cannot.
    emulator: Option<PathBuf>,
}

type Test = (&'static str, fn(&Subject) -> Result<()>);

/// Tests in a sandbox.
const SANDBOXED: &[Test] = tests![
    ctrl_c_exits_with_0,
    handlers_do_not_interrupt_each_other,
    can_be_stopped_and_continued,
    children_that_died_before_exec_are_reaped,
    inherited_dispositions_are_replaced,
    inherited_signal_mask_is_cleared,
    changes_to_the_root_directory,
    is_not_dumpable,
    keeps_one_page_of_anonymous_memory,
    closed_standard_streams_are_tolerated,
    full_standard_streams_are_tolerated,
    stdout_without_reader_is_tolerated,
    exit_ends_all_processes_of_the_namespace,
    empty_argv_is_no_argument,
    refused_disposition_is_fatal,
];

/// Tests in a sandbox that differ in what they do, and not in what they check.
const VARIED: &[Test] = &[
    ("sigterm_exits_with_0", |it| stops_cleanly(it.asleep()?, Signal::SIGTERM, STOPPED)),
    ("sigint_exits_with_0", |it| stops_cleanly(it.asleep()?, Signal::SIGINT, "pause: SIGINT\n")),
    ("orphans_are_reaped_without_wake_up", |it| reaps(it, &ORPHANS, "10000")),
    ("simultaneous_exits_are_reaped", |it| reaps(it, &SIMULTANEOUS_ORPHANS, "500")),
    ("zombies_are_reaped_on_reparenting", |it| reaps(it, &ZOMBIES, "500")),
    ("orphans_with_threads_are_reaped", |it| reaps(it, &THREADED_ORPHANS, "100")),
    ("inherited_descriptors_are_closed", |it| closes_leaked(it, &LEAK_DESCRIPTORS)),
    ("inherited_descriptors_are_closed_without_close_range", |it| closes_leaked(it, &LEAK_ON_OLD)),
];

/// Tests without a sandbox.
const UNSANDBOXED: &[Test] = tests![
    not_pid_1_warns,
    not_pid_1_is_subreaper,
    not_pid_1_dies_of_other_signals,
    stderr_without_reader_is_tolerated,
    version_and_help_are_printed,
    failed_write_to_stdout_exits_with_1,
    partial_write_to_stdout_exits_with_1,
    unknown_arguments_are_refused,
];

fn main() -> ExitCode {
    helper::dispatch();
    let mut trials = Trials::new();
    let no_sandbox = obstacle(sandbox::is_available());
    let emulators = tempfile::tempdir().expect("a folder for the emulators");
    for (name, subject) in subjects(emulators.path()) {
        let subject = match subject {
            Ok(subject) => subject,
            // One line in place of all tests: one thing is missing.
            Err(error) => {
                trials.add(name, obstacle::<()>(Err(error)), || Ok(()));
                continue;
            }
        };
        for (tests, obstacle) in
            [(UNSANDBOXED, &None), (VARIED, &no_sandbox), (SANDBOXED, &no_sandbox)]
        {
            for &(test, function) in tests.iter().filter(|(test, _)| subject.applies(test)) {
                let subject = subject.clone();
                trials.add(format!("{name}::{test}"), obstacle.clone(), move || function(&subject));
            }
        }
    }
    trials.run()
}

/// Both flavors for this machine, and the freestanding one for every other target.
fn subjects(emulators: &Path) -> Vec<(String, Result<Subject>)> {
    let native = [Flavor::Freestanding, Flavor::Hosted].map(|flavor| {
        let subject = build::build(flavor).map(|binary| Subject { flavor, binary, emulator: None });
        (format!("{flavor:?}").to_lowercase(), subject)
    });
    let foreign = TARGETS.iter().filter(|target| !target.is_native());
    let foreign = foreign.map(|target| (target.triple.to_owned(), emulated(target, emulators)));
    native.into_iter().chain(foreign).collect()
}

/// The freestanding binary for another target, with a copy of the emulator: the kernel takes the name
/// of the process from it.
fn emulated(target: &Target, folder: &Path) -> Result<Subject> {
    let (original, binary) = (target.user_emulator()?, target.build()?);
    let emulator = folder.join(target.triple).join("pause");
    fs::create_dir(folder.join(target.triple))?;
    fs::copy(original, &emulator)?;
    Ok(Subject { flavor: Flavor::Freestanding, binary, emulator: Some(emulator) })
}

impl Subject {
    /// Whether a test makes sense for this binary.
    fn applies(&self, test: &str) -> bool {
        let emulator = self.emulator.as_ref().map(|path| path.to_string_lossy());
        let emulates = |arch| emulator.as_ref().is_some_and(|path| path.contains(arch));
        match test {
            // The C library and std, or qemu, have memory of their own.
            "keeps_one_page_of_anonymous_memory" => {
                self.flavor == Flavor::Freestanding && emulator.is_none()
            }
            // qemu takes the program from argv, and does not know PR_SET_CHILD_SUBREAPER.
            "empty_argv_is_no_argument" | "not_pid_1_is_subreaper" => emulator.is_none(),
            // qemu looks for the mask of sigaction(2) behind a field that Linux does not have there.
            "handlers_do_not_interrupt_each_other" => {
                !emulates("/riscv64") && !emulates("/loongarch64")
            }
            _ => true,
        }
    }

    fn setup(&self) -> Setup {
        let setup = Setup::new(&self.binary).with_libraries(self.flavor == Flavor::Hosted);
        match &self.emulator {
            Some(emulator) => setup.emulated_by(emulator),
            None => setup,
        }
    }

    /// A sandbox in which `/pause` sleeps.
    fn asleep(&self) -> Result<Sandbox> {
        asleep(self.setup())
    }

    /// A command that runs the binary without a sandbox.
    fn command(&self) -> Command {
        let [program, arguments @ ..] = &*self.words() else { unreachable!("there is a program") };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// The same for arguments that make it exit: it is killed if it does not.
    fn short_command(&self) -> Command {
        let mut command = limited();
        command.args(self.words()).stdin(Stdio::null());
        command
    }

    /// The program to run, with the binary as its argument if it is an emulator.
    fn words(&self) -> Vec<&Path> {
        self.emulator.iter().chain([&self.binary]).map(PathBuf::as_path).collect()
    }
}

/// timeout(1), for the command that is to be added.
fn limited() -> Command {
    let mut command = Command::new("timeout");
    command.arg("--signal=KILL").arg(TIMEOUT.as_secs().to_string());
    command
}

fn asleep(setup: Setup) -> Result<Sandbox> {
    let sandbox = setup.start()?;
    sandbox.wait_until_asleep()?;
    Ok(sandbox)
}

/// Stops a sandbox by `signal`: exit code 0, and nothing on stderr but `message`.
fn stops_cleanly(sandbox: Sandbox, signal: Signal, message: &str) -> Result<()> {
    sandbox.signal(signal)?;
    ends_cleanly(sandbox, message)
}

/// Waits for the end of a sandbox: exit code 0, and nothing on stderr but `message`.
fn ends_cleanly(sandbox: Sandbox, message: &str) -> Result<()> {
    let (status, stderr) = sandbox.wait()?;
    ensure!(status.code() == Some(0) && stderr == message, "{status}, stderr is {stderr:?}");
    Ok(())
}

/// Checks that PID 1 sleeps and exits with 0 on SIGTERM.
fn still_works(sandbox: Sandbox) -> Result<()> {
    sandbox.wait_until_asleep()?;
    stops_cleanly(sandbox, Signal::SIGTERM, STOPPED)
}

fn no_child_is_left(sandbox: &Sandbox) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(sandbox.pid).is_empty())
}

// Signals.

/// The kernel itself is the sender, as with `docker run -it`.
fn ctrl_c_exits_with_0(subject: &Subject) -> Result<()> {
    let terminal = openpty(None, None)?;
    let sandbox = asleep(subject.setup().stdout(terminal.slave).prepare(&TAKE_TERMINAL))?;
    unistd::write(&terminal.master, b"\x03")?;
    ends_cleanly(sandbox, "pause: SIGINT\n")
}

helper!(
    TAKE_TERMINAL = |_| {
        setsid()?;
        // SAFETY: a descriptor and a number.
        ensure!(unsafe { libc::ioctl(1, libc::TIOCSCTTY, 0) } == 0, "stdout is no free terminal");
        Ok(())
    }
);

fn handlers_do_not_interrupt_each_other(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.signal(Signal::SIGSTOP)?;
    wait_until("it is stopped", || state(sandbox.pid) == Some('T'))?;
    sandbox.signal(Signal::SIGTERM)?;
    sandbox.signal(Signal::SIGINT)?;
    // The kernel delivers the lower number first. signal-hook lets the other one interrupt its handler.
    let message = match subject.flavor {
        Flavor::Freestanding => "pause: SIGINT\n",
        Flavor::Hosted => STOPPED,
    };
    stops_cleanly(sandbox, Signal::SIGCONT, message)
}

/// All datagrams that were sent to a socket, whose other end is closed by now.
fn datagrams(socket: UnixDatagram) -> Result<Vec<String>> {
    socket.set_nonblocking(true)?;
    let mut buffer = [0; 4096];
    let mut next = || socket.recv(&mut buffer).map(|length| buffer[..length].to_vec());
    let received = iter::from_fn(|| next().ok());
    Ok(received.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect())
}

fn can_be_stopped_and_continued(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.signal(Signal::SIGSTOP)?;
    wait_until("it is stopped", || state(sandbox.pid) == Some('T'))?;
    sandbox.signal(Signal::SIGCONT)?;
    wait_until("it is asleep again", || is_asleep(sandbox.pid))?;
    still_works(sandbox)
}

// Orphans.

/// Lets `helper` make orphans: none is left, and PID 1 has not been woken for any of them.
fn reaps(subject: &Subject, helper: &Helper, number: &str) -> Result<()> {
    let sandbox = subject.asleep()?;
    let before = activity(sandbox.pid)?;
    sandbox.run(helper, &[number])?;
    no_child_is_left(&sandbox)?;
    let after = activity(sandbox.pid)?;
    ensure!(before == after, "it was woken: {before:?}, then {after:?}");
    still_works(sandbox)
}

fn children_that_died_before_exec_are_reaped(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepare(&LEAVE_DEAD_CHILDREN))?;
    no_child_is_left(&sandbox)?;
    still_works(sandbox)
}

helper!(LEAVE_DEAD_CHILDREN = leave_dead_children);

/// Leaves zombies, of which one has another exit signal than SIGCHLD.
fn leave_dead_children(_: &[OsString]) -> Result<()> {
    spawn(|| Ok(()))?;
    spawn(|| Ok(()))?;
    // SAFETY: like fork(2), in a process with one thread; the null pointers stand for the parent's
    // stack and for no thread ids.
    if unsafe { libc::syscall(libc::SYS_clone, libc::SIGUSR1, 0, 0, 0, 0) } == 0 {
        // SAFETY: leaves at once, and touches nothing that was copied.
        unsafe { libc::_exit(0) };
    }
    let zombies = || children(Pid::this()).into_iter().filter(|&pid| state(pid) == Some('Z'));
    wait_until("three children are zombies", || zombies().count() == 3)
}

// Inherited state.

fn inherited_dispositions_are_replaced(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepare(&IGNORE_SIGNALS))?;
    sandbox.run(&ORPHANS, &["100"])?;
    no_child_is_left(&sandbox)?;
    still_works(sandbox)
}

helper!(IGNORE_SIGNALS = ignore_signals);

fn ignore_signals(_: &[OsString]) -> Result<()> {
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn)? };
    }
    Ok(())
}

fn inherited_signal_mask_is_cleared(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepare(&BLOCK_SIGNALS))?;
    let blocked = Process::new(sandbox.pid.as_raw())?.status()?.sigblk;
    ensure!(blocked == 0, "{blocked:x} is blocked");
    still_works(sandbox)
}

helper!(BLOCK_SIGNALS = |_| Ok(SigSet::all().thread_set_mask()?));

/// Leaks copies of a pipe. Reading from it ends when the last copy is closed.
fn closes_leaked(subject: &Subject, leak: &Helper) -> Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let sandbox = asleep(subject.setup().stdout(writer).prepare(leak))?;
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

fn changes_to_the_root_directory(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepare(&CHANGE_DIRECTORY))?;
    let folder = sandbox.run(&PRINT_DIRECTORY_OF_INIT, &[])?;
    ensure!(folder == "/", "its directory is {folder}");
    Ok(())
}

helper!(CHANGE_DIRECTORY = |_| Ok(env::set_current_dir("/proc/self")?));
helper!(
    PRINT_DIRECTORY_OF_INIT = |_| {
        print!("{}", fs::read_link("/proc/1/cwd")?.display());
        Ok(())
    }
);

fn is_not_dumpable(subject: &Subject) -> Result<()> {
    // proc(5): the files of a process that is not dumpable belong to root. `tests/attacks.rs` tries
    // what follows from that.
    let owner = |file| Ok::<_, io::Error>(fs::metadata(file)?.uid());
    ensure!(owner("/proc/self/fd".into())? == owner("/proc/self".into())?, "no control");
    let sandbox = subject.asleep()?;
    let folder = format!("/proc/{}", sandbox.pid);
    ensure!(owner(format!("{folder}/fd"))? != owner(folder)?, "/proc/1/fd belongs to its user");
    still_works(sandbox)
}

fn keeps_one_page_of_anonymous_memory(subject: &Subject) -> Result<()> {
    let page = unistd::sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page")?;
    // Addresses are randomized, so that some starts need one page only in any case.
    for _ in 0..10 {
        let sandbox = subject.asleep()?;
        let kept = anonymous(sandbox.pid)? * 1024;
        ensure!(kept == page as u64, "{kept} bytes, where a page has {page}");
        let strings = fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid))?;
        ensure!(strings == "/pause\0", "ps shows {strings:?}");
        still_works(sandbox)?;
    }
    Ok(())
}

// Standard streams.

fn closed_standard_streams_are_tolerated(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepare(&CLOSE_STREAMS))?;
    stops_cleanly(sandbox, Signal::SIGTERM, "")
}

helper!(CLOSE_STREAMS = close_streams);

fn close_streams(_: &[OsString]) -> Result<()> {
    for fd in 0..3 {
        // SAFETY: nothing here uses the standard streams any more.
        ensure!(unsafe { libc::close(fd) } == 0, "cannot close {fd}");
    }
    Ok(())
}

fn full_standard_streams_are_tolerated(subject: &Subject) -> Result<()> {
    let full = || File::options().write(true).open("/dev/full");
    let sandbox = asleep(subject.setup().stdout(full()?).stderr(full()?))?;
    stops_cleanly(sandbox, Signal::SIGTERM, "")
}

fn stdout_without_reader_is_tolerated(subject: &Subject) -> Result<()> {
    let (reader, writer) = io::pipe()?;
    let sandbox = asleep(subject.setup().stdout(writer))?;
    drop(reader);
    sandbox.run(&ORPHANS, &["10"])?;
    still_works(sandbox)
}

// Exit.

fn exit_ends_all_processes_of_the_namespace(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.run(&THREE_SLEEPERS, &[])?;
    let sleepers = children(sandbox.pid);
    ensure!(sleepers.len() == 3, "{} sleepers", sleepers.len());
    stops_cleanly(sandbox, Signal::SIGTERM, STOPPED)?;
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
        let (mut adopted, report) = io::pipe()?;
        abandon(|| {
            // The reader of their output would wait for them.
            close_streams(&[])?;
            drop(report);
            loop {
                thread::park();
            }
        })?;
        adopted.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn refused_disposition_is_fatal(subject: &Subject) -> Result<()> {
    // `tests/faults.rs` refuses the others as well.
    let (status, stderr) = subject.setup().prepare(&REFUSE_SIGTERM).start()?.wait()?;
    let message = "pause: cannot handle SIGTERM\n";
    ensure!(status.code() == Some(1) && stderr == message, "{status}, {stderr:?}");
    Ok(())
}

helper!(REFUSE_SIGTERM = |_| refuse(libc::SYS_rt_sigaction, Some(libc::SIGTERM), libc::EPERM));

// Not PID 1.

/// A process of `pause` that is not PID 1.
struct Unsandboxed(Child);

impl Unsandboxed {
    /// Starts it and waits until it sleeps.
    fn start(command: &mut Command) -> Result<Self> {
        let mut process = Unsandboxed(command.spawn()?);
        let pid = process.pid();
        let settled = || !matches!(process.0.try_wait(), Ok(None)) || is_asleep(pid);
        wait_until("it sleeps or has ended", settled)?;
        Ok(process)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// Stops it by SIGTERM.
    fn stops_cleanly(mut self) -> Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        wait_until("it has ended", || !matches!(self.0.try_wait(), Ok(None)))?;
        Ok(self.0.wait()?)
    }
}

impl Drop for Unsandboxed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn not_pid_1_warns(subject: &Subject) -> Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    Unsandboxed::start(subject.command().stderr(OwnedFd::from(far)))?.stops_cleanly()?;
    let messages = datagrams(near)?;
    ensure!(messages == [WARNING, STOPPED], "{messages:?}");
    Ok(())
}

fn not_pid_1_dies_of_other_signals(subject: &Subject) -> Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGALRM] {
        let mut process = Unsandboxed::start(subject.command().stderr(Stdio::null()))?;
        kill(process.pid(), signal)?;
        let status = process.wait()?;
        ensure!(status.signal() == Some(signal as i32), "{status} after {signal}");
    }
    Ok(())
}

fn not_pid_1_is_subreaper(subject: &Subject) -> Result<()> {
    let mut ancestor = ANCESTOR.command();
    ancestor
        .arg(&subject.binary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut pause = Unsandboxed::start(&mut ancestor)?;
    let pid = pause.pid();
    // Its child makes an orphan at the end of stdin.
    drop(pause.0.stdin.take());
    let mut new_parent = String::new();
    BufReader::new(pause.0.stdout.take().context("stdout")?).read_line(&mut new_parent)?;
    ensure!(new_parent.trim() == pid.to_string(), "{new_parent} adopted the orphan, not {pid}");
    wait_until("no orphan or zombie is left", || children(pid).is_empty())?;
    pause.stops_cleanly()
}

helper!(ANCESTOR = ancestor);

/// Becomes pause, with a child that leaves an orphan at the end of stdin. The orphan prints its parent.
fn ancestor(arguments: &[OsString]) -> Result<()> {
    let [binary] = arguments else { bail!("takes the binary") };
    spawn(|| {
        io::stdin().read_to_end(&mut Vec::new())?;
        abandon(|| {
            println!("{}", getppid());
            Ok(())
        })
    })?;
    let binary = std::ffi::CString::new(binary.as_bytes())?;
    execv(&binary, &[c"pause"]).map(drop).context("cannot start pause")
}

fn stderr_without_reader_is_tolerated(subject: &Subject) -> Result<()> {
    let (reader, writer) = io::pipe()?;
    drop(reader);
    Unsandboxed::start(subject.command().stderr(writer))?.stops_cleanly()
}

// Arguments.

/// Runs a program and returns its exit code, stdout and stderr.
fn run(command: &mut Command) -> Result<(Option<i32>, Vec<u8>, Vec<u8>)> {
    let Output { status, stdout, stderr } = command.output()?;
    Ok((status.code(), stdout, stderr))
}

fn version_and_help_are_printed(subject: &Subject) -> Result<()> {
    for argument in ["-v", "-V", "--version"] {
        let result = run(subject.short_command().arg(argument))?;
        ensure!(result == (Some(0), VERSION.into(), vec![]), "{argument}: {result:?}");
    }
    for argument in ["-h", "--help"] {
        let (code, stdout, stderr) = run(subject.short_command().arg(argument))?;
        ensure!(code == Some(0) && stderr.is_empty(), "{argument}: {code:?}");
        let text = String::from_utf8(stdout)?;
        for word in ["Usage: pause", "-v", "-V", "--version", "-h", "--help", "SIGTERM", "SIGINT"] {
            ensure!(text.contains(word), "{word} is not in {text:?}");
        }
        ensure!(text.ends_with('\n'));
    }
    // The first argument decides.
    let result = run(subject.short_command().args(["--version", "x"]))?;
    ensure!(result == (Some(0), VERSION.into(), vec![]), "{result:?}");
    Ok(())
}

fn failed_write_to_stdout_exits_with_1(subject: &Subject) -> Result<()> {
    let message = b"pause: cannot write to stdout\n";
    let full = || File::options().write(true).open("/dev/full");
    let (reader, writer) = io::pipe()?;
    drop(reader);
    for argument in ["--version", "--help"] {
        for stdout in [Stdio::from(full()?), writer.try_clone()?.into()] {
            let result = run(subject.short_command().arg(argument).stdout(stdout))?;
            ensure!(result == (Some(1), vec![], message.into()), "{argument}: {result:?}");
        }
        for (closed, stderr) in [("1>&-", &message[..]), ("1>&- 2>&-", b"")] {
            let script = format!("exec \"$@\" {closed}");
            let mut shell = limited();
            shell.args(["sh", "-c", &script, "sh"]).args(subject.words()).arg(argument);
            let result = run(&mut shell)?;
            ensure!(result == (Some(1), vec![], stderr.into()), "{argument} {closed}: {result:?}");
        }
    }
    Ok(())
}

fn partial_write_to_stdout_exits_with_1(subject: &Subject) -> Result<()> {
    // A file may have 512 bytes, and the message is longer than the rest.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stdout");
    fs::write(&file, [b'.'; 507])?;
    let mut shell = limited();
    shell.args(["sh", "-c", r#"ulimit -f 1 && exec "$@" --version >>"$0""#]).arg(&file);
    let result = run(shell.args(subject.words()))?;
    ensure!(fs::metadata(&file)?.len() == 512, "the file is not full");
    let message = b"pause: cannot write to stdout\n";
    ensure!(result == (Some(1), vec![], message.into()), "{result:?}");
    Ok(())
}

fn unknown_arguments_are_refused(subject: &Subject) -> Result<()> {
    let long = [b'x'; 100_000];
    let many = [&b"--nothing"[..]; 10_000];
    let cases: &[&[&[u8]]] = &[
        &[b""],
        &[b"-"],
        &[b"--"],
        &[b"-x"],
        &[b"-vv"],
        &[b"--versio"],
        &[b"--version "],
        &[b"--versioM"],
        &[b"--helP"],
        &[b"/pause"],
        &[b"x", b"--version"],
        &[b"\xff\xfe\x80 not UTF-8 \n\x1b[31m"],
        &[&long],
        &many,
    ];
    for arguments in cases {
        let words = arguments.iter().map(|word| OsStr::from_bytes(word));
        let result = run(subject.short_command().args(words))?;
        let stderr =
            [b"pause: unknown argument: ", arguments[0], b"\nTry pause --help.\n"].concat();
        let argument = String::from_utf8_lossy(arguments[0]);
        ensure!(result == (Some(64), vec![], stderr), "{argument:.40}: {result:?}");
    }
    // The message is one write.
    let (near, far) = UnixDatagram::pair()?;
    subject.short_command().arg("x").stderr(OwnedFd::from(far)).status()?;
    let messages = datagrams(near)?;
    ensure!(messages == ["pause: unknown argument: x\nTry pause --help.\n"], "{messages:?}");
    Ok(())
}

fn empty_argv_is_no_argument(subject: &Subject) -> Result<()> {
    still_works(asleep(subject.setup().prepare(&EMPTY_ARGV))?)
}

helper!(EMPTY_ARGV = empty_argv);

fn empty_argv(_: &[OsString]) -> Result<()> {
    let nothing: [&std::ffi::CStr; 0] = [];
    execv(c"/pause", &nothing).map(drop).context("cannot start /pause")
}
