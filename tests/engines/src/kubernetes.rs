//! Today's Kubernetes and containerd, built from Go modules and driven by kubectl and crictl as people
//! do it: a kubelet decides what happens to sandboxes here.

use crate::conformance;
use crate::containerd::{crictl, deployed, exit_code, inspect, process};
use crate::engine::{Column, Lacks, Name, Skip};
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
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tokio::process::Command;

/// The programs of Kubernetes, as `xtask engines` shows them to this system.
const KUBELET: &str = "/opt/kubernetes/kubelet";
const KUBECTL: &str = "/opt/kubernetes/kubectl";

/// The example whose pod several scenarios use.
const SHARED_PID: &str = "shared-pid";

/// Makes the kubelet remove all unused images at once, because no disk is that empty. (Its image
/// garbage collection runs the same code, but only every five minutes.)
const COLLECT: &str = "--eviction-hard=nodefs.available<99%,imagefs.available<99%";

/// What the kubelet says when pause of a pod has gone. docs/troubleshooting.md quotes it.
const SANDBOX_CHANGED: &str = "Pod sandbox changed, it will be killed and re-created.";

/// Signals that a process in the pod sends to PID 1.
const SIGNALS: &str = "for signal in TERM INT HUP USR1; do kill -$signal 1 || exit; done";

/// The configuration of containerd, which imports the drop-in in `deploy/`.
const CONTAINERD: &str = "
version = 3
imports = ['/etc/kubernetes-node/conf.d/*.toml']
root = '/var/lib/kubernetes-node'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/kubernetes']
conf_dir = '/etc/kubernetes-node/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc]
runtime_type = 'io.containerd.runsc.v1'
runtime_path = '/project/tests/engines/kubernetes/gvisor/shim.sh'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc.options]
TypeUrl = 'io.containerd.runsc.v1.options'
ConfigPath = '/etc/kubernetes-node/gvisor.toml'
[plugins.'io.containerd.cri.v1.runtime']
";

/// Applies a manifest with the names of the images that are there.
const APPLY: &str = r##"
    sed -e "s#image: .*/pause:.*#image: $2#" -e "s#image: .*nginx.*#image: $3#" \
        -e "s#image: \(busybox\|debian\):.*#image: $4#" "$1" |
        /opt/kubernetes/kubectl apply --filename -
"##;

/// Imports the archive $1 for the kubelet.
const IMPORT: &str = "/opt/kubernetes/ctr --namespace k8s.io images import \"$1\"";

/// A Kubernetes of one node, with its container runtime.
pub struct Kubernetes;

/// What a pod keeps as long as its sandbox is the same.
#[derive(Debug, PartialEq)]
struct Sandbox {
    id: String,
    pid: i32,
    address: String,
}

impl Column for Kubernetes {
    async fn start(_: Name, image: &Image) -> Result<Self> {
        let reason = "it is not built: run cargo xtask engines kubernetes";
        ensure!(Path::new(KUBELET).exists(), Skip(reason));
        let restrict = !host::has_cap_sys_resource()?;
        let config = format!("{CONTAINERD}restrict_oom_score_adj = {restrict}\n");
        let drop_in = deployed("containerd-2.toml", &image.reference)?;
        node(&["start", &config, &drop_in]).await?;
        node(&["kubelet"]).await?;
        Ok(Self)
    }

    async fn version(&self, _: Name) -> Result<String> {
        let version = field("node/node", ".status.nodeInfo.kubeletVersion").await?;
        Ok(version.trim_start_matches('v').to_owned())
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        enforce("baseline").await?;
        let before = host::surroundings()?;
        match scenario {
            Scenario::Load => load(context).await?,
            Scenario::Stop => stop(context).await?,
            Scenario::Inside => signals("signals", context).await?,
            Scenario::Remapped => signals("remapped", context).await?,
            Scenario::HostPid => host_pid(context).await?,
            Scenario::Pod => pod(context).await?,
            Scenario::Tutorial => tutorial(context).await?,
            Scenario::Replace => replace(context).await?,
            Scenario::Restart => restart(context).await?,
            Scenario::Killed => killed(context).await?,
            Scenario::Settings => settings(context).await?,
            Scenario::Gvisor => gvisor(context).await?,
            Scenario::Garbage => garbage(context).await?,
            Scenario::Placeholder => placeholder(context).await?,
            Scenario::PrePull => pre_pull(context).await?,
            Scenario::Many => many(context).await?,
            Scenario::Conformance => conformance::test(context).await?,
            Scenario::Registry => registry::test(context).await?,
            Scenario::Outside => return Err(Lacks("kubectl sends no signals").into()),
            Scenario::Hardened => return Err(Lacks("it is part of `placeholder`").into()),
            _ => return Err(Lacks("it does not depend on the kubelet").into()),
        }
        self.remove_all().await?;
        if [Scenario::Restart, Scenario::Garbage].contains(&scenario) {
            // The daemons are other processes now.
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
        node(&["stop"]).await
    }
}

async fn load(context: &Context) -> Result<()> {
    let [busybox, nginx] = images::helpers().await?;
    for archive in [&*context.image.archive, busybox, nginx] {
        script(IMPORT, &[&archive.to_string_lossy()]).await?;
    }
    let pinned =
        async || Ok((image(&context.image.reference).await?["pinned"] == true).then_some(()));
    until("the image of sandboxes is pinned", pinned).await
}

/// What CRI shows of an image.
async fn image(name: &str) -> Result<Value> {
    inspect("inspecti", name).await
}

async fn garbage(context: &Context) -> Result<()> {
    node(&["kubelet", COLLECT]).await?;
    for name in [BUSYBOX, NGINX] {
        let gone = async || Ok(image(name).await.is_err().then_some(()));
        until(&format!("{name} is removed"), gone).await?;
    }
    image(&context.image.reference).await.context("the kubelet removed the image of sandboxes")?;
    node(&["kubelet"]).await?;
    load(context).await?;
    shared_pid(context).await.map(drop)
}

/// Runs a script in a container of a pod, and returns what it prints.
async fn exec(pod: &str, container: &str, script: &str) -> Result<String> {
    let container = format!("--container={container}");
    kubectl(&["exec", pod, &container, "--", "sh", "-c", script]).await
}

async fn shell(pod: &str, script: &str) -> Result<String> {
    exec(pod, "shell", script).await
}

/// Enforces a Pod Security level from now on.
async fn enforce(level: &str) -> Result<()> {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    kubectl(&["label", "--overwrite", "namespace", "default", &label]).await.map(drop)
}

async fn stop(context: &Context) -> Result<()> {
    kubectl(&["run", "pause", "--image", &context.image.reference]).await?;
    ready("pause").await?;
    let id = id("pause").await?;
    delete(&["pod", "pause"]).await?;
    same("the exit code", exit_code(&id).await?, 0)
}

/// Signals from inside the pod `name`, by root and by the user of pause.
async fn signals(name: &str, context: &Context) -> Result<()> {
    apply(&format!("tests/engines/kubernetes/{name}.yaml"), "privileged", context).await?;
    ready(name).await?;
    let before = sandbox(name, context, USER).await?;
    for sender in ["root", "user"] {
        exec(name, sender, SIGNALS).await?;
        same("the sandbox", &sandbox(name, context, USER).await?, &before)?;
    }
    Ok(())
}

async fn host_pid(context: &Context) -> Result<()> {
    apply("tests/engines/kubernetes/host.yaml", "privileged", context).await?;
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
    apply("examples/two-containers.yaml", "baseline", context).await?;
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
    node(&["containerd"]).await?;
    node(&["kubelet"]).await?;
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
    let events = ["get", "events", "--field-selector=reason=SandboxChanged"];
    let messages = "--output=jsonpath={.items[*].message}";
    let events = kubectl(&[&events[..], &[messages]].concat()).await?;
    ensure!(events.contains(SANDBOX_CHANGED), "the events of changed sandboxes: {events}");
    let page = fs::read_to_string(project().join("docs/troubleshooting.md"))?;
    ensure!(page.contains(SANDBOX_CHANGED), "docs/troubleshooting.md does not quote it");
    is_init(&async |script: &str| shell(SHARED_PID, script).await, USER).await
}

async fn settings(context: &Context) -> Result<()> {
    apply("tests/engines/kubernetes/settings.yaml", "baseline", context).await?;
    restarted("settings", "shell").await?;
    let before = sandbox("settings", context, 1000).await?;
    let limit = host::memory_limit(&Process::new(before.pid)?)?;
    same("the memory that the pod may use", limit, 64 << 20)?;
    // From the same user.
    shell("settings", SIGNALS).await?;
    same("the sandbox", sandbox("settings", context, 1000).await?, before)
}

async fn gvisor(context: &Context) -> Result<()> {
    apply("tests/engines/kubernetes/gvisor.yaml", "privileged", context).await?;
    ready("gvisor").await?;
    let before = ready_sandbox("gvisor").await?;
    for sender in ["root", "user"] {
        let shell = async |script: &str| exec("gvisor", sender, script).await;
        ensure!(shell("dmesg").await?.contains("gVisor"), "the kernel is another one");
        // gVisor's kernel, unlike Linux, lets SIGHUP from inside end PID 1.
        shell("kill -TERM 1 && kill -INT 1").await?;
        is_init(&shell, USER).await?;
        reaps(&shell).await?;
    }
    same("the sandbox", ready_sandbox("gvisor").await?, before)?;
    delete(&["pod/gvisor", "runtimeclass/gvisor"]).await?;
    // The shim keeps it for the next pod.
    script("umount /run/containerd/runsc/k8s.io/null-netns", &[]).await.map(drop)
}

async fn placeholder(context: &Context) -> Result<()> {
    apply("examples/placeholder.yaml", "restricted", context).await?;
    rolled_out("deployment/placeholder").await?;
    let id = id(&pod_of("placeholder").await?).await?;
    let pid = process(&id).context("the placeholder does not run")?;
    let pause = host::asleep(pid, &context.binary, USER).await?.status()?;
    same("the capabilities it could get", pause.capbnd, Some(0))?;
    same("the flag no_new_privs", pause.nonewprivs, Some(1))?;

    enforce("baseline").await?;
    // A pod for which there is only room without the placeholder.
    let cpus = field("node/node", ".status.allocatable.cpu").await?;
    let image = &context.image.reference;
    let resources = json!({ "requests": { "cpu": cpus } });
    let container = json!({ "name": "important", "image": image, "resources": resources });
    let overrides = format!("--overrides={}", json!({ "spec": { "containers": [container] } }));
    kubectl(&["run", "important", "--image", image, &overrides]).await?;
    ready("important").await?;
    same("the exit code", exit_code(&id).await?, 0)?;
    let next = format!("pod/{}", pod_of("placeholder").await?);
    same("the next placeholder", field(&next, ".status.phase").await?, "Pending".to_owned())?;
    delete(&["pod", "important"]).await?;
    rolled_out("deployment/placeholder").await?;
    delete(&["deployment/placeholder", "priorityclass/pause-placeholder"]).await
}

async fn pre_pull(context: &Context) -> Result<()> {
    apply("examples/pre-pull.yaml", "restricted", context).await?;
    rolled_out("daemonset/pre-pull").await?;
    let id = id(&pod_of("pre-pull").await?).await?;
    delete(&["daemonset/pre-pull"]).await?;
    same("the exit code", exit_code(&id).await?, 0)
}

async fn many(context: &Context) -> Result<()> {
    let image = format!("--image={}", context.image.reference);
    let pods = context.pods.min(50);
    let replicas = format!("--replicas={pods}");
    kubectl(&["create", "deployment", "many", &image, &replicas]).await?;
    rolled_out("deployment/many").await?;
    let addresses = kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.podIP}"]).await?;
    let addresses: HashSet<_> = addresses.split(' ').collect();
    same("the number of addresses", addresses.len() as u64, pods)?;
    // A sandbox and a container in each pod.
    let pauses = pauses()?;
    same("the number of processes", pauses.len() as u64, 2 * pods)?;
    let sleep = async || Ok(pauses.iter().all(|pid| is_asleep(Pid::from_raw(*pid))).then_some(()));
    until("all of them sleep", sleep).await?;
    delete(&["deployment", "many"]).await?;
    patiently(&["wait", "--for=delete", "pod", "--all"]).await
}

/// Runs node.sh.
async fn node(arguments: &[&str]) -> Result<()> {
    let script = project().join("tests/engines/kubernetes/node.sh");
    success(Command::new("bash").arg(script).args(arguments)).await.map(drop)
}

async fn kubectl(arguments: &[&str]) -> Result<String> {
    success(Command::new(KUBECTL).args(arguments)).await
}

/// Applies a manifest of the project, where a Pod Security level is enforced.
async fn apply(manifest: &str, level: &str, context: &Context) -> Result<()> {
    enforce(level).await?;
    let path = project().join(manifest).display().to_string();
    script(APPLY, &[&path, &context.image.reference, NGINX, BUSYBOX]).await.map(drop)
}

/// Starts the pod of the example that several scenarios use.
async fn shared_pid(context: &Context) -> Result<Sandbox> {
    apply("examples/shared-pid.yaml", "restricted", context).await?;
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
    let id = ready_sandbox(pod).await?;
    let shown: Value = serde_json::from_str(&crictl(["inspectp", "--output=json", &id]).await?)?;
    let pid = shown["info"]["pid"].as_i64().context("the sandbox has no process")? as i32;
    host::asleep(pid, &context.binary, user).await?;
    let address = field(&format!("pod/{pod}"), ".status.podIP").await?;
    Ok(Sandbox { id, pid, address })
}

/// The ID of the only ready sandbox of a pod.
async fn ready_sandbox(pod: &str) -> Result<String> {
    let pods = ["pods", "--quiet", "--state=ready", "--name", &format!("^{pod}$")];
    let id = crictl(pods).await?;
    ensure!(!id.is_empty() && !id.contains('\n'), "the ready sandboxes of the pod {pod}: {id:?}");
    Ok(id)
}
