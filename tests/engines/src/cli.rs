//! Docker and Podman, root's and an ordinary user's, driven by the command line that people use;
//! Podman with the configuration in `deploy/` that they copy.

use crate::containerd::deployed;
use crate::daemon::Daemon;
use crate::documents;
use crate::engine::{Driver, Engine, Lacks, PidNamespace, Pod, PodDriver, Skip, Spec, version_of};
use crate::host;
use crate::images::{self, Candidate};
use crate::scenario::{Run, Scenario, ScenarioTest, Tested, test_with_pods};
use crate::wait::{ensure_eq, script, streams, success, until};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use harness::sandbox::USER;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// The words before each command of an ordinary user's Podman.
const PODMAN_AS_USER: &str = "setpriv --reuid=1000 --regid=1000 --clear-groups \
    env HOME=/var/lib/user XDG_RUNTIME_DIR=/run/user/1000 podman";

const RUN: [&str; 3] = ["run", "--detach", "--pull=never"];

/// Control groups are without systemd, which would have to be asked for them. Containers outlive the daemon,
/// until it comes back.
const DOCKER_SETTINGS: &str =
    r#"{ "exec-opts": ["native.cgroupdriver=cgroupfs"], "live-restore": true }"#;

/// Where the drop-in in `deploy/` goes.
const DROP_IN: &str = "/etc/containers/containers.conf.d/pause.conf";

/// The setting in docs/embedding.md for a host without an image, and its file.
const INIT_PATH: &str = "init_path = \"/usr/local/libexec/pause\"";
const HOST_FILE: &str = "/usr/local/libexec/pause";

/// Docker or Podman. An ordinary user's Podman has a user namespace that all of its pods share.
pub struct Cli {
    engine: Engine,
    /// The words before each command.
    program: &'static str,
    daemon: Option<Daemon>,
    reference: String,
}

impl Driver for Cli {
    fn start(engine: Engine, candidate: &Candidate) -> Result<Self> {
        let reference = candidate.reference.clone();
        if engine == Engine::Docker {
            fs::create_dir_all("/etc/docker")?;
            fs::write("/etc/docker/daemon.json", DOCKER_SETTINGS)?;
            let daemon = Some(Daemon::start(&["dockerd"], answers)?);
            return Ok(Self { engine, program: "docker", daemon, reference });
        }
        let (program, prepare) = match engine {
            Engine::PodmanRootless => (PODMAN_AS_USER, include_str!("../podman-user.sh")),
            _ => ("podman", include_str!("../podman-root.sh")),
        };
        let tun = File::open("/dev/net/tun");
        ensure!(engine == Engine::Podman || tun.is_ok(), Skip("there is no /dev/net/tun"));
        configure_podman(&reference)?;
        script(prepare, &[program])?;
        Ok(Self { engine, program, daemon: None, reference })
    }

    fn version(&self) -> Result<String> {
        if self.is_docker() {
            return version_of("docker.io");
        }
        let runtime = self.call(["info", "--format={{.Host.OCIRuntime.Name}}"])?;
        Ok(format!("{} ({runtime})", version_of("podman")?))
    }

    fn test(engine: Engine, scenario: Scenario) -> Option<ScenarioTest<Self>> {
        match (scenario, engine) {
            (Scenario::Build, Engine::Docker | Engine::Podman) => Some(Box::new(Self::dockerfile)),
            (Scenario::Readme, Engine::Docker) => Some(Box::new(|_, run| documents::docker(run))),
            (Scenario::HostFile, Engine::Podman | Engine::PodmanRootless) => {
                Some(Box::new(Self::host_file))
            }
            // Podman has no daemon.
            (Scenario::Restart, Engine::Podman | Engine::PodmanRootless) => None,
            _ => test_with_pods(scenario),
        }
    }

    fn list(&self) -> Result<HashSet<String>> {
        let mut found = HashSet::new();
        let lists = [["ps", "--all"], ["volume", "ls"], ["pod", "ls"]];
        for list in lists.iter().take(if self.is_docker() { 2 } else { 3 }) {
            let list = self.call(list.iter().copied().chain(["--quiet"]))?;
            found.extend(list.lines().map(|id| format!("container, volume or pod {id}")));
        }
        Ok(found)
    }

    fn remove_all(&self) -> Result<()> {
        let remove =
            "docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes";
        match self.is_docker() {
            true => script(remove, &[]).map(drop),
            false => self.call(["pod", "rm", "--all", "--force", "--time=0"]).map(drop),
        }
    }

    fn end(self) -> Result<()> {
        if let Some(mut daemon) = self.daemon {
            return daemon.stop();
        }
        // A process keeps the namespaces of an ordinary user. This command ends it.
        self.call(["system", "migrate"])?;
        if self.engine == Engine::PodmanRootless {
            script("ip link delete outside", &[])?;
        }
        Ok(())
    }
}

impl PodDriver for Cli {
    fn user(&self) -> u32 {
        // Podman ignores the image's user, and makes pause the pod's root.
        if self.is_docker() { USER } else { 0 }
    }

    fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.as_mut().context("it has no daemon")?.restart(answers)
    }

    fn load(&self, archive: &Path) -> Result<()> {
        success(self.client().args(["load", "--quiet", "--input"]).arg(archive)).map(drop)
    }

    fn check_image(&self, reference: &str) -> Result<()> {
        let config = &self.inspect(reference)?["Config"];
        ensure_eq("the user", &config["User"], &json!("65535:65535"))?;
        ensure_eq("the entrypoint", &config["Entrypoint"], &json!(["/pause"]))?;
        // What is not set is null, or is not there.
        ensure_eq("the command", &config["Cmd"], &Value::Null)
    }

    fn start_pod(&self, name: &str, pid_namespace: PidNamespace) -> Result<Pod> {
        let host = (pid_namespace == PidNamespace::Host).then_some("--pid=host");
        if self.is_docker() {
            let options = ["--name", name, "--ipc=shareable"].into_iter().chain(host);
            self.call(RUN.into_iter().chain(options).chain([&*self.reference]))?;
            return Ok(Pod { name: name.to_owned(), pause: name.to_owned() });
        }
        let pause = format!("{name}-infra");
        let create = ["pod", "create", "--name", name, "--infra-name", &pause];
        self.call(create.into_iter().chain(["--share=pid,ipc,net,uts"]).chain(host))?;
        self.call(["pod", "start", name])?;
        Ok(Pod { name: name.to_owned(), pause })
    }

    fn stop_pod(&self, pod: &Pod) -> Result<()> {
        let kind = if self.is_docker() { "container" } else { "pod" };
        self.call([kind, "stop", &pod.name]).map(drop)
    }

    fn signal_pod(&self, pod: &Pod, signal: Signal) -> Result<()> {
        self.call(["kill", "--signal", signal.as_str(), &pod.pause]).map(drop)
    }

    fn run(&self, pod: &Pod, name: &str, spec: Spec<'_>) -> Result<String> {
        let mut run = self.client();
        run.args(RUN).args(["--name", &format!("{}-{name}", pod.name)]);
        if self.is_docker() {
            let sandbox = format!("container:{}", pod.pause);
            run.args(["--network", &sandbox, "--ipc", &sandbox]);
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
        if spec.hardened {
            run.args(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
        }
        run.args(spec.options);
        success(run.arg(spec.image).args(spec.arguments))
    }

    fn pid(&self, container: &str) -> Result<i32> {
        let state = &self.inspect(container)?["State"];
        let pid = state["Pid"].as_i64().filter(|pid| *pid > 0);
        Ok(pid.with_context(|| format!("it does not run: {state}"))? as i32)
    }

    fn shell(&self, container: &str, script: &str) -> Result<String> {
        self.call(["exec", container, "sh", "-c", script])
    }

    fn log(&self, container: &str) -> Result<[String; 2]> {
        streams(self.client().args(["logs", container]))
    }

    fn stop(&self, container: &str) -> Result<()> {
        self.call(["stop", container]).map(drop)
    }

    fn exit_code(&self, container: &str) -> Result<i64> {
        // Not by `wait`, which takes 20 seconds longer for an ordinary user's Podman.
        until(&format!("{container} has ended"), || {
            let state = &self.inspect(container)?["State"];
            let has_ended = matches!(state["Status"].as_str(), Some("exited" | "stopped"));
            Ok(state["ExitCode"].as_i64().filter(|_| has_ended))
        })
    }
}

impl Cli {
    fn is_docker(&self) -> bool {
        self.engine == Engine::Docker
    }

    fn client(&self) -> Command {
        let mut words = self.program.split(' ');
        let mut client = Command::new(words.next().unwrap_or_default());
        client.args(words).current_dir("/").env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        client
    }

    fn call<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        success(self.client().args(arguments))
    }

    /// Checks that the Dockerfile builds the same program as cargo, in an image made from this machine.
    fn dockerfile(&mut self, run: &Run) -> Result<()> {
        let mut import = self.client();
        import.args(["import", "--change=ENV PATH=/usr/local/rust/bin:/usr/bin"]);
        import.args(["--change=ENV CARGO_HOME=/usr/local/cargo"]);
        import.args(["--change=ENV CARGO_NET_OFFLINE=true"]);
        success(import.args([images::toolchain()?, "localhost/toolchain"]))?;

        let mut build = Command::new(if self.is_docker() { "docker" } else { "buildah" });
        build.args(["build", "--build-arg=RUST_IMAGE=localhost/toolchain"]);
        if !self.is_docker() {
            build.args(["--isolation=chroot", "--pull-never"]);
        }
        success(build.arg("--tag=localhost/built").arg(project()))?;
        self.check_image("localhost/built")?;
        self.call(["create", "--name=built", "localhost/built"])?;
        self.call(["cp", "built:/pause", "/var/tmp/built"])?;
        self.call(["rm", "built"])?;
        ensure!(fs::read("/var/tmp/built")? == run.binary, "it builds another program than cargo");
        Ok(())
    }

    /// Checks that the file that docs/embedding.md names can be the init of pods.
    fn host_file(&mut self, run: &Run) -> Result<()> {
        let version = version_of("podman")?;
        let version: Vec<u32> = version.split('.').filter_map(|it| it.parse().ok()).collect();
        let reason = "before version 5.5, Podman builds an image around catatonit for such pods";
        ensure!(version >= vec![5, 5], Lacks(reason));
        let page = fs::read_to_string(project().join("docs/embedding.md"))?;
        ensure!(page.contains(INIT_PATH), "docs/embedding.md does not say {INIT_PATH}");
        fs::create_dir_all("/usr/local/libexec")?;
        fs::write(HOST_FILE, &run.binary)?;
        fs::set_permissions(HOST_FILE, Permissions::from_mode(0o755))?;
        fs::write(DROP_IN, format!("[containers]\n{INIT_PATH}\n"))?;
        let result = Tested { driver: self, run }.host_file();
        configure_podman(&self.reference)?;
        result
    }

    /// What the engine knows of an image or a container.
    fn inspect(&self, name: &str) -> Result<Value> {
        let mut found: Value = serde_json::from_str(&self.call(["inspect", name])?)?;
        Ok(found[0].take())
    }
}

fn answers() -> bool {
    success(Command::new("docker").arg("version")).is_ok()
}

/// Installs the file in `deploy/`, and what Podman needs on this machine.
fn configure_podman(image: &str) -> Result<()> {
    fs::create_dir_all("/etc/containers/containers.conf.d")?;
    fs::write(DROP_IN, deployed("podman-containers.conf", image)?)?;
    // Where there is no systemd, Podman cannot ask it for control groups and for the log.
    let manager = if Path::new("/run/systemd/system").exists() { "systemd" } else { "cgroupfs" };
    let engine = format!("[engine]\ncgroup_manager = '{manager}'\nevents_logger = 'file'\n");
    let mut config = engine + "[containers]\nlog_driver = 'k8s-file'\n";
    // What Podman asks for by itself is a privilege.
    if !host::has_cap_sys_resource()? {
        config += "default_ulimits = ['nofile=1024:1024', 'nproc=4096:4096']\n";
    }
    Ok(fs::write("/etc/containers/containers.conf.d/engines.conf", config)?)
}
