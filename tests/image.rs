//! The image, read back without anything of what wrote it.

use base16ct::HexDisplay;
use flate2::read::GzDecoder;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::{env, fs};
use support::artifact::{self, Flavor, TARGETS, Target};
use support::trial;
use tempfile::TempDir;

fn main() -> ExitCode {
    let tests = vec![
        test("archive_holds_six_files", archive_holds_six_files),
        test("blobs_are_what_they_are_called", blobs_are_what_they_are_called),
        test("index_names_the_image", index_names_the_image),
        test("manifest_names_config_and_layer", manifest_names_config_and_layer),
        test("docker_finds_the_same_image", docker_finds_the_same_image),
        test("layer_holds_the_binary_alone", layer_holds_the_binary_alone),
        test("config_runs_pause_as_nobody", config_runs_pause_as_nobody),
        test("architecture_is_that_of_the_binary", architecture_is_that_of_the_binary),
        test("annotations_come_from_cargo_toml", annotations_come_from_cargo_toml),
        test("dockerfile_says_the_same", dockerfile_says_the_same),
        test("short_reference_is_completed", short_reference_is_completed),
        test("default_is_localhost_pause", default_is_localhost_pause),
        test("report_tells_what_was_written", report_tells_what_was_written),
        test("time_stamps_are_source_date_epoch", time_stamps_are_source_date_epoch),
        test("another_folder_gives_the_same_bytes", another_folder_gives_the_same_bytes),
        Trial::ignorable_test(
            "another_user_gives_the_same_bytes",
            another_user_gives_the_same_bytes,
        ),
        Trial::ignorable_test("revision_is_the_commit", revision_is_the_commit),
        test("bad_input_writes_nothing", bad_input_writes_nothing),
        test("failed_write_leaves_nothing", failed_write_leaves_nothing),
        test("size_names_what_is_too_large", size_names_what_is_too_large),
        test("size_prints_markdown", size_prints_markdown),
        several_platforms("index_lists_the_platforms", index_lists_the_platforms),
        several_platforms("docker_gets_one_of_the_platforms", docker_gets_one_of_the_platforms),
        several_platforms("size_checks_every_platform", size_checks_every_platform),
        test("unknown_platforms_are_refused", unknown_platforms_are_refused),
        test("missing_core_writes_nothing", missing_core_writes_nothing),
        test("flags_of_the_caller_do_not_matter", flags_of_the_caller_do_not_matter),
        test("verify_knows_its_own", verify_knows_its_own),
        test("verify_tells_what_differs", verify_tells_what_differs),
        test("verify_refuses_what_is_no_image", verify_refuses_what_is_no_image),
        test("bill_of_materials_is_the_same_each_time", bill_of_materials_is_the_same_each_time),
    ];
    let conclusion = libtest_mimic::run(&Arguments::from_args(), tests);
    // Nobody else drops what is static.
    drop(copy().take());
    conclusion.exit_code()
}

fn test(name: &str, run: fn()) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

/// A test of an image for all platforms whose `core` is at hand, which must be two at least.
fn several_platforms(name: &str, run: fn(&[&Target])) -> Trial {
    Trial::ignorable_test(name, move || {
        let mut targets = Vec::new();
        let mut missing = String::new();
        for target in TARGETS.iter().filter(|target| target.platform.is_some()) {
            match artifact::find_core(target.triple) {
                Err(error) if !target.is_native() => missing = format!("{error:#}"),
                _ => targets.push(target),
            }
        }
        if trial::no_skip() && !missing.is_empty() {
            return Err(Failed::from(missing));
        }
        if targets.len() < 2 {
            return Ok(Completion::ignored_with(missing));
        }
        run(&targets);
        Ok(Completion::Completed)
    })
}

const TAG: &str = "registry.example:5000/infra/pause:1.2-test";
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// The options that leave nothing of the image to chance.
const FIXED: [&str; 4] = ["--tag", TAG, "--revision", REVISION];

/// The image as most tests look at it.
static IMAGE: LazyLock<Image> = LazyLock::new(|| Image::write(&FIXED));

/// The release binary.
static BINARY: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read(artifact::build(Flavor::Freestanding).unwrap()).unwrap());

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

fn layer_holds_the_binary_alone() {
    let layer = IMAGE.layer();
    assert_eq!(IMAGE.config()["rootfs"]["diff_ids"], json!([digest(&layer)]));

    let files = untar(&layer);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["pause"]);
    let pause = &files["pause"];
    assert_eq!((pause.mode, pause.uid, pause.gid, pause.mtime), (0o755, 0, 0, 0));
    assert!(pause.bytes == *BINARY, "/pause is not the release binary");

    // The header has room for the writer's clock and system; another one would give other bytes.
    let compressed = &IMAGE.blob(&IMAGE.manifest()["layers"][0]).bytes;
    let (flags, time, system) = (compressed[3], &compressed[4..8], compressed[9]);
    assert_eq!((flags, time, system), (0, &[0; 4][..], 255));
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

/// What an image has to call the architecture of an ELF file, and its variant.
fn architecture(binary: &[u8]) -> (&'static str, Option<&'static str>) {
    // e_machine of the ELF header, in the binary's own order of bytes (elf.h: EM_*).
    let little_endian = binary[5] == 1;
    let machine = [binary[18], binary[19]];
    let machine =
        if little_endian { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    match machine {
        21 if little_endian => ("ppc64le", None),
        22 => ("s390x", None),
        40 => ("arm", Some("v7")),
        62 => ("amd64", None),
        183 => ("arm64", Some("v8")),
        243 => ("riscv64", None),
        258 => ("loong64", None),
        other => panic!("teach this test about e_machine {other}"),
    }
}

fn annotations_come_from_cargo_toml() {
    let mut expected = annotations();
    expected.insert("org.opencontainers.image.revision".into(), REVISION);
    let expected = json!(expected);
    assert_eq!(IMAGE.manifest()["annotations"], expected);
    assert_eq!(IMAGE.config()["config"]["Labels"], expected);
}

fn dockerfile_says_the_same() {
    let read = |file: &str| fs::read_to_string(artifact::project().join(file)).unwrap();
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

fn short_reference_is_completed() {
    let image = Image::write(&["--tag", "pause"]);
    let name = "docker.io/library/pause:latest";
    assert_eq!(image.json("manifest.json")[0]["RepoTags"], json!([name]));
    let annotations = &image.json("index.json")["manifests"][0]["annotations"];
    assert_eq!(annotations["io.containerd.image.name"], name);
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "latest");
}

fn default_is_localhost_pause() {
    let image = Image::write(&[]);
    let name = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));
    assert_eq!(image.json("manifest.json")[0]["RepoTags"], json!([name]));
    let annotations = &image.json("index.json")["manifests"][0]["annotations"];
    assert_eq!(annotations["io.containerd.image.name"], name);
}

fn report_tells_what_was_written() {
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
    let mut command = xtask(artifact::project());
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
    let mut copy = copy();
    let image = copy.get_or_insert_with(Copy::new).image(&FIXED);
    assert_eq!(image.told("manifest digest"), IMAGE.told("manifest digest"));
    assert!(image.bytes == IMAGE.bytes, "the same image in another archive");
}

fn another_user_gives_the_same_bytes() -> Result<Completion, Failed> {
    // In a user namespace: the same rights, another number. It takes no root.
    let unshare = ["unshare", "--user", "--map-user=4711", "--map-group=4711"];
    match Command::new(unshare[0]).args(&unshare[1..]).arg("true").output() {
        Ok(output) if output.status.success() => {}
        _ => return trial::skip("this kernel gives this user no user namespaces".into()),
    }
    let mut copy = copy();
    let copy = copy.get_or_insert_with(Copy::new);
    // Nothing that was built before.
    let _ = fs::remove_dir_all(copy.target().join("release"));
    let image = copy.image_by(&unshare, &FIXED);
    assert!(image.bytes == IMAGE.bytes, "another image");
    Ok(Completion::Completed)
}

fn revision_is_the_commit() -> Result<Completion, Failed> {
    if Command::new("git").arg("--version").output().is_err() {
        return Ok(Completion::ignored_with("git is not installed"));
    }
    let mut copy = copy();
    let copy = copy.get_or_insert_with(Copy::new);
    let check = |revision: Option<&str>| {
        let image = copy.image(&[]);
        assert_eq!(image.told("revision"), revision.unwrap_or("unknown"));
        let annotation = &image.manifest()["annotations"]["org.opencontainers.image.revision"];
        assert_eq!(annotation.as_str(), revision);
    };

    // The commit of a repository that merely has the sources somewhere says nothing about them.
    commit(copy.folder.path(), &copy.project.join("Cargo.toml"));
    check(None);

    let head = commit(&copy.project, &copy.project);
    check(Some(&head));

    fs::write(copy.project.join("Cargo.toml.orig"), "not tracked").unwrap();
    check(Some(&head));

    fs::write(copy.project.join("rustfmt.toml"), "# changed").unwrap();
    check(Some(&format!("{head}-dirty")));

    fs::remove_dir_all(copy.project.join(".git")).unwrap();
    Ok(Completion::Completed)
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
        let mut command = xtask(artifact::project());
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
    let message = fail(xtask(artifact::project()).arg("image").arg("--output").arg(&output));
    assert!(message.contains(output.to_str().unwrap()), "{message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

fn size_names_what_is_too_large() {
    let size = |option: &str, bytes: u64| {
        let mut command = xtask(artifact::project());
        command.arg("size").args(FIXED).args([option, &bytes.to_string()]);
        command
    };
    let layer = IMAGE.manifest()["layers"][0]["size"].as_u64().unwrap();
    for (option, part, bytes) in [
        ("--max-binary", "binary", BINARY.len() as u64),
        ("--max-layer", "compressed layer", layer),
        ("--max-archive", "archive", IMAGE.bytes.len() as u64),
    ] {
        succeed(&mut size(option, bytes));
        let message = fail(&mut size(option, bytes - 1));
        let expected = format!("error: over the budget: {part} by 1 bytes");
        assert_eq!(message.lines().last(), Some(&*expected));
    }
}

fn size_prints_markdown() {
    let output = succeed(xtask(artifact::project()).args(["size", "--markdown"]).args(FIXED));
    let rows: Vec<Vec<&str>> = output
        .lines()
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows[0], ["", "bytes", "budget", "left"]);
    assert!(rows[1].iter().all(|cell| cell.contains("---")), "{rows:?}");
    let layer = IMAGE.manifest()["layers"][0]["size"].as_u64().unwrap();
    let parts = [
        ("binary", BINARY.len() as u64, 1_280),
        ("compressed layer", layer, 1_024),
        ("archive", IMAGE.bytes.len() as u64, 16_384),
    ];
    assert_eq!(rows.len(), 2 + parts.len());
    for (row, (part, bytes, budget)) in rows[2..].iter().zip(parts) {
        assert_eq!(row[0], part);
        assert_eq!([1, 2, 3].map(|cell| number(row[cell])), [bytes, budget, budget - bytes]);
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

fn size_checks_every_platform(targets: &[&Target]) {
    let size = |budget: &str| {
        let mut command = xtask(artifact::project());
        command.arg("size").args(FIXED).args(["--platform", &names(targets)]);
        command.args(["--max-binary", budget]);
        command
    };
    let table = succeed(&mut size("2048"));
    let message = fail(&mut size("1"));
    for target in targets {
        let row = format!("{}: binary", target.platform.unwrap());
        assert!(table.contains(&row), "{row} is not in: {table}");
        assert!(message.contains(&row), "{row} is not in: {message}");
    }
}

fn unknown_platforms_are_refused() {
    let folder = TempDir::new().unwrap();
    for platform in ["", "linux", "linux/", "linux/arm6", "linux/arm/v6", "windows/amd64", "all,"] {
        let mut command = xtask(artifact::project());
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
    let mut command = Command::new(xtask_binary());
    command.current_dir(artifact::project()).env("RUSTC", &rustc);
    command.env_remove("PAUSE_FOREIGN_RUSTC");
    command.args(["image", "--platform", &names(&[foreign])]);
    let message = fail(command.arg("--output").arg(folder.path().join("new/pause.tar")));
    let remedy = format!("rustup target add {}", foreign.triple);
    assert!(message.contains(&remedy), "{message}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

fn flags_of_the_caller_do_not_matter() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pause.tar");
    // Not through cargo, or the flags would build the whole workshop anew.
    let mut command = Command::new(xtask_binary());
    command.current_dir(artifact::project()).env_remove("SOURCE_DATE_EPOCH");
    command.env("CARGO_TARGET_DIR", folder.path().join("t"));
    command.env("RUSTFLAGS", "-Copt-level=3").env("CARGO_PROFILE_RELEASE_STRIP", "false");
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    command.arg("image").args(FIXED).arg("--output").arg(&path);
    let image = Image::read(&path, succeed(&mut command));
    assert_eq!(image.told("manifest digest"), IMAGE.told("manifest digest"));
}

/// `cargo xtask verify` of the commit that the images here are said to be of.
fn verify(subject: impl AsRef<OsStr>) -> Command {
    let mut command = xtask(artifact::project());
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

fn verify_knows_its_own() {
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

fn verify_tells_what_differs() {
    // The same again, or the rest would prove nothing.
    assert!(forged(|_| {}, |_| {}) == IMAGE.bytes);

    let message = refused(&forged(|binary| binary[0x10] ^= 1, |_| {}));
    assert!(message.contains("/pause (mode 755"), "{message}");
    assert!(message.contains("from byte 0x10 on"), "{message}");
    let last = BINARY.iter().rposition(|byte| byte.is_ascii_alphabetic()).unwrap();
    let message = refused(&forged(|binary| binary[last] ^= 1, |_| {}));
    assert!(message.contains(&format!("from byte {last:#x} on")), "{message}");
    if env::consts::ARCH == "x86_64" {
        assert!(message.contains("in the text"), "{message}");
    }
    let message = refused(&forged(|_| {}, |config| config["config"]["User"] = json!("0:0")));
    assert!(message.contains("config, config, User: \"0:0\""), "{message}");
    assert!(!message.contains("/pause (mode"), "{message}");

    // A byte that is in no file: the owner's name in the first header.
    let mut archive = IMAGE.bytes.clone();
    archive[265] = b'x';
    let sum: u32 = archive[..512].iter().map(|&byte| u32::from(byte)).sum::<u32>()
        - archive[148..156].iter().map(|&byte| u32::from(byte)).sum::<u32>()
        + 8 * u32::from(b' ');
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let message = refused(&archive);
    assert!(message.contains("the archive is not, from byte"), "{message}");
}

fn verify_refuses_what_is_no_image() {
    assert!(refused(b"").contains("cannot be read as an archive"));
    assert!(refused(&IMAGE.bytes[..1500]).contains("cannot be read as an archive"));
    // A byte of the layer.
    let mut archive = IMAGE.bytes.clone();
    let layer = &IMAGE.blob(&IMAGE.manifest()["layers"][0]).bytes;
    let at = archive.windows(layer.len()).position(|it| it == layer).unwrap();
    archive[at + layer.len() / 2] ^= 1;
    assert!(refused(&archive).contains("is not what its name says"));
    // A file of another kind is not printed.
    let message = fail(&mut verify(artifact::project().join("README.md")));
    assert!(message.ends_with("it is no tar archive\n"), "{message}");
    let other = digest(b"");
    assert!(fail(&mut verify(&other)).contains(&format!("nothing that is {other}")));
    assert!(fail(&mut verify("sha256:00")).contains("is no digest"));
    assert!(fail(&mut verify("nowhere")).contains("cannot be read"));
}

/// The image as somebody would make it who changed the binary or the configuration, and all that
/// depends on them.
fn forged(binary: impl Fn(&mut Vec<u8>), config: impl Fn(&mut Value)) -> Vec<u8> {
    fn tar(files: &[(&str, &[u8])], mode: u32) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_size(bytes.len() as u64);
            header.set_mode(mode);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            archive.append(&header, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }
    let describe = |descriptor: &mut Value, bytes: &[u8]| {
        descriptor["digest"] = json!(digest(bytes));
        descriptor["size"] = json!(bytes.len());
    };
    let mut program = BINARY.clone();
    binary(&mut program);
    let layer = tar(&[("pause", &program)], 0o755);
    let mut gzip = flate2::GzBuilder::new().read(&layer[..], flate2::Compression::best());
    let mut compressed = Vec::new();
    gzip.read_to_end(&mut compressed).unwrap();
    let mut configuration = IMAGE.config();
    configuration["rootfs"]["diff_ids"][0] = json!(digest(&layer));
    config(&mut configuration);
    let configuration = configuration.to_string().into_bytes();
    let mut manifest = IMAGE.manifest();
    describe(&mut manifest["layers"][0], &compressed);
    describe(&mut manifest["config"], &configuration);
    let (layer_path, config_path) =
        (blob_path(&manifest["layers"][0]), blob_path(&manifest["config"]));
    let manifest = manifest.to_string().into_bytes();
    let mut index = IMAGE.json("index.json");
    describe(&mut index["manifests"][0], &manifest);
    let manifest_path = blob_path(&index["manifests"][0]);
    let mut docker = IMAGE.json("manifest.json");
    docker[0]["Config"] = json!(config_path);
    docker[0]["Layers"][0] = json!(layer_path);
    let files = [
        ("oci-layout", &*IMAGE.files["oci-layout"].bytes),
        ("index.json", index.to_string().as_bytes()),
        ("manifest.json", docker.to_string().as_bytes()),
        (&*manifest_path, &*manifest),
        (&config_path, &configuration),
        (&layer_path, &compressed),
    ]
    .map(|(path, bytes)| (path.to_owned(), bytes.to_vec()));
    tar(&files.each_ref().map(|(path, bytes)| (&**path, &**bytes)), 0o644)
}

fn bill_of_materials_is_the_same_each_time() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        succeed(xtask(artifact::project()).arg("sbom").arg("--output").arg(&path));
        fs::read(path).unwrap()
    };
    let bill = write("one");
    assert!(bill == write("two"));
    // The program checks it by the library that knows CycloneDX; this is what ships.
    let bill: Value = serde_json::from_slice(&bill).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let components = bill["components"].as_array().unwrap();
    let names: Vec<_> = components.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["libc"]);
    let hash = &bill["metadata"]["component"]["components"][0]["hashes"][0]["content"];
    assert_eq!(format!("sha256:{}", hash.as_str().unwrap()), digest(&BINARY));
}

/// The workshop's own program, built: under cargo the compiler could not be another one.
fn xtask_binary() -> PathBuf {
    succeed(xtask(artifact::project()).arg("--version"));
    // This test is target/PROFILE/deps/image-HASH, whatever the target folder is called.
    let test = env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("debug/xtask")
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
        let mut command = xtask(artifact::project());
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

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// `cargo xtask` in the folder of a project.
fn xtask(project: &Path) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(project).arg("xtask").env_remove("SOURCE_DATE_EPOCH");
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

/// A second copy of the project, for one test at a time.
static COPY: Mutex<Option<Copy>> = Mutex::new(None);

fn copy() -> MutexGuard<'static, Option<Copy>> {
    COPY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sources in a folder of their own, with a target folder of their own.
struct Copy {
    folder: TempDir,
    project: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let project = folder.path().join("a copy of the sources, with quite a long name");
        fs::create_dir(&project).unwrap();
        artifact::copy_sources(&project).unwrap();
        Self { folder, project }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("t")
    }

    /// Writes the image where much is different, and reads it.
    fn image(&self, options: &[&str]) -> Image {
        self.image_by(&["env"], options)
    }

    /// The same, by a program that starts others.
    fn image_by(&self, starter: &[&str], options: &[&str]) -> Image {
        let path = self.folder.path().join("pause.tar");
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg("sh");
        command.args(["-c", r#"umask 077 && exec "$0" xtask image "$@""#]).arg(cargo());
        command.args(options).arg("--output").arg(&path).current_dir(&self.project);
        command.env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "tr_TR.UTF-8");
        command.env("TZ", "Asia/Kathmandu").env("CARGO_TARGET_DIR", self.target());
        // Twice as fast to build, and it must make no difference.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        // What it takes has been fetched to get here.
        command.env("CARGO_NET_OFFLINE", "true");
        Image::read(&path, succeed(&mut command))
    }
}
