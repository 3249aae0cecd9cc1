//! What an engine is tried for: the rows of the matrix, and what is done for each.

use crate::engine::{self, Container, Engine, Lacks, Log, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::images::{self, BUSYBOX, Image, NGINX};
use crate::wait::{limit, success, until};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use harness::proc::activity;
use harness::sandbox::USER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::FromRead;
use procfs::process::{Process, Stat, all_processes};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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
    /// Arguments are answered, unknown ones refused.
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
    /// The kubelet removes unused images, and keeps the one of its sandboxes.
    Garbage,
    /// As an ordinary container, it keeps room on a node free, and gives way at once.
    Placeholder,
    /// As an ordinary container, it is the last one in a DaemonSet that pulls images.
    PrePull,
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

    /// Tries an engine for it. The first and the last are the report's to do.
    ///
    /// The error is a [`Skip`] or a [`Lacks`] when it cannot be tried.
    pub async fn run<E: Engine>(self, engine: &mut E, context: &Context) -> Result<()> {
        match self {
            Self::Start | Self::End => Ok(()),
            Self::Load => load(engine, context).await,
            Self::Stop => stop(engine, context).await,
            Self::Outside => outside(engine, context).await,
            Self::Inside => inside(engine, context).await,
            Self::Arguments => arguments(engine, context).await,
            Self::HostPid => host_pid(engine, context).await,
            Self::Pod => pod(engine, context).await,
            Self::Tutorial => tutorial(engine, context).await,
            Self::Shared => shared(engine, context).await,
            Self::Replace => replace(engine, context).await,
            Self::Restart => restart(engine, context).await,
            Self::Killed => killed(engine, context).await,
            Self::Hardened => hardened(engine, context).await,
            Self::Remapped => remapped(engine, context).await,
            Self::Foreign => foreign(engine, context).await,
            Self::Platforms => platforms(engine, context).await,
            Self::Settings | Self::Garbage | Self::Placeholder | Self::PrePull => {
                Err(Lacks("only Kubernetes has it").into())
            }
            Self::Many => many(engine, context).await,
            Self::Build => build(engine, context).await,
        }
    }
}

/// What pause says when it is told to stop.
const STOPPED: &str = "pause: SIGTERM";

/// What it says first when it is not PID 1.
const WARNING: &str = "pause: warning: not PID 1";

/// What the pod of the tutorial serves.
pub const HELLO: &str = "Hello from the debian container";

/// Number of pods that are started, looked at or stopped at the same time.
const CLIENTS: usize = 16;

/// Number of orphans for PID 1 to reap.
const ORPHANS: usize = 2_000;

/// A container of busybox that is there so that others have something to look at.
const IDLE: Spec = Spec::new(BUSYBOX, &["sleep", "infinity"]);

async fn load(engine: &impl Engine, context: &Context) -> Result<()> {
    engine.load(&context.image.archive).await?;
    engine.shows(&context.image).await?;
    for archive in images::helpers().await? {
        engine.load(archive).await?;
    }
    Ok(())
}

async fn stop<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let before = surroundings(engine).await?;
    let (pod, _) = start(engine, context, "stopped", Sandbox::Usual).await?;
    engine.stop_pod(&pod).await?;
    let code = engine.exit_code(&pod.pause).await?;
    is_down(engine, &pod).await?;
    if E::STOPS_BY_SIGTERM {
        same("the exit code", code, 0)?;
        says(engine, context, &pod, &[STOPPED]).await?;
    } else {
        context.leaves_out("the exit code and the last words: the engine's stop is SIGKILL");
        // An engine that does not ask can still learn to.
        ensure!([0, 137].contains(&code), "the exit code is {code}");
    }
    engine.remove_pod(pod).await?;

    let (pod, _) = start(engine, context, "killed", Sandbox::Usual).await?;
    engine.signal_pod(&pod, Signal::SIGKILL).await?;
    same("the exit code after SIGKILL", engine.exit_code(&pod.pause).await?, 137)?;
    is_down(engine, &pod).await?;
    says(engine, context, &pod, &[]).await?;
    engine.remove_pod(pod).await?;
    is_as_before(&before, async || surroundings(engine).await).await
}

async fn outside<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for from_host in [false, true] {
            if from_host && E::OWN_KERNEL {
                context.leaves_out("kill on the host: it would be the sandbox that it ends");
                continue;
            }
            let (pod, pause) = start(engine, context, "signalled", Sandbox::Usual).await?;
            match from_host {
                false => engine.signal_pod(&pod, signal).await?,
                true => kill(Pid::from_raw(pause.pid), signal)?,
            }
            let what = format!("the exit code after {signal}");
            same(&what, engine.exit_code(&pod.pause).await?, 0)?;
            is_down(engine, &pod).await?;
            says(engine, context, &pod, &[&format!("pause: {signal}")]).await?;
            engine.remove_pod(pod).await?;
        }
    }
    if E::OWN_KERNEL {
        context.leaves_out("Ctrl-C: the host does not see when pause is ready for it");
        return Ok(());
    }

    let command = engine.on_terminal().await?;
    let before = pauses()?;
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).kill_on_drop(true);
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let new = until("pause runs on the terminal", async || {
        ensure!(terminal.try_wait()?.is_none(), "{command} has ended");
        Ok(pauses()?.difference(&before).next().copied())
    });
    host::asleep(new.await?, &context.binary, USER).await?;
    let mut stdin = terminal.stdin.take().context("stdin is a pipe")?;
    stdin.write_all(b"\x03").await?;
    let output = timeout(limit(60), terminal.wait_with_output());
    let output = output.await.context("Ctrl-C does not end it")??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("pause: SIGINT"), "{output:?}");
    Ok(())
}

/// The processes that run `/pause`.
pub fn pauses() -> Result<HashSet<i32>> {
    let is_pause = |process: &Process| process.cmdline().is_ok_and(|words| words == ["/pause"]);
    Ok(all_processes()?.flatten().filter(is_pause).map(|process| process.pid).collect())
}

async fn inside<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let (pod, pause) = start(engine, context, "inside", Sandbox::Usual).await?;
    // AppArmor's profile for containers may keep them from signaling pause, which is in no profile.
    let is_confined = Path::new("/sys/kernel/security/apparmor/profiles").exists();
    let attempt = Spec::new(BUSYBOX, &["sh", "-c", "kill -TERM 1 && kill -INT 1"]);
    for user in [E::USER, 0] {
        let spec = Spec { user: Some(user), ..attempt };
        let sender = engine.run(&pod, &format!("user-{user}"), spec).await?;
        let code = engine.exit_code(&sender).await?;
        ensure!(code == 0 || is_confined, "the sender has exited with {code}");
        let again = asleep(engine, context, &pod).await?;
        same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)?;
        engine.remove(sender).await?;
    }
    engine.signal_pod(&pod, Signal::SIGINT).await?;
    same("the exit code", engine.exit_code(&pod.pause).await?, 0)?;
    says(engine, context, &pod, &["pause: SIGINT"]).await?;
    engine.remove_pod(pod).await
}

async fn arguments(engine: &impl Engine, context: &Context) -> Result<()> {
    let pod = engine.start_pod("arguments", Sandbox::Usual).await?;
    let version = format!("pause {}", context.image.version());
    let unknown = ["pause: unknown argument: --frobnicate", "Try pause --help."];
    for (name, argument, stdout, stderr, code) in [
        ("version", "--version", &[version.as_str()][..], &[][..], 0),
        ("unknown", "--frobnicate", &[], &unknown, 64),
    ] {
        let arguments = [argument];
        let spec = Spec { shares_pid: false, ..Spec::new(&context.image.reference, &arguments) };
        let container = engine.run(&pod, name, spec).await?;
        same("the exit code", engine.exit_code(&container).await?, code)?;
        logged(engine, &container, stdout, stderr).await?;
    }
    engine.remove_pod(pod).await
}

async fn host_pid<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    // Somebody on the host who must not notice.
    let mut bystander =
        Command::new("sleep").arg("infinity").stdin(Stdio::null()).kill_on_drop(true).spawn()?;

    let (pod, pause) = start(engine, context, "host-pid", Sandbox::HostPid).await?;
    let own = host::namespaces(&Process::myself()?, &["pid"])?;
    let warning: &[_] = if E::OWN_KERNEL {
        context.leaves_out("the warning: pause is PID 1 of a kernel that knows no other processes");
        &[]
    } else {
        same("the PID namespace", host::namespaces(&pause, &["pid"])?, own)?;
        &[WARNING]
    };
    says(engine, context, &pod, warning).await?;
    stops(engine, context, &pod, &[warning, &[STOPPED]].concat()).await?;
    engine.remove_pod(pod).await?;

    same("what became of a process of the host", bystander.try_wait()?, None)
}

async fn pod<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let (pod, pause) = start(engine, context, "pod", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;

    if !E::OWN_KERNEL {
        let shared = host::namespaces(&pause, &kinds::<E>())?;
        same("the namespaces", namespaces(engine, &beside).await?, shared.clone())?;
        let own = host::namespaces(&Process::myself()?, &kinds::<E>())?;
        ensure!(shared.iter().all(|namespace| !own.contains(namespace)), "they are the host's");
    }
    pause_is_init(engine, &beside).await?;
    pause_reaps(&pause, engine, &beside).await?;

    let careless = engine.run(&pod, "careless", Spec { shares_pid: false, ..IDLE }).await?;
    sleep_does_not_reap(engine, &careless).await?;
    engine.remove_pod(pod).await
}

async fn tutorial(engine: &impl Engine, context: &Context) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("volume-").tempdir_in("/var/tmp")?;
    // For whatever users the containers have.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    let volume = |place| Some((folder.path(), place));
    let pod = engine.start_pod("tutorial", Sandbox::Usual).await?;

    let spec = Spec { volume: volume("/usr/share/nginx/html"), ..Spec::new(NGINX, &["nginx"]) };
    let nginx = engine.run(&pod, "nginx", spec).await?;
    let write = format!("echo '{HELLO}' > /pod-data/index.html");
    let write = ["sh", "-c", &write];
    let spec = Spec { volume: volume("/pod-data"), ..Spec::new(BUSYBOX, &write) };
    let debian = engine.run(&pod, "debian", spec).await?;
    same("the exit code of the writer", engine.exit_code(&debian).await?, 0)?;

    until("nginx listens", async || {
        let sockets = engine.exec(&nginx, &["netstat", "-ltn"]).await?;
        Ok(sockets.contains("0.0.0.0:80 ").then_some(()))
    })
    .await?;
    let fetch = ["wget", "-q", "-O", "-", "http://127.0.0.1/"];
    let client = engine.run(&pod, "client", Spec::new(BUSYBOX, &fetch)).await?;
    same("the exit code of the client", engine.exit_code(&client).await?, 0)?;
    logged(engine, &client, &[HELLO], &[]).await?;

    match engine.address(&pod).await? {
        Some(address) => {
            let mut fetch = engine.on_host("busybox");
            fetch.args(["wget", "-q", "-O", "-", &format!("http://{address}/")]);
            same("what the host fetches", success(&mut fetch).await?, HELLO.to_owned())?;
        }
        None => context.leaves_out("whether the host can fetch it: the pod has no address"),
    }
    engine.remove_pod(pod).await
}

async fn shared<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let pod = engine.start_pod("shared", Sandbox::Usual).await?;
    let idle = Spec { image: NGINX, ..IDLE };
    let first = engine.run(&pod, "first", idle).await?;
    let second = engine.run(&pod, "second", IDLE).await?;
    let other = engine.start_pod("unshared", Sandbox::Usual).await?;
    let stranger = engine.run(&other, "stranger", IDLE).await?;
    let has_address = engine.address(&pod).await?.is_some();

    engine.exec(&first, &["ipcmk", "--shmem", "4096", "--semaphore", "3"]).await?;
    for (what, script, lines) in [
        ("the interface and its MAC", "ip -o link show dev eth0", 1),
        ("the address", "ip -4 -o address show dev eth0", 1),
        ("the host name", "hostname", 1),
        // Below a line of headings.
        ("the shared memory", "cat /proc/sysvipc/shm", 2),
        ("the semaphores", "cat /proc/sysvipc/sem", 2),
    ] {
        if script.contains("eth0") && !has_address {
            context.leaves_out("network interfaces: the pod has none");
            continue;
        }
        if script.contains("sysvipc") && E::OWN_KERNEL {
            context.leaves_out("System V IPC: the pod's kernel has no /proc/sysvipc");
            continue;
        }
        let seen = shell(engine, &first, script).await?;
        same(&format!("the lines on {what}"), seen.lines().count(), lines)?;
        same(what, shell(engine, &second, script).await?, seen.clone())?;
        let elsewhere = shell(engine, &stranger, script).await?;
        ensure!(elsewhere != seen, "{what} is the same in another pod: {seen}");
    }
    engine.remove_pod(pod).await?;
    engine.remove_pod(other).await
}

async fn replace<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let (pod, pause) = start(engine, context, "replace", Sandbox::Usual).await?;
    let shared = host::namespaces(&pause, &kinds::<E>())?;
    let address = engine.address(&pod).await?;

    let idle = Spec { image: NGINX, ..IDLE };
    let first = engine.run(&pod, "first", idle).await?;
    let dies = async |container: &Container| {
        let code = if E::OWN_KERNEL {
            // By SIGTERM, which is no PID 1's here.
            engine.stop(container).await?;
            143
        } else {
            kill(Pid::from_raw(engine.pid(container).await?), Signal::SIGKILL)?;
            137
        };
        same("the exit code", engine.exit_code(container).await?, code)
    };
    let is_in_the_pod = async |container: &Container| {
        same("the namespaces", namespaces(engine, container).await?, shared.clone())?;
        if let Some(address) = &address {
            let seen = shell(engine, container, "ip -4 -o address show dev eth0").await?;
            ensure!(seen.contains(&format!(" {address}/")), "its address is another: {seen}");
        }
        same("the pod's address", engine.address(&pod).await?, address.clone())?;
        let again = asleep(engine, context, &pod).await?;
        same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)
    };
    is_in_the_pod(&first).await?;
    dies(&first).await?;
    let first = engine.restart(&pod, first, idle).await?;
    is_in_the_pod(&first).await?;
    dies(&first).await?;
    engine.remove(first).await?;
    let second = engine.run(&pod, "second", IDLE).await?;
    is_in_the_pod(&second).await?;
    engine.remove_pod(pod).await
}

async fn restart<E: Engine>(engine: &mut E, context: &Context) -> Result<()> {
    let (pod, pause) = start(engine, context, "restart", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;
    let idle = engine.pid(&beside).await?;

    engine.restart_daemon().await?;
    let engine = &*engine;
    ensure!(engine.is_up(&pod).await?, "the engine lost the pod");
    let again = asleep(engine, context, &pod).await?;
    same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)?;
    same("the container's process", engine.pid(&beside).await?, idle)?;
    pause_reaps(&pause, engine, &beside).await?;
    stops(engine, context, &pod, &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

async fn killed<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let (pod, pause) = start(engine, context, "killed", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;
    kill(Pid::from_raw(pause.pid), Signal::SIGKILL)?;
    same("the exit code", engine.exit_code(&pod.pause).await?, 137)?;
    is_down(engine, &pod).await?;
    // The kernel takes the PID namespace down with its PID 1; gVisor's goes itself.
    let code = if E::OWN_KERNEL { 128 } else { 137 };
    same("the exit code beside it", engine.exit_code(&beside).await?, code)?;

    let pod = engine.restart_pod(pod).await?;
    asleep(engine, context, &pod).await?;
    ensure!(engine.is_up(&pod).await?, "the engine believes it dead");
    let beside = engine.run(&pod, "another", IDLE).await?;
    pause_is_init(engine, &beside).await?;
    engine.remove_pod(pod).await
}

async fn hardened<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    let pod = engine.start_pod("hardened", Sandbox::Usual).await?;
    let spec =
        Spec { shares_pid: false, hardened: true, ..Spec::new(&context.image.reference, &[]) };
    let container = engine.run(&pod, "least", spec).await?;
    if E::OWN_KERNEL {
        context.leaves_out("capabilities, seccomp and mounts: the host does not see them");
        engine.pid(&container).await?;
    } else {
        let pause = host::asleep(engine.pid(&container).await?, &context.binary, USER).await?;
        let status = pause.status()?;
        same("the capabilities it could get", status.capbnd, Some(0))?;
        same("the flag no_new_privs", status.nonewprivs, Some(1))?;
        // SECCOMP_MODE_FILTER
        same("the seccomp mode", status.seccomp, Some(2))?;
        match E::NO_MEMORY_LIMIT {
            None => same("the memory it may use", host::memory_limit(&pause)?, E::LEAST_MEMORY)?,
            Some(reason) => context.leaves_out(&format!("the limit of its memory: {reason}")),
        }
        let mounts = pause.mountinfo()?;
        let mut root = mounts.iter().filter(|mount| mount.mount_point == Path::new("/"));
        ensure!(root.all(|root| root.mount_options.contains_key("ro")), "the root is writable");
    }
    engine.stop(&container).await?;
    same("the exit code", engine.exit_code(&container).await?, 0)?;
    logged(engine, &container, &[], &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

async fn remapped(engine: &mut impl Engine, context: &Context) -> Result<()> {
    engine.remap(true).await?;
    let result = has_other_users(engine, context).await;
    engine.remap(false).await?;
    result
}

async fn has_other_users<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    load(engine, context).await?;
    let (pod, pause) = start(engine, context, "remapped", Sandbox::Remapped).await?;
    let own = host::namespaces(&Process::myself()?, &["user"])?;
    ensure!(host::namespaces(&pause, &["user"])? != own, "the user namespace is the host's");
    ensure!(pause.status()?.euid != E::USER, "its user is one of the host's");
    let beside = engine.run(&pod, "beside", IDLE).await?;
    pause_is_init(engine, &beside).await?;
    pause_reaps(&pause, engine, &beside).await?;
    stops(engine, context, &pod, &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

async fn foreign(engine: &impl Engine, context: &Context) -> Result<()> {
    let archive = context.image.foreign()?;
    let refusal = match engine.load(archive).await {
        Err(refusal) => format!("{refusal:#}"),
        Ok(()) => run_foreign(engine).await?,
    };
    // The others are containerd's, skopeo's and gVisor's words for an image that has nothing for
    // this machine.
    let reasons = [
        "exec format error",
        "no match for platform",
        "image might be filtered out",
        "no image found in image index for architecture",
    ];
    let refusal = refusal.to_lowercase();
    let tells_why = reasons.iter().any(|words| refusal.contains(words));
    ensure!(tells_why, "this does not tell why: {refusal}");
    Ok(())
}

/// Tries to run what is for another architecture, and returns what the engine says to that.
async fn run_foreign(engine: &impl Engine) -> Result<String> {
    let pod = engine.start_pod("foreign", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, ..Spec::new(images::FOREIGN, &["--version"]) };
    let refusal = match engine.run(&pod, "foreign", spec).await {
        Err(refusal) => format!("{refusal:#}"),
        Ok(container) => {
            let code = engine.exit_code(&container).await?;
            // As binfmt_misc lets it.
            ensure!(code != 0, Skip("this machine runs the other architecture's programs".into()));
            format!("{:?}", engine.log(&container).await?)
        }
    };
    engine.remove_pod(pod).await?;
    Ok(refusal)
}

async fn platforms<E: Engine>(engine: &E, context: &Context) -> Result<()> {
    engine.load(context.image.all()?).await?;
    let pod = engine.start_pod("platforms", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, ..Spec::new(images::ALL, &[]) };
    let container = engine.run(&pod, "own", spec).await?;
    let pid = engine.pid(&container).await?;
    if !E::OWN_KERNEL {
        host::asleep(pid, &context.binary, USER).await?;
    }
    engine.stop(&container).await?;
    same("the exit code", engine.exit_code(&container).await?, 0)?;
    engine.remove_pod(pod).await
}

async fn many(engine: &impl Engine, context: &Context) -> Result<()> {
    let before = surroundings(engine).await?;
    let pods = stream::iter(0..context.pods).map(async |number| {
        let name = format!("many-{number}");
        start(engine, context, &name, Sandbox::Usual).await.with_context(|| name)
    });
    let pods: Vec<_> = pods.buffer_unordered(CLIENTS).try_collect().await?;

    // All of them at once.
    let pids: HashSet<_> = pods.iter().map(|(_, pause)| pause.pid).collect();
    same("the number of processes", pids.len() as u64, context.pods)?;
    let checked = stream::iter(&pods).map(async |(pod, pause)| {
        let again = asleep(engine, context, pod).await.with_context(|| pod.name.clone())?;
        same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)?;
        ensure!(engine.is_up(pod).await?, "the engine lost {}", pod.name);
        anyhow::Ok(())
    });
    checked.buffer_unordered(CLIENTS).try_collect::<()>().await?;

    let stopped = stream::iter(pods).map(async |(pod, _)| {
        stops(engine, context, &pod, &[STOPPED]).await.with_context(|| pod.name.clone())?;
        engine.remove_pod(pod).await
    });
    stopped.buffer_unordered(CLIENTS).try_collect::<()>().await?;
    is_as_before(&before, async || surroundings(engine).await).await
}

async fn build(engine: &impl Engine, context: &Context) -> Result<()> {
    for (builder, binary) in engine.build().await? {
        ensure!(binary == context.binary, "{builder} makes another program than cargo");
    }
    Ok(())
}

/// Runs scripts in a container.
pub trait Shell {
    /// Runs one and returns what it prints.
    async fn shell(&self, script: &str) -> Result<String>;
}

impl<E: Engine> Shell for (&E, &Container) {
    async fn shell(&self, script: &str) -> Result<String> {
        shell(self.0, self.1, script).await
    }
}

async fn pause_is_init<E: Engine>(engine: &E, container: &Container) -> Result<()> {
    is_init(&(engine, container), E::USER).await
}

/// PID 1 is `/pause`, as the user it is to be, where the container's own `ps` looks.
pub async fn is_init(container: &impl Shell, user: u32) -> Result<()> {
    let list = container.shell("ps -o pid,user,args").await?;
    let init = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|columns| columns.first() == Some(&"1"))
        .with_context(|| format!("ps shows no PID 1:\n{list}"))?;
    same("PID 1 in ps", init, vec!["1", &user.to_string(), "/pause"])
}

/// Orphans in the pod are reaped, and pause is not woken for it.
async fn pause_reaps<E: Engine>(pause: &Process, engine: &E, container: &Container) -> Result<()> {
    let pid = Pid::from_raw(pause.pid);
    let before = activity(pid)?;
    reaps(&(engine, container)).await?;
    if E::OWN_KERNEL {
        return Ok(());
    }
    same("what pause cost the scheduler", activity(pid)?, before)
}

/// Orphans leave no zombie.
pub async fn reaps(container: &impl Shell) -> Result<()> {
    make_orphans(container).await?;
    let mut left = 0;
    let gone = until("every orphan is gone", async || {
        left = orphans(container).await?.len();
        Ok((left == 0).then_some(()))
    });
    gone.await.with_context(|| format!("{left} orphans are left"))
}

/// The counterpart, without which [`pause_reaps`] proves nothing: where PID 1 does not reap, the same
/// orphans remain as zombies, and are found.
async fn sleep_does_not_reap(engine: &impl Engine, container: &Container) -> Result<()> {
    make_orphans(&(engine, container)).await?;
    let mut zombies = 0;
    let all = until("every orphan is a zombie", async || {
        let orphans = orphans(&(engine, container)).await?;
        zombies = orphans.iter().filter(|orphan| orphan.state == 'Z').count();
        Ok((zombies >= ORPHANS).then_some(()))
    });
    all.await.with_context(|| format!("{zombies} zombies are there"))
}

/// Forks twice for each orphan: its parent ends at once.
async fn make_orphans(container: &impl Shell) -> Result<()> {
    // A new process prints its PID. (The last command of a script would not be a new process.)
    let newest = "sh -c 'echo $$'";
    let script = format!("{newest}; for i in $(seq {ORPHANS}); do (: &); done; {newest}; :");
    let pids = container.shell(&script).await?;
    let pids: Vec<usize> = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        matches!(pids[..], [before, after] if after >= before + 2 * ORPHANS),
        "the PIDs {pids:?} leave no room for {ORPHANS} orphans"
    );
    Ok(())
}

/// The processes whose parent is PID 1. What engines put into a pod has a parent outside of it.
async fn orphans(container: &impl Shell) -> Result<Vec<Stat>> {
    // Some end while cat is on its way.
    let stats = container.shell("cat /proc/[0-9]*/stat 2>/dev/null || true").await?;
    let stats: Vec<_> = stats
        .lines()
        .map(|line| Stat::from_read(line.as_bytes()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot read {stats:?}"))?;
    ensure!(stats.iter().any(|stat| stat.pid == 1), "PID 1 is not in /proc");
    Ok(stats.into_iter().filter(|stat| stat.ppid == 1).collect())
}

/// Runs a script in a container and returns what it prints.
async fn shell(engine: &impl Engine, container: &Container, script: &str) -> Result<String> {
    engine.exec(container, &["sh", "-c", script]).await
}

/// Starts a pod and waits until its pause sleeps.
async fn start(
    engine: &impl Engine,
    context: &Context,
    name: &str,
    sandbox: Sandbox,
) -> Result<(Pod, Process)> {
    let pod = engine.start_pod(name, sandbox).await?;
    let pause = asleep(engine, context, &pod).await?;
    Ok((pod, pause))
}

/// Waits until a pod's pause sleeps; it has to be ours.
async fn asleep<E: Engine>(engine: &E, context: &Context, pod: &Pod) -> Result<Process> {
    let pid = engine.pid(&pod.pause).await?;
    if E::OWN_KERNEL {
        context.leaves_out("whether pause sleeps all the time: the host does not see it");
        // Another program has started and ended in that kernel, so pause has had its turn.
        engine.exec(&pod.pause, &["/pause", "--version"]).await?;
        return Ok(Process::new(pid)?);
    }
    host::asleep(pid, &context.binary, E::USER).await
}

/// Has the engine end a pod by SIGTERM, and checks what it then tells about it.
async fn stops<E: Engine>(engine: &E, context: &Context, pod: &Pod, log: &[&str]) -> Result<()> {
    if E::STOPS_BY_SIGTERM {
        engine.stop_pod(pod).await?;
    } else {
        engine.signal_pod(pod, Signal::SIGTERM).await?;
    }
    same("the exit code", engine.exit_code(&pod.pause).await?, 0)?;
    is_down(engine, pod).await?;
    says(engine, context, pod, log).await
}

/// Waits until the engine takes note that a pod does not live any more.
async fn is_down(engine: &impl Engine, pod: &Pod) -> Result<()> {
    let down = async || Ok((!engine.is_up(pod).await?).then_some(()));
    until("the engine finds the pod dead", down).await
}

/// Waits until a pod's pause has said just this on stderr, where the engine keeps it.
async fn says(engine: &impl Engine, context: &Context, pod: &Pod, stderr: &[&str]) -> Result<()> {
    if engine.log(&pod.pause).await?.is_none() {
        context.leaves_out("what pause writes: the engine keeps no log of it");
        return Ok(());
    }
    logged(engine, &pod.pause, &[], stderr).await
}

/// Waits until a log is complete, and just this.
async fn logged(
    engine: &impl Engine,
    container: &Container,
    stdout: &[&str],
    stderr: &[&str],
) -> Result<()> {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let expected = Log { stdout: lines(stdout), stderr: lines(stderr) };
    let mut seen = Log::default();
    let complete = until("the log is complete", async || {
        seen = engine.log(container).await?.context("there is no log")?;
        let complete =
            seen.stdout.len() >= stdout.len() && seen.stderr.len() >= expected.stderr.len();
        Ok(complete.then_some(()))
    });
    complete.await.with_context(|| format!("the log is {seen:?}, not {expected:?}"))?;
    same("the log", seen, expected)
}

/// The namespaces that the containers of a pod share, the PID namespace among them.
fn kinds<E: Engine>() -> Vec<&'static str> {
    [E::SHARED, &["pid"]].concat()
}

/// The namespaces that a container is in, of those that are shared.
async fn namespaces<E: Engine>(engine: &E, container: &Container) -> Result<Vec<u64>> {
    host::namespaces(&Process::new(engine.pid(container).await?)?, &kinds::<E>())
}

/// Everything that comes and goes with a pod, on the host and in the engine's lists.
pub async fn surroundings(engine: &impl engine::Column) -> Result<HashSet<String>> {
    let mut found = host::surroundings()?;
    found.extend(engine.list().await?);
    Ok(found)
}

/// Waits until nothing is there but what was there `before`.
pub async fn is_as_before(
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
