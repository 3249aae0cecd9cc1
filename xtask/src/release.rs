//! `cargo xtask release-dry-run`: runs the steps of the release workflow as far as that is possible
//! without its network: all but those that sign and publish.

use crate::debian::{Debian, Release};
use anyhow::{Context, Result, bail, ensure};
use harness::build::project;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The jobs of the workflow, in their order.
const JOBS: [&str; 3] = ["build", "verify", "publish"];

/// Steps that need the network or rights that only the workflow has.
const NOT_TRIED: [&str; 2] = ["Get core for the other platforms", "Release"];

/// What the workflow knows about the release.
const VARIABLES: [&str; 2] =
    [concat!("GITHUB_REF_NAME=v", env!("CARGO_PKG_VERSION")), "GITHUB_REPOSITORY=Example/pause"];

/// Runs every step that can be run here.
pub fn run() -> Result<()> {
    let folder = project().join("target/release-dry-run");
    let workflow = fs::read_to_string(project().join(".github/workflows/release.yml"))?;
    let workflow: Value = serde_saphyr::from_str(&workflow).context("release.yml")?;
    for job in JOBS {
        let workspace = folder.join(job);
        // What an earlier run left; the programs are kept.
        let _ = fs::remove_dir_all(&workspace);
        fs::create_dir_all(&workspace)?;
        let steps = workflow["jobs"][job]["steps"].as_array();
        for step in steps.with_context(|| format!("release.yml has no job {job}"))? {
            let action = step["uses"].as_str().and_then(|it| it.split('@').next());
            let name = step["name"].as_str().or(action).context("a step has no name")?;
            println!("\n== {job}: {name}");
            try_step(step, name, action, &workspace).with_context(|| format!("{job}: {name}"))?;
        }
    }
    println!("\nOnly what is marked \"not tried\" is left to the workflow.");
    Ok(())
}

/// Runs one step in the workspace of its job.
fn try_step(step: &Value, name: &str, action: Option<&str>, workspace: &Path) -> Result<()> {
    let mut command = match (action, step["run"].as_str()) {
        (Some("actions/checkout"), _) => {
            // All jobs are about one commit, whatever is committed here in the meantime.
            let first = workspace.with_file_name("build");
            let source = if workspace == first { project() } else { &first };
            let mut clone = Command::new("git");
            clone.args(["clone", "--quiet"]).arg(source);
            clone.arg(workspace.join(step["with"]["path"].as_str().unwrap_or(".")));
            clone
        }
        (Some("actions/download-artifact"), _) => {
            let mut copy = Command::new("cp");
            copy.arg("-R").arg(workspace.with_file_name("build").join("dist")).arg(workspace);
            copy
        }
        (Some("actions/upload-artifact"), _) => return Ok(()),
        (None, Some(script)) if !NOT_TRIED.contains(&name) => {
            let file = workspace.join("step.sh");
            fs::write(&file, script)?;
            if workspace.ends_with("publish") {
                return publish(&file, workspace);
            }
            let mut bash = Command::new("env");
            bash.args(VARIABLES)
                .args(["REGISTRY=ghcr.io", "bash", "-e", "-o", "pipefail"])
                .arg(file);
            bash
        }
        (Some("actions/attest"), _) | (None, Some(_)) => {
            println!("not tried");
            return Ok(());
        }
        _ => bail!("cannot tell what this step does"),
    };
    command
        .current_dir(workspace.join(step["working-directory"].as_str().unwrap_or(".")))
        // Kept, so that only the first run compiles everything.
        .env("CARGO_TARGET_DIR", workspace.with_extension("target"));
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Runs a script in a Debian system with a registry in place of the network's, and then pulls from there
/// what the script pushed.
fn publish(script: &Path, workspace: &Path) -> Result<()> {
    let packages = ["ca-certificates", "containerd", "docker-registry", "iproute2", "skopeo"];
    let mut debian = Debian::make("registry", Release::Trixie, &packages)?;
    debian.show =
        vec![(workspace.join("dist"), "/work/dist"), (project().join("xtask/src"), "/steps")];
    debian.add(script, "/work/step.sh")?;
    let mut command = vec!["env", "REGISTRY=127.0.0.1:5000", "GITHUB_ACTOR=nobody", "TOKEN=none"];
    command.extend(VARIABLES);
    command.extend(["bash", "/steps/release.sh", "/work/step.sh"]);
    let status = debian.run(&command)?;
    ensure!(status.success(), "{status}");
    Ok(())
}
