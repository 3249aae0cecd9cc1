//! Today's Kubernetes and containerd, built from Go modules and driven by kubectl and crictl as people
//! do it: a kubelet decides what happens to sandboxes here.

use crate::conformance;
use crate::containerd::{crictl, deployed, exit_code, inspect, process, restriction};
use crate::documents;
use crate::engine::{Driver, Engine, Skip};
use crate::host;
use crate::images::{self, BUSYBOX, Candidate, NGINX};
use crate::scenario::{Run, Scenario, ScenarioTest, pause_is_init, reaps, reaps_without_wake_up};
use crate::wait::{ensure_eq, limit, script, success, until, until_equal};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use harness::proc::is_asleep;
use harness::sandbox::USER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The example whose pod several scenarios use.
pub const SHARED_PID: &str = "shared-pid";

/// What the kubelet says when pause of a pod has gone. docs/troubleshooting.md quotes it.
const SANDBOX_CHANGED: &str = "Pod sandbox changed, it will be killed and re-created.";

/// Signals that a process in the pod sends to PID 1.
pub const SIGNALS: &str = "for signal in TERM INT HUP USR1; do kill -$signal 1 || exit; done";

/// Number of pods that run at once.
const PODS: usize = 50;

/// A Kubernetes of one node, with its container runtime.
pub struct Kubernetes;

/// What a pod keeps as long as its sandbox is the same.
#[derive(Debug, PartialEq)]
pub struct PodSandbox {
    pub id: String,
    /// The name of its image.
    pub image: String,
    /// The process of its pause, as the host numbers it.
    pub pid: i32,
    address: String,
}

impl Driver for Kubernetes {
    fn start(_: Engine, candidate: &Candidate) -> Result<Self> {
        start_node(candidate)?;
        node(&["control-plane"])?;
        node(&["kubelet"])?;
        Ok(Self)
    }

    fn version(&self) -> Result<String> {
        let version = success(Command::new("/opt/kubernetes/kubelet").arg("--version"))?;
        Ok(version.trim_start_matches("Kubernetes v").to_owned())
    }

    fn test(_: Engine, scenario: Scenario) -> Option<ScenarioTest<Self>> {
        let test: fn(&Run) -> Result<()> = match scenario {
            Scenario::Load => load,
            Scenario::Stop => stop,
            Scenario::Inside => |run| signals("signals", run),
            Scenario::Remapped => |run| signals("remapped", run),
            Scenario::HostPid => host_pid,
            Scenario::Pod => pod,
            Scenario::Tutorial => tutorial,
            Scenario::Replace => replace,
            Scenario::Restart => restart,
            Scenario::Killed => killed,
            Scenario::Settings => settings,
            Scenario::Gvisor => gvisor,
            Scenario::Garbage => garbage,
            Scenario::Placeholder => placeholder,
            Scenario::PrePull => pre_pull,
            Scenario::Many => many,
            Scenario::Conformance => conformance::test,
            Scenario::Registry => documents::install,
            _ => return None,
        };
        let restarts_daemons =
            matches!(scenario, Scenario::Restart | Scenario::Garbage | Scenario::Registry);
        Some(Box::new(move |kubernetes, run| {
            enforce("baseline")?;
            let before = host::surroundings()?;
            test(run)?;
            kubernetes.remove_all()?;
            match restarts_daemons {
                true => Ok(()),
                false => host::is_as_before(&before, host::surroundings, |_| true),
            }
        }))
    }

    fn list(&self) -> Result<HashSet<String>> {
        let list = kubectl(&["get", "pods,deployments,daemonsets", "--output=name"])?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    fn remove_all(&self) -> Result<()> {
        delete(&["deployments,daemonsets,pods", "--all"])
    }

    fn end(self) -> Result<()> {
        node(&["stop"])
    }
}

/// Starts everything of a node but its kubelet.
pub fn start_node(candidate: &Candidate) -> Result<()> {
    let reason = "it is not built: run cargo xtask engines kubernetes";
    ensure!(Path::new("/opt/kubernetes/kubelet").exists(), Skip(reason));
    let config = include_str!("../kubernetes/containerd.toml").to_owned() + &restriction()?;
    let drop_in = deployed("containerd-2.toml", &candidate.reference)?;
    node(&["start", &config, &drop_in])
}

/// Imports the images, and waits until the one of sandboxes is pinned.
pub fn load(run: &Run) -> Result<()> {
    let [busybox, nginx] = images::helpers()?;
    for archive in [&*run.candidate.archive, busybox, nginx] {
        let import = "/opt/kubernetes/ctr --namespace k8s.io images import \"$1\"";
        script(import, &[&archive.to_string_lossy()])?;
    }
    let image = || inspect("inspecti", &run.candidate.reference);
    until_equal("the pin of the image", || Ok(image()?["status"]["pinned"].take()), json!(true))
}

fn garbage(run: &Run) -> Result<()> {
    // No disk is that empty, so it removes all unused images at once. (Its image garbage collection runs the
    // same code, but only every five minutes.)
    node(&["kubelet", "--eviction-hard=nodefs.available<99%,imagefs.available<99%"])?;
    for name in [BUSYBOX, NGINX] {
        until(&format!("{name} is removed"), || Ok(inspect("inspecti", name).err()))?;
    }
    let kept = inspect("inspecti", &run.candidate.reference);
    kept.context("the kubelet removed the image of sandboxes")?;
    node(&["kubelet"])?;
    load(run)?;
    shared_pid(run).map(drop)
}

fn exec(pod: &str, container: &str, script: &str) -> Result<String> {
    let container = format!("--container={container}");
    kubectl(&["exec", pod, &container, "--", "sh", "-c", script])
}

fn shell(pod: &str, script: &str) -> Result<String> {
    exec(pod, "shell", script)
}

/// Enforces a Pod Security level from now on.
fn enforce(level: &str) -> Result<()> {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    kubectl(&["label", "--overwrite", "namespace", "default", &label]).map(drop)
}

fn stop(run: &Run) -> Result<()> {
    kubectl(&["run", "pause", "--image", &run.candidate.reference])?;
    ready("pause")?;
    let id = id("pause")?;
    delete(&["pod", "pause"])?;
    ensure_eq("the exit code", exit_code(&id)?, 0)
}

/// Signals from inside the pod `name`, by root and by the user of pause.
fn signals(name: &str, run: &Run) -> Result<()> {
    apply(&format!("tests/engines/kubernetes/{name}.yaml"), "privileged", run)?;
    ready(name)?;
    let before = sandbox(name, run, USER)?;
    for sender in ["root", "user"] {
        exec(name, sender, SIGNALS)?;
        ensure_eq("the sandbox", &sandbox(name, run, USER)?, &before)?;
    }
    Ok(())
}

fn host_pid(run: &Run) -> Result<()> {
    apply("tests/engines/kubernetes/host.yaml", "privileged", run)?;
    ready("host")?;
    let pause = Process::new(sandbox("host", run, USER)?.pid)?;
    let namespaces = |process: &Process| host::namespaces(process, &["pid", "net"]);
    ensure_eq("the namespaces", namespaces(&pause)?, namespaces(&Process::myself()?)?)
}

fn pod(run: &Run) -> Result<()> {
    let sandbox = shared_pid(run)?;
    let shell = |script: &str| shell(SHARED_PID, script);
    pause_is_init(&shell, USER)?;
    reaps_without_wake_up(sandbox.pid, &shell)
}

fn tutorial(run: &Run) -> Result<()> {
    let name = "two-containers";
    apply("examples/two-containers.yaml", "baseline", run)?;
    until("nginx runs, and the other container has ended", || {
        let shown = kubectl(&["get", "pod", name, "--no-headers"])?;
        let ended = container(name, "debian", ".state.terminated.exitCode")? == "0";
        Ok((ended && shown.split_whitespace().nth(1) == Some("1/2")).then_some(()))
    })?;
    let url = format!("http://{}/", sandbox(name, run, USER)?.address);
    let fetch = ["wget", "-q", "-O", "-", &url];
    let page = until("nginx answers", || Ok(success(Command::new("busybox").args(fetch)).ok()))?;
    ensure_eq("what nginx serves", &*page, "Hello from the debian container")
}

fn replace(run: &Run) -> Result<()> {
    let before = shared_pid(run)?;
    shell(SHARED_PID, "killall -KILL nginx")?;
    restarted(SHARED_PID, "nginx")?;
    ensure_eq("the sandbox", &sandbox(SHARED_PID, run, USER)?, &before)?;

    // Another image, that has the same command.
    kubectl(&["set", "image", "pod", SHARED_PID, &format!("shell={NGINX}")])?;
    restarted(SHARED_PID, "shell")?;
    shell(SHARED_PID, "which nginx")?;
    ensure_eq("the sandbox", &sandbox(SHARED_PID, run, USER)?, &before)
}

fn restart(run: &Run) -> Result<()> {
    let before = shared_pid(run)?;
    node(&["containerd"])?;
    node(&["kubelet"])?;
    // That it does something in the pod shows that it has taken it over, which takes it a moment.
    let kill = || Ok(shell(SHARED_PID, "killall -KILL nginx").ok());
    until("the kubelet has taken over the pod", kill)?;
    restarted(SHARED_PID, "nginx")?;
    ensure_eq("the sandbox", &sandbox(SHARED_PID, run, USER)?, &before)?;
    let restarts = container(SHARED_PID, "shell", ".restartCount")?;
    ensure_eq("the restarts of the other container", &*restarts, "0")
}

fn killed(run: &Run) -> Result<()> {
    let before = shared_pid(run)?;
    kill(Pid::from_raw(before.pid), Signal::SIGKILL)?;
    // The kernel takes the PID namespace down with its PID 1.
    restarted(SHARED_PID, "nginx")?;
    restarted(SHARED_PID, "shell")?;
    let after = sandbox(SHARED_PID, run, USER)?;
    ensure!(after.id != before.id, "the kubelet takes the dead sandbox for a living one");
    let selector = "--field-selector=reason=SandboxChanged";
    let output = "--output=jsonpath={.items[*].message}";
    let events = kubectl(&["get", "events", selector, output])?;
    ensure!(events.contains(SANDBOX_CHANGED), "the events of changed sandboxes: {events}");
    let page = fs::read_to_string(project().join("docs/troubleshooting.md"))?;
    ensure!(page.contains(SANDBOX_CHANGED), "docs/troubleshooting.md does not quote it");
    pause_is_init(&|script: &str| shell(SHARED_PID, script), USER)
}

fn settings(run: &Run) -> Result<()> {
    apply("tests/engines/kubernetes/settings.yaml", "baseline", run)?;
    restarted("settings", "shell")?;
    let before = sandbox("settings", run, 1000)?;
    // From the same user.
    shell("settings", SIGNALS)?;
    ensure_eq("the sandbox", sandbox("settings", run, 1000)?, before)
}

fn gvisor(run: &Run) -> Result<()> {
    apply("tests/engines/kubernetes/gvisor.yaml", "privileged", run)?;
    ready("gvisor")?;
    let before = ready_sandbox("gvisor")?;
    for sender in ["root", "user"] {
        let shell = |script: &str| exec("gvisor", sender, script);
        ensure!(shell("dmesg")?.contains("gVisor"), "the kernel is another one");
        // gVisor's kernel, unlike Linux, lets SIGHUP from inside end PID 1.
        shell("kill -TERM 1 && kill -INT 1")?;
        pause_is_init(&shell, USER)?;
        reaps(&shell)?;
    }
    ensure_eq("the sandbox", ready_sandbox("gvisor")?, before)?;
    delete(&["pod/gvisor", "runtimeclass/gvisor"])?;
    // The shim keeps it for the next pod.
    script("umount /run/containerd/runsc/k8s.io/null-netns", &[]).map(drop)
}

fn placeholder(run: &Run) -> Result<()> {
    apply("examples/placeholder.yaml", "restricted", run)?;
    rolled_out("deployment/placeholder")?;
    let id = id(&pod_of("placeholder")?)?;
    let pause = host::asleep(process(&id)?, &run.binary, USER)?.status()?;
    ensure_eq("the capabilities it could get", pause.capbnd, Some(0))?;
    ensure_eq("the flag no_new_privs", pause.nonewprivs, Some(1))?;

    enforce("baseline")?;
    // A pod for which there is only room without the placeholder.
    let cpus = field("node/node", ".status.allocatable.cpu")?;
    let image = &run.candidate.reference;
    let resources = json!({ "requests": { "cpu": cpus } });
    let container = json!({ "name": "important", "image": image, "resources": resources });
    let overrides = format!("--overrides={}", json!({ "spec": { "containers": [container] } }));
    kubectl(&["run", "important", "--image", image, &overrides])?;
    ready("important")?;
    ensure_eq("the exit code", exit_code(&id)?, 0)?;
    let next = format!("pod/{}", pod_of("placeholder")?);
    ensure_eq("the next placeholder", &*field(&next, ".status.phase")?, "Pending")?;
    delete(&["pod", "important"])?;
    rolled_out("deployment/placeholder")?;
    delete(&["deployment/placeholder", "priorityclass/pause-placeholder"])
}

fn pre_pull(run: &Run) -> Result<()> {
    apply("examples/pre-pull.yaml", "restricted", run)?;
    rolled_out("daemonset/pre-pull")?;
    let id = id(&pod_of("pre-pull")?)?;
    delete(&["daemonset/pre-pull"])?;
    ensure_eq("the exit code", exit_code(&id)?, 0)
}

fn many(run: &Run) -> Result<()> {
    let image = format!("--image={}", run.candidate.reference);
    let replicas = format!("--replicas={PODS}");
    kubectl(&["create", "deployment", "many", &image, &replicas])?;
    rolled_out("deployment/many")?;
    let addresses = kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.podIP}"])?;
    let addresses: HashSet<_> = addresses.split(' ').collect();
    ensure_eq("the number of addresses", addresses.len(), PODS)?;
    // A sandbox and a container in each pod.
    let is_pause = |process: &Process| process.cmdline().is_ok_and(|words| words == ["/pause"]);
    let pauses: Vec<_> = all_processes()?.flatten().filter(is_pause).collect();
    ensure_eq("the number of processes", pauses.len(), 2 * PODS)?;
    let sleep = || Ok(pauses.iter().all(|it| is_asleep(Pid::from_raw(it.pid))).then_some(()));
    until("all of them sleep", sleep)?;
    delete(&["deployment", "many"])?;
    patiently(&["wait", "--for=delete", "pod", "--all"])
}

pub fn node(arguments: &[&str]) -> Result<()> {
    let script = project().join("tests/engines/kubernetes/node.sh");
    success(Command::new("bash").arg(script).args(arguments)).map(drop)
}

pub fn kubectl(arguments: &[&str]) -> Result<String> {
    success(Command::new("/opt/kubernetes/kubectl").args(arguments))
}

/// Applies a manifest of the project, where a Pod Security level is enforced.
fn apply(manifest: &str, level: &str, run: &Run) -> Result<()> {
    enforce(level)?;
    let manifest = manifest_for(manifest, run)?;
    script("echo \"$1\" | /opt/kubernetes/kubectl apply --filename -", &[&manifest]).map(drop)
}

/// A manifest of the project, with the names of the images that are there.
pub fn manifest_for(path: &str, run: &Run) -> Result<String> {
    let path = project().join(path).display().to_string();
    let sed = r##"
        sed -e "s#image: .*/pause:.*#image: $2#" -e "s#image: .*nginx.*#image: $3#" \
            -e "s#image: \(busybox\|debian\):.*#image: $4#" "$1"
    "##;
    script(sed, &[&path, &run.candidate.reference, NGINX, BUSYBOX])
}

/// Starts the pod of the example that several scenarios use.
fn shared_pid(run: &Run) -> Result<PodSandbox> {
    apply("examples/shared-pid.yaml", "restricted", run)?;
    ready(SHARED_PID)?;
    sandbox(SHARED_PID, run, USER)
}

pub fn ready(pod: &str) -> Result<()> {
    patiently(&["wait", "--for=condition=Ready", "pod", pod])
}

fn rolled_out(resource: &str) -> Result<()> {
    patiently(&["rollout", "status", resource])
}

fn delete(resources: &[&str]) -> Result<()> {
    patiently(&[&["delete"], resources].concat())
}

/// Runs a command of kubectl that waits, below the limit that every command has.
fn patiently(arguments: &[&str]) -> Result<()> {
    let timeout = format!("--timeout={}s", limit(280).as_secs());
    kubectl(&[arguments, &[&timeout]].concat()).map(drop)
}

/// A field of a resource, empty where it is not there.
fn field(resource: &str, path: &str) -> Result<String> {
    kubectl(&["get", resource, &format!("--output=jsonpath={{{path}}}")])
}

/// A field of the status of a container.
fn container(pod: &str, name: &str, path: &str) -> Result<String> {
    let path = format!(r#".status.containerStatuses[?(@.name=="{name}")]{path}"#);
    field(&format!("pod/{pod}"), &path)
}

/// What containerd calls the container `pause` of a pod.
fn id(pod: &str) -> Result<String> {
    let id = container(pod, "pause", ".containerID")?;
    Ok(id.trim_start_matches("containerd://").to_owned())
}

/// The newest pod with the label `app`.
fn pod_of(app: &str) -> Result<String> {
    let (selector, sort) =
        (format!("--selector=app={app}"), "--sort-by=.metadata.creationTimestamp");
    let pods = kubectl(&["get", "pods", &selector, sort, "--output=name"])?;
    Ok(pods.lines().next_back().context("there is no pod")?.trim_start_matches("pod/").to_owned())
}

/// Waits until the kubelet has restarted a container.
fn restarted(pod: &str, name: &str) -> Result<()> {
    until(&format!("the container {name} was restarted"), || {
        let restarts = container(pod, name, ".restartCount")?;
        let is_another = restarts.parse().is_ok_and(|times: u32| times > 0);
        Ok((is_another && container(pod, name, ".ready")? == "true").then_some(()))
    })
}

/// The sandbox of a pod, whose pause has to sleep, as `user`.
pub fn sandbox(pod: &str, run: &Run, user: u32) -> Result<PodSandbox> {
    let id = ready_sandbox(pod)?;
    let shown = inspect("inspectp", &id)?;
    let pid = shown["info"]["pid"].as_i64().context("the sandbox has no process")? as i32;
    host::asleep(pid, &run.binary, user)?;
    let address = shown["status"]["network"]["ip"].as_str().unwrap_or_default().to_owned();
    let image = shown["info"]["image"].as_str().context("the sandbox has no image")?.to_owned();
    Ok(PodSandbox { id, image, pid, address })
}

/// The ID of the only ready sandbox of a pod.
fn ready_sandbox(pod: &str) -> Result<String> {
    let pods = ["pods", "--quiet", "--state=ready", "--name", &format!("^{pod}$")];
    let id = crictl(pods)?;
    ensure!(!id.is_empty() && !id.contains('\n'), "the ready sandboxes of the pod {pod}: {id:?}");
    Ok(id)
}
