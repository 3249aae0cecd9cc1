//! `cargo xtask engines`: the image on real container engines.

use crate::image::{Recipe, Selection};
use crate::{apt, image};
use anyhow::{Context, Result};
use harness::build::{self, Flavor};
use harness::target::TARGETS;
use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What the engines and their tests need, by its name in Debian and Ubuntu.
const PACKAGES: [&str; 17] = [
    "docker.io",
    "containerd",
    "podman",
    "uidmap",
    "slirp4netns",
    "buildah",
    "runc",
    "crun",
    "skopeo",
    "umoci",
    "containernetworking-plugins",
    "iptables",
    "iproute2",
    "busybox-static",
    "nginx-light",
    "util-linux",
    "protobuf-compiler",
];

/// The command line of `cargo xtask engines`.
#[derive(clap::Args)]
pub struct Args {
    /// Install the engines and what their tests need first, with apt; packages may start services
    #[arg(long)]
    install: bool,
    /// Fail where one of these engines would be skipped
    #[arg(long, value_name = "ENGINE,...", value_delimiter = ',')]
    require: Vec<String>,
    /// Write the matrix into README.md
    #[arg(long, conflicts_with = "filter")]
    report: bool,
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
        apt::install(&PACKAGES)?;
    }
    let foreign = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    let foreign = variant("foreign", foreign)?;
    let all = variant("all", "all")?;
    let (image, archive) = image::make(&image::Args::default())?;
    let binary = build::build(Flavor::Freestanding)?;

    // For the crates that speak CRI, whose own message is about their build scripts.
    let protoc = env::var_os("PROTOC").unwrap_or_else(|| "protoc".into());
    let remedy = "cargo xtask engines --install, or set PROTOC";
    Command::new(&protoc)
        .arg("--version")
        .output()
        .with_context(|| format!("the protobuf compiler {protoc:?} is needed: {remedy}"))?;

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(build::project());
    cargo.args(["run", "--package=engines", "--profile=engines", "--"]);
    cargo.arg("--image").arg(archive);
    cargo.args(["--reference", &image.reference]);
    cargo.arg("--binary").arg(binary);
    for (option, archive) in [("--foreign", foreign), ("--all", all)] {
        cargo.args(archive.iter().flat_map(|archive| [option.as_ref(), archive.as_os_str()]));
    }
    if args.report {
        cargo.arg("--report").arg(build::project().join("README.md"));
    }
    for engine in &args.require {
        cargo.args(["--require", &engine.to_string()]);
    }
    cargo.arg(&args.filter);
    // Not as a child: what stops this has to reach the one that can clean up.
    Err(cargo.exec()).context("cannot run cargo")
}

/// Makes the image `name` for other platforms than this machine's, and returns where it is. None if
/// there is no `core` to build it with.
fn variant(name: &str, platforms: &str) -> Result<Option<PathBuf>> {
    let output = build::project().join(format!("target/image/{name}.tar"));
    let is_meant = |name: &str| platforms == "all" || name.starts_with(platforms);
    let mut targets = TARGETS.iter().filter(|target| is_meant(target.platform));
    if !targets.all(|target| target.is_native() || build::find_core(target.triple).is_ok()) {
        return Ok(None);
    }
    let recipe = Recipe {
        tag: Some(format!("localhost/pause:{name}")),
        selection: Selection { platform: vec![platforms.to_owned()] },
        ..Recipe::default()
    };
    image::make(&image::Args { recipe, output: Some(output.clone()) })?;
    Ok(Some(output))
}
