//! Kubernetes' kubelet without a control plane: it starts the pods that it finds as files in a folder.
//! In an emulated machine, a control plane does not come up in half an hour.

use crate::containerd::{SOCKET, crictl, remove_sandboxes};
use crate::engine::{Driver, Engine};
use crate::host;
use crate::images::Candidate;
use crate::kubernetes::{self, SHARED_PID, SIGNALS, Sandbox, manifest_for, node, sandbox};
use crate::scenario::{Run, Scenario, pause_is_init, reaps_without_wake_up};
use crate::wait::{ensure_eq, script, success, until};
use anyhow::Result;
use harness::sandbox::USER;
use std::collections::HashSet;
use std::fs;
use std::process::Command;

/// Where the kubelet looks for pods.
const MANIFESTS: &str = "/etc/kubernetes/manifests";

/// The kubelet of a node without an API server.
pub struct Kubelet;

impl Driver for Kubelet {
    fn start(_: Engine, candidate: &Candidate) -> Result<Self> {
        kubernetes::start_node(candidate)?;
        node(&["kubelet"])?;
        Ok(Self)
    }

    fn version(&self, _: Engine) -> Result<String> {
        let version = success(Command::new("/opt/kubernetes/kubelet").arg("--version"))?;
        Ok(version.trim_start_matches("Kubernetes v").to_owned())
    }

    fn test(&mut self, scenario: Scenario, run: &Run) -> Result<()> {
        let result = match scenario {
            Scenario::Load => kubernetes::load(run),
            Scenario::Inside => inside(run),
            Scenario::Pod => pod(run),
            _ => unreachable!("{scenario} concerns other engines"),
        };
        let removed = self.remove_all();
        result.and(removed)
    }

    fn list(&self) -> Result<HashSet<String>> {
        Ok(crictl(["pods", "--quiet"])?.lines().map(str::to_owned).collect())
    }

    fn remove_all(&self) -> Result<()> {
        script("rm -f \"$1\"/*", &[MANIFESTS])?;
        let ready = ["pods", "--quiet", "--state=ready"];
        let stopped = || Ok(crictl(ready)?.is_empty().then_some(()));
        until("the kubelet has stopped the pods", stopped)?;
        // The kubelet itself does it once a minute.
        remove_sandboxes(SOCKET)
    }

    fn end(self) -> Result<()> {
        node(&["stop"])
    }
}

/// Signals from inside the pod, by root and by the user of pause.
fn inside(run: &Run) -> Result<()> {
    let before = start("signals", "tests/engines/kubernetes/signals.yaml", run)?;
    for sender in ["root", "user"] {
        let sent = exec(&before, sender, SIGNALS);
        sent.or_else(|error| if host::has_apparmor() { Ok(String::new()) } else { Err(error) })?;
        ensure_eq("the sandbox", &sandbox("signals-node", run, USER)?, &before)?;
    }
    Ok(())
}

fn pod(run: &Run) -> Result<()> {
    let sandbox = start(SHARED_PID, "examples/shared-pid.yaml", run)?;
    let shell = |script: &str| exec(&sandbox, "shell", script);
    pause_is_init(&shell, USER)?;
    reaps_without_wake_up(sandbox.pid, &shell)
}

/// Has the kubelet start the pod `name` of a manifest of the project, and waits until both of its
/// containers run. The name of the node becomes a part of the pod's.
fn start(name: &str, manifest: &str, run: &Run) -> Result<Sandbox> {
    fs::write(format!("{MANIFESTS}/{name}.yaml"), manifest_for(manifest, run)?)?;
    until("the containers run", || {
        let running = crictl(["ps", "--quiet", "--state=running"])?;
        Ok((running.lines().count() == 2).then_some(()))
    })?;
    sandbox(&format!("{name}-node"), run, USER)
}

/// Runs a script in a container of a pod, and returns what it prints.
fn exec(sandbox: &Sandbox, container: &str, script: &str) -> Result<String> {
    let container = format!("^{container}$");
    let id = crictl(["ps", "--quiet", "--pod", &sandbox.id, "--name", &container])?;
    crictl(["exec", "--sync", &id, "sh", "-c", script])
}
