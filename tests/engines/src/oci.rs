//! runc, crun and gVisor's runsc, with nothing above them: bundles of our own, run as an engine would
//! run them.

use crate::containerd::NETWORK;
use crate::engine::{Column, Engine, Facts, Lacks, Name, Pod, Sandbox, Spec};
use crate::host::same;
use crate::images::Image;
use crate::scenario::{Context, Scenario};
use crate::wait::{end, script, success, until};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// The system calls that a hardened container may not make. There is no default to take.
const FORBIDDEN: [&str; 6] = ["bpf", "keyctl", "mount", "ptrace", "setns", "unshare"];

/// What the host calls root, and the 65,535 after it, in a user namespace of a pod's own.
const REMAPPED: &str = "0:100000:65536";

/// Connects the host and the pod whose process is $2 by the network that is described in $1.
const CONNECT: &str = r#"
    export CNI_COMMAND=ADD CNI_CONTAINERID="$(cat /proc/sys/kernel/random/uuid)"
    export CNI_NETNS="/proc/$2/ns/net" CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni
    nsenter --net="$CNI_NETNS" ip link set lo up
    echo "$1" | /usr/lib/cni/ptp
"#;

/// A runtime, and what it is told to run.
pub struct Oci {
    name: Name,
    facts: Facts,
    reference: String,
    folder: PathBuf,
    /// The calls that run containers, until they tell how these ended.
    runs: RefCell<BTreeMap<String, Child>>,
    /// Whether pods get user namespaces.
    remaps: bool,
}

impl Column for Oci {
    async fn start(name: Name, image: &Image) -> Result<Self> {
        let folder = Path::new("/var/lib/oci").join(name.to_string());
        for part in ["bundles", "state"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let (facts, reference) = (name.facts(), image.reference.clone());
        Ok(Self { name, facts, reference, folder, runs: RefCell::default(), remaps: false })
    }

    async fn test(&mut self, scenario: Scenario, context: &Context) -> Result<()> {
        let release = fs::read_to_string("/etc/os-release")?;
        if self.facts.own_kernel && release.contains("forky") && scenario != Scenario::Load {
            let reason = "this package of gVisor, 20240729 built by Go 1.26, panics on SIGCHLD";
            return Err(Lacks(reason).into());
        }
        scenario.test(self.name, self, context).await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = success(self.runtime("list").arg("--quiet")).await?;
        Ok(list.lines().map(|id| format!("container {id}")).collect())
    }

    async fn remove_all(&self) -> Result<()> {
        self.remove_beginning_with("").await
    }
}

impl Engine for Oci {
    async fn load(&self, archive: &Path) -> Result<()> {
        let mut list = Command::new("tar");
        let files = success(list.arg("--list").arg("--file").arg(archive)).await?;
        // What is for several platforms is in the other format.
        let is_oci = files.lines().any(|file| file == "oci-layout");
        let format = if is_oci { "oci-archive" } else { "docker-archive" };
        let archive = archive.display();
        let tags = skopeo(&["list-tags", &format!("docker-archive:{archive}")]).await?;
        let tags: Value = serde_json::from_str(&tags)?;
        let name = tags["Tags"][0].as_str().context("the image has no name")?;
        let to = format!("oci:{}:{name}", self.folder.join("layout").display());
        skopeo(&["copy", "--quiet", &format!("{format}:{archive}"), &to]).await.map(drop)
    }

    async fn shows(&self, tried: &Image) -> Result<()> {
        let config = self.unpack("shown", &tried.reference).await?;
        let rootfs = self.bundle("shown").join("rootfs");
        same("the number of files", fs::read_dir(&rootfs)?.count(), 1)?;
        ensure!(fs::read(rootfs.join("pause"))? == tried.binary()?, "it has another program");
        same("the user", &config["process"]["user"], &json!({ "uid": 65535, "gid": 65535 }))?;
        same("the entrypoint", &config["process"]["args"], &json!(["/pause"]))?;
        self.remove("shown").await
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let mut kinds = vec!["mount", "network", "ipc", "uts"];
        // gVisor's first container is in the PID namespace of its kernel.
        if sandbox == Sandbox::Usual && !self.facts.own_kernel {
            kinds.push("pid");
        }
        if self.remaps {
            kinds.push("user");
        }
        let namespaces = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        // No name may be the beginning of another one: gVisor takes it for both.
        let pod = Pod { name: name.to_owned(), pause: format!("{name}.pause") };
        let spec = Spec::new(&self.reference, &[]);
        let mut config = self.specify(&pod.pause, &spec, namespaces).await?;
        config["hostname"] = name.into();
        config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
        self.launch(&pod.pause, Some(config)).await?;
        self.connect(pod).await
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        ensure!(!self.facts.own_kernel, Lacks("its users are those of a kernel of its own"));
        self.remaps = on;
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(self.pid(&pod.pause).await.is_ok())
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.stop(&pod.pause).await
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        success(self.runtime("kill").args([&pod.pause, signal.as_str()])).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        let namespaces = vec![json!({ "type": "mount" }), json!({ "type": "pid" })];
        let spec = Spec::new(&self.reference, &[]);
        let mut config = self.specify("terminal", &spec, namespaces).await?;
        config["process"]["terminal"] = true.into();
        let bundle = self.bundle("terminal");
        fs::write(bundle.join("config.json"), config.to_string())?;
        let (state, bundle) = (self.folder.join("state"), bundle.display());
        Ok(format!("{} --root {} run --bundle {bundle} terminal", self.name, state.display()))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.launch(&pod.pause, None).await?;
        self.connect(pod).await
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.remove_beginning_with(&format!("{}.", pod.name)).await
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let pause = self.pid(&pod.pause).await?;
        let join = |kind, name| json!({ "type": kind, "path": format!("/proc/{pause}/ns/{name}") });
        let mut namespaces = vec![json!({ "type": "mount" })];
        match spec.shares_pid {
            // As above.
            true if self.facts.own_kernel => {}
            true => namespaces.push(join("pid", "pid")),
            false => namespaces.push(json!({ "type": "pid" })),
        }
        if !self.facts.own_kernel {
            let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
            namespaces.extend(shared.map(|(kind, name)| join(kind, name)));
        }
        if self.remaps {
            namespaces.push(join("user", "user"));
        }
        let id = format!("{}.{name}", pod.name);
        let mut config = self.specify(&id, &spec, namespaces).await?;
        // How gVisor is told which pod a container is in; the others do not look at it.
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": pod.pause,
        });
        self.launch(&id, Some(config)).await?;
        Ok(id)
    }

    async fn pid(&self, container: &str) -> Result<i32> {
        let state: Value =
            serde_json::from_str(&success(self.runtime("state").arg(container)).await?)?;
        ensure!(state["status"] == "running", "it does not run: {state}");
        Ok(state["pid"].as_i64().context("it has no process")? as i32)
    }

    async fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        success(self.runtime("exec").arg(container).args(command)).await
    }

    async fn log(&self, container: &str) -> Result<[String; 2]> {
        let read = |stream| fs::read_to_string(self.bundle(container).join(stream));
        Ok([read("stdout")?, read("stderr")?])
    }

    async fn stop(&self, container: &str) -> Result<()> {
        // Its default is SIGTERM.
        success(self.runtime("kill").arg(container)).await.map(drop)
    }

    /// The exit code that the runtime reports.
    async fn exit_code(&self, container: &str) -> Result<i64> {
        let run = self.runs.borrow_mut().remove(container);
        let mut run = run.with_context(|| format!("{container} does not run"))?;
        let ended = until("the container has ended", async || Ok(run.try_wait()?)).await?;
        Ok(ended.code().with_context(|| format!("the runtime itself ended: {ended}"))?.into())
    }
}

async fn skopeo(arguments: &[&str]) -> Result<String> {
    success(Command::new("skopeo").arg("--insecure-policy").args(arguments)).await
}

impl Oci {
    /// The bundle of a container.
    fn bundle(&self, id: &str) -> PathBuf {
        self.folder.join("bundles").join(id)
    }

    /// A command of the runtime, with a state of its own.
    fn runtime(&self, command: &str) -> Command {
        let mut runtime = Command::new(self.name.to_string());
        if self.facts.own_kernel {
            runtime.args(["--ignore-cgroups", "--network=none"]);
        }
        runtime.arg("--root").arg(self.folder.join("state")).arg(command);
        runtime
    }

    /// Makes a bundle from an image, and returns its configuration.
    async fn unpack(&self, id: &str, image: &str) -> Result<Value> {
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image"]);
        umoci.arg(format!("{}:{image}", self.folder.join("layout").display()));
        if self.remaps {
            umoci.args(["--uid-map", REMAPPED, "--gid-map", REMAPPED]);
        }
        success(umoci.arg(self.bundle(id))).await?;
        // Otherwise the root of a user namespace may not enter it.
        fs::set_permissions(self.bundle(id), Permissions::from_mode(0o755))?;
        Ok(serde_json::from_slice(&fs::read(self.bundle(id).join("config.json"))?)?)
    }

    /// Makes a bundle, and returns what the image and `spec` say.
    async fn specify(&self, id: &str, spec: &Spec<'_>, namespaces: Vec<Value>) -> Result<Value> {
        let mut config = self.unpack(id, spec.image).await?;
        let process = &mut config["process"];
        process["terminal"] = false.into();
        if let Some(user) = spec.user {
            process["user"] = json!({ "uid": user, "gid": user });
        }
        // An entrypoint stays. The images beside pause have a command, which is replaced.
        let words = process["args"].as_array_mut().context("no command")?;
        words.retain(|word| word == "/pause");
        words.extend(spec.arguments.iter().map(|argument| (*argument).into()));
        process["noNewPrivileges"] = spec.hardened.into();
        let kept = process["capabilities"]["bounding"].take();
        let kept = if spec.hardened { json!([]) } else { kept };
        process["capabilities"] = json!({ "bounding": kept, "effective": kept, "permitted": kept });
        config["root"]["readonly"] = spec.hardened.into();
        // A container that joins others must not name them.
        config.as_object_mut().context("an object")?.remove("hostname");
        if let Some((source, destination)) = spec.volume {
            let mounts = config["mounts"].as_array_mut().context("no mounts")?;
            let options = ["rbind", "rw"];
            mounts.push(json!({ "type": "bind", "source": source, "destination": destination, "options": options }));
        }
        let linux = &mut config["linux"];
        linux["namespaces"] = namespaces.into();
        // gVisor is told to ignore control groups, and forgets to remove them.
        let path = if self.facts.own_kernel { Value::Null } else { format!("/oci/{id}").into() };
        linux["cgroupsPath"] = path;
        if spec.hardened {
            let limit = self.facts.least_memory.map_err(Lacks)?;
            linux["resources"]["memory"] = json!({ "limit": limit });
            let forbidden = json!({ "names": FORBIDDEN, "action": "SCMP_ACT_ERRNO" });
            linux["seccomp"] =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [forbidden] });
        }
        Ok(config)
    }

    /// Runs a bundle, with a new configuration if there is one, and returns when the container has
    /// started.
    async fn launch(&self, id: &str, config: Option<Value>) -> Result<()> {
        let folder = self.bundle(id);
        if let Some(config) = config {
            fs::write(folder.join("config.json"), config.to_string())?;
        }
        let pid_file = folder.join("pid");
        // That of an earlier run.
        let _ = fs::remove_file(&pid_file);
        let mut run = self.runtime("run");
        run.arg("--bundle").arg(&folder).arg("--pid-file").arg(&pid_file).arg(id);
        run.stdin(Stdio::null());
        run.stdout(File::create(folder.join("stdout"))?);
        run.stderr(File::create(folder.join("stderr"))?);
        let mut run = run.kill_on_drop(true).spawn()?;
        until("the container has started", async || {
            let started = fs::read_to_string(&pid_file).is_ok_and(|pid| !pid.is_empty());
            if !started && let Some(status) = run.try_wait()? {
                bail!("{status}\n{:?}", self.log(id).await?);
            }
            Ok(started.then_some(()))
        })
        .await?;
        self.runs.borrow_mut().insert(id.to_owned(), run);
        Ok(())
    }

    /// Connects a pod to the host.
    async fn connect(&self, pod: Pod) -> Result<Pod> {
        if !self.facts.own_kernel {
            let pause = self.pid(&pod.pause).await?.to_string();
            script(CONNECT, &[NETWORK, &pause]).await?;
        }
        Ok(pod)
    }

    /// Removes a container, whether it runs or not.
    async fn remove(&self, container: &str) -> Result<()> {
        // One that has ended is gone already, and only the files are left.
        let running = self.runs.borrow().contains_key(container);
        if running {
            end(self.runtime("delete").args(["--force", container])).await?;
            self.exit_code(container).await?;
        }
        Ok(fs::remove_dir_all(self.bundle(container))?)
    }

    /// Removes the containers whose names begin so.
    async fn remove_beginning_with(&self, beginning: &str) -> Result<()> {
        let bundles = fs::read_dir(self.bundle(""))?.flatten();
        let ids = bundles.map(|it| it.file_name().to_string_lossy().into_owned());
        let mut ids: Vec<_> = ids.filter(|id| id.starts_with(beginning)).collect();
        ids.sort_by_key(|id| id.ends_with(".pause"));
        for id in ids {
            self.remove(&id).await?;
        }
        Ok(())
    }
}
