//! containerd: its CRI plugin, driven by crictl, Kubernetes' own client for it, with the configuration
//! in `deploy/` that people copy.

use crate::daemon::Daemon;
use crate::engine::{Column, Engine, Lacks, Name, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::images::Image;
use crate::scenario::{Context, Scenario};
use crate::wait::{script, success, until};
use anyhow::{Context as _, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::NamedTempFile;
use tokio::process::Command;

/// Kubernetes' client for CRI, where `xtask engines` puts it.
const CRICTL: &str = "/opt/kubernetes/crictl";

/// Where containerd answers, which crictl's own configuration names, too.
const SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// containerd's own client, for the namespace of CRI.
const CTR: &[&str] = &["ctr", "--namespace", "k8s.io"];

/// Where the daemon's events are written, a line each.
const EVENTS: &str = "/var/log/ctr.log";

/// A network between each pod and its host. Unlike a bridge, it leaves nothing when the last pod goes.
pub const NETWORK: &str = r#"{
    "cniVersion": "0.4.0",
    "name": "pods",
    "type": "ptp",
    "ipMasq": false,
    "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.87.0.0/16" }]] }
}"#;

/// Values of CRI's `NamespaceMode`.
const OF_POD: i32 = 0;
const OF_CONTAINER: i32 = 1;
const OF_NODE: i32 = 2;

/// containerd, and its events in a file.
pub struct Containerd {
    daemon: Daemon,
    events: Daemon,
    reference: String,
    /// Whether pods get user namespaces.
    remaps: bool,
}

impl Column for Containerd {
    async fn start(name: Name, image: &Image) -> Result<Self> {
        let reason = "there is no crictl, which is built with Go 1.21 or later: https://go.dev/dl";
        ensure!(Path::new(CRICTL).exists(), Skip(reason));
        // A call may wait for many others.
        fs::write("/etc/crictl.yaml", format!("runtime-endpoint: {SOCKET}\ntimeout: 120\n"))?;
        configure(&name.version().await?, &image.reference)?;
        script("mkdir -p /opt/cni && ln -sfn /usr/lib/cni /opt/cni/bin", &[]).await?;
        Ok(Self {
            daemon: Daemon::start(&["containerd"], answers).await?,
            events: Daemon::start(&[CTR, &["events"]].concat(), listens()).await?,
            reference: image.reference.clone(),
            remaps: false,
        })
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        match scenario {
            Scenario::Configuration => keeps_settings(&self.version(Name::Containerd).await?).await,
            _ => scenario.test(Name::Containerd, self, context).await,
        }
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = ctr(["containers", "list", "--quiet"]).await?;
        Ok(list.lines().map(|id| format!("container {id}")).collect())
    }

    async fn remove_all(&self) -> Result<()> {
        crictl(["rmp", "--force", "--all"]).await.map(drop)
    }

    async fn end(mut self) -> Result<()> {
        self.events.stop().await?;
        self.daemon.stop().await
    }
}

impl Engine for Containerd {
    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.restart(answers).await?;
        self.events.restart(listens()).await
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        // To where CRI looks for images.
        let said = ctr(["images", "import", &archive.to_string_lossy()]).await?;
        // CRI hears of it by an event.
        for name in said.split_whitespace().filter(|word| word.starts_with("localhost/")) {
            until(&format!("CRI shows {name}"), async || Ok(inspect("inspecti", name).await.ok()))
                .await?;
        }
        Ok(())
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let image = inspect("inspecti", &tried.reference).await?;
        same("the names", &image["repoTags"], &json!([tried.reference]))?;
        let size: u64 = image["size"].as_str().context("the image has no size")?.parse()?;
        let archive = fs::metadata(&tried.archive)?.len();
        ensure!(size < archive, "the image has {size} bytes, its archive {archive}");
        same("the user", &image["uid"]["value"], &json!("65535"))
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let pid = match sandbox {
            Sandbox::Usual => OF_POD,
            Sandbox::HostPid => OF_NODE,
        };
        // It is the configuration that names the image.
        let config = file(&sandbox_config(name, self.namespaces(pid)))?;
        let pause = crictl(["runp", &config.path().to_string_lossy()]).await?;
        Ok(Pod { name: name.to_owned(), pause })
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        if Name::Containerd.version().await?.starts_with("1.") {
            return Err(Lacks("containerd has user namespaces for pods since version 2").into());
        }
        self.remaps = on;
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(inspect("inspectp", &pod.pause).await?["state"] == "SANDBOX_READY")
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        crictl(["stopp", &pod.pause]).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        ctr(["tasks", "kill", "--signal", signal.as_str(), &pod.pause]).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        Ok(format!("{} run --rm --tty {} terminal", CTR.join(" "), self.reference))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        // As a kubelet does it: another sandbox takes its place.
        let name = pod.name.clone();
        self.remove_pod(pod).await?;
        self.start_pod(&name, Sandbox::Usual).await
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        crictl(["rmp", "--force", &pod.pause]).await.map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let pid = if spec.shares_pid { OF_POD } else { OF_CONTAINER };
        let mut security_context = json!({
            "namespace_options": self.namespaces(pid),
            // The runtime's default.
            "seccomp": {},
            "readonly_rootfs": spec.hardened,
            "no_new_privs": spec.hardened,
        });
        if let Some(user) = spec.user {
            security_context["run_as_user"] = json!({ "value": user });
        }
        let mut resources = json!({});
        if spec.hardened {
            security_context["capabilities"] = json!({ "drop_capabilities": ["ALL"] });
            let limit = Name::Containerd.facts().least_memory.map_err(Lacks)?;
            resources = json!({ "memory_limit_in_bytes": limit });
        }
        let mount = |(folder, place): (&Path, &str)| json!({ "host_path": folder, "container_path": place });
        let config = file(&json!({
            "metadata": { "name": name },
            "image": { "image": spec.image },
            "args": spec.arguments,
            "mounts": spec.volume.map(mount).as_slice(),
            "log_path": format!("{}-{name}", pod.name),
            "linux": { "resources": resources, "security_context": security_context },
        }))?;
        let sandbox = file(&sandbox_config(&pod.name, self.namespaces(OF_POD)))?;
        let files = [config.path().to_string_lossy(), sandbox.path().to_string_lossy()];
        let container = crictl(["create", "--no-pull", &pod.pause, &files[0], &files[1]]).await?;
        crictl(["start", &container]).await?;
        Ok(container)
    }

    async fn pid(&self, container: &str) -> Result<i32> {
        process(container).context("it does not run")
    }

    async fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        crictl(["exec", "--sync", container].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &str) -> Result<[String; 2]> {
        let mut log = [String::new(), String::new()];
        let status = inspect("inspect", container).await?;
        let path = status["logPath"].as_str().context("it has no log")?;
        for line in fs::read_to_string(path)?.lines() {
            // Time, stream, whether the line is whole; then what was written.
            let mut words = line.splitn(4, ' ').skip(1);
            let stream = words.next().context("a line of the log names no stream")?;
            let stream = usize::from(stream == "stderr");
            log[stream].extend([words.nth(1).unwrap_or_default(), "\n"]);
        }
        Ok(log)
    }

    async fn stop(&self, container: &str) -> Result<()> {
        crictl(["stop", "--timeout", "10", container]).await.map(drop)
    }

    async fn exit_code(&self, container: &str) -> Result<i64> {
        until("the container has ended", async || match inspect("inspect", container).await {
            Ok(status) if status["state"] != "CONTAINER_EXITED" => Ok(None),
            // A code of 0 may be left out.
            Ok(status) => Ok(Some(status["exitCode"].as_i64().unwrap_or(0))),
            // A sandbox is no container to CRI.
            Err(_) => exit_code(container).await.map(Some),
        })
        .await
    }
}

impl Containerd {
    /// How a kubelet asks for the namespaces of a pod, and with `pid` set to the pod's for
    /// `shareProcessNamespace`.
    fn namespaces(&self, pid: i32) -> Value {
        let mut namespaces = json!({ "network": OF_POD, "ipc": OF_POD, "pid": pid });
        if self.remaps {
            let range = json!([{ "host_id": 100_000, "container_id": 0, "length": 65_536 }]);
            namespaces["userns_options"] = json!({ "mode": OF_POD, "uids": range, "gids": range });
        }
        namespaces
    }
}

/// The pod `name`, as a kubelet describes it.
pub fn sandbox_config(name: &str, namespaces: Value) -> Value {
    json!({
        "metadata": { "name": name, "uid": format!("uid-of-{name}"), "namespace": "default" },
        "hostname": name,
        "log_directory": "/var/log/pods",
        "dns_config": { "servers": ["192.0.2.1"] },
        "linux": {
            "cgroup_parent": "/pods",
            // Seccomp is the runtime's default.
            "security_context": { "namespace_options": namespaces, "seccomp": {} },
        },
    })
}

/// The process of a container, if it is there.
pub fn process(id: &str) -> Option<i32> {
    let tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    fs::read_to_string(format!("{tasks}/{id}/init.pid")).ok()?.parse().ok()
}

/// Waits until containerd has told the end of a container, and returns its exit code. CRI does not
/// tell that of a sandbox, nor of a container that is removed.
pub async fn exit_code(id: &str) -> Result<i64> {
    until("its end is told", async || {
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
    .await
}

async fn answers() -> bool {
    is_ready(SOCKET).await
}

/// Whether the daemon behind `socket` answers, and is ready for pods.
pub async fn is_ready(socket: &str) -> bool {
    let info = crictl(["--runtime-endpoint", socket, "info", "--output=json"]).await;
    let info: Option<Value> = info.ok().and_then(|info| serde_json::from_str(&info).ok());
    let conditions = info.as_ref().and_then(|info| info["status"]["conditions"].as_array());
    // A third one is about what will be removed in a later version.
    let is_ready =
        |it: &Value| it["status"] == true || it["type"] == "ContainerdHasNoDeprecationWarnings";
    conditions.is_some_and(|all| all.iter().all(is_ready))
}

/// Whether events are written. What happens before the subscription is not told: this lets something
/// happen.
fn listens() -> impl AsyncFnMut() -> bool {
    let length = || fs::metadata(EVENTS).map_or(0, |file| file.len());
    let before = length();
    async move || {
        let happened = ctr(["namespaces", "label", "k8s.io", "pause.engines=listens"]).await;
        happened.is_ok() && length() > before
    }
}

/// Runs containerd's own client, for the namespace of CRI.
pub async fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(Command::new(CTR[0]).args(&CTR[1..]).args(arguments)).await
}

/// Runs Kubernetes' client for CRI.
pub async fn crictl<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(Command::new(CRICTL).args(arguments)).await
}

/// What CRI shows of a sandbox (`inspectp`), a container (`inspect`) or an image (`inspecti`).
pub async fn inspect(verb: &str, name: &str) -> Result<Value> {
    let shown = crictl([verb, "--output=json", name]).await?;
    Ok(serde_json::from_str::<Value>(&shown)?["status"].take())
}

/// A file for crictl.
pub fn file(config: &Value) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in("/var/tmp")?;
    file.write_all(config.to_string().as_bytes())?;
    Ok(file)
}

/// The file in `deploy/` with `image` in the place of its example.
pub fn deployed(file: &str, image: &str) -> Result<String> {
    let path = project().join("deploy").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let example = format!("registry.example/infra/pause:{}", env!("CARGO_PKG_VERSION"));
    ensure!(text.contains(&example), "{} does not name {example}", path.display());
    Ok(text.replace(&example, image))
}

/// Installs the file in `deploy/` for containerd's `version`, and the network.
fn configure(version: &str, image: &str) -> Result<()> {
    // Sandboxes want to be the last to go when memory runs out, and that is a privilege.
    let restrict = match host::has_cap_sys_resource()? {
        true => "",
        false => "restrict_oom_score_adj = true\n",
    };
    let major = version.split('.').next().unwrap_or_default();
    let deployed = deployed(&format!("containerd-{major}.toml"), image)?;
    fs::create_dir_all("/etc/containerd/conf.d")?;
    fs::create_dir_all("/etc/cni/net.d")?;
    if major == "1" {
        // It ends in the table that the restriction belongs to.
        fs::write("/etc/containerd/config.toml", format!("{deployed}{restrict}"))?;
    } else {
        let table = "[plugins.'io.containerd.cri.v1.runtime']";
        let imports = "imports = ['/etc/containerd/conf.d/*.toml']";
        let config = format!("version = 3\n{imports}\n{table}\n{restrict}");
        fs::write("/etc/containerd/config.toml", config)?;
        fs::write("/etc/containerd/conf.d/20-pause.toml", deployed)?;
    }
    Ok(fs::write("/etc/cni/net.d/10-pods.conf", NETWORK)?)
}

/// The files in `deploy/` work where they say so, and the warnings in them are true: a drop-in that
/// does not fit makes containerd forget what config.toml sets.
async fn keeps_settings(version: &str) -> Result<()> {
    let cases: &[(u8, &str, bool)] = match version.split('.').collect::<Vec<_>>()[..] {
        ["1", ..] => &[(2, "containerd-1.toml", false)],
        ["2", "0" | "1" | "2", ..] => &[
            (2, "containerd-1.toml", true),
            (2, "containerd-2.toml", false),
            (3, "containerd-2.toml", true),
        ],
        _ => &[(2, "containerd-2.toml", true), (3, "containerd-2.toml", true)],
    };
    let image = "192.0.2.7/infra/pause:1";
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let config = folder.path().join("config.toml");
    let dump = async || {
        let mut dump = Command::new("containerd");
        success(dump.arg("--config").arg(&config).args(["config", "dump"])).await
    };
    let shows = async || Ok::<_, anyhow::Error>(dump().await?.contains(image));
    let keeps = async || Ok::<_, anyhow::Error>(dump().await?.contains("SystemdCgroup = true"));
    for (main, drop_in, is_kept) in cases {
        let plugin = if *main == 2 { "grpc.v1.cri" } else { "cri.v1.runtime" };
        let runc = format!("plugins.'io.containerd.{plugin}'.containerd.runtimes.runc");
        let settings = format!(
            "[{runc}]\nruntime_type = 'io.containerd.runc.v2'\n[{runc}.options]\nSystemdCgroup = true\n"
        );
        let drop_in_text = deployed(drop_in, image)?;
        fs::write(folder.path().join(drop_in), &drop_in_text)?;
        let imports = format!("imports = ['{}/{drop_in}']", folder.path().display());
        fs::write(&config, format!("version = {main}\n{imports}\n{settings}"))?;
        let case = format!("{drop_in} beside a configuration of version {main}");
        ensure!(shows().await?, "{case} is not read");
        same(&case, keeps().await?, *is_kept)?;
    }

    // The other way: the table is added to a configuration that does not have it, never to one that has.
    let major = version.split('.').next().unwrap_or_default();
    let added = deployed(&format!("containerd-{major}.toml"), image)?;
    let table = added.lines().skip_while(|line| !line.starts_with('[')).collect::<Vec<_>>();
    let table = table.join("\n");
    let number = if major == "1" { 2 } else { 3 };
    fs::write(&config, format!("version = {number}\n{table}\n"))?;
    ensure!(shows().await?, "the table is not read");
    let default = success(Command::new("containerd").args(["config", "default"])).await?;
    fs::write(&config, format!("{default}\n{table}\n"))?;
    ensure!(dump().await.is_err(), "containerd accepts the table twice");
    Ok(())
}
