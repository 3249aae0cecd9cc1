//! containerd: its CRI plugin, driven over its socket as a kubelet does, with the configuration in
//! `deploy/` that people copy.

use crate::daemon::Daemon;
use crate::engine::{Container, Engine, Lacks, Log, Name, Pod, Sandbox, Spec};
use crate::host::{self, same};
use crate::images::Image;
use crate::wait::{limit, script, success, until};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    ContainerStatusResponse, CreateContainerRequest, DnsConfig, ExecSyncRequest, IdMapping,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, UserNamespace,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

/// The name of the container that pause is. CRI knows a sandbox where other engines have a container.
const SANDBOX: &str = "sandbox";

const SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// Where the daemon's events are written, a line each.
const EVENTS: &str = "/var/log/containerd-events.log";

/// containerd, its two services, and its events in a file.
pub struct Containerd {
    daemon: Daemon,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    events: Child,
    reference: String,
    /// Whether pods get user namespaces.
    remaps: bool,
}

impl Engine for Containerd {
    const NAME: Name = Name::Containerd;

    const STOPS_BY_SIGTERM: bool = false;

    // Version 2.1 does, now and then.
    const MAY_FORGET: Option<&str> = Some("containerd-shim-runc-v2");

    async fn start(image: &Image) -> Result<Self> {
        configure(major().await?)?;
        script("mkdir -p /opt/cni && ln -sfn /usr/lib/cni /opt/cni/bin", &[]).await?;
        let channel = Endpoint::from_static(SOCKET).connect_lazy();
        let runtime = RuntimeServiceClient::new(channel.clone());
        let daemon = Daemon::start(&["containerd"], async || answers(&runtime).await).await?;
        Ok(Self {
            events: listen().await?,
            daemon,
            runtime,
            images: ImageServiceClient::new(channel),
            reference: image.reference.clone(),
            remaps: false,
        })
    }

    async fn version(&self) -> Result<String> {
        version().await
    }

    async fn remove_all(&self) -> Result<()> {
        let list = ListPodSandboxRequest::default();
        for sandbox in self.runtime.clone().list_pod_sandbox(list).await?.into_inner().items {
            self.remove_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.events.kill().await?;
        self.daemon.stop().await
    }

    async fn restart_daemon(&mut self) -> Result<()> {
        self.events.kill().await?;
        self.daemon.restart(async || answers(&self.runtime).await).await?;
        self.events = listen().await?;
        Ok(())
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let mut found = HashSet::new();
        for kind in ["tasks", "containers"] {
            let list = ctr([kind, "list", "--quiet"]).await?;
            found.extend(list.lines().map(|id| format!("one of {kind} {id}")));
        }
        Ok(found)
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        // To where CRI looks for images.
        let said = success(client().args(["images", "import"]).arg(archive)).await?;
        // CRI hears of it by an event.
        for name in said.split_whitespace().filter(|word| word.starts_with("localhost/")) {
            until(&format!("CRI shows {name}"), async || {
                Ok(self.image(name).await?.image.map(drop))
            })
            .await?;
        }
        Ok(())
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let response = self.image(&tried.reference).await?;
        let image = response.image.with_context(|| format!("no image {}", tried.reference))?;
        same("the names", image.repo_tags, vec![tried.reference.clone()])?;
        same("the size", image.size, blobs(&tried.archive)?)?;
        same("the user", image.uid.map(|uid| uid.value), Some(65535))?;
        let config = &details(&response.info)?["imageSpec"];
        same("the entrypoint", &config["config"]["Entrypoint"], &json!(["/pause"]))
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let pid = match sandbox {
            Sandbox::Usual | Sandbox::Remapped => NamespaceMode::Pod,
            Sandbox::HostPid => NamespaceMode::Node,
        };
        // It is the configuration that names the image.
        let config = Some(self.sandbox_config(name, pid));
        let request = RunPodSandboxRequest { config, ..Default::default() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let pause = Container { name: SANDBOX.to_owned(), id: id.clone() };
        Ok(Pod { name: name.to_owned(), id, pause })
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        if major().await? == 1 {
            return Err(Lacks("containerd has user namespaces for pods since version 2").into());
        }
        self.remaps = on;
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        let status = self.status(pod).await?.status.context("no status")?;
        Ok(status.state() == PodSandboxState::SandboxReady)
    }

    async fn address(&self, pod: &Pod) -> Result<Option<String>> {
        let network = self.status(pod).await?.status.and_then(|status| status.network);
        let address = network.map(|network| network.ip).filter(|address| !address.is_empty());
        address.context("the pod has no address").map(Some)
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.stop_sandbox(&pod.id).await
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        ctr(["tasks", "kill", "--signal", signal.as_str(), &pod.id]).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        let reference = &self.reference;
        Ok(format!("ctr --namespace k8s.io run --rm --tty {reference} terminal"))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        // As a kubelet does it: another sandbox takes its place.
        let name = pod.name.clone();
        self.remove_pod(pod).await?;
        self.start_pod(&name, Sandbox::Usual).await
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.remove_sandbox(&pod.id).await
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let pid = if spec.shares_pid { NamespaceMode::Pod } else { NamespaceMode::Container };
        let image = ImageSpec { image: spec.image.to_owned(), ..Default::default() };
        let mut security_context = LinuxContainerSecurityContext {
            namespace_options: self.namespaces(pid),
            seccomp: Some(SecurityProfile::default()),
            run_as_user: spec.user.map(|user| Int64Value { value: user.into() }),
            ..Default::default()
        };
        let mut resources = LinuxContainerResources::default();
        if spec.hardened {
            security_context.readonly_rootfs = true;
            security_context.no_new_privs = true;
            let all = vec!["ALL".to_owned()];
            security_context.capabilities =
                Some(Capability { drop_capabilities: all, ..Default::default() });
            resources.memory_limit_in_bytes = Self::LEAST_MEMORY as i64;
        }
        let mount = |(folder, place): (&Path, &str)| Mount {
            host_path: folder.display().to_string(),
            container_path: place.to_owned(),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image),
            args: spec.arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            mounts: spec.volume.map(mount).into_iter().collect(),
            log_path: format!("{}-{name}", pod.name),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security_context),
            }),
            ..Default::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(&pod.name, NamespaceMode::Pod)),
        };
        let mut runtime = self.runtime.clone();
        let container_id = runtime.create_container(create).await?.into_inner().container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        runtime.start_container(start).await?;
        Ok(Container { name: name.to_owned(), id: container_id })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        let details = if container.name == SANDBOX {
            let request =
                PodSandboxStatusRequest { pod_sandbox_id: container.id.clone(), verbose: true };
            let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
            let details = details(&status.info)?;
            same("the sandbox's image", &details["image"], &json!(self.reference))?;
            details
        } else {
            details(&self.container(container).await?.info)?
        };
        let pid = details["pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.context("it does not run")? as i32)
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: limit(60).as_secs() as i64,
        };
        let response = self.runtime.clone().exec_sync(request).await?.into_inner();
        let said = String::from_utf8_lossy(&response.stderr);
        ensure!(response.exit_code == 0, "{command:?}: exit code {}\n{said}", response.exit_code);
        Ok(String::from_utf8(response.stdout)?.trim_end().to_owned())
    }

    async fn log(&self, container: &Container) -> Result<Option<Log>> {
        if container.name == SANDBOX {
            return Ok(None);
        }
        let status = self.container(container).await?.status.context("no status")?;
        let mut log = Log::default();
        for line in fs::read_to_string(status.log_path)?.lines() {
            // Time, stream, whether the line is whole; then what was written.
            let mut words = line.splitn(4, ' ').skip(1);
            let stream = words.next().context("a line of the log names no stream")?;
            let text = words.nth(1).unwrap_or_default().to_owned();
            if stream == "stdout" { &mut log.stdout } else { &mut log.stderr }.push(text);
        }
        Ok(Some(log))
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        let stop = StopContainerRequest { container_id: container.id.clone(), timeout: 10 };
        self.runtime.clone().stop_container(stop).await?;
        Ok(())
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        if container.name == SANDBOX {
            return exit_code(&container.id).await;
        }
        until("the container has ended", async || {
            let status = self.container(container).await?.status.context("no status")?;
            let ended = status.state() == ContainerState::ContainerExited;
            Ok(ended.then_some(status.exit_code.into()))
        })
        .await
    }

    async fn remove(&self, container: Container) -> Result<()> {
        let request = RemoveContainerRequest { container_id: container.id };
        self.runtime.clone().remove_container(request).await?;
        Ok(())
    }
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

/// Whether the daemon does, and is ready for pods.
async fn answers(runtime: &RuntimeServiceClient<Channel>) -> bool {
    let status = runtime.clone().status(StatusRequest::default()).await;
    let conditions = status.ok().and_then(|status| status.into_inner().status);
    conditions.is_some_and(|status| status.conditions.iter().all(|one| one.status))
}

/// containerd's own client.
fn client() -> Command {
    let mut client = Command::new("ctr");
    client.args(["--namespace", "k8s.io"]);
    client
}

/// Runs containerd's own client, for the namespace of CRI.
pub async fn ctr<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(client().args(arguments)).await
}

/// Has the daemon's events written from now on.
async fn listen() -> Result<Child> {
    let file = File::options().create(true).append(true).open(EVENTS)?;
    let before = file.metadata()?.len();
    let mut listener = client();
    listener.arg("events").kill_on_drop(true).stdin(Stdio::null()).stdout(file);
    let listener = listener.spawn()?;
    // What happens before the subscription is not told: let something happen until it is.
    until("events come", async || {
        ctr(["namespaces", "label", "k8s.io", "pause.engines=listens"]).await?;
        Ok((fs::metadata(EVENTS)?.len() > before).then_some(()))
    })
    .await?;
    Ok(listener)
}

async fn version() -> Result<String> {
    let line = success(Command::new("containerd").arg("--version")).await?;
    let number = line.split_whitespace().nth(2).map(|number| number.trim_start_matches('v'));
    let number = number.and_then(|number| number.split(['+', '~']).next());
    Ok(number.with_context(|| format!("no version in {line:?}"))?.to_owned())
}

async fn major() -> Result<u32> {
    let version = version().await?;
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    major.with_context(|| format!("{version:?} is no version"))
}

/// Installs the file in `deploy/` for containerd's version `major`, and a network between the pods
/// and their host.
fn configure(major: u32) -> Result<()> {
    // Sandboxes want to be the last to go when memory runs out, and that is a privilege.
    let restrict = match host::has_cap_sys_resource()? {
        true => "",
        false => "restrict_oom_score_adj = true\n",
    };
    let path = project().join(format!("deploy/containerd-{major}.toml"));
    let deployed = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    fs::create_dir_all("/etc/containerd/conf.d")?;
    fs::create_dir_all("/etc/cni/net.d")?;
    if major == 1 {
        // Version 1 does not merge the settings of a plugin, so this is all of its configuration,
        // and ends in the table that the restriction belongs to.
        fs::write("/etc/containerd/config.toml", format!("{deployed}{restrict}"))?;
    } else {
        let table = "[plugins.'io.containerd.cri.v1.runtime']";
        let imports = "imports = ['/etc/containerd/conf.d/*.toml']";
        let config = format!("version = 3\n{imports}\n{table}\n{restrict}");
        fs::write("/etc/containerd/config.toml", config)?;
        fs::write("/etc/containerd/conf.d/pause.toml", deployed)?;
    }
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            // Unlike a bridge, it leaves nothing when the last pod goes.
            "type": "ptp",
            "ipMasq": false,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.87.0.0/16" }]] },
        }],
    });
    Ok(fs::write("/etc/cni/net.d/10-pods.conflist", network.to_string())?)
}

/// The bytes of everything in an archive that a registry would hold.
fn blobs(archive: &Path) -> Result<u64> {
    let mut archive = tar::Archive::new(File::open(archive)?);
    let mut sum = 0;
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.path()?.starts_with("blobs") {
            sum += entry.size();
        }
    }
    Ok(sum)
}

impl Containerd {
    /// How a kubelet asks for the namespaces of a pod, and with `pid` set to the pod for
    /// `shareProcessNamespace`.
    fn namespaces(&self, pid: NamespaceMode) -> Option<NamespaceOption> {
        let pod = NamespaceMode::Pod.into();
        let range = vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
        let users = UserNamespace { mode: pod, uids: range.clone(), gids: range };
        Some(NamespaceOption {
            network: pod,
            ipc: pod,
            pid: pid.into(),
            userns_options: self.remaps.then_some(users),
            ..Default::default()
        })
    }

    /// The pod `name`, as a kubelet describes it.
    fn sandbox_config(&self, name: &str, pid: NamespaceMode) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: "/var/log/pods".to_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.1".to_owned()],
                ..Default::default()
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/pods".to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: self.namespaces(pid),
                    // The runtime's default.
                    seccomp: Some(SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// What containerd tells of an image.
    async fn image(&self, name: &str) -> Result<ImageStatusResponse> {
        let spec = ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: true };
        Ok(self.images.clone().image_status(request).await?.into_inner())
    }

    /// Stops a sandbox, and the containers in it.
    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await?;
        Ok(())
    }

    /// Stops and removes a sandbox, and the containers in it.
    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// What containerd tells of a pod.
    async fn status(&self, pod: &Pod) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        Ok(self.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    /// What containerd tells of a container.
    async fn container(&self, container: &Container) -> Result<ContainerStatusResponse> {
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
        Ok(self.runtime.clone().container_status(request).await?.into_inner())
    }
}

/// What containerd adds to its answers when asked for details.
fn details(info: &HashMap<String, String>) -> Result<Value> {
    Ok(serde_json::from_str(info.get("info").context("containerd gives no details")?)?)
}
