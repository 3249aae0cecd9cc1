//! Builds the product as it ships: with `cargo build --release`, never as a test build.

use crate::target::Target;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
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

/// The top folder of the sources: of these, or of the copy that `PAUSE_PROJECT` names.
pub fn project() -> &'static Path {
    static PROJECT: LazyLock<PathBuf> = LazyLock::new(|| {
        let ours = || concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into();
        let project: PathBuf = env::var_os("PAUSE_PROJECT").map_or_else(ours, PathBuf::from);
        project.canonicalize().unwrap_or(project)
    });
    &PROJECT
}

/// Builds the release binary of `flavor` for this machine and returns its path.
pub fn build(flavor: Flavor) -> Result<PathBuf> {
    let mut command = build_command();
    if flavor == Flavor::Hosted {
        // A folder of its own, or each flavor would overwrite the other at target/release/pause.
        command.args(["--features=hosted", "--target-dir=target/hosted"]);
    }
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
        let mut command = build_with(&find_core(self.triple)?, &linker()?, self.triple);
        // Artifacts of another compiler do not mix with those of the usual one.
        command.arg("--target-dir=target/foreign");
        binary_of(command)
    }
}

/// A command that builds for `target` with the given compiler and linker.
fn build_with(rustc: &OsStr, linker: &Path, target: &str) -> Command {
    let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    let mut command = build_command();
    command.args(["--target", target]).env("RUSTC", rustc).env(variable, linker);
    command
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
    bail!("there is no core for {target}; get it with: rustup target add {target}")
}

fn usual_rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The linker that comes with the usual compiler, for every target.
fn linker() -> Result<PathBuf> {
    let folder = stdout_of(Command::new("rustc").args(["--print=target-libdir"]))?;
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

/// A command that builds the product as it ships: the same bytes whatever flags and profile the
/// caller's environment asks for, and whatever flags the configuration of cargo does.
fn build_command() -> Command {
    let mut command = cargo("build");
    command.args(["--release", "--quiet", "--package=pause"]);
    command.arg("--message-format=json-render-diagnostics");
    // cargo takes flags from the first place that has some; this one comes first.
    command.env("CARGO_ENCODED_RUSTFLAGS", "");
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_RELEASE_") {
            command.env_remove(name);
        }
    }
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
    ensure!(status.success(), "{build:?}: {status}");
    match binary {
        Some(path) => Ok(path),
        None => bail!("{build:?} made no binary"),
    }
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

/// The folder of the usual toolchain, which has `bin/rustc`.
pub fn sysroot() -> Result<PathBuf> {
    Ok(stdout_of(Command::new(usual_rustc()).arg("--print=sysroot"))?.trim().into())
}

/// Copies the sources, all that is not made from them, into an existing folder.
pub fn copy_sources(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(project())?.collect::<Result<Vec<_>, _>>()?;
    let sources = entries.iter().map(|entry| entry.path());
    let sources = sources.filter(|path| !path.ends_with("target") && !path.ends_with(".git"));
    let status = Command::new("cp").arg("-R").args(sources).arg(folder).status()?;
    ensure!(status.success(), "cannot copy the sources to {}: {status}", folder.display());
    Ok(())
}
