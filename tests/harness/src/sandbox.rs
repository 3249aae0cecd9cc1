//! A sandbox like that of a container engine: the product as PID 1 of new namespaces, as user 65535,
//! alone in a new root file system. Needs no engine, and no root where the kernel lets ordinary users
//! make user namespaces.

use crate::build::{Flavor, build};
use crate::helper;
use crate::helper::{Helper, spawn, spawn_with};
use crate::proc::{TIMEOUT, is_asleep, state, wait_until};
use crate::root::{EMULATOR, enter_root};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execv, getegid, geteuid, setgid,
    setgroups, setsid, setuid,
};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Output, Stdio, exit};
use std::sync::{Arc, OnceLock};
use std::thread;

/// User and group of the image.
pub const USER: u32 = 65535;

/// What `/pause` prints when SIGTERM ends it.
pub const STOPPED: &str = "pause: SIGTERM\n";

/// What `/pause` prints if it is not PID 1.
pub const WARNING: &str = "pause: warning: not PID 1\n";

/// What `/pause` prints if its first argument is unknown.
pub const IGNORED: &str = "pause: warning: unknown argument ignored\n";

/// How a process has ended: its exit code, or the signal that killed it.
pub type End = Result<i32, Signal>;

helper!(LAUNCHER = launcher);
helper!(JOINER = joiner);

/// How to start a sandbox: [`Setup::start`] hands it to the process of `LAUNCHER`, which makes the
/// namespaces and starts PID 1; that makes its root, changes its user and becomes `/pause`.
#[derive(Clone, Default, Deserialize, Serialize)]
pub struct Setup {
    /// The program that will be `/pause` inside.
    pub program: PathBuf,
    /// A static program that runs it, if there is one.
    pub emulator: Option<PathBuf>,
    /// Whether to show the machine's shared libraries inside, for a program that needs them.
    pub libraries: bool,
    /// Arguments of `/pause`, as long as the kernel takes them.
    #[serde(skip)]
    pub arguments: Vec<OsString>,
    /// Whether PID 1 is not `/pause` but a process that does nothing. What is said here of PID 1 then
    /// holds for `/pause`.
    pub not_pid_1: bool,
    /// User and group of `/pause` in place of the image's, as with `runAsUser`. Only root can choose.
    pub user: Option<u32>,
    /// What PID 1 runs before it becomes `/pause`.
    #[serde(skip)]
    pub preparation: Option<&'static Helper>,
    /// Stdout of `/pause`, which is /dev/null by default.
    #[serde(skip)]
    pub stdout: Option<Arc<OwnedFd>>,
    /// Stderr of `/pause`, which [`Sandbox::wait`] returns by default.
    #[serde(skip)]
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

    /// Starts the sandbox. Its PID 1 is `/pause` when this returns.
    pub fn start(self) -> Result<Sandbox> {
        let (mut near, far) = UnixStream::pair()?;
        near.set_read_timeout(Some(TIMEOUT))?;
        let mut launcher = LAUNCHER
            .command()
            .arg(serde_json::to_string(&self)?)
            .arg(self.preparation.map_or("", |helper| helper.name))
            .args(&self.arguments)
            .stdin(OwnedFd::from(far))
            .stdout(self.stdout.map_or(Ok(Stdio::null()), |fd| fd.try_clone().map(Stdio::from))?)
            .stderr(self.stderr.map_or(Ok(Stdio::piped()), |fd| fd.try_clone().map(Stdio::from))?)
            // Ctrl-C on a terminal is for whoever started the sandbox, and not for what is inside.
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's launcher")?;
        // This ends when the launcher has ended, and PID 1 has become `/pause`.
        let mut report = String::new();
        let is_complete = near.read_to_string(&mut report);
        launcher.kill()?;
        launcher.wait()?;
        let (pids, errors): (Vec<_>, Vec<_>) =
            report.lines().partition(|line| line.parse::<i32>().is_ok());
        let processes: Vec<_> = pids.iter().flat_map(|it| it.parse().map(Pid::from_raw)).collect();
        let error = format!("cannot start a sandbox: {}", errors.join("; "));
        let pid = *processes.last().with_context(|| error.clone())?;
        let sandbox = Sandbox { pid, processes, stderr: launcher.stderr.take() };
        is_complete.context("PID 1 did not start in time")?;
        ensure!(errors.is_empty(), error);
        Ok(sandbox)
    }
}

/// A running sandbox. Dropping it kills PID 1, and with it every process inside.
pub struct Sandbox {
    /// PID of its PID 1 in this PID namespace. No other process gets it: PID 1 is a child of this
    /// process, which only [`Sandbox::wait`] and the end of this value wait for.
    pub pid: Pid,
    /// The children to kill and to wait for, the last one first.
    processes: Vec<Pid>,
    stderr: Option<ChildStderr>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for &pid in self.processes.iter().rev() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

impl Sandbox {
    /// Waits until `/pause` sleeps.
    pub fn wait_until_asleep(&self) -> Result<()> {
        let has_ended = || state(self.pid) == Some('Z');
        wait_until("/pause sleeps", || has_ended() || is_asleep(self.pid))?;
        ensure!(!has_ended(), "/pause has ended");
        Ok(())
    }

    /// Sends a signal to PID 1, from outside.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// Waits until PID 1 has ended, and returns how, and its stderr.
    pub fn wait(mut self) -> Result<(End, Vec<u8>)> {
        let mut status = WaitStatus::StillAlive;
        wait_until("PID 1 has ended", || {
            status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("PID 1 is a child");
            status != WaitStatus::StillAlive
        })?;
        self.processes.pop();
        let end = match status {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Err(signal),
            status => bail!("unexpected {status:?}"),
        };
        let mut text = Vec::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_end(&mut text)?;
        }
        Ok((end, text))
    }

    /// Sends a signal to PID 1, which has to exit with 0, with nothing on stderr but `message`.
    pub fn stops(self, signal: Signal, message: &str) -> Result<()> {
        self.signal(signal)?;
        self.ends(0, message)
    }

    /// Waits until PID 1 has ended: with this exit code, and nothing on stderr but `message`.
    pub fn ends(self, code: i32, message: &str) -> Result<()> {
        let (end, stderr) = self.wait()?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(end == Ok(code) && stderr == message, "{end:?}, stderr: {stderr:?}");
        Ok(())
    }

    /// A command that runs `helper` inside, as a container of the pod: in all namespaces of the
    /// sandbox, with every capability over them. Add its arguments; its stdin is /dev/null.
    pub fn command(&self, helper: &Helper) -> Command {
        let mut command = JOINER.command();
        command.arg(self.pid.to_string()).arg(helper.name);
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

/// Checks that sandboxes can be made here; otherwise the error says what to do.
pub fn is_available() -> Result<()> {
    let this = Setup::new(Path::new("/proc/self/exe"));
    Setup { libraries: true, arguments: vec!["--help".into()], ..this }.start().map(drop)
}

/// Starts a sandbox, and reports PIDs and errors in lines to its stdin.
fn launcher(arguments: &[OsString]) -> Result<()> {
    let mut reports = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    if let Err(error) = launch(&reports, arguments) {
        writeln!(reports, "{error:#}")?;
    }
    Ok(())
}

/// Makes the namespaces and starts PID 1 in them.
fn launch(reports: &File, arguments: &[OsString]) -> Result<()> {
    let [setup, preparation, arguments @ ..] = arguments else {
        bail!("takes a setup, a preparation and the arguments of /pause");
    };
    let setup: Setup = serde_json::from_str(setup.to_str().context("no setup")?)?;
    enter_namespaces()?;
    let start = |process: &dyn Fn() -> Result<()>| {
        // A child of the process that started the launcher, which waits for it.
        let pid = spawn_with(CloneFlags::CLONE_PARENT, None, process)?;
        writeln!({ reports }, "{pid}").context("cannot report")
    };
    if setup.not_pid_1 {
        start(&idle)?;
    }
    start(&|| {
        let Err(error) = enter_root(&setup.program, setup.emulator.as_deref(), setup.libraries)
            .and_then(|()| become_pause(&setup, preparation, arguments));
        Ok(writeln!({ reports }, "{error:#}")?)
    })
}

/// Does nothing, as PID 1.
fn idle() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    dup2_stdout(io::stdin())?;
    dup2_stderr(io::stdin())?;
    close_descriptors()?;
    loop {
        thread::park();
    }
}

/// Closes all descriptors but the standard streams. Whoever started a sandbox waits until the last copy
/// of one is closed.
pub fn close_descriptors() -> Result<()> {
    // SAFETY: this is for processes that do nothing more with what they inherited.
    Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })?;
    Ok(())
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
fn become_pause(setup: &Setup, preparation: &OsStr, arguments: &[OsString]) -> Result<Infallible> {
    become_user(setup.user.unwrap_or(USER))?;
    // Rust programs ignore it, engines do not.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    // The sandbox ends with whoever started it. (A change of user would undo this.)
    set_pdeathsig(Signal::SIGKILL)?;
    if !preparation.is_empty() {
        ensure!(helper::run(preparation, &[]) == 0, "the preparation failed");
    }
    let mut words = vec![CString::from(c"/pause")];
    if setup.emulator.is_some() {
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

/// Joins the namespaces of a process, and runs a helper there.
fn joiner(arguments: &[OsString]) -> Result<()> {
    let [pid, helper, arguments @ ..] = arguments else {
        bail!("takes a PID, a helper and its arguments");
    };
    let pid = pid.to_string_lossy().parse()?;
    STARTED_FROM.set(pid_namespace()?).expect("this runs once");
    let pid = rustix::process::Pid::from_raw(pid).context("no PID")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    setns(pidfd, namespaces()).context("cannot join the sandbox; its PID 1 may have ended")?;
    // Only a child is in the PID namespace that was joined.
    let child = spawn(|| {
        ensure_inside()?;
        // As in a container. In the session of the tests, the kernel may take them for an orphaned process
        // group with a stopped member, and send SIGHUP to all of it.
        setsid()?;
        exit(helper::run(helper, arguments))
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => exit(code),
        status => bail!("{} ended: {status:?}", helper.display()),
    }
}
