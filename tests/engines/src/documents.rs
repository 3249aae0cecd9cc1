//! The commands of the documents, run as they stand there: an operator's path from an empty registry to a
//! node, to the next version and back.

use crate::containerd::{crictl, exit_code};
use crate::images::{ALL as IMAGE, BUSYBOX};
use crate::kubernetes::{PodSandbox, kubectl, load, ready, sandbox};
use crate::registry;
use crate::scenario::Run;
use crate::wait::{ensure_eq, script, success, until};
use anyhow::{Context, Result, bail, ensure};
use harness::build::project;
use harness::sandbox::{USER, WARNING};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The section whose commands are run by `.ci/run`.
const ELSEWHERE: &str = "Build without a network";

/// What a pod is refused with while the registry is down. docs/troubleshooting.md quotes it.
const UNREACHABLE: [&str; 3] = [
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to pull image \"registry.example/infra/pause:",
    "failed to resolve image: failed to do request: Head \"https://registry.example/v2/infra/pause/manifests/",
    "connect: connection refused",
];

/// A document with commands.
#[derive(Clone)]
struct Page {
    name: &'static str,
    text: String,
    /// What is to be run and has not been.
    blocks: Vec<Block>,
    archive: String,
}

/// Indented lines.
#[derive(Clone)]
struct Block {
    /// The heading above them.
    section: String,
    commands: String,
}

impl Page {
    fn read(name: &'static str, archive: &Path) -> Result<Self> {
        let text = fs::read_to_string(project().join(name))?;
        let (mut section, mut before, mut is_fenced) = ("", "", false);
        let mut blocks = Vec::new();
        for chunk in text.split("\n\n") {
            // The paragraph before them may say that nobody has tried them, or somebody by hand.
            let is_marked = ["ot tried", "ried by hand"].iter().any(|it| before.contains(it));
            let is_block = !is_fenced && chunk.lines().all(|line| line.starts_with("    "));
            if chunk.starts_with('#') {
                section = chunk.trim_start_matches('#').trim();
            } else if is_block && !is_marked && section != ELSEWHERE {
                blocks.push(Block { section: section.to_owned(), commands: chunk.to_owned() });
            }
            is_fenced ^= chunk.matches("```").count() % 2 == 1;
            before = chunk;
        }
        let archive = archive.display().to_string();
        Ok(Self { name, text, blocks, archive })
    }

    /// Runs the next block of a section, with `values` in the place of the words that a reader fills in,
    /// and returns what it prints.
    fn next(&mut self, section: &str, values: &[(&str, &str)]) -> Result<String> {
        let place = format!("{}, {section}", self.name);
        let next = self.blocks.iter().position(|it| it.section == section);
        let next = next.with_context(|| format!("{place}: no further block"))?;
        let mut commands = self.blocks.remove(next).commands;
        for (word, value) in values {
            ensure!(commands.contains(word), "{place}: no {word} in {commands}");
            commands = commands.replace(word, value);
        }
        let job = [include_str!("../reader.sh"), &commands].concat();
        let mut bash = Command::new("bash");
        success(bash.args(["-euc", &job, "bash", &self.archive])).context(place)
    }

    /// Every block was run.
    fn has_run(&self) -> Result<()> {
        let Some(Block { section, commands }) = self.blocks.first() else { return Ok(()) };
        bail!("{}, {section}: nothing runs\n{commands}", self.name)
    }
}

fn start(pod: &str) -> Result<()> {
    kubectl(&["run", pod, "--image=busybox:stable", "--", "sleep", "infinity"]).map(drop)
}

/// Waits until a pod is ready, and checks that its sandbox is on `image`.
fn runs_on(pod: &str, image: &str, run: &Run) -> Result<PodSandbox> {
    ready(pod)?;
    let sandbox = sandbox(pod, run, USER)?;
    ensure_eq("the image of the sandbox", &*sandbox.image, image)?;
    Ok(sandbox)
}

fn has(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "there is no {word:?} in\n{text}");
    }
    Ok(())
}

/// What the README shows with Docker.
pub fn docker(run: &Run) -> Result<()> {
    success(Command::new("docker").args(["tag", BUSYBOX, "busybox"]))?;
    let mut readme = Page::read("README.md", &run.candidate.archive)?;
    let shown = readme.next("Use it with Docker or Podman", &[])?;
    has(&shown, &["1 65535    /pause", "\n137\n", WARNING])
}

/// The operator's path on a node of Kubernetes.
pub fn install(run: &Run) -> Result<()> {
    let all = run.candidate.all()?;
    let mut readme = Page::read("README.md", all)?;
    let mut install = Page::read("docs/install.md", all)?;
    let mut troubleshooting = Page::read("docs/troubleshooting.md", all)?;
    let mut registry = registry::start()?;
    let next = IMAGE.replace(env!("CARGO_PKG_VERSION"), "next");

    // The README's commands, and the same ones with what the page tells beside them.
    let cluster = "Use it in a cluster";
    readme.next(cluster, &[])?;
    let archive = "tar --extract --to-stdout --file \"$1\" index.json";
    let index: Value = serde_json::from_str(&script(archive, &[&install.archive])?)?;
    let digest = index["manifests"][0]["digest"].as_str().context("the archive has no digest")?;
    let build = "Build and push";
    install.next(build, &[])?;
    install.next(build, &[])?;
    ensure_eq("the digest in the registry", install.next(build, &[])?.as_str(), digest)?;
    install.next(build, &[])?;

    // One node.
    let tag = "ctr --namespace k8s.io images tag --force \"$1\" docker.io/library/busybox:stable";
    script(tag, &[BUSYBOX])?;
    let canary = "One canary node";
    install.next(canary, &[("NODE", "node")])?;
    has(&install.next(canary, &[])?, &[IMAGE])?;
    has(&install.next(canary, &[("NODE", "node")])?, &["1 65535    /pause"])?;
    let (image, pinned) = (format!("\"image\": \"{IMAGE}\","), "\"pinned\": true");
    has(&install.next(canary, &[])?, &[&image, pinned])?;
    has(&readme.next(cluster, &[])?, &[&image])?;
    let id = runs_on("canary", IMAGE, run)?.id;
    let version = [("VERSION", env!("CARGO_PKG_VERSION"))];
    let listed = install.next("Which pod runs on which image", &version)?;
    has(&listed, &[&format!("default/canary {IMAGE}")])?;
    ensure_eq("how often it is listed by ctr", listed.matches(&id).count(), 2)?;
    install.next(canary, &[("NODE", "node")])?;
    let shown = crictl(["inspecti", IMAGE])?;
    has(&shown, &[&format!("registry.example/infra/pause@{digest}")])?;
    let shown = troubleshooting.next("Pods stay in ContainerCreating", &[])?;
    has(&shown, &["registry.example/infra/pause", IMAGE])?;
    has(&troubleshooting.next("The image disappeared from the node", &[])?, &["true"])?;

    // A node that has lost the image, while nobody serves it.
    start("first")?;
    let first = runs_on("first", IMAGE, run)?;
    crictl(["rmi", IMAGE])?;
    registry.stop()?;
    start("second")?;
    let refused = "--field-selector=reason=FailedCreatePodSandBox";
    let is_refused = || {
        let events = kubectl(&["get", "events", refused, "--output=name"])?;
        Ok((!events.is_empty()).then_some(()))
    };
    until("the second pod is refused", is_refused)?;
    has(&install.next("A wrong name", &[])?, &UNREACHABLE)?;
    let quoted = troubleshooting.text.split_whitespace().collect::<Vec<_>>().join(" ");
    has(&quoted, &UNREACHABLE)?;
    let mut registry = registry::start()?;
    runs_on("second", IMAGE, run)?;

    // To the next version, and back.
    script(include_str!("../push-next.sh"), &[&run.candidate.archive.to_string_lossy()])?;
    let upgrade = "Upgrade";
    let mut back = install.clone();
    let steps = [(&mut install, IMAGE, &*next, "third"), (&mut back, &next, IMAGE, "fourth")];
    for (page, old, new, pod) in steps {
        let [from, to] = [old, new].map(|it| it.rsplit(':').next().unwrap_or_default());
        page.next(upgrade, &[("OLD", from), ("NEW", to)])?;
        start(pod)?;
        runs_on(pod, new, run)?;
        ensure_eq("the first pod", &runs_on("first", IMAGE, run)?, &first)?;
        page.next(upgrade, &[("OLD", from)])?;
        ensure!(crictl(["inspecti", old]).is_err(), "{old} is still there");
    }
    install.next("Roll back", &[])?;
    // crictl has removed it under all of its names.
    load(run)?;
    start("fifth")?;
    let fifth = runs_on("fifth", &run.candidate.reference, run)?;

    // Without a registry.
    registry.stop()?;
    let import = "Without a registry";
    script("cp \"$1\" \"$PAUSE_PROJECT/pause.tar\"", &[&install.archive])?;
    install.next(import, &[])?;
    let hash = digest.trim_start_matches("sha256:");
    has(&install.next(import, &[("DIGEST", hash)])?, &[hash])?;
    troubleshooting.next("An old image stays on the node", &[])?;
    troubleshooting.next("The wrong platform", &[])?;
    troubleshooting.next("SIGTERM has no effect", &[("NAME", "fifth")])?;
    ensure_eq("the exit code", exit_code(&fifth.id)?, 0)?;
    install.has_run()?;
    troubleshooting.has_run()?;
    load(run)
}
