//! What the process promises, tried on the release binary in both flavors: as PID 1 of a PID
//! namespace of its own where the promise is about that, and as an ordinary process otherwise.
//!
//! What cannot be tried on this machine counts as ignored and says why; with `PAUSE_NO_SKIP=1`, as
//! CI has it, it fails.

#![expect(clippy::incompatible_msrv, reason = "only the product keeps to an older Rust")]

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{self, Pid, SysconfVar, dup2_stdout, execv, getppid};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::{env, io, thread};
use support::actor::{self, Part, spawn};
use support::artifact::{self, Flavor, TARGETS, Target};
use support::proc::{SLEEPING_CALL, activity, anonymous, children, is_asleep, state, wait_until};
use support::sandbox::{self, Sandbox, Setup};
use support::seccomp::refuse;
use support::trial;

const STOPPED: &str = "pause: SIGTERM\n";
const WARNING: &str = "pause: warning: not PID 1\n";
const VERSION: &str = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n");

/// The binary that is tried, and which of the two it is.
#[derive(Clone)]
struct Subject {
    flavor: Flavor,
    binary: PathBuf,
    /// What runs it, where the machine cannot: a program that is named like what it runs.
    emulator: Option<PathBuf>,
}

type Test = (&'static str, fn(&Subject) -> Result<()>);

const SANDBOXED: &[Test] = &[
    ("sigterm_ends_it", sigterm_ends_it),
    ("sigint_ends_it", sigint_ends_it),
    ("the_last_word_is_one_write", the_last_word_is_one_write),
    ("other_signals_do_nothing", other_signals_do_nothing),
    ("a_burst_of_signals_does_nothing", a_burst_of_signals_does_nothing),
    ("it_can_be_stopped_and_continued", it_can_be_stopped_and_continued),
    ("it_sleeps_in_pause", it_sleeps_in_pause),
    ("orphans_are_reaped_without_waking_it", orphans_are_reaped_without_waking_it),
    ("a_crowd_that_exits_at_once_is_reaped", a_crowd_that_exits_at_once_is_reaped),
    ("orphans_that_come_as_zombies_are_reaped", orphans_that_come_as_zombies_are_reaped),
    ("orphans_with_threads_are_reaped", orphans_with_threads_are_reaped),
    ("children_that_died_before_exec_are_reaped", children_that_died_before_exec_are_reaped),
    ("a_clone_that_died_before_exec_is_reaped", a_clone_that_died_before_exec_is_reaped),
    ("inherited_dispositions_do_not_matter", inherited_dispositions_do_not_matter),
    ("an_inherited_mask_does_not_make_it_deaf", an_inherited_mask_does_not_make_it_deaf),
    ("a_signal_pending_at_exec_is_honoured", a_signal_pending_at_exec_is_honoured),
    ("inherited_descriptors_are_closed", inherited_descriptors_are_closed),
    ("they_are_closed_without_close_range_too", they_are_closed_without_close_range_too),
    ("it_moves_to_the_root", it_moves_to_the_root),
    ("nothing_but_a_page_of_strings_stays", nothing_but_a_page_of_strings_stays),
    ("the_same_user_cannot_look_inside", the_same_user_cannot_look_inside),
    ("closed_standard_streams_do_not_matter", closed_standard_streams_do_not_matter),
    ("full_standard_streams_do_not_matter", full_standard_streams_do_not_matter),
    ("nothing_outlives_it", nothing_outlives_it),
    ("an_empty_argv_is_no_argument", an_empty_argv_is_no_argument),
    ("a_refused_disposition_is_fatal", a_refused_disposition_is_fatal),
];

const PLAIN: &[Test] = &[
    ("elsewhere_than_pid_1_it_warns_and_stops", elsewhere_than_pid_1_it_warns_and_stops),
    ("elsewhere_than_pid_1_it_reaps_descendants", elsewhere_than_pid_1_it_reaps_descendants),
    ("a_stderr_without_reader_does_not_matter", a_stderr_without_reader_does_not_matter),
    ("version_and_help_are_printed", version_and_help_are_printed),
    ("what_cannot_be_printed_fails", what_cannot_be_printed_fails),
    ("what_is_printed_in_part_fails", what_is_printed_in_part_fails),
    ("unknown_arguments_are_refused", unknown_arguments_are_refused),
];

/// Parts for actors, see [`actor`]; those that end in `-before` prepare PID 1.
const PARTS: &[Part] = &[
    ("other-signals", play_other_signals),
    ("burst", play_burst),
    ("dead-children-before", play_dead_children_before),
    ("dead-clone-before", play_dead_clone_before),
    ("ignoring-before", play_ignoring_before),
    ("deaf-before", play_deaf_before),
    ("pending-before", play_pending_before),
    ("leaking-before", play_leaking_before),
    ("leaking-on-old-kernel-before", play_leaking_on_old_kernel_before),
    ("elsewhere-before", play_elsewhere_before),
    ("mute-before", play_mute_before),
    ("nameless-before", play_nameless_before),
    ("no-sigterm-before", |_| refuse_disposition_of(libc::SIGTERM)),
    ("no-sigint-before", |_| refuse_disposition_of(libc::SIGINT)),
    ("no-sigchld-before", |_| refuse_disposition_of(libc::SIGCHLD)),
    ("folder-of-init", play_folder_of_init),
    ("burglar", play_burglar),
    ("visitor", play_visitor),
    ("sleepers", play_sleepers),
    ("victim", play_victim),
    ("ancestor", play_ancestor),
];

fn main() -> ExitCode {
    actor::take_the_stage(PARTS);
    let arguments = Arguments::from_args();
    let obstacle = sandbox::is_available().err().map(|error| format!("{error:#}"));

    let mut subjects = Vec::new();
    for flavor in [Flavor::Freestanding, Flavor::Hosted] {
        let binary = artifact::build(flavor).expect("the release binary can be built");
        let name = format!("{flavor:?}").to_lowercase();
        subjects.push((name, Ok(Subject { flavor, binary, emulator: None })));
    }
    let emulators = tempfile::tempdir().expect("a folder for the emulators");
    for target in TARGETS.iter().filter(|target| !target.is_native()) {
        let subject = emulated(target, emulators.path()).map_err(|error| format!("{error:#}"));
        subjects.push((target.triple.to_owned(), subject));
    }

    let mut trials = Vec::new();
    for (name, subject) in subjects {
        let subject = match subject {
            Ok(subject) => subject,
            // A single line: it is a single thing that is missing.
            Err(reason) => {
                trials.push(Trial::ignorable_test(name, || trial::skip(reason)));
                continue;
            }
        };
        for (tests, obstacle) in [(SANDBOXED, &obstacle), (PLAIN, &None)] {
            for &(test, run) in tests {
                let (subject, obstacle) = (subject.clone(), obstacle.clone());
                let run = move || match (subject.excuse(test), obstacle) {
                    (Some(excuse), _) => Ok(Completion::ignored_with(excuse)),
                    (None, Some(reason)) => trial::skip(reason),
                    (None, None) => trial::outcome(run(&subject)),
                };
                trials.push(Trial::ignorable_test(format!("{name}::{test}"), run));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The freestanding binary for another architecture, and its emulator in a folder of its own.
fn emulated(target: &Target, folder: &Path) -> Result<Subject> {
    let (original, binary) = (target.find_emulator()?, target.build()?);
    let emulator = folder.join(target.triple).join("pause");
    fs::create_dir(folder.join(target.triple))?;
    fs::copy(original, &emulator)?;
    Ok(Subject { flavor: Flavor::Freestanding, binary, emulator: Some(emulator) })
}

impl Subject {
    /// Why a test cannot be made, if that is so: mostly what qemu's emulation of system calls leaves
    /// out.
    fn excuse(&self, test: &str) -> Option<&'static str> {
        if self.flavor == Flavor::Hosted && test == "nothing_but_a_page_of_strings_stays" {
            return Some("the C library and std have memory of their own");
        }
        self.emulator.as_ref()?;
        match test {
            "other_signals_do_nothing" | "a_burst_of_signals_does_nothing" => {
                Some("qemu itself carries out what a signal does to a process that is not PID 1")
            }
            "it_sleeps_in_pause" => Some("qemu sleeps in a call of its choice"),
            "nothing_but_a_page_of_strings_stays" => Some("the memory is qemu's"),
            "an_empty_argv_is_no_argument" => Some("qemu takes the program from argv"),
            "elsewhere_than_pid_1_it_reaps_descendants" => {
                Some("qemu knows no PR_SET_CHILD_SUBREAPER")
            }
            _ => None,
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

    /// The binary outside of any sandbox.
    fn command(&self) -> Command {
        let [program, arguments @ ..] = &*self.words() else { unreachable!("there is a program") };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// The program to run and the arguments that it needs to be the binary.
    fn words(&self) -> Vec<&Path> {
        self.emulator.iter().chain([&self.binary]).map(PathBuf::as_path).collect()
    }
}

fn asleep(setup: Setup) -> Result<Sandbox> {
    let sandbox = setup.start()?;
    sandbox.wait_until_asleep()?;
    Ok(sandbox)
}

/// Ends a sandbox by `signal`: exit code 0 and nothing on stderr but `last_word`.
fn ends_well(sandbox: Sandbox, signal: Signal, last_word: &str) -> Result<()> {
    sandbox.signal(signal)?;
    let (status, stderr) = sandbox.wait()?;
    ensure!(status.code() == Some(0), "{status} after {signal}");
    ensure!(stderr == last_word, "stderr is {stderr:?}");
    Ok(())
}

/// A sandbox that is none the worse: asleep, and SIGTERM ends it as always.
fn still_well(sandbox: Sandbox) -> Result<()> {
    sandbox.wait_until_asleep()?;
    ends_well(sandbox, Signal::SIGTERM, STOPPED)
}

fn no_child_is_left(sandbox: &Sandbox) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(sandbox.pid).is_empty())
}

// Signals.

fn sigterm_ends_it(subject: &Subject) -> Result<()> {
    ends_well(subject.asleep()?, Signal::SIGTERM, STOPPED)
}

fn sigint_ends_it(subject: &Subject) -> Result<()> {
    ends_well(subject.asleep()?, Signal::SIGINT, "pause: SIGINT\n")
}

fn the_last_word_is_one_write(subject: &Subject) -> Result<()> {
    // A datagram is what one write wrote.
    let (near, far) = UnixDatagram::pair()?;
    let sandbox = asleep(subject.setup().stderr(OwnedFd::from(far)))?;
    ends_well(sandbox, Signal::SIGTERM, "")?;
    ensure!(datagrams(near)? == [STOPPED]);
    Ok(())
}

/// All datagrams that wait on a socket whose other end is closed by now.
fn datagrams(socket: UnixDatagram) -> Result<Vec<String>> {
    socket.set_nonblocking(true)?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => received.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
            Err(error) => return Err(error.into()),
        }
    }
}

fn other_signals_do_nothing(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.act("other-signals", &[])?;
    still_well(sandbox)
}

fn a_burst_of_signals_does_nothing(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.act("burst", &[])?;
    still_well(sandbox)
}

/// Every signal but those that are to end it. KILL and STOP are among them: from inside of its PID
/// namespace they do not reach PID 1.
fn other_signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| ![libc::SIGTERM, libc::SIGINT].contains(signal))
}

fn send_to_init(signal: i32) -> Result<()> {
    // SAFETY: a plain system call; nix has no realtime signals.
    let sent = unsafe { libc::kill(1, signal) };
    ensure!(sent == 0, "cannot send signal {signal}: {}", io::Error::last_os_error());
    Ok(())
}

fn play_other_signals(_: &[OsString]) -> Result<()> {
    other_signals().try_for_each(send_to_init)
}

fn play_burst(_: &[OsString]) -> Result<()> {
    let signals: Vec<i32> = other_signals().collect();
    signals.iter().cycle().take(1000).copied().try_for_each(send_to_init)
}

fn it_can_be_stopped_and_continued(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.signal(Signal::SIGSTOP)?;
    wait_until("it is stopped", || state(sandbox.pid) == Some('T'))?;
    sandbox.signal(Signal::SIGCONT)?;
    wait_until("it is asleep again", || is_asleep(sandbox.pid))?;
    still_well(sandbox)
}

fn it_sleeps_in_pause(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    // It is interrupted, and starts the call that it was in once more.
    ptrace::seize(sandbox.pid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
    ptrace::interrupt(sandbox.pid)?;
    waitpid(sandbox.pid, None)?;
    ptrace::syscall(sandbox.pid, None)?;
    waitpid(sandbox.pid, None)?;
    let call = ptrace::syscall_info(sandbox.pid)?;
    ensure!(call.op == libc::PTRACE_SYSCALL_INFO_ENTRY, "it is in no system call");
    // SAFETY: at the entry of a system call it is this one of the union.
    let number = unsafe { call.u.entry.nr };
    ensure!(number as i64 == SLEEPING_CALL, "it sleeps in system call {number}");
    Ok(())
}

// Orphans.

/// Lets `part` make orphans: none is left, and pause has not been woken for any of them.
fn reaps(subject: &Subject, part: &str, number: &str) -> Result<()> {
    let sandbox = subject.asleep()?;
    let before = activity(sandbox.pid)?;
    sandbox.act(part, &[number])?;
    no_child_is_left(&sandbox)?;
    let after = activity(sandbox.pid)?;
    ensure!(before == after, "it was woken: {before:?}, then {after:?}");
    still_well(sandbox)
}

fn orphans_are_reaped_without_waking_it(subject: &Subject) -> Result<()> {
    reaps(subject, "orphans", "10000")
}

fn a_crowd_that_exits_at_once_is_reaped(subject: &Subject) -> Result<()> {
    reaps(subject, "crowd", "500")
}

fn orphans_that_come_as_zombies_are_reaped(subject: &Subject) -> Result<()> {
    reaps(subject, "late", "500")
}

fn orphans_with_threads_are_reaped(subject: &Subject) -> Result<()> {
    reaps(subject, "threaded", "100")
}

fn children_that_died_before_exec_are_reaped(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("dead-children-before"))?;
    no_child_is_left(&sandbox)?;
    still_well(sandbox)
}

fn a_clone_that_died_before_exec_is_reaped(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("dead-clone-before"))?;
    no_child_is_left(&sandbox)?;
    still_well(sandbox)
}

fn play_dead_children_before(_: &[OsString]) -> Result<()> {
    for _ in 0..3 {
        let child = spawn(|| Ok(()))?;
        waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        ensure!(state(child) == Some('Z'), "the child is no zombie");
    }
    Ok(())
}

fn play_dead_clone_before(_: &[OsString]) -> Result<()> {
    // SAFETY: like fork(2), in a process with one thread, but with another signal at the end; the
    // null pointers stand for the parent's stack and for no thread ids.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGUSR1, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: leaves at once, and touches nothing that was copied.
        unsafe { libc::_exit(0) };
    }
    let child = Pid::from_raw(i32::try_from(child)?);
    wait_until("the clone is a zombie", || state(child) == Some('Z'))
}

// What is inherited.

fn inherited_dispositions_do_not_matter(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("ignoring-before"))?;
    sandbox.act("orphans", &["100"])?;
    no_child_is_left(&sandbox)?;
    still_well(sandbox)
}

fn play_ignoring_before(_: &[OsString]) -> Result<()> {
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn)? };
    }
    Ok(())
}

fn an_inherited_mask_does_not_make_it_deaf(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("deaf-before"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid))?;
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).context("SigBlk")?;
    ensure!(u64::from_str_radix(blocked.trim(), 16)? == 0, "{blocked} is blocked");
    still_well(sandbox)
}

fn play_deaf_before(_: &[OsString]) -> Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?)
}

fn a_signal_pending_at_exec_is_honoured(subject: &Subject) -> Result<()> {
    let (status, stderr) = subject.setup().prepared_by("pending-before").start()?.wait()?;
    ensure!(status.code() == Some(0) && stderr == STOPPED, "{status}, {stderr:?}");
    Ok(())
}

fn play_pending_before(_: &[OsString]) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    Ok(raise(Signal::SIGTERM)?)
}

/// What leaks is a pipe: it comes to its end when the last copy is closed.
fn closes_leaked(subject: &Subject, part: &str) -> Result<()> {
    let (mut leaked, leak) = io::pipe()?;
    let sandbox = asleep(subject.setup().stdout(leak).prepared_by(part))?;
    fcntl(&leaked, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    ensure!(leaked.read(&mut [0]).is_ok_and(|read| read == 0), "a descriptor is still open");
    still_well(sandbox)
}

fn inherited_descriptors_are_closed(subject: &Subject) -> Result<()> {
    closes_leaked(subject, "leaking-before")
}

fn they_are_closed_without_close_range_too(subject: &Subject) -> Result<()> {
    closes_leaked(subject, "leaking-on-old-kernel-before")
}

/// Leaves copies of stdout from 3, the first, to 1023, the last that the default limit allows, and
/// nothing at stdout. (Not at every number: a dynamic loader needs some. What stood there before was
/// to be closed by exec.)
fn play_leaking_before(_: &[OsString]) -> Result<()> {
    for number in [3, 4, 5, 100, 1022, 1023] {
        // SAFETY: nobody uses these descriptors before exec; the report of what goes wrong until
        // then is lost, and the sandbox waited for in vain.
        ensure!(unsafe { libc::dup2(1, number) } == number, "cannot leak {number}");
    }
    Ok(dup2_stdout(io::stdin())?)
}

fn play_leaking_on_old_kernel_before(arguments: &[OsString]) -> Result<()> {
    play_leaking_before(arguments)?;
    refuse(libc::SYS_close_range, None, libc::ENOSYS)
}

fn it_moves_to_the_root(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("elsewhere-before"))?;
    let folder = sandbox.act("folder-of-init", &[])?;
    ensure!(folder == "/", "it is in {folder}");
    Ok(())
}

fn nothing_but_a_page_of_strings_stays(subject: &Subject) -> Result<()> {
    let page = unistd::sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page")?;
    // The kernel varies where it puts things: at times all of it is on one page by itself.
    for _ in 0..10 {
        let sandbox = subject.asleep()?;
        let kept = anonymous(sandbox.pid)? * 1024;
        ensure!(kept == page as u64, "{kept} bytes, where a page has {page}");
        let strings = fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid))?;
        ensure!(strings == "/pause\0", "ps shows {strings:?}");
        still_well(sandbox)?;
    }
    Ok(())
}

fn play_elsewhere_before(_: &[OsString]) -> Result<()> {
    Ok(env::set_current_dir("/proc/self")?)
}

fn play_folder_of_init(_: &[OsString]) -> Result<()> {
    print!("{}", fs::read_link("/proc/1/cwd")?.display());
    Ok(())
}

// The closed door.

fn the_same_user_cannot_look_inside(subject: &Subject) -> Result<()> {
    // The same burglar gets into a process that is dumpable, or this test would prove nothing.
    let mut victim = Setup::new(&env::current_exe()?).with_libraries(true);
    for word in actor::command("victim").get_args() {
        victim = victim.argument(word);
    }
    let victim = victim.start()?;
    wait_until("the victim is in place", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", victim.pid));
        name.is_ok_and(|name| name == "victim\n")
    })?;
    let got_in = victim.act("burglar", &[])?;
    let ptrace_scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let ptrace_is_free = ptrace_scope.is_ok_and(|scope| scope.trim() == "0")
        || !fs::exists("/proc/sys/kernel/yama")?;
    let doors =
        if ptrace_is_free { "ptrace fd root cwd mem environ" } else { "fd root cwd environ" };
    for door in doors.split(' ') {
        ensure!(got_in.contains(door), "the burglar is none: {got_in:?}");
    }

    let sandbox = subject.asleep()?;
    let got_in = sandbox.act("burglar", &[])?;
    ensure!(got_in.is_empty(), "the burglar got in through {got_in}");
    // The visitor dies with PID 1, maybe before it can report success.
    sandbox.actor("visitor").stderr(Stdio::null()).status()?;
    let (status, stderr) = sandbox.wait()?;
    ensure!(status.code() == Some(0) && stderr == STOPPED, "{status}, {stderr:?}");
    Ok(())
}

/// A dumpable PID 1 that is told from the file it was started from by its name.
fn play_victim(_: &[OsString]) -> Result<()> {
    fs::write("/proc/self/comm", "victim")?;
    loop {
        thread::park();
    }
}

/// Becomes the user of PID 1, without privileges.
fn become_same_user() -> Result<()> {
    sandbox::become_user()?;
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// Tries each door of PID 1 and names those that it got in by.
fn play_burglar(_: &[OsString]) -> Result<()> {
    become_same_user()?;
    let init = Pid::from_raw(1);
    if ptrace::seize(init, ptrace::Options::empty()).is_ok() {
        print!("ptrace ");
    }
    for folder in ["fd", "root"] {
        if fs::read_dir(format!("/proc/1/{folder}/")).is_ok() {
            print!("{folder} ");
        }
    }
    if fs::read_link("/proc/1/cwd").is_ok() {
        print!("cwd ");
    }
    for file in ["mem", "environ"] {
        if File::open(format!("/proc/1/{file}")).is_ok() {
            print!("{file} ");
        }
    }
    Ok(())
}

/// Sends SIGTERM to PID 1.
fn play_visitor(_: &[OsString]) -> Result<()> {
    become_same_user()?;
    Ok(kill(Pid::from_raw(1), Signal::SIGTERM)?)
}

// Standard streams.

fn closed_standard_streams_do_not_matter(subject: &Subject) -> Result<()> {
    let sandbox = asleep(subject.setup().prepared_by("mute-before"))?;
    ends_well(sandbox, Signal::SIGTERM, "")
}

fn play_mute_before(_: &[OsString]) -> Result<()> {
    for fd in 0..3 {
        // SAFETY: nothing here uses the standard streams any more.
        ensure!(unsafe { libc::close(fd) } == 0, "cannot close {fd}");
    }
    Ok(())
}

fn full_standard_streams_do_not_matter(subject: &Subject) -> Result<()> {
    let full = || File::options().write(true).open("/dev/full");
    let sandbox = asleep(subject.setup().stdout(full()?).stderr(full()?))?;
    ends_well(sandbox, Signal::SIGTERM, "")
}

// The end.

fn nothing_outlives_it(subject: &Subject) -> Result<()> {
    let sandbox = subject.asleep()?;
    sandbox.act("sleepers", &[])?;
    let sleepers = children(sandbox.pid);
    ensure!(sleepers.len() == 3, "{} sleepers", sleepers.len());
    ends_well(sandbox, Signal::SIGTERM, STOPPED)?;
    // The kernel lets PID 1 go only after all others: there is nothing to wait for.
    for sleeper in sleepers {
        ensure!(state(sleeper).is_none(), "{sleeper} is still there");
    }
    Ok(())
}

/// Three processes that PID 1 adopts and that would stay for ever.
fn play_sleepers(_: &[OsString]) -> Result<()> {
    for _ in 0..3 {
        let (mut adopted, report) = io::pipe()?;
        let parent = spawn(|| {
            let parent = Pid::this();
            spawn(move || {
                while getppid() == parent {
                    thread::yield_now();
                }
                // SAFETY: ignoring a signal installs no handler.
                unsafe { nix::sys::signal::signal(Signal::SIGTERM, SigHandler::SigIgn)? };
                // Whoever reads their output would wait for them.
                play_mute_before(&[])?;
                drop(report);
                loop {
                    thread::park();
                }
            })
            .map(drop)
        })?;
        waitpid(parent, None)?;
        adopted.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn a_refused_disposition_is_fatal(subject: &Subject) -> Result<()> {
    for (part, complaint) in [
        ("no-sigterm-before", "pause: cannot handle SIGTERM\n"),
        ("no-sigint-before", "pause: cannot handle SIGINT\n"),
        ("no-sigchld-before", "pause: cannot ignore SIGCHLD\n"),
    ] {
        let (status, stderr) = subject.setup().prepared_by(part).start()?.wait()?;
        ensure!(status.code() == Some(1) && stderr == complaint, "{part}: {status}, {stderr:?}");
    }
    Ok(())
}

fn refuse_disposition_of(signal: i32) -> Result<()> {
    refuse(libc::SYS_rt_sigaction, Some(signal), libc::EPERM)
}

// Not PID 1.

/// A pause that runs in no sandbox.
struct Outside(Child);

impl Outside {
    /// Starts it and waits until it sleeps.
    fn start(command: &mut Command) -> Result<Self> {
        let outside = Outside(command.spawn()?);
        wait_until("it sleeps", || is_asleep(outside.pid()))?;
        Ok(outside)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// Ends it by SIGTERM.
    fn ends_well(mut self) -> Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        wait_until("it is gone", || !matches!(self.0.try_wait(), Ok(None)))?;
        let status = self.0.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn elsewhere_than_pid_1_it_warns_and_stops(subject: &Subject) -> Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    Outside::start(subject.command().stderr(OwnedFd::from(far)))?.ends_well()?;
    let said = datagrams(near)?;
    ensure!(said == [WARNING, STOPPED], "{said:?}");
    Ok(())
}

fn elsewhere_than_pid_1_it_reaps_descendants(subject: &Subject) -> Result<()> {
    let mut ancestor = actor::command("ancestor");
    ancestor
        .arg(&subject.binary)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut pause = Outside::start(&mut ancestor)?;
    let pid = pause.pid();
    // The parent of the orphan-to-be leaves at the end of its stdin.
    drop(pause.0.stdin.take());
    let mut foster_parent = String::new();
    BufReader::new(pause.0.stdout.take().context("stdout")?).read_line(&mut foster_parent)?;
    ensure!(
        foster_parent.trim() == pid.to_string(),
        "{foster_parent} adopted the orphan, not {pid}"
    );
    wait_until("no orphan or zombie is left", || children(pid).is_empty())?;
    pause.ends_well()
}

/// Has a child with a child, and becomes pause. The child leaves at the end of stdin; the grandchild
/// says who its parent is then.
fn play_ancestor(arguments: &[OsString]) -> Result<()> {
    let [binary] = arguments else { anyhow::bail!("takes the binary") };
    spawn(|| {
        let parent = Pid::this();
        spawn(|| {
            while getppid() == parent {
                thread::yield_now();
            }
            println!("{}", getppid());
            Ok(())
        })?;
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    })?;
    let binary = std::ffi::CString::new(binary.as_bytes())?;
    execv(&binary, &[c"pause"]).map(drop).context("cannot start pause")
}

fn a_stderr_without_reader_does_not_matter(subject: &Subject) -> Result<()> {
    let (reader, writer) = io::pipe()?;
    drop(reader);
    Outside::start(subject.command().stderr(writer))?.ends_well()
}

// Arguments.

/// What the program does with an argument: exit code, stdout, stderr.
fn answer(output: Output) -> (Option<i32>, Vec<u8>, Vec<u8>) {
    (output.status.code(), output.stdout, output.stderr)
}

fn version_and_help_are_printed(subject: &Subject) -> Result<()> {
    for argument in ["-v", "-V", "--version"] {
        let answer = answer(subject.command().arg(argument).output()?);
        ensure!(answer == (Some(0), VERSION.into(), vec![]), "{argument}: {answer:?}");
    }
    for argument in ["-h", "--help"] {
        let (code, stdout, stderr) = answer(subject.command().arg(argument).output()?);
        ensure!(code == Some(0) && stderr.is_empty(), "{argument}: {code:?}");
        let text = String::from_utf8(stdout)?;
        for word in ["Usage: pause", "-v", "-V", "--version", "-h", "--help", "SIGTERM", "SIGINT"] {
            ensure!(text.contains(word), "{word} is not in {text:?}");
        }
        ensure!(text.ends_with('\n'));
    }
    // The first one decides, as each ends the program.
    let answer = answer(subject.command().args(["--version", "x"]).output()?);
    ensure!(answer == (Some(0), VERSION.into(), vec![]), "{answer:?}");
    Ok(())
}

fn what_cannot_be_printed_fails(subject: &Subject) -> Result<()> {
    let complaint = b"pause: cannot write to stdout\n";
    let full = || File::options().write(true).open("/dev/full");
    let (reader, nobody_reads) = io::pipe()?;
    drop(reader);
    for argument in ["--version", "--help"] {
        for stdout in [Stdio::from(full()?), nobody_reads.try_clone()?.into()] {
            let output = subject.command().arg(argument).stdout(stdout).output()?;
            let answer = answer(output);
            ensure!(answer == (Some(1), vec![], complaint.into()), "{argument}: {answer:?}");
        }
        for (closed, code, stderr) in [("1>&-", 1, &complaint[..]), ("1>&- 2>&-", 1, b"")] {
            let script = format!("exec \"$@\" {closed}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, "sh"]).args(subject.words()).arg(argument);
            let answer = answer(shell.output()?);
            ensure!(
                answer == (Some(code), vec![], stderr.into()),
                "{argument} {closed}: {answer:?}"
            );
        }
    }
    Ok(())
}

fn what_is_printed_in_part_fails(subject: &Subject) -> Result<()> {
    // A file may have 512 bytes, and five of them are left.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stdout");
    fs::write(&file, [b'.'; 507])?;
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -f 1 && exec "$@" --version >>"$0""#]).arg(&file);
    let answer = answer(shell.args(subject.words()).output()?);
    ensure!(fs::metadata(&file)?.len() == 512, "the file is not full");
    let complaint = b"pause: cannot write to stdout\n";
    ensure!(answer == (Some(1), vec![], complaint.into()), "{answer:?}");
    Ok(())
}

fn unknown_arguments_are_refused(subject: &Subject) -> Result<()> {
    let long = "x".repeat(100_000);
    let many = vec!["--nothing"; 10_000];
    let cases: &[&[&OsStr]] = &[
        &[OsStr::new("")],
        &[OsStr::new("-")],
        &[OsStr::new("--")],
        &[OsStr::new("-x")],
        &[OsStr::new("-vv")],
        &[OsStr::new("--versio")],
        &[OsStr::new("--version ")],
        &[OsStr::new("--versioM")],
        &[OsStr::new("--helP")],
        &[OsStr::new("/pause")],
        &[OsStr::new("x"), OsStr::new("--version")],
        &[OsStr::from_bytes(b"\xff\xfe\x80 not UTF-8 \n\x1b[31m")],
        &[OsStr::new(&long)],
        &many.iter().map(OsStr::new).collect::<Vec<_>>(),
    ];
    for arguments in cases {
        let mut expected = b"pause: unknown argument: ".to_vec();
        expected.extend(arguments[0].as_bytes());
        expected.extend(b"\nTry pause --help.\n");
        let answer = answer(subject.command().args(*arguments).output()?);
        ensure!(
            answer == (Some(64), vec![], expected),
            "{:.40}: {answer:?}",
            arguments[0].display()
        );
    }
    // The message is one write.
    let (near, far) = UnixDatagram::pair()?;
    ensure!(subject.command().arg("x").stderr(OwnedFd::from(far)).status()?.code() == Some(64));
    let said = datagrams(near)?;
    ensure!(said == ["pause: unknown argument: x\nTry pause --help.\n"], "{said:?}");
    Ok(())
}

fn an_empty_argv_is_no_argument(subject: &Subject) -> Result<()> {
    still_well(asleep(subject.setup().prepared_by("nameless-before"))?)
}

fn play_nameless_before(_: &[OsString]) -> Result<()> {
    let nothing: [&std::ffi::CStr; 0] = [];
    execv(c"/pause", &nothing).map(drop).context("cannot start /pause")
}
