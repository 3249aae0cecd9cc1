//! The image, read back without the code that wrote it. skopeo checks the digests.

use anyhow::Context;
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{self, build_xtask};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Trials, no_skip, obstacle};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;
use tempfile::{NamedTempFile, TempDir};

type Test = (&'static str, fn());

const TESTS: &[Test] = tests![
    image_is_complete_and_holds_nothing_else,
    default_tag_and_timestamp,
    push_command_is_printed_for_a_registry,
    binaries_are_those_of_the_image,
    copied_checkout_uses_its_own_sources,
    bad_input_writes_nothing,
    sizes_are_compared_with_their_budgets,
    verify_detects_changes,
];

const NEED_CORES: &[Test] = tests![index_lists_the_platforms];
const NEED_A_USER_NAMESPACE: &[Test] =
    tests![another_user_folder_and_environment_give_the_same_bytes];
const NEED_SKOPEO: &[Test] = tests![skopeo_reads_the_image];
const NEED_GIT: &[Test] = tests![revision_is_the_commit];

/// The same rights, another number. It takes no root.
const OTHER_USER: [&str; 4] = ["unshare", "--user", "--map-user=4711", "--map-group=4711"];

fn main() -> ExitCode {
    let no_cores =
        (PLATFORMS.len() < 2).then(|| "there is no core for another platform".to_owned());
    let mut unshare = Command::new(OTHER_USER[0]);
    let no_user = obstacle(build::stdout_of(unshare.args(&OTHER_USER[1..]).arg("true")));
    let no_git = obstacle(which::which("git").context("git is not installed"));
    let no_skopeo = obstacle(which::which("skopeo").context("skopeo is not installed"))
        .or((!geteuid().is_root()).then(|| "skopeo gives root what it unpacks".to_owned()));
    let mut trials = Trials::new();
    for (tests, obstacle) in [
        (TESTS, None),
        (NEED_CORES, no_cores),
        (NEED_A_USER_NAMESPACE, no_user),
        (NEED_GIT, no_git),
        (NEED_SKOPEO, no_skopeo),
    ] {
        for (name, run) in tests {
            trials.add(*name, obstacle.clone(), || {
                run();
                Ok(())
            });
        }
    }
    trials.run()
}

const TAG: &str = "registry.example:5000/infra/pause:1.2-test";

/// The image as most tests look at it.
static IMAGE: LazyLock<Image> =
    LazyLock::new(|| Image::written_by(xtask().args(["image", "--tag", TAG])));

/// This machine's target.
static NATIVE: LazyLock<&Target> =
    LazyLock::new(|| TARGETS.iter().find(|target| target.is_native()).expect("a known machine"));

/// The platforms that this machine has `core` for. In CI these have to be all.
static PLATFORMS: LazyLock<Vec<&Target>> = LazyLock::new(|| {
    let has_core = |it: &&Target| it.is_native() || build::find_core(it.triple).is_ok();
    TARGETS.iter().filter(|target| no_skip() || has_core(target)).collect()
});

/// The release binary.
static BINARY: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(NATIVE.build().unwrap()).unwrap());

fn image_is_complete_and_holds_nothing_else() {
    check(&IMAGE, &[&NATIVE], TAG, "1970-01-01T00:00:00Z");
}

/// Checks what an image for `targets` is used by: names, platforms, settings, the binaries, and nothing
/// else.
fn check(image: &Image, targets: &[&Target], reference: &str, created: &str) {
    let outer = &image.json("index.json")["manifests"][0];
    assert_eq!(outer["annotations"]["io.containerd.image.name"], reference);
    for word in [reference, outer["digest"].as_str().unwrap(), &digest(&image.bytes)] {
        assert!(image.report.contains(word), "{word} is not in: {}", image.report);
    }
    // The layout's two files and Docker's; three blobs for each platform, and an index of several.
    let has_index = targets.len() > 1;
    assert_eq!(image.files.len(), 3 + 3 * targets.len() + usize::from(has_index));
    let manifests = match has_index {
        true => image.json(&blob_path(outer))["manifests"].clone(),
        false => json!([outer]),
    };
    let manifests = manifests.as_array().unwrap();
    assert_eq!(manifests.len(), targets.len());

    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest = image.json(&blob_path(descriptor));
        let mut layer = tar::Archive::new(GzDecoder::new(image.layer(&manifest)));
        let mut files = layer.entries().unwrap().map(Result::unwrap);
        let mut file = files.next().unwrap();
        let header = file.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!((header.mode().unwrap(), owner), (0o755, (0, 0)));
        assert_eq!(file.path_bytes(), &b"pause"[..]);
        let mut binary = Vec::new();
        file.read_to_end(&mut binary).unwrap();
        assert!(binary == fs::read(target.build().unwrap()).unwrap(), "not the release binary");
        assert!(files.next().is_none(), "something follows the binary");

        let annotations = &manifest["annotations"];
        for (key, value) in [
            ("title", env!("CARGO_PKG_NAME")),
            ("description", env!("CARGO_PKG_DESCRIPTION")),
            ("version", env!("CARGO_PKG_VERSION")),
            ("licenses", env!("CARGO_PKG_LICENSE")),
        ] {
            assert_eq!(annotations[format!("org.opencontainers.image.{key}")], value);
        }
        let config = image.json(&blob_path(&manifest["config"]));
        let settings = json!({
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations,
        });
        assert_eq!((&config["config"], &config["created"]), (&settings, &json!(created)));
        for (key, word) in
            ["os", "architecture", "variant"].into_iter().zip(target.platform.split('/'))
        {
            assert_eq!((&descriptor["platform"][key], &config[key]), (&json!(word), &json!(word)));
        }
    }
}

fn default_tag_and_timestamp() {
    let mut command = xtask();
    command.env("SOURCE_DATE_EPOCH", "1700000000").arg("image");
    let default = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    check(&Image::written_by(&mut command), &[&NATIVE], default, "2023-11-14T22:13:20Z");
}

fn index_lists_the_platforms() {
    // In another order, one twice and one without its variant: all the same.
    let mut platforms: Vec<_> = PLATFORMS.iter().map(|target| target.platform).rev().collect();
    platforms.push(PLATFORMS[0].platform);
    let platforms = platforms.join(",").replace("/v8", "");
    let mut command = xtask();
    command.args(["image", "--tag", TAG, "--platform", &platforms]);
    let image = Image::written_by(&mut command);
    check(&image, &PLATFORMS, TAG, "1970-01-01T00:00:00Z");
}

fn push_command_is_printed_for_a_registry() {
    let push = format!("docker://{TAG}\n");
    for part in ["skopeo copy --all --preserve-digests", &push, "other architectures"] {
        assert!(IMAGE.report.contains(part), "{part} is not in: {}", IMAGE.report);
    }
    let local = Image::written_by(xtask().arg("image")).report;
    assert!(!local.contains("skopeo"), "{local}");
}

/// skopeo finds the image in both layouts of the archive, and checks every digest.
fn skopeo_reads_the_image() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("pause.tar");
    fs::write(&archive, &IMAGE.bytes).unwrap();
    let archive = archive.display();
    let sources = [format!("oci-archive:{archive}"), format!("docker-archive:{archive}:{TAG}")];
    for (source, name) in sources.into_iter().zip(["oci", "docker"]) {
        let copy = folder.path().join(name);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet"]).arg(source);
        succeed(skopeo.arg(format!("dir:{}", copy.display())));
        let manifest = fs::read(copy.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["config"]["digest"], IMAGE.manifest()["config"]["digest"]);
    }
}

fn binaries_are_those_of_the_image() {
    let folder = TempDir::new().unwrap();
    let directory = folder.path().join("new/binaries");
    let command = || {
        let mut command = xtask();
        command.args(["image", "--binaries"]).arg(&directory);
        command
    };
    Image::written_by(&mut command());
    let platform = NATIVE.platform.trim_end_matches("/v8").replace('/', "-");
    let name = format!("pause-{platform}");
    assert!(fs::read(directory.join(&name)).unwrap() == *BINARY);
    let sums = fs::read_to_string(directory.join("SHA256SUMS")).unwrap();
    assert_eq!(sums, format!("{}  {name}\n", &digest(&BINARY)[7..]));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
    // What is there is neither replaced nor added to.
    fs::remove_file(directory.join("SHA256SUMS")).unwrap();
    let output = folder.path().join("pause.tar");
    let message = fail(command().arg("--output").arg(output));
    assert!(message.contains("cannot write the binaries"), "{message}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}

/// A copy that was made together with target/ runs the same programs as the original.
fn copied_checkout_uses_its_own_sources() {
    let mut copy = Copy::new();
    let image = |project: &Path| {
        let mut command = xtask();
        command.arg("image").current_dir(project.join("src"));
        for name in ["PAUSE_PROJECT", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        succeed(&mut command);
        fs::read(project.join("target/image/pause.tar")).unwrap()
    };
    let original = image(&copy.project);
    let second = copy.folder.path().join("copy");
    succeed(Command::new("cp").arg("-a").arg(&copy.project).arg(&second));
    fs::remove_dir_all(&copy.project).unwrap();
    copy.project = second;
    assert!(image(&copy.project) == original, "another image");
    copy.change("not PID 1", "not pid 1");
    assert!(image(&copy.project) != original, "the image of the original");
}

fn another_user_folder_and_environment_give_the_same_bytes() {
    let copy = Copy::new();
    let image = Image::written_by(copy.xtask(&OTHER_USER).args(["image", "--tag", TAG]));
    assert!(image.bytes == IMAGE.bytes, "another image");
}

fn revision_is_the_commit() {
    let copy = Copy::new();
    let check = |revision: Option<&str>| {
        let image = Image::written_by(copy.xtask(&["env"]).arg("image").env_remove("GIT_DIR"));
        assert!(image.report.contains(revision.unwrap_or("unknown")), "{}", image.report);
        let annotation = &image.manifest()["annotations"]["org.opencontainers.image.revision"];
        assert_eq!(annotation.as_str(), revision);
    };
    check(None);
    let script = "git init --quiet && git add . && \
                  git -c user.name=test -c user.email=test@example.org \
                  commit --quiet --message=test && git rev-parse HEAD";
    let mut git = Command::new("sh");
    git.current_dir(&copy.project).args(["-ec", script]).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let head = succeed(&mut git);
    check(Some(head.trim()));
    fs::write(copy.project.join("rustfmt.toml"), "# changed").unwrap();
    check(Some(&format!("{}-dirty", head.trim())));
    // Git's own way to test what it does with the repository of another user.
    let mut command = copy.xtask(&["env"]);
    command.env_remove("GIT_DIR").env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    writes_nothing(command.arg("image"), "safe.directory");
}

fn bad_input_writes_nothing() {
    for (option, values, complaint) in [
        ("--tag", &["", "a b", "pause", "infra/pause:2", "registry:5000/pause"][..], "--tag"),
        ("--tag", &["localhost/pause:", "localhost/Pause:1", "localhost/pause:1 "], "--tag"),
        ("--platform", &["", "linux", "linux/arm/v6", "windows/amd64", "all,"], "linux/arm/v7"),
    ] {
        for value in values {
            writes_nothing(xtask().arg("image").arg(format!("{option}={value}")), complaint);
        }
    }
    for time in ["", "now", "-1", "8589934592"] {
        writes_nothing(xtask().arg("image").env("SOURCE_DATE_EPOCH", time), "SOURCE_DATE_EPOCH");
    }
    let foreign = TARGETS.iter().find(|target| !target.is_native()).unwrap();
    let mut command = xtask();
    // In place of a compiler that knows the target and has no core for it.
    command.env("RUSTC", "true").env_remove("PAUSE_FOREIGN_RUSTC");
    command.args(["image", "--platform", foreign.platform]);
    writes_nothing(&mut command, &format!("rustup target add {}", foreign.triple));
}

/// Runs a command that has to fail, with a message that has `complaint` in it, before it writes to
/// --output.
fn writes_nothing(command: &mut Command, complaint: &str) {
    let folder = TempDir::new().unwrap();
    let message = fail(command.arg("--output").arg(folder.path().join("new/pause.tar")));
    assert!(message.contains(complaint), "{complaint:?} is not in: {message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

fn sizes_are_compared_with_their_budgets() {
    let platform = NATIVE.platform;
    let table = succeed(xtask().arg("size")).replace(',', "");
    let layer = IMAGE.layer(&IMAGE.manifest()).len();
    for bytes in [BINARY.len(), layer, IMAGE.bytes.len()] {
        assert!(table.contains(&format!(" {bytes} |")), "{bytes} is not in: {table}");
    }

    // Text that does not compress makes binary and layer larger than their budgets.
    let copy = Copy::new();
    let text: String = (0..60).map(|number| digest(&[number])[7..].to_owned()).collect();
    copy.change("Usage: ", &format!("{text} Usage: "));
    let message = fail(copy.xtask(&["env"]).arg("size"));
    for part in ["binary", "compressed layer"] {
        assert!(message.contains(&format!("{part} for {platform} (")), "{message}");
    }
}

fn verify_detects_changes() {
    let verify = |archive: &[u8], run: fn(&mut Command) -> String, message: &str| {
        let file = NamedTempFile::new().unwrap();
        fs::write(&file, archive).unwrap();
        let output = run(xtask().arg("verify").arg(file.path()));
        assert!(output.contains(message), "{output}");
    };
    verify(&IMAGE.bytes, succeed, "byte for byte");
    for archive in [&[][..], &IMAGE.bytes[..1500], b"not an archive"] {
        verify(archive, fail, "is not an archive of an image");
    }
    let copy = Copy::new();
    copy.change("not PID 1", "not pid 1");
    let changed = Image::written_by(copy.xtask(&["env"]).args(["image", "--tag", TAG])).bytes;
    // A byte of the layer, whose name stays the same.
    let mut damaged = IMAGE.bytes.clone();
    let manifest = IMAGE.manifest();
    let layer = IMAGE.layer(&manifest);
    let at = damaged.windows(layer.len()).position(|it| it == layer).unwrap();
    damaged[at + layer.len() / 2] ^= 1;
    let longer = [&IMAGE.bytes[..], &[0]].concat();
    for archive in [changed, damaged, longer] {
        verify(&archive, fail, "is not what these sources make");
    }
}

/// An archive that was read back, and what the writer said about it.
struct Image {
    report: String,
    bytes: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Has a command write an image, and reads it.
    fn written_by(command: &mut Command) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pause.tar");
        let report = succeed(command.arg("--output").arg(&path));
        let bytes = fs::read(path).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            assert!(files.insert(path, bytes).is_none(), "a file is there twice");
        }
        Self { report, bytes, files }
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.files[path]).unwrap()
    }

    /// The manifest of an image for one platform.
    fn manifest(&self) -> Value {
        self.json(&blob_path(&self.json("index.json")["manifests"][0]))
    }

    /// The only layer of the image that has this manifest.
    fn layer(&self, manifest: &Value) -> &[u8] {
        let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("{manifest}") };
        &self.files[&blob_path(layer)]
    }
}

/// Where the OCI layout keeps what `descriptor` describes.
fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)))
}

/// `cargo xtask`, built once.
fn xtask() -> Command {
    static XTASK: LazyLock<PathBuf> = LazyLock::new(|| build_xtask().unwrap());
    let mut command = Command::new(&*XTASK);
    // The images of a copy have no commit either.
    command.env_remove("SOURCE_DATE_EPOCH").env("GIT_DIR", "/nonexistent");
    command
}

/// What a command writes to stdout. It must succeed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What a command writes to stderr. It must fail with an error of its own, and not crash.
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {}", output.status);
    String::from_utf8(output.stderr).unwrap()
}

/// A copy of the sources for one test, with a target folder of its own.
struct Copy {
    folder: TempDir,
    project: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let project = folder.path().join("a copy of the sources, with quite a long name");
        fs::create_dir(&project).unwrap();
        build::copy_sources(&project).unwrap();
        let config = folder.path().join(".cargo");
        fs::create_dir(&config).unwrap();
        fs::write(config.join("config.toml"), HOSTILE_CONFIGURATION).unwrap();
        Self { folder, project }
    }

    /// Replaces text of the program, once.
    fn change(&self, old: &str, new: &str) {
        let path = self.project.join("src/main.rs");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{} has changed", path.display());
        fs::write(path, text.replacen(old, new, 1)).unwrap();
    }

    /// `cargo xtask` for the copy, started by another program, where all is different that should not
    /// matter.
    fn xtask(&self, starter: &[&str]) -> Command {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).args(["sh", "-c", "umask 077 && exec \"$0\" \"$@\""]);
        command.arg(xtask().get_program()).current_dir(&self.project);
        command.env("PAUSE_PROJECT", &self.project).env_remove("SOURCE_DATE_EPOCH");
        command.envs(HOSTILE_VARIABLES).env("CARGO_TARGET_DIR", self.folder.path().join("t"));
        // What it takes has been fetched to get here.
        command.env("CARGO_NET_OFFLINE", "true");
        command
    }
}

/// What a user may have set for his own programs.
const HOSTILE_VARIABLES: [(&str, &str); 12] = [
    ("GIT_DIR", "/nonexistent"),
    ("LC_ALL", "tr_TR.UTF-8"),
    ("TZ", "Asia/Kathmandu"),
    ("RUSTFLAGS", "-Copt-level=3"),
    ("CARGO_BUILD_RUSTFLAGS", "-Copt-level=3"),
    ("CARGO_BUILD_TARGET", "none"),
    ("CARGO_INCREMENTAL", "1"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_STRIP", "false"),
    ("RUSTC_BOOTSTRAP", "1"),
    ("RUSTC_WORKSPACE_WRAPPER", "false"),
    ("RUSTC_WRAPPER", "false"),
];

/// The same in a configuration of cargo, above the sources.
const HOSTILE_CONFIGURATION: &str = r#"
[build]
incremental = true
rustc-wrapper = "false"
rustc-workspace-wrapper = "false"
rustflags = ["-Copt-level=3"]
target = "none"
[profile.release]
codegen-units = 16
debug = true
debug-assertions = true
incremental = true
lto = false
opt-level = 3
overflow-checks = true
panic = "unwind"
strip = false
[profile.release.package.pause]
opt-level = 3
overflow-checks = true
[profile.release.package."*"]
opt-level = 3
"#;
