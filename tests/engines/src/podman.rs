//! Podman, root's and an ordinary user's: pods by the command line that people use, with the
//! configuration in `deploy/` that they copy.

use crate::docker::{options, runs_pause};
use crate::engine::{Container, Engine, Lacks, Log, Name, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::images::{self, Image};
use crate::wait::{end, script, success, until};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use tokio::process::Command;

/// What comes before each command of Podman's: the ordinary user, and what it is told besides.
const ENVIRONMENT: &str = "PODMAN_IGNORE_CGROUPSV1_WARNING=1";
const AS_ROOT: &[&str] = &["env", ENVIRONMENT];
const AS_USER: &[&str] = &[
    "setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "env",
    ENVIRONMENT,
    "HOME=/var/lib/user",
    "XDG_RUNTIME_DIR=/run/user/1000",
];

/// Prepares the system for root's Podman, whose command is in the arguments.
const PREPARE_ROOT: &str = r#"
    # What Podman and CNI leave when the last pod goes has to be there before the first.
    mkdir -p /run/netns
    mountpoint -q /run/netns || mount --bind /run/netns /run/netns
    if [ "$("$@" podman info --format '{{.Host.NetworkBackend}}')" = cni ]; then
        ip link add cni-podman0 type bridge
    fi
"#;

/// Prepares the system for an ordinary user's Podman, whose command is in the arguments.
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
    "$@" podman info > /dev/null
"#;

/// Podman. An ordinary user's has a user namespace that all of its pods share.
pub struct Podman<const ROOTLESS: bool> {
    reference: String,
}

impl<const ROOTLESS: bool> Engine for Podman<ROOTLESS> {
    const NAME: Name = if ROOTLESS { Name::PodmanRootless } else { Name::Podman };

    // Podman passes the image's user over, and makes it the pod's root.
    const USER: u32 = 0;

    const NO_MEMORY_LIMIT: Option<&str> = match ROOTLESS {
        false => None,
        true => Some("it takes control groups of version 2 that systemd delegates to the user"),
    };

    async fn start(image: &Image) -> Result<Self> {
        configure()?;
        if ROOTLESS {
            ensure!(File::open("/dev/net/tun").is_ok(), Skip("there is no /dev/net/tun".into()));
            script(PREPARE_USER, Self::AS).await?;
        } else {
            script(PREPARE_ROOT, Self::AS).await?;
        }
        Ok(Self { reference: image.reference.clone() })
    }

    async fn version(&self) -> Result<String> {
        let version = self.podman(["version", "--format", "{{.Client.Version}}"]).await?;
        Ok(version.split('+').next().unwrap_or_default().to_owned())
    }

    async fn remove_all(&self) -> Result<()> {
        self.podman(["pod", "rm", "--all", "--force", "--time=0"]).await.map(drop)
    }

    async fn end(self) -> Result<()> {
        // An ordinary user's namespaces have a process that keeps them: this tells it to end.
        self.podman(["system", "migrate"]).await?;
        if ROOTLESS {
            script("ip link delete outside", &[]).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let mut found = HashSet::new();
        for list in [&["pod", "ps"][..], &["ps", "--all"], &["volume", "ls"]] {
            let list = self.podman(list.iter().copied().chain(["--quiet"])).await?;
            found.extend(list.lines().map(|id| format!("pod, container or volume {id}")));
        }
        Ok(found)
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        success(self.client().args(["load", "--quiet", "--input"]).arg(archive)).await.map(drop)
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let image = self.inspect(&["image", "inspect", &tried.reference]).await?;
        // Podman counts what it was given: the layer before compression, manifest and configuration.
        let size = image["Size"].as_u64().context("the image has no size")?;
        let archive = fs::metadata(&tried.archive)?.len();
        ensure!(size < archive, "the image has {size} bytes, its archive {archive}");
        let machine = self.podman(["version", "--format", "{{.Client.OsArch}}"]).await?;
        let platform = [&image["Os"], &image["Architecture"]].map(|name| name.as_str());
        same("the platform", platform.map(Option::unwrap_or_default).join("/"), machine)?;
        runs_pause(&image)
    }

    async fn build(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        if ROOTLESS {
            return Err(Lacks("root's buildah builds the same").into());
        }
        let toolchain = images::toolchain().await?;
        let import = images::BUILD_ENVIRONMENT.iter().flat_map(|change| ["--change", change]);
        let import = ["import", "--quiet"].into_iter().chain(import);
        self.podman(import.chain([toolchain, "localhost/toolchain"])).await?;

        let mut buildah = Command::new("buildah");
        buildah.args(["build", "--isolation=chroot", "--pull-never", "--tag=localhost/built"]);
        success(buildah.arg("--build-arg=RUST_IMAGE=localhost/toolchain").arg(project())).await?;

        runs_pause(&self.inspect(&["image", "inspect", "localhost/built"]).await?)?;
        self.podman(["create", "--name=built", "localhost/built"]).await?;
        self.podman(["cp", "built:/pause", "/var/tmp/built"]).await?;
        self.podman(["rm", "built"]).await?;
        Ok(vec![("buildah", fs::read("/var/tmp/built")?)])
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let infra = format!("--infra-name={name}-infra");
        let mut create = vec!["pod", "create", "--name", name, &infra, "--share=pid,ipc,net,uts"];
        if ROOTLESS {
            // By default each pod has a network of its own, and cannot be reached in it.
            create.push("--network=podman");
        }
        if sandbox == Sandbox::HostPid {
            create.push("--pid=host");
        }
        let id = self.podman(create).await?;
        self.podman(["pod", "start", name]).await?;
        let pause = Container { name: name.to_owned(), id: format!("{name}-infra") };
        Ok(Pod { name: name.to_owned(), id, pause })
    }

    async fn remap(&mut self, _: bool) -> Result<()> {
        // A user's pods are remapped as it is. Podman 4.3 cannot always remove root's that are: now
        // and then a mount or the network namespace of one stays behind.
        let reason = "podman-rootless has it; root's Podman does not clean up after it reliably";
        if ROOTLESS { Ok(()) } else { Err(Lacks(reason).into()) }
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        let state = self.podman(["pod", "inspect", "--format", "{{.State}}", &pod.id]).await?;
        Ok(state == "Running")
    }

    async fn address(&self, pod: &Pod) -> Result<Option<String>> {
        let infra = self.inspect(&["inspect", &pod.pause.id]).await?;
        let network = &infra["NetworkSettings"]["Networks"]["podman"];
        Ok(Some(network["IPAddress"].as_str().context("the pod has no address")?.to_owned()))
    }

    fn on_host(&self, program: &str) -> Command {
        if !ROOTLESS {
            return Command::new(program);
        }
        let mut client = self.client();
        client.args(["unshare", "--rootless-netns", program]);
        client
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.podman(["pod", "stop", &pod.id]).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        self.podman(["kill", "--signal", signal.as_str(), &pod.pause.id]).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        let run = "podman run --rm --interactive --tty --network=none";
        Ok(format!("{} {run} {}", Self::AS.join(" "), self.reference))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.podman(["pod", "start", &pod.id]).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.podman(["pod", "rm", "--force", "--time=0", &pod.id]).await.map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let mut client = self.client();
        client.args(["run", "--detach", "--pull=never"]);
        client.args(["--pod", &pod.id, "--name", &format!("{}-{name}", pod.name)]);
        if !spec.shares_pid {
            client.arg("--pid=private");
        }
        let memory = if ROOTLESS { 0 } else { Self::LEAST_MEMORY };
        options(&mut client, &spec, memory);
        client.arg(spec.image).args(spec.arguments);
        Ok(Container { name: name.to_owned(), id: success(&mut client).await? })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        let inspect = ["inspect", "--format", "{{.State.Pid}}", &container.id];
        let pid: i32 = self.podman(inspect).await?.parse()?;
        ensure!(pid > 0, "{} does not run", container.id);
        Ok(pid)
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        self.podman(["exec", &container.id].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &Container) -> Result<Option<Log>> {
        let output = end(self.client().args(["logs", &container.id])).await?;
        ensure!(output.status.success(), "podman logs: {}", output.status);
        Ok(Some(Log::new(&output.stdout, &output.stderr)))
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        self.podman(["stop", &container.id]).await.map(drop)
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        // Not by `podman wait`: that takes 20 seconds longer for an ordinary user's.
        until(&format!("{} has ended", container.id), async || {
            let state = &self.inspect(&["inspect", &container.id]).await?["State"];
            let ended = matches!(state["Status"].as_str(), Some("exited" | "stopped"));
            Ok(ended.then(|| state["ExitCode"].as_i64()).flatten())
        })
        .await
    }

    async fn remove(&self, container: Container) -> Result<()> {
        self.podman(["rm", "--force", "--time=0", "--volumes", &container.id]).await.map(drop)
    }

    async fn restart(&self, _: &Pod, container: Container, _: Spec<'_>) -> Result<Container> {
        self.podman(["start", &container.id]).await?;
        Ok(container)
    }
}

/// Installs the file in `deploy/`, and what it needs on this machine.
fn configure() -> Result<()> {
    let deployed = project().join("deploy/podman-containers.conf");
    fs::copy(&deployed, "/etc/containers/containers.conf")?;
    // systemd would have to be asked for control groups and for the log.
    let mut config = "[engine]\ncgroup_manager = 'cgroupfs'\nevents_logger = 'file'\n\
        [containers]\nlog_driver = 'k8s-file'\n"
        .to_owned();
    // What Podman asks for by itself is a privilege.
    if !host::has_cap_sys_resource()? {
        config += "default_ulimits = ['nofile=1024:1024', 'nproc=4096:4096']\n";
    }
    fs::create_dir_all("/etc/containers/containers.conf.d")?;
    Ok(fs::write("/etc/containers/containers.conf.d/engines.conf", config)?)
}

impl<const ROOTLESS: bool> Podman<ROOTLESS> {
    const AS: &[&str] = if ROOTLESS { AS_USER } else { AS_ROOT };

    /// What Podman knows, asked for by `command`.
    async fn inspect(&self, command: &[&str]) -> Result<Value> {
        let found: Value = serde_json::from_str(&self.podman(command.iter().copied()).await?)?;
        Ok(found[0].clone())
    }

    /// Runs Podman.
    async fn podman<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client().args(arguments)).await
    }

    fn client(&self) -> Command {
        let mut client = Command::new(Self::AS[0]);
        client.args(&Self::AS[1..]).arg("podman").current_dir("/");
        client
    }
}
