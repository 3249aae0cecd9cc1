//! The image, read back by tar and skopeo: without the code that wrote it.

use anyhow::{Context, Result, ensure};
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{build_program, copy_sources, find_core, stdout_of};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Test, Trials, obstacle};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

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

/// The time of the images, unless a test says otherwise.
const CREATED: &str = "2023-11-14T22:13:20Z";

/// This machine's target.
static NATIVE: LazyLock<&Target> =
    LazyLock::new(|| TARGETS.iter().find(|target| target.is_native()).expect("a known machine"));

fn image_is_complete_and_holds_nothing_else() -> Result<()> {
    check(&ARCHIVE, &[*NATIVE], REFERENCE, CREATED)
}

fn index_lists_the_platforms() -> Result<()> {
    let all = Archive::written_by(&mut xtask(&["image", "--tag", REFERENCE, "--platform", "all"]))?;
    check(&all, &TARGETS.iter().collect::<Vec<_>>(), REFERENCE, CREATED)?;
    // Neither the order nor a repetition nor a variant that is left out makes a difference.
    let mut platforms: Vec<_> = TARGETS.iter().rev().map(|target| target.platform).collect();
    platforms.push(platforms[0]);
    let platforms = platforms.join(",").replace("/v8", "");
    let mut command = xtask(&["image", "--tag", REFERENCE, "--platform", &platforms]);
    ensure!(Archive::written_by(&mut command)?.bytes == all.bytes, "another image");
    Ok(())
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn index_of(manifests: Value) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// Checks every file of an archive, and what is printed.
fn check(archive: &Archive, targets: &[&Target], reference: &str, created: &str) -> Result<()> {
    let files = archive.unpack()?;
    assert_eq!(files.read("oci-layout")?, json!({ "imageLayoutVersion": "1.0.0" }));
    let mut index = files.read("index.json")?;
    let image = index["manifests"][0].clone();
    assert_eq!(index, index_of(json!([image])));
    let names = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
    });
    assert_eq!(image["annotations"], names);
    if targets.len() > 1 {
        index = files.read(&files.blob(&image, INDEX)?)?;
    }
    let manifests = index["manifests"].as_array().context("no manifests")?;
    assert_eq!(index, index_of(json!(manifests)));
    assert_eq!(manifests.len(), targets.len());
    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest = files.read(&files.blob(descriptor, MANIFEST)?)?;
        let config = files.read(&files.blob(&manifest["config"], CONFIG)?)?;
        let layer = files.path(&files.blob(&manifest["layers"][0], LAYER)?);
        let annotations = json!({
            "org.opencontainers.image.title": env!("CARGO_PKG_NAME"),
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        });
        let expected = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": manifest["config"],
            "layers": [manifest["layers"][0]],
            "annotations": annotations,
        });
        assert_eq!(manifest, expected);

        let mut tar = Vec::new();
        GzDecoder::new(fs::File::open(&layer)?).read_to_end(&mut tar)?;
        let platform = ["os", "architecture", "variant"].into_iter();
        let mut expected = json!(BTreeMap::from_iter(platform.zip(target.platform.split('/'))));
        assert_eq!(descriptor["platform"], expected);
        expected["created"] = json!(created);
        expected["config"] = json!({
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations,
        });
        expected["rootfs"] = json!({ "type": "layers", "diff_ids": [digest(&tar)] });
        expected["history"] = json!([{ "created": created, "created_by": "cargo xtask image" }]);
        assert_eq!(config, expected);

        let binary = fs::read(target.build()?)?;
        ensure!(tar[512..].starts_with(&binary), "another binary behind the header");
        let mut list = Command::new("tar");
        list.args(["--list", "--verbose", "--numeric-owner", "--full-time", "--utc", "--gzip"]);
        let list = stdout_of(list.arg("--file").arg(layer))?;
        let size = binary.len().to_string();
        let (date, time) = created.trim_end_matches('Z').split_once('T').context("no time")?;
        let pause = ["-rwxr-xr-x", "0/0", &size, date, time, "pause"];
        assert_eq!(Vec::from_iter(list.split_whitespace()), pause);

        if target.is_native() {
            let [config, layer] = [&manifest["config"], &manifest["layers"][0]].map(name);
            let docker = json!([{ "Config": config, "RepoTags": [reference], "Layers": [layer] }]);
            assert_eq!(files.read("manifest.json")?, docker);
        }
    }
    // The three at the top; three blobs for each platform, and an index of several.
    assert_eq!(files.count, 3 + 3 * targets.len() + usize::from(targets.len() > 1));

    let report = &archive.report;
    let digest_of_image = image["digest"].as_str().context("no digest")?;
    for text in [reference, digest_of_image, "unknown", &digest(&archive.bytes)] {
        ensure!(report.contains(&format!("  {text}\n")), "{text} is not in: {report}");
    }
    let is_local = reference.starts_with("localhost/");
    assert_eq!(report.contains("fail to start"), targets.len() == 1 && !is_local);
    let push = "\n    skopeo copy --all --preserve-digests 'oci-archive:pause.tar' docker://";
    assert_eq!(report.ends_with(&format!("{push}{reference}\n")), !is_local);
    assert_eq!(report.contains("skopeo"), !is_local);
    Ok(())
}

/// skopeo finds the same image in both layouts of the archive, and checks every digest.
fn skopeo_reads_the_image() -> Result<()> {
    let files = ARCHIVE.unpack()?;
    let image = files.read("index.json")?["manifests"][0].take();
    let config = files.read(&files.blob(&image, MANIFEST)?)?["config"]["digest"].take();
    let archive = files.path("pause.tar").display().to_string();
    for layout in
        [format!("oci-archive:{archive}"), format!("docker-archive:{archive}:{REFERENCE}")]
    {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet"]).arg(layout);
        stdout_of(skopeo.arg(format!("dir:{}", files.path("copy").display())))?;
        assert_eq!(files.read("copy/manifest.json")?["config"]["digest"], config);
    }
    Ok(())
}

fn default_tag_and_timestamp() -> Result<()> {
    let archive = Archive::written_by(xtask(&["image"]).env_remove("SOURCE_DATE_EPOCH"))?;
    let reference = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    check(&archive, &[*NATIVE], reference, "1970-01-01T00:00:00Z")
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
    stdout_of(Command::new(directory.join(&name)).arg("--version"))?;
    let sums = fs::read_to_string(directory.join("SHA256SUMS"))?;
    assert_eq!(sums, format!("{}  {name}\n", &digest(&binary)[7..]));
    // What is there is neither replaced nor added to.
    fs::remove_file(directory.join("SHA256SUMS"))?;
    fails(&mut command, "cannot write the binaries")?;
    assert_eq!(fs::read_dir(directory)?.count(), 1);
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
    let script = "cd \"$0\" && git init --quiet && git add . && \
                  git -c user.name=test -c user.email=test@example.org \
                  commit --quiet --message=test && git rev-parse HEAD";
    let mut git = Command::new("sh");
    git.args(["-c", script]).arg(copy.path()).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let head = stdout_of(&mut git)?.trim().to_owned();
    let image = || {
        let mut command = xtask_in(copy.path(), &["image"]);
        command.env_remove("GIT_DIR").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
    };
    let check = |revision: &str| -> Result<()> {
        let bytes = Archive::written_by(&mut image())?.bytes;
        let annotation = format!(r#""org.opencontainers.image.revision":"{revision}""#);
        // The manifest has it, and the labels in the configuration.
        assert_eq!(String::from_utf8_lossy(&bytes).matches(&annotation).count(), 2);
        Ok(())
    };
    check(&head)?;
    fs::write(copy.path().join("rustfmt.toml"), "# changed")?;
    check(&format!("{head}-dirty"))?;
    // Git's own way to test what it does with the repository of another user.
    let directory = TempDir::new()?;
    let mut command = image();
    command.arg("--output").arg(directory.path().join("pause.tar"));
    fails(command.env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1"), "safe.directory")?;
    assert_eq!(fs::read_dir(directory.path())?.count(), 0);
    Ok(())
}

fn bad_input_writes_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let output = directory.path().join("new/pause.tar");
    let image = |option: &str, value: &str| {
        let mut command = xtask(&["image", option, value, "--output"]);
        command.arg(&output);
        command
    };
    for reference in ["", "pause", "infra/pause:2", "registry:5000/pause", "a.b/Pause:1"] {
        fails(&mut image("--tag", reference), "registry.example/repository:tag")?;
    }
    for platform in ["", "linux", "linux/arm/v6", "all,"] {
        fails(&mut image("--platform", platform), "linux/arm/v7")?;
    }
    for time in ["", "now", "8589934592"] {
        let mut command = image("--tag", REFERENCE);
        fails(command.env("SOURCE_DATE_EPOCH", time), "SOURCE_DATE_EPOCH")?;
    }
    let foreign = TARGETS.iter().find(|target| !target.is_native()).context("one target")?;
    let mut command = image("--platform", foreign.platform);
    // In place of a compiler that knows the target and has no core for it.
    command.env("RUSTC", "true").env_remove("PAUSE_FOREIGN_RUSTC");
    fails(&mut command, &format!("rustup target add {}", foreign.triple))?;
    assert_eq!(fs::read_dir(directory.path())?.count(), 0);
    Ok(())
}

fn verify_detects_changes() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("pause.tar");
    let mut command = xtask(&["verify"]);
    // The archive says what time it has.
    command.arg(&path).env_remove("SOURCE_DATE_EPOCH");
    fs::write(&path, &ARCHIVE.bytes)?;
    ensure!(stdout_of(&mut command)?.contains("byte for byte"), "it does not compare");
    // A byte of the layer, which is the last file, before the 1,024 bytes that end an archive.
    let mut damaged = ARCHIVE.bytes.clone();
    damaged[ARCHIVE.bytes.len() - 1500] ^= 1;
    for (archive, complaint) in [
        (&damaged[..], "is not what these sources make"),
        (&[&ARCHIVE.bytes[..], &[0]].concat(), "is not what these sources make"),
        (&ARCHIVE.bytes[..1500], "is not an archive of an image"),
    ] {
        fs::write(&path, archive)?;
        fails(&mut command, complaint)?;
    }
    Ok(())
}

/// An archive that was read back.
struct Archive {
    bytes: Vec<u8>,
    /// What the command that wrote it printed, with only the name of its file.
    report: String,
}

impl Archive {
    /// Has a command write an image, and reads it.
    fn written_by(command: &mut Command) -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().join("pause.tar");
        let report = stdout_of(command.arg("--output").arg(&path))?;
        let report = report.replace(&format!("{}/", directory.path().display()), "");
        Ok(Self { bytes: fs::read(path)?, report })
    }

    fn unpack(&self) -> Result<Files> {
        let directory = TempDir::new()?;
        fs::write(directory.path().join("pause.tar"), &self.bytes)?;
        let mut tar = Command::new("tar");
        tar.arg("--directory").arg(directory.path()).args(["--extract", "--verbose", "--file"]);
        let list = stdout_of(tar.arg(directory.path().join("pause.tar")))?;
        Ok(Files { directory, count: list.lines().count() })
    }
}

/// The files of an archive, and the archive itself beside them.
struct Files {
    directory: TempDir,
    /// Number of files in the archive.
    count: usize,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.path(name))?)?)
    }

    /// The name of the file that a descriptor describes, as it has to.
    fn blob(&self, descriptor: &Value, media_type: &str) -> Result<String> {
        let name = name(descriptor);
        let bytes = fs::read(self.path(&name))?;
        let expected = [json!(media_type), json!(digest(&bytes)), json!(bytes.len())];
        assert_eq!(["mediaType", "digest", "size"].map(|key| descriptor[key].clone()), expected);
        Ok(name)
    }
}

/// The path in the archive of the file that a descriptor describes.
fn name(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)))
}

/// Runs a command that has to fail with an error that has `complaint` in it, and not crash.
fn fails(command: &mut Command, complaint: &str) -> Result<()> {
    let output = command.stderr(Stdio::piped()).output()?;
    ensure!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {}", output.status);
    let message = String::from_utf8(output.stderr)?;
    ensure!(message.contains(complaint), "{complaint:?} is not in: {message}");
    Ok(())
}

static XTASK: LazyLock<PathBuf> = LazyLock::new(|| build_program("xtask").unwrap());

/// `cargo xtask`. The images know no commit, because a copy of the sources has none either.
fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(&*XTASK);
    command.args(arguments).env("SOURCE_DATE_EPOCH", "1700000000").env("GIT_DIR", "/nonexistent");
    command
}

/// A copy of the sources for one test, with a target directory of its own.
fn copy() -> Result<TempDir> {
    let copy = TempDir::with_prefix("a copy of the sources, with quite a long name ")?;
    copy_sources(copy.path())?;
    fs::write(copy.path().join(".cargo/config.toml"), include_str!("image/hostile.toml"))?;
    Ok(copy)
}

/// `cargo xtask` for the copy, where everything is different that should not matter.
fn xtask_in(copy: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", include_str!("image/hostile.sh")]).arg(copy).arg(&*XTASK).args(arguments);
    command.env("SOURCE_DATE_EPOCH", "1700000000").env("GIT_DIR", "/nonexistent");
    command
}
