//! The image of the containers beside pause: busybox and nothing else.

use anyhow::Result;
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Command;
use tar::{EntryType, Header};

/// Its name.
pub const REFERENCE: &str = "localhost/busybox:static";

/// Writes its archive to `path`, in the format that every engine loads: that of `docker save`.
///
/// # Errors
///
/// When busybox cannot be run or read, or the file not be written.
pub fn write(path: &Path) -> Result<()> {
    let busybox = which::which("busybox")?;
    let list = Command::new(&busybox).arg("--list").output()?;
    let applets = String::from_utf8(list.stdout)?;

    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "bin/busybox", &fs::read(&busybox)?, 0o755)?;
    // It names itself among them.
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let layer = layer.into_inner()?;

    // Architecture and system are this machine's.
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = ImageConfigurationBuilder::default()
        .config(ConfigBuilder::default().env(["PATH=/bin".to_owned()]).build()?)
        .rootfs(RootFsBuilder::default().diff_ids([format!("sha256:{digest}")]).build()?)
        .build()?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [REFERENCE], "Layers": ["layer.tar"] }]);

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    append(&mut archive, "config.json", config.to_string()?.as_bytes(), 0o644)?;
    append(&mut archive, "layer.tar", &layer, 0o644)?;
    Ok(fs::write(path, archive.into_inner()?)?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}
