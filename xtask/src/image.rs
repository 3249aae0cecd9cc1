//! `cargo xtask image`: the image, written without a container engine.

use anyhow::{Context, Result, bail, ensure};
use base16ct::HexDisplay;
use cargo_metadata::{Metadata, MetadataCommand, Package};
use clap::builder::NonEmptyStringValueParser;
use flate2::{Compression, GzBuilder};
use indicatif::HumanCount;
use oci_spec::distribution::Reference;
use oci_spec::image::{
    ANNOTATION_DESCRIPTION, ANNOTATION_LICENSES, ANNOTATION_REF_NAME, ANNOTATION_REVISION,
    ANNOTATION_SOURCE, ANNOTATION_TITLE, ANNOTATION_VERSION, Arch, ConfigBuilder, Descriptor,
    Digest, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, OciLayoutBuilder, Os, Platform, PlatformBuilder, RootFsBuilder,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::env::consts::ARCH;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};
use support::artifact::{self, Flavor};

/// User and group that the image runs as: the number that stands for nobody in Kubernetes' own
/// pause image.
const USER: &str = "65535:65535";

/// The greatest time that the header of a ustar archive can hold, in seconds since 1970.
const LAST_TIME: u64 = 0o777_7777_7777;

/// The command line of `cargo xtask image`.
#[derive(clap::Args, Default)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Where to write the archive [default: target/image/pause.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What decides the bytes of the image, besides the sources.
#[derive(clap::Args, Default)]
pub struct Recipe {
    /// Reference of the image [default: localhost/pause:VERSION]
    #[arg(long, value_name = "REFERENCE", value_parser = reference)]
    tag: Option<Reference>,
    /// Commit that the sources are of [default: what git says, if it says anything]
    #[arg(long, value_name = "COMMIT", value_parser = NonEmptyStringValueParser::new())]
    revision: Option<String>,
    /// Time that everything in the image is of, in seconds since 1970
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=LAST_TIME))]
    timestamp: u64,
}

/// The image and what there is to tell about it.
pub struct Image {
    /// The name it goes by, in full.
    pub reference: Reference,
    /// Digest of its manifest, which is what a registry would call the image.
    pub digest: Digest,
    /// The commit that it is made from, where one is known.
    pub revision: Option<String>,
    /// How large its parts are.
    pub sizes: Sizes,
    archive: Vec<u8>,
}

/// Sizes of an image's parts, in bytes.
pub struct Sizes {
    /// The program.
    pub binary: u64,
    /// The layer that the program is in, an archive.
    pub layer: u64,
    /// That layer as a registry holds and sends it.
    pub compressed_layer: u64,
    /// The configuration: what to run, and as whom.
    pub config: u64,
    /// The manifest, which names configuration and layer.
    pub manifest: u64,
    /// All of it in one file.
    pub archive: u64,
}

/// Writes the image to a file and tells about it.
///
/// # Errors
///
/// When the binary cannot be built, or the file not be written. There is then no new file.
pub fn run(args: &Args) -> Result<()> {
    let (image, output) = make(args)?;
    for (part, bytes) in [
        ("binary", image.sizes.binary),
        ("layer", image.sizes.layer),
        ("compressed layer", image.sizes.compressed_layer),
        ("config", image.sizes.config),
        ("manifest", image.sizes.manifest),
        ("archive", image.sizes.archive),
    ] {
        println!("{part:16} {:>6} bytes", HumanCount(bytes).to_string());
    }
    println!("{:16} {}", "manifest digest", image.digest);
    println!("{:16} {}", "reference", image.reference);
    println!("{:16} {}", "revision", image.revision.as_deref().unwrap_or("unknown"));
    println!("{:16} {}", "written to", output.display());
    Ok(())
}

/// Writes the image to a file, and returns both.
///
/// # Errors
///
/// When the binary cannot be built, or the file not be written. There is then no new file.
pub fn make(args: &Args) -> Result<(Image, PathBuf)> {
    let project = Project::find()?;
    let image = Image::build(&args.recipe, &project)?;
    let default = || project.metadata.target_directory.join("image/pause.tar").into();
    let output = args.output.clone().unwrap_or_else(default);
    write(&output, &image.archive)
        .with_context(|| format!("cannot write the image to {}", output.display()))?;
    Ok((image, output))
}

/// What cargo knows of the product.
pub struct Project {
    metadata: Metadata,
}

impl Project {
    /// Asks cargo.
    ///
    /// # Errors
    ///
    /// When cargo cannot be run or cannot read the manifest.
    pub fn find() -> Result<Self> {
        let metadata = MetadataCommand::new()
            .current_dir(artifact::project())
            .no_deps()
            .exec()
            .context("cannot read the manifest of the project")?;
        Ok(Self { metadata })
    }

    fn product(&self) -> &Package {
        self.metadata.root_package().expect("the project's top folder holds the product")
    }

    /// What the image says about itself.
    fn annotations(&self, revision: Option<String>) -> HashMap<String, String> {
        let product = self.product();
        [
            (ANNOTATION_TITLE, Some(product.name.to_string())),
            (ANNOTATION_DESCRIPTION, product.description.clone()),
            (ANNOTATION_VERSION, Some(product.version.to_string())),
            (ANNOTATION_REVISION, revision),
            (ANNOTATION_SOURCE, product.repository.clone()),
            (ANNOTATION_LICENSES, product.license.clone()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
    }
}

impl Image {
    /// Builds the release binary and puts it into an image.
    ///
    /// # Errors
    ///
    /// When the binary cannot be built, or is for an architecture that images have no name for.
    pub fn build(recipe: &Recipe, project: &Project) -> Result<Self> {
        let reference = match &recipe.tag {
            Some(tag) => tag.clone(),
            None => reference(&format!("localhost/pause:{}", project.product().version))?,
        };
        let revision = recipe.revision.clone().or_else(revision);
        let annotations = project.annotations(revision.clone());
        // Cargo builds the product for the very target that it built this program for.
        let platform = platform(ARCH)?;
        let binary = artifact::build(Flavor::Freestanding)?;
        let binary = fs::read(&binary)
            .with_context(|| format!("cannot read the binary {}", binary.display()))?;

        let mut layer = tar::Builder::new(Vec::new());
        append(&mut layer, "pause", &binary, 0o755, recipe.timestamp)?;
        let layer = layer.into_inner()?;
        // Zopfli would save 30 bytes. But it calculates with floating point, so that nobody could
        // promise the same bytes on every machine.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&layer)?;
        let compressed_layer = Blob::new(MediaType::ImageLayerGzip, gzip.finish()?);

        let created = humantime::format_rfc3339(UNIX_EPOCH + Duration::from_secs(recipe.timestamp));
        let mut config = ImageConfigurationBuilder::default()
            .created(created.to_string())
            .architecture(platform.architecture().clone())
            .os(platform.os().clone())
            .config(
                ConfigBuilder::default()
                    .user(USER)
                    .entrypoint(["/pause".to_owned()])
                    .working_dir("/")
                    .labels(annotations.clone())
                    .build()?,
            )
            .rootfs(RootFsBuilder::default().diff_ids([digest(&layer).to_string()]).build()?)
            .history([HistoryBuilder::default()
                .created(created.to_string())
                .created_by("cargo xtask image")
                .build()?])
            .build()?;
        config.set_variant(platform.variant().clone());
        let config = Blob::json(MediaType::ImageConfig, json!(config));

        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor.clone())
            .layers([compressed_layer.descriptor.clone()])
            .annotations(annotations)
            .build()?;
        let manifest = Blob::json(MediaType::ImageManifest, json!(manifest));

        // containerd and Podman read the first, skopeo chooses by the second.
        let names = [
            ("io.containerd.image.name", reference.whole()),
            (ANNOTATION_REF_NAME, reference.tag().unwrap_or_default().to_owned()),
        ];
        let mut image = manifest.descriptor.clone();
        image.set_platform(Some(platform));
        image.set_annotations(Some(names.map(|(key, value)| (key.to_owned(), value)).into()));
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests([image])
            .build()?;
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        // Docker before 25 looks at nothing else.
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": [reference.whole()],
            "Layers": [compressed_layer.path()],
        }]);

        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in [
            ("oci-layout", &text(json!(layout))),
            ("index.json", &text(json!(index))),
            ("manifest.json", &text(docker)),
            (&manifest.path(), &manifest.bytes),
            (&config.path(), &config.bytes),
            (&compressed_layer.path(), &compressed_layer.bytes),
        ] {
            append(&mut archive, path, bytes, 0o644, recipe.timestamp)?;
        }
        let archive = archive.into_inner()?;

        let sizes = Sizes {
            binary: binary.len() as u64,
            layer: layer.len() as u64,
            compressed_layer: compressed_layer.bytes.len() as u64,
            config: config.bytes.len() as u64,
            manifest: manifest.bytes.len() as u64,
            archive: archive.len() as u64,
        };
        let digest = manifest.descriptor.digest().clone();
        Ok(Self { reference, digest, revision, sizes, archive })
    }
}

/// Something that is known by its digest.
struct Blob {
    descriptor: Descriptor,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: MediaType, bytes: Vec<u8>) -> Self {
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, digest(&bytes));
        Self { descriptor, bytes }
    }

    fn json(media_type: MediaType, value: Value) -> Self {
        Self::new(media_type, text(value))
    }

    /// Its place in the OCI layout.
    fn path(&self) -> String {
        let digest = self.descriptor.digest();
        format!("blobs/{}/{}", digest.algorithm(), digest.digest())
    }
}

/// JSON, the same for the same value: what comes from a hash map comes in any order.
fn text(mut value: Value) -> Vec<u8> {
    value.sort_all_objects();
    value.to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> Digest {
    let digest = format!("sha256:{:x}", HexDisplay(&Sha256::digest(bytes)));
    digest.parse().expect("this is the format of a digest")
}

/// Appends a file of root's to a ustar archive.
fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    bytes: &[u8],
    mode: u32,
    mtime: u64,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(archive.append(&header, bytes)?)
}

/// What an image calls the platform that Rust calls `arch` on Linux.
fn platform(arch: &str) -> Result<Platform> {
    let (architecture, variant) = match arch {
        "x86_64" => (Arch::Amd64, None),
        "aarch64" => (Arch::ARM64, Some("v8")),
        _ => bail!("images for {arch} are not known here: add it to {}", file!()),
    };
    let mut platform =
        PlatformBuilder::default().architecture(architecture).os(Os::Linux).build()?;
    platform.set_variant(variant.map(str::to_owned));
    Ok(platform)
}

/// Reads a reference the way container engines do: `pause` is `docker.io/library/pause:latest`.
fn reference(text: &str) -> Result<Reference> {
    let reference: Reference = text.parse()?;
    ensure!(reference.digest().is_none(), "the digest comes from the image, give a tag alone");
    ensure!(text.is_ascii(), "letters must be of ASCII");
    let lower = reference.repository().to_ascii_lowercase() == reference.repository();
    ensure!(lower, "the repository must be lowercase");
    Ok(reference)
}

/// The commit that the sources are of, marked where they differ from it. Nothing without git, or
/// where the project is no repository of its own.
fn revision() -> Option<String> {
    let git = Command::new("git")
        .args(["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"])
        .current_dir(artifact::project())
        .env("GIT_CEILING_DIRECTORIES", artifact::project().parent()?)
        .output()
        .ok()?;
    let revision = String::from_utf8(git.stdout).ok()?;
    git.status.success().then(|| revision.trim().to_owned())
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
