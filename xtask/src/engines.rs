//! `cargo xtask engines`: the image on real container engines, in Debian systems of their own.

use crate::debian::{Debian, Release};
use crate::image::{self, Recipe, Selection};
use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor, project};
use harness::markdown;
use harness::target::TARGETS;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Packages that the engines and their scenarios need, in each release.
const PACKAGES: &str = "apparmor buildah busybox-static containerd containernetworking-plugins crun dbus \
    docker-registry docker.io gcc iproute2 iptables libc6-dev linux-image-cloud-amd64 nginx openssl podman runc \
    skopeo slirp4netns systemd-sysv udev uidmap umoci";

/// Packages that Docker 26 and Podman 5 need besides.
const NEWER_PACKAGES: &str = "aardvark-dns docker-buildx docker-cli netavark nftables passt";

/// The command line of `cargo xtask engines`.
#[derive(clap::Args)]
pub struct Args {
    /// Release of Debian that the engines are from
    #[arg(long, value_enum, default_value = "bookworm")]
    release: Release,
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
    let document = project().join("docs/engines.md");
    let section = section(args);
    let is_there = fs::read_to_string(&document)?.contains(&format!("<!-- {section} -->"));
    ensure!(!args.report || is_there, "{} has no section <!-- {section} -->", document.display());
    let mut debian = system(args.release)?;
    debian.show.push(kubernetes(args)?);
    let mut command = program(&mut debian)?;
    let is_emulated = args.vm && !debian.has_kvm()?;
    let mut add = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
    if let Some(names) = &args.require {
        add(&["--require", names]);
    }
    if args.report {
        add(&["--report", REPORT]);
    }
    if is_emulated {
        add(&["--slowness", "10"]);
    }
    command.extend(args.filter.clone());
    let status = match args.vm {
        false => debian.run(&command)?.code(),
        true => Some(debian.run_in_vm(&command, !is_emulated, &[REPORT])?),
    };
    if args.report {
        let matrix = fs::read_to_string(debian.changed(REPORT)).context("there is no report")?;
        let mut commit = Command::new("git");
        commit.args(["show", "--no-patch", "--format=Commit %h of %cs"]);
        let commit = build::stdout_of(&mut commit)?;
        let content = format!("{}. {matrix}", commit.trim());
        markdown::update_section(&document, &section, &content)?;
    }
    debian.wipe()?;
    ensure!(status == Some(0), "not every scenario passed");
    Ok(())
}

/// The command that makes the matrix, which names its section of docs/engines.md. Kubernetes has its own
/// section, because no other engine may have run in the same system before.
fn section(args: &Args) -> String {
    let vm = if args.vm { " --vm" } else { "" };
    let filter: String = args.filter.iter().map(|it| format!(" {it}")).collect();
    format!("cargo xtask engines --release {}{vm} --report{filter}", args.release.name())
}

/// Makes the system of a release, with all engines.
pub fn system(release: Release) -> Result<Debian> {
    let more = if release == Release::Bookworm { "" } else { NEWER_PACKAGES };
    let packages: Vec<_> = PACKAGES.split(' ').chain(more.split_whitespace()).collect();
    Debian::make(release.name(), release, &packages)
}

/// Adds the program with the scenarios and what it needs to the system, and returns its command line.
pub fn program(debian: &mut Debian) -> Result<Vec<String>> {
    let program = build::build_program("engines")?;

    let (image, archive) = image::make(&image::Args::default())?;
    let files = [
        ("--image", Some(archive)),
        ("--binary", Some(build::build(Flavor::Freestanding)?)),
        ("--all", image_for_all_platforms()?),
    ];
    debian.add(&program, "/inputs/engines")?;
    let mut command =
        ["env", "PAUSE_PROJECT=/project", "/inputs/engines"].map(str::to_owned).to_vec();
    command.extend(["--reference".to_owned(), image.reference]);
    for (option, file) in files {
        let Some(file) = file else { continue };
        let place = format!("/inputs/{}", option.trim_start_matches('-'));
        debian.add(&file, &place)?;
        command.extend([option.to_owned(), place]);
    }

    // For building the Dockerfile without a registry.
    let sources = debian.changed("/project");
    fs::create_dir_all(&sources)?;
    build::copy_sources(&sources)?;
    debian.show_rust()?;
    Ok(command)
}

/// Builds the programs of Kubernetes if it is asked for, and crictl, which drives containerd, in any
/// case. Returns the folder with what could be built, and where the system is to see it.
fn kubernetes(args: &Args) -> Result<(PathBuf, &'static str)> {
    let mut names = args.filter.iter().chain(&args.require);
    let is_asked_for = names.any(|it| it.contains("kube"));
    let mut build = Command::new(project().join("tests/engines/kubernetes/build.sh"));
    let status = build.args((!is_asked_for).then_some("crictl")).status();
    ensure!(status?.success() || !is_asked_for, "Kubernetes cannot be built");
    let folder = project().join("target/kubernetes/bin");
    fs::create_dir_all(&folder)?;
    Ok((folder, "/opt/kubernetes"))
}

/// Makes the image for all platforms, and returns where it is. None if there is no `core` to build
/// it with.
fn image_for_all_platforms() -> Result<Option<PathBuf>> {
    let output = project().join("target/image/all.tar");
    let has_core = |triple| build::find_core(triple).is_ok();
    if !TARGETS.iter().all(|target| target.is_native() || has_core(target.triple)) {
        return Ok(None);
    }
    let recipe = Recipe {
        tag: Some(concat!("registry.example/infra/pause:", env!("CARGO_PKG_VERSION")).to_owned()),
        selection: Selection { platform: vec!["all".to_owned()] },
        ..Recipe::default()
    };
    image::make(&image::Args { recipe, output: Some(output.clone()), ..Default::default() })?;
    Ok(Some(output))
}
