//! Builds the product as it ships: with `cargo build --release`, never as a test build.

use crate::target::Target;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Deserializer, Value};
use std::ffi::{OsStr, OsString};
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
/// the current one. It is found at run time, because cargo runs the same program in a copy of the sources
/// that was made together with `target/`.
pub fn project() -> &'static Path {
    static PROJECT: LazyLock<PathBuf> = LazyLock::new(|| {
        let current = env::current_dir().unwrap_or_default();
        let found = current.ancestors().find(|it| it.join("tests/harness/Cargo.toml").exists());
        // Without sources, cargo's own error names the directory.
        let default = || found.unwrap_or(&current).to_owned();
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
    /// Builds the freestanding release binary for this target and returns its path. For this it needs
    /// `core`, see [`find_core`], and neither a C compiler nor a C library.
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
        let libraries = print(&rustc, &["--print=target-libdir", "--target", target])?;
        let mut files = fs::read_dir(libraries).into_iter().flatten().flatten();
        if files.any(|file| file.file_name().as_encoded_bytes().starts_with(b"libcore-")) {
            return Ok(rustc);
        }
    }
    bail!("target {target} is not installed; run: rustup target add {target}")
}

fn usual_rustc() -> OsString {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// The path that a compiler prints.
fn print(rustc: &OsStr, options: &[&str]) -> Result<PathBuf> {
    Ok(stdout_of(Command::new(rustc).args(options))?.trim().into())
}

/// The directory of the usual toolchain, which has `bin/rustc`.
pub fn sysroot() -> Result<PathBuf> {
    print(&usual_rustc(), &["--print=sysroot"])
}

/// The linker that comes with the usual compiler, for every target.
fn linker() -> Result<PathBuf> {
    let libraries = print(&usual_rustc(), &["--print=target-libdir"])?;
    let linker = libraries.with_file_name("bin").join("rust-lld");
    ensure!(linker.exists(), "the Rust toolchain has no rust-lld at {}", linker.display());
    Ok(linker)
}

/// A subcommand of cargo, in the project.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project()).arg(subcommand);
    command
}

/// Runs a command in the project and returns its stdout. Fails if the command does.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let output = command.current_dir(project()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The release profile, as Cargo.toml and cargo's defaults have it.
const PROFILE: [&str; 8] = [
    "codegen-units=1",
    "debug=false",
    "debug-assertions=false",
    "lto=true",
    "opt-level=\"z\"",
    "overflow-checks=false",
    "panic=\"abort\"",
    "strip=true",
];

/// How variables for cargo and its compiler begin that say where to work and how to reach a registry, and
/// not what to build.
const HARMLESS: [&str; 8] = [
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
        let begins = |with: &[&str]| with.iter().any(|start| text.starts_with(start));
        let is_for_rust = begins(&["CARGO", "RUST", "__CARGO"]) && !begins(&HARMLESS);
        if is_for_rust || OF_LINKERS.contains(&&*text) {
            command.env_remove(name);
        }
    }
    // For these a variable stands above a configuration, even if it is empty.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env(name, "");
    }
    command.env("CARGO_INCREMENTAL", "0").env("RUSTC", usual_rustc());
    // The command line stands above all else.
    command.args(PROFILE.map(|setting| format!("--config=profile.release.{setting}")));
    command
}

/// Runs a build that prints its messages as JSON, and returns the path of the binary. The error is what
/// cargo prints.
pub fn binary_of(mut build: Command) -> Result<PathBuf> {
    let build = build.output().context("cannot run cargo")?;
    let errors = String::from_utf8_lossy(&build.stderr);
    ensure!(build.status.success(), "cargo cannot build the program: {errors}");
    let messages = Deserializer::from_slice(&build.stdout).into_iter::<Value>();
    let messages = messages.collect::<Result<Vec<_>, _>>().context("cannot read from cargo")?;
    let binary = messages.iter().rev().find_map(|message| message["executable"].as_str());
    Ok(binary.context("cargo made no binary")?.into())
}

/// Builds the program of a package of the workspace and returns its path.
pub fn build_program(package: &str) -> Result<PathBuf> {
    let mut command = cargo("build");
    command.args(["--quiet", "--package", package, "--message-format=json-render-diagnostics"]);
    binary_of(command)
}

/// Copies the sources, without `target` and `.git`, into an existing directory.
pub fn copy_sources(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(project())?.collect::<Result<Vec<_>, _>>()?;
    let sources = entries.iter().map(|entry| entry.path());
    let sources = sources.filter(|path| !path.ends_with("target") && !path.ends_with(".git"));
    stdout_of(Command::new("cp").arg("-R").args(sources).arg(directory))?;
    Ok(())
}
