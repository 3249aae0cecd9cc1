//! containerd: its CRI plugin, driven over its socket as a kubelet does, with the configuration in
//! `deploy/` that people copy.

use crate::busybox;
use crate::daemon::{self, Daemon, Folder};
use crate::host::{self, same};
use crate::pod;
use crate::scenario::{Engine, Scenario, Scene, Skip};
use crate::stage::Stage;
use crate::wait::{success, until};
use anyhow::{Context, Result, ensure};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, DnsConfig, ExecSyncRequest, ImageSpec, ImageStatusRequest,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile,
    StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::artifact::project;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use toml_edit::DocumentMut;
use tonic::transport::{Channel, Endpoint};

/// The namespaces that the containers of a pod share with its sandbox, where
/// `shareProcessNamespace` is on.
const SHARED: [&str; 4] = ["net", "ipc", "uts", "pid"];

/// Where CNI's plugins are, by its convention and where Debian and Fedora put them.
const CNI: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// The plugin of containerd 1 that does everything of CRI's.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// The part of it that runs pods, in containerd 2.
const CRI_PODS: &str = "io.containerd.cri.v1.runtime";

/// containerd and what it is tried with.
pub struct Containerd {
    daemon: Daemon,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    image: PathBuf,
    reference: String,
    binary: Vec<u8>,
}

impl Engine for Containerd {
    const NAME: support::engine::Engine = support::engine::Engine::Containerd;

    const SCENES: &[(Scenario, Scene<Self>)] = &[
        (Scenario::Load, |containerd| Box::pin(containerd.load())),
        (Scenario::Stop, |containerd| Box::pin(containerd.stop())),
        (Scenario::Pod, |containerd| Box::pin(containerd.pod())),
        (Scenario::Replace, |containerd| Box::pin(containerd.replace())),
    ];

    async fn start(stage: &Stage) -> Result<Self> {
        daemon::require(&["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"])?;
        let folder = Folder::new(Self::NAME)?;
        let config = folder.join("config.toml");
        fs::write(&config, configuration(&folder).await?)?;
        let channel = Endpoint::from_shared(format!("unix://{}", socket(&folder).display()))?;
        let channel = channel.connect_lazy();
        let runtime = RuntimeServiceClient::new(channel.clone());

        let arguments = ["--config", config.to_str().context("the path is not UTF-8")?];
        let daemon = Daemon::start("containerd", folder, &arguments, async |_| {
            let status = runtime.clone().status(StatusRequest::default()).await;
            let conditions = status.ok().and_then(|status| status.into_inner().status);
            conditions.is_some_and(|status| status.conditions.iter().all(|one| one.status))
        });
        let containerd = Self {
            daemon: daemon.await?,
            runtime,
            images: ImageServiceClient::new(channel),
            image: stage.image.clone(),
            reference: stage.reference.clone(),
            binary: stage.binary.clone(),
        };
        let busybox = containerd.daemon.folder().join("busybox.tar");
        busybox::write(&busybox)?;
        containerd.import(&busybox).await?;
        Ok(containerd)
    }

    async fn teardown(self) -> Result<()> {
        let list = ListPodSandboxRequest::default();
        for sandbox in self.runtime.clone().list_pod_sandbox(list).await?.into_inner().items {
            self.remove(&sandbox.id).await?;
        }
        self.daemon.stop().await
    }
}

/// The socket of the daemon in `folder`.
fn socket(folder: &Folder) -> PathBuf {
    folder.join("socket")
}

/// The file in `deploy/` for the containerd that is installed, changed for `folder`.
async fn configuration(folder: &Folder) -> Result<String> {
    let version = success(Command::new("containerd").arg("--version")).await?;
    let number = version.split_whitespace().nth(2).map(|number| number.trim_start_matches('v'));
    let major = number.and_then(|number| number.split('.').next()?.parse().ok());
    let mut config = deployed(major.with_context(|| format!("no version in {version:?}"))?)?;

    let complete = |folder: &&&str| {
        ["ptp", "host-local", "loopback"]
            .iter()
            .all(|plugin| Path::new(folder).join(plugin).exists())
    };
    let reason = || Skip(format!("CNI's plugins are in none of {}", CNI.join(", ")));
    let plugins = CNI.iter().find(complete).ok_or_else(reason)?;
    let networks = folder.join("networks");
    fs::create_dir(&networks)?;
    fs::write(networks.join("10-pause.conflist"), network(folder).to_string())?;

    let path = |name| folder.join(name).display().to_string();
    config["root"] = path("root").into();
    config["state"] = path("state").into();
    config["grpc"]["address"] = socket(folder).display().to_string().into();
    let pods = if major == Some(1) { CRI } else { CRI_PODS };
    let pods = &mut config["plugins"][pods];
    pods["cni"]["bin_dir"] = (*plugins).into();
    pods["cni"]["conf_dir"] = path("networks").into();
    // Sandboxes want to be the last to go when memory runs out, and that is a privilege.
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    if Process::myself()?.status()?.capeff & CAP_SYS_RESOURCE == 0 {
        pods["restrict_oom_score_adj"] = true.into();
    }
    Ok(config.to_string())
}

/// The file in `deploy/` for containerd's version `major`.
fn deployed(major: u32) -> Result<DocumentMut> {
    let path = project().join(format!("deploy/containerd-{major}.toml"));
    let shown = path.display();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
    text.parse().with_context(|| format!("cannot read {shown}"))
}

/// A network between the pods and their host, who are in a network namespace of their own.
fn network(folder: &Folder) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pause",
        "plugins": [{
            // Unlike a bridge, it leaves nothing when the last pod goes.
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("addresses"),
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
            },
        }],
    })
}

/// How a kubelet asks for the namespaces of a pod, and with `pid` set to the pod for
/// `shareProcessNamespace`.
fn namespaces(pid: NamespaceMode) -> Option<NamespaceOption> {
    let pod = NamespaceMode::Pod.into();
    Some(NamespaceOption { network: pod, ipc: pod, pid: pid.into(), ..Default::default() })
}

impl Containerd {
    async fn load(&self) -> Result<()> {
        self.import(&self.image).await?;

        let spec = ImageSpec { image: self.reference.clone(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: true };
        let response = self.images.clone().image_status(request).await?.into_inner();
        let image = response.image.with_context(|| format!("no image {}", self.reference))?;
        same("the names", image.repo_tags, vec![self.reference.clone()])?;
        same("the size", image.size, self.blobs()?)?;
        same("the user", image.uid.map(|uid| uid.value), Some(65535))?;
        let config = &details(&response.info)?["imageSpec"];
        same("the entrypoint", &config["config"]["Entrypoint"], &json!(["/pause"]))
    }

    async fn stop(&self) -> Result<()> {
        let before = self.daemon.surroundings()?;
        let mut events = Events::open(self).await?;

        // containerd's own way. It sends SIGKILL, whatever the image, so 137 is no fault of ours.
        let sandbox = self.run_pod("killed").await?;
        self.runtime
            .clone()
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() })
            .await?;
        let killed = events.exit_code(&sandbox).await?;
        ensure!([0, 137].contains(&killed), "the exit code is {killed}");
        self.is_not_ready(&sandbox).await?;
        self.remove(&sandbox).await?;

        // The others' way.
        for (signal, code) in [(Signal::SIGTERM, 0), (Signal::SIGKILL, 137)] {
            let sandbox = self.run_pod("signalled").await?;
            self.ctr(["tasks", "kill", "--signal", signal.as_str(), &sandbox]).await?;
            let seen = events.exit_code(&sandbox).await?;
            same(&format!("the exit code after {signal}"), seen, code)?;
            self.is_not_ready(&sandbox).await?;
            self.remove(&sandbox).await?;
        }

        drop(events);
        same(
            "the tasks that are left",
            self.ctr(["tasks", "list", "--quiet"]).await?,
            String::new(),
        )?;
        same(
            "the containers that are left",
            self.ctr(["containers", "list", "--quiet"]).await?,
            String::new(),
        )?;
        self.daemon.nothing_but(&before).await
    }

    async fn pod(&self) -> Result<()> {
        let sandbox = self.run_pod("pod").await?;
        let pause = self.asleep(&sandbox).await?;
        let beside = self.run(&sandbox, "pod", 0, NamespaceMode::Pod).await?;

        let shared = host::namespaces(&pause, &SHARED)?;
        same("the namespaces", self.container_namespaces(&beside).await?, shared.clone())?;
        let own = host::namespaces(&Process::myself()?, &SHARED)?;
        ensure!(shared.iter().all(|namespace| !own.contains(namespace)), "they are the host's");

        pod::init(async |script| self.shell(&beside, script).await).await?;
        pod::reaps(&pause, async |script| self.shell(&beside, script).await).await?;

        let careless = self.run(&sandbox, "pod", 0, NamespaceMode::Container).await?;
        pod::does_not_reap(async |script| self.shell(&careless, script).await).await?;
        self.remove(&sandbox).await
    }

    async fn replace(&self) -> Result<()> {
        let sandbox = self.run_pod("replace").await?;
        let pause = self.asleep(&sandbox).await?;
        let shared = host::namespaces(&pause, &SHARED)?;
        let address = self.address(&sandbox).await?;

        let first = self.run(&sandbox, "replace", 0, NamespaceMode::Pod).await?;
        kill(Pid::from_raw(self.pid(&first).await?), Signal::SIGKILL)?;
        until("the container is gone", async || {
            let (state, _) = self.container(&first).await?;
            Ok((state == ContainerState::ContainerExited).then_some(()))
        })
        .await?;

        let second = self.run(&sandbox, "replace", 1, NamespaceMode::Pod).await?;
        same("the namespaces", self.container_namespaces(&second).await?, shared)?;
        same("the pod's address", self.address(&sandbox).await?, address.clone())?;
        let seen = self.shell(&second, "ip -4 -o address show dev eth0").await?;
        ensure!(seen.contains(&format!(" {address}/")), "the container does not have it: {seen}");
        let again = self.asleep(&sandbox).await?;
        same("the sandbox's process", again.stat()?.starttime, pause.stat()?.starttime)?;
        self.remove(&sandbox).await
    }

    /// The bytes of everything in the archive that a registry would hold.
    fn blobs(&self) -> Result<u64> {
        let mut archive = tar::Archive::new(fs::File::open(&self.image)?);
        let mut sum = 0;
        for entry in archive.entries()? {
            let entry = entry?;
            if entry.path()?.starts_with("blobs") {
                sum += entry.size();
            }
        }
        Ok(sum)
    }

    /// The pod `name`, as a kubelet describes it.
    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.daemon.folder().join("logs").display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.1".to_owned()],
                ..Default::default()
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.daemon.folder().cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(NamespaceMode::Pod),
                    // The runtime's default.
                    seccomp: Some(SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Starts the sandbox of the pod `name`, whatever image the configuration names for it, and
    /// returns its ID.
    async fn run_pod(&self, name: &str) -> Result<String> {
        let request =
            RunPodSandboxRequest { config: Some(self.sandbox_config(name)), ..Default::default() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Stops and removes a pod.
    async fn remove(&self, sandbox: &str) -> Result<()> {
        let pod_sandbox_id = sandbox.to_owned();
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.clone().stop_pod_sandbox(stop).await?;
        self.runtime.clone().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }

    /// Starts a container of busybox in the pod `pod`, and returns its ID. `pid` says whose PID 1 it
    /// sees, the pod's or itself.
    async fn run(
        &self,
        sandbox: &str,
        pod: &str,
        attempt: u32,
        pid: NamespaceMode,
    ) -> Result<String> {
        let image = ImageSpec { image: busybox::REFERENCE.to_owned(), ..Default::default() };
        let security_context = LinuxContainerSecurityContext {
            namespace_options: namespaces(pid),
            seccomp: Some(SecurityProfile::default()),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: format!("{pid:?}"), attempt }),
            image: Some(image),
            command: ["sleep", "infinity"].map(str::to_owned).into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(security_context),
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(pod)),
        };
        let mut runtime = self.runtime.clone();
        let container_id = runtime.create_container(create).await?.into_inner().container_id;
        runtime
            .start_container(StartContainerRequest { container_id: container_id.clone() })
            .await?;
        Ok(container_id)
    }

    /// Runs a script in a container.
    async fn shell(&self, container: &str, script: &str) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).into(),
            timeout: 60,
        };
        let response = self.runtime.clone().exec_sync(request).await?.into_inner();
        let said = String::from_utf8_lossy(&response.stderr);
        ensure!(response.exit_code == 0, "{script:?}: exit code {}\n{said}", response.exit_code);
        Ok(String::from_utf8(response.stdout)?.trim_end().to_owned())
    }

    /// What containerd tells of a pod.
    async fn status(&self, sandbox: &str) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: true };
        Ok(self.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    /// Waits until the sandbox's process sleeps; it has to be ours.
    async fn asleep(&self, sandbox: &str) -> Result<Process> {
        let details = details(&self.status(sandbox).await?.info)?;
        same("the sandbox's image", &details["image"], &json!(self.reference))?;
        host::asleep(pid(&details)?, &self.binary).await
    }

    /// Waits until containerd takes note that the sandbox's process has ended.
    async fn is_not_ready(&self, sandbox: &str) -> Result<()> {
        until("the pod is not ready any more", async || {
            let state = self.status(sandbox).await?.status.context("no status")?.state();
            Ok((state == PodSandboxState::SandboxNotready).then_some(()))
        })
        .await
    }

    /// The address of a pod.
    async fn address(&self, sandbox: &str) -> Result<String> {
        let network = self.status(sandbox).await?.status.and_then(|status| status.network);
        let address = network.map(|network| network.ip).filter(|address| !address.is_empty());
        address.context("the pod has no address")
    }

    /// State and details of a container.
    async fn container(&self, id: &str) -> Result<(ContainerState, Value)> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let response = self.runtime.clone().container_status(request).await?.into_inner();
        Ok((response.status.context("no status")?.state(), details(&response.info)?))
    }

    /// The process of a container, as the host numbers it.
    async fn pid(&self, container: &str) -> Result<i32> {
        pid(&self.container(container).await?.1)
    }

    /// The namespaces that a container is in.
    async fn container_namespaces(&self, container: &str) -> Result<Vec<u64>> {
        host::namespaces(&Process::new(self.pid(container).await?)?, &SHARED)
    }

    /// Imports an archive to where CRI looks for images.
    async fn import(&self, archive: &Path) -> Result<String> {
        success(self.client().args(["images", "import"]).arg(archive)).await
    }

    /// Runs containerd's own client.
    async fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client().args(arguments)).await
    }

    fn client(&self) -> Command {
        let mut client = Command::new("ctr");
        client.arg("--address").arg(socket(self.daemon.folder())).args(["--namespace", "k8s.io"]);
        client
    }
}

/// What containerd adds to its answers when asked for details.
fn details(info: &HashMap<String, String>) -> Result<Value> {
    Ok(serde_json::from_str(info.get("info").context("containerd gives no details")?)?)
}

/// The process that such details are about.
fn pid(details: &Value) -> Result<i32> {
    let pid = details["pid"].as_i64().filter(|pid| *pid > 0);
    Ok(pid.context("it does not run")? as i32)
}

/// containerd's events, from a moment on.
struct Events {
    lines: Lines<BufReader<ChildStdout>>,
    _client: Child,
}

impl Events {
    /// Subscribes, and returns when events do come.
    async fn open(containerd: &Containerd) -> Result<Self> {
        let mut client = containerd.client();
        client.arg("events").kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut client = client.spawn()?;
        let lines = BufReader::new(client.stdout.take().context("stdout is piped")?).lines();
        let mut events = Self { lines, _client: client };
        // Whatever happens before the subscription is not told: make things happen until one is.
        let heard = until("events come", async || {
            let label = ["images", "label", busybox::REFERENCE, "pause.engines=listens"];
            containerd.ctr(label).await?;
            let moment = std::time::Duration::from_millis(100);
            Ok(tokio::time::timeout(moment, events.lines.next_line()).await.ok())
        });
        heard.await??;
        Ok(events)
    }

    /// Waits until the process of a container ends, and returns what it ended with.
    async fn exit_code(&mut self, container: &str) -> Result<u64> {
        let id = container.to_owned();
        until("its end is told", async || {
            let line = self.lines.next_line().await?.context("the events end")?;
            // Time, namespace, topic, then the event, in which a zero is left out.
            let Some((_, event)) = line.split_once(" /tasks/exit ") else { return Ok(None) };
            let event: Value = serde_json::from_str(event)?;
            let code = event["exit_status"].as_u64().unwrap_or(0);
            Ok((event["id"] == *id).then_some(code))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::{CRI, deployed};

    /// Only one of the files is run on a machine.
    #[test]
    fn deployed_files_name_this_version() {
        let image = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
        let one = deployed(1).unwrap();
        assert_eq!(one["plugins"][CRI]["sandbox_image"].as_str(), Some(image));
        let two = deployed(2).unwrap();
        let pinned = &two["plugins"]["io.containerd.cri.v1.images"]["pinned_images"];
        assert_eq!(pinned["sandbox"].as_str(), Some(image));
    }
}
