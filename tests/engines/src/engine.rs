//! The engines, and the interface between them and the scenarios.

use crate::images::Candidate;
use crate::scenario::{Scenario, ScenarioTest};
use crate::wait::success;
use anyhow::Result;
use clap::ValueEnum;
use harness::sandbox::USER;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::process::Command;

/// A container engine: a column of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Engine {
    /// Docker: its daemon, driven by its command line
    Docker,
    /// containerd's CRI plugin, driven over its socket as a kubelet does
    Containerd,
    /// Podman's pods, root's
    Podman,
    /// Podman's pods, an ordinary user's
    PodmanRootless,
    /// Kubernetes, driven by kubectl
    Kubernetes,
    /// A kubelet without a control plane, whose pods are the files of a folder
    Kubelet,
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// The version of Debian's package, as its authors number it.
pub fn version_of(package: &str) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    let version =
        success(query.args(["--show", "--showformat=${source:Upstream-Version}", package]))?;
    // Debian's suffix is no part of it.
    let number = version.split('+').next().and_then(|it| it.split("~ds").next());
    Ok(number.unwrap_or_default().to_owned())
}

/// A pod. A container of the candidate holds its namespaces.
pub struct Pod {
    /// The name that it was started with.
    pub name: String,
    /// The ID or name of the container of pause.
    pub pause: String,
}

/// The PID namespace of a pod. It has its own network and IPC namespaces in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    Own,
    Host,
}

/// A container to start.
#[derive(Clone, Copy)]
pub struct Spec<'a> {
    /// The image, by a name that an archive gave it.
    pub image: &'a str,
    /// The arguments of the image's entrypoint, or the command if it has none.
    pub arguments: &'a [&'a str],
    /// Whether it is in the pod's PID namespace, instead of one of its own.
    pub shares_pid: bool,
    /// The user, if it is not the image's.
    pub user: Option<u32>,
    /// Whether it has a read-only root, no capability and no new privileges.
    pub hardened: bool,
    /// Further options of Podman's command line.
    pub options: &'a [&'a str],
}

impl<'a> Spec<'a> {
    /// A container of `image` that shares the pod's PID namespace.
    pub const fn new(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { image, arguments, shares_pid: true, user: None, hardened: false, options: &[] }
    }

    /// A container of `image` in a PID namespace of its own.
    pub const fn alone(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { shares_pid: false, ..Self::new(image, arguments) }
    }
}

/// How an engine, or what runs engines by itself, is started, tested and ended.
pub trait Driver: Sized + 'static {
    /// Starts it.
    fn start(engine: Engine, candidate: &Candidate) -> Result<Self>;

    /// The version, for people.
    fn version(&self) -> Result<String>;

    /// What tests the engine for a scenario other than `start` and `end`, if that concerns it. The pods
    /// that are left are removed afterwards.
    fn test(engine: Engine, scenario: Scenario) -> Option<ScenarioTest<Self>>;

    /// The IDs of all pods, containers and volumes.
    fn list(&self) -> Result<HashSet<String>>;

    /// Removes all pods.
    fn remove_all(&self) -> Result<()>;

    /// Stops its daemons, if it has any.
    fn end(self) -> Result<()>;
}

/// The driver of an engine whose pods the scenarios start. Containers go by the engine's IDs or names. A
/// new engine needs an implementation of this in its own file, a name in [`Engine`], and a line in `main`.
pub trait PodDriver: Driver {
    /// Whether the engine's own way to stop a pod is SIGKILL at once, without a log of what pause wrote.
    /// Otherwise it is SIGTERM first.
    const KILLS_PAUSE: bool = false;

    /// The user that pause is in a pod.
    fn user(&self) -> u32 {
        USER
    }

    /// Restarts the daemon, and leaves the pods alone.
    fn restart_daemon(&mut self) -> Result<()>;

    /// Loads an archive of an image.
    fn load(&self, archive: &Path) -> Result<()>;

    /// Checks what the engine reports about the image of pause.
    fn check_image(&self, reference: &str) -> Result<()>;

    /// Starts a pod.
    fn start_pod(&self, name: &str, pid_namespace: PidNamespace) -> Result<Pod>;

    /// Stops the pod as the engine itself does.
    fn stop_pod(&self, pod: &Pod) -> Result<()>;

    /// Sends pause a signal, by the engine.
    fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()>;

    /// Starts a container in a pod, and returns its ID.
    fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String>;

    /// The process of a container, as the host numbers it; an error when it does not run.
    fn pid(&self, container: &str) -> Result<i32>;

    /// Runs a script in a container and returns what it prints, without the last line break.
    fn shell(&self, container: &str, script: &str) -> Result<String>;

    /// What a container wrote so far, on stdout and on stderr.
    fn log(&self, container: &str) -> Result<[String; 2]>;

    /// Stops a container as the engine itself does: SIGTERM first.
    fn stop(&self, container: &str) -> Result<()>;

    /// Waits until a container has ended, and returns its exit code. Works once after each start.
    fn exit_code(&self, container: &str) -> Result<i64>;
}

/// The error that says why something is not tested.
#[derive(Debug)]
pub enum Untested {
    /// This machine cannot do it.
    Skip(&'static str),
    /// This version of the engine does not have it.
    Lacks(&'static str),
}
pub use Untested::{Lacks, Skip};

impl Display for Untested {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Skip(reason) => write!(f, "skipped: {reason}"),
            Lacks(reason) => write!(f, "not applicable: {reason}"),
        }
    }
}

impl Error for Untested {}
