//! `cargo xtask engines`: the image on real container engines, in Debian systems of their own.

use crate::debian::Debian;
use crate::image::{self, Selection};
use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor, project};
use harness::markdown;
use harness::target::TARGETS;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Packages that the engines and their scenarios need, in each release.
const PACKAGES: &str = "apparmor buildah busybox-static containerd containernetworking-plugins crun dbus \
    docker-registry docker.io gcc iproute2 iptables libc6-dev linux-image-cloud-amd64 nginx openssl podman runc \
    skopeo slirp4netns systemd-sysv udev uidmap umoci";

/// Packages that Docker 26 and Podman 5 need, too.
const NEWER_PACKAGES: &str = "aardvark-dns docker-buildx docker-cli netavark nftables passt";

/// The command line of `cargo xtask engines`.
#[derive(clap::Args)]
pub struct Args {
    /// Release of Debian that the engines are from: 12 (bookworm), 13 (trixie) or testing (forky)
    #[arg(long, value_parser = ["bookworm", "trixie", "forky"], default_value = "bookworm")]
    release: String,
    /// Engines that must not be skipped
    #[arg(long, value_name = "ENGINE,...")]
    require: Option<String>,
    /// Use a virtual machine: control groups of version 2, the release's own kernel
    #[arg(long)]
    vm: bool,
    /// Write the matrix into docs/engines.md
    #[arg(long)]
    report: bool,
    /// Run only what has one of these in its name, such as docker::stop (default: all but kubernetes and kubelet)
    filter: Vec<String>,
}

/// Builds the image and tries it on the engines. Fails if a scenario does.
pub fn run(args: &Args) -> Result<()> {
    const REPORT: &str = "/report.md";
    // The command names its section, because a matrix has only what it tests.
    let vm = if args.vm { " --vm" } else { "" };
    let filter: String = args.filter.iter().map(|it| format!(" {it}")).collect();
    let section = format!("cargo xtask engines --release {}{vm} --report{filter}", args.release);
    let document = project().join("docs/engines.md");
    let is_there = fs::read_to_string(&document)?.contains(&format!("<!-- {section} -->"));
    ensure!(!args.report || is_there, "{} has no section <!-- {section} -->", document.display());
    let mut git = Command::new("git");
    git.args(["show", "--no-patch", "--format=Commit %h of %cs"]);
    let commit = args.report.then(|| build::stdout_of(&mut git)).transpose()?;

    let newer = if args.release == "bookworm" { "" } else { NEWER_PACKAGES };
    let packages: Vec<_> = PACKAGES.split(' ').chain(newer.split_whitespace()).collect();
    let mut debian = Debian::make(&args.release, &packages)?;
    debian.show(&kubernetes(args)?, "/opt/kubernetes");
    let mut command = add_program(&mut debian)?;
    let is_emulated = args.vm && !debian.has_kvm()?;
    command.extend(is_emulated.then(|| "--slowness=10".to_owned()));
    command.extend(args.require.iter().map(|engines| format!("--require={engines}")));
    command.extend(args.report.then(|| format!("--report={REPORT}")));
    command.extend(args.filter.clone());
    let passed = match args.vm {
        false => debian.run(&command)?,
        true => debian.run_in_vm(&command, is_emulated, REPORT)?,
    };
    if let Some(commit) = commit {
        let matrix = fs::read_to_string(debian.changed(REPORT)).context("there is no report")?;
        markdown::update_section(&document, &section, &format!("{}. {matrix}", commit.trim()))?;
    }
    debian.wipe()?;
    ensure!(passed, "not every scenario passed");
    Ok(())
}

/// Copies the program with the scenarios, its inputs and the sources into the system, and returns its
/// command line. Shows Rust and cargo's registry, for building the Dockerfile without a registry.
fn add_program(debian: &mut Debian) -> Result<Vec<String>> {
    let (image, archive) = image::make(&image::Args::default())?;
    let mut inputs = vec![("image", archive), ("binary", build::build(Flavor::Freestanding)?)];
    inputs.extend(image_for_all_platforms()?.map(|archive| ("all", archive)));
    let [folder, sources] = ["/inputs", "/project"].map(|it| debian.changed(it));
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(&sources)?;
    build::copy_sources(&sources)?;
    let default = || env::home_dir().unwrap_or_default().join(".cargo");
    let cargo = env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from);
    debian.show(&cargo.join("registry"), "/registry");
    debian.show(&build::sysroot()?, "/rust");

    let copy = |file, name| build::stdout_of(Command::new("cp").args([file, folder.join(name)]));
    copy(build::build_program("engines")?, "engines")?;
    let command =
        ["env", "PAUSE_PROJECT=/project", "/inputs/engines", "--reference", &image.reference];
    let mut command = command.map(str::to_owned).to_vec();
    for (name, file) in inputs {
        copy(file, name)?;
        command.push(format!("--{name}=/inputs/{name}"));
    }
    Ok(command)
}

/// Builds the programs of Kubernetes if it is asked for, and crictl, which drives containerd, in any
/// case. Returns the folder with what could be built.
fn kubernetes(args: &Args) -> Result<PathBuf> {
    let mut names = args.filter.iter().chain(&args.require);
    let is_asked_for = names.any(|it| it.contains("kube"));
    let mut build = Command::new(project().join("tests/engines/kubernetes/build.sh"));
    let status = build.args((!is_asked_for).then_some("crictl")).status();
    ensure!(status?.success() || !is_asked_for, "Kubernetes cannot be built");
    let folder = project().join("target/kubernetes/bin");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Makes the image for all platforms, and returns where it is. None if there is no `core` to build
/// it with.
fn image_for_all_platforms() -> Result<Option<PathBuf>> {
    if TARGETS.iter().any(|it| !it.is_native() && build::find_core(it.triple).is_err()) {
        return Ok(None);
    }
    let reference = concat!("registry.example/infra/pause:", env!("CARGO_PKG_VERSION"));
    let (_, archive) = image::make(&image::Args {
        reference: Some(reference.to_owned()),
        selection: Selection { platform: vec!["all".to_owned()] },
        output: Some(project().join("target/image/all.tar")),
        ..Default::default()
    })?;
    Ok(Some(archive))
}
