//! containerd: its CRI plugin, driven over its socket as a kubelet does, with the configuration in
//! `deploy/` that people copy.

use crate::daemon::Daemon;
use crate::engine::{Column, Engine, Lacks, Name, Pod, Sandbox, Spec};
use crate::host::{self, same};
use crate::images::Image;
use crate::scenario::{Context, Scenario};
use crate::wait::{limit, script, success, until};
use anyhow::{Context as _, Result, ensure};
use harness::build::project;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    self as cri, Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, DnsConfig, ExecSyncRequest, IdMapping,
    ImageSpec, ImageStatusRequest, Int64Value, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, UserNamespace,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

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

/// containerd, its two services, and its events in a file.
pub struct Containerd {
    daemon: Daemon,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    events: Daemon,
    reference: String,
    /// Whether pods get user namespaces.
    remaps: bool,
}

impl Column for Containerd {
    async fn start(name: Name, image: &Image) -> Result<Self> {
        configure(&name.version().await?)?;
        script("mkdir -p /opt/cni && ln -sfn /usr/lib/cni /opt/cni/bin", &[]).await?;
        let channel = Endpoint::from_static(SOCKET).connect_lazy();
        let runtime = RuntimeServiceClient::new(channel.clone());
        Ok(Self {
            daemon: Daemon::start(&["containerd"], async || answers(&runtime).await).await?,
            events: Daemon::start(&[CTR, &["events"]].concat(), listens()).await?,
            runtime,
            images: ImageServiceClient::new(channel),
            reference: image.reference.clone(),
            remaps: false,
        })
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        scenario.test(Name::Containerd, self, context).await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = ctr(["containers", "list", "--quiet"]).await?;
        Ok(list.lines().map(|id| format!("container {id}")).collect())
    }

    async fn remove_all(&self) -> Result<()> {
        let list = ListPodSandboxRequest::default();
        for sandbox in self.runtime.clone().list_pod_sandbox(list).await?.into_inner().items {
            self.remove_pod(Pod { name: String::new(), pause: sandbox.id }).await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.events.stop().await?;
        self.daemon.stop().await
    }
}

impl Engine for Containerd {
    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.restart(async || answers(&self.runtime).await).await?;
        self.events.restart(listens()).await
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        // To where CRI looks for images.
        let said = ctr(["images", "import", &archive.to_string_lossy()]).await?;
        // CRI hears of it by an event.
        for name in said.split_whitespace().filter(|word| word.starts_with("localhost/")) {
            until(&format!("CRI shows {name}"), async || Ok(self.image(name).await?.map(drop)))
                .await?;
        }
        Ok(())
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let image = self.image(&tried.reference).await?.context("the image is not there")?;
        same("the names", image.repo_tags, vec![tried.reference.clone()])?;
        let (size, archive) = (image.size, fs::metadata(&tried.archive)?.len());
        ensure!(size < archive, "the image has {size} bytes, its archive {archive}");
        same("the user", image.uid.map(|uid| uid.value), Some(65535))
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let pid = match sandbox {
            Sandbox::Usual => NamespaceMode::Pod,
            Sandbox::HostPid => NamespaceMode::Node,
        };
        // It is the configuration that names the image.
        let config = Some(self.sandbox_config(name, pid));
        let request = RunPodSandboxRequest { config, ..Default::default() };
        let pause = self.runtime.clone().run_pod_sandbox(request).await?;
        Ok(Pod { name: name.to_owned(), pause: pause.into_inner().pod_sandbox_id })
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        if Name::Containerd.version().await?.starts_with("1.") {
            return Err(Lacks("containerd has user namespaces for pods since version 2").into());
        }
        self.remaps = on;
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: pod.pause.clone(), ..Default::default() };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner().status;
        Ok(status.context("no status")?.state() == PodSandboxState::SandboxReady)
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.pause.clone() };
        self.runtime.clone().stop_pod_sandbox(request).await?;
        Ok(())
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
        self.stop_pod(&pod).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.pause };
        self.runtime.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let pid = if spec.shares_pid { NamespaceMode::Pod } else { NamespaceMode::Container };
        let mut security_context = LinuxContainerSecurityContext {
            namespace_options: self.namespaces(pid),
            // The runtime's default.
            seccomp: Some(SecurityProfile::default()),
            run_as_user: spec.user.map(|user| Int64Value { value: user.into() }),
            readonly_rootfs: spec.hardened,
            no_new_privs: spec.hardened,
            ..Default::default()
        };
        let mut resources = LinuxContainerResources::default();
        if spec.hardened {
            let drop_capabilities = owned(&["ALL"]);
            security_context.capabilities =
                Some(Capability { drop_capabilities, ..Default::default() });
            let limit = Name::Containerd.facts().least_memory.map_err(Lacks)?;
            resources.memory_limit_in_bytes = limit as i64;
        }
        let mount = |(folder, place): (&Path, &str)| Mount {
            host_path: folder.display().to_string(),
            container_path: place.to_owned(),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: spec.image.to_owned(), ..Default::default() }),
            args: owned(spec.arguments),
            mounts: spec.volume.map(mount).into_iter().collect(),
            log_path: format!("{}-{name}", pod.name),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security_context),
            }),
            ..Default::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.pause.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(&pod.name, NamespaceMode::Pod)),
        };
        let mut runtime = self.runtime.clone();
        let container_id = runtime.create_container(create).await?.into_inner().container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        runtime.start_container(start).await?;
        Ok(container_id)
    }

    async fn pid(&self, container: &str) -> Result<i32> {
        process(container).context("it does not run")
    }

    async fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: owned(command),
            timeout: limit(60).as_secs() as i64,
        };
        let response = self.runtime.clone().exec_sync(request).await?.into_inner();
        ensure!(response.exit_code == 0, "{command:?}: {response:?}");
        Ok(String::from_utf8(response.stdout)?.trim_end().to_owned())
    }

    async fn log(&self, container: &str) -> Result<[String; 2]> {
        let mut log = [String::new(), String::new()];
        for line in fs::read_to_string(self.status(container).await?.log_path)?.lines() {
            // Time, stream, whether the line is whole; then what was written.
            let mut words = line.splitn(4, ' ').skip(1);
            let stream = words.next().context("a line of the log names no stream")?;
            let stream = usize::from(stream == "stderr");
            log[stream].extend([words.nth(1).unwrap_or_default(), "\n"]);
        }
        Ok(log)
    }

    async fn stop(&self, container: &str) -> Result<()> {
        let stop = StopContainerRequest { container_id: container.to_owned(), timeout: 10 };
        self.runtime.clone().stop_container(stop).await?;
        Ok(())
    }

    async fn exit_code(&self, container: &str) -> Result<i64> {
        until("the container has ended", async || match self.status(container).await {
            Ok(status) => {
                let ended = status.state() == ContainerState::ContainerExited;
                Ok(ended.then_some(status.exit_code.into()))
            }
            // A sandbox is no container to CRI.
            Err(_) => exit_code(container).await.map(Some),
        })
        .await
    }
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
            dns_config: Some(DnsConfig { servers: owned(&["192.0.2.1"]), ..Default::default() }),
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

    /// What CRI shows of a container.
    async fn status(&self, container: &str) -> Result<ContainerStatus> {
        let request =
            ContainerStatusRequest { container_id: container.to_owned(), ..Default::default() };
        let status = self.runtime.clone().container_status(request).await?.into_inner().status;
        status.context("no status")
    }

    /// What CRI shows of an image.
    async fn image(&self, name: &str) -> Result<Option<cri::Image>> {
        let spec = ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }
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

/// Whether the daemon does, and is ready for pods.
async fn answers(runtime: &RuntimeServiceClient<Channel>) -> bool {
    let status = runtime.clone().status(StatusRequest::default()).await;
    let conditions = status.ok().and_then(|status| status.into_inner().status);
    conditions.is_some_and(|status| status.conditions.iter().all(|one| one.status))
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

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Installs the file in `deploy/` for containerd's `version`, and the network.
fn configure(version: &str) -> Result<()> {
    // Sandboxes want to be the last to go when memory runs out, and that is a privilege.
    let restrict = match host::has_cap_sys_resource()? {
        true => "",
        false => "restrict_oom_score_adj = true\n",
    };
    let major = version.split('.').next().unwrap_or_default();
    let path = project().join(format!("deploy/containerd-{major}.toml"));
    let deployed = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    fs::create_dir_all("/etc/containerd/conf.d")?;
    fs::create_dir_all("/etc/cni/net.d")?;
    if major == "1" {
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
    Ok(fs::write("/etc/cni/net.d/10-pods.conf", NETWORK)?)
}
