//! The host, which has to be after a run as it was before.

use anyhow::{Context, Result, ensure};
use harness::build::project;
use harness::proc::wait_until;
use std::collections::BTreeSet;
use std::process::{self, Command};

/// What a run could change, in a line for each thing, after the control groups of runs that have ended were
/// removed.
pub fn state() -> Result<BTreeSet<String>> {
    let mut script = Command::new(project().join("xtask/src/debian/host.sh"));
    let output = script.arg(process::id().to_string()).output();
    let output = output.context("cannot run xtask/src/debian/host.sh")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cannot look at this host: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Waits until the host is as it was `before`; if it does not become so, the error lists the differences.
pub fn wait(before: &BTreeSet<String>) -> Result<()> {
    let mut differences = String::new();
    let same = wait_until("the host is as it was", || {
        // Reading fails as long as a process of the run is there.
        let found = state().map(|now| compare(before, &now));
        differences = found.unwrap_or_else(|error| format!("\n{error:#}"));
        differences.is_empty()
    });
    ensure!(
        same.is_ok(),
        "the run, or somebody else meanwhile, has changed this host:{differences}"
    );
    Ok(())
}

/// What has gone, which includes the old value of a setting, and what has come.
fn compare(before: &BTreeSet<String>, now: &BTreeSet<String>) -> String {
    // A run does not see the control groups of others.
    let gone = before.difference(now).filter(|it| !it.starts_with("control group"));
    // The kernel loads modules, which bring settings, when they are asked for.
    let come = now.difference(before).filter(|it| !it.starts_with("setting"));
    gone.map(|it| format!("\n- {it}")).chain(come.map(|it| format!("\n+ {it}"))).collect()
}
