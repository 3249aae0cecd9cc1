//! A daemon of our own: apart from every other one on the machine, and gone without a trace when it
//! is no longer needed.

use crate::host;
use crate::scenario::Skip;
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
    process: Child,
    /// What there was around it when it had come up.
    pristine: Surroundings,
    // Removed when the rest is gone.
    folder: Folder,
}

/// The folder that a daemon keeps everything in, and the name of its control groups.
pub struct Folder {
    folder: TempDir,
    /// The control group below which it puts its containers: a name at the top of the hierarchies.
    pub cgroup: String,
}

/// Everything around a daemon that goes with a container: processes, mounts, network interfaces,
/// control groups.
#[derive(Default)]
pub struct Surroundings(HashSet<String>);

/// Makes sure that this machine can run `programs` the way they have to be run.
///
/// # Errors
///
/// [`Skip`] with what is missing.
pub fn require(programs: &[&str]) -> Result<()> {
    ensure!(geteuid().is_root(), Skip("only root can start it".to_owned()));
    let all = ["unshare", "mount", "ip"].iter().chain(programs);
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
    /// Starts `program` and waits until `ready` finds it so.
    ///
    /// # Errors
    ///
    /// When it cannot be started, ends, or does not become ready: with the end of its log.
    pub async fn start(
        name: &'static str,
        folder: Folder,
        arguments: &[&str],
        mut ready: impl AsyncFnMut(&Folder) -> bool,
    ) -> Result<Self> {
        let log = File::create(folder.log())?;
        let process = Command::new("unshare")
            .args(["--mount", "--net", "--", "sh", "-c", SECLUDED, name])
            .args(arguments)
            .env("TMPDIR", folder.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us: we stop it, in an orderly way.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut daemon = Self { name, process, pristine: Surroundings::default(), folder };
        let state = format!("{name} answers");
        let up = until(&state, async || {
            if let Some(status) = daemon.process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(ready(&daemon.folder).await.then_some(()))
        });
        up.await.with_context(|| format!("the log of {name} ends with\n{}", daemon.log()))?;
        daemon.pristine = daemon.surroundings()?;
        Ok(daemon)
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

    /// What there is around it.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn surroundings(&self) -> Result<Surroundings> {
        let process = Process::new(self.process.id() as i32).with_context(|| {
            format!("{} has ended; its log ends with\n{}", self.name, self.log())
        })?;
        let mut found = host::surroundings(&process)?;
        found
            .extend(host::descendants()?.iter().map(|(pid, name)| format!("process {pid} {name}")));
        // The top one stays for the next container. Below it, containers have theirs in every
        // hierarchy; once is enough to tell.
        let cgroups = self.folder.cgroups()?;
        let inner = cgroups.iter().filter(|path| !path.ends_with(&self.folder.cgroup[1..]));
        let names = inner.filter_map(|path| path.file_name());
        found.extend(names.map(|name| format!("control group {}", name.display())));
        Ok(Surroundings(found))
    }

    /// Waits until nothing is around it but what was `before`.
    ///
    /// # Errors
    ///
    /// When something else remains.
    pub async fn nothing_but(&self, before: &Surroundings) -> Result<()> {
        let mut left = Vec::new();
        let gone = until("nothing is left", async || {
            left = self.surroundings()?.0.difference(&before.0).cloned().collect();
            left.sort();
            Ok(left.is_empty().then_some(()))
        });
        gone.await.with_context(|| format!("left behind: {}", left.join(", ")))
    }

    /// Stops it, after everything that it ran has been removed.
    ///
    /// # Errors
    ///
    /// When anything of it is left, before or after.
    pub async fn stop(mut self) -> Result<()> {
        let removed = self.nothing_but(&self.pristine).await;
        let ended = self.end();
        removed?;
        ended
    }

    /// Ends it and everything that descends from it, with force where it takes force.
    fn end(&mut self) -> Result<()> {
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
            let orphans = host::descendants()?;
            ensure!(start.elapsed() < 2 * PATIENCE, "SIGKILL does not end {orphans:?}");
            for (pid, name) in &orphans {
                left.insert(format!("process {pid} {name}"));
                kill_if_there(*pid)?;
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
