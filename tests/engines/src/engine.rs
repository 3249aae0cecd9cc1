//! What an engine does for a pod. The scenarios speak to every engine in these words.

use crate::images::Image;
use crate::scenario::{Context, Scenario};
use crate::wait::success;
use anyhow::Result;
use clap::ValueEnum;
use harness::sandbox::USER;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use tokio::process::Command;

/// A container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
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
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// What sets an engine apart, besides how it is driven.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Debian's package of it.
    pub package: &'static str,
    /// The namespaces that the containers of a pod share.
    pub shared: &'static [&'static str],
    /// Whether its own way to stop a pod is SIGTERM first. Otherwise it is SIGKILL at once.
    pub stops_by_sigterm: bool,
    /// Whether it keeps what pause writes.
    pub logs_pause: bool,
    /// The memory limit of a hardened container, in bytes, or what keeps it from setting one. It is
    /// the runtime's need: runc and what is in Go have to fit in before pause takes their place, with
    /// all that control groups of version 2 count.
    pub least_memory: Result<u64, &'static str>,
    /// The program whose processes it may leave behind.
    pub may_forget: Option<&'static str>,
    /// The user that pause is in a pod.
    pub user: u32,
}

impl Name {
    /// The table of what sets engines apart.
    pub fn facts(self) -> Facts {
        let usual = Facts {
            package: "",
            shared: &["pid", "net", "ipc", "uts"],
            stops_by_sigterm: true,
            logs_pause: true,
            least_memory: Ok(16 << 20),
            may_forget: None,
            user: USER,
        };
        // Podman passes the image's user over, and makes it the pod's root.
        let podman = Facts { package: "podman", user: 0, ..usual };
        let delegated = "it takes control groups of version 2 that systemd delegates to the user";
        match self {
            // A container has its own UTS namespace, with the same name in it.
            Self::Docker => Facts { package: "docker.io", shared: &["pid", "net", "ipc"], ..usual },
            Self::Containerd => Facts {
                package: "containerd",
                stops_by_sigterm: false,
                logs_pause: false,
                // Version 2.1 does, now and then.
                may_forget: Some("containerd-shim-runc-v2"),
                ..usual
            },
            Self::Podman => podman,
            Self::PodmanRootless => Facts { least_memory: Err(delegated), ..podman },
            Self::Kubernetes => usual,
        }
    }

    /// The version of Debian's package, as its authors number it.
    pub async fn version(self) -> Result<String> {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${source:Upstream-Version}", self.facts().package]);
        let version = success(&mut query).await?;
        // After these, Debian says what it left out.
        let number = version.split('+').next().and_then(|it| it.split("~ds").next());
        Ok(number.unwrap_or_default().to_owned())
    }
}

/// A pod: what holds it together is a container of the image that is tried.
pub struct Pod {
    /// The name that it was started with.
    pub name: String,
    /// What the engine calls the container that pause is.
    pub pause: String,
}

/// How a pod is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// As a kubelet does it: network, IPC and PID namespace of its own.
    Usual,
    /// In the PID namespace of the host.
    HostPid,
}

/// What runs in a container.
#[derive(Clone, Copy)]
pub struct Spec<'a> {
    /// The image, by a name that an archive gave it.
    pub image: &'a str,
    /// What comes after the image's entrypoint; all of the command where it has none.
    pub arguments: &'a [&'a str],
    /// Whether it lives in the pod's PID namespace, instead of one of its own.
    pub shares_pid: bool,
    /// The user, if it is not the image's.
    pub user: Option<u32>,
    /// A folder of the host, and where the container sees it.
    pub volume: Option<(&'a Path, &'a str)>,
    /// With as little as the engine can be told to allow: a read-only root, no capability, no new
    /// privileges, the default seccomp profile, and [`Facts::least_memory`].
    pub hardened: bool,
}

impl<'a> Spec<'a> {
    /// A container of `image` that shares the pod's PID namespace.
    pub const fn new(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { image, arguments, shares_pid: true, user: None, volume: None, hardened: false }
    }

    /// A container of `image` in a PID namespace of its own.
    pub const fn alone(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { shares_pid: false, ..Self::new(image, arguments) }
    }
}

/// A column of the matrix: an engine, or what runs engines by itself.
pub trait Column: Sized {
    /// Starts it.
    async fn start(name: Name, image: &Image) -> Result<Self>;

    /// The version, as a number.
    async fn version(&self, name: Name) -> Result<String> {
        name.version().await
    }

    /// Tests it for a scenario.
    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()>;

    /// What it lists of pods: the containers and volumes.
    async fn list(&self) -> Result<HashSet<String>>;

    /// Removes all pods.
    async fn remove_all(&self) -> Result<()>;

    /// Stops its daemons, if it has any.
    async fn end(self) -> Result<()> {
        Ok(())
    }
}

/// An engine that the image is tried on, with containers by what it calls them. Another one is
/// another implementation of this, in a file of its own, a row in [`Name::facts`], and a line in
/// `main`.
///
/// What an engine does not have by its nature is left to the default here, or answered with
/// [`Lacks`]. What only this machine lacks is a [`Skip`].
pub trait Engine: Column {
    /// Stops the daemon, not the pods, and starts it again.
    async fn restart_daemon(&mut self) -> Result<()> {
        Err(Lacks("it has no daemon").into())
    }

    /// Loads an archive of an image.
    async fn load(&self, archive: &Path) -> Result<()>;

    /// Checks what the engine tells about the image that is tried.
    async fn shows(&self, image: &Image) -> Result<()>;

    /// Builds the Dockerfile in each way that it has, in an image made from this machine, and
    /// returns the ways, with `/pause` from the image.
    async fn build(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        Err(Lacks("it does not build images").into())
    }

    /// Starts a pod.
    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod>;

    /// Gets ready to start pods in user namespaces of their own, or to do so no more.
    async fn remap(&mut self, on: bool) -> Result<()>;

    /// Whether the engine believes that the pod lives.
    async fn is_up(&self, pod: &Pod) -> Result<bool>;

    /// A command that runs where the addresses of pods can be reached.
    fn on_host(&self, program: &str) -> Command {
        Command::new(program)
    }

    /// Stops the pod as the engine itself does.
    async fn stop_pod(&self, pod: &Pod) -> Result<()>;

    /// Sends pause a signal, by the engine.
    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()>;

    /// A command of the shell that runs a container of the image on a terminal, until it ends.
    async fn on_terminal(&self) -> Result<String>;

    /// Starts a pod again whose pause has ended.
    async fn restart_pod(&self, pod: Pod) -> Result<Pod>;

    /// Removes the pod and the containers in it, whether they run or not.
    async fn remove_pod(&self, pod: Pod) -> Result<()>;

    /// Starts a container in a pod, and returns what the engine calls it.
    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String>;

    /// The process of a container, as the host numbers it; an error when it does not run.
    async fn pid(&self, container: &str) -> Result<i32>;

    /// Runs a command in a container and returns what it prints, without the last line break.
    async fn exec(&self, container: &str, command: &[&str]) -> Result<String>;

    /// What a container wrote so far, on stdout and on stderr.
    async fn log(&self, container: &str) -> Result<[String; 2]>;

    /// Stops a container as the engine itself does: SIGTERM first.
    async fn stop(&self, container: &str) -> Result<()>;

    /// Waits until a container has ended, and returns its exit code. Works once after each start.
    async fn exit_code(&self, container: &str) -> Result<i64>;

    /// Starts a container again that has ended. By default another one takes its place, as a
    /// kubelet does it.
    async fn restart(&self, pod: &Pod, _container: &str, spec: Spec<'_>) -> Result<String> {
        self.run(pod, "another", spec).await
    }
}

/// The error that says why something is not tried.
#[derive(Debug)]
pub enum Untried {
    /// This machine cannot do it.
    Skip(&'static str),
    /// The engine does not have it on any machine.
    Lacks(&'static str),
}
pub use Untried::{Lacks, Skip};

impl Display for Untried {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let (Skip(reason) | Lacks(reason)) = self;
        f.pad(reason)
    }
}

impl Error for Untried {}
