//! Builds the product as it ships: with `cargo build --release`, never as a test build.

use crate::target::Target;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{env, fs};

/// The two ways to build the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// No C library, no std: what ships.
    Freestanding,
    /// On std, libc and signal-hook.
    Hosted,
}

/// The top directory of the sources: the one that `PAUSE_PROJECT` names, else the first one upwards from
/// the directory that cargo runs a program for, or from the current one. It is found at run time, because
/// cargo runs the same program in a copy of the sources that was made together with `target/`.
pub fn project() -> &'static Path {
    static PROJECT: LazyLock<PathBuf> = LazyLock::new(|| {
        let is_project = |path: &&Path| path.join("tests/harness/Cargo.toml").exists();
        let current = env::current_dir().unwrap_or_default();
        let starts = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let starts: Vec<_> = starts.into_iter().chain([current.clone()]).collect();
        let found = || starts.iter().find_map(|start| start.ancestors().find(is_project));
        // Without sources, cargo's own error names the directory.
        let default = || found().unwrap_or(&current).to_owned();
        let project = env::var_os("PAUSE_PROJECT").map_or_else(default, PathBuf::from);
        project.canonicalize().unwrap_or(project)
    });
    &PROJECT
}

/// Builds the release binary of `flavor` for this machine and returns its path.
pub fn build(flavor: Flavor) -> Result<PathBuf> {
    let mut command = build_command();
    if flavor == Flavor::Hosted {
        // A directory of its own, or each flavor would overwrite the other at target/release/pause.
        command.args(["--features=hosted", "--target-dir=target/hosted"]);
    }
    // Without it a configuration can ask for another target.
    command.arg("--target=host-tuple");
    binary_of(command)
}

impl Target {
    /// Builds the freestanding release binary for this target and returns its path.
    ///
    /// Needs neither a C compiler nor a C library for the target, only its `core`: see [`find_core`].
    pub fn build(&self) -> Result<PathBuf> {
        if self.is_native() {
            return build(Flavor::Freestanding);
        }
        let triple = self.triple;
        let linker_of = format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"));
        let mut command = build_command();
        command.env("RUSTC", find_core(triple)?).env(linker_of, linker()?);
        // Artifacts of another compiler do not mix with those of the usual one.
        command.args(["--target", triple, "--target-dir=target/foreign"]);
        binary_of(command)
    }
}

/// Finds a compiler that has `core` for `target`: the usual one, or the one that the variable
/// `PAUSE_FOREIGN_RUSTC` names, for toolchains that are not rustup's.
pub fn find_core(target: &str) -> Result<OsString> {
    for rustc in env::var_os("PAUSE_FOREIGN_RUSTC").into_iter().chain([usual_rustc()]) {
        let folder =
            stdout_of(Command::new(&rustc).args(["--print=target-libdir", "--target", target]))?;
        let files = fs::read_dir(folder.trim()).into_iter().flatten().flatten();
        let mut names = files.map(|file| file.file_name());
        if names.any(|name| name.as_encoded_bytes().starts_with(b"libcore-")) {
            return Ok(rustc);
        }
    }
    bail!("target {target} is not installed; run: rustup target add {target}")
}

fn usual_rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The linker that comes with the usual compiler, for every target.
fn linker() -> Result<PathBuf> {
    let folder = stdout_of(Command::new(usual_rustc()).arg("--print=target-libdir"))?;
    let linker = Path::new(folder.trim()).with_file_name("bin").join("rust-lld");
    ensure!(linker.exists(), "the Rust toolchain has no rust-lld at {}", linker.display());
    Ok(linker)
}

/// A subcommand of cargo, in the project.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project()).arg(subcommand);
    command
}

/// Runs a command in the project and returns its stdout.
///
/// # Errors
///
/// Returns an error if the command fails, too.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let output = command.current_dir(project()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// What Cargo.toml says of the release profile or leaves to cargo's defaults. It can be set for single
/// packages, too.
const OF_PACKAGES: [&str; 6] = [
    "codegen-units=1",
    "debug=false",
    "debug-assertions=false",
    "opt-level=\"z\"",
    "overflow-checks=false",
    "strip=true",
];

/// What is the same for all packages.
const OF_THE_PROFILE: [&str; 2] = ["lto=true", "panic=\"abort\""];

/// Variables for cargo and its compiler that say where to work and how to reach a registry, and not what
/// to build.
const HARMLESS: [&str; 11] = [
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_JOBS",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TARGET_DIR",
    "CARGO_TERM_",
    "RUSTUP_",
];

/// Variables with which gcc and GNU ld look for other programs and libraries, or write another format.
const OF_LINKERS: [&str; 6] =
    ["COMPILER_PATH", "GCC_EXEC_PREFIX", "GNUTARGET", "LDEMULATION", "LD_RUN_PATH", "LIBRARY_PATH"];

/// A command that builds the product as it ships: the same bytes whatever the caller's environment and
/// configuration of cargo ask for.
fn build_command() -> Command {
    let mut command = cargo("build");
    command.args(["--release", "--quiet", "--package=pause", "--locked"]);
    command.arg("--message-format=json-render-diagnostics");
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_for_rust =
            ["CARGO", "RUST"].iter().any(|it| text.trim_start_matches('_').starts_with(it));
        let is_harmless = HARMLESS.iter().any(|it| text.starts_with(it));
        if is_for_rust && !is_harmless || OF_LINKERS.contains(&&*text) {
            command.env_remove(name);
        }
    }
    // For these a variable stands above a configuration, even if it is empty.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env(name, "");
    }
    command.env("CARGO_INCREMENTAL", "0").env("RUSTC", usual_rustc());
    // What the command line says stands above all else.
    for setting in OF_PACKAGES {
        for table in ["", "package.pause.", "package.\"*\"."] {
            command.arg(format!("--config=profile.release.{table}{setting}"));
        }
    }
    command.args(OF_THE_PROFILE.map(|setting| format!("--config=profile.release.{setting}")));
    command
}

/// Runs a build and returns the path of the binary.
fn binary_of(mut build: Command) -> Result<PathBuf> {
    let mut child = build.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let messages = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut binary = None;
    for message in messages.lines() {
        let message: Value = serde_json::from_str(&message?).context("cannot read from cargo")?;
        binary = message["executable"].as_str().map(PathBuf::from).or(binary);
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo cannot build the program, see above: {status}");
    binary.with_context(|| format!("{build:?} made no binary"))
}

/// Builds the program behind `cargo xtask`, with all of its tasks, and returns its path.
pub fn build_xtask() -> Result<PathBuf> {
    build_program("xtask")
}

/// Builds the program of a package of the workspace and returns its path.
pub fn build_program(package: &str) -> Result<PathBuf> {
    let mut command = cargo("build");
    command.args(["--quiet", "--package", package, "--message-format=json-render-diagnostics"]);
    binary_of(command)
}

/// The directory of the usual toolchain, which has `bin/rustc`.
pub fn sysroot() -> Result<PathBuf> {
    Ok(stdout_of(Command::new(usual_rustc()).arg("--print=sysroot"))?.trim().into())
}

/// Copies the sources, all that is not made from them, into an existing directory.
pub fn copy_sources(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(project())?.collect::<Result<Vec<_>, _>>()?;
    let sources = entries.iter().map(|entry| entry.path());
    let sources = sources.filter(|path| !path.ends_with("target") && !path.ends_with(".git"));
    let status = Command::new("cp").arg("-R").args(sources).arg(folder).status()?;
    ensure!(status.success(), "cannot copy the sources to {}: {status}", folder.display());
    Ok(())
}
