//! Docker: dockerd with everything of its own, driven by the command line that people use.

use crate::daemon::{self, Daemon, Folder};
use crate::engine::{Container, Engine, Log, Pod, Sandbox, Spec};
use crate::host::same;
use crate::stage::Stage;
use crate::toolchain;
use crate::wait::{end, success};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// How containers are started: from what is there, and left running.
const RUN: [&str; 3] = ["run", "--detach", "--pull=never"];

/// A user and a group that every machine has: the IDs that are theirs stand for those in containers.
const REMAPPED: &str = "daemon";

/// The label of a container that says which pod it is in.
const POD: &str = "pod";

/// Docker, and the image that its pods are made of.
pub struct Docker {
    daemon: Daemon,
    reference: String,
    /// Whether the daemon gives containers other users than the host's.
    remaps: bool,
}

impl Engine for Docker {
    const NAME: crate::kind::Engine = crate::kind::Engine::Docker;

    // A container joins another one's, but has its own UTS namespace, with the same name in it.
    const SHARED: &[&str] = &["net", "ipc"];

    async fn start(stage: &Stage) -> Result<Self> {
        daemon::require(&["docker", "dockerd", "containerd", "runc", "iptables"])?;
        let folder = Folder::new(Self::NAME)?;
        let path = configure(&folder, false)?;
        let arguments = ["--config-file", path.to_str().context("the path is not UTF-8")?];
        let daemon = Daemon::start("dockerd", folder, &arguments, answers);
        Ok(Self { daemon: daemon.await?, reference: stage.reference.clone(), remaps: false })
    }

    async fn version(&self) -> Result<String> {
        self.docker(["version", "--format", "{{.Server.Version}}"]).await
    }

    async fn teardown(mut self) -> Result<()> {
        self.remove_all().await?;
        // If that was interrupted.
        if self.remaps {
            self.remap(false).await?;
            self.remove_all().await?;
        }
        self.daemon.stop().await
    }

    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.restart(answers).await
    }

    async fn surroundings(&self) -> Result<HashSet<String>> {
        let mut found = self.daemon.surroundings()?;
        for list in [&["ps", "--all"][..], &["volume", "ls"]] {
            let list = self.docker(list.iter().copied().chain(["--quiet"])).await?;
            found.extend(list.lines().map(|id| format!("container or volume {id}")));
        }
        Ok(found)
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        success(self.client().args(["load", "--quiet", "--input"]).arg(archive)).await.map(drop)
    }

    async fn shows(&self, stage: &Stage) -> Result<()> {
        let shown = self.docker(["images", "--format", "{{.Size}}", &stage.reference]).await?;
        ensure!(
            matches!(shown.strip_suffix("kB").map(str::parse::<f64>), Some(Ok(size)) if size <= 1.5),
            "docker images shows {shown}, where at most 1.5kB was expected"
        );
        let image = self.inspect(&stage.reference).await?;
        same("the size", image["Size"].as_u64(), Some(stage.binary.len() as u64))?;
        same("the command", &image["Config"]["Cmd"], &Value::Null)?;
        same("the system", &image["Os"], &json!("linux"))?;
        let machine = self.docker(["version", "--format", "{{.Server.Arch}}"]).await?;
        same("the architecture", &image["Architecture"], &json!(machine))?;
        runs_pause(&image)
    }

    async fn build(&self) -> Result<Vec<u8>> {
        let folder = self.daemon.folder();
        let toolchain = toolchain::pack(&folder.join("toolchain.tar")).await?;
        let import = toolchain.changes.iter().flat_map(|change| ["--change", change]);
        let import = ["import"].into_iter().chain(import);
        let mut client = self.client();
        success(client.args(import).arg(&toolchain.archive).arg("localhost/toolchain")).await?;

        let mut client = self.client();
        client.env("DOCKER_BUILDKIT", "0").arg("build").arg(project());
        client.args(["--build-arg", "RUST_IMAGE=localhost/toolchain", "--tag", "localhost/built"]);
        success(&mut client).await?;

        runs_pause(&self.inspect("localhost/built").await?)?;
        self.docker(["create", "--name", "built", "localhost/built"]).await?;
        let built = folder.join("built");
        success(self.client().args(["cp", "built:/pause"]).arg(&built)).await?;
        self.docker(["rm", "built"]).await?;
        Ok(fs::read(built)?)
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let options: &[&str] = match sandbox {
            // It is the daemon that remaps users, for all containers.
            Sandbox::Usual | Sandbox::Remapped => &["--ipc=shareable"],
            Sandbox::HostPid => &["--ipc=shareable", "--pid=host"],
        };
        let mut client = self.client();
        client.args(RUN).args(["--name", name]).args(options).arg(&self.reference);
        Ok(Pod { name: name.to_owned(), id: success(&mut client).await? })
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        let folder = self.daemon.folder();
        // The daemon's /etc is its own.
        let range = format!("{REMAPPED}:100000:65536");
        let write = format!("echo {range} > /etc/subuid; echo {range} > /etc/subgid");
        success(self.daemon.within("sh")?.args(["-c", &write])).await?;
        // The users of containers have to get through to their files.
        fs::set_permissions(folder.join(""), Permissions::from_mode(0o711))?;
        configure(folder, on)?;
        self.remaps = on;
        self.restart_daemon().await
    }

    async fn pause(&self, pod: &Pod) -> Result<i32> {
        self.process(&pod.id).await
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(self.inspect(&pod.id).await?["State"]["Running"] == true)
    }

    async fn pod_log(&self, pod: &Pod) -> Result<Option<Log>> {
        self.logs(&pod.id).await.map(Some)
    }

    async fn address(&self, pod: &Pod) -> Result<String> {
        let network = &self.inspect(&pod.id).await?["NetworkSettings"];
        let address = network["IPAddress"].as_str().filter(|address| !address.is_empty());
        Ok(address.context("the pod has no address")?.to_owned())
    }

    fn on_host(&self, program: &str) -> Result<Command> {
        self.daemon.within(program)
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.docker(["stop", &pod.id]).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        self.docker(["kill", "--signal", signal.as_str(), &pod.id]).await.map(drop)
    }

    async fn pod_exit_code(&self, pod: &Pod) -> Result<i64> {
        self.wait(&pod.id).await
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.docker(["start", &pod.id]).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        let label = format!("label={POD}={}", pod.id);
        let inside = self.docker(["ps", "--all", "--quiet", "--filter", &label]).await?;
        let remove = ["rm", "--force", "--volumes"].into_iter();
        self.docker(remove.chain(inside.lines()).chain([pod.id.as_str()])).await.map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let sandbox = format!("container:{}", pod.id);
        let mut client = self.client();
        client.args(RUN).args(["--name", &format!("{}-{name}", pod.name)]);
        client.args(["--label", &format!("{POD}={}", pod.id)]);
        client.args(["--network", &sandbox, "--ipc", &sandbox]);
        if spec.shares_pid {
            client.args(["--pid", &sandbox]);
        }
        if let Some((folder, place)) = spec.volume {
            client.arg("--volume").arg(format!("{}:{place}", folder.display()));
        }
        if spec.hardened {
            let memory = Self::LEAST_MEMORY.to_string();
            client.args(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
            client.args(["--pids-limit=1", "--memory", &memory, "--memory-swap", &memory]);
        }
        client.arg(spec.image).args(spec.arguments);
        Ok(Container { name: name.to_owned(), id: success(&mut client).await? })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        self.process(&container.id).await
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        self.docker(["exec", &container.id].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &Container) -> Result<Log> {
        self.logs(&container.id).await
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        self.docker(["stop", &container.id]).await.map(drop)
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        self.wait(&container.id).await
    }

    async fn remove(&self, container: Container) -> Result<()> {
        self.docker(["rm", "--force", "--volumes", &container.id]).await.map(drop)
    }

    async fn restart(&self, _: &Pod, container: Container, _: Spec<'_>) -> Result<Container> {
        self.docker(["start", &container.id]).await?;
        Ok(container)
    }
}

/// Writes the daemon's configuration, and returns its path.
fn configure(folder: &Folder, remaps: bool) -> Result<PathBuf> {
    let mut settings = json!({
        "data-root": folder.join("data"),
        "exec-root": folder.join("exec"),
        "pidfile": folder.join("pid"),
        "hosts": [host(folder)],
        "cgroup-parent": folder.cgroup,
        // systemd would have to be asked for control groups, and is out of reach.
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        // Containers outlive the daemon, until it comes back.
        "live-restore": true,
        // Docker's own store, which counts an image's files. containerd's, the default from
        // version 29 on, counts what it keeps besides.
        "features": { "containerd-snapshotter": false },
    });
    if remaps {
        settings["userns-remap"] = REMAPPED.into();
    }
    let path = folder.join("daemon.json");
    fs::write(&path, settings.to_string())?;
    Ok(path)
}

/// The address of the daemon in `folder`.
fn host(folder: &Folder) -> String {
    format!("unix://{}", folder.join("socket").display())
}

/// Whether the daemon in `folder` does.
async fn answers(folder: &Folder) -> bool {
    success(client(folder).arg("version")).await.is_ok()
}

/// A client of the daemon in `folder`, and of no other, whatever the user's settings are.
fn client(folder: &Folder) -> Command {
    let mut client = Command::new("docker");
    client.env("DOCKER_HOST", host(folder)).env("DOCKER_CONFIG", folder.join("client"));
    for variable in ["DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"] {
        client.env_remove(variable);
    }
    client
}

/// The image runs `/pause` as nobody.
fn runs_pause(image: &Value) -> Result<()> {
    same("the user", &image["Config"]["User"], &json!("65535:65535"))?;
    same("the entrypoint", &image["Config"]["Entrypoint"], &json!(["/pause"]))
}

impl Docker {
    /// Removes all containers that the daemon knows.
    async fn remove_all(&self) -> Result<()> {
        let containers = self.docker(["ps", "--all", "--quiet"]).await?;
        if containers.is_empty() {
            return Ok(());
        }
        let remove = ["rm", "--force", "--volumes"].into_iter();
        self.docker(remove.chain(containers.lines())).await.map(drop)
    }

    /// The process of a container, as the host numbers it.
    async fn process(&self, id: &str) -> Result<i32> {
        let container = self.inspect(id).await?;
        let pid = container["State"]["Pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it does not run: {}", container["State"]))? as i32)
    }

    /// Waits until a container has ended, not for lack of memory, and returns its exit code.
    async fn wait(&self, id: &str) -> Result<i64> {
        self.docker(["wait", id]).await?;
        let state = &self.inspect(id).await?["State"];
        same("whether memory ran out", state["OOMKilled"].as_bool(), Some(false))?;
        state["ExitCode"].as_i64().context("no exit code")
    }

    /// What a container wrote.
    async fn logs(&self, id: &str) -> Result<Log> {
        let output = end(self.client().args(["logs", id])).await?;
        ensure!(output.status.success(), "docker logs: {}", output.status);
        Ok(Log::new(&output.stdout, &output.stderr))
    }

    /// What Docker knows of an image or a container.
    async fn inspect(&self, name: &str) -> Result<Value> {
        let found: Value = serde_json::from_str(&self.docker(["inspect", name]).await?)?;
        Ok(found[0].clone())
    }

    /// Runs the client.
    async fn docker<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client().args(arguments)).await
    }

    fn client(&self) -> Command {
        client(self.daemon.folder())
    }
}
