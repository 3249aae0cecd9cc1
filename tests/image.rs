//! The image, read back by oci-spec and skopeo: without the code that wrote it.

use anyhow::{Context, Result, bail, ensure};
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{build_program, copy_sources, find_core};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::unistd::geteuid;
use oci_spec::image::{
    ANNOTATION_REVISION, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType,
    OciLayout,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;
use tempfile::{NamedTempFile, TempDir};

fn main() -> ExitCode {
    let cores = TARGETS.iter().try_for_each(|target| find_core(target.triple).map(drop));
    let git = which::which("git").context("git is not installed");
    let skopeo = which::which("skopeo").context("skopeo is not installed").and_then(|_| {
        ensure!(geteuid().is_root(), "skopeo gives root what it unpacks");
        Ok(())
    });
    let mut trials = Trials::new();
    let tests: &[Test] = tests![
        image_is_complete_and_holds_nothing_else,
        default_tag_and_timestamp,
        binaries_are_those_of_the_image,
        only_the_sources_decide_the_bytes,
        bad_input_writes_nothing,
        verify_detects_changes,
    ];
    trials.add_all(tests, None);
    trials.add_all(tests![index_lists_the_platforms], obstacle(cores));
    trials.add_all(tests![revision_is_the_commit], obstacle(git));
    trials.add_all(tests![skopeo_reads_the_image], obstacle(skopeo));
    trials.run()
}

const REFERENCE: &str = "registry.example:5000/infra/pause:1.2-test";

/// The archive as most tests read it.
static ARCHIVE: LazyLock<Archive> =
    LazyLock::new(|| Archive::written_by(&mut xtask(&["image", "--tag", REFERENCE])).unwrap());

/// The time of the images, unless a test says otherwise, in both forms.
const EPOCH: &str = "1700000000";
const CREATED: &str = "2023-11-14T22:13:20Z";

/// This machine's target.
static NATIVE: LazyLock<&Target> =
    LazyLock::new(|| TARGETS.iter().find(|target| target.is_native()).expect("a known machine"));

fn image_is_complete_and_holds_nothing_else() -> Result<()> {
    let report = &ARCHIVE.report;
    ensure!(report.contains(&digest(&ARCHIVE.bytes)), "no checksum of the archive in: {report}");
    let push = "\n    skopeo copy --all --preserve-digests 'oci-archive:/";
    ensure!(report.contains(push), "{push} is not in: {report}");
    ensure!(
        report.ends_with(&format!("/pause.tar' docker://{REFERENCE}\n")),
        "no registry in: {report}"
    );
    check(&ARCHIVE, &[*NATIVE], REFERENCE, CREATED)
}

fn default_tag_and_timestamp() -> Result<()> {
    let archive = Archive::written_by(xtask(&["image"]).env_remove("SOURCE_DATE_EPOCH"))?;
    ensure!(!archive.report.contains("skopeo"), "{}", archive.report);
    let reference = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    check(&archive, &[*NATIVE], reference, "1970-01-01T00:00:00Z")
}

fn index_lists_the_platforms() -> Result<()> {
    let all = Archive::written_by(&mut xtask(&["image", "--tag", REFERENCE, "--platform", "all"]))?;
    let targets: Vec<_> = TARGETS.iter().collect();
    check(&all, &targets, REFERENCE, CREATED)?;
    // Neither the order nor a repetition nor a variant that is left out makes a difference.
    let mut platforms: Vec<_> = targets.iter().rev().map(|target| target.platform).collect();
    platforms.push(platforms[0]);
    let platforms = platforms.join(",").replace("/v8", "");
    let mut command = xtask(&["image", "--tag", REFERENCE, "--platform", &platforms]);
    ensure!(Archive::written_by(&mut command)?.bytes == all.bytes, "another image");
    Ok(())
}

/// Checks the names, the platforms, the settings and the binaries, and that there is nothing else.
fn check(archive: &Archive, targets: &[&Target], reference: &str, created: &str) -> Result<()> {
    let image = archive.image()?;
    let names = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
    });
    assert_eq!(json!(image.annotations()), names);
    for word in [reference, image.digest().as_ref()] {
        ensure!(archive.report.contains(word), "{word} is not in: {}", archive.report);
    }
    let layout = OciLayout::from_reader(&archive.files["oci-layout"][..])?;
    assert_eq!(layout.image_layout_version(), "1.0.0");
    let warns = archive.report.contains("fail to start");
    assert_eq!(warns, targets.len() == 1 && !reference.starts_with("localhost/"));
    // The layout's two files and Docker's; three blobs for each platform, and an index of several.
    assert_eq!(archive.files.len(), 3 + 3 * targets.len() + usize::from(targets.len() > 1));
    let manifests = match targets {
        [_] => vec![image],
        _ => ImageIndex::from_reader(archive.blob(&image))?.manifests().clone(),
    };
    assert_eq!(manifests.len(), targets.len());
    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest = ImageManifest::from_reader(archive.blob(descriptor))?;
        let config = ImageConfiguration::from_reader(archive.blob(manifest.config()))?;
        let platform = descriptor.platform().as_ref().context("no platform")?;
        assert_eq!(
            (config.os(), config.architecture(), config.variant()),
            (platform.os(), platform.architecture(), platform.variant())
        );
        let mut name = format!("{}/{}", platform.os(), platform.architecture());
        name.extend(platform.variant().iter().map(|variant| format!("/{variant}")));
        assert_eq!(name, target.platform);
        let annotations = json!({
            "org.opencontainers.image.title": env!("CARGO_PKG_NAME"),
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        });
        assert_eq!(json!(manifest.annotations()), annotations);
        let settings = json!({
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations,
        });
        assert_eq!(json!(config.config()), settings);
        assert_eq!(config.created().as_deref(), Some(created));

        let [layer] = &manifest.layers()[..] else { bail!("not one layer") };
        assert_eq!(
            [descriptor, manifest.config(), layer].map(Descriptor::media_type),
            [&MediaType::ImageManifest, &MediaType::ImageConfig, &MediaType::ImageLayerGzip]
        );
        let mut tar = Vec::new();
        GzDecoder::new(archive.blob(layer)).read_to_end(&mut tar)?;
        assert_eq!(config.rootfs().diff_ids(), &[digest(&tar)]);
        let mut tar = tar::Archive::new(&tar[..]);
        let mut files = tar.entries()?;
        let mut file = files.next().context("the layer is empty")??;
        let mut binary = Vec::new();
        file.read_to_end(&mut binary)?;
        ensure!(binary == fs::read(target.build()?)?, "not the release binary");
        assert_eq!(file.path_bytes(), &b"pause"[..]);
        let header = file.header();
        assert_eq!((header.mode()?, header.uid()?, header.gid()?), (0o755, 0, 0));
        ensure!(files.next().is_none(), "something follows the binary");
    }
    Ok(())
}

/// skopeo finds the image in both layouts of the archive, and checks every digest.
fn skopeo_reads_the_image() -> Result<()> {
    let archive = NamedTempFile::new()?;
    fs::write(&archive, &ARCHIVE.bytes)?;
    let archive = archive.path().display();
    let manifest = ImageManifest::from_reader(ARCHIVE.blob(&ARCHIVE.image()?))?;
    for source in
        [format!("oci-archive:{archive}"), format!("docker-archive:{archive}:{REFERENCE}")]
    {
        let copy = TempDir::new()?;
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet"]).arg(source);
        succeed(skopeo.arg(format!("dir:{}", copy.path().display())))?;
        let copied = ImageManifest::from_file(copy.path().join("manifest.json"))?;
        assert_eq!(copied.config().digest(), manifest.config().digest());
    }
    Ok(())
}

fn binaries_are_those_of_the_image() -> Result<()> {
    let temporary = TempDir::new()?;
    let directory = temporary.path().join("new/binaries");
    let mut command = xtask(&["image", "--binaries"]);
    Archive::written_by(command.arg(&directory))?;
    let platform = NATIVE.platform.trim_end_matches("/v8").replace('/', "-");
    let name = format!("pause-{platform}");
    let binary = fs::read(NATIVE.build()?)?;
    ensure!(fs::read(directory.join(&name))? == binary, "not the release binary");
    let sums = fs::read_to_string(directory.join("SHA256SUMS"))?;
    assert_eq!(sums, format!("{}  {name}\n", &digest(&binary)[7..]));
    // What is there is neither replaced nor added to.
    fs::remove_file(directory.join("SHA256SUMS"))?;
    fails(&mut command, "cannot write the binaries")?;
    assert_eq!(count(&directory)?, 1);
    Ok(())
}

fn only_the_sources_decide_the_bytes() -> Result<()> {
    let copy = copy()?;
    let image =
        |copy: &Path| Archive::written_by(&mut xtask_in(copy, &["image", "--tag", REFERENCE]));
    ensure!(image(copy.path())?.bytes == ARCHIVE.bytes, "another image");

    // A copy that is made together with target/ has the programs of the original, but its own sources.
    let directory = TempDir::new()?;
    let moved = directory.path().join("copy");
    fs::rename(copy.path(), &moved)?;
    // Text that does not compress makes binary and layer larger than their budgets.
    let path = moved.join("src/main.rs");
    let text: String = (0..60).map(|number| digest(&[number])[7..].to_owned()).collect();
    let source = fs::read_to_string(&path)?;
    fs::write(path, source.replacen("Usage: ", &format!("{text} Usage: "), 1))?;
    ensure!(image(&moved)?.bytes != ARCHIVE.bytes, "the image of the original");
    for part in ["binary", "compressed layer"] {
        let complaint = format!("{part} for {} (", NATIVE.platform);
        fails(&mut xtask_in(&moved, &["size"]), &complaint)?;
    }
    Ok(())
}

fn revision_is_the_commit() -> Result<()> {
    let copy = copy()?;
    let script = "git init --quiet && git add . && \
                  git -c user.name=test -c user.email=test@example.org \
                  commit --quiet --message=test && git rev-parse HEAD";
    let mut git = Command::new("sh");
    git.current_dir(copy.path()).args(["-ec", script]).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let head = succeed(&mut git)?.trim().to_owned();
    let check = |revision: &str| -> Result<()> {
        let archive = Archive::written_by(xtask_in(copy.path(), &["image"]).env_remove("GIT_DIR"))?;
        let manifest = ImageManifest::from_reader(archive.blob(&archive.image()?))?;
        let annotations = manifest.annotations().as_ref().context("no annotations")?;
        assert_eq!(annotations[ANNOTATION_REVISION], revision);
        Ok(())
    };
    check(&head)?;
    fs::write(copy.path().join("rustfmt.toml"), "# changed")?;
    check(&format!("{head}-dirty"))?;
    // Git's own way to test what it does with the repository of another user.
    let mut command = xtask_in(copy.path(), &["image"]);
    command.env_remove("GIT_DIR").env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1");
    writes_nothing(command.env("GIT_CONFIG_GLOBAL", "/dev/null"), "safe.directory")
}

fn bad_input_writes_nothing() -> Result<()> {
    for reference in ["", "pause", "infra/pause:2", "registry:5000/pause", "a.b/Pause:1"] {
        writes_nothing(
            &mut xtask(&["image", "--tag", reference]),
            "registry.example/repository:tag",
        )?;
    }
    for platform in ["", "linux", "linux/arm/v6", "all,"] {
        writes_nothing(&mut xtask(&["image", "--platform", platform]), "linux/arm/v7")?;
    }
    for time in ["", "now", "8589934592"] {
        writes_nothing(xtask(&["image"]).env("SOURCE_DATE_EPOCH", time), "SOURCE_DATE_EPOCH")?;
    }
    let foreign = TARGETS.iter().find(|target| !target.is_native()).context("one target")?;
    let mut command = xtask(&["image", "--platform", foreign.platform]);
    // In place of a compiler that knows the target and has no core for it.
    command.env("RUSTC", "true").env_remove("PAUSE_FOREIGN_RUSTC");
    writes_nothing(&mut command, &format!("rustup target add {}", foreign.triple))
}

/// Runs a command that has to fail with a message that has `complaint` in it, before it writes to
/// --output.
fn writes_nothing(command: &mut Command, complaint: &str) -> Result<()> {
    let directory = TempDir::new()?;
    fails(command.arg("--output").arg(directory.path().join("new/pause.tar")), complaint)?;
    assert_eq!(count(directory.path())?, 0);
    Ok(())
}

fn verify_detects_changes() -> Result<()> {
    let file = NamedTempFile::new()?;
    let mut command = xtask(&["verify"]);
    // The archive says what time it has.
    command.arg(file.path()).env_remove("SOURCE_DATE_EPOCH");
    fs::write(&file, &ARCHIVE.bytes)?;
    ensure!(succeed(&mut command)?.contains("byte for byte"), "it does not compare");
    // A byte of the layer, which is the last file, before the 1,024 bytes that end an archive.
    let mut damaged = ARCHIVE.bytes.clone();
    damaged[ARCHIVE.bytes.len() - 1500] ^= 1;
    for (archive, complaint) in [
        (&damaged[..], "is not what these sources make"),
        (&[&ARCHIVE.bytes[..], &[0]].concat(), "is not what these sources make"),
        (&ARCHIVE.bytes[..1500], "is not an archive of an image"),
    ] {
        fs::write(&file, archive)?;
        fails(&mut command, complaint)?;
    }
    Ok(())
}

/// An archive that was read back, and what the command that wrote it printed.
struct Archive {
    report: String,
    bytes: Vec<u8>,
    /// Its files by their paths.
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    /// Has a command write an image, and reads it.
    fn written_by(command: &mut Command) -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().join("pause.tar");
        let report = succeed(command.arg("--output").arg(&path))?;
        let bytes = fs::read(path)?;
        let mut files = BTreeMap::new();
        for file in tar::Archive::new(&bytes[..]).entries()? {
            let mut file = file?;
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            files.insert(file.path()?.display().to_string(), content);
        }
        Ok(Self { report, bytes, files })
    }

    /// The blob that `descriptor` describes.
    fn blob(&self, descriptor: &Descriptor) -> &[u8] {
        &self.files[&format!("blobs/sha256/{}", descriptor.digest().digest())]
    }

    /// The descriptor of the one image: of its manifest, or of an index of several.
    fn image(&self) -> Result<Descriptor> {
        let index = ImageIndex::from_reader(&self.files["index.json"][..])?;
        let [image] = &index.manifests()[..] else { bail!("not one image") };
        Ok(image.clone())
    }
}

fn count(directory: &Path) -> Result<usize> {
    Ok(fs::read_dir(directory)?.count())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)))
}

/// `cargo xtask`, built once.
fn xtask(arguments: &[&str]) -> Command {
    static XTASK: LazyLock<PathBuf> = LazyLock::new(|| build_program("xtask").unwrap());
    let mut command = Command::new(&*XTASK);
    // The images of a copy have no commit either.
    command.args(arguments).env("SOURCE_DATE_EPOCH", EPOCH).env("GIT_DIR", "/nonexistent");
    command
}

/// Returns what a command writes to stdout. It must succeed.
fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command that has to fail with an error that has `complaint` in it, and not crash.
fn fails(command: &mut Command, complaint: &str) -> Result<()> {
    let output = command.output()?;
    ensure!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {}", output.status);
    let message = String::from_utf8(output.stderr)?;
    ensure!(message.contains(complaint), "{complaint:?} is not in: {message}");
    Ok(())
}

/// A copy of the sources for one test, with a target directory of its own.
fn copy() -> Result<TempDir> {
    let copy = TempDir::with_prefix("a copy of the sources, with quite a long name ")?;
    copy_sources(copy.path())?;
    fs::write(copy.path().join(".cargo/config.toml"), HOSTILE_CONFIGURATION)?;
    Ok(copy)
}

/// `cargo xtask` for the copy, where everything is different that should not matter.
fn xtask_in(copy: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{HOSTILE_ENVIRONMENT}\nexec \"$0\" \"$@\""));
    command.arg(xtask(&[]).get_program()).args(arguments).current_dir(copy.join("src"));
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("GIT_DIR", "/nonexistent");
    command
}

/// What a user may have set for his own programs, in a configuration of cargo.
const HOSTILE_CONFIGURATION: &str = r#"
build = { incremental = true, rustc-wrapper = "false", rustflags = ["-Copt-level=3"], target = "none" }
[profile.release]
codegen-units = 16
debug = true
debug-assertions = true
lto = false
opt-level = 3
overflow-checks = true
panic = "unwind"
strip = false
"#;

/// The same in the environment. What is needed has been fetched already.
const HOSTILE_ENVIRONMENT: &str = "umask 077
    unset PAUSE_PROJECT CARGO_TARGET_DIR
    export CARGO_NET_OFFLINE=true LC_ALL=tr_TR.UTF-8 TZ=Asia/Kathmandu
    export RUSTC_WRAPPER=false RUSTC_WORKSPACE_WRAPPER=false CARGO_BUILD_TARGET=none
    export RUSTFLAGS=-Copt-level=3 CARGO_BUILD_RUSTFLAGS=-Copt-level=3
    export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=3";
