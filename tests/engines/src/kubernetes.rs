//! Kubernetes, built from Debian's source package and driven by kubectl as people do it: a kubelet
//! decides what happens to sandboxes here. The container runtime is containerd or Docker, as in their
//! own columns.

use crate::conformance;
use crate::containerd::{ctr, exit_code, process};
use crate::engine::{Column, Engine, Lacks, Name, Skip};
use crate::host::{self, same};
use crate::images::{self, BUSYBOX, Image, NGINX};
use crate::registry;
use crate::scenario::{Context, HELLO, Scenario, is_as_before, is_init, pauses, reaps};
use crate::wait::{script, success, until};
use anyhow::{Context as _, Result, ensure};
use harness::build::project;
use harness::proc::{activity, is_asleep};
use harness::sandbox::USER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use std::collections::HashSet;
use std::path::Path;
use tokio::process::Command;

/// The programs of Kubernetes, as `xtask engines` shows them to this system.
const PROGRAMS: &str = "/opt/kubernetes";

/// The example whose pod several scenarios use.
const SHARED_PID: &str = "shared-pid";

/// Makes the kubelet remove all unused images at once, because no disk is that empty. (Its image
/// garbage collection runs the same code, but only every five minutes.)
const COLLECT: &str = "--eviction-hard=nodefs.available<99%,imagefs.available<99%";

/// Applies a manifest with the names of the images that are there.
const APPLY: &str = r##"
    sed -e "s#image: .*/pause:.*#image: $2#" -e "s#image: nginx:.*#image: $3#" \
        -e "s#image: \(busybox\|debian\):.*#image: $4#" "$1" | kubectl apply --filename -
"##;

/// A Kubernetes of one node, with its container runtime.
pub struct Kubernetes<R> {
    name: Name,
    runtime: R,
}

/// What a pod keeps as long as its sandbox is the same.
#[derive(Debug, PartialEq)]
struct Sandbox {
    id: String,
    pid: i32,
    address: String,
}

impl<R: Engine> Column for Kubernetes<R> {
    async fn start(name: Name, image: &Image) -> Result<Self> {
        let reason = "it is not built: run cargo xtask engines kubernetes";
        ensure!(Path::new(PROGRAMS).exists(), Skip(reason));
        let (mut runtime, mut options) = (Name::Containerd, &[][..]);
        if name == Name::Dockershim {
            let reason = "the kubelet lowers OOM scores, which root may not do here: use --vm";
            ensure!(host::has_cap_sys_resource()?, Skip(reason));
            // Kubernetes had it until 1.23.
            (runtime, options) = (Name::Docker, &["--container-runtime=docker"]);
        }
        let runtime = R::start(runtime, image).await?;
        control(&["start"]).await?;
        kubelet(image, options).await?;
        Ok(Self { name, runtime })
    }

    async fn version(&self, _: Name) -> Result<String> {
        let version = field("node/node", ".status.nodeInfo.kubeletVersion").await?;
        Ok(version.trim_start_matches('v').to_owned())
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        let of_dockershim = [Scenario::Load, Scenario::Inside, Scenario::Pod, Scenario::Tutorial];
        if self.name == Name::Dockershim && !of_dockershim.contains(&scenario) {
            return Err(Lacks("it is tried with containerd, in the column kubernetes").into());
        }
        let before = host::surroundings()?;
        match scenario {
            Scenario::Load => self.load(context).await?,
            Scenario::Stop => stop(context).await?,
            Scenario::Inside => inside(context).await?,
            Scenario::HostPid => host_pid(context).await?,
            Scenario::Pod => pod(context).await?,
            Scenario::Tutorial => tutorial(context).await?,
            Scenario::Replace => replace(context).await?,
            Scenario::Restart => restart(context).await?,
            Scenario::Killed => killed(context).await?,
            Scenario::Settings => settings(context).await?,
            Scenario::Garbage => self.garbage(context).await?,
            Scenario::Placeholder => placeholder(context).await?,
            Scenario::PrePull => pre_pull(context).await?,
            Scenario::Many => many(context).await?,
            Scenario::Conformance => conformance::test(context).await?,
            Scenario::Registry => registry::test(context).await?,
            Scenario::Outside => return Err(Lacks("kubectl sends no signals").into()),
            Scenario::Hardened => return Err(Lacks("it is part of `placeholder`").into()),
            Scenario::Remapped => return Err(Lacks("1.20 has no user namespaces").into()),
            _ => return Err(Lacks("it does not depend on the kubelet").into()),
        }
        self.remove_all().await?;
        if [Scenario::Restart, Scenario::Garbage].contains(&scenario) {
            // The kubelet is another process now.
            return Ok(());
        }
        is_as_before(&before, async || host::surroundings()).await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = kubectl(&["get", "pods,deployments,daemonsets", "--output=name"]).await?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    async fn remove_all(&self) -> Result<()> {
        delete(&["deployments,daemonsets,pods", "--all"]).await
    }

    async fn end(self) -> Result<()> {
        control(&["stop"]).await?;
        self.runtime.end().await
    }
}

impl<R: Engine> Kubernetes<R> {
    async fn load(&self, context: &Context) -> Result<()> {
        self.runtime.load(&context.image.archive).await?;
        for archive in images::helpers().await? {
            self.runtime.load(archive).await?;
        }
        Ok(())
    }

    async fn garbage(&self, context: &Context) -> Result<()> {
        let image = &context.image;
        let has = async |name| {
            anyhow::Ok(ctr(["images", "list", "--quiet"]).await?.lines().any(|it| it == name))
        };
        let gone = async |name| {
            until("an image is removed", async || Ok((!has(name).await?).then_some(()))).await
        };
        kubelet(image, &[COLLECT]).await?;
        gone(BUSYBOX).await?;
        ensure!(has(&image.reference).await?, "the kubelet removed its sandbox image");

        // This containerd pins nothing. A kubelet that does not know the image takes it for unused.
        control(&["kubelet", COLLECT]).await?;
        gone(&image.reference).await?;

        self.load(context).await?;
        kubelet(image, &[]).await?;
        shared_pid(context).await.map(drop)
    }
}

/// Runs a script in the container `shell` of a pod, and returns what it prints.
async fn shell(pod: &str, script: &str) -> Result<String> {
    kubectl(&["exec", pod, "--container=shell", "--", "sh", "-c", script]).await
}

async fn stop(context: &Context) -> Result<()> {
    kubectl(&["run", "pause", "--image", &context.image.reference]).await?;
    ready("pause").await?;
    let id = id("pause").await?;
    delete(&["pod", "pause"]).await?;
    same("the exit code", exit_code(&id).await?, 0)
}

async fn inside(context: &Context) -> Result<()> {
    let before = shared_pid(context).await?;
    shell(SHARED_PID, "kill -TERM 1 && kill -INT 1").await?;
    same("the sandbox", &sandbox(SHARED_PID, context, USER).await?, &before)
}

async fn host_pid(context: &Context) -> Result<()> {
    apply("tests/engines/kubernetes/host.yaml", context).await?;
    ready("host").await?;
    let pause = Process::new(sandbox("host", context, USER).await?.pid)?;
    let namespaces = |process: &Process| host::namespaces(process, &["pid", "net"]);
    same("the namespaces", namespaces(&pause)?, namespaces(&Process::myself()?)?)
}

async fn pod(context: &Context) -> Result<()> {
    let sandbox = shared_pid(context).await?;
    let shell = async |script: &str| shell(SHARED_PID, script).await;
    is_init(&shell, USER).await?;
    let pid = Pid::from_raw(sandbox.pid);
    let before = activity(pid)?;
    reaps(&shell).await?;
    same("what pause cost the scheduler", activity(pid)?, before)
}

async fn tutorial(context: &Context) -> Result<()> {
    let name = "two-containers";
    apply("examples/two-containers.yaml", context).await?;
    until("nginx runs, and the other container has ended", async || {
        let shown = kubectl(&["get", "pod", name, "--no-headers"]).await?;
        let ended = container(name, "debian", ".state.terminated.exitCode").await? == "0";
        Ok((ended && shown.split_whitespace().nth(1) == Some("1/2")).then_some(()))
    })
    .await?;
    let url = format!("http://{}/", sandbox(name, context, USER).await?.address);
    let fetch = ["wget", "-q", "-O", "-", &url];
    let page = async || Ok(success(Command::new("busybox").args(fetch)).await.ok());
    same("what nginx serves", until("nginx answers", page).await?, HELLO.to_owned())
}

async fn replace(context: &Context) -> Result<()> {
    let before = shared_pid(context).await?;
    shell(SHARED_PID, "killall -KILL nginx").await?;
    restarted(SHARED_PID, "nginx").await?;
    same("the sandbox", &sandbox(SHARED_PID, context, USER).await?, &before)?;

    // Another image, that has the same command.
    kubectl(&["set", "image", "pod", SHARED_PID, &format!("shell={NGINX}")]).await?;
    restarted(SHARED_PID, "shell").await?;
    shell(SHARED_PID, "which nginx").await?;
    same("the sandbox", &sandbox(SHARED_PID, context, USER).await?, &before)
}

async fn restart(context: &Context) -> Result<()> {
    let before = shared_pid(context).await?;
    kubelet(&context.image, &[]).await?;
    // That it does something in the pod shows that it has taken it over.
    shell(SHARED_PID, "killall -KILL nginx").await?;
    restarted(SHARED_PID, "nginx").await?;
    same("the sandbox", &sandbox(SHARED_PID, context, USER).await?, &before)?;
    let restarts = container(SHARED_PID, "shell", ".restartCount").await?;
    same("the restarts of the other container", restarts, "0".to_owned())
}

async fn killed(context: &Context) -> Result<()> {
    let before = shared_pid(context).await?;
    kill(Pid::from_raw(before.pid), Signal::SIGKILL)?;
    // The kernel takes the PID namespace down with its PID 1.
    restarted(SHARED_PID, "nginx").await?;
    restarted(SHARED_PID, "shell").await?;
    let after = sandbox(SHARED_PID, context, USER).await?;
    ensure!(after.id != before.id, "the kubelet takes the dead sandbox for a living one");
    is_init(&async |script: &str| shell(SHARED_PID, script).await, USER).await
}

async fn settings(context: &Context) -> Result<()> {
    apply("tests/engines/kubernetes/settings.yaml", context).await?;
    restarted("settings", "shell").await?;
    let before = sandbox("settings", context, 1000).await?;
    let limit = host::memory_limit(&Process::new(before.pid)?)?;
    same("the memory that the pod may use", limit, 64 << 20)?;
    // From the same user.
    shell("settings", "kill -TERM 1 && kill -INT 1").await?;
    same("the sandbox", sandbox("settings", context, 1000).await?, before)
}

async fn placeholder(context: &Context) -> Result<()> {
    apply("examples/placeholder.yaml", context).await?;
    rolled_out("deployment/placeholder").await?;
    let id = id(&pod_of("placeholder").await?).await?;
    let pid = process(&id).context("the placeholder does not run")?;
    let pause = host::asleep(pid, &context.binary, USER).await?.status()?;
    same("the capabilities it could get", pause.capbnd, Some(0))?;
    same("the flag no_new_privs", pause.nonewprivs, Some(1))?;

    // A pod for which there is only room without the placeholder.
    let cpus = field("node/node", ".status.allocatable.cpu").await?;
    let requests = format!("--requests=cpu={cpus}");
    kubectl(&["run", "important", "--image", &context.image.reference, &requests]).await?;
    ready("important").await?;
    same("the exit code", exit_code(&id).await?, 0)?;
    let next = format!("pod/{}", pod_of("placeholder").await?);
    same("the next placeholder", field(&next, ".status.phase").await?, "Pending".to_owned())?;
    delete(&["pod", "important"]).await?;
    rolled_out("deployment/placeholder").await?;
    delete(&["deployment/placeholder", "priorityclass/placeholder"]).await
}

async fn pre_pull(context: &Context) -> Result<()> {
    apply("examples/pre-pull.yaml", context).await?;
    rolled_out("daemonset/pre-pull").await?;
    let id = id(&pod_of("pre-pull").await?).await?;
    delete(&["daemonset/pre-pull"]).await?;
    same("the exit code", exit_code(&id).await?, 0)
}

async fn many(context: &Context) -> Result<()> {
    let image = format!("--image={}", context.image.reference);
    let replicas = format!("--replicas={}", context.pods);
    kubectl(&["create", "deployment", "many", &image, &replicas]).await?;
    rolled_out("deployment/many").await?;
    let addresses = kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.podIP}"]).await?;
    let addresses: HashSet<_> = addresses.split(' ').collect();
    same("the number of addresses", addresses.len() as u64, context.pods)?;
    // A sandbox and a container in each pod.
    let pauses = pauses()?;
    same("the number of processes", pauses.len() as u64, 2 * context.pods)?;
    let sleep = async || Ok(pauses.iter().all(|pid| is_asleep(Pid::from_raw(*pid))).then_some(()));
    until("all of them sleep", sleep).await?;
    delete(&["deployment", "many"]).await?;
    patiently(&["wait", "--for=delete", "pod", "--all"]).await
}

/// Runs control-plane.sh.
async fn control(arguments: &[&str]) -> Result<()> {
    let script = project().join("tests/engines/kubernetes/control-plane.sh");
    success(Command::new("bash").arg(script).args(arguments)).await.map(drop)
}

/// Starts the kubelet anew. It has to know the image, so as not to take it for unused.
async fn kubelet(image: &Image, options: &[&str]) -> Result<()> {
    let kubelet = ["kubelet", "--pod-infra-container-image", &image.reference];
    control(&[&kubelet, options].concat()).await
}

async fn kubectl(arguments: &[&str]) -> Result<String> {
    success(Command::new("kubectl").args(arguments)).await
}

/// Applies a manifest of the project.
async fn apply(manifest: &str, context: &Context) -> Result<()> {
    let path = project().join(manifest).display().to_string();
    script(APPLY, &[&path, &context.image.reference, NGINX, BUSYBOX]).await.map(drop)
}

/// Starts the pod of the example that several scenarios use.
async fn shared_pid(context: &Context) -> Result<Sandbox> {
    apply("examples/shared-pid.yaml", context).await?;
    ready(SHARED_PID).await?;
    sandbox(SHARED_PID, context, USER).await
}

async fn ready(pod: &str) -> Result<()> {
    patiently(&["wait", "--for=condition=Ready", "pod", pod]).await
}

async fn rolled_out(resource: &str) -> Result<()> {
    patiently(&["rollout", "status", resource]).await
}

async fn delete(resources: &[&str]) -> Result<()> {
    patiently(&[&["delete"], resources].concat()).await
}

/// Runs a command of kubectl that waits, below the limit that every command has.
async fn patiently(arguments: &[&str]) -> Result<()> {
    kubectl(&[arguments, &["--timeout=280s"]].concat()).await.map(drop)
}

/// A field of a resource, empty where it is not there.
async fn field(resource: &str, path: &str) -> Result<String> {
    kubectl(&["get", resource, &format!("--output=jsonpath={{{path}}}")]).await
}

/// A field of the status of a container.
async fn container(pod: &str, name: &str, path: &str) -> Result<String> {
    let path = format!(r#".status.containerStatuses[?(@.name=="{name}")]{path}"#);
    field(&format!("pod/{pod}"), &path).await
}

/// What containerd calls the container `pause` of a pod.
async fn id(pod: &str) -> Result<String> {
    let id = container(pod, "pause", ".containerID").await?;
    Ok(id.trim_start_matches("containerd://").to_owned())
}

/// The newest pod with the label `app`.
async fn pod_of(app: &str) -> Result<String> {
    let (selector, sort) =
        (format!("--selector=app={app}"), "--sort-by=.metadata.creationTimestamp");
    let pods = kubectl(&["get", "pods", &selector, sort, "--output=name"]).await?;
    Ok(pods.lines().next_back().context("there is no pod")?.trim_start_matches("pod/").to_owned())
}

/// Waits until the kubelet has restarted a container.
async fn restarted(pod: &str, name: &str) -> Result<()> {
    until(&format!("the container {name} was restarted"), async || {
        let restarts = container(pod, name, ".restartCount").await?;
        let is_another = restarts.parse().is_ok_and(|times: u32| times > 0);
        Ok((is_another && container(pod, name, ".ready").await? == "true").then_some(()))
    })
    .await
}

/// The sandbox of a pod, whose pause has to sleep, as `user`.
async fn sandbox(pod: &str, context: &Context, user: u32) -> Result<Sandbox> {
    let runtime = field("node/node", ".status.nodeInfo.containerRuntimeVersion").await?;
    let found = match runtime.starts_with("docker:") {
        true => docker_sandbox(pod).await?,
        false => containerd_sandbox(pod).await?,
    };
    let (id, pid) = found.with_context(|| format!("no pause runs for the pod {pod}"))?;
    host::asleep(pid, &context.binary, user).await?;
    let address = field(&format!("pod/{pod}"), ".status.podIP").await?;
    Ok(Sandbox { id, pid, address })
}

async fn containerd_sandbox(pod: &str) -> Result<Option<(String, i32)>> {
    let (name, kind) = ("io.kubernetes.pod.name", "io.cri-containerd.kind");
    let filter = format!(r#"labels."{name}"=={pod},labels."{kind}"==sandbox"#);
    let ids = ctr(["containers", "list", "--quiet", &filter]).await?;
    // A dead one may still be listed.
    Ok(ids.lines().find_map(|id| Some((id.to_owned(), process(id)?))))
}

async fn docker(arguments: &[&str]) -> Result<String> {
    success(Command::new("docker").args(arguments)).await
}

/// Docker lists `/pause` beside the containers of the pod.
async fn docker_sandbox(pod: &str) -> Result<Option<(String, i32)>> {
    let filter = format!("label=io.kubernetes.pod.name={pod}");
    let format = "{{.ID}} {{.Command}}";
    let list = docker(&["ps", "--filter", &filter, "--format", format]).await?;
    let (pauses, others): (Vec<_>, Vec<_>) =
        list.lines().partition(|line| line.ends_with(" \"/pause\""));
    ensure!(pauses.len() == 1 && !others.is_empty(), "docker ps shows {list:?}");
    let id = pauses[0].split(' ').next().unwrap_or_default().to_owned();
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &id]).await?.parse()?;
    Ok(Some((id, pid)))
}
