//! `cargo xtask engines`: the image on real container engines.

use crate::image;
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use support::artifact::{self, Flavor};
use support::engine::Engine;

/// What the engines and their tests need, by its name in Debian and Ubuntu.
const PACKAGES: [&str; 8] = [
    "docker.io",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "iproute2",
    "busybox-static",
    "protobuf-compiler",
];

/// The command line of `cargo xtask engines`.
#[derive(clap::Args)]
pub struct Args {
    /// Install the engines and what their tests need first, with apt
    #[arg(long)]
    install: bool,
    /// Fail where one of these engines would be skipped
    #[arg(long, value_name = "ENGINE,...", value_delimiter = ',')]
    require: Vec<Engine>,
    /// Run only what has this in its name, such as docker::stop
    #[arg(default_value = "")]
    filter: String,
}

/// Builds the image and becomes the program that tries it.
///
/// # Errors
///
/// When something cannot be installed or built. How the engines did is that program's to tell.
pub fn run(args: &Args) -> Result<()> {
    if args.install {
        install()?;
    }
    let (image, archive) = image::make(&image::Args::default())?;
    let binary = artifact::build(Flavor::Freestanding)?;

    // For the crates that speak CRI, whose own message is about their build scripts.
    let protoc = env::var_os("PROTOC").unwrap_or_else(|| "protoc".into());
    let remedy = "cargo xtask engines --install, or set PROTOC";
    Command::new(&protoc)
        .arg("--version")
        .output()
        .with_context(|| format!("the protobuf compiler {protoc:?} is needed: {remedy}"))?;

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(artifact::project());
    cargo.args(["run", "--package=engines", "--profile=engines", "--"]);
    cargo.arg("--image").arg(archive);
    cargo.args(["--reference", &image.reference.whole()]);
    cargo.arg("--binary").arg(binary);
    for engine in &args.require {
        cargo.args(["--require", &engine.to_string()]);
    }
    cargo.arg(&args.filter);
    // Not as a child: what stops this has to reach the one that can clean up.
    Err(cargo.exec()).context("cannot run cargo")
}

/// Installs what the engines need.
fn install() -> Result<()> {
    let packages = PACKAGES.join(" ");
    let install = ["install", "--yes", "--no-install-recommends"];
    for arguments in [&["update"][..], &[&install[..], &PACKAGES].concat()] {
        let mut apt = Command::new("apt-get");
        let status = apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
        match status {
            Ok(status) => ensure!(status.success(), "{apt:?}: {status} (it has to be root's)"),
            Err(error) => bail!(
                "cannot run apt-get: {error}; --install is for Debian and Ubuntu, elsewhere \
                 install what is there {packages}"
            ),
        }
    }
    Ok(())
}
