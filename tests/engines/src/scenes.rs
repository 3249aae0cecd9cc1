//! The scenarios, in words that every engine understands.

use crate::busybox;
use crate::daemon::nothing_but;
use crate::engine::{Container, Engine, Log, Pod, Sandbox, Spec};
use crate::host::{self, same};
use crate::pod::{self, shell};
use crate::stage::Stage;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// What pause says when it is told to stop.
const STOPPED: &str = "pause: SIGTERM";

/// What it says first when it is not PID 1.
const WARNING: &str = "pause: warning: not PID 1, reaping descendants only";

/// What a container of busybox does so that others have something to look at.
const IDLE: Spec = Spec {
    image: busybox::REFERENCE,
    arguments: &["sleep", "infinity"],
    shares_pid: true,
    volume: None,
    hardened: false,
};

/// [`crate::scenario::Scenario::Load`]
pub async fn load(engine: &impl Engine, stage: &Stage) -> Result<()> {
    engine.load(&stage.image).await?;
    engine.shows(stage).await?;
    engine.load(&stage.busybox()).await
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
    let unknown = ["pause: unknown argument: --frobnicate", "Try 'pause --help'."];
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

/// [`crate::scenario::Scenario::Replace`]
pub async fn replace<E: Engine>(engine: &E, stage: &Stage) -> Result<()> {
    let (pod, pause) = started(engine, stage, "replace", Sandbox::Usual).await?;
    let shared = host::namespaces(&pause, &kinds::<E>())?;
    let address = engine.address(&pod).await?;

    let first = engine.run(&pod, "first", IDLE).await?;
    kill(Pid::from_raw(engine.pid(&first).await?), Signal::SIGKILL)?;
    same("the exit code", engine.exit_code(&first).await?, 137)?;

    let second = engine.run(&pod, "second", IDLE).await?;
    same("the namespaces", namespaces(engine, &second).await?, shared)?;
    same("the pod's address", engine.address(&pod).await?, address.clone())?;
    let seen = shell(engine, &second, "ip -4 -o address show dev eth0").await?;
    ensure!(seen.contains(&format!(" {address}/")), "the container does not have it: {seen}");
    let again = asleep(engine, stage, &pod).await?;
    same("the sandbox's process", again.stat()?.starttime, pause.stat()?.starttime)?;
    engine.remove_pod(pod).await
}

/// [`crate::scenario::Scenario::Hardened`]
pub async fn hardened(engine: &impl Engine, stage: &Stage) -> Result<()> {
    let pod = engine.start_pod("hardened", Sandbox::Usual).await?;
    let spec = Spec { shares_pid: false, hardened: true, ..Spec::new(&stage.reference, &[]) };
    let container = engine.run(&pod, "least", spec).await?;
    let pause = host::asleep(engine.pid(&container).await?, &stage.binary).await?;
    let status = pause.status()?;
    same("the capabilities it could get", status.capbnd, Some(0))?;
    same("the flag no_new_privs", status.nonewprivs, Some(1))?;
    // SECCOMP_MODE_FILTER
    same("the seccomp mode", status.seccomp, Some(2))?;
    let mounts = pause.mountinfo()?;
    let mut root = mounts.iter().filter(|mount| mount.mount_point == Path::new("/"));
    ensure!(root.all(|root| root.mount_options.contains_key("ro")), "the root is writable");

    engine.stop(&container).await?;
    same("the exit code", engine.exit_code(&container).await?, 0)?;
    logged(async || engine.log(&container).await, &[], &[STOPPED]).await?;
    engine.remove_pod(pod).await
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
async fn asleep(engine: &impl Engine, stage: &Stage, pod: &Pod) -> Result<Process> {
    host::asleep(engine.pause(pod).await?, &stage.binary).await
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
