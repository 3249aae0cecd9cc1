//! `cargo xtask image`: writes the image without a container engine.

use anyhow::{Context, Result, ensure};
use base16ct::HexDisplay;
use flate2::{Compression, GzBuilder};
use harness::build;
use harness::target::{TARGETS, Target};
use regex::Regex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::env;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The command line of `cargo xtask image`, and what `cargo xtask verify` reads from an archive.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Reference of the image [default: localhost/pause:VERSION]
    #[arg(long = "tag", value_name = "REFERENCE", value_parser = reference)]
    pub reference: Option<String>,
    #[command(flatten)]
    pub selection: Selection,
    /// File to write [default: target/image/pause.tar]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also write the bare binaries and their SHA256SUMS into this new or empty directory
    #[arg(long, value_name = "DIRECTORY")]
    pub binaries: Option<PathBuf>,
    /// Commit of the sources, if git knows none.
    #[arg(skip)]
    pub revision: Option<String>,
    /// Time of everything in the image, in seconds since 1970, instead of SOURCE_DATE_EPOCH.
    #[arg(skip)]
    pub timestamp: Option<u32>,
}

/// The platforms to build for.
#[derive(clap::Args, Clone, Default)]
pub struct Selection {
    /// Platforms, separated by commas, or `all` [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<String>,
}

/// The image for one or several platforms.
pub struct Image {
    pub reference: String,
    /// Digest of its manifest, or of its index if there are several platforms.
    pub digest: String,
    revision: Option<String>,
    /// There is at least one.
    pub platforms: Vec<PlatformImage>,
    pub archive: Vec<u8>,
}

/// The image for one platform.
pub struct PlatformImage {
    pub target: &'static Target,
    pub binary: Vec<u8>,
    pub layer: Blob,
    config: Blob,
    manifest: Blob,
}

/// A file of the image that is named by its digest.
pub struct Blob {
    pub bytes: Vec<u8>,
    digest: String,
    descriptor: Value,
}

/// Writes the image to a file and prints what is in it.
pub fn run(args: &Args) -> Result<()> {
    let (image, output) = make(args)?;
    if let Some(directory) = &args.binaries {
        write_binaries(directory, &image.platforms)
            .with_context(|| format!("cannot write the binaries to {}", directory.display()))?;
    }
    let platforms: Vec<_> = image.platforms.iter().map(|it| it.target.platform).collect();
    let (reference, archive) = (&image.reference, output.display());
    println!("reference   {reference}");
    println!("platforms   {}", platforms.join(", "));
    println!("digest      {}", image.digest);
    println!("revision    {}", image.revision.as_deref().unwrap_or("unknown"));
    println!("written to  {archive}");
    println!("archive     {}", sha256(&image.archive));
    if !reference.starts_with("localhost/") {
        if let [only] = platforms[..] {
            println!(
                "\nIt is for {only} alone: pods on nodes of other architectures fail to start. \
                 --platform all makes it for all."
            );
        }
        println!(
            "\nTo push it to its registry, run:\n\n    \
             skopeo copy --all --preserve-digests 'oci-archive:{archive}' docker://{reference}"
        );
    }
    Ok(())
}

/// Writes the image to a file and returns both. If it fails there is no new file.
pub fn make(args: &Args) -> Result<(Image, PathBuf)> {
    let image = Image::new(args)?;
    let default = || build::project().join("target/image/pause.tar");
    let output = args.output.clone().unwrap_or_else(default);
    write(&output, &image.archive)?;
    Ok((image, output))
}

impl Image {
    /// Builds the release binaries and puts them into an image.
    pub fn new(args: &Args) -> Result<Self> {
        let product = product()?;
        let version = product["version"].as_str().context("the product has no version")?;
        let default = || format!("localhost/pause:{version}");
        let reference = args.reference.clone().unwrap_or_else(default);
        let revision = head()?.or_else(|| args.revision.clone());
        let timestamp = args.timestamp.map_or_else(source_date_epoch, Ok)?;
        let mut annotations = json!({
            "org.opencontainers.image.title": product["name"],
            "org.opencontainers.image.description": product["description"],
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.revision": revision,
            "org.opencontainers.image.source": product["repository"],
            "org.opencontainers.image.licenses": product["license"],
        });
        annotations.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        let targets = args.selection.targets()?.into_iter();
        let platforms = targets.map(|target| PlatformImage::new(target, &annotations, timestamp));
        let platforms = platforms.collect::<Result<Vec<_>>>()?;

        // Several platforms get an index of their own, because containerd takes two manifests of the
        // same name for one image.
        let manifests: Vec<_> = platforms.iter().map(|it| it.manifest.descriptor.clone()).collect();
        let index = (manifests.len() > 1).then(|| Blob::new(INDEX, index_of(&manifests)));
        let image = index.as_ref().unwrap_or(&platforms[0].manifest);
        let mut descriptor = image.descriptor.clone();
        // containerd and Podman read the first annotation, skopeo chooses by the second.
        descriptor["annotations"] = json!({
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
        });
        // Docker before 25 reads only manifest.json, which holds one platform.
        let native = platforms.iter().find(|it| it.target.is_native()).unwrap_or(&platforms[0]);
        let docker = json!([{
            "Config": native.config.path(),
            "RepoTags": [reference],
            "Layers": [native.layer.path()],
        }]);

        let mut files = vec![
            ("oci-layout".to_owned(), serialize(json!({ "imageLayoutVersion": "1.0.0" }))),
            ("index.json".to_owned(), index_of(&[descriptor])),
            ("manifest.json".to_owned(), serialize(docker)),
        ];
        let blobs = platforms.iter().flat_map(|it| [&it.manifest, &it.config, &it.layer]);
        files.extend(index.iter().chain(blobs).map(|blob| (blob.path(), blob.bytes.clone())));
        let archive = tar(files, 0o644, timestamp)?;
        Ok(Self { digest: image.digest.clone(), reference, revision, platforms, archive })
    }
}

/// The commit of the sources, marked if they differ from it. None without git, or if the project is not a
/// repository of its own.
fn head() -> Result<Option<String>> {
    let project = build::project();
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]);
    git.env("GIT_CEILING_DIRECTORIES", project.parent().unwrap_or(project)).env("LC_ALL", "C");
    let Ok(git) = git.current_dir(project).output() else { return Ok(None) };
    if git.status.success() {
        return Ok(Some(String::from_utf8(git.stdout)?.trim().to_owned()));
    }
    // Another error is, for example, a repository of another user: git says how to trust it.
    let error = String::from_utf8_lossy(&git.stderr);
    let is_none = error.contains("not a git repository");
    ensure!(is_none, "git cannot read the commit of the sources: {error}");
    Ok(None)
}

/// The variable that reproducible builds take their time from; 1970 without it.
fn source_date_epoch() -> Result<u32> {
    let text = env::var_os("SOURCE_DATE_EPOCH").unwrap_or_else(|| "0".into());
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}; expected seconds since 1970"))
}

impl Selection {
    /// The targets to build for, in the order of [`TARGETS`].
    pub fn targets(&self) -> Result<Vec<&'static Target>> {
        // The variant may be left out: linux/arm64 names linux/arm64/v8.
        let is_named = |name: &str, target: &Target| {
            let rest = target.platform.strip_prefix(name);
            name == "all" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("/v"))
        };
        for name in &self.platform {
            let is_known = TARGETS.iter().any(|target| is_named(name, target));
            let all = Vec::from_iter(TARGETS.iter().map(|target| target.platform)).join(", ");
            ensure!(is_known, "unknown platform {name:?}; use `all` or some of: {all}");
        }
        let is_wanted = |target: &&Target| match &self.platform[..] {
            [] => target.is_native(),
            names => names.iter().any(|name| is_named(name, target)),
        };
        let targets: Vec<_> = TARGETS.iter().filter(is_wanted).collect();
        ensure!(!targets.is_empty(), "this machine's architecture has no image; use --platform");
        Ok(targets)
    }
}

impl PlatformImage {
    fn new(target: &'static Target, annotations: &Value, timestamp: u32) -> Result<Self> {
        let binary = fs::read(target.build()?)?;
        let archive = tar(vec![("pause".to_owned(), binary.clone())], 0o755, timestamp)?;
        // Zopfli compresses better, but with floating point, which may differ between machines.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&archive)?;
        let layer = Blob::new(LAYER, gzip.finish()?);

        let created = UNIX_EPOCH + Duration::from_secs(timestamp.into());
        let created = humantime::format_rfc3339(created).to_string();
        // The platform's fields are those of the configuration, too.
        let mut config = platform(target);
        config["created"] = json!(created);
        config["config"] = json!({
            // As in Kubernetes' own pause image.
            "User": "65535:65535",
            "Entrypoint": ["/pause"],
            "WorkingDir": "/",
            "Labels": annotations,
        });
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [sha256(&archive)] });
        config["history"] = json!([{ "created": created, "created_by": "cargo xtask image" }]);
        let config = Blob::new(CONFIG, serialize(config));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor,
            "layers": [layer.descriptor],
            "annotations": annotations,
        });
        let mut manifest = Blob::new(MANIFEST, serialize(manifest));
        manifest.descriptor["platform"] = platform(target);
        Ok(Self { target, binary, layer, config, manifest })
    }
}

impl Blob {
    fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let digest = sha256(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        Self { bytes, digest, descriptor }
    }

    /// Its path in the OCI layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

/// What Cargo.toml says about the product.
fn product() -> Result<Value> {
    let mut cargo = build::cargo("metadata");
    let metadata = build::stdout_of(cargo.args(["--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    packages.find(|it| it["name"] == "pause").cloned().context("there is no package pause")
}

fn index_of(manifests: &[Value]) -> Vec<u8> {
    serialize(json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
}

/// The fields of a platform such as `linux/arm/v7`.
fn platform(target: &Target) -> Value {
    let words = target.platform.split('/');
    let fields = ["os", "architecture", "variant"].into_iter().zip(words);
    Value::Object(fields.map(|(key, word)| (key.to_owned(), word.into())).collect())
}

/// Serializes JSON, always in the same order.
fn serialize(mut value: Value) -> Vec<u8> {
    value.sort_all_objects();
    value.to_string().into_bytes()
}

/// The digest of bytes, as registries write it.
fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)))
}

/// Makes a ustar archive of files, given by path and content, that belong to root.
fn tar(files: Vec<(String, Vec<u8>)>, mode: u32, mtime: u32) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(mtime.into());
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, path, &bytes[..])?;
    }
    Ok(archive.into_inner()?)
}

/// Checks that a reference has a registry, a repository and a tag. Engines complete a shorter one, each
/// in its way. The patterns of the last two are those of the OCI Distribution Specification.
fn reference(text: &str) -> Result<String> {
    const REGISTRY: &str = r"(localhost|[A-Za-z0-9-]+([.:][A-Za-z0-9-]+)+)";
    const REPOSITORY: &str = r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+";
    const TAG: &str = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}";
    let is_complete = Regex::new(&format!("^{REGISTRY}{REPOSITORY}:{TAG}$"))?.is_match(text);
    ensure!(is_complete, "expected registry.example/repository:tag");
    Ok(text.to_owned())
}

/// Writes the binaries and SHA256SUMS into a directory that is new or empty.
fn write_binaries(directory: &Path, platforms: &[PlatformImage]) -> Result<()> {
    let parent = directory.parent().context("it is not a directory")?;
    fs::create_dir_all(parent)?;
    let mode = Permissions::from_mode(0o755);
    let new = tempfile::Builder::new().permissions(mode.clone()).tempdir_in(parent)?;
    let mut sums = String::new();
    for PlatformImage { target, binary, .. } in platforms {
        // arm64 has no other variant.
        let platform = target.platform.trim_end_matches("/v8").replace('/', "-");
        let name = format!("pause-{platform}");
        let path = new.path().join(&name);
        write(&path, binary)?;
        fs::set_permissions(path, mode.clone())?;
        sums += &format!("{}  {name}\n", sha256(binary).trim_start_matches("sha256:"));
    }
    write(&new.path().join("SHA256SUMS"), sums.as_bytes())?;
    // This replaces an empty directory, and fails if there is something in it.
    Ok(fs::rename(new.path(), directory)?)
}

/// Writes a file as a whole or not at all, and creates its directory.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> Result<()> {
        let directory = path.parent().context("it is not a file")?;
        fs::create_dir_all(directory)?;
        let mode = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(directory)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
