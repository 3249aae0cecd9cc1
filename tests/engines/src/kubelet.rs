//! Kubernetes' kubelet without a control plane: it starts the pods that it finds as files in a folder.
//! In an emulated machine, a control plane does not come up in half an hour.

use crate::containerd::{SOCKET, crictl, remove_sandboxes};
use crate::engine::{Driver, Engine};
use crate::host;
use crate::images::Candidate;
use crate::kubernetes::{
    self, Kubernetes, PodSandbox, SHARED_PID, SIGNALS, manifest_for, node, sandbox,
};
use crate::scenario::{Run, Scenario, ScenarioTest, pause_is_init, reaps_without_wake_up};
use crate::wait::{ensure_eq, script, until, until_equal};
use anyhow::{Context, Result};
use harness::sandbox::USER;
use std::collections::HashSet;
use std::fs;

const MANIFESTS: &str = "/etc/kubernetes/manifests";

/// The kubelet of a node without an API server.
pub struct Kubelet;

impl Driver for Kubelet {
    fn start(_: Engine, candidate: &Candidate) -> Result<Self> {
        kubernetes::start_node(candidate)?;
        node(&["kubelet"])?;
        Ok(Self)
    }

    fn version(&self) -> Result<String> {
        Kubernetes.version()
    }

    fn test(_: Engine, scenario: Scenario) -> Option<ScenarioTest<Self>> {
        match scenario {
            Scenario::Load => Some(Box::new(|_, run| kubernetes::load(run))),
            Scenario::Inside => Some(Box::new(|_, run| inside(run))),
            Scenario::Pod => Some(Box::new(|_, run| pod(run))),
            _ => None,
        }
    }

    fn list(&self) -> Result<HashSet<String>> {
        Ok(crictl(["pods", "--quiet"])?.lines().map(str::to_owned).collect())
    }

    fn remove_all(&self) -> Result<()> {
        script("rm -f \"$1\"/*", &[MANIFESTS])?;
        let ready = || crictl(["pods", "--quiet", "--state=ready"]);
        until_equal("the list of pods that still run", ready, String::new())?;
        // The kubelet itself does it once a minute, and a call fails while it is at it.
        let mut last = None;
        let removed = || Ok(remove_sandboxes(SOCKET).map_err(|error| last = Some(error)).ok());
        until("the sandboxes are removed", removed).with_context(|| format!("{last:?}"))
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
fn start(name: &str, manifest: &str, run: &Run) -> Result<PodSandbox> {
    fs::write(format!("{MANIFESTS}/{name}.yaml"), manifest_for(manifest, run)?)?;
    let running = || Ok(crictl(["ps", "--quiet", "--state=running"])?.lines().count());
    until_equal("the number of containers that run", running, 2)?;
    sandbox(&format!("{name}-node"), run, USER)
}

fn exec(sandbox: &PodSandbox, container: &str, script: &str) -> Result<String> {
    let container = format!("^{container}$");
    let id = crictl(["ps", "--quiet", "--pod", &sandbox.id, "--name", &container])?;
    crictl(["exec", "--sync", &id, "sh", "-c", script])
}
