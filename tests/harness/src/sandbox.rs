//! A sandbox like that of a container engine: the product as PID 1 of new namespaces, as user 65535,
//! alone in a new root file system. Needs no engine, and no root where the kernel lets ordinary users
//! make user namespaces.
//!
//! Three processes start it, which follow each other in this file: [`Setup::start`] sends the setup to
//! a helper process, `launcher` makes the namespaces and clones, and `become_pause` makes the root
//! file system, changes the user and becomes `/pause`.

use crate::build::{Flavor, build};
use crate::helper;
use crate::helper::{Helper, spawn_with};
use crate::proc::{TIMEOUT, is_asleep, state, wait_until};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execv, getegid, geteuid,
    pivot_root, setgid, setgroups, setuid,
};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::env::temp_dir;
use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Output, Stdio};
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
    pub arguments: Vec<OsString>,
    /// Whether PID 1 is not `/pause` but a process that does nothing. What is said here of PID 1 then
    /// holds for `/pause`.
    pub not_pid_1: bool,
    /// What PID 1 runs before it becomes `/pause`.
    pub preparation: Option<&'static Helper>,
    /// Stdout of `/pause`, which is /dev/null by default.
    #[serde(skip)]
    pub stdout: Option<Arc<OwnedFd>>,
    /// Stderr of `/pause`, which [`Sandbox::wait`] returns by default.
    #[serde(skip)]
    pub stderr: Option<Arc<OwnedFd>>,
}

/// What the processes that start a sandbox report: the PID of one that was cloned, or an error.
type Report = Result<i32, String>;

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
        let setup = serde_json::to_vec(&self)?;
        let mut launcher = LAUNCHER
            .command()
            .stdin(OwnedFd::from(far))
            .stdout(self.stdout.map_or(Ok(Stdio::null()), |fd| fd.try_clone().map(Stdio::from))?)
            .stderr(self.stderr.map_or(Ok(Stdio::piped()), |fd| fd.try_clone().map(Stdio::from))?)
            // Ctrl-C on a terminal is for whoever started the sandbox, and not for what is inside.
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's launcher")?;
        let mut text = String::new();
        let exchanged = near
            .write_all(&setup)
            .and_then(|()| near.shutdown(Shutdown::Write))
            // This ends when the launcher has ended, and PID 1 has become `/pause`.
            .and_then(|()| near.read_to_string(&mut text));
        launcher.kill()?;
        launcher.wait()?;
        let (mut processes, mut errors) = (Vec::new(), Vec::new());
        for line in text.lines() {
            match serde_json::from_str::<Report>(line)? {
                Ok(pid) => processes.push(Pid::from_raw(pid)),
                Err(error) => errors.push(error),
            }
        }
        let error = || format!("cannot start a sandbox: {}", errors.join("; "));
        let pid = *processes.last().with_context(error)?;
        let sandbox = Sandbox { pid, processes, stderr: launcher.stderr.take() };
        exchanged.context("PID 1 did not start in time")?;
        ensure!(errors.is_empty(), error());
        Ok(sandbox)
    }
}

/// Checks that sandboxes can be made here; otherwise the error says what to do.
pub fn is_available() -> Result<()> {
    let this = Setup::new(Path::new("/proc/self/exe"));
    Setup { libraries: true, arguments: vec!["--help".into()], ..this }.start().map(drop)
}

helper!(LAUNCHER = launcher);

/// Reads a [`Setup`] from its stdin, a socket, and writes a line for each [`Report`] to it.
fn launcher(_: &[OsString]) -> Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    let mut setup = Vec::new();
    socket.read_to_end(&mut setup)?;
    let setup = serde_json::from_slice(&setup)?;
    launch(&setup, &socket).or_else(|error| report(&socket, Err(format!("{error:#}"))))
}

/// Writes a report, in one piece.
fn report(mut socket: &UnixStream, report: Report) -> Result<()> {
    let line = serde_json::to_string(&report)? + "\n";
    socket.write_all(line.as_bytes()).context("cannot report")
}

/// Makes the namespaces and starts PID 1 in them.
fn launch(setup: &Setup, socket: &UnixStream) -> Result<()> {
    enter_namespaces()?;
    let clone = |process: &dyn Fn() -> Result<()>| {
        // A child of the process that started the launcher, which waits for it.
        let pid = spawn_with(CloneFlags::CLONE_PARENT, None, process)?;
        report(socket, Ok(pid.as_raw()))
    };
    if setup.not_pid_1 {
        clone(&idle)?;
    }
    clone(&|| {
        let Err(error) = become_pause(setup);
        report(socket, Err(format!("{error:#}")))
    })
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

/// Closes all descriptors but the standard streams. The process that started a sandbox waits until the
/// last copy of its socket is closed.
pub fn close_descriptors() -> Result<()> {
    // SAFETY: this is for processes that do nothing more with what they inherited.
    Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })?;
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
    if let Some(helper) = setup.preparation {
        (helper.run)(&[]).context(helper.name)?;
    }
    let mut words = vec![CString::from(c"/pause")];
    for argument in &setup.arguments {
        words.push(CString::new(argument.clone().into_vec())?);
    }
    if setup.emulator.is_some() {
        words.insert(0, EMULATOR.into());
    }
    execv(&words[0].clone(), &words).context("cannot start /pause")
}

/// Path of the emulator, if there is one. The kernel takes a process's name from the file's.
const EMULATOR: &CStr = c"/emulator/pause";

/// Makes a root with `/pause` and `/proc` in it, moves there, and unmounts the machine's.
fn enter_root_file_system(setup: &Setup) -> Result<()> {
    let none = None::<&str>;
    let read =
        |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let program = read(&setup.program)?;
    let emulator = setup.emulator.as_ref().map(read).transpose()?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    let root = temp_dir();
    mount(none, &root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", root.display()))?;
    chdir(&root)?;
    fs::create_dir("emulator")?;
    for (name, bytes) in [("pause", Some(program)), ("emulator/pause", emulator)] {
        if let Some(bytes) = bytes {
            fs::write(name, bytes)?;
            fs::set_permissions(name, Permissions::from_mode(0o755))?;
        }
    }
    fs::create_dir("proc")?;
    mount(none, "proc", Some("proc"), MsFlags::empty(), none).context(
        "cannot mount /proc; inside a container the engine must not mask parts of it \
         (docker run --security-opt systempaths=unconfined)",
    )?;
    if setup.libraries {
        bind_libraries()?;
    }
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot unmount the machine's root")?;
    Ok(chdir("/")?)
}

/// Makes the machine's shared libraries visible below the current directory, wherever it has them.
fn bind_libraries() -> Result<()> {
    for name in ["lib", "lib32", "lib64", "usr", "nix", "gnu"] {
        let original = Path::new("/").join(name);
        if let Ok(target) = fs::read_link(&original) {
            symlink(target, name)?;
        } else if original.is_dir() {
            fs::create_dir(name)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&original), name, None::<&str>, flags, None::<&str>)
                .and_then(|()| make_read_only(name))
                .with_context(|| format!("cannot bind {}", original.display()))?;
        }
    }
    Ok(())
}

/// Makes a mount and all that are below it read-only, in this mount namespace alone.
fn make_read_only(directory: &str) -> nix::Result<()> {
    let path = CString::new(directory).expect("the name has no NUL");
    // SAFETY: all fields are numbers.
    let mut attributes: libc::mount_attr = unsafe { zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    let (flags, size) = (libc::AT_RECURSIVE, size_of_val(&attributes));
    let (call, attributes) = (libc::SYS_mount_setattr, &raw const attributes);
    // SAFETY: both pointers are valid during the call, which only reads from them.
    let result =
        unsafe { libc::syscall(call, libc::AT_FDCWD, path.as_ptr(), flags, attributes, size) };
    Errno::result(result).map(drop)
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
        let end = end_of(status)?;
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
    pub fn command(&self, helper: &'static Helper) -> Command {
        let mut command = helper.command_in(Some(self.pid));
        command.stdin(Stdio::null());
        command
    }

    /// Runs `helper` inside to its end and returns its stdout. Fails with its stderr.
    pub fn run(&self, helper: &'static Helper, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.command(helper).args(arguments).output()?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "{} inside: {status}: {stderr}", helper.name);
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}

/// How a process has ended, from its status.
pub fn end_of(status: WaitStatus) -> Result<End> {
    match status {
        WaitStatus::Exited(_, code) => Ok(Ok(code)),
        WaitStatus::Signaled(_, signal, _) => Ok(Err(signal)),
        status => bail!("unexpected {status:?}"),
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
