//! A sandbox like that of a container engine: the product as PID 1 of new namespaces, as user 65535,
//! alone in a new root file system. Needs no engine, and no root where the kernel lets ordinary users
//! make user namespaces.
//!
//! Three processes start it, which follow each other in this file: [`Setup::start`] starts a helper
//! process, `launcher` makes the namespaces and clones, and `become_pause` makes the root file system,
//! changes the user and becomes `/pause`.

use crate::build::{Flavor, build};
use crate::helper;
use crate::helper::{Helper, spawn_with};
use crate::proc::{is_asleep, state, wait_until};
use crate::trial::Test;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stdin, execv, getegid, geteuid, pivot_root, setgid, setgroups,
    setuid,
};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::env;
use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, OnceLock};

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

/// What a sandbox consists of.
#[derive(Clone, Default, Deserialize, Serialize)]
pub struct Setup {
    /// The program that will be `/pause` inside.
    pub program: PathBuf,
    /// A static program that runs it, if there is one.
    pub emulator: Option<PathBuf>,
    /// Whether to show the machine's shared libraries inside, for a program that needs them.
    pub libraries: bool,
    /// Arguments of `/pause`.
    #[serde(skip)]
    pub arguments: Vec<OsString>,
    /// Whether the sandbox is in the PID namespace of the machine, as with `--pid=host`.
    pub not_pid_1: bool,
    /// The helper that runs in the process before it becomes `/pause`, by its name, with its arguments.
    pub preparation: Option<(String, Vec<OsString>)>,
    /// Stdout of `/pause`, which is /dev/null by default.
    #[serde(skip)]
    pub stdout: Option<Arc<OwnedFd>>,
    /// Stderr of `/pause`, which [`Sandbox::wait`] returns by default.
    #[serde(skip)]
    pub stderr: Option<Arc<OwnedFd>>,
}

/// A test of `/pause` in sandboxes.
pub type SetupTest = Test<fn(&Setup) -> Result<()>>;

impl Setup {
    /// A sandbox for `program`, with all defaults.
    pub fn new(program: &Path) -> Self {
        Setup { program: program.into(), ..Setup::default() }
    }

    /// A sandbox for the release binary of `flavor`, which is built.
    pub fn of(flavor: Flavor) -> Result<Self> {
        Ok(Setup { libraries: flavor == Flavor::Hosted, ..Setup::new(&build(flavor)?) })
    }

    /// The same with a helper that runs in the process before it becomes `/pause`.
    pub fn prepared(&self, helper: &Helper) -> Self {
        Setup { preparation: Some((helper.name.to_owned(), Vec::new())), ..self.clone() }
    }

    /// Starts the sandbox and waits until `/pause` sleeps in it.
    pub fn asleep(&self) -> Result<Sandbox> {
        let sandbox = self.start()?;
        sandbox.wait_until_asleep()?;
        Ok(sandbox)
    }

    /// Starts the sandbox. Its process is `/pause` when this returns.
    pub fn start(&self) -> Result<Sandbox> {
        let (reader, writer) = io::pipe()?;
        let copy = |fd: &Arc<OwnedFd>| fd.try_clone().map(Stdio::from);
        let mut launcher = LAUNCHER
            .command()
            .arg(serde_json::to_string(self)?)
            .args(&self.arguments)
            .stdin(writer)
            .stdout(self.stdout.as_ref().map_or(Ok(Stdio::null()), copy)?)
            .stderr(self.stderr.as_ref().map_or(Ok(Stdio::piped()), copy)?)
            // Ctrl-C on a terminal is for whoever started the sandbox, and not for what is inside.
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's launcher")?;
        let mut report = String::new();
        // What /pause inherits may hold the pipe open, so that it has no end.
        BufReader::new(reader).read_line(&mut report)?;
        launcher.wait()?;
        let report = report.trim_end();
        let Ok(pid) = report.parse() else { bail!("cannot start a sandbox: {report}") };
        Ok(Sandbox { pid: Pid::from_raw(pid), stderr: launcher.stderr.take() })
    }
}

/// Checks that sandboxes can be made here; otherwise the error says what to do.
pub fn is_available() -> Result<()> {
    let this = Setup::new(&env::current_exe()?);
    Setup { libraries: true, arguments: vec!["--help".into()], ..this }.start().map(drop)
}

helper!(LAUNCHER = launcher);

/// Gets a [`Setup`] as its arguments, and writes a line to its stdin, a pipe: the PID of the process
/// that has become `/pause`, or an error.
fn launcher(arguments: &[OsString]) -> Result<()> {
    let [setup, arguments @ ..] = arguments else { bail!("takes a setup") };
    let setup = serde_json::from_slice(setup.as_bytes())?;
    let setup = Setup { arguments: arguments.to_vec(), ..setup };
    let mut report = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    let launch = || {
        enter_namespaces(&setup)?;
        // The process that started the launcher gets the child, to wait for it. The launcher goes on when
        // the child has become `/pause` or has ended.
        let flags = CloneFlags::CLONE_PARENT | CloneFlags::CLONE_VFORK;
        spawn_with(flags, None, || {
            let Err(error) = become_pause(&setup);
            Ok(writeln!(&report, "{error:#}")?)
        })
    };
    match launch() {
        Ok(pid) => writeln!(report, "{pid}")?,
        Err(error) => writeln!(report, "{error:#}")?,
    }
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
fn enter_namespaces(setup: &Setup) -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let left_out = if setup.not_pid_1 { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
    unshare(namespaces() - left_out).context(
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

/// Becomes `/pause`, in a root file system of its own and as the user of the sandbox.
fn become_pause(setup: &Setup) -> Result<Infallible> {
    enter_root_file_system(setup)?;
    become_user(USER)?;
    // Rust programs ignore it, engines do not.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    // The sandbox ends with the process that started it. (A change of user would undo this.)
    set_pdeathsig(Signal::SIGKILL)?;
    if let Some((name, arguments)) = &setup.preparation {
        (Helper::find(name)?.run)(arguments).context(name.clone())?;
    }
    let mut words = vec![c"/pause".to_owned()];
    for argument in &setup.arguments {
        words.push(CString::new(argument.as_bytes())?);
    }
    if setup.emulator.is_some() {
        words.insert(0, EMULATOR.into());
    }
    execv(&words[0], &words).context("cannot start /pause")
}

/// Path of the emulator, if there is one. The kernel takes a process's name from the file's.
const EMULATOR: &CStr = c"/emulator/pause";

/// Makes a root with `/pause` and `/proc` in it, moves there, and unmounts the machine's.
fn enter_root_file_system(setup: &Setup) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    // Nothing that is needed here lies in /sys, which the new root hides for a while.
    mount(none, "/sys", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("cannot mount a tmpfs")?;
    chdir("/sys")?;
    fs::create_dir("emulator")?;
    let emulator = setup.emulator.iter().map(|path| ("emulator/pause", path));
    for (name, path) in emulator.chain([("pause", &setup.program)]) {
        fs::copy(path, name).with_context(|| format!("cannot copy {}", path.display()))?;
        fs::set_permissions(name, Permissions::from_mode(0o755))?;
    }
    if !setup.not_pid_1 {
        fs::create_dir("proc")?;
        mount(none, "proc", Some("proc"), MsFlags::empty(), none).context(
            "cannot mount /proc; inside a container the engine must not mask parts of it \
             (docker run --security-opt systempaths=unconfined)",
        )?;
    }
    let libraries =
        ["lib", "lib32", "lib64", "usr", "nix", "gnu"].map(|name| (name, setup.libraries));
    for (name, is_shown) in libraries.into_iter().chain([("proc", setup.not_pid_1)]) {
        let original = Path::new("/").join(name);
        if is_shown && original.is_dir() {
            fs::create_dir(name)?;
            mount(Some(&original), name, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
                .with_context(|| format!("cannot bind {}", original.display()))?;
        }
    }
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot unmount the machine's root")?;
    Ok(chdir("/")?)
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

/// A running sandbox. Dropping it kills `/pause`, and with PID 1 every process inside.
pub struct Sandbox {
    /// PID of `/pause` in this PID namespace. No other process gets it: `/pause` is a child of this
    /// process, which only the end of this value reaps.
    pub pid: Pid,
    /// Its stderr, if that is a pipe.
    stderr: Option<ChildStderr>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
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

    /// Sends a signal to `/pause`, from outside.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// Waits until `/pause` has ended, and returns how, and its stderr.
    pub fn wait(mut self) -> Result<(End, String)> {
        wait_until("/pause has ended", || self.status() != WaitStatus::StillAlive)?;
        let mut text = String::new();
        if let Some(stderr) = &mut self.stderr {
            stderr.read_to_string(&mut text)?;
        }
        match self.status() {
            WaitStatus::Exited(_, code) => Ok((Ok(code), text)),
            WaitStatus::Signaled(_, signal, _) => Ok((Err(signal), text)),
            status => bail!("unexpected {status:?}"),
        }
    }

    /// Whether `/pause` has ended or is stopped for its tracer, without a change to that.
    pub fn status(&self) -> WaitStatus {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED;
        let flags = flags | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid), flags).expect("/pause is a child")
    }

    /// Sends a signal to `/pause`, which has to exit with 0, with nothing on stderr but `message`.
    pub fn stops(self, signal: Signal, message: &str) -> Result<()> {
        self.signal(signal)?;
        self.ends(0, message)
    }

    /// Waits until `/pause` has ended: with this exit code, and nothing on stderr but `message`.
    pub fn ends(self, code: i32, message: &str) -> Result<()> {
        let (end, stderr) = self.wait()?;
        ensure!(end == Ok(code) && stderr == message, "{end:?}, stderr: {stderr:?}");
        Ok(())
    }

    /// A command that runs `helper` inside, as a container of the pod: in all namespaces of the
    /// sandbox, with every capability over them. Add its arguments; its stdin is /dev/null.
    pub fn command(&self, helper: &'static Helper) -> Command {
        let mut command = helper.command_in(&self.pid.to_string());
        command.stdin(Stdio::null());
        command
    }

    /// Runs `helper` inside to its end and returns its stdout. Fails with its stderr.
    pub fn run(&self, helper: &'static Helper, arguments: &[&str]) -> Result<String> {
        // Files, because a process that the helper leaves behind would keep pipes open.
        let file = |name| memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from);
        let (mut stdout, mut stderr) = (file(c"stdout")?, file(c"stderr")?);
        let mut command = self.command(helper);
        command.args(arguments).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let status = command.status()?;
        stdout.rewind()?;
        stderr.rewind()?;
        let stderr = io::read_to_string(stderr)?;
        ensure!(status.success(), "{} inside: {status}: {stderr}", helper.name);
        Ok(io::read_to_string(stdout)?)
    }
}

/// The PID namespace that this process was in before it joined that of a sandbox.
static STARTED_FROM: OnceLock<u64> = OnceLock::new();

/// Moves this helper process to the namespaces of a sandbox, its children to the PID namespace.
pub(crate) fn join(pid: i32) -> Result<()> {
    STARTED_FROM.set(pid_namespace()?).expect("this runs once");
    let pid = rustix::process::Pid::from_raw(pid).context("no PID")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    setns(pidfd, namespaces()).context("cannot join the sandbox; its PID 1 may have ended")
}

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
