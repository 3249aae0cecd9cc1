//! What an engine does for a pod. The scenarios speak to every engine in these words.

use crate::images::Image;
use crate::scenario::{Context, Scenario};
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
    /// runc with bundles of our own
    Runc,
    /// crun with bundles of our own
    Crun,
    /// gVisor with bundles of our own
    Runsc,
    /// Kubernetes, driven by kubectl
    Kubernetes,
    /// Kubernetes on Docker, by the kubelet's dockershim
    Dockershim,
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// A pod: what holds it together is a container of the image that is tried.
pub struct Pod {
    /// The name that it was started with.
    pub name: String,
    /// What the engine calls it.
    pub id: String,
    /// The container that pause is.
    pub pause: Container,
}

/// A container in a pod.
pub struct Container {
    /// The name that it was started with.
    pub name: String,
    /// What the engine calls it.
    pub id: String,
}

/// How a pod is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// As a kubelet does it: network, IPC and PID namespace of its own.
    Usual,
    /// In the PID namespace of the host.
    HostPid,
    /// In a user namespace of its own: its users are not the host's.
    Remapped,
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
    /// privileges, the default seccomp profile, and [`Engine::LEAST_MEMORY`].
    pub hardened: bool,
}

impl<'a> Spec<'a> {
    /// A container of `image` that shares the pod's PID namespace.
    pub const fn new(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { image, arguments, shares_pid: true, user: None, volume: None, hardened: false }
    }
}

/// What a container wrote so far, as the engine's log has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The lines on stdout.
    pub stdout: Vec<String>,
    /// The lines on stderr.
    pub stderr: Vec<String>,
}

impl Log {
    /// From what came on each stream.
    pub fn new(stdout: &[u8], stderr: &[u8]) -> Self {
        let lines =
            |text| String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>();
        Self { stdout: lines(stdout), stderr: lines(stderr) }
    }
}

/// An engine that the image is tried on. Another one is another implementation of this, in a file
/// of its own, and a line in `main`.
///
/// What an engine does not have by its nature is left to the default here, or answered with
/// [`Lacks`]. What only this machine lacks is a [`Skip`].
pub trait Engine: Sized + 'static {
    /// Its name.
    const NAME: Name;

    /// The namespaces that the containers of a pod share, besides the PID namespace.
    const SHARED: &[&str] = &["net", "ipc", "uts"];

    /// Whether its own way to stop a pod is SIGTERM first. Otherwise it is SIGKILL at once.
    const STOPS_BY_SIGTERM: bool = true;

    /// The memory limit of a hardened container, in bytes. It is the runtime's need: runc and what is
    /// in Go have to fit in before pause takes their place, with all that control groups of version 2
    /// count.
    const LEAST_MEMORY: u64 = 16 << 20;

    /// What keeps it from limiting the memory of a container.
    const NO_MEMORY_LIMIT: Option<&str> = None;

    /// Whether a pod has a kernel of its own, so that its processes are not the host's.
    const OWN_KERNEL: bool = false;

    /// The program whose processes it may leave behind.
    const MAY_FORGET: Option<&str> = None;

    /// The user that pause is in a pod: the image's.
    const USER: u32 = USER;

    /// Starts it.
    async fn start(image: &Image) -> Result<Self>;

    /// The version, as a number.
    async fn version(&self) -> Result<String>;

    /// Why a scenario cannot pass with this release's package of it, whatever the image.
    fn defect(&self, scenario: Scenario) -> Option<&'static str> {
        let _ = scenario;
        None
    }

    /// Removes all pods.
    async fn remove_all(&self) -> Result<()>;

    /// Stops its daemon, if it has one.
    async fn end(self) -> Result<()> {
        Ok(())
    }

    /// Stops the daemon, not the pods, and starts it again.
    async fn restart_daemon(&mut self) -> Result<()> {
        Err(Lacks("it has no daemon").into())
    }

    /// The containers and volumes that it lists.
    async fn list(&self) -> Result<HashSet<String>>;

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
    async fn remap(&mut self, on: bool) -> Result<()> {
        let _ = on;
        Err(Lacks("it has no user namespaces for pods").into())
    }

    /// Whether the engine believes that the pod lives.
    async fn is_up(&self, pod: &Pod) -> Result<bool>;

    /// The pod's IP address. None where it has none.
    async fn address(&self, pod: &Pod) -> Result<Option<String>>;

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

    /// Starts a container in a pod.
    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container>;

    /// The process of a container, as the host numbers it; an error when it does not run.
    async fn pid(&self, container: &Container) -> Result<i32>;

    /// Runs a command in a container and returns what it prints, without the last line break.
    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String>;

    /// What a container wrote. None where the engine keeps no log of it.
    async fn log(&self, container: &Container) -> Result<Option<Log>>;

    /// Stops a container as the engine itself does: SIGTERM first.
    async fn stop(&self, container: &Container) -> Result<()>;

    /// Waits until a container has ended, and returns its exit code. Works once after each start.
    async fn exit_code(&self, container: &Container) -> Result<i64>;

    /// Removes a container, whether it runs or not.
    async fn remove(&self, container: Container) -> Result<()>;

    /// Starts a container again that has ended. By default another one takes its place, as a
    /// kubelet does it.
    async fn restart(&self, pod: &Pod, container: Container, spec: Spec<'_>) -> Result<Container> {
        let name = container.name.clone();
        self.remove(container).await?;
        self.run(pod, &name, spec).await
    }
}

/// A column of the matrix: an engine, or what runs engines by itself.
pub trait Column: Sized {
    /// Its name.
    const NAME: Name;

    /// [`Engine::MAY_FORGET`]
    const MAY_FORGET: Option<&str> = None;

    /// Starts it.
    async fn start(image: &Image) -> Result<Self>;

    /// The version, as a number.
    async fn version(&self) -> Result<String>;

    /// Tries it for a scenario.
    async fn run(&mut self, scenario: Scenario, context: &Context) -> Result<()>;

    /// What it lists of pods.
    async fn list(&self) -> Result<HashSet<String>>;

    /// Removes all pods.
    async fn remove_all(&self) -> Result<()>;

    /// Stops its daemons, if it has any.
    async fn end(self) -> Result<()>;
}

impl<E: Engine> Column for E {
    const NAME: Name = <E as Engine>::NAME;

    const MAY_FORGET: Option<&str> = <E as Engine>::MAY_FORGET;

    async fn start(image: &Image) -> Result<Self> {
        <E as Engine>::start(image).await
    }

    async fn version(&self) -> Result<String> {
        Engine::version(self).await
    }

    async fn run(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        match self.defect(scenario) {
            Some(reason) => Err(Lacks(reason).into()),
            None => scenario.run(self, context).await,
        }
    }

    async fn list(&self) -> Result<HashSet<String>> {
        Engine::list(self).await
    }

    async fn remove_all(&self) -> Result<()> {
        Engine::remove_all(self).await
    }

    async fn end(self) -> Result<()> {
        Engine::end(self).await
    }
}

/// The error that says that something cannot be tried on this machine, and why.
#[derive(Debug)]
pub struct Skip(pub String);

/// The error that says that an engine does not have something on any machine.
#[derive(Debug)]
pub struct Lacks(pub &'static str);

impl Display for Skip {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Display for Lacks {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.0)
    }
}

impl Error for Skip {}

impl Error for Lacks {}
