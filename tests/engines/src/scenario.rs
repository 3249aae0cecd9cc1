//! What an engine is tried for: the rows of the matrix, and what is done for each.

use crate::engine::{Column, Engine, Facts, Lacks, Name, Pod, Sandbox, Spec, Untried};
use crate::host::{self, same};
use crate::images::{self, BUSYBOX, Image, NGINX};
use crate::wait::{becomes, limit, success, until};
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use harness::proc::activity;
use harness::sandbox::{IGNORED, STOPPED, USER, WARNING};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// What an engine is tried for: a row of the matrix, which takes name and text from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The engine starts.
    Start,
    /// It loads the archive, and shows the image as it should be.
    Load,
    /// The engine's own stop ends a pod with exit code 0; removed, it leaves nothing.
    Stop,
    /// SIGTERM and SIGINT end a pod, from the engine, from the host, and by Ctrl-C on a terminal.
    Outside,
    /// SIGTERM and SIGINT from a container in the pod do nothing, be it root's or the same user's.
    Inside,
    /// Arguments are answered, and unknown ones ignored.
    Arguments,
    /// In the host's PID namespace it warns, does no harm and stops as ever.
    HostPid,
    /// PID 1 of the pod's containers is `/pause`, and 2,000 orphans leave no zombie.
    Pod,
    /// The pod of Kubernetes' tutorial: nginx serves what another container writes.
    Tutorial,
    /// The containers of a pod have network, host name and System V IPC in common.
    Shared,
    /// A container dies, comes back, is replaced: the pod is still the same.
    Replace,
    /// The engine's daemon stops and starts again, and finds the pod as it was.
    Restart,
    /// Somebody kills pause: the engine takes note, and starts the pod again.
    Killed,
    /// Read-only root, no capabilities, no new privileges, seccomp, least memory.
    Hardened,
    /// In a user namespace of its own.
    Remapped,
    /// The image for another architecture is refused, with the reason.
    Foreign,
    /// From the image for all platforms the engine picks its own.
    Platforms,
    /// Another user, limits and a restart policy, as the pod sets them.
    Settings,
    /// In gVisor, by a RuntimeClass: PID 1 is `/pause`, which reaps, and SIGTERM and SIGINT from inside do nothing.
    Gvisor,
    /// The kubelet removes unused images, and keeps the one of its sandboxes.
    Garbage,
    /// As an ordinary container, it keeps room on a node free, and gives way at once.
    Placeholder,
    /// As an ordinary container, it is the last one in a DaemonSet that pulls images.
    PrePull,
    /// The configuration in `deploy/` keeps the rest of the engine's, where it says so.
    Configuration,
    /// critest, Kubernetes' test of container runtimes, gives the same results as with upstream's image.
    Conformance,
    /// From a registry to a node, to another version and back, as an operator does it.
    Registry,
    /// Many pods at once, 100 if the machine is no emulation, and none is lost.
    Many,
    /// The Dockerfile makes the same program as cargo.
    Build,
    /// All pods are removed, the daemon stops by itself, and nothing of them is left.
    End,
}

impl Display for Scenario {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// What a scenario works with, and what it could not look at.
pub struct Context {
    /// The image that is tried.
    pub image: Image,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
    /// How many pods are many.
    pub pods: u64,
    /// What the current scenario did not look at, and why.
    pub left_out: RefCell<BTreeSet<String>>,
}

impl Context {
    /// Notes what the current scenario does not look at, and why.
    pub fn leaves_out(&self, what: &str) {
        self.left_out.borrow_mut().insert(what.to_owned());
    }
}

impl Scenario {
    /// The sentence about it.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// Tests an engine for it, and removes the pods that are left. The first and the last are the
    /// report's to do.
    ///
    /// The error is an [`Untried`] when it cannot be tried.
    pub async fn test<E: Engine>(self, name: Name, engine: &mut E, on: &Context) -> Result<()> {
        let mut trial = Trial { facts: name.facts(), engine, context: on };
        let result = match self {
            Self::Start | Self::End => Ok(()),
            Self::Load => trial.load().await,
            Self::Stop => trial.stop().await,
            Self::Outside => trial.outside().await,
            Self::Inside => trial.inside().await,
            Self::Arguments => trial.arguments().await,
            Self::HostPid => trial.host_pid().await,
            Self::Pod => trial.pod().await,
            Self::Tutorial => trial.tutorial().await,
            Self::Shared => trial.shared().await,
            Self::Replace => trial.replace().await,
            Self::Restart => trial.restart().await,
            Self::Killed => trial.killed().await,
            Self::Hardened => trial.hardened().await,
            Self::Remapped => trial.remapped().await,
            Self::Foreign => trial.foreign().await,
            Self::Platforms => trial.platforms().await,
            Self::Settings | Self::Gvisor | Self::Garbage | Self::Placeholder | Self::PrePull => {
                Err(Lacks("only Kubernetes has it").into())
            }
            Self::Configuration => Err(Lacks("its files do not depend on each other").into()),
            Self::Conformance | Self::Registry => {
                Err(Lacks("it is tried with today's containerd, in the column kubernetes").into())
            }
            Self::Many => trial.many().await,
            Self::Build => trial.build().await,
        };
        let removed = engine.remove_all().await;
        result.and(removed)
    }
}

/// What the pod of the tutorial serves.
pub const HELLO: &str = "Hello from the debian container";

/// Number of pods that are started, looked at or stopped at the same time.
const CLIENTS: usize = 16;

/// Number of orphans for PID 1 to reap.
const ORPHANS: usize = 2_000;

/// A container of busybox that is there so that others have something to look at.
const IDLE: Spec = Spec::new(BUSYBOX, &["sleep", "infinity"]);

/// An engine that is tested for a scenario.
struct Trial<'a, E> {
    facts: Facts,
    engine: &'a mut E,
    context: &'a Context,
}

impl<E: Engine> Trial<'_, E> {
    async fn load(&self) -> Result<()> {
        let image = &self.context.image;
        self.engine.load(&image.archive).await?;
        self.engine.shows(image).await?;
        for archive in images::helpers().await? {
            self.engine.load(archive).await?;
        }
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        let before = surroundings(self.engine).await?;
        let (pod, _) = self.start("stopped", Sandbox::Usual).await?;
        self.engine.stop_pod(&pod).await?;
        if self.facts.stops_by_sigterm {
            self.has_ended(&pod, 0, STOPPED).await?;
        } else {
            let unseen = "the exit code and the last words: the engine's stop is SIGKILL";
            self.context.leaves_out(unseen);
            self.has_ended(&pod, 137, "").await?;
        }
        self.engine.remove_pod(pod).await?;
        is_as_before(&before, async || surroundings(self.engine).await).await
    }

    async fn outside(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            for from_host in [false, true] {
                let (pod, pause) = self.start("signalled", Sandbox::Usual).await?;
                match from_host {
                    false => self.engine.signal_pod(&pod, signal).await?,
                    true => kill(Pid::from_raw(pause.pid), signal)?,
                }
                self.has_ended(&pod, 0, &format!("pause: {signal}\n")).await?;
                self.engine.remove_pod(pod).await?;
            }
        }
        let command = self.engine.on_terminal().await?;
        let before = pauses()?;
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        terminal.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut terminal = terminal.spawn()?;
        let new = until("pause runs on the terminal", async || {
            ensure!(terminal.try_wait()?.is_none(), "{command} has ended");
            Ok(pauses()?.difference(&before).next().copied())
        });
        host::asleep(new.await?, &self.context.binary, USER).await?;
        let mut stdin = terminal.stdin.take().context("stdin is a pipe")?;
        stdin.write_all(b"\x03").await?;
        let output = timeout(limit(60), terminal.wait_with_output());
        let output = output.await.context("Ctrl-C does not end it")??;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.contains("pause: SIGINT"), "{output:?}");
        Ok(())
    }

    async fn inside(&self) -> Result<()> {
        let (pod, pause) = self.start("inside", Sandbox::Usual).await?;
        // AppArmor's profile for containers may keep them from signaling pause, which is in no profile.
        let is_confined = Path::new("/sys/kernel/security/apparmor/profiles").exists();
        let attempt = Spec::new(BUSYBOX, &["sh", "-c", "kill -TERM 1 && kill -INT 1"]);
        for (sender, user) in [("root", 0), ("same", self.facts.user)] {
            let spec = Spec { user: Some(user), ..attempt };
            let sender = self.engine.run(&pod, sender, spec).await?;
            let code = self.engine.exit_code(&sender).await?;
            ensure!(code == 0 || is_confined, "the sender has exited with {code}");
            self.still_sleeps(&pod, &pause).await?;
        }
        self.engine.signal_pod(&pod, Signal::SIGINT).await?;
        self.has_ended(&pod, 0, "pause: SIGINT\n").await
    }

    async fn arguments(&self) -> Result<()> {
        let pod = self.engine.start_pod("arguments", Sandbox::Usual).await?;
        let reference = &self.context.image.reference;
        let printed =
            self.engine.run(&pod, "version", Spec::alone(reference, &["--version"])).await?;
        same("the exit code", self.engine.exit_code(&printed).await?, 0)?;
        self.logged(&printed, &self.version(), "").await?;

        let ignored =
            self.engine.run(&pod, "unknown", Spec::alone(reference, &["unknown"])).await?;
        let pid = self.engine.pid(&ignored).await?;
        host::asleep(pid, &self.context.binary, USER).await?;
        self.engine.stop(&ignored).await?;
        same("the exit code", self.engine.exit_code(&ignored).await?, 0)?;
        self.logged(&ignored, "", &format!("{IGNORED}{STOPPED}")).await
    }

    async fn host_pid(&self) -> Result<()> {
        // Somebody on the host who must not notice.
        let mut bystander = Command::new("sleep");
        let bystander = bystander.arg("infinity").stdin(Stdio::null()).kill_on_drop(true);
        let mut bystander = bystander.spawn()?;

        let (pod, pause) = self.start("host-pid", Sandbox::HostPid).await?;
        let own = host::namespaces(&Process::myself()?, &["pid"])?;
        same("the PID namespace", host::namespaces(&pause, &["pid"])?, own)?;
        self.stops(&pod, &format!("{WARNING}{STOPPED}")).await?;
        same("what became of a process of the host", bystander.try_wait()?, None)
    }

    async fn pod(&self) -> Result<()> {
        let (pod, pause) = self.start("pod", Sandbox::Usual).await?;
        let beside = self.engine.run(&pod, "beside", IDLE).await?;

        let shared = host::namespaces(&pause, self.facts.shared)?;
        same("the namespaces", self.namespaces(&beside).await?, shared.clone())?;
        let own = host::namespaces(&Process::myself()?, self.facts.shared)?;
        ensure!(shared.iter().all(|namespace| !own.contains(namespace)), "they are the host's");
        self.pause_reaps(&pause, &beside).await?;

        let careless =
            self.engine.run(&pod, "careless", Spec { shares_pid: false, ..IDLE }).await?;
        sleep_does_not_reap(&async |script: &str| self.shell(&careless, script).await).await
    }

    async fn tutorial(&self) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("volume-").tempdir_in("/var/tmp")?;
        // For whatever users the containers have.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
        let volume = |place| Some((folder.path(), place));
        let (pod, pause) = self.start("tutorial", Sandbox::Usual).await?;

        let spec = Spec { volume: volume("/usr/share/nginx/html"), ..Spec::new(NGINX, &["nginx"]) };
        self.engine.run(&pod, "nginx", spec).await?;
        let write = format!("echo '{HELLO}' > /pod-data/index.html");
        let write = ["sh", "-c", &write];
        let spec = Spec { volume: volume("/pod-data"), ..Spec::new(BUSYBOX, &write) };
        let debian = self.engine.run(&pod, "debian", spec).await?;
        same("the exit code of the writer", self.engine.exit_code(&debian).await?, 0)?;

        let client = self.engine.run(&pod, "client", IDLE).await?;
        let fetch = ["wget", "-q", "-O", "-", "http://127.0.0.1/"];
        let page = async || Ok(self.engine.exec(&client, &fetch).await.ok());
        same("what nginx serves", until("nginx answers", page).await?, HELLO.to_owned())?;

        let url = format!("http://{}/", host::address(&pause).await?);
        let mut fetch = self.engine.on_host("busybox");
        fetch.args(["wget", "-q", "-O", "-", &url]);
        same("what the host fetches", success(&mut fetch).await?, HELLO.to_owned())
    }

    async fn shared(&self) -> Result<()> {
        let pod = self.engine.start_pod("shared", Sandbox::Usual).await?;
        let first = self.engine.run(&pod, "first", Spec { image: NGINX, ..IDLE }).await?;
        let second = self.engine.run(&pod, "second", IDLE).await?;
        let other = self.engine.start_pod("unshared", Sandbox::Usual).await?;
        let stranger = self.engine.run(&other, "stranger", IDLE).await?;

        self.engine.exec(&first, &["ipcmk", "--shmem", "4096", "--semaphore", "3"]).await?;
        for script in [
            "hostname",
            "ip -o link show dev eth0",
            "ip -4 -o address show dev eth0",
            "cat /proc/sysvipc/shm",
            "cat /proc/sysvipc/sem",
        ] {
            let seen = self.shell(&first, script).await?;
            same(script, &self.shell(&second, script).await?, &seen)?;
            let elsewhere = self.shell(&stranger, script).await?;
            ensure!(elsewhere != seen, "{script} prints the same in another pod: {seen}");
        }
        Ok(())
    }

    async fn replace(&self) -> Result<()> {
        let (pod, pause) = self.start("replace", Sandbox::Usual).await?;
        let shared = host::namespaces(&pause, self.facts.shared)?;
        let idle = Spec { image: NGINX, ..IDLE };
        let kill = Spec::new(BUSYBOX, &["killall", "-KILL", "sleep"]);
        let dies = async |container: &str, killer: &str| {
            self.engine.run(&pod, killer, kill).await?;
            same("the exit code", self.engine.exit_code(container).await?, 137)
        };
        let is_in_the_pod = async |container: &str| {
            same("the namespaces", &self.namespaces(container).await?, &shared)?;
            self.still_sleeps(&pod, &pause).await
        };

        let first = self.engine.run(&pod, "first", idle).await?;
        is_in_the_pod(&first).await?;
        dies(&first, "killer-1").await?;
        let first = self.engine.restart(&pod, &first, idle).await?;
        is_in_the_pod(&first).await?;
        dies(&first, "killer-2").await?;
        let second = self.engine.run(&pod, "second", IDLE).await?;
        is_in_the_pod(&second).await
    }

    async fn restart(&mut self) -> Result<()> {
        let (pod, pause) = self.start("restart", Sandbox::Usual).await?;
        let beside = self.engine.run(&pod, "beside", IDLE).await?;
        let idle = self.engine.pid(&beside).await?;

        self.engine.restart_daemon().await?;
        self.still_sleeps(&pod, &pause).await?;
        same("the container's process", self.engine.pid(&beside).await?, idle)?;
        self.pause_reaps(&pause, &beside).await?;
        self.stops(&pod, STOPPED).await
    }

    async fn killed(&self) -> Result<()> {
        let (pod, pause) = self.start("killed", Sandbox::Usual).await?;
        let beside = self.engine.run(&pod, "beside", IDLE).await?;
        kill(Pid::from_raw(pause.pid), Signal::SIGKILL)?;
        self.is_down(&pod, 137).await?;
        // The kernel takes the PID namespace down with its PID 1.
        same("the exit code beside it", self.engine.exit_code(&beside).await?, 137)?;

        let pod = self.engine.restart_pod(pod).await?;
        let pause = self.asleep(&pod).await?;
        let beside = self.engine.run(&pod, "another", IDLE).await?;
        self.still_sleeps(&pod, &pause).await?;
        is_init(&async |script: &str| self.shell(&beside, script).await, self.facts.user).await
    }

    async fn hardened(&self) -> Result<()> {
        let pod = self.engine.start_pod("hardened", Sandbox::Usual).await?;
        let spec = Spec { hardened: true, ..Spec::alone(&self.context.image.reference, &[]) };
        let container = self.engine.run(&pod, "least", spec).await?;
        let pid = self.engine.pid(&container).await?;
        let pause = host::asleep(pid, &self.context.binary, USER).await?;
        let status = pause.status()?;
        same("the capabilities it could get", status.capbnd, Some(0))?;
        same("the flag no_new_privs", status.nonewprivs, Some(1))?;
        // SECCOMP_MODE_FILTER
        same("the seccomp mode", status.seccomp, Some(2))?;
        match self.facts.least_memory {
            Ok(limit) => same("the memory it may use", host::memory_limit(&pause)?, limit)?,
            Err(why) => self.context.leaves_out(&format!("the limit of its memory: {why}")),
        }
        let mounts = pause.mountinfo()?;
        let mut root = mounts.iter().filter(|mount| mount.mount_point == Path::new("/"));
        ensure!(root.all(|root| root.mount_options.contains_key("ro")), "the root is writable");
        self.engine.stop(&container).await?;
        same("the exit code", self.engine.exit_code(&container).await?, 0)?;
        self.logged(&container, "", STOPPED).await
    }

    async fn remapped(&mut self) -> Result<()> {
        self.engine.remap(true).await?;
        let result = self.has_other_users().await;
        self.engine.remap(false).await?;
        result
    }

    async fn has_other_users(&self) -> Result<()> {
        self.load().await?;
        let (pod, pause) = self.start("remapped", Sandbox::Usual).await?;
        let own = host::namespaces(&Process::myself()?, &["user"])?;
        ensure!(host::namespaces(&pause, &["user"])? != own, "the user namespace is the host's");
        ensure!(pause.status()?.euid != self.facts.user, "its user is one of the host's");
        let beside = self.engine.run(&pod, "beside", IDLE).await?;
        self.pause_reaps(&pause, &beside).await?;
        self.stops(&pod, STOPPED).await
    }

    async fn foreign(&self) -> Result<()> {
        let mut tried = self.engine.load(images::built(&self.context.image.foreign)?).await;
        if tried.is_ok() {
            tried = self.run_foreign().await;
        }
        let refusal = match tried {
            Err(refusal) if refusal.is::<Untried>() => return Err(refusal),
            Err(refusal) => refusal,
            Ok(()) => {
                ensure!(host::has_emulator().await?, "it is not refused");
                self.context.leaves_out("the refusal: binfmt_misc has an emulator for the image");
                return Ok(());
            }
        };
        // The others are containerd's, skopeo's and gVisor's words for an image that has nothing for
        // this machine.
        let reasons = [
            "exec format error",
            "no match for platform",
            "image might be filtered out",
            "no image found in image index for architecture",
        ];
        let refusal = format!("{refusal:#}").to_lowercase();
        let tells_why = reasons.iter().any(|words| refusal.contains(words));
        ensure!(tells_why, "this does not tell why: {refusal}");
        Ok(())
    }

    /// Runs what is for another architecture. The error is what the engine says to that, if there is no
    /// emulator for it.
    async fn run_foreign(&self) -> Result<()> {
        let pod = self.engine.start_pod("foreign", Sandbox::Usual).await?;
        let spec = Spec::alone(images::FOREIGN, &["--version"]);
        let container = self.engine.run(&pod, "foreign", spec).await?;
        match self.engine.exit_code(&container).await? {
            0 => self.logged(&container, &self.version(), "").await,
            _ => bail!("{:?}", self.engine.log(&container).await?),
        }
    }

    async fn platforms(&self) -> Result<()> {
        self.engine.load(images::built(&self.context.image.all)?).await?;
        let pod = self.engine.start_pod("platforms", Sandbox::Usual).await?;
        let container = self.engine.run(&pod, "own", Spec::alone(images::ALL, &[])).await?;
        let pid = self.engine.pid(&container).await?;
        host::asleep(pid, &self.context.binary, USER).await?;
        self.engine.stop(&container).await?;
        same("the exit code", self.engine.exit_code(&container).await?, 0)
    }

    async fn many(&self) -> Result<()> {
        let before = surroundings(self.engine).await?;
        let pods = stream::iter(0..self.context.pods).map(async |number| {
            let name = format!("many-{number}");
            self.start(&name, Sandbox::Usual).await.with_context(|| name)
        });
        let pods: Vec<_> = pods.buffer_unordered(CLIENTS).try_collect().await?;

        // All of them at once: each is the one that it was, after the last one has started.
        let pids: HashSet<_> = pods.iter().map(|(_, pause)| pause.pid).collect();
        same("the number of processes", pids.len() as u64, self.context.pods)?;
        let ended = stream::iter(pods).map(async |(pod, pause)| {
            let name = pod.name.clone();
            self.still_sleeps(&pod, &pause).await.with_context(|| name.clone())?;
            self.stops(&pod, STOPPED).await.with_context(|| name)?;
            self.engine.remove_pod(pod).await
        });
        ended.buffer_unordered(CLIENTS).try_collect::<()>().await?;
        is_as_before(&before, async || surroundings(self.engine).await).await
    }

    async fn build(&self) -> Result<()> {
        for (builder, binary) in self.engine.build().await? {
            ensure!(binary == self.context.binary, "{builder} makes another program than cargo");
        }
        Ok(())
    }

    /// What pause prints when it is asked for its version.
    fn version(&self) -> String {
        let reference = &self.context.image.reference;
        format!("pause {}\n", reference.rsplit(':').next().unwrap_or_default())
    }

    /// Starts a pod and waits until its pause sleeps.
    async fn start(&self, name: &str, sandbox: Sandbox) -> Result<(Pod, Process)> {
        let pod = self.engine.start_pod(name, sandbox).await?;
        let pause = self.asleep(&pod).await?;
        Ok((pod, pause))
    }

    /// Waits until a pod's pause sleeps; it has to be ours.
    async fn asleep(&self, pod: &Pod) -> Result<Process> {
        let pid = self.engine.pid(&pod.pause).await?;
        host::asleep(pid, &self.context.binary, self.facts.user).await
    }

    /// Waits until a pod's pause sleeps; it has to be the one that it was, for the engine as well.
    async fn still_sleeps(&self, pod: &Pod, pause: &Process) -> Result<()> {
        let now = self.asleep(pod).await?;
        same("when pause started", now.stat()?.starttime, pause.stat()?.starttime)?;
        ensure!(self.engine.is_up(pod).await?, "the engine believes the pod {} dead", pod.name);
        Ok(())
    }

    /// Has the engine end a pod by SIGTERM, and checks what it then tells about it.
    async fn stops(&self, pod: &Pod, log: &str) -> Result<()> {
        if self.facts.stops_by_sigterm {
            self.engine.stop_pod(pod).await?;
        } else {
            self.engine.signal_pod(pod, Signal::SIGTERM).await?;
        }
        self.has_ended(pod, 0, log).await
    }

    /// Waits until a pod has ended with this exit code, for the engine as well.
    async fn is_down(&self, pod: &Pod, code: i64) -> Result<()> {
        same("the exit code", self.engine.exit_code(&pod.pause).await?, code)?;
        becomes("whether the pod is up", async || self.engine.is_up(pod).await, &false).await
    }

    /// The same, and pause has written just this.
    async fn has_ended(&self, pod: &Pod, code: i64, stderr: &str) -> Result<()> {
        self.is_down(pod, code).await?;
        if self.facts.logs_pause {
            return self.logged(&pod.pause, "", stderr).await;
        }
        self.context.leaves_out("what pause writes: the engine keeps no log of it");
        Ok(())
    }

    /// Waits until a log is just this.
    async fn logged(&self, container: &str, stdout: &str, stderr: &str) -> Result<()> {
        let expected = [stdout, stderr].map(str::to_owned);
        becomes("the log", async || self.engine.log(container).await, &expected).await
    }

    /// The namespaces that a container is in, of those that are shared.
    async fn namespaces(&self, container: &str) -> Result<Vec<PathBuf>> {
        let process = Process::new(self.engine.pid(container).await?)?;
        host::namespaces(&process, self.facts.shared)
    }

    /// PID 1 of a container is pause, which reaps orphans without being woken for it.
    async fn pause_reaps(&self, pause: &Process, container: &str) -> Result<()> {
        let shell = async |script: &str| self.shell(container, script).await;
        is_init(&shell, self.facts.user).await?;
        let before = activity(Pid::from_raw(pause.pid))?;
        reaps(&shell).await?;
        same("what pause cost the scheduler", activity(Pid::from_raw(pause.pid))?, before)
    }

    /// Runs a script in a container and returns what it prints.
    async fn shell(&self, container: &str, script: &str) -> Result<String> {
        self.engine.exec(container, &["sh", "-c", script]).await
    }
}

/// The processes that run `/pause`.
pub fn pauses() -> Result<HashSet<i32>> {
    let is_pause = |process: &Process| process.cmdline().is_ok_and(|words| words == ["/pause"]);
    Ok(all_processes()?.flatten().filter(is_pause).map(|process| process.pid).collect())
}

/// PID 1 is `/pause`, as the user it is to be, where the container's own `ps` looks.
pub async fn is_init(shell: &impl AsyncFn(&str) -> Result<String>, user: u32) -> Result<()> {
    let line = shell("ps -o pid,user,args | grep '^ *1 '").await?;
    let init: Vec<_> = line.split_whitespace().collect();
    same("PID 1 in ps", init, vec!["1", &user.to_string(), "/pause"])
}

/// Orphans leave no zombie.
pub async fn reaps(shell: &impl AsyncFn(&str) -> Result<String>) -> Result<()> {
    make_orphans(shell).await?;
    becomes("the number of orphans", async || Ok(orphans(shell).await?.len()), &0).await
}

/// The counterpart, without which [`reaps`] proves nothing: where PID 1 does not reap, the same
/// orphans remain as zombies, and are found.
async fn sleep_does_not_reap(shell: &impl AsyncFn(&str) -> Result<String>) -> Result<()> {
    make_orphans(shell).await?;
    let zombies = async || {
        let orphans = orphans(shell).await?;
        // gVisor adds those of the commands that look.
        Ok(orphans.iter().filter(|state| state.starts_with('Z')).count().min(ORPHANS))
    };
    becomes("the number of zombies", zombies, &ORPHANS).await
}

/// Forks twice for each orphan: its parent ends at once.
async fn make_orphans(shell: &impl AsyncFn(&str) -> Result<String>) -> Result<()> {
    // A new process prints its PID. (The last command of a script would not be a new process.)
    let newest = "sh -c 'echo $$'";
    let script = format!("{newest}; for i in $(seq {ORPHANS}); do (: &); done; {newest}; :");
    let pids = shell(&script).await?;
    let pids: Vec<usize> = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        matches!(pids[..], [before, after] if after >= before + 2 * ORPHANS),
        "the PIDs {pids:?} leave no room for {ORPHANS} orphans"
    );
    Ok(())
}

/// The states of the processes whose parent is PID 1. What engines put into a pod has a parent
/// outside of it.
async fn orphans(shell: &impl AsyncFn(&str) -> Result<String>) -> Result<Vec<String>> {
    let list = shell("ps -o ppid,stat").await?;
    let orphans = list.lines().filter_map(|line| line.trim_start().strip_prefix("1 "));
    Ok(orphans.map(|state| state.trim().to_owned()).collect())
}

/// Everything that comes and goes with a pod, on the host and in the engine's lists.
pub async fn surroundings(engine: &impl Column) -> Result<HashSet<String>> {
    let mut found = host::surroundings()?;
    found.extend(engine.list().await?);
    Ok(found)
}

/// Waits until nothing is there but what was there `before`.
pub async fn is_as_before(
    before: &HashSet<String>,
    now: impl AsyncFn() -> Result<HashSet<String>>,
) -> Result<()> {
    let left = async || Ok(now().await?.difference(before).cloned().collect());
    becomes("what is left behind", left, &BTreeSet::new()).await
}
