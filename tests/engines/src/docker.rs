//! Docker: dockerd with everything of its own, driven by the command line that people use.

use crate::busybox;
use crate::daemon::{self, Daemon, Folder};
use crate::host::{self, same};
use crate::pod;
use crate::scenario::{Engine, Scenario, Scene};
use crate::stage::Stage;
use crate::toolchain;
use crate::wait::{end, success, until};
use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::artifact::project;
use tokio::process::Command;

/// What pause says when it is told to stop.
const STOPPED: &str = "pause: SIGTERM";

/// What it says first when it is not PID 1.
const WARNING: &str = "pause: warning: not PID 1";

/// The least memory that Docker grants a container.
const LEAST_MEMORY: &str = "6m";

/// Docker and what it is tried with.
pub struct Docker {
    daemon: Daemon,
    image: PathBuf,
    reference: String,
    version: String,
    binary: Vec<u8>,
}

impl Engine for Docker {
    const NAME: support::engine::Engine = support::engine::Engine::Docker;

    const SCENES: &[(Scenario, Scene<Self>)] = &[
        (Scenario::Load, |docker| Box::pin(docker.load())),
        (Scenario::Stop, |docker| Box::pin(docker.stop())),
        (Scenario::Arguments, |docker| Box::pin(docker.arguments())),
        (Scenario::HostPid, |docker| Box::pin(docker.host_pid())),
        (Scenario::Pod, |docker| Box::pin(docker.pod())),
        (Scenario::Hardened, |docker| Box::pin(docker.hardened())),
        (Scenario::Build, |docker| Box::pin(docker.build())),
    ];

    async fn start(stage: &Stage) -> Result<Self> {
        daemon::require(&["docker", "dockerd", "containerd", "runc", "iptables", "busybox"])?;
        let folder = Folder::new(Self::NAME)?;
        let settings = json!({
            "data-root": folder.join("data"),
            "exec-root": folder.join("exec"),
            "pidfile": folder.join("pid"),
            "hosts": [host(&folder)],
            "cgroup-parent": folder.cgroup,
            // systemd would have to be asked for control groups, and is out of reach.
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            // Docker's own store, which counts an image's files. containerd's, the default from
            // version 29 on, counts what it keeps besides.
            "features": { "containerd-snapshotter": false },
        });
        let path = folder.join("daemon.json");
        fs::write(&path, settings.to_string())?;
        let arguments = ["--config-file", path.to_str().context("the path is not UTF-8")?];
        let daemon = Daemon::start("dockerd", folder, &arguments, async |folder| {
            success(client(folder).arg("version")).await.is_ok()
        });
        let docker = Self {
            daemon: daemon.await?,
            image: stage.image.clone(),
            reference: stage.reference.clone(),
            version: stage.version().to_owned(),
            binary: stage.binary.clone(),
        };
        let busybox = docker.daemon.folder().join("busybox.tar");
        busybox::write(&busybox)?;
        docker.import(&busybox).await?;
        Ok(docker)
    }

    async fn teardown(self) -> Result<()> {
        let containers = self.docker(["ps", "--all", "--quiet"]).await?;
        if !containers.is_empty() {
            self.docker(["rm", "--force", "--volumes"].into_iter().chain(containers.lines()))
                .await?;
        }
        self.daemon.stop().await
    }
}

/// The address of the daemon in `folder`.
fn host(folder: &Folder) -> String {
    format!("unix://{}", folder.join("socket").display())
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

impl Docker {
    async fn load(&self) -> Result<()> {
        let said = self.import(&self.image).await?;
        same("what docker load says", said, format!("Loaded image: {}", self.reference))?;

        let shown = self.docker(["images", "--format", "{{.Size}}", &self.reference]).await?;
        ensure!(
            matches!(shown.strip_suffix("kB").map(str::parse::<f64>), Some(Ok(size)) if size <= 1.5),
            "docker images shows {shown}, where at most 1.5kB was expected"
        );
        let image = self.inspect(&self.reference).await?;
        same("the size", image["Size"].as_u64(), Some(self.binary.len() as u64))?;
        same("the user", &image["Config"]["User"], &json!("65535:65535"))?;
        same("the entrypoint", &image["Config"]["Entrypoint"], &json!(["/pause"]))?;
        same("the command", &image["Config"]["Cmd"], &Value::Null)?;
        same("the system", &image["Os"], &json!("linux"))?;
        let machine = self.docker(["version", "--format", "{{.Server.Arch}}"]).await?;
        same("the architecture", &image["Architecture"], &json!(machine))
    }

    async fn stop(&self) -> Result<()> {
        self.run("stop", &[], &[&self.reference]).await?;
        self.asleep("stop").await?;
        self.stops("stop", &[STOPPED]).await
    }

    async fn arguments(&self) -> Result<()> {
        let ended = end(&mut self.create("version", &[], &[&self.reference, "--version"])).await?;
        same("the answer", str::from_utf8(&ended.stdout)?, &format!("pause {}\n", self.version))?;
        same("the exit code", ended.status.code(), Some(0))?;

        let arguments = [&self.reference, "--frobnicate"];
        let ended = end(&mut self.create("unknown", &[], &arguments)).await?;
        same("the exit code", ended.status.code(), Some(64))?;
        self.logs("unknown", &["pause: unknown argument: --frobnicate", "Try pause --help."]).await
    }

    async fn host_pid(&self) -> Result<()> {
        // Somebody on the host who must not notice.
        let mut witness = Command::new("sleep")
            .arg("infinity")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;

        self.run("host-pid", &["--pid=host"], &[&self.reference]).await?;
        let pause = self.asleep("host-pid").await?;
        let own = host::namespaces(&Process::myself()?, &["pid"])?;
        same("the PID namespace", host::namespaces(&pause, &["pid"])?, own)?;
        self.logs("host-pid", &[WARNING]).await?;
        self.stops("host-pid", &[WARNING, STOPPED]).await?;

        same("what became of a process of the host", witness.try_wait()?, None)
    }

    async fn pod(&self) -> Result<()> {
        self.run("sandbox", &["--ipc=shareable"], &[&self.reference]).await?;
        let pause = self.asleep("sandbox").await?;
        let join =
            ["--network=container:sandbox", "--pid=container:sandbox", "--ipc=container:sandbox"];
        self.run("beside", &join, &[busybox::REFERENCE, "sleep", "infinity"]).await?;

        let beside = Process::new(self.pid("beside").await?)?;
        let kinds = ["net", "pid", "ipc"];
        let shared = host::namespaces(&pause, &kinds)?;
        same("the namespaces", host::namespaces(&beside, &kinds)?, shared.clone())?;
        let own = host::namespaces(&Process::myself()?, &kinds)?;
        ensure!(shared.iter().all(|namespace| !own.contains(namespace)), "they are the host's");

        pod::init(async |script| self.shell("beside", script).await).await?;
        pod::reaps(&pause, async |script| self.shell("beside", script).await).await?;

        self.run("careless", &[], &[busybox::REFERENCE, "sleep", "infinity"]).await?;
        pod::does_not_reap(async |script| self.shell("careless", script).await).await
    }

    async fn hardened(&self) -> Result<()> {
        let limits = [
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--network=none",
            "--pids-limit=1",
            &format!("--memory={LEAST_MEMORY}"),
            &format!("--memory-swap={LEAST_MEMORY}"),
        ];
        self.run("hardened", &limits, &[&self.reference]).await?;
        let pause = self.asleep("hardened").await?;
        let status = pause.status()?;
        same("the capabilities it could get", status.capbnd, Some(0))?;
        same("the flag no_new_privs", status.nonewprivs, Some(1))?;
        let mounts = pause.mountinfo()?;
        let mut root = mounts.iter().filter(|mount| mount.mount_point == Path::new("/"));
        ensure!(root.all(|root| root.mount_options.contains_key("ro")), "the root is writable");
        self.stops("hardened", &[STOPPED]).await
    }

    async fn build(&self) -> Result<()> {
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

        self.docker(["create", "--name", "built", "localhost/built"]).await?;
        let built = folder.join("built");
        success(self.client().args(["cp", "built:/pause"]).arg(&built)).await?;
        ensure!(fs::read(built)? == self.binary, "it is not the program that cargo makes");
        let image = self.inspect("localhost/built").await?;
        same("the user", &image["Config"]["User"], &json!("65535:65535"))?;
        same("the entrypoint", &image["Config"]["Entrypoint"], &json!(["/pause"]))
    }

    /// Stops a container of pause and checks what Docker then tells about it.
    async fn stops(&self, name: &str, log: &[&str]) -> Result<()> {
        self.docker(["stop", name]).await?;
        let state = &self.inspect(name).await?["State"];
        same("the exit code", state["ExitCode"].as_i64(), Some(0))?;
        same("whether memory ran out", state["OOMKilled"].as_bool(), Some(false))?;
        self.logs(name, log).await
    }

    /// Waits until the log of a container is just this.
    async fn logs(&self, name: &str, expected: &[&str]) -> Result<()> {
        let mut seen = String::new();
        let complete = until("the log is complete", async || {
            let output = end(self.client().args(["logs", name])).await?;
            seen = format!(
                "{}{}",
                String::from_utf8(output.stdout)?,
                String::from_utf8(output.stderr)?
            );
            Ok((seen.lines().count() >= expected.len()).then_some(()))
        });
        complete.await.with_context(|| format!("the log is {seen:?}, not {expected:?}"))?;
        same("the log", seen.lines().collect::<Vec<_>>(), expected.to_vec())
    }

    /// Waits until the pause in a container sleeps.
    async fn asleep(&self, name: &str) -> Result<Process> {
        host::asleep(self.pid(name).await?, &self.binary).await
    }

    /// The process of a container, as the host numbers it.
    async fn pid(&self, name: &str) -> Result<i32> {
        let container = self.inspect(name).await?;
        let pid = container["State"]["Pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it does not run: {}", container["State"]))? as i32)
    }

    /// What `docker run` would be run as.
    fn create(&self, name: &str, options: &[&str], arguments: &[&str]) -> Command {
        let mut client = self.client();
        client.args(["run", "--pull=never", "--name", name]).args(options).args(arguments);
        client
    }

    /// Starts a container and leaves it running.
    async fn run(&self, name: &str, options: &[&str], arguments: &[&str]) -> Result<()> {
        let mut client = self.create(name, &[&["--detach"], options].concat(), arguments);
        success(&mut client).await.map(drop)
    }

    /// Runs a script in a container.
    async fn shell(&self, name: &str, script: &str) -> Result<String> {
        self.docker(["exec", name, "sh", "-c", script]).await
    }

    /// Loads an archive.
    async fn import(&self, archive: &Path) -> Result<String> {
        success(self.client().args(["load", "--quiet", "--input"]).arg(archive)).await
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
