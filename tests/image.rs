//! The image, read back without the code that wrote it.

use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use harness::build::{self, Flavor, build_xtask};
use harness::target::{TARGETS, Target};
use harness::tests;
use harness::trial::{Trials, obstacle};
use object::read::elf::FileHeader;
use object::{Endianness, FileKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;
use std::{env, fs};
use tempfile::TempDir;

const TESTS: &[(&str, fn())] = tests![
    archive_holds_six_files,
    blobs_are_what_they_are_called,
    index_names_the_image,
    manifest_names_config_and_layer,
    docker_finds_the_same_image,
    layer_holds_only_the_binary,
    config_runs_pause_as_nobody,
    architecture_is_that_of_the_binary,
    annotations_come_from_cargo_toml,
    dockerfile_agrees,
    references_are_completed,
    report_is_about_what_was_written,
    time_stamps_are_source_date_epoch,
    another_folder_gives_the_same_bytes,
    bad_input_writes_nothing,
    failed_write_leaves_nothing,
    sizes_are_compared_with_their_budgets,
    unknown_platforms_are_refused,
    missing_core_writes_nothing,
    flags_of_the_caller_do_not_matter,
    verify_accepts_its_own,
    verify_names_what_differs,
    verify_refuses_other_files,
    bill_of_materials_is_the_same_each_time,
];

type TestOfPlatforms = fn(&[&Target]);

/// Tests of an image for every platform that this machine has `core` for.
const TESTS_OF_SEVERAL_PLATFORMS: &[(&str, TestOfPlatforms)] =
    tests![index_lists_the_platforms, docker_gets_one_of_the_platforms, sizes_of_every_platform];

/// In a user namespace: the same rights, another number. It takes no root.
const OTHER_USER: [&str; 4] = ["unshare", "--user", "--map-user=4711", "--map-group=4711"];

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let mut add = |name: &str, obstacle, run: Box<dyn FnOnce() + Send>| {
        trials.add(name, obstacle, move || {
            run();
            Ok(())
        });
    };
    for (name, run) in TESTS {
        add(name, None, Box::new(run));
    }
    let images = TARGETS.iter().filter(|target| target.platform.is_some());
    let (targets, missing): (Vec<_>, Vec<_>) =
        images.partition(|target| target.is_native() || build::find_core(target.triple).is_ok());
    let missing = missing.first().and_then(|target| obstacle(build::find_core(target.triple)));
    // Two platforms are enough for the tests, unless all have to be there.
    let missing = missing.filter(|_| targets.len() < 2 || harness::trial::no_skip());
    for (name, run) in TESTS_OF_SEVERAL_PLATFORMS {
        let targets = targets.clone();
        add(name, missing.clone(), Box::new(move || run(&targets)));
    }
    let unshare = Command::new(OTHER_USER[0]).args(&OTHER_USER[1..]).arg("true").output();
    let no_user = !unshare.is_ok_and(|output| output.status.success());
    let no_user = no_user.then(|| "this user may not create user namespaces".to_owned());
    add("another_user_gives_the_same_bytes", no_user, Box::new(another_user_gives_the_same_bytes));
    let git = which::which("git").map_err(|_| anyhow::anyhow!("git is not installed"));
    add("revision_is_the_commit", obstacle(git), Box::new(revision_is_the_commit));
    trials.run()
}

const TAG: &str = "registry.example:5000/infra/pause:1.2-test";
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// The options that leave nothing of the image to chance.
const FIXED: [&str; 4] = ["--tag", TAG, "--revision", REVISION];

/// The image as most tests look at it.
static IMAGE: LazyLock<Image> = LazyLock::new(|| Image::write(&FIXED));

/// The release binary.
static BINARY: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(build::build(Flavor::Freestanding).unwrap()).unwrap());

fn archive_holds_six_files() {
    let blobs = IMAGE.files.keys().filter(|path| path.starts_with("blobs/sha256/")).count();
    assert_eq!(blobs, 3);
    assert_eq!(IMAGE.files.len(), 6, "{:?}", IMAGE.files.keys());
    for file in IMAGE.files.values() {
        assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o644, 0, 0, 0));
    }
}

fn blobs_are_what_they_are_called() {
    for (path, file) in &IMAGE.files {
        if let Some(name) = path.strip_prefix("blobs/sha256/") {
            assert_eq!(digest(&file.bytes), format!("sha256:{name}"));
        }
    }
}

fn index_names_the_image() {
    assert_eq!(IMAGE.json("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }));

    let index = IMAGE.json("index.json");
    assert_eq!(index["schemaVersion"], 2);
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);

    let image = &index["manifests"][0];
    assert_eq!(image["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let annotations = json!({
        "io.containerd.image.name": TAG,
        "org.opencontainers.image.ref.name": "1.2-test",
    });
    assert_eq!(image["annotations"], annotations);

    let config = IMAGE.config();
    assert_eq!(image["platform"]["os"], config["os"]);
    assert_eq!(image["platform"]["architecture"], config["architecture"]);
    assert_eq!(image["platform"]["variant"], config["variant"]);
}

fn manifest_names_config_and_layer() {
    let manifest = IMAGE.manifest();
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    assert_eq!(manifest["layers"][0]["mediaType"], layer);
    // `blob` compares the sizes.
    IMAGE.blob(&manifest["config"]);
    IMAGE.blob(&manifest["layers"][0]);
}

fn docker_finds_the_same_image() {
    let manifest = IMAGE.manifest();
    let expected = json!([{
        "Config": blob_path(&manifest["config"]),
        "RepoTags": [TAG],
        "Layers": [blob_path(&manifest["layers"][0])],
    }]);
    assert_eq!(IMAGE.json("manifest.json"), expected);
}

fn layer_holds_only_the_binary() {
    let layer = IMAGE.layer();
    assert_eq!(IMAGE.config()["rootfs"]["diff_ids"], json!([digest(&layer)]));

    let files = untar(&layer);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["pause"]);
    let pause = &files["pause"];
    assert_eq!((pause.mode, pause.uid, pause.gid, pause.mtime), (0o755, 0, 0, 0));
    assert!(pause.bytes == *BINARY, "/pause is not the release binary");

    // The header has room for the writer's clock, system and file name, which would differ.
    let gzip = &IMAGE.blob(&IMAGE.manifest()["layers"][0]).bytes;
    let gzip = GzDecoder::new(&gzip[..]);
    let header = gzip.header().unwrap();
    assert_eq!((header.mtime(), header.operating_system(), header.filename()), (0, 255, None));
    assert_eq!((header.comment(), header.extra()), (None, None));
}

fn config_runs_pause_as_nobody() {
    let config = IMAGE.config();
    assert_eq!(config["os"], "linux");
    assert_eq!(config["rootfs"]["type"], "layers");
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    assert_eq!(config["history"].as_array().unwrap().len(), 1);
    assert_eq!(config["history"][0]["created"], "1970-01-01T00:00:00Z");
    assert_eq!(config["history"][0].get("empty_layer"), None);

    let mut run = config["config"].clone();
    run.as_object_mut().unwrap().remove("Labels");
    let expected = json!({ "User": "65535:65535", "Entrypoint": ["/pause"], "WorkingDir": "/" });
    assert_eq!(run, expected);
}

fn architecture_is_that_of_the_binary() {
    let (architecture, variant) = architecture(&BINARY);
    let config = IMAGE.config();
    assert_eq!(config["architecture"], architecture);
    assert_eq!(config.get("variant").and_then(Value::as_str), variant);
}

/// The architecture and the variant that an image has to name for an ELF file.
fn architecture(binary: &[u8]) -> (&'static str, Option<&'static str>) {
    use object::elf::*;
    fn machine<H: FileHeader<Endian = Endianness>>(binary: &[u8]) -> (Machine, Endianness) {
        let header = H::parse(binary).unwrap();
        let endian = header.endian().unwrap();
        (header.e_machine(endian), endian)
    }
    let machine = match FileKind::parse(binary).unwrap() {
        FileKind::Elf32 => machine::<FileHeader32<Endianness>>(binary),
        _ => machine::<FileHeader64<Endianness>>(binary),
    };
    match machine {
        (EM_PPC64, Endianness::Little) => ("ppc64le", None),
        (EM_S390, _) => ("s390x", None),
        (EM_ARM, _) => ("arm", Some("v7")),
        (EM_X86_64, _) => ("amd64", None),
        (EM_AARCH64, _) => ("arm64", Some("v8")),
        (EM_RISCV, _) => ("riscv64", None),
        (EM_LOONGARCH, _) => ("loong64", None),
        other => panic!("add {other:?} to this list"),
    }
}

fn annotations_come_from_cargo_toml() {
    let mut expected = annotations();
    expected.insert("org.opencontainers.image.revision".into(), REVISION);
    let expected = json!(expected);
    assert_eq!(IMAGE.manifest()["annotations"], expected);
    assert_eq!(IMAGE.config()["config"]["Labels"], expected);
}

fn dockerfile_agrees() {
    let read = |file: &str| fs::read_to_string(build::project().join(file)).unwrap();
    let dockerfile = read("Dockerfile");
    for (key, value) in annotations() {
        let label = format!("{key}=\"{value}\"");
        assert!(dockerfile.contains(&label), "the Dockerfile lacks {label}");
    }
    let config = &IMAGE.config()["config"];
    let user = config["User"].as_str().unwrap();
    for instruction in [format!("USER {user}"), format!("ENTRYPOINT {}", config["Entrypoint"])] {
        assert!(dockerfile.lines().any(|line| line == instruction), "it lacks {instruction}");
    }
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    let base = format!("ARG RUST_IMAGE=rust:{channel}-slim");
    assert!(dockerfile.lines().any(|line| line == base), "it lacks {base}");
}

fn references_are_completed() {
    let version = env!("CARGO_PKG_VERSION");
    let default = format!("localhost/pause:{version}");
    for (options, name) in [
        (&[][..], &*default),
        (&["--tag", "pause"], "docker.io/library/pause:latest"),
        (&["--tag", "infra/pause:2"], "docker.io/infra/pause:2"),
        (&["--tag", "registry:5000/pause"], "registry:5000/pause:latest"),
    ] {
        let image = Image::write(options);
        assert_eq!(image.json("manifest.json")[0]["RepoTags"], json!([name]));
        let annotations = &image.json("index.json")["manifests"][0]["annotations"];
        assert_eq!(annotations["io.containerd.image.name"], name);
        let tag = name.rsplit(':').next().unwrap();
        assert_eq!(annotations["org.opencontainers.image.ref.name"], tag);
    }
}

fn report_is_about_what_was_written() {
    let manifest = IMAGE.manifest();
    let image = &IMAGE.json("index.json")["manifests"][0];
    for (part, bytes) in [
        ("binary", BINARY.len() as u64),
        ("layer", IMAGE.layer().len() as u64),
        ("compressed layer", manifest["layers"][0]["size"].as_u64().unwrap()),
        ("config", manifest["config"]["size"].as_u64().unwrap()),
        ("manifest", image["size"].as_u64().unwrap()),
        ("archive", IMAGE.bytes.len() as u64),
    ] {
        assert_eq!(number(IMAGE.told(part).strip_suffix(" bytes").unwrap()), bytes, "{part}");
    }
    assert_eq!(IMAGE.told("manifest digest"), image["digest"]);
    assert_eq!(IMAGE.told("reference"), TAG);
    assert_eq!(IMAGE.told("revision"), REVISION);
}

fn time_stamps_are_source_date_epoch() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pause.tar");
    let mut command = xtask();
    command.env("SOURCE_DATE_EPOCH", "1700000000").arg("image").args(FIXED);
    let image = Image::read(&path, succeed(command.arg("--output").arg(&path)));

    for file in image.files.values().chain(untar(&image.layer()).values()) {
        assert_eq!(file.mtime, 1_700_000_000);
    }
    let config = image.config();
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(config["history"][0]["created"], "2023-11-14T22:13:20Z");
    assert_ne!(image.told("manifest digest"), IMAGE.told("manifest digest"));
}

fn another_folder_gives_the_same_bytes() {
    let image = Copy::new().image(&FIXED);
    assert_eq!(image.told("manifest digest"), IMAGE.told("manifest digest"));
    assert!(image.bytes == IMAGE.bytes, "the same image in another archive");
}

fn another_user_gives_the_same_bytes() {
    let image = Copy::new().image_by(&OTHER_USER, &FIXED);
    assert!(image.bytes == IMAGE.bytes, "another image");
}

fn revision_is_the_commit() {
    let copy = Copy::new();
    let check = |revision: Option<&str>| {
        let image = copy.image(&[]);
        assert_eq!(image.told("revision"), revision.unwrap_or("unknown"));
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
    let git = |arguments: &[&OsStr]| {
        let mut git = Command::new("git");
        git.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.args(["-c", "user.name=test", "-c", "user.email=test@example.org"]);
        succeed(git.args(arguments))
    };
    git(&["init", "--quiet"].map(OsStr::new));
    git(&["add".as_ref(), path.as_os_str()]);
    git(&["commit", "--quiet", "--message=test"].map(OsStr::new));
    git(&["rev-parse", "HEAD"].map(OsStr::new)).trim().to_owned()
}

fn bad_input_writes_nothing() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("new/pause.tar");
    let check = |options: &[&str], epoch: &str, told: &str| {
        let mut command = xtask();
        command.env("SOURCE_DATE_EPOCH", epoch).arg("image").args(options);
        let message = fail(command.arg("--output").arg(&output));
        assert!(message.contains(told), "{told:?} is not in: {message}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    };
    let digest = format!("pause@sha256:{}", "0".repeat(64));
    for tag in
        ["", "pause:", "a b", "localhost/Pause:1", "UPPER/pause:1", "pause:\u{e9}", "/p", &digest]
    {
        check(&["--tag", tag], "0", "--tag");
    }
    check(&["--revision", ""], "0", "--revision");
    for epoch in ["", "now", "-1", "8589934592"] {
        check(&[], epoch, "--timestamp");
    }
}

fn failed_write_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("pause.tar");
    fs::create_dir(&output).unwrap();
    let message = fail(xtask().arg("image").arg("--output").arg(&output));
    assert!(message.contains(output.to_str().unwrap()), "{message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

fn sizes_are_compared_with_their_budgets() {
    let output = succeed(xtask().arg("size"));
    let layer = IMAGE.manifest()["layers"][0]["size"].as_u64().unwrap();
    for (part, bytes) in [
        ("| binary for linux/amd64 ", BINARY.len() as u64),
        ("| compressed layer for linux/amd64 ", layer),
        ("| archive ", IMAGE.bytes.len() as u64),
    ] {
        let part = part.replace("linux/amd64", IMAGE.told("platform"));
        let row = output.lines().find(|line| line.starts_with(&part));
        let row = row.unwrap_or_else(|| panic!("no {part} in: {output}"));
        assert_eq!(number(row.split('|').nth(2).unwrap().trim()), bytes, "{row}");
    }

    // Text that does not compress makes binary and layer larger than their budgets.
    let copy = Copy::new();
    let text: String = (0..60).map(|number| digest(&[number])[7..].to_owned()).collect();
    copy.change("src/cli.rs", "Usage: ", &format!("{text} Usage: "));
    let message = fail(copy.xtask(&["env"]).arg("size"));
    for part in ["binary", "compressed layer"] {
        let part = format!("{part} for {}", IMAGE.told("platform"));
        assert!(message.contains("over the budget") && message.contains(&part), "{message}");
    }
}

/// The names of platforms as `--platform` takes them.
fn names(targets: &[&Target]) -> String {
    targets.iter().map(|target| target.platform.unwrap()).collect::<Vec<_>>().join(",")
}

fn index_lists_the_platforms(targets: &[&Target]) {
    // In another order, one twice and one without its variant: all the same.
    let reversed: Vec<_> = targets.iter().rev().copied().collect();
    let platforms = names(&reversed).replace("/v8", "") + "," + targets[0].platform.unwrap();
    let image = Image::write(&[&FIXED[..], &["--platform", &platforms]].concat());

    let outer = &image.json("index.json")["manifests"];
    assert_eq!(outer.as_array().unwrap().len(), 1);
    assert_eq!(outer[0]["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(outer[0]["annotations"]["io.containerd.image.name"], TAG);
    assert_eq!(outer[0]["digest"], image.told("index digest"));
    let index: Value = serde_json::from_slice(&image.blob(&outer[0]).bytes).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), targets.len());
    // Three blobs for each, the index, and the three files of the layout.
    assert_eq!(image.files.len(), 3 * targets.len() + 1 + 3);
    for file in image.files.iter().filter_map(|(path, file)| Some((path.rsplit_once('/')?, file))) {
        assert_eq!(digest(&file.1.bytes), format!("sha256:{}", file.0.1));
    }

    for (descriptor, target) in manifests.iter().zip(targets) {
        let manifest: Value = serde_json::from_slice(&image.blob(descriptor).bytes).unwrap();
        let config: Value = serde_json::from_slice(&image.blob(&manifest["config"]).bytes).unwrap();
        let mut compressed = &*image.blob(&manifest["layers"][0]).bytes;
        let mut layer = Vec::new();
        GzDecoder::new(&mut compressed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        let binary = &untar(&layer)["pause"].bytes;
        assert!(*binary == fs::read(target.build().unwrap()).unwrap(), "{target:?}");

        let (architecture, variant) = architecture(binary);
        for place in [&descriptor["platform"], &config] {
            assert_eq!(place["os"], "linux");
            assert_eq!(place["architecture"], architecture);
            assert_eq!(place.get("variant").and_then(Value::as_str), variant);
        }
        let name = [Some("linux"), Some(architecture), variant];
        assert_eq!(
            name.into_iter().flatten().collect::<Vec<_>>().join("/"),
            target.platform.unwrap()
        );
    }
}

fn docker_gets_one_of_the_platforms(targets: &[&Target]) {
    let image = Image::write(&[&FIXED[..], &["--platform", &names(targets)]].concat());
    let docker = image.json("manifest.json");
    assert_eq!(docker.as_array().unwrap().len(), 1);
    // This machine's, the same as alone.
    let alone = IMAGE.json("manifest.json");
    assert_eq!(docker, alone);

    let foreign = targets.iter().find(|target| !target.is_native()).unwrap();
    let image = Image::write(&[&FIXED[..], &["--platform", &names(&[foreign])]].concat());
    let config: Value = serde_json::from_slice(
        &image.files[image.json("manifest.json")[0]["Config"].as_str().unwrap()].bytes,
    )
    .unwrap();
    assert_eq!(config, image.config());
    assert_eq!(config["architecture"], foreign.platform.unwrap().split('/').nth(1).unwrap());
}

fn sizes_of_every_platform(targets: &[&Target]) {
    let table = succeed(xtask().args(["size", "--platform", &names(targets)]));
    for target in targets {
        let row = format!("binary for {} ", target.platform.unwrap());
        assert!(table.contains(&row), "{row} is not in: {table}");
    }
}

fn unknown_platforms_are_refused() {
    let folder = TempDir::new().unwrap();
    for platform in ["", "linux", "linux/", "linux/arm6", "linux/arm/v6", "windows/amd64", "all,"] {
        let mut command = xtask();
        command.args(["image", "--platform", platform]);
        let message = fail(command.arg("--output").arg(folder.path().join("pause.tar")));
        assert!(message.contains("linux/arm/v7"), "{platform}: {message}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

fn missing_core_writes_nothing() {
    let folder = TempDir::new().unwrap();
    // A compiler that knows the target and has no core for it.
    let rustc = folder.path().join("rustc");
    fs::write(&rustc, "#!/bin/sh\necho /nowhere\n").unwrap();
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
    let foreign = TARGETS.iter().find(|target| !target.is_native()).unwrap();
    let mut command = xtask();
    command.env("RUSTC", &rustc).env_remove("PAUSE_FOREIGN_RUSTC");
    command.args(["image", "--platform", &names(&[foreign])]);
    let message = fail(command.arg("--output").arg(folder.path().join("new/pause.tar")));
    let remedy = format!("rustup target add {}", foreign.triple);
    assert!(message.contains(&remedy), "{message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

fn flags_of_the_caller_do_not_matter() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pause.tar");
    let mut command = xtask();
    command.env("CARGO_TARGET_DIR", folder.path().join("t"));
    command.env("RUSTFLAGS", "-Copt-level=3").env("CARGO_PROFILE_RELEASE_STRIP", "false");
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    command.arg("image").args(FIXED).arg("--output").arg(&path);
    let image = Image::read(&path, succeed(&mut command));
    assert_eq!(image.told("manifest digest"), IMAGE.told("manifest digest"));
}

/// `cargo xtask verify` of the commit that the images here are said to be of.
fn verify(subject: impl AsRef<OsStr>) -> Command {
    let mut command = xtask();
    command.args(["verify", "--revision", REVISION]).arg(subject);
    command
}

/// Verifies an archive that must be refused, and returns the reasons.
fn refused(archive: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pause.tar");
    fs::write(&path, archive).unwrap();
    fail(&mut verify(&path))
}

fn verify_accepts_its_own() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pause.tar");
    fs::write(&path, &IMAGE.bytes).unwrap();
    let manifest = IMAGE.manifest();
    for (subject, answer) in [
        (path.to_str().unwrap(), "byte for byte"),
        (IMAGE.told("manifest digest"), "the manifest"),
        (manifest["config"]["digest"].as_str().unwrap(), "the config"),
        (manifest["layers"][0]["digest"].as_str().unwrap(), "the layer"),
        (&digest(&BINARY), "the binary"),
    ] {
        let said = succeed(&mut verify(subject));
        assert!(said.contains(answer), "{subject}: {said}");
    }
}

fn verify_names_what_differs() {
    let platform = IMAGE.told("platform");
    let parts = ["binary", "config", "layer", "manifest"];
    let check = |message: &str, differing: &[&str]| {
        for part in parts {
            let line = format!("  {part} for {platform}: sha256:");
            assert_eq!(message.contains(&line), differing.contains(&part), "{part}: {message}");
        }
    };
    let copy = Copy::new();
    copy.change("src/main.rs", "not PID 1", "not pid 1");
    check(&refused(&copy.image(&FIXED).bytes), &parts);
    let copy = Copy::new();
    copy.change("Cargo.toml", "description = \"", "description = \"Changed. ");
    check(&refused(&copy.image(&FIXED).bytes), &["config", "manifest"]);

    // The same files in an archive with another time.
    let mut archive = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&*IMAGE.bytes).entries().unwrap() {
        let entry = entry.unwrap();
        let mut header = entry.header().clone();
        header.set_mtime(1);
        header.set_cksum();
        archive.append(&header, entry).unwrap();
    }
    let message = refused(&archive.into_inner().unwrap());
    check(&message, &[]);
    assert!(message.contains("the image is the same, but its archive is not"), "{message}");
}

fn verify_refuses_other_files() {
    assert!(refused(b"").contains("is not an archive of an image"));
    assert!(refused(&IMAGE.bytes[..1500]).contains("is not an archive of an image"));
    // A byte of the layer.
    let mut archive = IMAGE.bytes.clone();
    let layer = &IMAGE.blob(&IMAGE.manifest()["layers"][0]).bytes;
    let at = archive.windows(layer.len()).position(|it| it == layer).unwrap();
    archive[at + layer.len() / 2] ^= 1;
    assert!(refused(&archive).contains("does not have the digest that it is named after"));
    // A file of another kind is not printed.
    let message = fail(&mut verify(build::project().join("README.md")));
    assert!(message.ends_with("it is not a tar archive, or not a whole one\n"), "{message}");
    let other = digest(b"");
    assert!(fail(&mut verify(&other)).contains(&format!("nothing with the digest {other}")));
    assert!(fail(&mut verify("sha256:00")).contains("is not a digest"));
    assert!(fail(&mut verify("nowhere")).contains("neither a digest"));
}

fn bill_of_materials_is_the_same_each_time() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        succeed(xtask().arg("sbom").arg("--output").arg(&path));
        fs::read(path).unwrap()
    };
    let bill = write("one");
    assert!(bill == write("two"));
    let bill: Value = serde_json::from_slice(&bill).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let [libc] = &bill["components"].as_array().unwrap()[..] else { panic!("{bill}") };
    let purl = format!("pkg:cargo/libc@{}", libc["version"].as_str().unwrap());
    assert_eq!((&libc["name"], &libc["purl"]), (&json!("libc"), &json!(purl)));
    let lock = fs::read_to_string(build::project().join("Cargo.lock")).unwrap();
    assert!(lock.contains(libc["hashes"][0]["content"].as_str().unwrap()), "another checksum");
    let application = &bill["metadata"]["component"];
    assert_eq!(bill["dependencies"][0]["ref"], application["bom-ref"]);
    assert_eq!(bill["dependencies"][0]["dependsOn"], json!([libc["bom-ref"]]));
    for component in [application, libc] {
        assert_eq!(component["licenses"], json!([{ "expression": "MIT OR Apache-2.0" }]));
    }
    let hash = &bill["metadata"]["component"]["components"][0]["hashes"][0]["content"];
    assert_eq!(format!("sha256:{}", hash.as_str().unwrap()), digest(&BINARY));
}

/// An archive that was read back, and what the writer said about it.
struct Image {
    report: String,
    bytes: Vec<u8>,
    files: BTreeMap<String, File>,
}

/// A file in an archive.
struct File {
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Has an image written with `options`, and reads it.
    fn write(options: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("pause.tar");
        let mut command = xtask();
        command.arg("image").args(options).arg("--output").arg(&path);
        Self::read(&path, succeed(&mut command))
    }

    fn read(path: &Path, report: String) -> Self {
        let bytes = fs::read(path).unwrap();
        Self { files: untar(&bytes), bytes, report }
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.files[path].bytes).unwrap()
    }

    /// What a descriptor describes.
    fn blob(&self, descriptor: &Value) -> &File {
        let blob = &self.files[&blob_path(descriptor)];
        assert_eq!(descriptor["size"], blob.bytes.len());
        blob
    }

    fn manifest(&self) -> Value {
        let image = &self.json("index.json")["manifests"][0];
        serde_json::from_slice(&self.blob(image).bytes).unwrap()
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&self.blob(&self.manifest()["config"]).bytes).unwrap()
    }

    /// The layer, uncompressed.
    fn layer(&self) -> Vec<u8> {
        let compressed = &self.blob(&self.manifest()["layers"][0]).bytes;
        let mut gzip = GzDecoder::new(&compressed[..]);
        let mut layer = Vec::new();
        gzip.read_to_end(&mut layer).unwrap();
        assert!(gzip.into_inner().is_empty(), "something follows the layer");
        layer
    }

    /// What the report says of `subject`.
    fn told(&self, subject: &str) -> &str {
        let columns = self.report.lines().map(|line| line.split_at(16));
        let mut told = columns.filter(|(column, _)| column.trim() == subject);
        told.next().unwrap_or_else(|| panic!("no {subject} in: {}", self.report)).1.trim()
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

/// The files of an archive that holds nothing but files, and no file twice.
fn untar(bytes: &[u8]) -> BTreeMap<String, File> {
    let mut files = BTreeMap::new();
    let mut expected_size = 1024;
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert!(header.as_ustar().is_some(), "not ustar");
        assert!(header.entry_type().is_file(), "{:?}", header.entry_type());
        let path = entry.path().unwrap().into_owned().into_os_string().into_string().unwrap();
        let mut file = File {
            mode: header.mode().unwrap(),
            uid: header.uid().unwrap(),
            gid: header.gid().unwrap(),
            mtime: header.mtime().unwrap(),
            bytes: Vec::new(),
        };
        entry.read_to_end(&mut file.bytes).unwrap();
        expected_size += 512 + file.bytes.len().next_multiple_of(512);
        assert!(files.insert(path, file).is_none(), "a file is there twice");
    }
    assert_eq!(bytes.len(), expected_size, "something follows the last file");
    files
}

/// Where the OCI layout keeps what `descriptor` describes.
fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)))
}

/// Reads a number that is written with separators.
fn number(text: &str) -> u64 {
    text.replace(',', "").parse().unwrap()
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

/// What a command writes to stderr. It must fail, as a program that knows what it does.
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

    /// `cargo xtask` for the copy, started by another program, where much is different.
    fn xtask(&self, starter: &[&str]) -> Command {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).args(["sh", "-c", "umask 077 && exec \"$0\" \"$@\""]);
        command.arg(xtask().get_program()).current_dir(&self.project);
        command.env("PAUSE_PROJECT", &self.project).env_remove("SOURCE_DATE_EPOCH");
        command.env("LC_ALL", "tr_TR.UTF-8").env("TZ", "Asia/Kathmandu");
        command.env("CARGO_TARGET_DIR", self.folder.path().join("t"));
        // What it takes has been fetched to get here.
        command.env("CARGO_NET_OFFLINE", "true");
        command
    }

    /// Writes the image of the copy and reads it.
    fn image(&self, options: &[&str]) -> Image {
        self.image_by(&["env"], options)
    }

    fn image_by(&self, starter: &[&str], options: &[&str]) -> Image {
        let path = self.folder.path().join("pause.tar");
        let mut command = self.xtask(starter);
        command.arg("image").args(options).arg("--output").arg(&path);
        Image::read(&path, succeed(&mut command))
    }
}
