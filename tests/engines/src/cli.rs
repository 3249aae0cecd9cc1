//! Docker and Podman, root's and an ordinary user's, driven by the command line that people use;
//! Podman with the configuration in `deploy/` that they copy.

use crate::containerd::deployed;
use crate::daemon::Daemon;
use crate::engine::{Column, Engine, Lacks, Name, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::images::{self, Image};
use crate::scenario::{Context, Scenario};
use crate::wait::{end, script, success, until};
use anyhow::{Context as _, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use tokio::process::Command;

/// The words before each command of Podman's, as root and as an ordinary user.
const PODMAN: &str = "env PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman";
const PODMAN_AS_USER: &str = "setpriv --reuid=1000 --regid=1000 --clear-groups \
    env PODMAN_IGNORE_CGROUPSV1_WARNING=1 HOME=/var/lib/user XDG_RUNTIME_DIR=/run/user/1000 podman";

/// Prepares the system for root's Podman, whose words are in $1.
const PREPARE_ROOT: &str = r#"
    # What Podman and CNI leave when the last pod goes has to be there before the first.
    mkdir -p /run/netns
    mountpoint -q /run/netns || mount --bind /run/netns /run/netns
    if [ "$($1 info --format '{{.Host.NetworkBackend}}')" = cni ]; then
        ip link add cni-podman0 type bridge
    fi
"#;

/// Prepares the system for an ordinary user's Podman, whose words are in $1.
const PREPARE_USER: &str = r#"
    useradd --uid 1000 --create-home --home-dir /var/lib/user user
    for file in /etc/subuid /etc/subgid; do echo user:1000000:65536 > $file; done
    install -d -o user -g user /run/user/1000
    # pasta wants an interface that leads somewhere.
    ip link add outside type veth peer name outside-peer
    ip link set outside-peer up
    ip address add 192.0.2.1/24 dev outside
    ip link set outside up
    ip route add default via 192.0.2.254
    cd /var/lib/user
    $1 info > /dev/null
"#;

/// How containers are started: from what is there, and left running.
const RUN: [&str; 3] = ["run", "--detach", "--pull=never"];

/// A user and a group whose IDs stand for those in Docker's containers.
const REMAPPED: &str = "daemon";

/// Removes Docker's containers that the arguments select.
const REMOVE: &str = r#"
    docker ps --all --quiet "$@" | xargs --no-run-if-empty docker rm --force --volumes
"#;

/// Docker or Podman. An ordinary user's Podman has a user namespace that all of its pods share.
pub struct Cli {
    name: Name,
    /// The words before each command.
    program: &'static str,
    /// Docker's.
    daemon: Option<Daemon>,
    reference: String,
}

impl Column for Cli {
    async fn start(name: Name, image: &Image) -> Result<Self> {
        let reference = image.reference.clone();
        if name == Name::Docker {
            configure_docker(false)?;
            let daemon = Some(Daemon::start(&["dockerd"], answers).await?);
            return Ok(Self { name, program: "docker", daemon, reference });
        }
        let (program, prepare) = match name {
            Name::PodmanRootless => (PODMAN_AS_USER, PREPARE_USER),
            _ => (PODMAN, PREPARE_ROOT),
        };
        let tun = File::open("/dev/net/tun");
        ensure!(name == Name::Podman || tun.is_ok(), Skip("there is no /dev/net/tun"));
        configure_podman(&reference)?;
        script(prepare, &[program]).await?;
        Ok(Self { name, program, daemon: None, reference })
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        scenario.test(self.name, self, context).await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let mut found = HashSet::new();
        let lists = [["ps", "--all"], ["volume", "ls"], ["pod", "ls"]];
        for list in lists.iter().take(if self.is_docker() { 2 } else { 3 }) {
            let list = self.call(list.iter().copied().chain(["--quiet"])).await?;
            found.extend(list.lines().map(|id| format!("container, volume or pod {id}")));
        }
        Ok(found)
    }

    async fn remove_all(&self) -> Result<()> {
        match self.is_docker() {
            true => script(REMOVE, &[]).await,
            false => self.call(["pod", "rm", "--all", "--force", "--time=0"]).await,
        }
        .map(drop)
    }

    async fn end(self) -> Result<()> {
        if let Some(mut daemon) = self.daemon {
            return daemon.stop().await;
        }
        // An ordinary user's namespaces have a process that keeps them: this tells it to end.
        self.call(["system", "migrate"]).await?;
        if self.name == Name::PodmanRootless {
            script("ip link delete outside", &[]).await?;
        }
        Ok(())
    }
}

impl Engine for Cli {
    async fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.as_mut().ok_or(Lacks("it has no daemon"))?.restart(answers).await
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        success(self.client().args(["load", "--quiet", "--input"]).arg(archive)).await.map(drop)
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let image = self.inspect(&tried.reference).await?;
        let size = image["Size"].as_u64().context("the image has no size")?;
        // Podman counts what it was given: the layer before compression, manifest and configuration.
        let most = match self.is_docker() {
            true => tried.binary()?.len() as u64,
            false => fs::metadata(&tried.archive)?.len(),
        };
        ensure!(size <= most, "the image has {size} bytes, where at most {most} were expected");
        runs_pause(&image)
    }

    async fn build(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        ensure!(self.name != Name::PodmanRootless, Lacks("root's buildah builds the same"));
        let toolchain = images::toolchain().await?;
        let changes = images::BUILD_ENVIRONMENT.iter().flat_map(|change| ["--change", change]);
        let import = ["import"].into_iter().chain(changes);
        self.call(import.chain([toolchain, "localhost/toolchain"])).await?;

        let builders: &[(_, &[&str])] = match self.name {
            Name::Docker => &[
                ("the classic builder", &["env", "DOCKER_BUILDKIT=0", "docker", "build"]),
                ("BuildKit", &["env", "DOCKER_BUILDKIT=1", "docker", "build"]),
            ],
            _ => &[("buildah", &["buildah", "build", "--isolation=chroot", "--pull-never"])],
        };
        let mut built = Vec::new();
        for (builder, words) in builders {
            if *builder == "BuildKit" && self.call(["buildx", "version"]).await.is_err() {
                continue;
            }
            let mut build = Command::new(words[0]);
            build.args(&words[1..]);
            build.args(["--build-arg=RUST_IMAGE=localhost/toolchain", "--tag=localhost/built"]);
            success(build.arg(project())).await.context(*builder)?;
            runs_pause(&self.inspect("localhost/built").await?)?;
            self.call(["create", "--name=built", "localhost/built"]).await?;
            self.call(["cp", "built:/pause", "/var/tmp/built"]).await?;
            self.call(["rm", "built"]).await?;
            built.push((*builder, fs::read("/var/tmp/built")?));
        }
        Ok(built)
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let pause = if self.is_docker() { name.to_owned() } else { format!("{name}-infra") };
        let mut start = self.client();
        if self.is_docker() {
            start.args(RUN).args(["--name", name, "--ipc=shareable"]);
            start.arg(format!("--label=pod={name}"));
        } else {
            start.args(["pod", "create", "--name", name, "--infra-name", &pause]);
            start.arg("--share=pid,ipc,net,uts");
        }
        if self.name == Name::PodmanRootless {
            // By default each pod has a network of its own, and cannot be reached in it.
            start.arg("--network=podman");
        }
        if sandbox == Sandbox::HostPid {
            start.arg("--pid=host");
        }
        if self.is_docker() {
            start.arg(&self.reference);
        }
        success(&mut start).await?;
        let pod = Pod { name: name.to_owned(), pause };
        if self.is_docker() { Ok(pod) } else { self.restart_pod(pod).await }
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        // Podman 4.3 cannot always remove root's that are: now and then a mount or the network
        // namespace of one stays behind. An ordinary user's are remapped as it is.
        let reason = "podman-rootless has it; root's Podman does not clean up after it reliably";
        ensure!(self.name != Name::Podman, Lacks(reason));
        if self.is_docker() {
            // It is the daemon that remaps users, for all containers.
            for file in ["/etc/subuid", "/etc/subgid"] {
                fs::write(file, format!("{REMAPPED}:100000:65536\n"))?;
            }
            configure_docker(on)?;
            self.restart_daemon().await?;
        }
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(self.inspect(&pod.pause).await?["State"]["Running"] == true)
    }

    fn on_host(&self, program: &str) -> Command {
        if self.name != Name::PodmanRootless {
            return Command::new(program);
        }
        let mut client = self.client();
        client.args(["unshare", "--rootless-netns", program]);
        client
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.call_pod("stop", pod).await
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        self.call(["kill", "--signal", signal.as_str(), &pod.pause]).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        let run = "run --rm --interactive --tty --network=none";
        Ok(format!("{} {run} {}", self.program, self.reference))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.call_pod("start", &pod).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        match self.is_docker() {
            true => script(REMOVE, &[&format!("--filter=label=pod={}", pod.name)]).await,
            false => self.call(["pod", "rm", "--force", "--time=0", &pod.name]).await,
        }
        .map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let mut run = self.client();
        run.args(RUN).args(["--name", &format!("{}-{name}", pod.name)]);
        if self.is_docker() {
            let sandbox = format!("container:{}", pod.pause);
            run.args(["--network", &sandbox, "--ipc", &sandbox]);
            run.arg(format!("--label=pod={}", pod.name));
            if spec.shares_pid {
                run.args(["--pid", &sandbox]);
            }
        } else {
            run.args(["--pod", &pod.name]);
            if !spec.shares_pid {
                run.arg("--pid=private");
            }
        }
        if let Some(user) = spec.user {
            run.arg(format!("--user={user}:{user}"));
        }
        if let Some((folder, place)) = spec.volume {
            run.arg(format!("--volume={}:{place}", folder.display()));
        }
        if spec.hardened {
            run.args(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
            if let Ok(memory) = self.name.facts().least_memory {
                run.arg("--pids-limit=1");
                run.args(["--memory", "--memory-swap"].map(|option| format!("{option}={memory}")));
            }
        }
        success(run.arg(spec.image).args(spec.arguments)).await
    }

    async fn pid(&self, container: &str) -> Result<i32> {
        let state = &self.inspect(container).await?["State"];
        let pid = state["Pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it does not run: {state}"))? as i32)
    }

    async fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        self.call(["exec", container].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &str) -> Result<[String; 2]> {
        let output = end(self.client().args(["logs", container])).await?;
        ensure!(output.status.success(), "no log of {container}: {}", output.status);
        Ok([String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?])
    }

    async fn stop(&self, container: &str) -> Result<()> {
        self.call(["stop", container]).await.map(drop)
    }

    async fn exit_code(&self, container: &str) -> Result<i64> {
        // Not by `wait`, which takes 20 seconds longer for an ordinary user's Podman.
        until(&format!("{container} has ended"), async || {
            let state = &self.inspect(container).await?["State"];
            if !matches!(state["Status"].as_str(), Some("exited" | "stopped")) {
                return Ok(None);
            }
            same("whether memory ran out", state["OOMKilled"].as_bool(), Some(false))?;
            Ok(state["ExitCode"].as_i64())
        })
        .await
    }

    async fn restart(&self, _: &Pod, container: &str, _: Spec<'_>) -> Result<String> {
        self.call(["start", container]).await
    }
}

impl Cli {
    fn is_docker(&self) -> bool {
        self.name == Name::Docker
    }

    fn client(&self) -> Command {
        let mut words = self.program.split(' ');
        let mut client = Command::new(words.next().unwrap_or_default());
        client.args(words).current_dir("/");
        client
    }

    async fn call<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client().args(arguments)).await
    }

    /// Does something with a whole pod, which is one container for Docker.
    async fn call_pod(&self, verb: &str, pod: &Pod) -> Result<()> {
        let kind = if self.is_docker() { "container" } else { "pod" };
        self.call([kind, verb, &pod.name]).await.map(drop)
    }

    /// What the engine knows of an image or a container.
    async fn inspect(&self, name: &str) -> Result<Value> {
        let mut found: Value = serde_json::from_str(&self.call(["inspect", name]).await?)?;
        Ok(found[0].take())
    }
}

/// The image runs `/pause` as the user 65535, and no command besides.
fn runs_pause(image: &Value) -> Result<()> {
    let config = &image["Config"];
    same("the user", &config["User"], &json!("65535:65535"))?;
    same("the entrypoint", &config["Entrypoint"], &json!(["/pause"]))?;
    // What is not set is null, or is not there.
    same("the command", &config["Cmd"], &Value::Null)
}

/// Whether Docker's daemon does.
async fn answers() -> bool {
    success(Command::new("docker").arg("version")).await.is_ok()
}

/// Writes the configuration of Docker's daemon.
fn configure_docker(remaps: bool) -> Result<()> {
    let settings = json!({
        // Without systemd, which would have to be asked for control groups.
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        // Containers outlive the daemon, until it comes back.
        "live-restore": true,
        // Docker's own store, which counts an image's files. containerd's, the default from
        // version 29 on, counts what it keeps besides.
        "features": { "containerd-snapshotter": false },
        "userns-remap": if remaps { REMAPPED } else { "" },
    });
    fs::create_dir_all("/etc/docker")?;
    Ok(fs::write("/etc/docker/daemon.json", settings.to_string())?)
}

/// Installs the file in `deploy/`, and what Podman needs on this machine.
fn configure_podman(image: &str) -> Result<()> {
    let folder = Path::new("/etc/containers/containers.conf.d");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("pause.conf"), deployed("podman-containers.conf", image)?)?;
    // Where there is no systemd, Podman cannot ask it for control groups and for the log.
    let manager = if Path::new("/run/systemd/system").exists() { "systemd" } else { "cgroupfs" };
    let engine = format!("[engine]\ncgroup_manager = '{manager}'\nevents_logger = 'file'\n");
    let mut config = engine + "[containers]\nlog_driver = 'k8s-file'\n";
    // What Podman asks for by itself is a privilege.
    if !host::has_cap_sys_resource()? {
        config += "default_ulimits = ['nofile=1024:1024', 'nproc=4096:4096']\n";
    }
    Ok(fs::write(folder.join("engines.conf"), config)?)
}
