//! Debian systems that are thrown away. What must not be installed on the host is in a root folder
//! under `target/debian`, and runs there in namespaces of its own, which the kernel ends as soon as
//! this program ends, however that happens.

mod host;
mod vm;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use harness::build::{self, project};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Release {
    /// Debian 12
    Bookworm,
    /// Debian 13
    Trixie,
    /// Debian 14 (testing)
    Forky,
}

impl Release {
    /// Its name, as on the mirrors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// A Debian system, which this process alone uses as long as it has this value.
pub struct Debian {
    /// Has `root`, the system itself, and `run`, what the current run changes or adds.
    pub folder: PathBuf,
    /// Folders of the host that are to be seen in the system, read-only.
    pub show: Vec<(PathBuf, &'static str)>,
    _lock: File,
}

impl Debian {
    /// Makes `target/debian/NAME`, unless it is there already with just these packages.
    pub fn make(name: &str, release: Release, packages: &[&str]) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "this command needs root: it creates and enters a Debian root directory"
        );
        let folder = project().join("target/debian").join(name);
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                eprintln!("Waiting for the other run in {}", folder.display());
                lock.lock()?;
            }
            result => result?,
        }
        let debian = Self { folder, show: Vec::new(), _lock: lock };
        debian.wipe()?;

        let (root, list) = (debian.folder.join("root"), packages.join("\n"));
        if fs::read_to_string(root.join("packages")).ok().as_ref() != Some(&list) {
            eprintln!("Making {} (about 2 minutes)", root.display());
            let new = debian.folder.join("root.new");
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

    /// Adds the copy of a file of the host to the system, for this run.
    pub fn add(&self, source: &Path, path: &str) -> Result<()> {
        let place = self.changed(path);
        fs::create_dir_all(place.parent().context("it is in a folder")?)?;
        fs::copy(source, place).with_context(|| format!("cannot copy {}", source.display()))?;
        Ok(())
    }

    /// Shows this machine's Rust in /rust, and cargo's registry in /registry.
    pub fn show_rust(&mut self) -> Result<()> {
        let default = || env::home_dir().unwrap_or_default().join(".cargo");
        let cargo = env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from);
        self.show.push((build::sysroot()?, "/rust"));
        self.show.push((cargo.join("registry"), "/registry"));
        Ok(())
    }

    /// What is shown, as the scripts take it: SOURCE:PLACE,...
    fn shown(&self) -> String {
        let shown = self.show.iter().map(|(source, place)| format!("{}:{place}", source.display()));
        shown.collect::<Vec<_>>().join(",")
    }

    /// Runs a command in the system, and checks that the host is afterwards as it was before.
    pub fn run(&self, command: &[impl AsRef<OsStr>]) -> Result<ExitStatus> {
        let script = self.folder.join("enter.sh");
        fs::write(&script, include_str!("enter.sh"))?;
        fs::create_dir_all(self.folder.join("run"))?;
        let mut enter = isolated();
        enter.args(["--net", "--ipc", "--uts", "--", "sh"]).arg(script).arg(&self.folder);
        enter.arg(host::own_cgroup()).arg(self.shown()).args(command);
        enter
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        enter.envs([("HOME", "/root"), ("LANG", "C.UTF-8")]);

        host::remove_cgroups()?;
        let before = host::State::read()?;
        let status = end(&mut enter);
        before.wait()?;
        status
    }

    /// Removes what a run has changed.
    pub fn wipe(&self) -> Result<()> {
        remove(&self.folder.join("run"))
    }
}

/// The mirror of Debian that this machine uses, whichever it is.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)"]);
    let filter = ["Created-By: Packages", "Origin: Debian", "Label: Debian"];
    let mirrors =
        targets.args(filter).output().context("cannot run apt-get, which knows mirrors")?;
    let mirrors = String::from_utf8(mirrors.stdout)?;
    let mirror = mirrors.lines().next().context("apt knows no mirror: run apt-get update")?;
    Ok(mirror.to_owned())
}

/// Has mmdebstrap make a root folder.
fn debootstrap(release: Release, packages: &[&str], folder: &Path) -> Result<()> {
    let mirror = mirror()?;
    let mut make = isolated();
    make.args(["--mount-proc", "--", "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"]);
    // The lists of a release in the making may be weeks old on a mirror.
    make.arg("--aptopt=Acquire::Check-Valid-Until false");
    make.arg(format!("--include={}", packages.join(" "))).arg(release.name()).arg(folder);
    make.arg(format!("deb {mirror} {} main", release.name()));
    let found = which::which("mmdebstrap").is_ok();
    ensure!(found, "mmdebstrap is needed: apt-get install mmdebstrap");
    let status = end(&mut make)?;
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
    let signals: SigSet = signals.into_iter().collect();
    signals.thread_block()?;
    let mut interrupted = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if signals.wait()? != Signal::SIGCHLD {
            interrupted = true;
            child.kill()?;
        }
    };
    signals.thread_unblock()?;
    ensure!(
        !interrupted && status.signal().is_none(),
        "interrupted: nothing of the run is left but files under target/debian"
    );
    Ok(status)
}

/// Removes a folder, if it is there.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if folder.exists() => Err(error).with_context(|| folder.display().to_string()),
        _ => Ok(()),
    }
}
