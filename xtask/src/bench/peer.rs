//! The programs that are measured. To add one, add a row to [`find`].

use super::samples::Samples;
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

/// A program that is measured.
pub struct Peer {
    /// What tables and charts call it.
    pub name: &'static str,
    /// What it is, for the table of peers.
    pub description: &'static str,
    pub program: PathBuf,
    pub arguments: &'static [&'static str],
    /// Whether it is to reap orphans and to exit on SIGTERM.
    pub is_init: bool,
    pub results: Results,
}

/// What was measured of a peer. The columns of the report name the units.
#[derive(Default)]
pub struct Results {
    pub file: Samples,
    /// Bytes that a node pulls.
    pub pulled: Samples,
    pub anonymous: Samples,
    pub page_tables: Samples,
    /// Both.
    pub own_memory: Samples,
    /// Both, as /proc/meminfo counts them.
    pub growth: Samples,
    pub resident: Samples,
    pub wake_ups: Samples,
    pub interruptions: Samples,
    pub cpu: Samples,
    pub churn_wake_ups: Samples,
    pub churn_interruptions: Samples,
    pub churn_cpu: Samples,
    pub exec_to_asleep: Samples,
    pub clone_to_gone: Samples,
}

impl Peer {
    /// Its command line, the program by its name alone.
    pub fn command(&self) -> String {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        [&*name].into_iter().chain(self.arguments.iter().copied()).collect::<Vec<_>>().join(" ")
    }
}

/// Builds or fetches all peers. Returns them, and which versions they are.
pub fn find() -> Result<(Vec<Peer>, String)> {
    let folder = build::project().join("target/peers");
    let versions = fetch(&folder)?;
    let sleep = &["--", "/usr/bin/sleep", "infinity"];
    let peer = |name, description, program, arguments: &'static [_]| Peer {
        name,
        description,
        program,
        arguments,
        is_init: true,
        results: Results::default(),
    };
    let unpacked = |path: &str| folder.join(path);
    let peers = vec![
        peer("pause", "this program", build::build(Flavor::Freestanding)?, &[]),
        peer(
            "upstream",
            "upstream's pause.c, static, with glibc as Kubernetes ships it",
            unpacked("upstream"),
            &[],
        ),
        Peer {
            is_init: false,
            ..peer(
                "do nothing",
                "nine bytes of assembly that only call `pause`. It is no lower bound: it is linked \
                 to a fixed address and gives nothing back. It neither reaps nor exits",
                unpacked("do-nothing"),
                &[],
            )
        },
        peer(
            "upstream, musl",
            "upstream's pause.c, static, with musl",
            unpacked("upstream-musl"),
            &[],
        ),
        peer(
            "pause, hosted",
            "this program on Rust's std and signal-hook, as a baseline",
            build::build(Flavor::Hosted)?,
            &[],
        ),
        peer("catatonit -P", "Podman's pause process", unpacked("usr/bin/catatonit"), &["-P"]),
        peer(
            "tini (2 processes)",
            "runs a command, as images use it: two processes",
            unpacked("usr/bin/tini"),
            sleep,
        ),
        peer(
            "dumb-init (2 processes)",
            "runs a command, as images use it: two processes",
            unpacked("usr/bin/dumb-init"),
            sleep,
        ),
    ];
    Ok((peers, versions))
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
