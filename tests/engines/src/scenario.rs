//! What an engine is tested for: the rows of the matrix, and what is done for each.

use crate::engine::{PidNamespace, Pod, PodDriver, Spec};
use crate::host;
use crate::images::{self, BUSYBOX, Candidate};
use crate::wait::{ensure_eq, until, until_equal};
use anyhow::{Result, ensure};
use clap::ValueEnum;
use harness::proc::{context_switches, state};
use harness::sandbox::{IGNORED, STOPPED, USER, WARNING};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::process::Process;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs;

/// What an engine is tested for: a row of the matrix, which takes name and text from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// The engine starts.
    Start,
    /// It loads the archive and reports the image correctly.
    Load,
    /// The engine's own stop ends pause with exit code 0.
    Stop,
    /// Signals from inside the pod are ignored, from root and from pause's user.
    Inside,
    /// Arguments reach `/pause`, which prints its version.
    Arguments,
    /// In the host's PID namespace pause warns and stops normally.
    HostPid,
    /// PID 1 of the pod's containers is `/pause`, and 2,000 orphans leave no zombie.
    Pod,
    /// The pod of Kubernetes' tutorial: nginx serves what another container writes.
    Tutorial,
    /// Containers are killed and replaced; the sandbox stays.
    Replace,
    /// The engine's daemon restarts; the pod stays and works.
    Restart,
    /// Pause is killed: the kubelet notices and replaces the sandbox.
    Killed,
    /// Pause runs with a read-only root, seccomp, no capabilities and no new privileges.
    Hardened,
    /// The pod has its own user namespace.
    Remapped,
    /// From the image for all platforms the engine picks its own.
    Platforms,
    /// The pod sets another user, limits and a restart policy.
    Settings,
    /// In gVisor, by a RuntimeClass: PID 1 is `/pause`, which reaps, and SIGTERM and SIGINT from inside do nothing.
    Gvisor,
    /// The kubelet removes unused images, and keeps the one of its sandboxes.
    Garbage,
    /// As a regular container: reserves capacity and is preempted immediately.
    Placeholder,
    /// As a regular container: is the last one in a DaemonSet that pulls images.
    PrePull,
    /// Without an image: `/pause` from the host is the init of pods, and of no `--init`.
    HostFile,
    /// The configuration in `deploy/` keeps the rest of the engine's, where it says so.
    Configuration,
    /// critest, Kubernetes' test of container runtimes, gives the same results as with upstream's image.
    Conformance,
    /// The image goes from a registry to a node, to another version and back.
    Registry,
    /// 50 pods run at once.
    Many,
    /// The README's commands work as they are.
    Readme,
    /// The Dockerfile builds the same program as cargo.
    Build,
    /// The daemon stops by itself, and nothing of the pods is left.
    End,
}

impl Display for Scenario {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// The image to test, and what the current scenario could not check.
pub struct Run {
    pub candidate: Candidate,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
    /// What the current scenario did not check, and why.
    pub left_out: RefCell<BTreeSet<String>>,
}

impl Run {
    /// Notes what the current scenario does not check, and why.
    pub fn leaves_out(&self, what: &str) {
        self.left_out.borrow_mut().insert(what.to_owned());
    }
}

/// Tests an engine, as its driver, for a scenario. The error is an
/// [`Untested`](crate::engine::Untested) if the engine or the machine cannot do it.
pub type ScenarioTest<D> = Box<dyn Fn(&mut D, &Run) -> Result<()>>;

/// What tests an engine whose pods are started here, if it is the same for all such engines.
pub fn test_with_pods<D: PodDriver>(scenario: Scenario) -> Option<ScenarioTest<D>> {
    let test: fn(Tested<D>) -> Result<()> = match scenario {
        Scenario::Load => |it| it.load(),
        Scenario::Stop => |it| it.stop(),
        Scenario::Inside => |it| it.inside(),
        Scenario::Arguments => |it| it.arguments(),
        Scenario::HostPid => |it| it.host_pid(),
        Scenario::Pod => |it| it.pod(),
        Scenario::Restart => |it| it.restart(),
        Scenario::Hardened => |it| it.hardened(),
        Scenario::Platforms => |it| it.platforms(),
        _ => return None,
    };
    Some(Box::new(move |driver, run| test(Tested { driver, run })))
}

/// Number of orphans for PID 1 to reap.
const ORPHANS: usize = 2_000;

/// A container that sleeps, for commands to be run in it.
const IDLE: Spec = Spec::new(BUSYBOX, &["sleep", "infinity"]);

/// An engine that is tested for a scenario.
pub struct Tested<'a, D> {
    pub driver: &'a mut D,
    pub run: &'a Run,
}

impl<D: PodDriver> Tested<'_, D> {
    fn load(self) -> Result<()> {
        let candidate = &self.run.candidate;
        self.driver.load(&candidate.archive)?;
        self.driver.check_image(&candidate.reference)?;
        let [busybox, _] = images::helpers()?;
        self.driver.load(busybox)
    }

    fn stop(self) -> Result<()> {
        let (pod, _) = self.start("stopped", PidNamespace::Own)?;
        self.driver.stop_pod(&pod)?;
        if D::KILLS_PAUSE {
            self.run.leaves_out("the exit code: the engine's stop is SIGKILL");
        }
        self.has_ended(&pod, if D::KILLS_PAUSE { 137 } else { 0 }, STOPPED)
    }

    fn inside(self) -> Result<()> {
        let (pod, pause) = self.start("inside", PidNamespace::Own)?;
        self.ignores_signals_from_inside(&pod)?;
        self.still_sleeps(&pod, &pause)?;
        self.driver.signal_pod(&pod, Signal::SIGINT)?;
        self.has_ended(&pod, 0, "pause: SIGINT\n")
    }

    fn ignores_signals_from_inside(&self, pod: &Pod) -> Result<()> {
        let attempt = Spec::new(BUSYBOX, &["sh", "-c", "kill -TERM 1 && kill -INT 1"]);
        for (sender, user) in [("root", 0), ("user", self.driver.user())] {
            let sender = self.driver.run(pod, sender, Spec { user: Some(user), ..attempt })?;
            let code = self.driver.exit_code(&sender)?;
            ensure!(code == 0 || host::has_apparmor(), "the sender has exited with {code}");
        }
        Ok(())
    }

    fn arguments(self) -> Result<()> {
        let pod = self.driver.start_pod("arguments", PidNamespace::Own)?;
        let reference = &self.run.candidate.reference;
        let container = self.driver.run(&pod, "version", Spec::alone(reference, &["--version"]))?;
        let version = reference.rsplit(':').next().unwrap_or_default();
        self.ended(&container, 0, &format!("pause {version}\n"), "")
    }

    fn host_pid(self) -> Result<()> {
        let (pod, pause) = self.start("host-pid", PidNamespace::Host)?;
        let own = host::namespaces(&Process::myself()?, &["pid"])?;
        ensure_eq("the PID namespace", host::namespaces(&pause, &["pid"])?, own)?;
        self.stops(&pod, &format!("{WARNING}{STOPPED}"))
    }

    fn pod(self) -> Result<()> {
        let (pod, pause) = self.start("pod", PidNamespace::Own)?;
        let beside = self.driver.run(&pod, "beside", IDLE)?;
        self.pause_reaps(&pause, &beside)
    }

    fn restart(self) -> Result<()> {
        let (pod, pause) = self.start("restart", PidNamespace::Own)?;
        let beside = self.driver.run(&pod, "beside", IDLE)?;
        self.driver.restart_daemon()?;
        self.still_sleeps(&pod, &pause)?;
        self.pause_reaps(&pause, &beside)?;
        self.stops(&pod, STOPPED)
    }

    fn hardened(self) -> Result<()> {
        let pod = self.driver.start_pod("hardened", PidNamespace::Own)?;
        let spec = Spec { hardened: true, ..Spec::alone(&self.run.candidate.reference, &[]) };
        let container = self.driver.run(&pod, "least", spec)?;
        let pause = self.asleep(&container, USER)?;
        let status = pause.status()?;
        ensure_eq("the capabilities it could get", status.capbnd, Some(0))?;
        ensure_eq("the flag no_new_privs", status.nonewprivs, Some(1))?;
        // SECCOMP_MODE_FILTER
        ensure_eq("the seccomp mode", status.seccomp, Some(2))?;
        self.driver.stop(&container)?;
        self.ended(&container, 0, "", STOPPED)
    }

    fn platforms(self) -> Result<()> {
        self.driver.load(self.run.candidate.all()?)?;
        let pod = self.driver.start_pod("platforms", PidNamespace::Own)?;
        let container = self.driver.run(&pod, "own", Spec::alone(images::ALL, &[]))?;
        self.asleep(&container, USER).map(drop)
    }

    pub fn host_file(self) -> Result<()> {
        let pod = self.driver.start_pod("host-file", PidNamespace::Own)?;
        let pause = self.file_sleeps(&pod.pause)?;
        let beside = self.driver.run(&pod, "beside", IDLE)?;
        let shell = |script: &str| self.driver.shell(&beside, script);
        reaps_without_wake_up(pause.pid, &shell)?;
        self.ignores_signals_from_inside(&pod)?;
        let now = self.file_sleeps(&pod.pause)?;
        ensure_eq("the process", now.stat()?.starttime, pause.stat()?.starttime)?;

        // The same file is the init of every container that asks for one, and runs no command.
        let echo = Spec::alone(BUSYBOX, &["echo", "ran"]);
        let container = self.driver.run(&pod, "init", Spec { options: &["--init"], ..echo })?;
        self.file_sleeps(&container)?;
        self.driver.stop(&container)?;
        self.ended(&container, 0, "", &format!("{IGNORED}{STOPPED}"))?;
        let options = &["--init", "--init-path=/usr/bin/tini-static"];
        let container = self.driver.run(&pod, "another-init", Spec { options, ..echo })?;
        self.ended(&container, 0, "ran\n", "")?;

        // Podman starts it as `catatonit -P`.
        self.driver.stop_pod(&pod)?;
        self.has_ended(&pod, 0, &format!("{IGNORED}{STOPPED}"))
    }

    /// Waits until the first process of a container runs the file, and sleeps.
    fn file_sleeps(&self, container: &str) -> Result<Process> {
        let pid = self.driver.pid(container)?;
        until("the file from the host sleeps", || {
            let is_file = fs::read(format!("/proc/{pid}/exe"))? == self.run.binary;
            Ok((is_file && state(Pid::from_raw(pid)) == Some('S')).then_some(()))
        })?;
        Ok(Process::new(pid)?)
    }

    fn start(&self, name: &str, pid_namespace: PidNamespace) -> Result<(Pod, Process)> {
        let pod = self.driver.start_pod(name, pid_namespace)?;
        let pause = self.asleep(&pod.pause, self.driver.user())?;
        Ok((pod, pause))
    }

    fn asleep(&self, container: &str, user: u32) -> Result<Process> {
        host::asleep(self.driver.pid(container)?, &self.run.binary, user)
    }

    /// Waits until a pod's pause sleeps; it has to be the same process.
    fn still_sleeps(&self, pod: &Pod, pause: &Process) -> Result<()> {
        let now = self.asleep(&pod.pause, self.driver.user())?;
        ensure_eq("when pause started", now.stat()?.starttime, pause.stat()?.starttime)
    }

    /// Has the engine end a pod by SIGTERM, and checks what it then reports.
    fn stops(&self, pod: &Pod, log: &str) -> Result<()> {
        match D::KILLS_PAUSE {
            true => self.driver.signal_pod(pod, Signal::SIGTERM)?,
            false => self.driver.stop_pod(pod)?,
        }
        self.has_ended(pod, 0, log)
    }

    /// Waits until pause of a pod has ended with this exit code, and has written just this.
    fn has_ended(&self, pod: &Pod, code: i64, stderr: &str) -> Result<()> {
        if !D::KILLS_PAUSE {
            return self.ended(&pod.pause, code, "", stderr);
        }
        self.run.leaves_out("stderr: the engine does not log the sandbox");
        ensure_eq("the exit code", self.driver.exit_code(&pod.pause)?, code)
    }

    /// Waits until a container has ended with this exit code, and its log is just this.
    fn ended(&self, container: &str, code: i64, stdout: &str, stderr: &str) -> Result<()> {
        ensure_eq("the exit code", self.driver.exit_code(container)?, code)?;
        let expected = [stdout, stderr].map(str::to_owned);
        until_equal("the log", || self.driver.log(container), expected)
    }

    /// PID 1 of a container is pause, which reaps orphans without being woken for it.
    fn pause_reaps(&self, pause: &Process, container: &str) -> Result<()> {
        let shell = |script: &str| self.driver.shell(container, script);
        pause_is_init(&shell, self.driver.user())?;
        reaps_without_wake_up(pause.pid, &shell)
    }
}

/// PID 1 is `/pause`, as the user it is to be, where the container's own `ps` looks.
pub fn pause_is_init(shell: &impl Fn(&str) -> Result<String>, user: u32) -> Result<()> {
    let line = shell("ps -o pid,user,args | grep '^ *1 '")?;
    let init: Vec<_> = line.split_whitespace().collect();
    ensure_eq("PID 1 in ps", init, vec!["1", &user.to_string(), "/pause"])
}

/// Orphans leave no zombie.
pub fn reaps(shell: &impl Fn(&str) -> Result<String>) -> Result<()> {
    // A new process prints its PID. (The last command of a script would not be a new process.) The
    // subshells fork twice for each orphan: its parent ends at once.
    let newest = "sh -c 'echo $$'";
    let script = format!("{newest}; for i in $(seq {ORPHANS}); do (: &); done; {newest}; :");
    let pids = shell(&script)?;
    let pids: Vec<usize> = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        matches!(pids[..], [before, after] if after >= before + 2 * ORPHANS),
        "the PIDs {pids:?} leave no room for {ORPHANS} orphans"
    );
    // What engines put into a pod has a parent outside of it.
    let orphans = || Ok(shell("ps -o ppid")?.lines().filter(|line| line.trim() == "1").count());
    until_equal("the number of orphans", orphans, 0)
}

/// Orphans leave no zombie, and pause, which the host knows as `pid`, is not woken for them.
pub fn reaps_without_wake_up(pid: i32, shell: &impl Fn(&str) -> Result<String>) -> Result<()> {
    let pid = Pid::from_raw(pid);
    let before = context_switches(pid)?;
    reaps(shell)?;
    ensure_eq("the context switches of pause", context_switches(pid)?, before)
}
