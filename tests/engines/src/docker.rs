//! Docker, driven by the command line that people use.

use crate::daemon::Daemon;
use crate::engine::{Container, Engine, Log, Name, Pod, Sandbox, Spec};
use crate::host::same;
use crate::images::{self, Image};
use crate::wait::{end, script, success};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tokio::process::Command;

/// How containers are started: from what is there, and left running.
const RUN: [&str; 3] = ["run", "--detach", "--pull=never"];

/// A user and a group whose IDs stand for those in containers.
const REMAPPED: &str = "daemon";

/// The label of a container that says which pod it is in.
const POD: &str = "pod";

/// Docker, and the image that its pods are made of.
pub struct Docker {
    daemon: Daemon,
    reference: String,
}

impl Engine for Docker {
    const NAME: Name = Name::Docker;

    // A container joins another one's, but has its own UTS namespace, with the same name in it.
    const SHARED: &[&str] = &["net", "ipc"];

    async fn start(image: &Image) -> Result<Self> {
        configure(false)?;
        let daemon = Daemon::start(&["dockerd"], answers).await?;
        Ok(Self { daemon, reference: image.reference.clone() })
    }

    async fn version(&self) -> Result<String> {
        let version = docker(["version", "--format", "{{.Server.Version}}"]).await?;
        Ok(version.split('+').next().unwrap_or_default().to_owned())
    }

    async fn remove_all(&self) -> Result<()> {
        script("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force", &[]).await?;
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.daemon.stop().await
    }

    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.restart(answers).await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = script("docker ps --all --quiet; docker volume ls --quiet", &[]).await?;
        Ok(list.lines().map(|id| format!("container or volume {id}")).collect())
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        success(client().args(["load", "--quiet", "--input"]).arg(archive)).await.map(drop)
    }

    async fn shows(&self, image: &Image) -> Result<()> {
        let shown = docker(["images", "--format", "{{.Size}}", &image.reference]).await?;
        ensure!(
            matches!(shown.strip_suffix("kB").map(str::parse::<f64>), Some(Ok(size)) if size <= 1.5),
            "docker images shows {shown}, where at most 1.5kB was expected"
        );
        let shown = inspect(&image.reference).await?;
        same("the size", shown["Size"].as_u64(), Some(image.binary()?.len() as u64))?;
        // Since Docker 28, what is not set is not shown.
        same("the command", &shown["Config"]["Cmd"], &Value::Null)?;
        same("the system", &shown["Os"], &json!("linux"))?;
        let machine = docker(["version", "--format", "{{.Server.Arch}}"]).await?;
        same("the architecture", &shown["Architecture"], &json!(machine))?;
        runs_pause(&shown)
    }

    async fn build(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let toolchain = images::toolchain().await?;
        let import = images::BUILD_ENVIRONMENT.iter().flat_map(|change| ["--change", change]);
        let import = ["import"].into_iter().chain(import);
        docker(import.chain([toolchain, "localhost/toolchain"])).await?;

        let has_buildkit = docker(["buildx", "version"]).await.is_ok();
        let mut built = Vec::new();
        for (builder, buildkit) in [("the classic builder", "0"), ("BuildKit", "1")] {
            if buildkit == "1" && !has_buildkit {
                continue;
            }
            let mut client = client();
            client.env("DOCKER_BUILDKIT", buildkit).arg("build").arg(project());
            client.args(["--build-arg=RUST_IMAGE=localhost/toolchain", "--tag=localhost/built"]);
            success(&mut client).await.context(builder)?;
            runs_pause(&inspect("localhost/built").await?)?;
            docker(["create", "--name=built", "localhost/built"]).await?;
            docker(["cp", "built:/pause", "/var/tmp/built"]).await?;
            docker(["rm", "built"]).await?;
            built.push((builder, fs::read("/var/tmp/built")?));
        }
        Ok(built)
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        // It is the daemon that remaps users, for all containers.
        let pid: &[_] = if sandbox == Sandbox::HostPid { &["--pid=host"] } else { &[] };
        let mut client = client();
        client.args(RUN).args(["--name", name, "--ipc=shareable"]).args(pid).arg(&self.reference);
        let id = success(&mut client).await?;
        let pause = Container { name: name.to_owned(), id: id.clone() };
        Ok(Pod { name: name.to_owned(), id, pause })
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        for file in ["/etc/subuid", "/etc/subgid"] {
            fs::write(file, format!("{REMAPPED}:100000:65536\n"))?;
        }
        configure(on)?;
        self.restart_daemon().await
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(inspect(&pod.id).await?["State"]["Running"] == true)
    }

    async fn address(&self, pod: &Pod) -> Result<Option<String>> {
        let network = &inspect(&pod.id).await?["NetworkSettings"]["Networks"]["bridge"];
        let address = network["IPAddress"].as_str().filter(|address| !address.is_empty());
        Ok(Some(address.context("the pod has no address")?.to_owned()))
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        docker(["stop", &pod.id]).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        docker(["kill", "--signal", signal.as_str(), &pod.id]).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        Ok(format!("docker run --rm --interactive --tty {}", self.reference))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        docker(["start", &pod.id]).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        let label = format!("label={POD}={}", pod.id);
        let inside = docker(["ps", "--all", "--quiet", "--filter", &label]).await?;
        let remove = ["rm", "--force", "--volumes"].into_iter();
        docker(remove.chain(inside.lines()).chain([pod.id.as_str()])).await.map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let sandbox = format!("container:{}", pod.id);
        let mut client = client();
        client.args(RUN).args(["--name", &format!("{}-{name}", pod.name)]);
        client.args(["--label", &format!("{POD}={}", pod.id)]);
        client.args(["--network", &sandbox, "--ipc", &sandbox]);
        if spec.shares_pid {
            client.args(["--pid", &sandbox]);
        }
        options(&mut client, &spec, Self::LEAST_MEMORY);
        client.arg(spec.image).args(spec.arguments);
        Ok(Container { name: name.to_owned(), id: success(&mut client).await? })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        let container = inspect(&container.id).await?;
        let pid = container["State"]["Pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it does not run: {}", container["State"]))? as i32)
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        docker(["exec", &container.id].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &Container) -> Result<Option<Log>> {
        let output = end(client().args(["logs", &container.id])).await?;
        ensure!(output.status.success(), "docker logs: {}", output.status);
        Ok(Some(Log::new(&output.stdout, &output.stderr)))
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        docker(["stop", &container.id]).await.map(drop)
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        docker(["wait", &container.id]).await?;
        let state = &inspect(&container.id).await?["State"];
        same("whether memory ran out", state["OOMKilled"].as_bool(), Some(false))?;
        state["ExitCode"].as_i64().context("no exit code")
    }

    async fn remove(&self, container: Container) -> Result<()> {
        docker(["rm", "--force", "--volumes", &container.id]).await.map(drop)
    }

    async fn restart(&self, _: &Pod, container: Container, _: Spec<'_>) -> Result<Container> {
        docker(["start", &container.id]).await?;
        Ok(container)
    }
}

/// Adds the options of Docker's and of Podman's that a container is started with.
pub fn options(client: &mut Command, spec: &Spec<'_>, memory: u64) {
    if let Some(user) = spec.user {
        client.arg(format!("--user={user}:{user}"));
    }
    if let Some((folder, place)) = spec.volume {
        client.arg(format!("--volume={}:{place}", folder.display()));
    }
    if spec.hardened {
        client.args(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
        if memory > 0 {
            client.arg("--pids-limit=1");
            client.args(["--memory", "--memory-swap"].map(|option| format!("{option}={memory}")));
        }
    }
}

/// The image runs `/pause` as the user 65535.
pub fn runs_pause(image: &Value) -> Result<()> {
    same("the user", &image["Config"]["User"], &json!("65535:65535"))?;
    same("the entrypoint", &image["Config"]["Entrypoint"], &json!(["/pause"]))
}

/// Writes the daemon's configuration.
fn configure(remaps: bool) -> Result<()> {
    let mut settings = json!({
        // Without systemd, which would have to be asked for control groups.
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
    fs::create_dir_all("/etc/docker")?;
    Ok(fs::write("/etc/docker/daemon.json", settings.to_string())?)
}

async fn answers() -> bool {
    docker(["version"]).await.is_ok()
}

fn client() -> Command {
    Command::new("docker")
}

/// Runs Docker's client.
pub async fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    success(client().args(arguments)).await
}

/// What Docker knows of an image or a container.
async fn inspect(name: &str) -> Result<Value> {
    let found: Value = serde_json::from_str(&docker(["inspect", name]).await?)?;
    Ok(found[0].clone())
}
