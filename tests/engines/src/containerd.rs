//! containerd: its CRI plugin, driven by crictl, Kubernetes' own client for it, with the configuration
//! in `deploy/` that people copy.

use crate::daemon::Daemon;
use crate::engine::{Driver, Engine, PidNamespace, Pod, PodDriver, Skip, Spec, version_of};
use crate::host;
use crate::images::{ALL as EXAMPLE, Candidate};
use crate::scenario::{Scenario, ScenarioTest, test_with_pods};
use crate::wait::{ensure_eq, script, streams, success, until};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Kubernetes' client for CRI, where `xtask engines` puts it.
const CRICTL: &str = "/opt/kubernetes/crictl";

/// Where containerd answers, which crictl's own configuration names, too.
pub const SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// The daemon's events, a line each.
const EVENTS: &str = "/var/log/ctr.log";

/// What crictl is to start.
const SANDBOX: &str = "/var/tmp/sandbox.json";
const CONTAINER: &str = "/var/tmp/container.json";

/// Values of CRI's `NamespaceMode`.
const OF_POD: i32 = 0;
const OF_CONTAINER: i32 = 1;
const OF_NODE: i32 = 2;

/// containerd, and its events in a file.
pub struct Containerd {
    daemon: Daemon,
    events: Daemon,
}

impl Driver for Containerd {
    fn start(_: Engine, candidate: &Candidate) -> Result<Self> {
        let reason = "there is no crictl, which is built with Go 1.21 or later: https://go.dev/dl";
        ensure!(Path::new(CRICTL).exists(), Skip(reason));
        // A call may wait for many others.
        fs::write("/etc/crictl.yaml", format!("runtime-endpoint: {SOCKET}\ntimeout: 120\n"))?;
        configure(&candidate.reference)?;
        script("mkdir -p /opt/cni && ln -sfn /usr/lib/cni /opt/cni/bin", &[])?;
        Ok(Self {
            daemon: Daemon::start(&["containerd"], || is_ready(SOCKET))?,
            events: Daemon::start(&["ctr", "--namespace", "k8s.io", "events"], listens())?,
        })
    }

    fn version(&self) -> Result<String> {
        version_of("containerd")
    }

    fn test(_: Engine, scenario: Scenario) -> Option<ScenarioTest<Self>> {
        match scenario {
            Scenario::Configuration => Some(Box::new(|_, _| keeps_settings())),
            _ => test_with_pods(scenario),
        }
    }

    fn list(&self) -> Result<HashSet<String>> {
        let list = ctr(["containers", "list", "--quiet"])?;
        Ok(list.lines().map(|id| format!("container {id}")).collect())
    }

    fn remove_all(&self) -> Result<()> {
        remove_sandboxes(SOCKET)
    }

    fn end(mut self) -> Result<()> {
        self.events.stop()?;
        self.daemon.stop()
    }
}

impl PodDriver for Containerd {
    const KILLS_PAUSE: bool = true;

    fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.restart(|| is_ready(SOCKET))?;
        self.events.restart(listens())
    }

    fn load(&self, archive: &Path) -> Result<()> {
        let said = ctr(["images", "import", &archive.to_string_lossy()])?;
        // An event tells CRI about it, later.
        for name in said.split_whitespace().filter(|word| word.starts_with("localhost/")) {
            until(&format!("CRI shows {name}"), || Ok(inspect("inspecti", name).ok()))?;
        }
        Ok(())
    }

    fn check_image(&self, reference: &str) -> Result<()> {
        let image = inspect("inspecti", reference)?;
        let image = &image["status"];
        ensure_eq("the names", &image["repoTags"], &json!([reference]))?;
        ensure_eq("the user", &image["uid"]["value"], &json!("65535"))
    }

    fn start_pod(&self, name: &str, pid_namespace: PidNamespace) -> Result<Pod> {
        let pid = if pid_namespace == PidNamespace::Host { OF_NODE } else { OF_POD };
        // The configuration of containerd names the image.
        fs::write(SANDBOX, sandbox_config(name, pid).to_string())?;
        let pause = crictl(["runp", SANDBOX])?;
        Ok(Pod { name: name.to_owned(), pause })
    }

    fn stop_pod(&self, pod: &Pod) -> Result<()> {
        crictl(["stopp", &pod.pause]).map(drop)
    }

    fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        ctr(["tasks", "kill", "--signal", signal.as_str(), &pod.pause]).map(drop)
    }

    fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let pid = if spec.shares_pid { OF_POD } else { OF_CONTAINER };
        let mut security_context = json!({
            "namespace_options": { "network": OF_POD, "ipc": OF_POD, "pid": pid },
            // The runtime's default.
            "seccomp": {},
            "readonly_rootfs": spec.hardened,
            "no_new_privs": spec.hardened,
        });
        if let Some(user) = spec.user {
            security_context["run_as_user"] = json!({ "value": user });
        }
        if spec.hardened {
            security_context["capabilities"] = json!({ "drop_capabilities": ["ALL"] });
        }
        let config = json!({
            "metadata": { "name": name },
            "image": { "image": spec.image },
            "args": spec.arguments,
            "log_path": format!("{}-{name}", pod.name),
            "linux": { "security_context": security_context },
        });
        fs::write(CONTAINER, config.to_string())?;
        fs::write(SANDBOX, sandbox_config(&pod.name, OF_POD).to_string())?;
        let container = crictl(["create", "--no-pull", &pod.pause, CONTAINER, SANDBOX])?;
        crictl(["start", &container])?;
        Ok(container)
    }

    fn pid(&self, container: &str) -> Result<i32> {
        process(container)
    }

    fn shell(&self, container: &str, script: &str) -> Result<String> {
        crictl(["exec", "--sync", container, "sh", "-c", script])
    }

    fn log(&self, container: &str) -> Result<[String; 2]> {
        streams(Command::new(CRICTL).args(["logs", container]))
    }

    fn stop(&self, container: &str) -> Result<()> {
        crictl(["stop", "--timeout", "10", container]).map(drop)
    }

    fn exit_code(&self, container: &str) -> Result<i64> {
        exit_code(container)
    }
}

/// The pod `name`, as a kubelet describes it, with `pid` set to the pod's for `shareProcessNamespace`.
fn sandbox_config(name: &str, pid: i32) -> Value {
    json!({
        "metadata": { "name": name, "uid": format!("uid-of-{name}"), "namespace": "default" },
        "hostname": name,
        "log_directory": "/var/log/pods",
        "dns_config": { "servers": ["192.0.2.1"] },
        "linux": {
            "cgroup_parent": "/pods",
            "security_context": {
                "namespace_options": { "network": OF_POD, "ipc": OF_POD, "pid": pid },
                "seccomp": {},
            },
        },
    })
}

/// The process of a container that runs.
pub fn process(id: &str) -> Result<i32> {
    let tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    let pid = fs::read_to_string(format!("{tasks}/{id}/init.pid"));
    Ok(pid.with_context(|| format!("the container {id} does not run"))?.parse()?)
}

/// Waits until containerd has reported the end of a container, and returns its exit code. CRI reports
/// neither that of a sandbox nor that of a container that was removed.
pub fn exit_code(id: &str) -> Result<i64> {
    until("its end is reported", || {
        let events = fs::read_to_string(EVENTS)?;
        // Time, namespace, topic, then the event, in which a zero is left out.
        for (_, event) in events.lines().filter_map(|line| line.split_once(" /tasks/exit ")) {
            let event: Value = serde_json::from_str(event)?;
            // An exec in it ends as well.
            if event["container_id"] == id && event["id"] == id {
                return Ok(Some(event["exit_status"].as_i64().unwrap_or(0)));
            }
        }
        Ok(None)
    })
}

/// Whether the daemon behind `socket` answers, and is ready for pods.
pub fn is_ready(socket: &str) -> bool {
    let info = crictl(["--runtime-endpoint", socket, "info", "--output=json"]);
    let info: Option<Value> = info.ok().and_then(|info| serde_json::from_str(&info).ok());
    let conditions = info.as_ref().and_then(|info| info["status"]["conditions"].as_array());
    // This condition is about features that a later version will remove.
    let is_ready =
        |it: &Value| it["status"] == true || it["type"] == "ContainerdHasNoDeprecationWarnings";
    conditions.is_some_and(|all| all.iter().all(is_ready))
}

/// Returns a check whether events are written. As those before the subscription are not, it causes one.
fn listens() -> impl Fn() -> bool {
    let length = || fs::metadata(EVENTS).map_or(0, |file| file.len());
    let before = length();
    move || {
        let happened = ctr(["namespaces", "label", "k8s.io", "pause.engines=listens"]);
        happened.is_ok() && length() > before
    }
}

/// Runs containerd's own client, where CRI looks for images and containers.
fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(Command::new("ctr").args(["--namespace", "k8s.io"]).args(arguments))
}

pub fn crictl<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(Command::new(CRICTL).args(arguments))
}

/// Removes all sandboxes behind `socket`. While containerd cleans up after one that has just ended, the
/// call fails, and clients such as the kubelet repeat it (containerd's pull request 12387).
pub fn remove_sandboxes(socket: &str) -> Result<()> {
    until("the sandboxes are removed", || {
        match crictl(["--runtime-endpoint", socket, "rmp", "--force", "--all"]) {
            Err(error) if error.to_string().contains("ttrpc: closed") => Ok(None),
            result => result.map(Some),
        }
    })?;
    Ok(())
}

/// What CRI shows of a sandbox (`inspectp`) or an image (`inspecti`).
pub fn inspect(verb: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&crictl([verb, "--output=json", name])?)?)
}

/// The file in `deploy/` with `image` in the place of its example.
pub fn deployed(file: &str, image: &str) -> Result<String> {
    let path = project().join("deploy").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(text.contains(EXAMPLE), "{} does not name {EXAMPLE}", path.display());
    Ok(text.replace(EXAMPLE, image))
}

/// The last line of a configuration, in the table for CRI. Sandboxes want to be the last to go when memory
/// runs out, and that is a privilege.
pub fn restriction() -> Result<String> {
    Ok(format!("restrict_oom_score_adj = {}\n", !host::has_cap_sys_resource()?))
}

/// Installs the file in `deploy/` for the version of containerd, and the network.
fn configure(image: &str) -> Result<()> {
    let version = version_of("containerd")?;
    let major = version.split('.').next().unwrap_or_default();
    let mut config = deployed(&format!("containerd-{major}.toml"), image)?;
    fs::create_dir_all("/etc/containerd/conf.d")?;
    fs::create_dir_all("/etc/cni/net.d")?;
    if major != "1" {
        fs::write("/etc/containerd/conf.d/20-pause.toml", config)?;
        config = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n\
            [plugins.'io.containerd.cri.v1.runtime']\n"
            .to_owned();
    }
    fs::write("/etc/containerd/config.toml", config + &restriction()?)?;
    // A network between each pod and its host. Unlike a bridge, it leaves nothing when the last pod goes.
    Ok(fs::write("/etc/cni/net.d/10-pods.conf", include_str!("../pods.conf"))?)
}

/// The files in `deploy/` work where they say so, and the warnings in them are true: a drop-in that
/// does not fit makes containerd forget what config.toml sets, and a second table is an error.
fn keeps_settings() -> Result<()> {
    let [old, new] = ["containerd-1.toml", "containerd-2.toml"];
    let version = version_of("containerd")?;
    // The drop-in, the `version` of config.toml, and whether its settings are kept.
    let (own, cases): (_, &[(&str, u8, bool)]) = match version.split('.').collect::<Vec<_>>()[..] {
        ["1", ..] => (old, &[(old, 2, false)]),
        ["2", "0" | "1" | "2", ..] => (new, &[(old, 2, true), (new, 2, false), (new, 3, true)]),
        _ => (new, &[(new, 2, true), (new, 3, true)]),
    };
    let image = "192.0.2.7/infra/pause:1";
    let dump = |config: String| {
        fs::write("/var/tmp/config.toml", config)?;
        script("containerd --config /var/tmp/config.toml config dump", &[])
    };
    for (drop_in, main, is_kept) in cases {
        let plugin = if *main == 2 { "grpc.v1.cri" } else { "cri.v1.runtime" };
        let runc = format!("plugins.'io.containerd.{plugin}'.containerd.runtimes.runc");
        fs::write("/var/tmp/drop-in.toml", deployed(drop_in, image)?)?;
        let shown = dump(format!(
            "version = {main}\nimports = ['/var/tmp/drop-in.toml']\n\
             [{runc}]\nruntime_type = 'io.containerd.runc.v2'\n[{runc}.options]\nSystemdCgroup = true\n"
        ))?;
        let case = format!("{drop_in} beside a configuration of version {main}");
        ensure!(shown.contains(image), "{case} is not read");
        ensure_eq(&case, shown.contains("SystemdCgroup = true"), *is_kept)?;
    }

    // The table may be added to a configuration that does not have it.
    let added = deployed(own, image)?;
    ensure!(dump(added.clone())?.contains(image), "the table is not read");
    let default = script("containerd config default", &[])?;
    let table = added.find("\n[").map(|start| &added[start..]).context("it has no table")?;
    ensure!(dump(default + table).is_err(), "containerd accepts the table twice");
    Ok(())
}
