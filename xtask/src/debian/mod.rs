//! Debian systems that are thrown away. What must not be installed on the host is in a root folder
//! under `target/debian`, and runs there in namespaces of its own, which the kernel ends as soon as
//! this program ends, however that happens.

mod host;
mod vm;

use anyhow::{Context, Result, ensure};
use harness::build::{self, project};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use std::fs::{self, File, TryLockError};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus};

/// A Debian system, which this process alone uses as long as it has this value.
pub struct Debian {
    /// Has `root`, the system itself, and `run`, what the current run changes or adds.
    pub folder: PathBuf,
    /// Folders of the host that are to be seen in the system, read-only: each as SOURCE:PLACE.
    shown: Vec<String>,
    _lock: File,
}

impl Debian {
    /// Makes the system of a release in `target/debian/RELEASE`, unless it is there already with just these
    /// packages.
    pub fn make(release: &str, packages: &[&str]) -> Result<Self> {
        ensure!(geteuid().is_root(), "root is needed, to make and enter a Debian system");
        let folder = project().join("target/debian").join(release);
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                eprintln!("Waiting for the other run in {}", folder.display());
                lock.lock()?;
            }
            result => result?,
        }
        let debian = Self { folder, shown: Vec::new(), _lock: lock };
        debian.wipe()?;

        let [root, new] = ["root", "root.new"].map(|name| debian.folder.join(name));
        let list = packages.join("\n");
        if fs::read_to_string(root.join("packages")).ok().as_ref() != Some(&list) {
            eprintln!("Making {} (about 2 minutes)", root.display());
            remove(&new)?;
            debootstrap(release, packages, &new)?;
            fs::write(new.join("packages"), list)?;
            remove(&root)?;
            fs::rename(new, root)?;
        }
        Ok(debian)
    }

    /// The path of a file or folder of the system that the current run has changed or added.
    pub fn changed(&self, path: &str) -> PathBuf {
        self.folder.join("run/upper").join(path.trim_start_matches('/'))
    }

    /// Shows a folder of the host in the system, read-only.
    pub fn show(&mut self, source: &Path, place: &str) {
        self.shown.push(format!("{}:{place}", source.display()));
    }

    /// Runs a command in the system, and checks that the host is afterwards as it was before. Returns
    /// whether the command succeeded.
    pub fn run(&self, command: &[String]) -> Result<bool> {
        let mut enter = isolated();
        enter.args(["--net", "--ipc", "--uts", "--"]);
        enter.arg(project().join("xtask/src/debian/enter.sh")).arg(&self.folder);
        enter.args([process::id().to_string(), self.shown.join(",")]).args(command);
        enter.env_clear().envs([
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ]);
        let before = host::state()?;
        let status = end(&mut enter);
        host::wait(&before)?;
        Ok(status?.success())
    }

    /// Removes what a run has changed.
    pub fn wipe(&self) -> Result<()> {
        remove(&self.folder.join("run"))
    }
}

/// Has mmdebstrap make a root folder, from the mirror that this machine uses.
fn debootstrap(release: &str, packages: &[&str], folder: &Path) -> Result<()> {
    let found = which::which("mmdebstrap").ok();
    found.context("mmdebstrap is needed: apt-get install mmdebstrap")?;
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI)"]);
    apt.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
    let mirrors = build::stdout_of(&mut apt)?;
    let mirror = mirrors.lines().next();
    let mirror = mirror.context("apt knows no mirror of Debian: run apt-get update")?;
    let mut make = isolated();
    make.args(["--mount-proc", "--", "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"]);
    // The lists of a release in the making may be weeks old on a mirror.
    make.arg("--aptopt=Acquire::Check-Valid-Until false");
    make.arg(format!("--include={}", packages.join(" "))).arg(release).arg(folder);
    let status = end(make.arg(format!("deb {mirror} {release} main")))?;
    ensure!(
        status.success(),
        "mmdebstrap cannot make {} ({status}): it needs the mirror of this machine's apt, and 4 GB \
         of disk there",
        folder.display()
    );
    Ok(())
}

/// A command in PID and mount namespaces of its own, which end when this program ends.
fn isolated() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount"]);
    command
}

/// Waits until a command ends; a signal to this program ends it.
fn end(command: &mut Command) -> Result<ExitStatus> {
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    // Blocked, they wait; only from now on, for a child inherits the mask.
    let signals = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals = SigSet::from_iter(signals);
    signals.thread_block()?;
    let mut is_interrupted = false;
    while child.try_wait()?.is_none() {
        if signals.wait()? != Signal::SIGCHLD {
            is_interrupted = true;
            child.kill()?;
        }
    }
    signals.thread_unblock()?;
    let status = child.wait()?;
    ensure!(
        !is_interrupted && status.signal().is_none(),
        "interrupted: nothing of the run is left but files under target/debian"
    );
    Ok(status)
}

/// Removes a folder, if it is there, but nothing that is mounted in it.
fn remove(folder: &Path) -> Result<()> {
    let mut rm = Command::new("rm");
    build::stdout_of(rm.args(["-rf", "--one-file-system"]).arg(folder)).map(drop)
}
