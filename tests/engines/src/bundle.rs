//! runc and crun, with nothing above them: bundles of our own, run as an engine would run them.

use crate::daemon::{self, Daemon, Folder};
use crate::engine::{Container, Engine, Log, Pod, Sandbox, Spec};
use crate::host::{self, same};
use crate::kind::Engine as Name;
use crate::stage::Stage;
use crate::wait::{end, success, until};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use procfs::process::Process;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::marker::PhantomData;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A program that runs bundles.
pub trait Runtime: 'static {
    /// Its name, and the program's.
    const NAME: Name;

    /// [`Engine::LEAST_MEMORY`]
    const LEAST_MEMORY: u64;

    /// What has to be done before it runs anything, in mount namespace of its own.
    const PREPARATION: &str = ":";
}

/// The one that Docker, containerd and Podman on Debian use.
pub enum Runc {}

impl Runtime for Runc {
    const NAME: Name = Name::Runc;

    // Go's runtime has to fit in, before pause takes its place.
    const LEAST_MEMORY: u64 = 6 << 20;
}

/// The one in C.
pub enum Crun {}

impl Runtime for Crun {
    const NAME: Name = Name::Crun;

    const LEAST_MEMORY: u64 = 512 << 10;

    // It refuses hierarchies of both versions at once.
    const PREPARATION: &str =
        "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified";
}

/// The capabilities that engines leave to containers.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The system calls that a hardened container may not make. There is no default to take.
const FORBIDDEN: [&str; 6] = ["bpf", "keyctl", "mount", "ptrace", "setns", "unshare"];

/// What the host calls root, and the 65,535 after it, in a user namespace of a pod's own.
const REMAPPED: u32 = 100_000;

/// The address of the host, where pods look for it.
const HOST: &str = "10.88.0.1";

/// Gives the pod whose process is $1 the address $3, on a link whose other end is $2 here.
const LINK: &str = r#"
    set -e
    ip link add "$2" type veth peer name eth0 netns "$1"
    ip address add "$0" peer "$3" dev "$2"
    ip link set "$2" up
    nsenter --net="/proc/$1/ns/net" ip link set lo up
    nsenter --net="/proc/$1/ns/net" ip address add "$3/16" dev eth0
    nsenter --net="/proc/$1/ns/net" ip link set eth0 up
"#;

/// A runtime, and what it is told to run.
pub struct Bundles<R> {
    /// Only holds the namespaces that the runtime is called in.
    daemon: Daemon,
    reference: String,
    /// The calls that run containers, until they tell how these ended.
    runs: RefCell<BTreeMap<String, Child>>,
    /// The pods that have been started, which is where their addresses come from.
    pods: Cell<u16>,
    runtime: PhantomData<R>,
}

impl<R: Runtime> Engine for Bundles<R> {
    const NAME: Name = R::NAME;

    const LEAST_MEMORY: u64 = R::LEAST_MEMORY;

    async fn start(stage: &Stage) -> Result<Self> {
        let program = R::NAME.to_string();
        daemon::require(&[&program, "skopeo", "umoci", "mountpoint"])?;
        let folder = Folder::new(R::NAME)?;
        for name in ["images", "bundles"] {
            fs::create_dir(folder.join(name))?;
        }
        let daemon = Daemon::idle(folder).await?;
        success(daemon.within("sh")?.args(["-c", R::PREPARATION])).await?;
        Ok(Self {
            daemon,
            reference: stage.reference.clone(),
            runs: RefCell::default(),
            pods: Cell::default(),
            runtime: PhantomData,
        })
    }

    async fn version(&self) -> Result<String> {
        let told = success(self.runtime()?.arg("--version")).await?;
        let version = told.split_whitespace().nth(2);
        Ok(version.with_context(|| format!("no version in {told:?}"))?.to_owned())
    }

    async fn teardown(self) -> Result<()> {
        self.remove_all("").await?;
        self.daemon.stop().await
    }

    async fn surroundings(&self) -> Result<HashSet<String>> {
        let mut found = self.daemon.surroundings()?;
        let list = success(self.runtime()?.args(["list", "--quiet"])).await?;
        found.extend(list.lines().map(|id| format!("container {id}")));
        Ok(found)
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        let (format, reference) = identify(archive)?;
        let image = self.image(&reference);
        if image.exists() {
            fs::remove_dir_all(&image)?;
        }
        fs::create_dir(&image)?;
        let layout = image.join("layout");
        let from = format!("{format}:{}", archive.display());
        let to = format!("oci:{}:latest", layout.display());
        let mut skopeo = Command::new("skopeo");
        success(skopeo.args(["--insecure-policy", "copy", "--quiet", &from, &to])).await?;
        let mut inspect = Command::new("skopeo");
        let config = success(inspect.args(["inspect", "--config", "--raw", &to])).await?;
        fs::write(image.join("config.json"), config)?;
        let mut umoci = Command::new("umoci");
        umoci.args(["raw", "unpack", "--image"]).arg(format!("{}:latest", layout.display()));
        success(umoci.arg(image.join("rootfs"))).await.map(drop)
    }

    async fn shows(&self, stage: &Stage) -> Result<()> {
        let rootfs = self.image(&stage.reference).join("rootfs");
        let files: Vec<_> = fs::read_dir(&rootfs)?.collect::<Result<_, _>>()?;
        same("the number of files", files.len(), 1)?;
        ensure!(fs::read(rootfs.join("pause"))? == stage.binary, "it has another program");
        let config = &self.config(&stage.reference)?["config"];
        same("the user", &config["User"], &json!("65535:65535"))?;
        same("the entrypoint", &config["Entrypoint"], &json!(["/pause"]))
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let mut kinds = vec!["mount", "network", "ipc", "uts"];
        match sandbox {
            Sandbox::Usual => kinds.push("pid"),
            Sandbox::HostPid => {}
            Sandbox::Remapped => kinds.extend(["pid", "user"]),
        }
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let spec = Spec::new(&self.reference, &[]);
        let mut config = self.specify(name, &spec, namespaces.into()).await?;
        config["hostname"] = name.into();
        let remapped = sandbox == Sandbox::Remapped;
        self.create(name, &self.reference, config, remapped).await?;
        let pod = Pod { name: name.to_owned(), id: name.to_owned() };
        self.link(&pod).await?;
        Ok(pod)
    }

    async fn remap(&mut self, on: bool) -> Result<()> {
        // The users of containers have to get through to their files.
        let mode = if on { 0o711 } else { 0o700 };
        let folder = self.daemon.folder().join("");
        Ok(fs::set_permissions(folder, Permissions::from_mode(mode))?)
    }

    async fn pause(&self, pod: &Pod) -> Result<i32> {
        self.process(&pod.id).await
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(self.process(&pod.id).await.is_ok())
    }

    async fn pod_log(&self, pod: &Pod) -> Result<Option<Log>> {
        self.logs(&pod.id).map(Some)
    }

    async fn address(&self, pod: &Pod) -> Result<String> {
        let address = fs::read_to_string(self.bundle(&pod.id).join("address"));
        address.context("the pod has no address")
    }

    fn on_host(&self, program: &str) -> Result<Command> {
        self.daemon.within(program)
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        // Its default is SIGTERM.
        success(self.runtime()?.args(["kill", &pod.id])).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        success(self.runtime()?.args(["kill", &pod.id, signal.as_str()])).await.map(drop)
    }

    async fn pod_exit_code(&self, pod: &Pod) -> Result<i64> {
        self.wait(&pod.id).await
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.launch(&pod.id).await?;
        self.link(&pod).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.remove_all(&format!("{}.", pod.id)).await?;
        self.delete(&pod.id).await
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let pause = self.process(&pod.id).await?;
        let join = |kind, name| json!({ "type": kind, "path": format!("/proc/{pause}/ns/{name}") });
        let pid = if spec.shares_pid { join("pid", "pid") } else { json!({ "type": "pid" }) };
        let mut namespaces = vec![json!({ "type": "mount" }), pid];
        namespaces.extend(Self::SHARED.iter().map(|name| match *name {
            "net" => join("network", "net"),
            name => join(name, name),
        }));
        let users = |pid| host::namespaces(&Process::new(pid)?, &["user"]);
        let remapped = users(pause)? != users(std::process::id() as i32)?;
        if remapped {
            namespaces.push(join("user", "user"));
        }

        let id = format!("{}.{name}", pod.id);
        let config = self.specify(&id, &spec, namespaces.into()).await?;
        self.create(&id, spec.image, config, remapped).await?;
        Ok(Container { name: name.to_owned(), id })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        self.process(&container.id).await
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        success(self.runtime()?.args(["exec", &container.id]).args(command)).await
    }

    async fn log(&self, container: &Container) -> Result<Log> {
        self.logs(&container.id)
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        success(self.runtime()?.args(["kill", &container.id])).await.map(drop)
    }

    async fn exit_code(&self, container: &Container) -> Result<i64> {
        self.wait(&container.id).await
    }

    async fn remove(&self, container: Container) -> Result<()> {
        self.delete(&container.id).await
    }
}

/// The format that skopeo is told an archive has, and the name of the image in it.
fn identify(archive: &Path) -> Result<(&'static str, String)> {
    let (mut format, mut manifest) = ("docker-archive", String::new());
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        match &*entry.path()?.to_string_lossy() {
            "oci-layout" => format = "oci-archive",
            "manifest.json" => drop(entry.read_to_string(&mut manifest)?),
            _ => {}
        }
    }
    let manifest: Value = serde_json::from_str(&manifest).context("no manifest.json")?;
    let reference = manifest[0]["RepoTags"][0].as_str().context("the image has no name")?;
    Ok((format, reference.to_owned()))
}

impl<R: Runtime> Bundles<R> {
    /// The folder with what there is of an image.
    fn image(&self, reference: &str) -> PathBuf {
        self.daemon.folder().join("images").join(reference.replace('/', "+"))
    }

    /// The configuration of an image.
    fn config(&self, reference: &str) -> Result<Value> {
        let config = fs::read(self.image(reference).join("config.json"));
        Ok(serde_json::from_slice(&config.with_context(|| format!("no image {reference}"))?)?)
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.daemon.folder().join("bundles").join(id)
    }

    /// What the runtime itself would write for a container, and what the image and `spec` say.
    async fn specify(&self, id: &str, spec: &Spec<'_>, namespaces: Value) -> Result<Value> {
        let image = &self.config(spec.image)?["config"];
        let words = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let user = image["User"].as_str().unwrap_or("0:0");
        let (user, group) = user.split_once(':').context("the image's user has no group")?;
        let capabilities: &[&str] = if spec.hardened { &[] } else { &CAPABILITIES };

        let folder = self.bundle(id);
        fs::create_dir(&folder)?;
        success(self.runtime()?.arg("spec").arg("--bundle").arg(&folder)).await?;
        let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let process = &mut config["process"];
        process["terminal"] = false.into();
        process["user"] = json!({ "uid": user.parse::<u32>()?, "gid": group.parse::<u32>()? });
        process["args"] = words(&image["Entrypoint"])
            .into_iter()
            .chain(spec.arguments.iter().map(|argument| (*argument).into()))
            .collect();
        process["env"] = words(&image["Env"]).into();
        process["noNewPrivileges"] = spec.hardened.into();
        process["capabilities"] = ["bounding", "effective", "permitted"]
            .into_iter()
            .map(|set| (set.to_owned(), json!(capabilities)))
            .collect();
        config["root"]["readonly"] = spec.hardened.into();
        // A container that joins others must not name them.
        config.as_object_mut().context("an object")?.remove("hostname");
        if let Some((source, destination)) = spec.volume {
            let mounts = config["mounts"].as_array_mut().context("no mounts")?;
            let options = ["rbind", "rw"];
            mounts.push(json!({ "type": "bind", "source": source, "destination": destination, "options": options }));
        }
        let linux = &mut config["linux"];
        linux["namespaces"] = namespaces;
        linux["cgroupsPath"] = format!("{}/{id}", self.daemon.folder().cgroup).into();
        if spec.hardened {
            linux["resources"]["memory"] = json!({ "limit": R::LEAST_MEMORY });
            let forbidden = json!({ "names": FORBIDDEN, "action": "SCMP_ACT_ERRNO" });
            linux["seccomp"] =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [forbidden] });
        }
        Ok(config)
    }

    /// Makes a bundle, and runs it. Its files belong to the host's root, or to `REMAPPED`.
    async fn create(&self, id: &str, image: &str, mut config: Value, remapped: bool) -> Result<()> {
        let folder = self.bundle(id);
        if remapped {
            let range = json!([{ "containerID": 0, "hostID": REMAPPED, "size": 65536 }]);
            config["linux"]["uidMappings"] = range.clone();
            config["linux"]["gidMappings"] = range;
        }
        fs::write(folder.join("config.json"), config.to_string())?;
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(self.image(image).join("rootfs")).arg(&folder);
        success(&mut copy).await?;
        if remapped {
            let mut chown = Command::new("chown");
            chown.args(["--recursive", "--no-dereference", &format!("{REMAPPED}:{REMAPPED}")]);
            success(chown.arg(folder.join("rootfs"))).await?;
        }
        self.launch(id).await
    }

    /// Runs a bundle, and returns when the container has started.
    async fn launch(&self, id: &str) -> Result<()> {
        let folder = self.bundle(id);
        let pid_file = folder.join("pid");
        if pid_file.exists() {
            fs::remove_file(&pid_file)?;
        }
        let mut run = self.runtime()?;
        run.arg("run").arg("--bundle").arg(&folder).arg("--pid-file").arg(&pid_file).arg(id);
        run.stdin(Stdio::null());
        run.stdout(File::create(folder.join("stdout"))?);
        run.stderr(File::create(folder.join("stderr"))?);
        let mut run = run.kill_on_drop(true).spawn()?;
        until("the container has started", async || {
            let started = fs::read_to_string(&pid_file).is_ok_and(|pid| !pid.is_empty());
            if !started && let Some(status) = run.try_wait()? {
                bail!("{status}\n{:?}", self.logs(id)?);
            }
            Ok(started.then_some(()))
        })
        .await?;
        self.runs.borrow_mut().insert(id.to_owned(), run);
        Ok(())
    }

    /// Connects a pod to the host.
    async fn link(&self, pod: &Pod) -> Result<()> {
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let [high, low] = number.to_be_bytes();
        let address = format!("10.88.{}.{low}", high + 1);
        let pause = self.process(&pod.id).await?.to_string();
        let mut link = self.daemon.within("sh")?;
        link.args(["-c", LINK, HOST, &pause, &format!("pod{number}"), &address]);
        success(&mut link).await?;
        Ok(fs::write(self.bundle(&pod.id).join("address"), address)?)
    }

    /// The process of a container, as the host numbers it.
    async fn process(&self, id: &str) -> Result<i32> {
        let state: Value =
            serde_json::from_str(&success(self.runtime()?.args(["state", id])).await?)?;
        ensure!(state["status"] == "running", "it does not run: {state}");
        let pid = state["pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it has no process: {state}"))? as i32)
    }

    /// Waits until a container has ended, and returns the exit code that the runtime reports.
    async fn wait(&self, id: &str) -> Result<i64> {
        let run = self.runs.borrow_mut().remove(id);
        let mut run = run.with_context(|| format!("{id} does not run"))?;
        let ended = until("the container has ended", async || Ok(run.try_wait()?)).await?;
        Ok(ended.code().with_context(|| format!("the runtime itself ended: {ended}"))?.into())
    }

    /// What a container wrote.
    fn logs(&self, id: &str) -> Result<Log> {
        let read = |stream| fs::read(self.bundle(id).join(stream));
        Ok(Log::new(&read("stdout")?, &read("stderr")?))
    }

    /// Removes the containers whose names begin so.
    async fn remove_all(&self, beginning: &str) -> Result<()> {
        for bundle in fs::read_dir(self.bundle(""))? {
            let id = bundle?.file_name().to_string_lossy().into_owned();
            if id.starts_with(beginning) {
                self.delete(&id).await?;
            }
        }
        Ok(())
    }

    /// Removes a container, whether it runs or not.
    async fn delete(&self, id: &str) -> Result<()> {
        // One that has ended is gone already, and only the files are left.
        let running = self.runs.borrow().contains_key(id);
        if running {
            end(self.runtime()?.args(["delete", "--force", id])).await?;
            self.wait(id).await?;
        }
        Ok(fs::remove_dir_all(self.bundle(id))?)
    }

    /// The runtime, with a state of its own.
    fn runtime(&self) -> Result<Command> {
        let mut runtime = self.daemon.within(&R::NAME.to_string())?;
        runtime.arg("--root").arg(self.daemon.folder().join("state"));
        Ok(runtime)
    }
}
