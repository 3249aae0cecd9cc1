//! Development tasks, and the one version of everything in the repository.

use anyhow::{Context, Result, ensure};
use harness::attacks::ATTACKS;
use harness::build::{build_xtask, project};
use harness::helper;
use harness::markdown::replace_section;
use harness::proc::children;
use harness::sandbox;
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use regex::Regex;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

const TESTS: &[Test] = tests![
    every_copy_of_the_version_is_the_same,
    other_versions_are_found,
    generated_sections_are_replaced,
    contract_names_tests_that_exist,
];
const SANDBOXED: &[Test] = tests![ctrl_c_ends_a_held_demo_with_0];

fn main() -> ExitCode {
    helper::dispatch();
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

/// Versions of the product in `text`, each with the words before it, that are not this one.
fn other_versions(text: &str) -> Result<Vec<&str>> {
    // Upstream's image has versions of its own.
    let ours =
        r#"(k8s\.io/)?(?:pause[: ]|image\.version="|\*\*Status:\*\* version )(\d+\.\d+\.\d+)"#;
    let ours = Regex::new(ours)?;
    let others = ours.captures_iter(text).filter(|it| it.get(1).is_none());
    let others = others.filter(|it| &it[2] != env!("CARGO_PKG_VERSION"));
    Ok(others.map(|it| it.get_match().as_str()).collect())
}

fn every_copy_of_the_version_is_the_same() -> Result<()> {
    // What a copy of the sources has without git, too: all files but those that are made.
    let mut folders = vec![project().to_owned()];
    let mut copies = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && name != ".git" {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let is_history = name == "CHANGELOG.md";
                let others = other_versions(&text)?;
                ensure!(is_history || others.is_empty(), "{} has {others:?}", path.display());
                copies += text.matches(concat!("pause:", env!("CARGO_PKG_VERSION"))).count();
            }
        }
    }
    ensure!(copies > 5, "only {copies} files name the image");
    let changes = fs::read_to_string(project().join("CHANGELOG.md"))?;
    let heading = concat!("\n## ", env!("CARGO_PKG_VERSION"), " ");
    ensure!(changes.contains(heading), "CHANGELOG.md has no heading for this version");
    let manifest = fs::read_to_string(project().join("Cargo.toml"))?;
    let line = concat!("\nversion = \"", env!("CARGO_PKG_VERSION"), "\"\n");
    ensure!(manifest.matches(line).count() == 1, "the version is in Cargo.toml more than once");
    Ok(())
}

fn other_versions_are_found() -> Result<()> {
    let text = "localhost/pause:V.1 pause:V.2. registry.k8s.io/pause:V.3 image.version=\"V.4\"";
    let text = text.replace('V', "0.99");
    let found = other_versions(&text)?;
    ensure!(found.len() == 3 && found.iter().all(|it| !it.ends_with('3')), "{found:?}");
    Ok(())
}

fn generated_sections_are_replaced() -> Result<()> {
    let document = "a\n<!-- command -->\n\nold\n\n<!-- end -->\nb\n<!-- end -->\n";
    let new = replace_section(document, "command", "new\n")?;
    ensure!(new == "a\n<!-- command -->\n\nnew\n\n<!-- end -->\nb\n<!-- end -->\n", "{new}");
    ensure!(replace_section(&new, "command", "new")? == new);
    ensure!(replace_section("<!-- end -->", "command", "").is_err());
    ensure!(replace_section("<!-- command -->\n", "command", "").is_err());
    Ok(())
}

fn contract_names_tests_that_exist() -> Result<()> {
    let read = |path: &str| fs::read_to_string(project().join(path)).context(path.to_owned());
    let page = read("docs/contract.md")?;
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for row in rows.iter().filter(|row| !row.ends_with("| tests |") && !row.starts_with("| ---")) {
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        let mut tests = tests.split('`').filter_map(|name| name.split_once("::")).peekable();
        ensure!(tests.peek().is_some(), "no test: {row}");
        for (file, test) in tests {
            let source = read(&format!("tests/{file}.rs"))?;
            let is_attack = file == "attacks" && ATTACKS.iter().any(|it| it.name == test);
            let words = |it: char| !it.is_alphanumeric() && it != '_';
            ensure!(is_attack || source.split(words).any(|it| it == test), "no {file}::{test}");
        }
    }
    let readme = read("README.md")?;
    let contract = readme.split("\n## ").find(|section| section.starts_with("The contract\n"));
    let promises = contract.context("the README has no contract")?.lines();
    for promise in promises.filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()) {
        let start = format!("| {promise} | ");
        let is_there =
            promise.starts_with(['|', '-']) || rows.iter().any(|it| it.starts_with(&start));
        ensure!(is_there, "docs/contract.md has no row {promise:?}");
    }
    Ok(())
}
