//! A daemon of our own: apart from every other one on the machine, and gone without a trace when it
//! is no longer needed.

use crate::engine::Skip;
use crate::host;
use crate::images;
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use procfs::process::Process;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How a daemon is run: in mount and network namespaces of its own, so that no other one's bridge,
/// firewall, socket or lock is in its reach, nor its own in anybody else's, and all of it ends with
/// the last process. What engines write to fixed places goes to memory, and that ends as well; /run
/// is empty at first, the others show what the machine has there.
const SECLUDED: &str = r#"
    set -e
    mount -t tmpfs tmpfs /run
    for place in etc opt var/lib; do
        mkdir -p /run/written/$place /run/work/$place
        mount -t overlay overlay /$place \
            -o lowerdir=/$place,upperdir=/run/written/$place,workdir=/run/work/$place
    done
    ip link set lo up
    exec "$0" "$@"
"#;

/// How long a daemon gets to stop by itself. A failure, not a measure: see [`crate::wait`].
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that was started here. Dropping it ends everything that descends from it.
pub struct Daemon {
    name: &'static str,
    arguments: Vec<String>,
    process: Child,
    /// Its mount and its network namespace. None until it has come up.
    namespaces: Option<[File; 2]>,
    /// What there was around it when it had come up.
    pristine: HashSet<String>,
    // Removed when the rest is gone.
    folder: Folder,
}

/// The folder that a daemon keeps everything in, and the name of its control groups.
pub struct Folder {
    folder: TempDir,
    /// The control group below which it puts its containers: a name at the top of the hierarchies.
    pub cgroup: String,
}

/// Makes sure that this machine can run `programs` the way they have to be run, with containers of
/// the helper images.
///
/// # Errors
///
/// [`Skip`] with what is missing.
pub fn require(programs: &[&str]) -> Result<()> {
    ensure!(geteuid().is_root(), Skip("only root can start it".to_owned()));
    let own = ["unshare", "nsenter", "mount", "ip"];
    let all = own.iter().chain(&images::PROGRAMS).chain(programs);
    let missing: Vec<_> = all.copied().filter(|program| which::which(program).is_err()).collect();
    let reason = format!("not installed: {} (cargo xtask engines --install)", missing.join(", "));
    ensure!(missing.is_empty(), Skip(reason));
    Ok(())
}

impl Folder {
    /// Makes it for the daemon `name`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new(name: impl Display) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(&format!("pause-{name}-")).tempdir()?;
        let cgroup = format!("/pause-{name}-{}", std::process::id());
        Ok(Self { folder, cgroup })
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.join("log")
    }

    /// The control groups below [`Folder::cgroup`] and that itself, deepest first.
    fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for mount in Process::myself()?.mountinfo()? {
            if mount.fs_type.starts_with("cgroup") {
                find(&mount.mount_point.join(self.cgroup.trim_start_matches('/')), &mut found)?;
            }
        }
        Ok(found)
    }
}

impl Daemon {
    /// Starts the program `name` and waits until `ready` finds it so.
    ///
    /// # Errors
    ///
    /// When it cannot be started, ends, or does not become ready: with the end of its log.
    pub async fn start(
        name: &'static str,
        folder: Folder,
        arguments: &[&str],
        ready: impl AsyncFnMut(&Folder) -> bool,
    ) -> Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut seclude = Command::new("unshare");
        seclude.args(["--mount", "--net", "--", "sh", "-c", SECLUDED, name]);
        let process = launch(seclude, &arguments, &folder)?;
        let pristine = HashSet::new();
        let mut daemon = Self { name, arguments, process, namespaces: None, pristine, folder };
        daemon.up(ready).await?;
        let open = |kind| File::open(format!("/proc/{}/ns/{kind}", daemon.process.id()));
        daemon.namespaces = Some([open("mnt")?, open("net")?]);
        daemon.pristine = daemon.surroundings()?;
        Ok(daemon)
    }

    /// Stops it, and nothing that it runs, and starts it again, in the same namespaces.
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`], and when it does not stop.
    pub async fn restart(&mut self, ready: impl AsyncFnMut(&Folder) -> bool) -> Result<()> {
        let own = self.own()?;
        self.pristine.retain(|thing| !own.contains(thing));
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM)?;
        let stopped = async || Ok(self.process.try_wait()?);
        until(&format!("{} has stopped", self.name), stopped).await?;

        let enter = self.within(self.name)?.into_std();
        self.process = launch(enter, &self.arguments, &self.folder)?;
        self.up(ready).await?;
        self.pristine.extend(self.own()?);
        Ok(())
    }

    /// Waits until `ready` finds it ready.
    async fn up(&mut self, mut ready: impl AsyncFnMut(&Folder) -> bool) -> Result<()> {
        let name = self.name;
        let state = format!("{name} answers");
        let up = until(&state, async || {
            if let Some(status) = self.process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(ready(&self.folder).await.then_some(()))
        });
        up.await.with_context(|| format!("the log of {name} ends with\n{}", self.log()))
    }

    /// A command that runs where it runs: in its mount and its network namespace.
    ///
    /// # Errors
    ///
    /// When it has not come up.
    pub fn within(&self, program: &str) -> Result<tokio::process::Command> {
        let [mount, network] = self.namespaces.as_ref().context("it is not up")?;
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut command = tokio::process::Command::new("nsenter");
        command.arg(format!("--mount={}", path(mount))).arg(format!("--net={}", path(network)));
        command.args(["--", program]);
        Ok(command)
    }

    /// The folder that it keeps everything in.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The last lines that it wrote.
    fn log(&self) -> String {
        let log = fs::read(self.folder.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Itself and what descends from it, as [`Daemon::surroundings`] has it.
    fn own(&self) -> Result<HashSet<String>> {
        let pid = self.process.id() as i32;
        let mut processes = host::descendants(pid)?;
        processes.insert(pid, Process::new(pid)?.stat()?.comm);
        Ok(processes.iter().map(shown).collect())
    }

    /// Everything around it that comes and goes with a pod: processes, mounts, network interfaces,
    /// control groups.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn surroundings(&self) -> Result<HashSet<String>> {
        let process = Process::new(self.process.id() as i32).with_context(|| {
            format!("{} has ended; its log ends with\n{}", self.name, self.log())
        })?;
        let mut found = host::surroundings(&process)?;
        found.extend(host::descendants(own_pid())?.iter().map(shown));
        // The top one stays for the next container. Below it, containers have theirs in every
        // hierarchy; once is enough to tell.
        let cgroups = self.folder.cgroups()?;
        let inner = cgroups.iter().filter(|path| !path.ends_with(&self.folder.cgroup[1..]));
        let names = inner.filter_map(|path| path.file_name());
        found.extend(names.map(|name| format!("control group {}", name.display())));
        Ok(found)
    }

    /// Stops it, after everything that it ran has been removed.
    ///
    /// # Errors
    ///
    /// When anything of it is left, before or after.
    pub async fn stop(mut self) -> Result<()> {
        let removed = nothing_but(&self.pristine, async || self.surroundings()).await;
        let ended = self.end();
        removed?;
        ended
    }

    /// Ends it and everything that descends from it, with force where it takes force.
    fn end(&mut self) -> Result<()> {
        self.namespaces = None;
        let folder = self.folder.folder.path();
        let mut left = BTreeSet::new();

        let start = Instant::now();
        if self.process.try_wait()?.is_none() {
            kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM)?;
            while self.process.try_wait()?.is_none() {
                if start.elapsed() > PATIENCE {
                    left.insert(format!("{} itself, deaf to SIGTERM", self.name));
                    self.process.kill()?;
                }
                sleep(Duration::from_millis(10));
            }
        }

        // What it left is ours now. Nothing else is: this runs one daemon at a time.
        loop {
            let orphans = host::descendants(own_pid())?;
            ensure!(start.elapsed() < 2 * PATIENCE, "SIGKILL does not end {orphans:?}");
            for orphan in &orphans {
                left.insert(shown(orphan));
                kill_if_there(*orphan.0)?;
            }
            let reaped = waitpid(None, Some(WaitPidFlag::WNOHANG));
            match reaped {
                Err(Errno::ECHILD) => break,
                Ok(WaitStatus::StillAlive) => sleep(Duration::from_millis(10)),
                _ => {}
            }
        }
        for path in self.folder.cgroups()? {
            fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        for mount in Process::myself()?.mountinfo()? {
            if mount.mount_point.starts_with(folder) {
                left.insert(format!("mount {}", mount.mount_point.display()));
            }
        }
        let list = left.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        ensure!(left.is_empty(), "{} left behind: {list}", self.name);
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot clean up: {error:#}");
        }
    }
}

/// Starts a daemon by a command that puts it where it belongs.
fn launch(mut command: Command, arguments: &[String], folder: &Folder) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folder.log())?;
    command.args(arguments).env("TMPDIR", folder.folder.path());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Ctrl-C is for us: we stop it, in an orderly way.
    command.process_group(0);
    command.spawn().with_context(|| format!("cannot run {command:?}"))
}

/// A process as it is listed.
fn shown((pid, name): (&i32, &String)) -> String {
    format!("process {pid} {name}")
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

/// Waits until nothing is there but what was `before`.
///
/// # Errors
///
/// When something else remains.
pub async fn nothing_but(
    before: &HashSet<String>,
    now: impl AsyncFn() -> Result<HashSet<String>>,
) -> Result<()> {
    let mut left = Vec::new();
    let gone = until("nothing is left", async || {
        left = now().await?.difference(before).cloned().collect();
        left.sort();
        Ok(left.is_empty().then_some(()))
    });
    gone.await.with_context(|| format!("left behind: {}", left.join(", ")))
}

fn kill_if_there(pid: i32) -> Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Collects `folder` and the folders below it, deepest first.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), found)?;
        }
    }
    found.push(folder.to_owned());
    Ok(())
}
