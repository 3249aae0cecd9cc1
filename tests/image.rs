//! The image, read back without the code that wrote it. skopeo checks the digests.

use anyhow::{Context, Result, ensure};
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{build_program, copy_sources, find_core};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Test, Trials, no_skip, obstacle};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;
use tempfile::TempDir;

const TESTS: &[Test] = tests![
    image_is_complete_and_holds_nothing_else,
    default_tag_and_timestamp,
    binaries_are_those_of_the_image,
    only_the_sources_decide_the_bytes,
    bad_input_writes_nothing,
    verify_detects_changes,
];

fn main() -> ExitCode {
    let cores = (PLATFORMS.len() > 1).then_some(()).context("no core for another platform");
    let git = which::which("git").context("git is not installed");
    let skopeo = which::which("skopeo").context("skopeo is not installed").and_then(|_| {
        ensure!(geteuid().is_root(), "skopeo gives root what it unpacks");
        Ok(())
    });
    let mut trials = Trials::new();
    trials.add_all(TESTS, None);
    trials.add_all(tests![index_lists_the_platforms], obstacle(cores));
    trials.add_all(tests![revision_is_the_commit], obstacle(git));
    trials.add_all(tests![skopeo_reads_the_image], obstacle(skopeo));
    trials.run()
}

const TAG: &str = "registry.example:5000/infra/pause:1.2-test";

/// The archive as most tests read it.
static ARCHIVE: LazyLock<Archive> =
    LazyLock::new(|| Archive::written_by(&mut xtask(&["image", "--tag", TAG])).unwrap());

/// This machine's target.
static NATIVE: LazyLock<&Target> =
    LazyLock::new(|| TARGETS.iter().find(|target| target.is_native()).expect("a known machine"));

/// The platforms that this machine has `core` for. In CI these have to be all.
static PLATFORMS: LazyLock<Vec<&Target>> = LazyLock::new(|| {
    let has_core = |it: &&Target| it.is_native() || find_core(it.triple).is_ok();
    TARGETS.iter().filter(|target| no_skip() || has_core(target)).collect()
});

fn image_is_complete_and_holds_nothing_else() -> Result<()> {
    let push = format!("docker://{TAG}\n");
    for part in [digest(&ARCHIVE.bytes), "skopeo copy --all --preserve-digests".to_owned(), push] {
        ensure!(ARCHIVE.report.contains(&part), "{part} is not in: {}", ARCHIVE.report);
    }
    check(&ARCHIVE, &[&NATIVE], TAG, "1970-01-01T00:00:00Z")
}

fn default_tag_and_timestamp() -> Result<()> {
    let mut command = xtask(&["image"]);
    let archive = Archive::written_by(command.env("SOURCE_DATE_EPOCH", "1700000000"))?;
    ensure!(!archive.report.contains("skopeo"), "{}", archive.report);
    let tag = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    check(&archive, &[&NATIVE], tag, "2023-11-14T22:13:20Z")
}

fn index_lists_the_platforms() -> Result<()> {
    // Neither the order nor a repetition nor a variant that is left out makes a difference.
    let mut platforms: Vec<_> = PLATFORMS.iter().map(|target| target.platform).rev().collect();
    platforms.push(PLATFORMS[0].platform);
    let platforms = platforms.join(",").replace("/v8", "");
    let mut command = xtask(&["image", "--tag", TAG, "--platform", &platforms]);
    check(&Archive::written_by(&mut command)?, &PLATFORMS, TAG, "1970-01-01T00:00:00Z")
}

/// Checks the names, the platforms, the settings and the binaries, and that there is nothing else.
fn check(archive: &Archive, targets: &[&Target], tag: &str, created: &str) -> Result<()> {
    let read = |descriptor: &Value| -> Result<Value> {
        Ok(serde_json::from_slice(&archive.blob(descriptor)?)?)
    };
    let image = &archive.json("index.json")?["manifests"][0];
    assert_eq!(image["annotations"]["io.containerd.image.name"], tag);
    for word in [tag, image["digest"].as_str().context("no digest")?] {
        ensure!(archive.report.contains(word), "{word} is not in: {}", archive.report);
    }
    // The layout's two files and Docker's; three blobs for each platform, and an index of several.
    let has_index = targets.len() > 1;
    assert_eq!(count(archive.files.path())?, 4);
    let blobs = count(&archive.files.path().join("blobs/sha256"))?;
    assert_eq!(blobs, 3 * targets.len() + usize::from(has_index));
    let manifests = match has_index {
        true => read(image)?["manifests"].clone(),
        false => json!([image]),
    };
    let manifests = manifests.as_array().context("no list")?;
    assert_eq!(manifests.len(), targets.len());

    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest = read(descriptor)?;
        assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
        let layer = archive.blob(&manifest["layers"][0])?;
        let mut layer = tar::Archive::new(GzDecoder::new(&layer[..]));
        let mut files = layer.entries()?;
        let mut file = files.next().context("the layer is empty")??;
        let header = file.header();
        assert_eq!((header.mode()?, header.uid()?, header.gid()?), (0o755, 0, 0));
        assert_eq!(file.path_bytes(), &b"pause"[..]);
        let mut binary = Vec::new();
        file.read_to_end(&mut binary)?;
        ensure!(binary == fs::read(target.build()?)?, "not the release binary");
        ensure!(files.next().is_none(), "something follows the binary");

        let annotations = json!({
            "org.opencontainers.image.title": env!("CARGO_PKG_NAME"),
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        });
        assert_eq!(manifest["annotations"], annotations);
        let config = read(&manifest["config"])?;
        let settings = json!({
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations,
        });
        assert_eq!((&config["config"], &config["created"]), (&settings, &json!(created)));
        for platform in [&descriptor["platform"], &config] {
            let words = ["os", "architecture", "variant"].map(|key| platform[key].as_str());
            let words: Vec<_> = words.into_iter().flatten().collect();
            assert_eq!(words.join("/"), target.platform);
        }
    }
    Ok(())
}

/// skopeo finds the image in both layouts of the archive, and checks every digest.
fn skopeo_reads_the_image() -> Result<()> {
    let directory = TempDir::new()?;
    let archive = directory.path().join("pause.tar");
    fs::write(&archive, &ARCHIVE.bytes)?;
    let archive = archive.display();
    for source in [format!("oci-archive:{archive}"), format!("docker-archive:{archive}:{TAG}")] {
        let copy = TempDir::new()?;
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet"]).arg(source);
        succeed(skopeo.arg(format!("dir:{}", copy.path().display())))?;
        let manifest = fs::read(copy.path().join("manifest.json"))?;
        let manifest: Value = serde_json::from_slice(&manifest)?;
        assert_eq!(manifest["config"]["digest"], ARCHIVE.manifest()?["config"]["digest"]);
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
    let message = fail(&mut command)?;
    ensure!(message.contains("cannot write the binaries"), "{message}");
    assert_eq!(count(&directory)?, 1);
    Ok(())
}

fn only_the_sources_decide_the_bytes() -> Result<()> {
    let mut copy = Copy::new()?;
    let image = |copy: &Copy| Archive::written_by(&mut copy.xtask(&["image", "--tag", TAG]));
    ensure!(image(&copy)?.bytes == ARCHIVE.bytes, "another image");

    // A copy that is made together with target/ has the programs of the original, but its own sources.
    let moved = copy.directory.path().join("copy");
    fs::rename(&copy.project, &moved)?;
    copy.project = moved;
    let path = copy.project.join("src/main.rs");
    // Text that does not compress makes binary and layer larger than their budgets.
    let text: String = (0..60).map(|number| digest(&[number])[7..].to_owned()).collect();
    let source = fs::read_to_string(&path)?;
    fs::write(path, source.replacen("Usage: ", &format!("{text} Usage: "), 1))?;
    ensure!(image(&copy)?.bytes != ARCHIVE.bytes, "the image of the original");
    let message = fail(&mut copy.xtask(&["size"]))?;
    for part in ["binary", "compressed layer"] {
        ensure!(message.contains(&format!("{part} for {} (", NATIVE.platform)), "{message}");
    }
    Ok(())
}

fn revision_is_the_commit() -> Result<()> {
    let copy = Copy::new()?;
    let script = "git init --quiet && git add . && \
                  git -c user.name=test -c user.email=test@example.org \
                  commit --quiet --message=test && git rev-parse HEAD";
    let mut git = Command::new("sh");
    git.current_dir(&copy.project).args(["-ec", script]).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let head = succeed(&mut git)?.trim().to_owned();
    let check = |revision: &str| -> Result<()> {
        let archive = Archive::written_by(copy.xtask(&["image"]).env_remove("GIT_DIR"))?;
        let annotation = &archive.manifest()?["annotations"]["org.opencontainers.image.revision"];
        assert_eq!(annotation, revision);
        Ok(())
    };
    check(&head)?;
    fs::write(copy.project.join("rustfmt.toml"), "# changed")?;
    check(&format!("{head}-dirty"))?;
    // Git's own way to test what it does with the repository of another user.
    let mut command = copy.xtask(&["image"]);
    command.env_remove("GIT_DIR").env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1");
    writes_nothing(command.env("GIT_CONFIG_GLOBAL", "/dev/null"), "safe.directory")
}

fn bad_input_writes_nothing() -> Result<()> {
    for (option, values, complaint) in [
        (
            "--tag",
            &["", "pause", "infra/pause:2", "registry:5000/pause", "a.b/Pause:1"][..],
            "--tag",
        ),
        ("--platform", &["", "linux", "linux/arm/v6", "all,"], "linux/arm/v7"),
    ] {
        for value in values {
            writes_nothing(&mut xtask(&["image", &format!("{option}={value}")]), complaint)?;
        }
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
    let message = fail(command.arg("--output").arg(directory.path().join("new/pause.tar")))?;
    ensure!(message.contains(complaint), "{complaint:?} is not in: {message}");
    assert_eq!(count(directory.path())?, 0);
    Ok(())
}

fn verify_detects_changes() -> Result<()> {
    // A byte of the layer, which is the last file, before the 1,024 bytes that end an archive.
    let mut damaged = ARCHIVE.bytes.clone();
    damaged[ARCHIVE.bytes.len() - 1500] ^= 1;
    let file = tempfile::NamedTempFile::new()?;
    for (archive, result) in [
        (&ARCHIVE.bytes[..], None),
        (&damaged, Some("is not what these sources make")),
        (&[&ARCHIVE.bytes[..], &[0]].concat(), Some("is not what these sources make")),
        (&ARCHIVE.bytes[..1500], Some("is not an archive of an image")),
    ] {
        fs::write(&file, archive)?;
        let mut command = xtask(&["verify"]);
        command.arg(file.path());
        match result {
            None => ensure!(succeed(&mut command)?.contains("byte for byte"), "it compares"),
            Some(complaint) => {
                let message = fail(&mut command)?;
                ensure!(message.contains(complaint), "{complaint:?} is not in: {message}");
            }
        }
    }
    Ok(())
}

/// An archive that was read back, and what the command that wrote it printed.
struct Archive {
    report: String,
    bytes: Vec<u8>,
    files: TempDir,
}

impl Archive {
    /// Has a command write an image, and unpacks it.
    fn written_by(command: &mut Command) -> Result<Self> {
        let files = TempDir::new()?;
        let path = files.path().join("pause.tar");
        let report = succeed(command.arg(format!("--output={}", path.display())))?;
        let bytes = fs::read(&path)?;
        fs::remove_file(path)?;
        tar::Archive::new(&bytes[..]).unpack(&files)?;
        Ok(Self { report, bytes, files })
    }

    fn json(&self, path: &str) -> Result<Value> {
        let file = fs::read(self.files.path().join(path)).context(path.to_owned())?;
        Ok(serde_json::from_slice(&file)?)
    }

    /// The file that `descriptor` describes.
    fn blob(&self, descriptor: &Value) -> Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        Ok(fs::read(self.files.path().join("blobs").join(digest.replace(':', "/")))?)
    }

    /// The manifest of an image for one platform.
    fn manifest(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.blob(&self.json("index.json")?["manifests"][0])?)?)
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
    command.args(arguments).env_remove("SOURCE_DATE_EPOCH").env("GIT_DIR", "/nonexistent");
    command
}

/// Returns what a command writes to stdout. It must succeed.
fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns what a command writes to stderr. It must fail with an error of its own, and not crash.
fn fail(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stderr)?)
}

/// A copy of the sources for one test, with a target directory of its own.
struct Copy {
    directory: TempDir,
    project: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let directory = TempDir::new()?;
        let project = directory.path().join("a copy of the sources, with quite a long name");
        fs::create_dir(&project)?;
        copy_sources(&project)?;
        fs::create_dir(directory.path().join(".cargo"))?;
        fs::write(directory.path().join(".cargo/config.toml"), HOSTILE_CONFIGURATION)?;
        Ok(Self { directory, project })
    }

    /// `cargo xtask` for the copy, where everything is different that should not matter.
    fn xtask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{HOSTILE_ENVIRONMENT}\nexec \"$0\" \"$@\""));
        command.arg(xtask(&[]).get_program()).args(arguments);
        command.current_dir(self.project.join("src")).env("GIT_DIR", "/nonexistent");
        // What it needs has been fetched already.
        command.env("CARGO_NET_OFFLINE", "true");
        for name in ["PAUSE_PROJECT", "CARGO_TARGET_DIR", "SOURCE_DATE_EPOCH"] {
            command.env_remove(name);
        }
        command
    }
}

/// What a user may have set for his own programs, in a configuration of cargo above the sources.
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

/// The same in the environment.
const HOSTILE_ENVIRONMENT: &str = "umask 077
    export LC_ALL=tr_TR.UTF-8 TZ=Asia/Kathmandu RUSTC_WRAPPER=false RUSTC_WORKSPACE_WRAPPER=false
    export RUSTFLAGS=-Copt-level=3 CARGO_BUILD_RUSTFLAGS=-Copt-level=3 CARGO_BUILD_TARGET=none
    export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=3";
