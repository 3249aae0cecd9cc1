//! Who is measured: what sleeps as PID 1 of a pod, or could.

use anyhow::{Context, Result, anyhow, ensure};
use harness::build::{self, Flavor};
use nix::libc;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

/// What peers are installed from, by its name in Debian and Ubuntu.
pub const PACKAGES: [&str; 3] = ["catatonit", "dumb-init", "tini"];

/// The name of what is compared with, and with whom the bars compare.
pub const OURS: &str = "pause";
/// The one whose figures the bars are shares of.
pub const CATATONIT: &str = "catatonit";
/// The program that does nothing.
pub const FLOOR: &str = "do nothing";

/// A program that is measured, and how it is run.
pub struct Peer {
    /// What it goes by in tables and charts.
    pub name: String,
    /// The file and its arguments.
    pub words: Vec<CString>,
    /// Version, or where it comes from.
    pub origin: String,
    /// Whether it was asked for by `--peer`.
    pub is_wanted: bool,
    /// Whether SIGTERM ends it.
    pub leaves: bool,
    /// Whether it reaps orphans, or why that could not be seen.
    pub reaps: Result<bool, String>,
}

/// A value of `--peer`.
#[derive(Clone, Debug)]
pub struct Named {
    name: String,
    words: Vec<String>,
}

impl FromStr for Named {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, command) = text.split_once('=').context("takes NAME=COMMAND")?;
        let words = shell_words::split(command)?;
        ensure!(!name.is_empty() && !words.is_empty(), "takes NAME=COMMAND, neither empty");
        Ok(Self { name: name.to_owned(), words })
    }
}

impl Peer {
    fn new(name: &str, program: &Path, arguments: &[&str], origin: String) -> Result<Self> {
        let mut words = vec![CString::new(program.as_os_str().as_bytes())?];
        for argument in arguments {
            words.push(CString::new(*argument)?);
        }
        let name = name.to_owned();
        Ok(Self { name, words, origin, is_wanted: false, leaves: false, reaps: Ok(false) })
    }

    /// The file that is run.
    pub fn program(&self) -> PathBuf {
        PathBuf::from(self.words[0].to_str().expect("paths of peers are UTF-8"))
    }

    /// Its command line, the program by its name alone.
    pub fn command(&self) -> String {
        let program = self.program();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let arguments = self.words[1..].iter().map(|word| word.to_string_lossy().into_owned());
        shell_words::join([name].into_iter().chain(arguments))
    }

    /// Whether it is the product.
    pub fn is_ours(&self) -> bool {
        self.name == OURS
    }
}

/// All peers of this machine, ours first, and a word about each that is missing.
///
/// # Errors
///
/// When the product cannot be built, or one of `named` is not there.
pub fn find(named: &[Named]) -> Result<(Vec<Peer>, Vec<String>)> {
    let version = |flavor: &str| format!("{}, {flavor}", env!("CARGO_PKG_VERSION"));
    let ours = build::build(Flavor::Freestanding)?;
    let hosted = build::build(Flavor::Hosted)?;
    let mut peers = vec![
        Peer::new(OURS, &ours, &[], version("freestanding"))?,
        Peer::new("pause, hosted", &hosted, &[], version("on std"))?,
    ];
    let mut missing = Vec::new();
    match floor()? {
        Some(path) => peers.push(Peer::new(FLOOR, &path, &[], "assembly, only sleeps".into())?),
        None => missing.push(format!("{FLOOR}: it is written for x86_64")),
    }
    // The last two are there to run a command: two processes, where a pod needs one.
    for (name, arguments) in [
        (CATATONIT, &["-P"][..]),
        ("tini", &["--", "sleep", "infinity"]),
        ("dumb-init", &["--", "sleep", "infinity"]),
    ] {
        match which::which(name) {
            Ok(path) => peers.push(Peer::new(name, &path, arguments, debian_version(name))?),
            Err(_) => missing.push(format!("{name}: not installed, --install gets it")),
        }
    }
    for Named { name, words } in named {
        ensure!(peers.iter().all(|peer| peer.name != *name), "there are two peers named {name}");
        let program = which::which(&words[0])
            .map_err(|error| anyhow!("there is no peer {name}: {}: {error}", words[0]))?;
        let arguments: Vec<_> = words[1..].iter().map(String::as_str).collect();
        let mut peer = Peer::new(name, &program, &arguments, "given by --peer".into())?;
        peer.is_wanted = true;
        peers.push(peer);
    }
    Ok((peers, missing))
}

/// The version of an installed Debian package.
fn debian_version(package: &str) -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Version}", package]).stderr(Stdio::null());
    match query.output() {
        Ok(output) if output.status.success() => {
            format!("Debian {}", String::from_utf8_lossy(&output.stdout))
        }
        _ => "version unknown".to_owned(),
    }
}

/// Writes the smallest program that sleeps, where it can be run: less than that no process costs.
fn floor() -> Result<Option<PathBuf>> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(None);
    }
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // mov eax, SYS_pause; syscall; jmp to the start
    let code = [0xb8, libc::SYS_pause as u8, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    let size = HEADERS + code.len() as u64;

    // elf(5): a header for a 64-bit executable, and one segment that is read and executed.
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1u32, 5].map(u32::to_le_bytes).concat());
    elf.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    elf.extend(code);

    let path = build::project().join("target/bench/do-nothing");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(&path, elf).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(Some(path))
}
