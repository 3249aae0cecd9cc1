//! The programs that are measured. To add one, add a row to [`PEERS`].

use super::figures::Results;
use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Places in the list of peers.
pub const OURS: usize = 0;
/// The program that ours replaces, and which every ratio is to.
pub const UPSTREAM: usize = 1;
/// The program that only sleeps.
pub const DO_NOTHING: usize = 2;

/// Names, command lines, and what they are. Those of this project are built, others fetched.
const PEERS: [(&str, &str, &str); 8] = [
    ("pause", "pause", "this program"),
    ("upstream", "upstream", "upstream's pause.c, static, with glibc as Kubernetes ships it"),
    (
        "do nothing",
        "do-nothing",
        "nine bytes of assembly that only call `pause`. It is no lower bound: it is linked to a fixed \
         address and gives nothing back. It neither reaps nor exits",
    ),
    ("upstream, musl", "upstream-musl", "upstream's pause.c, static, with musl"),
    ("pause, hosted", "pause", "this program on Rust's std and signal-hook, as a baseline"),
    ("catatonit -P", "catatonit -P", "Podman's pause process"),
    (
        "tini (2 processes)",
        "tini -- /usr/bin/sleep infinity",
        "runs a command, as images use it: two processes",
    ),
    (
        "dumb-init (2 processes)",
        "dumb-init -- /usr/bin/sleep infinity",
        "runs a command, as images use it: two processes",
    ),
];

/// A program that is measured.
pub struct Peer {
    /// What tables call it.
    pub name: &'static str,
    /// Its command line, the program by its name alone.
    pub command: &'static str,
    pub description: &'static str,
    pub program: PathBuf,
    pub results: Results,
}

impl Peer {
    pub fn arguments(&self) -> impl Iterator<Item = &'static str> {
        self.command.split(' ').skip(1)
    }

    /// Whether it reaps orphans and exits on SIGTERM.
    pub fn is_init(&self) -> bool {
        self.name != PEERS[DO_NOTHING].0
    }
}

/// Builds or fetches all peers. Returns them, and which versions they are.
pub fn find() -> Result<(Vec<Peer>, String)> {
    let folder = build::project().join("target/peers");
    let versions = fetch(&folder)?;
    let folders = format!("{0}:{0}/usr/bin", folder.display());
    let peers = PEERS.map(|(name, command, description)| {
        let program = match name {
            "pause" => build::build(Flavor::Freestanding)?,
            "pause, hosted" => build::build(Flavor::Hosted)?,
            _ => {
                which::which_in(command.split(' ').next().unwrap_or(command), Some(&folders), "/")?
            }
        };
        Ok(Peer { name, command, description, program, results: Results::default() })
    });
    Ok((peers.into_iter().collect::<Result<_>>()?, versions))
}

/// Unpacks and compiles the peers that are not ours, unless they are there already, and returns their
/// versions.
fn fetch(folder: &Path) -> Result<String> {
    let script = build::project().join("xtask/fetch-peers");
    let mut command = Command::new(&script);
    let output = command.arg(folder).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: it needs apt with a mirror of Debian 12, x86_64 and gcc",
        script.display()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
