//! The configuration files that people copy, and the manifests that they apply. Only real engines show
//! that they work: `cargo xtask engines`.

use harness::build::project;
use serde_json::{Value, json};
use std::fs;
use toml_edit::DocumentMut;

/// The image that the files name.
const IMAGE: &str = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));

/// The command of cri-dockerd's own unit, 0.2.4 to 0.4.1. No package of Debian has that unit.
const CRI_DOCKERD: &str = "/usr/bin/cri-dockerd --container-runtime-endpoint fd://";

fn read(name: &str) -> String {
    let path = project().join("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_file_says_where_it_goes_and_what_it_was_run_with() {
    for file in fs::read_dir(project().join("deploy")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let text = read(&name);
        for line in ["# Copy this to /etc/", "# Run with: "] {
            assert!(text.lines().any(|it| it.starts_with(line)), "{name} has no line {line:?}");
        }
    }
}

#[test]
fn toml_files_name_the_image() {
    let cri = "io.containerd.grpc.v1.cri";
    for (name, keys, value) in [
        ("containerd-1.toml", &["plugins", cri, "sandbox_image"][..], IMAGE),
        (
            "containerd-2.toml",
            &["plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"],
            IMAGE,
        ),
        ("crio.conf", &["crio", "image", "pause_image"], IMAGE),
        ("crio.conf", &["crio", "image", "pause_command"], "/pause"),
        ("podman-containers.conf", &["engine", "infra_image"], IMAGE),
    ] {
        let file: DocumentMut = read(name).parse().unwrap();
        let found = keys.iter().try_fold(file.as_item(), |item, key| item.get(key));
        assert_eq!(found.and_then(|item| item.as_str()), Some(value), "{name}: {keys:?}");
    }
    for (name, version) in [("containerd-1.toml", 2), ("containerd-2.toml", 3)] {
        let file: DocumentMut = read(name).parse().unwrap();
        assert_eq!(file["version"].as_integer(), Some(version), "{name}");
    }
}

#[test]
fn yaml_files_name_the_image() {
    // To RKE2 only a name with a dot is a registry's.
    let dotted = IMAGE.replace("localhost", "pause.internal");
    for (name, image) in [("k3s.yaml", IMAGE), ("rke2.yaml", &dotted)] {
        let config: Value = serde_saphyr::from_str(&read(name)).unwrap();
        assert_eq!(config, json!({ "pause-image": image }), "{name}");
    }
    let made = format!("cargo xtask image --tag {dotted}\n");
    assert!(read("rke2.yaml").contains(&made), "made under another name");
}

/// All of a drop-in's settings, which are those of a service.
fn settings(name: &str) -> Vec<String> {
    let text = read(name);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[test]
fn drop_ins_add_to_their_units_and_lose_nothing() {
    let archive = "oci-archive:/usr/local/share/pause.tar";
    let load = format!("ExecStartPre=-/usr/bin/skopeo copy {archive} containers-storage:{IMAGE}");
    assert_eq!(settings("crio-load.conf"), ["[Service]", &load]);
    // The empty value takes back the unit's own command; systemd refuses a second one without it.
    let start = format!("ExecStart={CRI_DOCKERD} --pod-infra-container-image={IMAGE}");
    assert_eq!(settings("cri-dockerd.conf"), ["[Service]", "ExecStart=", &start]);
}

#[test]
fn examples_say_what_they_show_and_name_the_image() {
    for file in fs::read_dir(project().join("examples")).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{path:?} does not begin with a comment");
        let mut images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
        assert!(
            images.all(|image| !image.contains("/pause:") || image == IMAGE),
            "{path:?} names another image"
        );
    }
}
