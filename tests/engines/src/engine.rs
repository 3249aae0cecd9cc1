//! What an engine does for a pod. The scenarios speak to every engine in these words.

use crate::kind::Engine as Name;
use crate::stage::Stage;
use anyhow::Result;
use harness::sandbox::USER;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use tokio::process::Command;

/// A pod: what holds it together is a container of the image that is tried.
pub struct Pod {
    /// The name that it was started with.
    pub name: String,
    /// What the engine calls it.
    pub id: String,
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
    /// A folder of the host, and where the container sees it.
    pub volume: Option<(&'a Path, &'a str)>,
    /// With as little as the engine can be told to allow: a read-only root, no capability, no new
    /// privileges, the default seccomp profile, and [`Engine::LEAST_MEMORY`].
    pub hardened: bool,
}

/// What a container wrote so far, as the engine's log has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The lines on stdout.
    pub stdout: Vec<String>,
    /// The lines on stderr.
    pub stderr: Vec<String>,
}

/// An engine that the image is tried on. Another one is another implementation of this, in a file
/// of its own, and a line in `main`.
///
/// What an engine has not by its nature is left to the default here, or answered with [`Lacks`]: the
/// scenarios that need it are then shown with that reason. What only this machine has not is a
/// [`Skip`].
pub trait Engine: Sized + 'static {
    /// Its name.
    const NAME: Name;

    /// The namespaces that the containers of a pod share, besides the PID namespace.
    const SHARED: &[&str] = &["net", "ipc", "uts"];

    /// Whether its own way to stop a pod is SIGTERM first. Otherwise it is SIGKILL at once, whatever
    /// the image.
    const ASKS_FIRST: bool = true;

    /// The least memory that a container can be given, in bytes. Docker accepts no less; where
    /// nobody minds, runc needs some of it to start the container.
    const LEAST_MEMORY: u64 = 6 << 20;

    /// Whether it can limit the memory of a container.
    const LIMITS_MEMORY: bool = true;

    /// The user that pause is in a pod: the image's.
    const USER: u32 = USER;

    /// Brings up an instance of its own, apart from every other one on this machine.
    ///
    /// # Errors
    ///
    /// [`Skip`] when the machine has no such engine or may not run it; anything else is a failure.
    async fn start(stage: &Stage) -> Result<Self>;

    /// The version, as a number.
    async fn version(&self) -> Result<String>;

    /// Removes everything that scenarios left, stops the instance and makes sure that nothing of it
    /// remains. Where this is not reached, dropping stops the instance all the same.
    ///
    /// # Errors
    ///
    /// When something remains, or the instance does not stop by itself.
    async fn teardown(self) -> Result<()>;

    /// Stops the daemon, not the pods, and starts it again.
    async fn restart_daemon(&mut self) -> Result<()> {
        Err(Lacks("it has no daemon").into())
    }

    /// Everything that comes and goes with a pod: what the engine lists, processes, mounts, network
    /// interfaces, control groups.
    async fn surroundings(&self) -> Result<HashSet<String>>;

    /// Loads an archive of an image.
    async fn load(&self, archive: &Path) -> Result<()>;

    /// The image that is tried, loaded, is told by the engine as it should be.
    async fn shows(&self, stage: &Stage) -> Result<()>;

    /// Builds the Dockerfile, in an image made from this machine, and returns `/pause` from it.
    async fn build(&self) -> Result<Vec<u8>> {
        Err(Lacks("it does not build images").into())
    }

    /// Starts a pod.
    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod>;

    /// Gets ready to start pods in user namespaces of their own, or to do so no more.
    async fn remap(&mut self, on: bool) -> Result<()> {
        let _ = on;
        Err(Lacks("it has no user namespaces for pods").into())
    }

    /// The process of the pod's pause, as the host numbers it.
    ///
    /// # Errors
    ///
    /// When it does not run.
    async fn pause(&self, pod: &Pod) -> Result<i32>;

    /// Whether the engine believes that the pod lives.
    async fn is_up(&self, pod: &Pod) -> Result<bool>;

    /// What pause wrote. None where the engine keeps no log of it.
    async fn pod_log(&self, pod: &Pod) -> Result<Option<Log>>;

    /// The pod's IP address.
    async fn address(&self, pod: &Pod) -> Result<String> {
        let _ = pod;
        Err(Lacks("it gives a pod no address").into())
    }

    /// A command that runs on the pods' host: there, their addresses can be reached.
    fn on_host(&self, program: &str) -> Result<Command> {
        let _ = program;
        Err(Lacks("its host cannot reach a pod").into())
    }

    /// Stops the pod as the engine itself does.
    async fn stop_pod(&self, pod: &Pod) -> Result<()>;

    /// Sends pause a signal, by the engine.
    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()>;

    /// Waits until pause has ended, and tells with what exit code. Works but once after each start.
    async fn pod_exit_code(&self, pod: &Pod) -> Result<i64>;

    /// Starts a pod again whose pause has ended.
    async fn restart_pod(&self, pod: Pod) -> Result<Pod>;

    /// Removes the pod and the containers in it, whether they run or not.
    async fn remove_pod(&self, pod: Pod) -> Result<()>;

    /// Starts a container in a pod.
    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container>;

    /// The process of a container, as the host numbers it.
    ///
    /// # Errors
    ///
    /// When it does not run.
    async fn pid(&self, container: &Container) -> Result<i32>;

    /// Runs a command in a container and returns what it prints, without the last line break.
    ///
    /// # Errors
    ///
    /// When it fails.
    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String>;

    /// What a container wrote.
    async fn log(&self, container: &Container) -> Result<Log>;

    /// Stops a container as the engine itself does: SIGTERM first.
    async fn stop(&self, container: &Container) -> Result<()>;

    /// Waits until a container has ended, and tells with what exit code.
    async fn exit_code(&self, container: &Container) -> Result<i64>;

    /// Removes a container, whether it runs or not.
    async fn remove(&self, container: Container) -> Result<()>;

    /// Starts a container again that has ended. By default another one takes its place, as kubelets
    /// do it.
    async fn restart(&self, pod: &Pod, container: Container, spec: Spec<'_>) -> Result<Container> {
        let name = container.name.clone();
        self.remove(container).await?;
        self.run(pod, &name, spec).await
    }
}

impl<'a> Spec<'a> {
    /// A container of `image` that shares the pod's PID namespace.
    pub fn new(image: &'a str, arguments: &'a [&'a str]) -> Self {
        Self { image, arguments, shares_pid: true, volume: None, hardened: false }
    }
}

impl Log {
    /// From what came on each stream.
    pub fn new(stdout: &[u8], stderr: &[u8]) -> Self {
        let lines =
            |text| String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>();
        Self { stdout: lines(stdout), stderr: lines(stderr) }
    }
}

/// The error that says that something cannot be tried here, and why: because of this machine.
#[derive(Debug)]
pub struct Skip(pub String);

impl Display for Skip {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Error for Skip {}

/// The error that says that an engine has no such thing on any machine.
#[derive(Debug)]
pub struct Lacks(pub &'static str);

impl Display for Lacks {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.0)
    }
}

impl Error for Lacks {}
