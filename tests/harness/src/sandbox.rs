//! A sandbox like that of a container engine: the product as PID 1 of new namespaces, as user 65535,
//! alone in a new root file system. Needs no engine, and no root where the kernel lets ordinary users
//! make user namespaces.

use crate::build::{Flavor, build};
use crate::helper;
use crate::helper::{Helper, spawn};
use crate::proc::{TIMEOUT, is_asleep, wait_until};
use crate::root::{EMULATOR, enter_root};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execv, getegid, geteuid, setgid,
    setgroups, setuid,
};
use rustix::process::{PidfdFlags, pidfd_open};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio, exit};
use std::sync::{Arc, OnceLock};
use std::{ptr, thread};

/// User and group of the image.
pub const USER: u32 = 65535;

/// What `/pause` prints when SIGTERM ends it.
pub const STOPPED: &str = "pause: SIGTERM\n";

/// What `/pause` prints if it is not PID 1.
pub const WARNING: &str = "pause: warning: not PID 1\n";

helper!(LAUNCHER = launcher);
helper!(JOINER = joiner);

/// How to start a sandbox.
#[derive(Clone, Default)]
pub struct Setup {
    /// The program that will be `/pause` inside.
    pub program: PathBuf,
    /// A static program that runs it, if there is one.
    pub emulator: Option<PathBuf>,
    /// Whether to show the machine's shared libraries inside, for a program that needs them.
    pub libraries: bool,
    /// Arguments of `/pause`.
    pub arguments: Vec<OsString>,
    /// Whether PID 1 is not `/pause` but a process that does nothing. What is said here of PID 1 then
    /// holds for `/pause`.
    pub not_pid_1: bool,
    /// User and group of `/pause` in place of the image's, as with `runAsUser`. Only root can choose.
    pub user: Option<u32>,
    /// What PID 1 runs before it becomes `/pause`.
    pub preparation: Option<&'static Helper>,
    /// Stdout of `/pause`, which is /dev/null by default.
    pub stdout: Option<Arc<OwnedFd>>,
    /// Stderr of `/pause`, which [`Sandbox::wait`] returns by default.
    pub stderr: Option<Arc<OwnedFd>>,
}

impl Setup {
    /// A sandbox for `program`, with all defaults.
    pub fn new(program: &Path) -> Self {
        Setup { program: program.into(), ..Setup::default() }
    }

    /// A sandbox for the release binary of `flavor`, which is built.
    pub fn of(flavor: Flavor) -> Result<Self> {
        Ok(Setup { libraries: flavor == Flavor::Hosted, ..Setup::new(&build(flavor)?) })
    }

    /// Starts the sandbox and waits until `/pause` sleeps in it.
    pub fn asleep(self) -> Result<Sandbox> {
        let sandbox = self.start()?;
        sandbox.wait_until_asleep()?;
        Ok(sandbox)
    }

    /// Starts the sandbox. Its PID 1 is `/pause` when this returns, or about to become it.
    pub fn start(self) -> Result<Sandbox> {
        let (near, far) = UnixStream::pair()?;
        near.set_read_timeout(Some(TIMEOUT))?;
        let launcher = LAUNCHER
            .command()
            .args([self.libraries, self.not_pid_1].map(|it| it.to_string()))
            .arg(self.user.unwrap_or(USER).to_string())
            .arg(self.preparation.map_or("", |helper| helper.name))
            .args([self.emulator.unwrap_or_default(), self.program])
            .args(&self.arguments)
            .stdin(OwnedFd::from(far))
            .stdout(self.stdout.map_or(Ok(Stdio::null()), |fd| fd.try_clone().map(Stdio::from))?)
            .stderr(self.stderr.map_or(Ok(Stdio::piped()), |fd| fd.try_clone().map(Stdio::from))?)
            // Ctrl-C on a terminal is for whoever started the sandbox, and not for what is inside.
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's launcher")?;
        let mut launcher = Launcher(launcher);
        let stderr = launcher.0.stderr.take();
        let mut reports = BufReader::new(near);
        let pid = rustix::process::Pid::from_raw(report(&mut reports)?).context("no PID")?;
        // The launcher reaps PID 1 only after the answer. Until then no other process has its number.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot open a pidfd")?;
        reports.get_ref().write_all(b"\n")?;
        let pid = Pid::from_raw(pid.as_raw_pid());
        Ok(Sandbox { pid, pidfd, reports, stderr, launcher })
    }
}

/// The parent of a sandbox's PID 1. Dropping it kills both: PID 1 asked the kernel for that.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running sandbox. Dropping it kills PID 1, and with it every process inside.
pub struct Sandbox {
    /// PID of its PID 1 in this PID namespace.
    pub pid: Pid,
    pidfd: OwnedFd,
    reports: BufReader<UnixStream>,
    stderr: Option<ChildStderr>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    launcher: Launcher,
}

impl Sandbox {
    /// Waits until `/pause` sleeps.
    pub fn wait_until_asleep(&self) -> Result<()> {
        let mut has_ended = false;
        wait_until("/pause sleeps", || {
            has_ended = self.signal_by_number(0).is_err();
            has_ended || is_asleep(self.pid)
        })?;
        ensure!(!has_ended, "/pause has ended");
        Ok(())
    }

    /// Sends a signal to PID 1, from outside.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.signal_by_number(signal as i32)
    }

    /// The same for every signal; nix has no names for realtime signals.
    pub fn signal_by_number(&self, signal: i32) -> Result<()> {
        // SAFETY: numbers, a descriptor that is open, and no pointer but null.
        let result = unsafe {
            let info = ptr::null::<libc::siginfo_t>();
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, info, 0)
        };
        Errno::result(result).with_context(|| format!("cannot send signal {signal} to PID 1"))?;
        Ok(())
    }

    /// Waits until PID 1 has ended, and returns its exit status and its stderr.
    pub fn wait(mut self) -> Result<(ExitStatus, Vec<u8>)> {
        let status = ExitStatus::from_raw(report(&mut self.reports)?);
        let mut text = Vec::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_end(&mut text)?;
        }
        Ok((status, text))
    }

    /// Sends a signal to PID 1, which has to exit with 0, with nothing on stderr but `message`.
    pub fn stops(self, signal: Signal, message: &str) -> Result<()> {
        self.signal(signal)?;
        self.ends(0, message)
    }

    /// Waits until PID 1 has ended: with this exit code, and nothing on stderr but `message`.
    pub fn ends(self, code: i32, message: &str) -> Result<()> {
        let (status, stderr) = self.wait()?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(status.code() == Some(code) && stderr == message, "{status}, stderr: {stderr:?}");
        Ok(())
    }

    /// A command that runs `helper` inside, as a container of the pod: in all namespaces of the
    /// sandbox, with every capability over them. Add its arguments; its stdin is /dev/null.
    pub fn command(&self, helper: &Helper) -> Command {
        let mut command = JOINER.command();
        let pidfd = self.pidfd.try_clone().expect("there are descriptors left");
        command.arg(pidfd.as_raw_fd().to_string()).arg(helper.name);
        let keep = move || Ok(fcntl(&pidfd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?);
        // SAFETY: after fork(2) it only makes a system call. The descriptor lives with the command.
        unsafe { command.pre_exec(keep) };
        command
    }

    /// Runs `helper` inside to its end and returns its stdout. Fails with its stderr.
    pub fn run(&self, helper: &Helper, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.command(helper).args(arguments).output()?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "{} inside: {status}: {stderr}", helper.name);
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}

/// The next number from the launcher, or its error message.
fn report(reports: &mut BufReader<UnixStream>) -> Result<i32> {
    let mut line = String::new();
    reports.read_line(&mut line).context("PID 1 did not start or end in time")?;
    let line = line.trim_end();
    line.parse().map_err(|_| match line {
        "" => anyhow!("the sandbox's launcher died"),
        message => anyhow!("{message}"),
    })
}

/// Checks that sandboxes can be made here; otherwise the error says what to do.
pub fn is_available() -> Result<()> {
    let this = Setup::new(Path::new("/proc/self/exe"));
    Setup { libraries: true, arguments: vec!["--help".into()], ..this }.start().map(drop)
}

/// Makes the namespaces, starts PID 1 in them, and reports its PID and exit status.
fn launcher(arguments: &[OsString]) -> Result<()> {
    let mut reports = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    match launch(arguments) {
        Ok(pid) => {
            writeln!(reports, "{pid}")?;
            reports.read_exact(&mut [0])?;
            let status = match waitpid(pid, None)? {
                WaitStatus::Exited(_, code) => code << 8,
                WaitStatus::Signaled(_, signal, _) => signal as i32,
                status => bail!("unexpected {status:?}"),
            };
            writeln!(reports, "{status}")?;
        }
        Err(error) => writeln!(reports, "{error:#}")?,
    }
    Ok(())
}

/// Starts PID 1 and waits until it has become `/pause`.
fn launch(arguments: &[OsString]) -> Result<Pid> {
    let [libraries, not_pid_1, user, preparation, emulator, program, arguments @ ..] = arguments
    else {
        bail!("takes libraries, not_pid_1, user, preparation, emulator, program, its arguments");
    };
    let user = user.to_string_lossy().parse()?;
    enter_namespaces()?;
    set_pdeathsig(Signal::SIGKILL)?;
    if not_pid_1 == "true" {
        spawn(idle)?;
    }
    // The writing end closes by itself when the new program starts: then there was no error.
    let (mut error_reader, error_writer) = io::pipe()?;
    let pid = spawn(|| {
        let Err(error) = enter_root(program.as_ref(), emulator.as_ref(), libraries == "true")
            .and_then(|()| become_pause(user, preparation, !emulator.is_empty(), arguments));
        write!(&error_writer, "{error:#}")?;
        Ok(())
    })?;
    drop(error_writer);
    drop_output()?;
    let mut text = String::new();
    error_reader.read_to_string(&mut text)?;
    ensure!(text.is_empty(), "cannot start a sandbox: {text}");
    Ok(pid)
}

/// Closes stdout and stderr, so that `/pause` alone holds them: they end when it closes them.
fn drop_output() -> Result<()> {
    dup2_stdout(io::stdin())?;
    Ok(dup2_stderr(io::stdin())?)
}

/// Does nothing, as PID 1, for as long as the launcher is there.
fn idle() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    drop_output()?;
    loop {
        thread::park();
    }
}

/// The namespaces of a sandbox. Root needs no user namespace.
fn namespaces() -> CloneFlags {
    let user = if geteuid().is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    user | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
}

/// Moves this process to new namespaces, its children to a new PID namespace.
fn enter_namespaces() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(namespaces()).context(
        "the kernel does not let this user make namespaces; become root, or allow it: \
         sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 \
         kernel.apparmor_restrict_unprivileged_userns=0 (those that this kernel has)",
    )?;
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{USER} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{USER} {gid} 1"))?;
    }
    Ok(())
}

/// Becomes the user of the sandbox, runs the preparation, and becomes `/pause`.
fn become_pause(
    user: u32,
    preparation: &OsStr,
    emulated: bool,
    arguments: &[OsString],
) -> Result<Infallible> {
    become_user(user)?;
    // Rust programs ignore it, engines do not.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    // The sandbox ends with its launcher. (A change of user would undo this.)
    set_pdeathsig(Signal::SIGKILL)?;
    if !preparation.is_empty() {
        ensure!(helper::run(preparation, &[]) == 0, "the preparation failed");
    }
    let mut words = vec![CString::from(c"/pause")];
    if emulated {
        words.insert(0, EMULATOR.into());
    }
    for argument in arguments {
        words.push(CString::new(argument.as_bytes())?);
    }
    execv(&words[0].clone(), &words).context("cannot start /pause")
}

/// Becomes a user. (In a sandbox of an ordinary user, there is only that of the image.)
pub fn become_user(user: u32) -> Result<()> {
    if geteuid().is_root() {
        setgroups(&[])?;
        setgid(Gid::from_raw(user))?;
        setuid(Uid::from_raw(user))?;
    }
    Ok(())
}

/// The PID namespace that a helper inside was started from.
static STARTED_FROM: OnceLock<u64> = OnceLock::new();

/// Fails unless this process runs inside a sandbox, in another PID namespace than the one that it was
/// started from. Every helper calls this before it signals processes that it did not start.
pub fn ensure_inside() -> Result<()> {
    let started_from = STARTED_FROM.get().context("runs only inside a sandbox")?;
    ensure!(pid_namespace()? != *started_from, "this is not the PID namespace of a sandbox");
    Ok(())
}

fn pid_namespace() -> Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid").context("cannot see the PID namespace")?.ino())
}

/// Joins the namespaces of the process that a pidfd stands for, and runs a helper there.
fn joiner(arguments: &[OsString]) -> Result<()> {
    let [pidfd, helper, arguments @ ..] = arguments else {
        bail!("takes a pidfd, a helper and its arguments");
    };
    let pidfd = pidfd.to_str().and_then(|it| it.parse().ok()).context("not a descriptor")?;
    STARTED_FROM.set(pid_namespace()?).expect("this runs once");
    // SAFETY: the command passed it on for this purpose, and nothing else here knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    setns(pidfd, namespaces()).context("cannot join the sandbox; its PID 1 may have ended")?;
    // Only a child is in the PID namespace that was joined.
    let child = spawn(|| {
        ensure_inside()?;
        exit(helper::run(helper, arguments))
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => exit(code),
        status => bail!("{} ended: {status:?}", helper.display()),
    }
}
