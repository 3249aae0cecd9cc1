//! The images that engines load: the one that is tried, and those of the containers beside it, which
//! are made from the programs of this machine.

use crate::engine::Skip;
use crate::wait::success;
use anyhow::{Context, Result, ensure};
use harness::build::project;
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{EntryType, Header};

/// The name of the image with busybox and nothing else.
pub const BUSYBOX: &str = "localhost/busybox:static";

/// The name of the image with Debian's nginx and `ipcmk`, busybox, and the libraries they need.
pub const NGINX: &str = "localhost/nginx:debian";

/// The name of the image for another architecture.
pub const FOREIGN: &str = "localhost/pause:foreign";

/// The name of the image for all platforms.
pub const ALL: &str = "localhost/pause:all";

/// What the Dockerfile needs to find in an image to build in.
pub const BUILD_ENVIRONMENT: [&str; 3] = [
    "ENV PATH=/usr/local/rust/bin:/usr/bin",
    "ENV CARGO_HOME=/usr/local/cargo",
    "ENV CARGO_NET_OFFLINE=true",
];

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

/// The image that is tried.
#[derive(clap::Args)]
pub struct Image {
    /// Archive of the image
    #[arg(long = "image", value_name = "FILE")]
    pub archive: PathBuf,
    /// Name that the archive gives the image
    #[arg(long)]
    pub reference: String,
    /// The program that the image was made with
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Archive of the image for another architecture, named pause:foreign
    #[arg(long, value_name = "FILE")]
    foreign: Option<PathBuf>,
    /// Archive of the image for several platforms, named pause:all
    #[arg(long, value_name = "FILE")]
    all: Option<PathBuf>,
}

impl Image {
    /// The version that its name ends in.
    pub fn version(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }

    /// The bytes of `/pause` in it.
    pub fn binary(&self) -> Result<Vec<u8>> {
        fs::read(&self.binary).with_context(|| format!("cannot read {}", self.binary.display()))
    }

    /// The archive of [`FOREIGN`].
    pub fn foreign(&self) -> Result<&Path> {
        archive(&self.foreign)
    }

    /// The archive of [`ALL`].
    pub fn all(&self) -> Result<&Path> {
        archive(&self.all)
    }
}

fn archive(archive: &Option<PathBuf>) -> Result<&Path> {
    let reason = "there is no core to build it with: rustup target add, or PAUSE_FOREIGN_RUSTC";
    archive.as_deref().ok_or_else(|| Skip(reason.to_owned()).into())
}

/// The archives of [`BUSYBOX`] and [`NGINX`], which are made for the first engine.
pub fn helpers() -> Result<[&'static Path; 2]> {
    let [busybox, nginx] = ["/var/tmp/busybox.tar", "/var/tmp/nginx.tar"].map(Path::new);
    if nginx.exists() {
        return Ok([busybox, nginx]);
    }
    let mut layer = tar::Builder::new(Vec::new());
    append_busybox(&mut layer)?;
    write(busybox, BUSYBOX, &layer.into_inner()?)?;

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
    write(nginx, NGINX, &layer.into_inner()?)?;
    Ok([busybox, nginx])
}

/// Packs the root of an image to build in, from the Rust toolchain that is shown to this system, so
/// that the Dockerfile can be tried without a registry.
pub async fn toolchain() -> Result<&'static str> {
    const ARCHIVE: &str = "/var/tmp/toolchain.tar";
    ensure!(Path::new("/rust").exists(), Skip("this system has no Rust toolchain".to_owned()));
    if !Path::new(ARCHIVE).exists() {
        let script = project().join("tests/engines/toolchain-image.sh");
        success(tokio::process::Command::new("sh").arg(script).arg(ARCHIVE)).await?;
    }
    Ok(ARCHIVE)
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
