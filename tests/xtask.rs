//! `cargo xtask`, the one version of everything in the repository, and the tests that the documents
//! name.

use anyhow::{Context, Result, ensure};
use harness::build::{build_program, cargo, project, stdout_of};
use harness::proc::children;
use harness::sandbox;
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let tests: &[Test] = tests![
        every_copy_of_the_version_is_the_same,
        documents_name_tests_that_exist,
        contract_is_tested
    ];
    trials.add_all(tests, None);
    trials.add_all(tests![ctrl_c_ends_a_held_demo_with_0], obstacle(sandbox::is_available()));
    trials.run()
}

/// A terminal sends Ctrl-C to the whole process group, so the containers have to be in others.
fn ctrl_c_ends_a_held_demo_with_0() -> Result<()> {
    let mut demo = Command::new(build_program("xtask")?);
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

fn every_copy_of_the_version_is_the_same() -> Result<()> {
    for mark in ["pause[: ]", "image[.]version=\"", "[*][*]Status:[*][*] version "] {
        let mut grep = Command::new("grep");
        // CI tags its images with no version.
        grep.args(["-rIoE", "--exclude-dir=target", "--exclude-dir=.git", "--exclude-dir=.ci"]);
        grep.arg("--exclude=CHANGELOG.md");
        grep.arg(format!("(k8s[.]io/)?{mark}[0-9]+[.][0-9]+[.][0-9]+")).arg(".");
        let copies = stdout_of(&mut grep).with_context(|| format!("no version behind {mark}"))?;
        let is_ours = |copy: &&str| copy.rsplit([':', ' ', '"']).next() == Some(VERSION);
        // Upstream's image has versions of its own.
        let is_other = |copy: &&str| !copy.contains(":k8s.io/") && !is_ours(copy);
        let others: Vec<_> = copies.lines().filter(is_other).collect();
        ensure!(others.is_empty(), "not version {VERSION}: {others:?}");
    }
    let heading = format!("\n## {VERSION} ");
    ensure!(read("CHANGELOG.md")?.contains(&heading), "CHANGELOG.md has no heading {heading:?}");
    let line = format!("\nversion = \"{VERSION}\"\n");
    ensure!(read("Cargo.toml")?.matches(&line).count() == 1, "Cargo.toml: not one line {line:?}");
    Ok(())
}

/// The rows of the tables in `text`, without their headers.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.filter(|row| {
        !row.starts_with("| -") && !row.starts_with("| |") && !row.ends_with("| tests |")
    })
}

/// The tests that a text names, each as `FILE::TEST` in backquotes.
fn tests_in(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_name = |it: &str| it.chars().all(|char| char.is_alphanumeric() || char == '_');
    let quoted = text.split('`').skip(1).step_by(2).filter_map(|it| it.split_once("::"));
    quoted.filter(move |(file, test)| is_name(file) && is_name(test))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(project().join(path)).context(path.to_owned())
}

/// Asks the test programs themselves. A name may stand for several of their trials.
fn documents_name_tests_that_exist() -> Result<()> {
    let mut named = BTreeMap::<_, BTreeSet<_>>::new();
    let pages = ["contract", "embedding", "security"].map(|it| read(&format!("docs/{it}.md")));
    let pages = pages.into_iter().collect::<Result<Vec<_>>>()?;
    for (file, test) in pages.iter().flat_map(|page| tests_in(page)) {
        named.entry(file).or_default().insert(test);
    }
    let mut missing = Vec::new();
    for (file, tests) in named {
        let list = stdout_of(cargo("test").args(["--quiet", "--test", file, "--", "--list"]))?;
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let trials: BTreeSet<_> = names.flat_map(|name| name.split("::")).collect();
        missing.extend(tests.difference(&trials).map(|test| format!("{file}::{test}")));
    }
    ensure!(missing.is_empty(), "the documents name tests that do not exist: {missing:?}");
    Ok(())
}

fn contract_is_tested() -> Result<()> {
    let page = read("docs/contract.md")?;
    for row in rows(&page) {
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        ensure!(tests_in(tests).next().is_some(), "no test: {row}");
    }
    let readme = read("README.md")?;
    let contract = readme.split("\n## ").find(|section| section.starts_with("The contract\n"));
    for row in rows(contract.context("the README has no contract")?) {
        let promise = row.split_inclusive(" | ").next().unwrap_or_default();
        ensure!(page.contains(&format!("\n{promise}")), "docs/contract.md has no row {promise:?}");
    }
    Ok(())
}
