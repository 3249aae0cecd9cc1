//! The scenarios, in words that every engine understands.

use crate::daemon::nothing_but;
use crate::engine::{Container, Engine, Log, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::images::{BUSYBOX, NGINX};
use crate::pod::{self, shell};
use crate::stage::Stage;
use crate::wait::{success, until};
use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use harness::sandbox::USER;
use indicatif::ProgressBar;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// What pause says when it is told to stop.
const STOPPED: &str = "pause: SIGTERM";

/// What it says first when it is not PID 1.
const WARNING: &str = "pause: warning: not PID 1";

/// What the pod of the tutorial serves.
const HELLO: &str = "Hello from the debian container";

/// How many pods are many.
const PODS: u64 = 100;

/// How many of them are started, looked at or stopped at the same time.
const CLIENTS: usize = 16;

/// What a container of busybox does so that others have something to look at.
const IDLE: Spec = Spec {
    image: BUSYBOX,
    arguments: &["sleep", "infinity"],
    shares_pid: true,
    volume: None,
    hardened: false,
};

/// [`crate::scenario::Scenario::Load`]
pub async fn load(engine: &impl Engine, stage: &Stage) -> Result<()> {
    engine.load(&stage.image).await?;
    engine.shows(stage).await?;
    for archive in stage.helpers()? {
        engine.load(&archive).await?;
    }
    Ok(())
}

/// [`crate::scenario::Scenario::Stop`]
pub async fn stop<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    let before = engine.surroundings().await?;

    let (pod, _) = started(engine, stage, "stopped", Sandbox::Usual).await?;
    engine.stop_pod(&pod).await?;
    // An engine that does not ask can still learn to.
    let codes: &[i64] = if E::ASKS_FIRST { &[0] } else { &[0, 137] };
    let code = engine.pod_exit_code(&pod).await?;
    ensure!(codes.contains(&code), "the exit code is {code}");
    is_down(engine, &pod).await?;
    if E::ASKS_FIRST {
        says(engine, &pod, &[STOPPED]).await?;
    }
    engine.remove_pod(pod).await?;

    for (signal, code, log) in [(Signal::SIGTERM, 0, &[STOPPED][..]), (Signal::SIGKILL, 137, &[])] {
        let (pod, _) = started(engine, stage, "signalled", Sandbox::Usual).await?;
        engine.signal_pod(&pod, signal).await?;
        let seen = engine.pod_exit_code(&pod).await?;
        same(&format!("the exit code after {signal}"), seen, code)?;
        is_down(engine, &pod).await?;
        says(engine, &pod, log).await?;
        engine.remove_pod(pod).await?;
    }
    nothing_but(&before, async || engine.surroundings().await).await
}

/// [`crate::scenario::Scenario::Arguments`]
pub async fn arguments(engine: &impl Engine, stage: &Stage) -> Result<()> {
    let pod = engine.start_pod("arguments", Sandbox::Usual).await?;
    let version = format!("pause {}", stage.version());
    let unknown = ["pause: unknown argument: --frobnicate", "Try pause --help."];
    for (name, argument, stdout, stderr, code) in [
        ("version", "--version", &[version.as_str()][..], &[][..], 0),
        ("unknown", "--frobnicate", &[], &unknown, 64),
    ] {
        let arguments = [argument];
        let spec = Spec { shares_pid: false, ..Spec::new(&stage.reference, &arguments) };
        let container = engine.run(&pod, name, spec).await?;
        same("the exit code", engine.exit_code(&container).await?, code)?;
        logged(async || engine.log(&container).await, stdout, stderr).await?;
    }
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::HostPid`]
pub async fn host_pid(engine: &impl Engine, stage: &Stage) -> Result<()> {
    // Somebody on the host who must not notice.
    let mut witness =
        Command::new("sleep").arg("infinity").stdin(Stdio::null()).kill_on_drop(true).spawn()?;

    let (pod, pause) = started(engine, stage, "host-pid", Sandbox::HostPid).await?;
    let own = host::namespaces(&Process::myself()?, &["pid"])?;
    same("the PID namespace", host::namespaces(&pause, &["pid"])?, own)?;
    says(engine, &pod, &[WARNING]).await?;
    stops(engine, &pod, &[WARNING, STOPPED]).await?;
    engine.remove_pod(pod).await?;

    same("what became of a process of the host", witness.try_wait()?, None)
}

/// [`crate::scenario::Scenario::Pod`]
pub async fn pod<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    let (pod, pause) = started(engine, stage, "pod", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;

    let shared = host::namespaces(&pause, &kinds::<E>())?;
    same("the namespaces", namespaces(engine, &beside).await?, shared.clone())?;
    let own = host::namespaces(&Process::myself()?, &kinds::<E>())?;
    ensure!(shared.iter().all(|namespace| !own.contains(namespace)), "they are the host's");

    pod::init(engine, &beside).await?;
    pod::reaps(&pause, engine, &beside).await?;

    let careless = engine.run(&pod, "careless", Spec { shares_pid: false, ..IDLE }).await?;
    pod::does_not_reap(engine, &careless).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Tutorial`]
pub async fn tutorial(engine: &impl Engine) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("pause-volume-").tempdir()?;
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
    logged(async || engine.log(&client).await, &[HELLO], &[]).await?;

    let url = format!("http://{}/", engine.address(&pod).await?);
    let mut fetch = engine.on_host("busybox")?;
    let seen = success(fetch.args(["wget", "-q", "-O", "-", &url])).await?;
    same("what the host fetches", seen, HELLO.to_owned())?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Shared`]
pub async fn shared(engine: &impl Engine) -> Result<()> {
    let pod = engine.start_pod("shared", Sandbox::Usual).await?;
    let idle = Spec { image: NGINX, ..IDLE };
    let first = engine.run(&pod, "first", idle).await?;
    let second = engine.run(&pod, "second", IDLE).await?;
    let other = engine.start_pod("unshared", Sandbox::Usual).await?;
    let stranger = engine.run(&other, "stranger", IDLE).await?;

    engine.exec(&first, &["ipcmk", "--shmem", "4096", "--semaphore", "3"]).await?;
    for (what, script, lines) in [
        ("the interface and its MAC", "ip -o link show dev eth0", 1),
        ("the address", "ip -4 -o address show dev eth0", 1),
        ("the host name", "hostname", 1),
        // Below a line of headings.
        ("the shared memory", "cat /proc/sysvipc/shm", 2),
        ("the semaphores", "cat /proc/sysvipc/sem", 2),
    ] {
        let seen = shell(engine, &first, script).await?;
        same(&format!("the lines on {what}"), seen.lines().count(), lines)?;
        same(what, shell(engine, &second, script).await?, seen.clone())?;
        let elsewhere = shell(engine, &stranger, script).await?;
        ensure!(elsewhere != seen, "{what} is the same in another pod: {seen}");
    }
    engine.remove_pod(pod).await?;
    engine.remove_pod(other).await
}

/// [`crate::scenario::Scenario::Replace`]
pub async fn replace<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    let (pod, pause) = started(engine, stage, "replace", Sandbox::Usual).await?;
    let shared = host::namespaces(&pause, &kinds::<E>())?;
    let address = engine.address(&pod).await?;

    let idle = Spec { image: NGINX, ..IDLE };
    let first = engine.run(&pod, "first", idle).await?;
    let dies = async |container: &Container| {
        kill(Pid::from_raw(engine.pid(container).await?), Signal::SIGKILL)?;
        same("the exit code", engine.exit_code(container).await?, 137)
    };
    let is_at_home = async |container: &Container| {
        same("the namespaces", namespaces(engine, container).await?, shared.clone())?;
        let seen = shell(engine, container, "ip -4 -o address show dev eth0").await?;
        ensure!(seen.contains(&format!(" {address}/")), "its address is another: {seen}");
        same("the pod's address", engine.address(&pod).await?, address.clone())?;
        let again = asleep(engine, stage, &pod).await?;
        same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)
    };
    is_at_home(&first).await?;
    dies(&first).await?;
    let first = engine.restart(&pod, first, idle).await?;
    is_at_home(&first).await?;
    dies(&first).await?;
    engine.remove(first).await?;
    let second = engine.run(&pod, "second", IDLE).await?;
    is_at_home(&second).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Restart`]
pub async fn restart<E: Engine>(engine: &mut E, stage: &Stage) -> Result<()> {
    let (pod, pause) = started(engine, stage, "restart", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;
    let idle = engine.pid(&beside).await?;

    engine.restart_daemon().await?;
    let engine = &*engine;
    ensure!(engine.is_up(&pod).await?, "the engine lost the pod");
    let again = asleep(engine, stage, &pod).await?;
    same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)?;
    same("the container's process", engine.pid(&beside).await?, idle)?;
    pod::reaps(&pause, engine, &beside).await?;
    stops(engine, &pod, &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Killed`]
pub async fn killed(engine: &impl Engine, stage: &Stage) -> Result<()> {
    let (pod, pause) = started(engine, stage, "killed", Sandbox::Usual).await?;
    let beside = engine.run(&pod, "beside", IDLE).await?;
    kill(Pid::from_raw(pause.pid), Signal::SIGKILL)?;
    same("the exit code", engine.pod_exit_code(&pod).await?, 137)?;
    is_down(engine, &pod).await?;
    // The kernel takes the PID namespace down with its PID 1.
    same("the exit code beside it", engine.exit_code(&beside).await?, 137)?;

    let pod = engine.restart_pod(pod).await?;
    asleep(engine, stage, &pod).await?;
    ensure!(engine.is_up(&pod).await?, "the engine believes it dead");
    let beside = engine.run(&pod, "another", IDLE).await?;
    pod::init(engine, &beside).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Hardened`]
pub async fn hardened<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    let pod = engine.start_pod("hardened", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, hardened: true, ..Spec::new(&stage.reference, &[]) };
    let container = engine.run(&pod, "least", spec).await?;
    let pause = host::asleep(engine.pid(&container).await?, &stage.binary, USER).await?;
    let status = pause.status()?;
    same("the capabilities it could get", status.capbnd, Some(0))?;
    same("the flag no_new_privs", status.nonewprivs, Some(1))?;
    // SECCOMP_MODE_FILTER
    same("the seccomp mode", status.seccomp, Some(2))?;
    if E::LIMITS_MEMORY {
        same("the memory it may use", host::memory_limit(&pause)?, E::LEAST_MEMORY)?;
    }
    let mounts = pause.mountinfo()?;
    let mut root = mounts.iter().filter(|mount| mount.mount_point == Path::new("/"));
    ensure!(root.all(|root| root.mount_options.contains_key("ro")), "the root is writable");

    engine.stop(&container).await?;
    same("the exit code", engine.exit_code(&container).await?, 0)?;
    logged(async || engine.log(&container).await, &[], &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Remapped`]
pub async fn remapped(engine: &mut impl Engine, stage: &Stage) -> Result<()> {
    engine.remap(true).await?;
    let played = has_other_users(engine, stage).await;
    engine.remap(false).await?;
    played
}

async fn has_other_users<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    load(engine, stage).await?;
    let (pod, pause) = started(engine, stage, "remapped", Sandbox::Remapped).await?;
    let own = host::namespaces(&Process::myself()?, &["user"])?;
    ensure!(host::namespaces(&pause, &["user"])? != own, "the user namespace is the host's");
    ensure!(pause.status()?.euid != E::USER, "its user is one of the host's");
    let beside = engine.run(&pod, "beside", IDLE).await?;
    pod::init(engine, &beside).await?;
    pod::reaps(&pause, engine, &beside).await?;
    stops(engine, &pod, &[STOPPED]).await?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Foreign`]
pub async fn foreign(engine: &impl Engine, stage: &Stage) -> Result<()> {
    let archive = stage.foreign()?;
    let refusal = match engine.load(archive).await {
        Err(refusal) => format!("{refusal:#}"),
        Ok(()) => runs_foreign(engine).await?,
    };
    // The others are containerd's and skopeo's words for an image that has nothing for this machine.
    let told = [
        "exec format error",
        "no match for platform",
        "image might be filtered out",
        "no image found in image index for architecture",
    ];
    let refusal = refusal.to_lowercase();
    ensure!(told.iter().any(|words| refusal.contains(words)), "this does not tell why: {refusal}");
    Ok(())
}

/// Tries to run what is for another architecture, and returns what the engine says to that.
async fn runs_foreign(engine: &impl Engine) -> Result<String> {
    let pod = engine.start_pod("foreign", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, ..Spec::new(Stage::FOREIGN, &["--version"]) };
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

/// [`crate::scenario::Scenario::Platforms`]
pub async fn platforms(engine: &impl Engine, stage: &Stage) -> Result<()> {
    engine.load(stage.all()?).await?;
    let pod = engine.start_pod("platforms", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, ..Spec::new(Stage::ALL, &[]) };
    let container = engine.run(&pod, "own", spec).await?;
    host::asleep(engine.pid(&container).await?, &stage.binary, USER).await?;
    engine.stop(&container).await?;
    same("the exit code", engine.exit_code(&container).await?, 0)?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Many`]
pub async fn many(engine: &impl Engine, stage: &Stage) -> Result<()> {
    let before = engine.surroundings().await?;
    let bar = ProgressBar::new(3 * PODS);
    // It is, where stderr is no terminal; on one it would take the line that has been begun.
    if !bar.is_hidden() {
        println!();
    }
    let pods = stream::iter(0..PODS).map(async |number| {
        let name = format!("many-{number}");
        let started = started(engine, stage, &name, Sandbox::Usual).await;
        bar.inc(1);
        started.with_context(|| name)
    });
    let pods: Vec<_> = pods.buffer_unordered(CLIENTS).try_collect().await?;

    // All of them at once.
    let pids: HashSet<_> = pods.iter().map(|(_, pause)| pause.pid).collect();
    same("the number of processes", pids.len() as u64, PODS)?;
    let checked = stream::iter(&pods).map(async |(pod, pause)| {
        let again = asleep(engine, stage, pod).await.with_context(|| pod.name.clone())?;
        same("when pause started", again.stat()?.starttime, pause.stat()?.starttime)?;
        ensure!(engine.is_up(pod).await?, "the engine lost {}", pod.name);
        bar.inc(1);
        anyhow::Ok(())
    });
    checked.buffer_unordered(CLIENTS).try_collect::<()>().await?;

    let stopped = stream::iter(pods).map(async |(pod, _)| {
        stops(engine, &pod, &[STOPPED]).await.with_context(|| pod.name.clone())?;
        engine.remove_pod(pod).await?;
        bar.inc(1);
        anyhow::Ok(())
    });
    stopped.buffer_unordered(CLIENTS).try_collect::<()>().await?;
    bar.finish_and_clear();
    nothing_but(&before, async || engine.surroundings().await).await
}

/// [`crate::scenario::Scenario::Build`]
pub async fn build(engine: &impl Engine, stage: &Stage) -> Result<()> {
    ensure!(engine.build().await? == stage.binary, "it is not the program that cargo makes");
    Ok(())
}

/// Starts a pod and waits until its pause sleeps.
async fn started(
    engine: &impl Engine,
    stage: &Stage,
    name: &str,
    sandbox: Sandbox,
) -> Result<(Pod, Process)> {
    let pod = engine.start_pod(name, sandbox).await?;
    let pause = asleep(engine, stage, &pod).await?;
    Ok((pod, pause))
}

/// Waits until a pod's pause sleeps; it has to be ours.
async fn asleep<E: Engine>(engine: &E, stage: &Stage, pod: &Pod) -> Result<Process> {
    host::asleep(engine.pause(pod).await?, &stage.binary, E::USER).await
}

/// Has the engine end a pod by SIGTERM, and checks what it then tells about it.
async fn stops<E: Engine>(engine: &E, pod: &Pod, log: &[&str]) -> Result<()> {
    if E::ASKS_FIRST {
        engine.stop_pod(pod).await?;
    } else {
        engine.signal_pod(pod, Signal::SIGTERM).await?;
    }
    same("the exit code", engine.pod_exit_code(pod).await?, 0)?;
    is_down(engine, pod).await?;
    says(engine, pod, log).await
}

/// Waits until the engine takes note that a pod does not live any more.
async fn is_down(engine: &impl Engine, pod: &Pod) -> Result<()> {
    let down = async || Ok((!engine.is_up(pod).await?).then_some(()));
    until("the engine finds the pod dead", down).await
}

/// Waits until a pod's pause has said just this on stderr, where the engine keeps it.
async fn says(engine: &impl Engine, pod: &Pod, stderr: &[&str]) -> Result<()> {
    if engine.pod_log(pod).await?.is_none() {
        return Ok(());
    }
    logged(async || engine.pod_log(pod).await?.context("no log"), &[], stderr).await
}

/// Waits until a log is complete, and just this.
async fn logged(
    read: impl AsyncFn() -> Result<Log>,
    stdout: &[&str],
    stderr: &[&str],
) -> Result<()> {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let expected = Log { stdout: lines(stdout), stderr: lines(stderr) };
    let mut seen = Log::default();
    let complete = until("the log is complete", async || {
        seen = read().await?;
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
