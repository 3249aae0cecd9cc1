//! Podman, root's and an ordinary user's: pods by the command line that people use, with the
//! configuration in `deploy/` that they copy.

use crate::daemon::{self, Daemon, Folder};
use crate::engine::{Container, Engine, Lacks, Log, Pod, Sandbox, Skip, Spec};
use crate::host::{self, same};
use crate::stage::Stage;
use crate::toolchain;
use crate::wait::{end, success, until};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::process::Command;
use toml_edit::{Array, DocumentMut};

/// Makes a command that of an ordinary user and a group that every machine has.
const AS_USER: [&str; 4] = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups"];

/// Where an ordinary user's Podman gets its networks from.
const TUN: &str = "/dev/net/tun";

/// Prepares the place where Podman is run, which is its own (see [`Daemon`]), and waits there in
/// place of the daemon that it does not have. Its arguments come before each command of Podman's.
const PREPARE: &str = r#"
    set -e
    # Podman forgets the control groups of its pods in these, which only systemd needs.
    for hierarchy in unified systemd; do
        if mountpoint --quiet /sys/fs/cgroup/$hierarchy; then umount /sys/fs/cgroup/$hierarchy; fi
    done
    # What Podman and CNI leave when the last pod goes has to be there before the first.
    ip link add cni-podman0 type bridge
    mkdir /run/netns
    mount --bind /run/netns /run/netns
    # What a machine has for its ordinary users, or should have.
    for file in /etc/subuid /etc/subgid; do echo "daemon:1000000:65536" > $file; done
    if [ -e /dev/net/tun ]; then
        mknod -m 666 /run/tun c 10 200
        mount --bind /run/tun /dev/net/tun
    fi
    "$@" podman info > /dev/null
    touch "$HOME/prepared"
    exec sleep infinity
"#;

/// Podman. An ordinary user's has a user namespace that all of its pods share.
pub struct Podman<const ROOTLESS: bool> {
    /// Where it is run.
    place: Daemon,
}

impl<const ROOTLESS: bool> Engine for Podman<ROOTLESS> {
    const NAME: crate::kind::Engine = match ROOTLESS {
        false => crate::kind::Engine::Podman,
        true => crate::kind::Engine::PodmanRootless,
    };

    // Podman passes the image's user over, and makes it the pod's root.
    const USER: u32 = 0;

    // That takes version 2 of control groups and systemd's leave.
    const LIMITS_MEMORY: bool = !ROOTLESS;

    async fn start(_: &Stage) -> Result<Self> {
        let more: &[_] =
            if ROOTLESS { &["newuidmap", "slirp4netns", "setpriv"] } else { &["buildah"] };
        daemon::require(&[&["podman", "conmon"], more].concat())?;
        if ROOTLESS {
            ensure!(Path::new(TUN).exists(), Skip(format!("there is no {TUN}")));
            let mut unshare = Command::new(AS_USER[0]);
            unshare.args(&AS_USER[1..]).args(["unshare", "--user", "--map-root-user", "true"]);
            let reason = || Skip("an ordinary user can make no user namespace".to_owned());
            success(&mut unshare).await.with_context(reason)?;
        }

        let folder = Folder::new(Self::NAME)?;
        // The user has to get through to what is his.
        fs::set_permissions(folder.join(""), Permissions::from_mode(0o711))?;
        fs::create_dir_all(folder.join("home/run"))?;
        fs::write(folder.join("home/containers.conf"), configuration()?)?;
        fs::write(folder.join("home/storage.conf"), storage(&folder).to_string())?;
        if ROOTLESS {
            let mut chown = Command::new("chown");
            success(chown.args(["--recursive", "daemon:daemon"]).arg(folder.join("home"))).await?;
        }

        let mut arguments = vec!["-i".to_owned()];
        arguments.extend(environment(&folder).map(|(name, value)| format!("{name}={value}")));
        arguments.extend(["sh", "-c", PREPARE, "sh"].map(str::to_owned));
        arguments.extend(Self::AS.iter().map(|&word| word.to_owned()));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let prepared = async |folder: &Folder| folder.join("home/prepared").exists();
        let place = Daemon::start("env", folder, &arguments, prepared).await?;
        Ok(Self { place })
    }

    async fn version(&self) -> Result<String> {
        self.podman(["version", "--format", "{{.Client.Version}}"]).await
    }

    async fn teardown(self) -> Result<()> {
        self.podman(["pod", "rm", "--all", "--force", "--time=0"]).await?;
        // An ordinary user's namespaces have a process that keeps them. This tells it to end, and
        // does not wait for it.
        self.podman(["system", "migrate"]).await?;
        let alone = until("Podman has ended", async || {
            let processes = host::descendants(std::process::id() as i32)?;
            Ok((processes.len() == 1).then_some(()))
        })
        .await;
        self.place.stop().await?;
        alone
    }

    async fn surroundings(&self) -> Result<HashSet<String>> {
        let mut found = self.place.surroundings()?;
        for list in [&["pod", "ps"][..], &["ps", "--all"], &["volume", "ls"]] {
            let list = self.podman(list.iter().copied().chain(["--quiet"])).await?;
            found.extend(list.lines().map(|id| format!("pod, container or volume {id}")));
        }
        Ok(found)
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        // From where the user can read it.
        let copy = self.place.folder().join("archive.tar");
        fs::copy(archive, &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o644))?;
        let mut client = self.client(&["podman", "load", "--quiet", "--input"])?;
        success(client.arg(&copy)).await.map(drop)
    }

    async fn shows(&self, stage: &Stage) -> Result<()> {
        let image = self.inspect(&["image", "inspect", &stage.reference]).await?;
        // Podman counts what it was given: the layer before compression, manifest and configuration.
        let size = image["Size"].as_u64().context("the image has no size")?;
        let archive = fs::metadata(&stage.image)?.len();
        ensure!(size < archive, "the image has {size} bytes, its archive {archive}");
        let machine = self.podman(["version", "--format", "{{.Client.OsArch}}"]).await?;
        let platform = [&image["Os"], &image["Architecture"]].map(|name| name.as_str());
        same("the platform", platform.map(Option::unwrap_or_default).join("/"), machine)?;
        runs_pause(&image)
    }

    async fn build(&self) -> Result<Vec<u8>> {
        if ROOTLESS {
            return Err(Lacks("root's buildah builds the same").into());
        }
        let folder = self.place.folder();
        let toolchain = toolchain::pack(&folder.join("toolchain.tar")).await?;
        let mut client = self.client(&["podman", "import", "--quiet"])?;
        client.args(toolchain.changes.iter().flat_map(|change| ["--change", change]));
        success(client.arg(&toolchain.archive).arg("localhost/toolchain")).await?;

        let mut client =
            self.client(&["buildah", "build", "--isolation=chroot", "--pull-never"])?;
        client.args(["--build-arg=RUST_IMAGE=localhost/toolchain", "--tag=localhost/built"]);
        success(client.arg(project())).await?;

        runs_pause(&self.inspect(&["image", "inspect", "localhost/built"]).await?)?;
        self.podman(["create", "--name=built", "localhost/built"]).await?;
        let built = folder.join("built");
        success(self.client(&["podman", "cp", "built:/pause"])?.arg(&built)).await?;
        self.podman(["rm", "built"]).await?;
        Ok(fs::read(built)?)
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let infra = format!("--infra-name={}", infra(name));
        let mut create = vec!["pod", "create", "--name", name, &infra, "--share=pid,ipc,net,uts"];
        let parent = format!("--cgroup-parent={}", self.place.folder().cgroup);
        if ROOTLESS {
            // By default each pod has a network of its own, and cannot be reached in it.
            create.push("--network=podman");
        } else {
            create.push(&parent);
        }
        if sandbox == Sandbox::HostPid {
            create.push("--pid=host");
        }
        let id = self.podman(create).await?;
        self.podman(["pod", "start", name]).await?;
        Ok(Pod { name: name.to_owned(), id })
    }

    async fn remap(&mut self, _: bool) -> Result<()> {
        // A user's pods are remapped as it is. Podman 4.3 cannot always remove root's that are: now
        // and then a mount or the network namespace of one stays behind.
        let reason = "podman-rootless has it; root's Podman does not clean up after it reliably";
        if ROOTLESS { Ok(()) } else { Err(Lacks(reason).into()) }
    }

    async fn pause(&self, pod: &Pod) -> Result<i32> {
        self.process(&infra(&pod.name)).await
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        let state = self.podman(["pod", "inspect", "--format", "{{.State}}", &pod.id]).await?;
        Ok(state == "Running")
    }

    async fn pod_log(&self, pod: &Pod) -> Result<Option<Log>> {
        self.logs(&infra(&pod.name)).await.map(Some)
    }

    async fn address(&self, pod: &Pod) -> Result<String> {
        let infra = self.inspect(&["inspect", &infra(&pod.name)]).await?;
        let network = &infra["NetworkSettings"]["Networks"]["podman"];
        Ok(network["IPAddress"].as_str().context("the pod has no address")?.to_owned())
    }

    fn on_host(&self, program: &str) -> Result<Command> {
        if ROOTLESS {
            self.client(&["podman", "unshare", "--rootless-netns", program])
        } else {
            self.place.within(program)
        }
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.podman(["pod", "stop", &pod.id]).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        self.podman(["kill", "--signal", signal.as_str(), &infra(&pod.name)]).await.map(drop)
    }

    async fn pod_exit_code(&self, pod: &Pod) -> Result<i64> {
        self.wait(&infra(&pod.name)).await
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.podman(["pod", "start", &pod.id]).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.podman(["pod", "rm", "--force", "--time=0", &pod.id]).await.map(drop)
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let mut client = self.client(&["podman", "run", "--detach", "--pull=never"])?;
        client.args(["--pod", &pod.id, "--name", &format!("{}-{name}", pod.name)]);
        if !spec.shares_pid {
            client.arg("--pid=private");
        }
        if let Some((folder, place)) = spec.volume {
            client.arg("--volume").arg(format!("{}:{place}", folder.display()));
        }
        if spec.hardened {
            client.args(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
            if Self::LIMITS_MEMORY {
                let memory = Self::LEAST_MEMORY.to_string();
                client.args(["--pids-limit=1", "--memory", &memory, "--memory-swap", &memory]);
            }
        }
        client.arg(spec.image).args(spec.arguments);
        Ok(Container { name: name.to_owned(), id: success(&mut client).await? })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        self.process(&container.id).await
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        self.podman(["exec", &container.id].iter().chain(command).copied()).await
    }

    async fn log(&self, container: &Container) -> Result<Log> {
        self.logs(&container.id).await
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        self.podman(["stop", &container.id]).await.map(drop)
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        self.wait(&container.id).await
    }

    async fn remove(&self, container: Container) -> Result<()> {
        self.podman(["rm", "--force", "--time=0", "--volumes", &container.id]).await.map(drop)
    }

    async fn restart(&self, _: &Pod, container: Container, _: Spec<'_>) -> Result<Container> {
        self.podman(["start", &container.id]).await?;
        Ok(container)
    }
}

/// The file in `deploy/`, changed for this machine.
fn configuration() -> Result<String> {
    let path = project().join("deploy/podman-containers.conf");
    let shown = path.display();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
    let mut config: DocumentMut = text.parse().with_context(|| format!("cannot read {shown}"))?;
    // systemd would have to be asked for control groups and for the log, and is out of reach.
    config["engine"]["cgroup_manager"] = "cgroupfs".into();
    config["engine"]["events_logger"] = "file".into();
    config["containers"]["log_driver"] = "k8s-file".into();
    // What Podman asks for by itself is a privilege.
    if !host::has_cap_sys_resource()? {
        let limits: Array = ["nofile=1024:1024", "nproc=4096:4096"].into_iter().collect();
        config["containers"]["default_ulimits"] = toml_edit::value(limits);
    }
    Ok(config.to_string())
}

/// Where Podman keeps what is root's. All else goes to the user's home.
fn storage(folder: &Folder) -> DocumentMut {
    let mut config = DocumentMut::new();
    let storage = &mut config["storage"];
    storage["driver"] = "overlay".into();
    storage["graphroot"] = folder.join("home/storage").display().to_string().into();
    storage["runroot"] = folder.join("home/run/storage").display().to_string().into();
    config
}

/// All that Podman is told by its environment, whoever's it is.
fn environment(folder: &Folder) -> [(&'static str, String); 6] {
    let path = |name| folder.join(name).display().to_string();
    [
        ("PATH", env::var("PATH").unwrap_or_default()),
        ("HOME", path("home")),
        ("TMPDIR", path("home")),
        ("XDG_RUNTIME_DIR", path("home/run")),
        ("CONTAINERS_CONF", path("home/containers.conf")),
        ("CONTAINERS_STORAGE_CONF", path("home/storage.conf")),
    ]
}

/// The name of the container that pause is, in the pod `pod`.
fn infra(pod: &str) -> String {
    format!("{pod}-infra")
}

/// The image runs `/pause` as nobody.
fn runs_pause(image: &Value) -> Result<()> {
    same("the user", &image["Config"]["User"], &json!("65535:65535"))?;
    same("the entrypoint", &image["Config"]["Entrypoint"], &json!(["/pause"]))
}

impl<const ROOTLESS: bool> Podman<ROOTLESS> {
    /// What comes before a command of Podman's.
    const AS: &[&str] = if ROOTLESS { &AS_USER } else { &[] };

    /// The process of a container, as the host numbers it.
    async fn process(&self, container: &str) -> Result<i32> {
        let pid = self.podman(["inspect", "--format", "{{.State.Pid}}", container]).await?;
        let pid = pid.parse().with_context(|| format!("the PID of {container} is {pid:?}"))?;
        ensure!(pid > 0, "{container} does not run");
        Ok(pid)
    }

    /// Waits until a container has ended, and returns its exit code. Not by `podman wait`: that is
    /// seen to take 20 seconds longer for an ordinary user's.
    async fn wait(&self, container: &str) -> Result<i64> {
        until(&format!("{container} has ended"), async || {
            let state = &self.inspect(&["inspect", container]).await?["State"];
            let ended = matches!(state["Status"].as_str(), Some("exited" | "stopped"));
            Ok(ended.then(|| state["ExitCode"].as_i64()).flatten())
        })
        .await
    }

    /// What a container wrote.
    async fn logs(&self, container: &str) -> Result<Log> {
        let output = end(&mut self.client(&["podman", "logs", container])?).await?;
        ensure!(output.status.success(), "podman logs: {}", output.status);
        Ok(Log::new(&output.stdout, &output.stderr))
    }

    /// What Podman knows, asked for by `command`.
    async fn inspect(&self, command: &[&str]) -> Result<Value> {
        let found: Value = serde_json::from_str(&self.podman(command.iter().copied()).await?)?;
        Ok(found[0].clone())
    }

    /// Runs Podman.
    async fn podman<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client(&["podman"])?.args(arguments)).await
    }

    /// A command of Podman's, in its place and with its settings and no other.
    fn client(&self, words: &[&str]) -> Result<Command> {
        let words = [Self::AS, words].concat();
        let mut client = self.place.within(words[0])?;
        client.args(&words[1..]).env_clear().envs(environment(self.place.folder()));
        Ok(client)
    }
}
