//! The image, read back without the code that wrote it.

use anyhow::Context;
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{self, build_xtask};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Trials, no_skip, obstacle};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
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
    failed_write_leaves_nothing,
    missing_core_writes_nothing,
    sizes_are_compared_with_their_budgets,
    verify_detects_changes,
    bill_of_materials_is_the_same_each_time,
];

const NEED_CORES: &[Test] = tests![index_lists_the_platforms, foreign_platform_alone];
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
    let no_skopeo = obstacle(which::which("skopeo").context("skopeo is not installed"));
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

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const TAG: &str = "registry.example:5000/infra/pause:1.2-test";
/// The time of everything in an image, in its two notations.
const EPOCH: (u64, &str) = (0, "1970-01-01T00:00:00Z");

const FIXED: [&str; 2] = ["--tag", TAG];

/// The image as most tests look at it.
static IMAGE: LazyLock<Image> =
    LazyLock::new(|| Image::written_by(xtask().arg("image").args(FIXED)));

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
    check(&IMAGE, &[&NATIVE], TAG, EPOCH);
}

/// Checks what an image for `targets` is used by: names, platforms, settings, the binaries, and nothing
/// else.
fn check(image: &Image, targets: &[&Target], reference: &str, (mtime, created): (u64, &str)) {
    assert_eq!(image.attributes, [(0o644, 0, 0, mtime)].into());
    // The layout's two files and Docker's; three blobs for each platform, and an index of several.
    let has_index = targets.len() > 1;
    assert_eq!(image.files.len(), 3 + 3 * targets.len() + usize::from(has_index));
    let outer = &image.json("index.json")["manifests"][0];
    assert_eq!(outer["annotations"]["io.containerd.image.name"], reference);
    for word in [reference, outer["digest"].as_str().unwrap(), &digest(&image.bytes)] {
        assert!(image.report.contains(word), "{word} is not in: {}", image.report);
    }
    let manifests = match has_index {
        true => image.blob_json(outer, INDEX)["manifests"].clone(),
        false => json!([outer]),
    };
    let manifests = manifests.as_array().unwrap();
    assert_eq!(manifests.len(), targets.len());

    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest = image.blob_json(descriptor, MANIFEST);
        assert_eq!(manifest["annotations"], json!(annotations()));
        let layer = layer(image.blob(&manifest["layers"][0], LAYER));
        let (files, attributes) = untar(&layer);
        assert_eq!(attributes, [(0o755, 0, 0, mtime)].into());
        let binary = fs::read(target.build().unwrap()).unwrap();
        assert!(files == [("pause".into(), binary)].into(), "not the release binary alone");

        let config = image.blob_json(&manifest["config"], CONFIG);
        let settings = json!({
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations(),
        });
        assert_eq!(config["config"], settings);
        assert_eq!(
            (&config["created"], &config["rootfs"]["diff_ids"]),
            (&json!(created), &json!([digest(&layer)]))
        );
        for (key, word) in
            ["os", "architecture", "variant"].into_iter().zip(target.platform.split('/'))
        {
            assert_eq!((&descriptor["platform"][key], &config[key]), (&json!(word), &json!(word)));
        }
    }
}

/// What Cargo.toml has for an image to say about itself.
fn annotations() -> BTreeMap<String, &'static str> {
    [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ]
    .into_iter()
    // Cargo makes an empty string of what is not set.
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
    .collect()
}

fn default_tag_and_timestamp() {
    let mut command = xtask();
    command.env("SOURCE_DATE_EPOCH", "1700000000").arg("image");
    let default = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    let times = (1_700_000_000, "2023-11-14T22:13:20Z");
    check(&Image::written_by(&mut command), &[&NATIVE], default, times);
}

fn index_lists_the_platforms() {
    // In another order, one twice and one without its variant: all the same.
    let mut platforms: Vec<_> = PLATFORMS.iter().map(|target| target.platform).rev().collect();
    platforms.push(PLATFORMS[0].platform);
    let platforms = platforms.join(",").replace("/v8", "");
    let mut command = xtask();
    command.arg("image").args(FIXED).args(["--platform", &platforms]);
    check(&Image::written_by(&mut command), &PLATFORMS, TAG, EPOCH);
}

fn foreign_platform_alone() {
    let foreign = PLATFORMS.iter().find(|target| !target.is_native()).unwrap();
    let mut command = xtask();
    command.arg("image").args(FIXED).args(["--platform", foreign.platform]);
    check(&Image::written_by(&mut command), &[foreign], TAG, EPOCH);
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
        let manifest: Value =
            serde_json::from_slice(&fs::read(copy.join("manifest.json")).unwrap()).unwrap();
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
    assert_eq!(fs::read_dir(directory.parent().unwrap()).unwrap().count(), 1);
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
    copy.change("src/main.rs", "not PID 1", "not pid 1");
    assert!(image(&copy.project) != original, "the image of the original");
}

fn another_user_folder_and_environment_give_the_same_bytes() {
    let copy = Copy::new();
    let image = Image::written_by(copy.xtask(&OTHER_USER).arg("image").args(FIXED));
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
    // The commit of a repository that has the sources only somewhere inside is not theirs.
    commit(copy.folder.path(), &copy.project.join("Cargo.toml"));
    check(None);
    let head = commit(&copy.project, &copy.project);
    check(Some(&head));
    fs::write(copy.project.join("Cargo.toml.orig"), "not tracked").unwrap();
    check(Some(&head));
    fs::write(copy.project.join("rustfmt.toml"), "# changed").unwrap();
    check(Some(&format!("{head}-dirty")));
    // Git's own way to test what it does with the repository of another user.
    let mut command = copy.xtask(&["env"]);
    command.env_remove("GIT_DIR").env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    writes_nothing(command.arg("image"), "safe.directory");
}

/// Makes a repository in `folder`, commits `path`, and returns the commit.
fn commit(folder: &Path, path: &Path) -> String {
    let script = "git init --quiet && git add \"$0\" && \
                  git -c user.name=test -c user.email=test@example.org \
                  commit --quiet --message=test && git rev-parse HEAD";
    let mut git = Command::new("sh");
    git.current_dir(folder).args(["-ec", script]).arg(path).env("GIT_CONFIG_GLOBAL", "/dev/null");
    succeed(&mut git).trim().to_owned()
}

fn bad_input_writes_nothing() {
    let digest = format!("localhost/pause@sha256:{}", "0".repeat(64));
    for (option, values, complaint) in [
        (
            "--tag",
            &["", "a b", "pause", "infra/pause:2", "registry:5000/pause", &digest][..],
            "--tag",
        ),
        ("--tag", &["localhost/pause:", "localhost//p:1", "localhost/Pause:1"], "--tag"),
        ("--tag", &["UPPER/pause:1", "localhost/pause:\u{e9}", "localhost/pause:1 "], "--tag"),
        ("--platform", &["", "linux", "linux/", "linux/arm6"], "linux/arm/v7"),
        ("--platform", &["linux/arm/v6", "windows/amd64", "all,"], "linux/arm/v7"),
    ] {
        for value in values {
            writes_nothing(xtask().arg("image").arg(format!("{option}={value}")), complaint);
        }
    }
    for time in ["", "now", "-1", "8589934592"] {
        writes_nothing(xtask().arg("image").env("SOURCE_DATE_EPOCH", time), "SOURCE_DATE_EPOCH");
    }
}

/// Runs a command that has to fail, with a message that has `complaint` in it, before it writes to
/// --output.
fn writes_nothing(command: &mut Command, complaint: &str) {
    let folder = TempDir::new().unwrap();
    let message = fail(command.arg("--output").arg(folder.path().join("new/pause.tar")));
    assert!(message.contains(complaint), "{complaint:?} is not in: {message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

fn failed_write_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("pause.tar");
    fs::create_dir(&output).unwrap();
    let message = fail(xtask().arg("image").arg("--output").arg(&output));
    assert!(message.contains(output.to_str().unwrap()), "{message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

fn missing_core_writes_nothing() {
    let foreign = TARGETS.iter().find(|target| !target.is_native()).unwrap();
    let mut command = xtask();
    // In place of a compiler that knows the target and has no core for it.
    command.env("RUSTC", "true").env_remove("PAUSE_FOREIGN_RUSTC");
    command.args(["image", "--platform", foreign.platform]);
    writes_nothing(&mut command, &format!("rustup target add {}", foreign.triple));
}

fn sizes_are_compared_with_their_budgets() {
    let platform = NATIVE.platform;
    let table = succeed(xtask().arg("size")).replace(',', "");
    let layer = IMAGE.blob(&IMAGE.manifest()["layers"][0], LAYER);
    for bytes in [BINARY.len(), layer.len(), IMAGE.bytes.len()] {
        assert!(table.contains(&format!(" {bytes} |")), "{bytes} is not in: {table}");
    }

    // Text that does not compress makes binary and layer larger than their budgets.
    let copy = Copy::new();
    let text: String = (0..60).map(|number| digest(&[number])[7..].to_owned()).collect();
    copy.change("src/cli.rs", "Usage: ", &format!("{text} Usage: "));
    let message = fail(copy.xtask(&["env"]).arg("size"));
    for part in ["binary", "compressed layer"] {
        assert!(message.contains(&format!("{part} for {platform} (")), "{message}");
    }
}

/// Runs `cargo xtask verify` on an archive.
fn verify(archive: &[u8], run: fn(&mut Command) -> String) -> String {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, archive).unwrap();
    run(xtask().arg("verify").arg(file.path()))
}

fn verify_detects_changes() {
    assert!(verify(&IMAGE.bytes, succeed).contains("byte for byte"));
    for archive in [&[][..], &IMAGE.bytes[..1500], b"not an archive"] {
        assert!(verify(archive, fail).contains("is not an archive of an image"));
    }

    let lacks = |archive: &[u8], parts: &[&str]| {
        let message = verify(archive, fail);
        for part in [MANIFEST, CONFIG, LAYER] {
            assert_eq!(message.contains(part), parts.contains(&part), "{part}: {message}");
        }
    };
    let copy = Copy::new();
    copy.change("src/main.rs", "not PID 1", "not pid 1");
    lacks(&copy.image(&FIXED).bytes, &[MANIFEST, CONFIG, LAYER]);
    // A byte of the layer, whose name stays the same.
    let mut archive = IMAGE.bytes.clone();
    let layer = IMAGE.blob(&IMAGE.manifest()["layers"][0], LAYER);
    let at = archive.windows(layer.len()).position(|it| it == layer).unwrap();
    archive[at + layer.len() / 2] ^= 1;
    lacks(&archive, &[LAYER]);
    lacks(&[&IMAGE.bytes[..], &[0]].concat(), &[]);
}

fn bill_of_materials_is_the_same_each_time() {
    let bill = succeed(xtask().arg("sbom"));
    assert!(bill == succeed(xtask().arg("sbom")));
    let bill: Value = serde_json::from_str(&bill).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let [libc] = &bill["components"].as_array().unwrap()[..] else { panic!("{bill}") };
    let purl = format!("pkg:cargo/libc@{}", libc["version"].as_str().unwrap());
    assert_eq!((&libc["name"], &libc["purl"]), (&json!("libc"), &json!(purl)));
    let lock = fs::read_to_string(build::project().join("Cargo.lock")).unwrap();
    let checksum = format!("\nchecksum = {}\n", libc["hashes"][0]["content"]);
    assert!(lock.contains(&checksum), "another checksum");
    let application = &bill["metadata"]["component"];
    let dependencies = json!([{ "ref": application["bom-ref"], "dependsOn": [libc["bom-ref"]] }]);
    assert_eq!(bill["dependencies"], dependencies);
    for component in [application, libc] {
        assert_eq!(component["licenses"], json!([{ "expression": "MIT OR Apache-2.0" }]));
    }
    let hash = &application["components"][0]["hashes"][0]["content"];
    assert_eq!(format!("sha256:{}", hash.as_str().unwrap()), digest(&BINARY));
}

/// An archive that was read back, and what the writer said about it.
struct Image {
    report: String,
    bytes: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
    attributes: BTreeSet<Attributes>,
}

/// Mode, user, group and time of a file.
type Attributes = (u32, u64, u64, u64);

impl Image {
    /// Has a command write an image, and reads it.
    fn written_by(command: &mut Command) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pause.tar");
        let report = succeed(command.arg("--output").arg(&path));
        let bytes = fs::read(path).unwrap();
        let (files, attributes) = untar(&bytes);
        Self { report, bytes, files, attributes }
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.files[path]).unwrap()
    }

    /// What a descriptor describes.
    fn blob(&self, descriptor: &Value, media_type: &str) -> &[u8] {
        let blob = &self.files[&blob_path(descriptor)];
        let (digest, size) = (digest(blob), blob.len());
        for (key, value) in
            [("mediaType", json!(media_type)), ("digest", json!(digest)), ("size", json!(size))]
        {
            assert_eq!(descriptor[key], value);
        }
        blob
    }

    fn blob_json(&self, descriptor: &Value, media_type: &str) -> Value {
        serde_json::from_slice(self.blob(descriptor, media_type)).unwrap()
    }

    fn manifest(&self) -> Value {
        self.json(&blob_path(&self.json("index.json")["manifests"][0]))
    }
}

/// The layer, uncompressed.
fn layer(compressed: &[u8]) -> Vec<u8> {
    let mut gzip = GzDecoder::new(compressed);
    let mut layer = Vec::new();
    gzip.read_to_end(&mut layer).unwrap();
    assert!(gzip.into_inner().is_empty(), "something follows the layer");
    layer
}

/// The files of an archive that holds nothing but files, and no file twice; and their attributes.
fn untar(bytes: &[u8]) -> (BTreeMap<String, Vec<u8>>, BTreeSet<Attributes>) {
    let (mut files, mut attributes) = (BTreeMap::new(), BTreeSet::new());
    let mut expected_size = 1024;
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert!(header.as_ustar().is_some(), "not ustar");
        assert!(header.entry_type().is_file(), "{:?}", header.entry_type());
        let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
        attributes.insert((header.mode().unwrap(), uid, gid, header.mtime().unwrap()));
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        expected_size += 512 + bytes.len().next_multiple_of(512);
        assert!(files.insert(path, bytes).is_none(), "a file is there twice");
    }
    assert_eq!(bytes.len(), expected_size, "something follows the last file");
    (files, attributes)
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

    /// Replaces text in a file, once.
    fn change(&self, file: &str, old: &str, new: &str) {
        let path = self.project.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{file} has changed");
        fs::write(path, text.replacen(old, new, 1)).unwrap();
    }

    /// `cargo xtask` for the copy, started by another program, where all is different that should not
    /// matter.
    fn xtask(&self, starter: &[&str]) -> Command {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).args(["sh", "-c", "umask 077 && exec \"$0\" \"$@\""]);
        command.arg(xtask().get_program()).current_dir(&self.project);
        command.env("PAUSE_PROJECT", &self.project).env_remove("SOURCE_DATE_EPOCH");
        command.env("LC_ALL", "tr_TR.UTF-8").env("TZ", "Asia/Kathmandu");
        command.env("GIT_DIR", "/nonexistent");
        for (name, value) in HOSTILE_VARIABLES {
            command.env(name, value);
        }
        command.env("CARGO_TARGET_DIR", self.folder.path().join("t"));
        // What it takes has been fetched to get here.
        command.env("CARGO_NET_OFFLINE", "true");
        command
    }

    /// Writes the image of the copy and reads it.
    fn image(&self, options: &[&str]) -> Image {
        Image::written_by(self.xtask(&["env"]).arg("image").args(options))
    }
}

/// What a user may have set for his own programs.
const HOSTILE_VARIABLES: [(&str, &str); 9] = [
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
codegen-units = 16
debug-assertions = true
opt-level = 3
overflow-checks = true
[profile.release.package."*"]
opt-level = 3
"#;
