//! The configuration files that people copy: each is valid in its format, names the image, and tells
//! what it was run with. Only real engines show that they work: `cargo xtask engines`.

use anyhow::{Context, Result, ensure};
use harness::build::project;
use ini::Ini;
use serde_json::Value;
use std::fs;
use toml_edit::DocumentMut;

/// The image that the files name.
const IMAGE: &str = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));

/// The command of cri-dockerd's own unit, 0.2.4 to 0.4.1. No package of Debian has that unit.
const CRI_DOCKERD: &str = "/usr/bin/cri-dockerd --container-runtime-endpoint fd://";

fn read(name: &str) -> Result<String> {
    let path = project().join("deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn toml(name: &str) -> Result<DocumentMut> {
    Ok(read(name)?.parse()?)
}

/// The values of `key` in the [Service] section of a systemd drop-in.
fn service(name: &str, key: &str) -> Result<Vec<String>> {
    let drop_in = Ini::load_from_str(&read(name)?)?;
    let service = drop_in.section(Some("Service")).context("no [Service]")?;
    Ok(service.get_all(key).map(str::to_owned).collect())
}

#[test]
fn every_file_says_where_it_goes_and_what_it_was_run_with() -> Result<()> {
    for file in fs::read_dir(project().join("deploy"))? {
        let name = file?.file_name().into_string().expect("the names are ASCII");
        let text = read(&name)?;
        for line in ["# Copy this to /etc/", "# Run with: "] {
            ensure!(text.lines().any(|it| it.starts_with(line)), "{name} has no line {line:?}");
        }
    }
    Ok(())
}

#[test]
fn containerd_1() -> Result<()> {
    let config = toml("containerd-1.toml")?;
    assert_eq!(config["version"].as_integer(), Some(2));
    let plugin = &config["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(plugin["sandbox_image"].as_str(), Some(IMAGE));
    Ok(())
}

#[test]
fn containerd_2() -> Result<()> {
    let config = toml("containerd-2.toml")?;
    assert_eq!(config["version"].as_integer(), Some(3));
    let pinned = &config["plugins"]["io.containerd.cri.v1.images"]["pinned_images"];
    assert_eq!(pinned["sandbox"].as_str(), Some(IMAGE));
    Ok(())
}

#[test]
fn crio() -> Result<()> {
    let config = toml("crio.conf")?;
    assert_eq!(config["crio"]["image"]["pause_image"].as_str(), Some(IMAGE));
    assert_eq!(config["crio"]["image"]["pause_command"].as_str(), Some("/pause"));
    Ok(())
}

#[test]
fn crio_load_adds_to_the_unit_and_replaces_nothing() -> Result<()> {
    let archive = "oci-archive:/usr/local/share/pause.tar";
    let load = format!("-/usr/bin/skopeo copy {archive} containers-storage:{IMAGE}");
    assert_eq!(service("crio-load.conf", "ExecStartPre")?, [load]);
    assert_eq!(service("crio-load.conf", "ExecStart")?, [""; 0]);
    Ok(())
}

#[test]
fn k3s() -> Result<()> {
    let config: Value = serde_saphyr::from_str(&read("k3s.yaml")?)?;
    assert_eq!(config, serde_json::json!({ "pause-image": IMAGE }));
    Ok(())
}

#[test]
fn rke2_names_a_registry_with_a_dot() -> Result<()> {
    let image = IMAGE.replace("localhost", "pause.internal");
    let text = read("rke2.yaml")?;
    let config: Value = serde_saphyr::from_str(&text)?;
    assert_eq!(config, serde_json::json!({ "pause-image": image }));
    ensure!(
        text.contains(&format!("cargo xtask image --tag {image}\n")),
        "made under another name"
    );
    Ok(())
}

#[test]
fn podman() -> Result<()> {
    let config = toml("podman-containers.conf")?;
    assert_eq!(config["engine"]["infra_image"].as_str(), Some(IMAGE));
    Ok(())
}

#[test]
fn cri_dockerd_has_the_options_of_the_unit_and_one_more() -> Result<()> {
    // The empty value takes back the unit's own command; systemd refuses a second one without it.
    let start = format!("{CRI_DOCKERD} --pod-infra-container-image={IMAGE}");
    assert_eq!(service("cri-dockerd.conf", "ExecStart")?, ["", &start]);
    Ok(())
}
