//! runc, crun and gVisor's runsc, with nothing above them: bundles of our own, run as an engine would
//! run them.

use crate::engine::{Container, Engine, Lacks, Log, Name, Pod, Sandbox, Spec};
use crate::host::{self, same};
use crate::images::Image;
use crate::scenario::Scenario;
use crate::wait::{end, script, success, until};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use procfs::process::Process;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A program that runs bundles.
pub trait Runtime: 'static {
    /// Its name, and the program's.
    const NAME: Name;

    /// Options before its commands.
    const OPTIONS: &[&str] = &[];

    /// [`Engine::LEAST_MEMORY`]
    const LEAST_MEMORY: u64 = 16 << 20;

    /// [`Engine::OWN_KERNEL`]
    const OWN_KERNEL: bool = false;
}

/// The one that Docker, containerd and Podman on Debian use.
pub enum Runc {}

impl Runtime for Runc {
    const NAME: Name = Name::Runc;
}

/// The one in C.
pub enum Crun {}

impl Runtime for Crun {
    const NAME: Name = Name::Crun;

    const LEAST_MEMORY: u64 = 512 << 10;
}

/// gVisor: a pod has a kernel of its own, in the user space of the host's.
pub enum Runsc {}

impl Runtime for Runsc {
    const NAME: Name = Name::Runsc;

    const OPTIONS: &[&str] = &["--ignore-cgroups", "--network=none"];

    const OWN_KERNEL: bool = true;
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
const HOST: &str = "10.86.0.1";

/// Connects the host, whose address is $1, and the pod whose process is $2: by the interface $3 here,
/// and with the address $4 there.
const LINK: &str = r#"
    ip link add "$3" type veth peer name eth0 netns "$2"
    ip address add "$1" peer "$4" dev "$3"
    ip link set "$3" up
    nsenter --net="/proc/$2/ns/net" ip link set lo up
    nsenter --net="/proc/$2/ns/net" ip address add "$4/16" dev eth0
    nsenter --net="/proc/$2/ns/net" ip link set eth0 up
"#;

/// A runtime, and what it is told to run.
pub struct Oci<R> {
    reference: String,
    /// The calls that run containers, until they tell how these ended.
    runs: RefCell<BTreeMap<String, Child>>,
    /// Number of pods that have been started, which is where their addresses come from.
    pods: Cell<u16>,
    runtime: PhantomData<R>,
}

impl<R: Runtime> Engine for Oci<R> {
    const NAME: Name = R::NAME;

    const LEAST_MEMORY: u64 = R::LEAST_MEMORY;

    const OWN_KERNEL: bool = R::OWN_KERNEL;

    async fn start(image: &Image) -> Result<Self> {
        for folder in ["images", "bundles", "state"] {
            fs::create_dir_all(folder_of::<R>(folder))?;
        }
        Ok(Self {
            reference: image.reference.clone(),
            runs: RefCell::default(),
            pods: Cell::default(),
            runtime: PhantomData,
        })
    }

    async fn version(&self) -> Result<String> {
        let line = success(runtime::<R>().arg("--version")).await?;
        let version = line.split_whitespace().nth(2).and_then(|it| it.split('+').next());
        Ok(version.with_context(|| format!("no version in {line:?}"))?.to_owned())
    }

    fn defect(&self, scenario: Scenario) -> Option<&'static str> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let panics =
            R::OWN_KERNEL && release.contains("forky") && !matches!(scenario, Scenario::Load);
        panics.then_some("this package of gVisor, 20240729 built by Go 1.26, panics on SIGCHLD")
    }

    async fn remove_all(&self) -> Result<()> {
        self.remove_beginning_with("").await
    }

    async fn list(&self) -> Result<HashSet<String>> {
        let list = success(runtime::<R>().args(["list", "--quiet"])).await?;
        Ok(list.lines().map(|id| format!("container {id}")).collect())
    }

    async fn load(&self, archive: &Path) -> Result<()> {
        let (format, reference) = identify(archive)?;
        let image = image::<R>(&reference);
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

    async fn shows(&self, tried: &Image) -> Result<()> {
        let rootfs = image::<R>(&tried.reference).join("rootfs");
        let files: Vec<_> = fs::read_dir(&rootfs)?.collect::<Result<_, _>>()?;
        same("the number of files", files.len(), 1)?;
        ensure!(fs::read(rootfs.join("pause"))? == tried.binary()?, "it has another program");
        let config = &config::<R>(&tried.reference)?["config"];
        same("the user", &config["User"], &json!("65535:65535"))?;
        same("the entrypoint", &config["Entrypoint"], &json!(["/pause"]))
    }

    async fn start_pod(&self, name: &str, sandbox: Sandbox) -> Result<Pod> {
        let mut kinds = vec!["mount", "network", "ipc", "uts"];
        match sandbox {
            // gVisor's first container is in the PID namespace of its kernel.
            Sandbox::Usual if R::OWN_KERNEL => {}
            Sandbox::Usual => kinds.push("pid"),
            Sandbox::HostPid => {}
            Sandbox::Remapped => kinds.extend(["pid", "user"]),
        }
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let spec = Spec::new(&self.reference, &[]);
        let mut config = self.specify(&format!("{name}.pause"), &spec, namespaces.into()).await?;
        config["hostname"] = name.into();
        config["annotations"] = json!({ "io.kubernetes.cri.container-type": "sandbox" });
        let remapped = sandbox == Sandbox::Remapped;
        // No name may be the beginning of another one: gVisor takes it for both.
        let id = format!("{name}.pause");
        let pause = Container { name: name.to_owned(), id: id.clone() };
        let pod = Pod { name: name.to_owned(), id, pause };
        self.create(&pod.id, &self.reference, config, remapped).await?;
        self.link(&pod).await?;
        Ok(pod)
    }

    async fn remap(&mut self, _: bool) -> Result<()> {
        ensure!(!R::OWN_KERNEL, Lacks("its users are those of a kernel of its own"));
        Ok(())
    }

    async fn is_up(&self, pod: &Pod) -> Result<bool> {
        Ok(self.process(&pod.id).await.is_ok())
    }

    async fn address(&self, pod: &Pod) -> Result<Option<String>> {
        if R::OWN_KERNEL {
            return Ok(None);
        }
        Ok(Some(fs::read_to_string(bundle::<R>(&pod.id).join("address"))?))
    }

    async fn stop_pod(&self, pod: &Pod) -> Result<()> {
        // Its default is SIGTERM.
        success(runtime::<R>().args(["kill", &pod.id])).await.map(drop)
    }

    async fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        success(runtime::<R>().args(["kill", &pod.id, signal.as_str()])).await.map(drop)
    }

    async fn on_terminal(&self) -> Result<String> {
        let namespaces = json!([{ "type": "mount" }, { "type": "pid" }]);
        let spec = Spec::new(&self.reference, &[]);
        let mut config = self.specify("terminal", &spec, namespaces).await?;
        config["process"]["terminal"] = true.into();
        prepare::<R>("terminal", &self.reference, &config).await?;
        let (state, bundle) = (folder_of::<R>("state"), bundle::<R>("terminal"));
        let (state, bundle) = (state.display(), bundle.display());
        Ok(format!("{} --root {state} run --bundle {bundle} terminal", R::NAME))
    }

    async fn restart_pod(&self, pod: Pod) -> Result<Pod> {
        self.launch(&pod.id).await?;
        self.link(&pod).await?;
        Ok(pod)
    }

    async fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.remove_beginning_with(&format!("{}.", pod.name)).await
    }

    async fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<Container> {
        let pause = self.process(&pod.id).await?;
        let join = |kind, name| json!({ "type": kind, "path": format!("/proc/{pause}/ns/{name}") });
        let mut namespaces = vec![json!({ "type": "mount" })];
        match spec.shares_pid {
            // As above.
            true if R::OWN_KERNEL => {}
            true => namespaces.push(join("pid", "pid")),
            false => namespaces.push(json!({ "type": "pid" })),
        }
        let mut remapped = false;
        if !R::OWN_KERNEL {
            let shared = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
            namespaces.extend(shared.map(|(kind, name)| join(kind, name)));
            let users = |pid| host::namespaces(&Process::new(pid)?, &["user"]);
            remapped = users(pause)? != users(std::process::id() as i32)?;
        }
        if remapped {
            namespaces.push(join("user", "user"));
        }

        let id = format!("{}.{name}", pod.name);
        let mut config = self.specify(&id, &spec, namespaces.into()).await?;
        // How gVisor is told which pod a container is in; the others do not look at it.
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": pod.id,
        });
        self.create(&id, spec.image, config, remapped).await?;
        Ok(Container { name: name.to_owned(), id })
    }

    async fn pid(&self, container: &Container) -> Result<i32> {
        self.process(&container.id).await
    }

    async fn exec(&self, container: &Container, command: &[&str]) -> Result<String> {
        success(runtime::<R>().args(["exec", &container.id]).args(command)).await
    }

    async fn log(&self, container: &Container) -> Result<Option<Log>> {
        self.logs(&container.id).map(Some)
    }

    async fn stop(&self, container: &Container) -> Result<()> {
        success(runtime::<R>().args(["kill", &container.id])).await.map(drop)
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

/// A folder of the runtime's.
fn folder_of<R: Runtime>(name: &str) -> PathBuf {
    Path::new("/var/lib/oci").join(R::NAME.to_string()).join(name)
}

/// The folder with what there is of an image.
fn image<R: Runtime>(reference: &str) -> PathBuf {
    folder_of::<R>("images").join(reference.replace('/', "+"))
}

/// The configuration of an image.
fn config<R: Runtime>(reference: &str) -> Result<Value> {
    let config = fs::read(image::<R>(reference).join("config.json"));
    Ok(serde_json::from_slice(&config.with_context(|| format!("no image {reference}"))?)?)
}

/// The bundle of a container.
fn bundle<R: Runtime>(id: &str) -> PathBuf {
    folder_of::<R>("bundles").join(id)
}

/// Completes the bundle of a container.
async fn prepare<R: Runtime>(id: &str, reference: &str, config: &Value) -> Result<()> {
    let folder = bundle::<R>(id);
    fs::write(folder.join("config.json"), config.to_string())?;
    let mut copy = Command::new("cp");
    copy.arg("--archive").arg(image::<R>(reference).join("rootfs")).arg(&folder);
    success(&mut copy).await.map(drop)
}

/// The runtime, with a state of its own.
fn runtime<R: Runtime>() -> Command {
    let mut runtime = Command::new(R::NAME.to_string());
    runtime.args(R::OPTIONS).arg("--root").arg(folder_of::<R>("state"));
    runtime
}

impl<R: Runtime> Oci<R> {
    /// What the runtime itself would write for a container, and what the image and `spec` say.
    async fn specify(&self, id: &str, spec: &Spec<'_>, namespaces: Value) -> Result<Value> {
        let image = &config::<R>(spec.image)?["config"];
        let words = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let user = image["User"].as_str().unwrap_or("0:0");
        let (user, group) = user.split_once(':').context("the image's user has no group")?;
        let (user, group) = (user.parse()?, group.parse()?);
        let (user, group): (u32, u32) = spec.user.map_or((user, group), |user| (user, user));
        let capabilities: &[&str] = if spec.hardened { &[] } else { &CAPABILITIES };

        let folder = bundle::<R>(id);
        fs::create_dir(&folder)?;
        success(runtime::<R>().arg("spec").arg("--bundle").arg(&folder)).await?;
        let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let process = &mut config["process"];
        process["terminal"] = false.into();
        process["user"] = json!({ "uid": user, "gid": group });
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
        // gVisor is told to ignore control groups, and forgets to remove them.
        let path = if R::OWN_KERNEL { Value::Null } else { format!("/oci/{id}").into() };
        linux["cgroupsPath"] = path;
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
        let folder = bundle::<R>(id);
        if remapped {
            let range = json!([{ "containerID": 0, "hostID": REMAPPED, "size": 65536 }]);
            config["linux"]["uidMappings"] = range.clone();
            config["linux"]["gidMappings"] = range;
        }
        prepare::<R>(id, image, &config).await?;
        if remapped {
            let mut chown = Command::new("chown");
            chown.args(["--recursive", "--no-dereference", &format!("{REMAPPED}:{REMAPPED}")]);
            success(chown.arg(folder.join("rootfs"))).await?;
        }
        self.launch(id).await
    }

    /// Runs a bundle, and returns when the container has started.
    async fn launch(&self, id: &str) -> Result<()> {
        let folder = bundle::<R>(id);
        let pid_file = folder.join("pid");
        if pid_file.exists() {
            fs::remove_file(&pid_file)?;
        }
        let mut run = runtime::<R>();
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
        if R::OWN_KERNEL {
            return Ok(());
        }
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let [high, low] = number.to_be_bytes();
        let address = format!("10.86.{}.{low}", high + 1);
        let pause = self.process(&pod.id).await?.to_string();
        script(LINK, &[HOST, &pause, &format!("pod{number}"), &address]).await?;
        Ok(fs::write(bundle::<R>(&pod.id).join("address"), address)?)
    }

    /// The process of a container, as the host numbers it.
    async fn process(&self, id: &str) -> Result<i32> {
        let state: Value =
            serde_json::from_str(&success(runtime::<R>().args(["state", id])).await?)?;
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
        let read = |stream| fs::read(bundle::<R>(id).join(stream));
        Ok(Log::new(&read("stdout")?, &read("stderr")?))
    }

    /// Removes the containers whose names begin so.
    async fn remove_beginning_with(&self, beginning: &str) -> Result<()> {
        let bundles = fs::read_dir(bundle::<R>(""))?.flatten();
        let ids = bundles.map(|it| it.file_name().to_string_lossy().into_owned());
        let mut ids: Vec<_> = ids.filter(|id| id.starts_with(beginning)).collect();
        ids.sort_by_key(|id| id.ends_with(".pause"));
        for id in ids {
            self.delete(&id).await?;
        }
        Ok(())
    }

    /// Removes a container, whether it runs or not.
    async fn delete(&self, id: &str) -> Result<()> {
        // One that has ended is gone already, and only the files are left.
        let running = self.runs.borrow().contains_key(id);
        if running {
            end(runtime::<R>().args(["delete", "--force", id])).await?;
            self.wait(id).await?;
        }
        Ok(fs::remove_dir_all(bundle::<R>(id))?)
    }
}
