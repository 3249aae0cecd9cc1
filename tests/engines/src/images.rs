//! The images of the containers beside pause, made from the programs of this machine.

use anyhow::{Context, Result, ensure};
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use tar::{EntryType, Header};

/// The name of the image with busybox and nothing else.
pub const BUSYBOX: &str = "localhost/busybox:static";

/// The name of the image with Debian's nginx and `ipcmk`, busybox, and the libraries they need.
pub const NGINX: &str = "localhost/nginx:debian";

/// The programs that they are made of and with.
pub const PROGRAMS: [&str; 4] = ["busybox", "nginx", "ipcmk", "ldd"];

/// Serves what is in the folder that Debian's nginx serves by itself, in the foreground.
const NGINX_CONFIGURATION: &str = "\
daemon off;
user root;
worker_processes 2;
error_log stderr;
pid /nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /body;
    proxy_temp_path /proxy;
    fastcgi_temp_path /fastcgi;
    uwsgi_temp_path /uwsgi;
    scgi_temp_path /scgi;
    server {
        listen 80;
        root /usr/share/nginx/html;
    }
}
";

/// Writes the archive of [`BUSYBOX`] to `path`.
///
/// # Errors
///
/// When busybox cannot be run or read, or the file not be written.
pub fn write_busybox(path: &Path) -> Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    append_busybox(&mut layer)?;
    write(path, BUSYBOX, &layer.into_inner()?)
}

/// Writes the archive of [`NGINX`] to `path`.
///
/// # Errors
///
/// When a program cannot be run or read, or the file not be written.
pub fn write_nginx(path: &Path) -> Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    append_busybox(&mut layer)?;
    let mut libraries = BTreeSet::new();
    for name in ["nginx", "ipcmk"] {
        let program = which::which(name)?;
        append(&mut layer, &format!("bin/{name}"), &fs::read(&program)?, 0o755)?;
        let list = Command::new("ldd").arg(&program).output()?;
        ensure!(list.status.success(), "ldd {}: {}", program.display(), list.status);
        let list = String::from_utf8(list.stdout)?;
        // The kernel's own library is no file, and has no path.
        let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(paths.map(str::to_owned));
    }
    for library in libraries {
        append(&mut layer, library.trim_start_matches('/'), &fs::read(&library)?, 0o755)?;
    }
    append(&mut layer, "etc/nginx/nginx.conf", NGINX_CONFIGURATION.as_bytes(), 0o644)?;
    append(&mut layer, "etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644)?;
    append(&mut layer, "etc/group", b"root:x:0:\n", 0o644)?;
    write(path, NGINX, &layer.into_inner()?)
}

/// Adds busybox under all of its names.
fn append_busybox(layer: &mut tar::Builder<Vec<u8>>) -> Result<()> {
    let busybox = which::which("busybox")?;
    let list = Command::new(&busybox).arg("--list").output()?;
    let applets = String::from_utf8(list.stdout)?;
    append(layer, "bin/busybox", &fs::read(&busybox)?, 0o755)?;
    // It names itself among them.
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(())
}

/// Writes an archive in the format that every engine loads: that of `docker save`.
fn write(path: &Path, reference: &str, layer: &[u8]) -> Result<()> {
    // Architecture and system are this machine's.
    let digest: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = ImageConfigurationBuilder::default()
        .config(ConfigBuilder::default().env(["PATH=/bin".to_owned()]).build()?)
        .rootfs(RootFsBuilder::default().diff_ids([format!("sha256:{digest}")]).build()?)
        .build()?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"] }]);

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    append(&mut archive, "config.json", config.to_string()?.as_bytes(), 0o644)?;
    append(&mut archive, "layer.tar", layer, 0o644)?;
    fs::write(path, archive.into_inner()?).with_context(|| format!("cannot write {path:?}"))
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}
