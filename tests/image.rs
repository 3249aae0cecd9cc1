//! The image, read back without the code that wrote it.

use anyhow::Context;
use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{self, build_xtask};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Trials, no_skip, obstacle};
use serde_json::{Map, Value, json};
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
    without_options_it_is_localhost_and_source_date_epoch,
    dockerfile_agrees,
    bad_input_writes_nothing,
    failed_write_leaves_nothing,
    missing_core_writes_nothing,
    sizes_are_compared_with_their_budgets,
    verify_compares_with_what_the_sources_make,
    bill_of_materials_is_the_same_each_time,
];

const NEED_CORES: &[Test] = tests![index_lists_the_platforms, foreign_platform_alone];
const NEED_A_USER_NAMESPACE: &[Test] =
    tests![another_user_folder_and_environment_give_the_same_bytes];
const NEED_GIT: &[Test] = tests![revision_is_the_commit];

/// The same rights, another number. It takes no root.
const OTHER_USER: [&str; 4] = ["unshare", "--user", "--map-user=4711", "--map-group=4711"];

fn main() -> ExitCode {
    let no_cores =
        (PLATFORMS.len() < 2).then(|| "there is no core for another platform".to_owned());
    let mut unshare = Command::new(OTHER_USER[0]);
    let no_user = obstacle(build::stdout_of(unshare.args(&OTHER_USER[1..]).arg("true")));
    let no_git = obstacle(which::which("git").context("git is not installed"));
    let mut trials = Trials::new();
    for (tests, obstacle) in [
        (TESTS, None),
        (NEED_CORES, no_cores),
        (NEED_A_USER_NAMESPACE, no_user),
        (NEED_GIT, no_git),
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
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// The time of everything in an image, in its two notations.
const EPOCH: (u64, &str) = (0, "1970-01-01T00:00:00Z");

/// The options that leave nothing of the image to chance.
const FIXED: [&str; 4] = ["--tag", TAG, "--revision", REVISION];

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

/// Compares everything in an archive with what an image for `targets` consists of.
fn check(image: &Image, targets: &[&Target], reference: &str, (mtime, created): (u64, &str)) {
    assert_eq!(image.attributes, [(0o644, 0, 0, mtime)].into());
    // The layout's two files and Docker's; three blobs for each platform, and an index of several.
    let has_index = targets.len() > 1;
    assert_eq!(image.files.len(), 3 + 3 * targets.len() + usize::from(has_index));

    assert_eq!(image.json("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }));
    let mut outer = image.json("index.json")["manifests"][0].clone();
    let index = |manifests: &[Value]| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    assert_eq!(image.json("index.json"), index(&[outer.clone()]));
    let names = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
    });
    assert_eq!(outer.as_object_mut().unwrap().remove("annotations"), Some(names));
    let digest_of_all = outer["digest"].as_str().unwrap();
    for word in [reference, digest_of_all, REVISION] {
        assert!(image.report.contains(word), "{word} is not in: {}", image.report);
    }
    let mut manifests = vec![outer.clone()];
    if has_index {
        let inner = image.blob_json(&outer, INDEX);
        manifests = inner["manifests"].as_array().unwrap().clone();
        assert_eq!(inner, index(&manifests));
    }
    assert_eq!(manifests.len(), targets.len());

    for (mut descriptor, target) in manifests.into_iter().zip(targets) {
        let words = ["os", "architecture", "variant"].into_iter().zip(target.platform.split('/'));
        let platform: Map<String, Value> =
            words.map(|(key, word)| (key.into(), word.into())).collect();
        let in_index = descriptor.as_object_mut().unwrap().remove("platform");
        assert_eq!(in_index, Some(Value::Object(platform.clone())));

        let manifest = image.blob_json(&descriptor, MANIFEST);
        let annotations = annotations();
        let expected = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": manifest["config"],
            "layers": [manifest["layers"][0]],
            "annotations": annotations,
        });
        assert_eq!(manifest, expected);

        let layer = layer(image.blob(&manifest["layers"][0], LAYER));
        let (files, attributes) = untar(&layer);
        assert_eq!(attributes, [(0o755, 0, 0, mtime)].into());
        let binary = fs::read(target.build().unwrap()).unwrap();
        assert!(files == [("pause".into(), binary)].into(), "not the release binary alone");

        let mut expected = json!({
            "created": created,
            "config": {
                "User": "65535:65535",
                "Entrypoint": ["/pause"],
                "WorkingDir": "/",
                "Labels": annotations,
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": created, "created_by": "cargo xtask image" }],
        });
        expected.as_object_mut().unwrap().extend(platform);
        assert_eq!(image.blob_json(&manifest["config"], CONFIG), expected);

        if target.is_native() || !has_index {
            let docker = json!([{
                "Config": blob_path(&manifest["config"]),
                "RepoTags": [reference],
                "Layers": [blob_path(&manifest["layers"][0])],
            }]);
            assert_eq!(image.json("manifest.json"), docker);
        }
    }
}

/// What Cargo.toml has for an image to say about itself, and the commit.
fn annotations() -> BTreeMap<String, &'static str> {
    [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("revision", REVISION),
    ]
    .into_iter()
    // Cargo makes an empty string of what is not set.
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
    .collect()
}

fn without_options_it_is_localhost_and_source_date_epoch() {
    let mut command = xtask();
    command.env("SOURCE_DATE_EPOCH", "1700000000").args(["image", "--revision", REVISION]);
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

fn dockerfile_agrees() {
    let read = |file: &str| fs::read_to_string(build::project().join(file)).unwrap();
    let dockerfile = read("Dockerfile");
    for (key, value) in annotations().into_iter().filter(|(_, value)| *value != REVISION) {
        let label = format!("{key}=\"{value}\"");
        assert!(dockerfile.contains(&label), "the Dockerfile lacks {label}");
    }
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    let base = format!("ARG RUST_IMAGE=rust:{channel}-slim");
    for line in [&*base, "USER 65535:65535", "ENTRYPOINT [\"/pause\"]"] {
        assert!(dockerfile.lines().any(|it| it == line), "the Dockerfile lacks {line}");
    }
}

fn another_user_folder_and_environment_give_the_same_bytes() {
    let copy = Copy::new();
    let image = Image::written_by(copy.xtask(&OTHER_USER).arg("image").args(FIXED));
    assert!(image.bytes == IMAGE.bytes, "another image");
}

fn revision_is_the_commit() {
    let copy = Copy::new();
    let check = |revision: Option<&str>| {
        let image = copy.image(&[]);
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
    let times = ["", "now", "-1", "8589934592"];
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
        ("--timestamp", &times, "--timestamp"),
        ("--revision", &[""], "--revision"),
    ] {
        for value in values {
            writes_nothing(xtask().arg("image").arg(format!("{option}={value}")), complaint);
        }
    }
    writes_nothing(xtask().arg("image").env("SOURCE_DATE_EPOCH", "now"), "--timestamp");
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

/// Runs `cargo xtask verify` on an archive of the commit that the images here are said to be of.
fn verify(archive: &[u8], run: fn(&mut Command) -> String) -> String {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, archive).unwrap();
    run(xtask().args(["verify", "--revision", REVISION]).arg(file.path()))
}

fn verify_compares_with_what_the_sources_make() {
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
        let expected = json!({ "mediaType": media_type, "digest": digest, "size": size });
        assert_eq!(*descriptor, expected);
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
    command.env_remove("SOURCE_DATE_EPOCH");
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
        command.env("RUSTFLAGS", "-Copt-level=3").env("CARGO_PROFILE_RELEASE_STRIP", "false");
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
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
