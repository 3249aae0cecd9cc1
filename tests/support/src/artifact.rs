//! The artifact as it ships: what `cargo build --release` makes, never a test build of it.

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use std::ffi::OsString;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// The two ways to build the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// No C library, no std: what ships.
    Freestanding,
    /// On std, libc and signal-hook.
    Hosted,
}

/// A target that the freestanding flavor is for.
#[derive(Debug)]
pub struct Target {
    /// What rustc calls it.
    pub triple: &'static str,
    /// What images call its platform. None for a second way to compile for the same one.
    pub platform: Option<&'static str>,
    /// What qemu calls its architecture.
    pub emulator: &'static str,
    /// Debian's kernels that it is booted on.
    pub kernels: &'static [Kernel],
}

/// A kernel of Debian's.
#[derive(Debug)]
pub struct Kernel {
    /// What Debian calls it: its package is `linux-image-` and this.
    pub name: &'static str,
    /// Size of its pages in KiB.
    pub page: u32,
}

const CLOUD_ARM64: Kernel = Kernel { name: "cloud-arm64", page: 4 };
const ARM64_16K: Kernel = Kernel { name: "arm64-16k", page: 16 };
const ARMMP: Kernel = Kernel { name: "armmp", page: 4 };
const POWERPC64LE: Kernel = Kernel { name: "powerpc64le", page: 64 };
const S390X: Kernel = Kernel { name: "s390x", page: 4 };

/// All of them.
pub const TARGETS: &[Target] = &[
    target("x86_64-unknown-linux-gnu", Some("linux/amd64"), "x86_64", &[]),
    target(
        "aarch64-unknown-linux-gnu",
        Some("linux/arm64/v8"),
        "aarch64",
        &[CLOUD_ARM64, ARM64_16K],
    ),
    target("armv7-unknown-linux-gnueabihf", Some("linux/arm/v7"), "arm", &[ARMMP]),
    target("thumbv7neon-unknown-linux-gnueabihf", None, "arm", &[ARMMP]),
    target("loongarch64-unknown-linux-gnu", Some("linux/loong64"), "loongarch64", &[]),
    target("powerpc64le-unknown-linux-gnu", Some("linux/ppc64le"), "ppc64le", &[POWERPC64LE]),
    target("riscv64gc-unknown-linux-gnu", Some("linux/riscv64"), "riscv64", &[]),
    target("s390x-unknown-linux-gnu", Some("linux/s390x"), "s390x", &[S390X]),
];

const fn target(
    triple: &'static str,
    platform: Option<&'static str>,
    emulator: &'static str,
    kernels: &'static [Kernel],
) -> Target {
    Target { triple, platform, emulator, kernels }
}

impl Target {
    /// Whether it is this machine's, for which plain cargo builds.
    pub fn is_native(&self) -> bool {
        self.platform.is_some() && self.emulator == env::consts::ARCH
    }

    /// Builds the freestanding release binary for it and returns its path: as [`build`] or
    /// [`build_for`].
    ///
    /// # Errors
    ///
    /// As theirs.
    pub fn build(&self) -> Result<PathBuf> {
        if self.is_native() { build(Flavor::Freestanding) } else { build_for(self.triple) }
    }

    /// The program that runs its binaries here.
    ///
    /// # Errors
    ///
    /// Says how to get it.
    pub fn find_emulator(&self) -> Result<PathBuf> {
        find_program(&format!("qemu-{}-static", self.emulator), "qemu-user-static")
    }

    /// The program that runs a whole machine of its architecture here.
    ///
    /// # Errors
    ///
    /// Says how to get it.
    pub fn find_machine(&self) -> Result<PathBuf> {
        let package = match self.emulator {
            "aarch64" | "arm" => "qemu-system-arm",
            "ppc64le" => "qemu-system-ppc",
            _ => "qemu-system-misc",
        };
        find_program(&format!("qemu-system-{}", self.emulator), package)
    }
}

/// Finds a program that is in one of Debian's packages.
fn find_program(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.exists());
    found.with_context(|| format!("there is no {name}; on Debian: apt install {package}"))
}

/// The top folder of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/support has a project")
}

/// Builds the release binary of `flavor` for this machine and returns its path.
///
/// # Errors
///
/// When cargo cannot be run, or says why the build failed.
pub fn build(flavor: Flavor) -> Result<PathBuf> {
    let mut command = cargo();
    if flavor == Flavor::Hosted {
        // A folder of its own, or each flavor would overwrite the other at target/release/pause.
        command.args(["--features=hosted", "--target-dir=target/hosted"]);
    }
    binary_of(command)
}

/// Builds the freestanding release binary for `target`, a triple of rustc's, and returns its path.
///
/// Needs neither a C compiler nor a C library for the target, only its `core`: see [`find_core`].
///
/// # Errors
///
/// As [`build`], and when `core` is missing.
pub fn build_for(target: &str) -> Result<PathBuf> {
    let rustc = find_core(target)?;
    let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    let mut command = cargo();
    // Artifacts of another compiler do not mix with those of the usual one.
    command.args(["--target", target, "--target-dir=target/foreign"]);
    command.env("RUSTC", rustc).env(variable, linker()?);
    binary_of(command)
}

/// Finds a compiler that has `core` for `target`: the usual one, or the one that the variable
/// `PAUSE_FOREIGN_RUSTC` names, for toolchains that are not rustup's.
///
/// # Errors
///
/// Says how to get `core`.
pub fn find_core(target: &str) -> Result<OsString> {
    let usual = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    for rustc in env::var_os("PAUSE_FOREIGN_RUSTC").into_iter().chain([usual]) {
        let folder = ask(Command::new(&rustc).args(["--print=target-libdir", "--target", target]))?;
        let files = fs::read_dir(folder.trim()).into_iter().flatten().flatten();
        let mut names = files.map(|file| file.file_name());
        if names.any(|name| name.as_encoded_bytes().starts_with(b"libcore-")) {
            return Ok(rustc);
        }
    }
    bail!("there is no core for {target}; get it with: rustup target add {target}")
}

/// The linker that comes with the usual compiler, for every target.
fn linker() -> Result<PathBuf> {
    let folder = ask(Command::new("rustc").args(["--print=target-libdir"]))?;
    let linker = Path::new(folder.trim()).with_file_name("bin").join("rust-lld");
    ensure!(linker.exists(), "the Rust toolchain has no rust-lld at {}", linker.display());
    Ok(linker)
}

/// What a command says on stdout.
fn ask(command: &mut Command) -> Result<String> {
    let output = command.current_dir(project()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A command that builds the product as it ships: the same bytes whatever flags and profile the
/// caller's environment asks for, and whatever flags the configuration of cargo does.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project());
    command.args(["build", "--release", "--quiet", "--package=pause"]);
    command.arg("--message-format=json-render-diagnostics");
    // It is there, so cargo looks for flags nowhere else.
    command.env("CARGO_ENCODED_RUSTFLAGS", "");
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_RELEASE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a build and returns the path of the binary that it made.
fn binary_of(mut build: Command) -> Result<PathBuf> {
    let mut child = build.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let messages = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut binary = None;
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read from cargo")? {
            binary = artifact.executable.or(binary);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{build:?}: {status}");
    match binary {
        Some(path) => Ok(path.into()),
        None => bail!("{build:?} made no binary"),
    }
}

/// Copies the sources, all that is not made from them, into an existing folder.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn copy_sources(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(project())?.collect::<Result<Vec<_>, _>>()?;
    let sources = entries.iter().map(|entry| entry.path());
    let sources = sources.filter(|path| !path.ends_with("target") && !path.ends_with(".git"));
    let status = Command::new("cp").arg("-R").args(sources).arg(folder).status()?;
    ensure!(status.success(), "cannot copy the sources to {}: {status}", folder.display());
    Ok(())
}
