//! A sandbox as an engine makes it: the artifact as PID 1 of namespaces of its own, as user 65535,
//! alone in a root file system of its own. Needs no engine, and no root where the kernel lets
//! ordinary users make user namespaces.

use crate::actor::{self, Part, play, spawn};
use crate::proc::{PATIENCE, is_asleep, wait_until};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execv, getegid, geteuid,
    pivot_root, setgid, setgroups, setuid,
};
use std::convert::Infallible;
use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio, exit};

/// User and group that the image runs as.
pub const USER: u32 = 65535;

/// What is told apart by the kernel's `ns` links, in the order in which they have to be joined.
pub const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];

pub(crate) const PARTS: &[Part] = &[("sandbox-launcher", launcher), ("sandbox-joiner", joiner)];

/// How to start a sandbox.
pub struct Setup {
    program: PathBuf,
    emulator: OsString,
    arguments: Vec<OsString>,
    preparation: OsString,
    libraries: bool,
    stdout: Stdio,
    stderr: Stdio,
}

impl Setup {
    /// The release binary `program`, which will be `/pause` inside.
    pub fn new(program: &Path) -> Self {
        Setup {
            program: program.into(),
            emulator: OsString::new(),
            arguments: Vec::new(),
            preparation: OsString::new(),
            libraries: false,
            stdout: Stdio::null(),
            stderr: Stdio::piped(),
        }
    }

    /// Adds an argument for `/pause`.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Plays `part` as PID 1, without arguments, and becomes `/pause` after that.
    pub fn prepared_by(mut self, part: &str) -> Self {
        self.preparation = part.into();
        self
    }

    /// Puts the machine's shared libraries into the sandbox, for a program that needs them.
    pub fn with_libraries(mut self, wanted: bool) -> Self {
        self.libraries = wanted;
        self
    }

    /// Runs the program by `emulator`, a static program that takes it and its arguments.
    pub fn emulated_by(mut self, emulator: &Path) -> Self {
        self.emulator = emulator.into();
        self
    }

    /// Where stdout goes; nowhere without this.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Where stderr goes; without this [`Sandbox::wait`] returns it.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Starts the sandbox. It has become `/pause` when this returns, or will in a moment.
    ///
    /// # Errors
    ///
    /// Says which step the kernel refused, and for the usual one what to do about it.
    pub fn start(self) -> Result<Sandbox> {
        let (near, far) = UnixStream::pair()?;
        near.set_read_timeout(Some(PATIENCE))?;
        let mut launcher = actor::command("sandbox-launcher")
            .arg(if self.libraries { "libraries" } else { "scratch" })
            .args([&self.preparation, &self.emulator, self.program.as_os_str()])
            .args(&self.arguments)
            .stdin(OwnedFd::from(far))
            .stdout(self.stdout)
            .stderr(self.stderr)
            // Ctrl-C on a terminal is for whoever started the sandbox, and not for what is inside.
            .process_group(0)
            .spawn()
            .context("cannot start the sandbox's launcher")?;
        let stderr = launcher.stderr.take();
        let mut sandbox =
            Sandbox { pid: Pid::from_raw(0), launcher, reports: BufReader::new(near), stderr };
        let pid = sandbox.report()?;
        sandbox.pid = Pid::from_raw(pid);
        Ok(sandbox)
    }
}

/// A running sandbox. Dropping it kills PID 1, and the kernel with it all that is inside.
pub struct Sandbox {
    /// PID 1, as seen from here.
    pub pid: Pid,
    launcher: Child,
    reports: BufReader<UnixStream>,
    stderr: Option<ChildStderr>,
}

impl Sandbox {
    /// Waits until `/pause` sleeps.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn wait_until_asleep(&self) -> Result<()> {
        wait_until("/pause sleeps", || is_asleep(self.pid))
    }

    /// Sends a signal to PID 1, from outside.
    ///
    /// # Errors
    ///
    /// When there is no PID 1 any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to PID 1"))
    }

    /// Waits until PID 1 is gone, and returns how it went, and what stands on stderr.
    ///
    /// # Errors
    ///
    /// When it does not go.
    pub fn wait(mut self) -> Result<(ExitStatus, String)> {
        let status = ExitStatus::from_raw(self.report()?);
        let mut said = Vec::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_end(&mut said)?;
        }
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }

    /// A command that plays `part` inside, as a container of the pod would: in all namespaces of
    /// the sandbox, with every capability over them. Add the part's arguments to it.
    pub fn actor(&self, part: &str) -> Command {
        let mut command = actor::command("sandbox-joiner");
        command.arg(self.pid.to_string()).arg(part);
        command
    }

    /// Plays `part` inside to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    ///
    /// When the part fails: what it wrote to stderr.
    pub fn act(&self, part: &str, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.actor(part).args(arguments).output()?;
        ensure!(status.success(), "{part} inside: {status}: {}", String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// The inode number of one of PID 1's [`NAMESPACES`].
    ///
    /// # Errors
    ///
    /// When there is no PID 1 any more.
    pub fn namespace(&self, name: &str) -> Result<String> {
        let link = fs::read_link(format!("/proc/{}/ns/{name}", self.pid))?;
        Ok(link.to_string_lossy().into_owned())
    }

    /// The next number from the launcher, or its complaint.
    fn report(&mut self) -> Result<i32> {
        let mut line = String::new();
        self.reports.read_line(&mut line).context("waited in vain for the sandbox")?;
        let line = line.trim_end();
        line.parse().map_err(|_| match line {
            "" => anyhow!("the sandbox's launcher died"),
            complaint => anyhow!("{complaint}"),
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The launcher is killed, and PID 1 with it: it asked the kernel for that.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

/// Whether sandboxes can be made here.
///
/// # Errors
///
/// Says why not, and what to do.
pub fn is_available() -> Result<()> {
    let sandbox = Setup::new(Path::new("/proc/self/exe")).with_libraries(true).argument("--help");
    sandbox.stderr(Stdio::null()).start().map(drop)
}

/// Makes the namespaces, starts PID 1 in them, and reports its number and how it ended.
fn launcher(arguments: &[OsString]) -> Result<()> {
    let [root, preparation, emulator, program, arguments @ ..] = arguments else {
        bail!("takes the kind of root, a preparation, an emulator, the program and its arguments");
    };
    let mut reports = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(File::open("/dev/null")?)?;
    match launch(root == "libraries", preparation, emulator.as_ref(), program.as_ref(), arguments) {
        Ok(pid) => {
            writeln!(reports, "{pid}")?;
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
fn launch(
    libraries: bool,
    preparation: &OsStr,
    emulator: &Path,
    program: &Path,
    arguments: &[OsString],
) -> Result<Pid> {
    enter_namespaces()?;
    set_pdeathsig(Signal::SIGKILL)?;
    // The writing end closes by itself when the new program starts: then nothing went wrong.
    let (mut complaint, complain) = io::pipe()?;
    let pid = spawn(|| {
        let Err(error) = enter_root(program, emulator, libraries)
            .and_then(|emulated| become_pause(preparation, emulated, arguments));
        write!(&complain, "{error:#}")?;
        Ok(())
    })?;
    drop(complain);
    // What these lead to is for PID 1 alone: when it closes them they are closed.
    dup2_stdout(io::stdin())?;
    dup2_stderr(io::stdin())?;
    let mut text = String::new();
    complaint.read_to_string(&mut text)?;
    ensure!(text.is_empty(), "cannot start a sandbox: {text}");
    Ok(pid)
}

/// Moves this process to new namespaces, its children to a new PID namespace.
fn enter_namespaces() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let mut namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if !uid.is_root() {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(namespaces).context(
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

/// Where the emulator is, if there is one: the kernel shall know it by the name of what it runs.
const EMULATOR: &CStr = c"/emulator/pause";

/// Makes a root with `/pause` and `/proc` in it, moves there, and forgets the machine's. Says whether
/// there is an emulator too.
fn enter_root(program: &Path, emulator: &Path, libraries: bool) -> Result<bool> {
    let nothing = None::<&str>;
    let emulated = emulator != Path::new("");
    let mut programs = vec![("pause", program)];
    if emulated {
        programs.push(("emulator/pause", emulator));
    }
    let open = |(name, path): (&'static str, &Path)| {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name, file))
    };
    let programs = programs.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make the mounts private")?;
    let root = env::temp_dir();
    mount(nothing, &root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", root.display()))?;
    chdir(&root)?;
    fs::create_dir("emulator")?;
    for (name, mut program) in programs {
        io::copy(&mut program, &mut File::create(name)?)?;
        fs::set_permissions(name, Permissions::from_mode(0o755))?;
    }
    fs::create_dir("proc")?;
    mount(nothing, "proc", Some("proc"), MsFlags::empty(), nothing).context(
        "cannot mount /proc; inside a container the engine must not mask parts of it \
         (docker run --security-opt systempaths=unconfined)",
    )?;
    if libraries {
        bring_libraries()?;
    }
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the machine's root")?;
    chdir("/")?;
    Ok(emulated)
}

/// Makes the machine's shared libraries visible below the current folder, wherever it has them.
fn bring_libraries() -> Result<()> {
    for folder in ["lib", "lib32", "lib64", "usr", "nix", "gnu"] {
        let original = Path::new("/").join(folder);
        if let Ok(target) = fs::read_link(&original) {
            symlink(target, folder)?;
        } else if original.is_dir() {
            fs::create_dir(folder)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&original), folder, None::<&str>, flags, None::<&str>)
                .with_context(|| format!("cannot bind {}", original.display()))?;
        }
    }
    Ok(())
}

/// Becomes the user that the image names, plays the preparation, and turns into `/pause`.
fn become_pause(preparation: &OsStr, emulated: bool, arguments: &[OsString]) -> Result<Infallible> {
    become_user()?;
    // Whoever ends the launcher ends the sandbox. (A change of user would undo this.)
    set_pdeathsig(Signal::SIGKILL)?;
    if !preparation.is_empty() {
        ensure!(play(preparation, &[]) == 0, "the preparation failed");
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

/// Becomes the user that the image names, where this one may; an ordinary user is that user inside.
///
/// # Errors
///
/// When root is not allowed to.
pub fn become_user() -> Result<()> {
    if geteuid().is_root() {
        setgroups(&[])?;
        setgid(Gid::from_raw(USER))?;
        setuid(Uid::from_raw(USER))?;
    }
    Ok(())
}

/// Joins the namespaces of a process and plays a part there.
fn joiner(arguments: &[OsString]) -> Result<()> {
    let [pid, part, arguments @ ..] = arguments else {
        bail!("takes a process, a part and its arguments");
    };
    let links = Path::new("/proc").join(pid).join("ns");
    // All are opened before the first is joined: afterwards /proc is another one.
    let mut namespaces = Vec::new();
    for name in NAMESPACES {
        let theirs = links.join(name);
        let is_ours = fs::read_link(&theirs)? == fs::read_link(format!("/proc/self/ns/{name}"))?;
        if !is_ours {
            namespaces.push((name, File::open(&theirs)?));
        }
    }
    for (name, namespace) in namespaces {
        setns(namespace, CloneFlags::empty())
            .with_context(|| format!("cannot join the {name} namespace"))?;
    }
    // Only a child is in the PID namespace that was joined.
    let child = spawn(|| exit(play(part, arguments)))?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => exit(code),
        status => bail!("{} ended: {status:?}", part.display()),
    }
}
