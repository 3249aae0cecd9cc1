//! The configuration that people copy says what it is meant to, to a parser of its format. Which of
//! these files an engine was run with the README tells.

use anyhow::{Context, Result};
use ini::Ini;
use serde_json::Value;
use std::fs;
use support::artifact::project;
use toml_edit::DocumentMut;

/// What every file is to name.
const IMAGE: &str = concat!("localhost/pause:", env!("CARGO_PKG_VERSION"));

fn deployed(name: &str) -> Result<String> {
    let path = project().join("deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn toml(name: &str) -> Result<DocumentMut> {
    Ok(deployed(name)?.parse()?)
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
fn k3s() -> Result<()> {
    let config: Value = serde_saphyr::from_str(&deployed("k3s.yaml")?)?;
    assert_eq!(config, serde_json::json!({ "pause-image": IMAGE }));
    Ok(())
}

#[test]
fn cri_dockerd() -> Result<()> {
    let unit = Ini::load_from_str(&deployed("cri-dockerd.conf")?)?;
    let service = unit.section(Some("Service")).context("no [Service]")?;
    let starts: Vec<_> = service.get_all("ExecStart").collect();
    // An empty one takes back the unit's own; systemd refuses a second one without it.
    let [empty, start] = starts[..] else { panic!("{starts:?}") };
    assert_eq!(empty, "");
    let option = format!("--pod-infra-container-image={IMAGE}");
    let words: Vec<_> = start.split_whitespace().collect();
    assert_eq!(words[0], "/usr/bin/cri-dockerd");
    assert!(words.contains(&&*option), "{words:?}");
    Ok(())
}
