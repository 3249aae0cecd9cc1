//! Kubernetes' own test of container runtimes, critest, with the image that is tried and with
//! upstream's: both have to give the same results.

use crate::containerd::{deployed, is_ready, remove_sandboxes, restriction};
use crate::daemon::Daemon;
use crate::registry::{self, REGISTRY};
use crate::scenario::Run;
use crate::wait::{output_within, script};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// Where critest's containerd answers.
const SOCKET: &str = "unix:///run/node/containerd.sock";

/// What cannot pass without the images that critest is made for: the digest is that of one of them, and
/// busybox runs `ls` without looking at the file that is to be masked.
const LEFT_OUT: &str = "image with digest should be pulled|support MaskedPaths";

/// Why critest may skip a test: what it was not asked for, and what this machine or containerd lacks.
const REASONS: [&str; 5] = [
    "NRI socket not configured",
    "AppArmor is disabled on this host",
    "benchmarks since ",
    "Image Volume",
    // Debian's runc is too old for them.
    "no runtime handler found which supports user namespaces",
];

pub fn test(run: &Run) -> Result<()> {
    let mut registry = registry::start()?;
    crate::images::helpers()?;
    let images = project().join("tests/engines/conformance-images.sh").display().to_string();
    script("sh \"$1\" /opt/kubernetes/pause.c \"$2\"", &[&images, REGISTRY])?;
    let [ours, upstream] = ["infra/pause:tried", "upstream/pause:latest"];
    let (archive, ours) =
        (run.candidate.archive.display().to_string(), format!("{REGISTRY}/{ours}"));
    script("skopeo copy --quiet \"oci-archive:$1\" \"docker://$2\"", &[&archive, &ours])?;

    let expected = critest(&format!("{REGISTRY}/{upstream}")).context("upstream's pause")?;
    let results = critest(&ours)?;
    for (name, result) in &results {
        let theirs = expected.get(name);
        ensure!(theirs == Some(result), "{name}: {result}, and with upstream's pause {theirs:?}");
    }
    let passed = results.values().filter(|result| *result == "passed").count();
    // A run that skips everything is not taken for one.
    ensure!(results.len() == expected.len() && passed >= 100, "only {passed} tests have passed");
    run.leaves_out(&format!("{} of {} tests of critest", results.len() - passed, results.len()));
    registry.stop()
}

/// Runs critest on today's containerd with `image` for the sandboxes, and returns the result of each test:
/// `passed`, or `skipped` with the reason. Any other result is an error.
fn critest(image: &str) -> Result<BTreeMap<String, String>> {
    let config = include_str!("../kubernetes/critest.toml").to_owned() + &restriction()?;
    fs::write("/etc/node/config.toml", config)?;
    fs::write("/etc/node/conf.d/20-pause.toml", deployed("containerd-2.toml", image)?)?;
    let containerd = ["/opt/kubernetes/containerd", "--config", "/etc/node/config.toml"];
    let mut containerd = Daemon::start(&containerd, || is_ready(SOCKET))?;
    let report = "/var/tmp/critest.json";
    let _ = fs::remove_file(report);
    let mut critest = Command::new("/opt/kubernetes/critest");
    critest.args(["--runtime-endpoint", SOCKET, "--ginkgo.no-color", "--ginkgo.seed=1"]);
    critest.arg(format!("--ginkgo.json-report={report}")).arg(format!("--ginkgo.skip={LEFT_OUT}"));
    critest.current_dir("/var/tmp").env("TMPDIR", "/var/tmp");
    let output = output_within(1200, &mut critest)?;
    let report = fs::read_to_string(report).with_context(|| format!("critest: {output:?}"))?;
    remove_sandboxes(SOCKET)?;
    containerd.stop()?;
    script("rm -r /var/lib/node /run/node", &[])?;

    let report: Value = serde_json::from_str(&report)?;
    let specs = report[0]["SpecReports"].as_array().context("the report has no tests")?;
    let (mut results, mut failed) = (BTreeMap::new(), Vec::new());
    for spec in specs.iter().filter(|spec| spec["LeafNodeType"] == "It") {
        let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let words = texts.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
        let name = words.collect::<Vec<_>>().join(" ");
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        let result = match spec["State"].as_str() {
            Some("passed") => "passed".to_owned(),
            // What is left out by its name has no message.
            Some("skipped") if message.is_empty() => "left out".to_owned(),
            Some("skipped") if REASONS.iter().any(|it| message.contains(it)) => {
                format!("skipped: {message}")
            }
            state => {
                failed.push(format!("{name}: {state:?} {message}"));
                continue;
            }
        };
        results.insert(name, result);
    }
    ensure!(failed.is_empty(), "{image}: {}", failed.join("\n"));
    Ok(results)
}
