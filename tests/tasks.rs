//! Development tasks, and the one version of everything in the repository.

use anyhow::{Context, Result, ensure};
use harness::build::{build_xtask, project, stdout_of};
use harness::proc::children;
use harness::sandbox;
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

const VERSION: &str = env!("CARGO_PKG_VERSION");

const TESTS: &[Test] =
    tests![every_copy_of_the_version_is_the_same, contract_names_tests_that_exist];
const SANDBOXED: &[Test] = tests![ctrl_c_ends_a_held_demo_with_0];

fn main() -> ExitCode {
    let mut trials = Trials::new();
    trials.add_all(TESTS, None);
    trials.add_all(SANDBOXED, obstacle(sandbox::is_available()));
    trials.run()
}

/// A terminal sends Ctrl-C to the whole process group, so the containers have to be in others.
fn ctrl_c_ends_a_held_demo_with_0() -> Result<()> {
    let mut demo = Command::new(build_xtask()?);
    demo.args(["demo", "--hold", "--orphans=100"]).process_group(0).stdout(Stdio::piped());
    let mut demo = demo.spawn()?;
    let mut lines = BufReader::new(demo.stdout.take().context("stdout is piped")?).lines();
    let is_held = lines.any(|line| line.is_ok_and(|line| line.contains("Ctrl-C ends the pod")));
    let pid = Pid::from_raw(demo.id() as i32);
    let is_reached = children(pid).into_iter().any(|child| getpgid(Some(child)) == Ok(pid));
    killpg(pid, Signal::SIGINT)?;
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let status = demo.wait()?;
    ensure!(is_held && status.success(), "{status} after {rest:?}");
    ensure!(!is_reached, "Ctrl-C ends a container, too");
    ensure!(rest.iter().any(|line| line.contains("exit code 0")), "{rest:?}");
    Ok(())
}

/// What a version of the product stands behind.
const MARKS: [&str; 4] = ["pause:", "pause ", "image.version=\"", "**Status:** version "];

fn every_copy_of_the_version_is_the_same() -> Result<()> {
    let marks = MARKS.join("|").replace('.', "[.]").replace('*', "[*]");
    let mut grep = Command::new("grep");
    grep.args(["-rIoE", "--exclude-dir=target", "--exclude-dir=.git", "--exclude=CHANGELOG.md"]);
    grep.arg(format!("(k8s[.]io/)?({marks})[0-9]+[.][0-9]+[.][0-9]+")).arg(".");
    let found = stdout_of(&mut grep)?;
    // Upstream's image has versions of its own.
    let mut copies: Vec<_> = found.lines().filter(|copy| !copy.contains(":k8s.io/")).collect();
    for mark in MARKS {
        let ours = format!(":{mark}{VERSION}");
        let is_used = copies.iter().any(|copy| copy.ends_with(&ours));
        ensure!(is_used, "no version {VERSION} is behind {mark:?}");
        copies.retain(|copy| !copy.ends_with(&ours));
    }
    ensure!(copies.is_empty(), "other versions: {copies:?}");
    let changes = fs::read_to_string(project().join("CHANGELOG.md"))?;
    let heading = format!("\n## {VERSION} ");
    ensure!(changes.contains(&heading), "CHANGELOG.md has no heading for this version");
    let manifest = fs::read_to_string(project().join("Cargo.toml"))?;
    let line = format!("\nversion = \"{VERSION}\"\n");
    ensure!(manifest.matches(&line).count() == 1, "the version is in Cargo.toml more than once");
    Ok(())
}

/// The rows of the tables in `text`, without their headers.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    let is_row =
        |it: &str| it.starts_with("| ") && !it.starts_with("| -") && !it.starts_with("| |");
    text.lines().filter(move |line| is_row(line) && !line.ends_with("| tests |"))
}

fn contract_names_tests_that_exist() -> Result<()> {
    let read = |path: &str| fs::read_to_string(project().join(path)).context(path.to_owned());
    let page = read("docs/contract.md")?;
    for row in rows(&page) {
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        let mut tests = tests.split('`').filter_map(|name| name.split_once("::")).peekable();
        ensure!(tests.peek().is_some(), "no test: {row}");
        for (file, test) in tests {
            let source = read(&format!("tests/{file}.rs"))?;
            let words = |it: char| !it.is_alphanumeric() && it != '_';
            ensure!(source.split(words).any(|it| it == test), "no {file}::{test}");
        }
    }
    let readme = read("README.md")?;
    let contract = readme.split("\n## ").find(|section| section.starts_with("The contract\n"));
    for row in rows(contract.context("the README has no contract")?) {
        let promise = row.split_inclusive(" | ").next().unwrap_or_default();
        ensure!(page.contains(&format!("\n{promise}")), "docs/contract.md has no row {promise:?}");
    }
    Ok(())
}
