//! `cargo xtask image`: the image, written without a container engine.

use anyhow::{Context, Result, ensure};
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
use support::artifact::{self, TARGETS, Target};

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
    #[command(flatten)]
    selection: Selection,
    /// Commit that the sources are of [default: what git says, if it says anything]
    #[arg(long, value_name = "COMMIT", value_parser = NonEmptyStringValueParser::new())]
    revision: Option<String>,
    /// Time that everything in the image is of, in seconds since 1970
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=LAST_TIME))]
    timestamp: u64,
}

/// Which platforms.
#[derive(clap::Args, Default)]
pub struct Selection {
    /// Platforms, by commas, or `all` [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', value_parser = platforms)]
    platform: Vec<Platforms>,
}

/// What one value of `--platform` names.
#[derive(Clone)]
struct Platforms(Vec<&'static Target>);

/// The image and what there is to tell about it.
pub struct Image {
    /// The name it goes by, in full.
    pub reference: Reference,
    /// Digest of its manifest, or of its index where there are several platforms: what a registry
    /// would call the image.
    pub digest: Digest,
    /// The commit that it is made from, where one is known.
    pub revision: Option<String>,
    /// What there is of it for each platform; one at least.
    pub variants: Vec<Variant>,
    /// Bytes of all of it in one file.
    pub archive_size: u64,
    /// That file.
    pub archive: Vec<u8>,
}

/// The image for one platform.
pub struct Variant {
    /// What the platform is called.
    pub platform: &'static str,
    /// How large its parts are.
    pub sizes: Sizes,
    target: &'static Target,
    manifest: Blob,
    config: Blob,
    compressed_layer: Blob,
}

/// Sizes of a variant's parts, in bytes.
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
}

/// Writes the image to a file and tells about it.
///
/// # Errors
///
/// When the binary cannot be built, or the file not be written. There is then no new file.
pub fn run(args: &Args) -> Result<()> {
    let (image, output) = make(args)?;
    let tell = |part: &str, bytes: u64| {
        println!("{part:16} {:>6} bytes", HumanCount(bytes).to_string());
    };
    for variant in &image.variants {
        println!("{:16} {}", "platform", variant.platform);
        tell("binary", variant.sizes.binary);
        tell("layer", variant.sizes.layer);
        tell("compressed layer", variant.sizes.compressed_layer);
        tell("config", variant.sizes.config);
        tell("manifest", variant.sizes.manifest);
        println!("{:16} {}", "manifest digest", variant.manifest.descriptor.digest());
    }
    tell("archive", image.archive_size);
    if image.variants.len() > 1 {
        println!("{:16} {}", "index digest", image.digest);
    }
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
        let variants = recipe
            .selection
            .targets()?
            .into_iter()
            .map(|target| Variant::build(target, &annotations, recipe.timestamp))
            .collect::<Result<Vec<_>>>()?;

        // containerd and Podman read the first, skopeo chooses by the second.
        let names = [
            ("io.containerd.image.name", reference.whole()),
            (ANNOTATION_REF_NAME, reference.tag().unwrap_or_default().to_owned()),
        ];
        let manifests = variants.iter().map(Variant::descriptor).collect::<Result<Vec<_>>>()?;
        // Several platforms are an index of their own: containerd takes two manifests of the same
        // name for one image, the last.
        let (mut image, inner) = match <[Descriptor; 1]>::try_from(manifests) {
            Ok([manifest]) => (manifest, None),
            Err(manifests) => {
                let index = Blob::json(MediaType::ImageIndex, index(manifests)?);
                (index.descriptor.clone(), Some(index))
            }
        };
        let digest = image.digest().clone();
        image.set_annotations(Some(names.map(|(key, value)| (key.to_owned(), value)).into()));
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        // Docker before 25 looks at nothing else, and it knows one platform.
        let native = variants.iter().find(|variant| variant.target.is_native());
        let native = native.unwrap_or(&variants[0]);
        let docker = json!([{
            "Config": native.config.path(),
            "RepoTags": [reference.whole()],
            "Layers": [native.compressed_layer.path()],
        }]);

        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in [
            ("oci-layout", text(json!(layout))),
            ("index.json", text(index(vec![image])?)),
            ("manifest.json", text(docker)),
        ] {
            append(&mut archive, path, &bytes, 0o644, recipe.timestamp)?;
        }
        let blobs = variants.iter().flat_map(|it| [&it.manifest, &it.config, &it.compressed_layer]);
        for blob in inner.iter().chain(blobs) {
            append(&mut archive, &blob.path(), &blob.bytes, 0o644, recipe.timestamp)?;
        }
        let archive = archive.into_inner()?;
        let archive_size = archive.len() as u64;
        Ok(Self { reference, digest, revision, variants, archive_size, archive })
    }
}

impl Recipe {
    /// The recipe of an image that is there, by its name, its platforms and its time. It is made
    /// from the sources that are here, so the revision is theirs; where nobody knows it, the image's.
    ///
    /// # Errors
    ///
    /// When the image has a name or a platform that is not made here.
    pub fn of_image(
        &self,
        tag: &str,
        names: &[&str],
        claimed: Option<&str>,
        timestamp: u64,
    ) -> Result<Self> {
        let revision = self.revision.clone().or_else(revision);
        let platform = names.iter().map(|name| platforms(name)).collect::<Result<_>>()?;
        Ok(Self {
            tag: Some(reference(tag)?),
            selection: Selection { platform },
            revision: revision.or_else(|| claimed.map(str::to_owned)),
            timestamp,
        })
    }
}

impl Selection {
    /// The targets to build for, each once, in the order of [`TARGETS`].
    ///
    /// # Errors
    ///
    /// When none is named, and this machine is none.
    pub fn targets(&self) -> Result<Vec<&'static Target>> {
        let is_wanted = |target: &Target| match &*self.platform {
            [] => target.is_native(),
            some => some.iter().flat_map(|it| &it.0).any(|it| it.triple == target.triple),
        };
        let targets: Vec<_> = TARGETS.iter().filter(|target| is_wanted(target)).collect();
        ensure!(!targets.is_empty(), "images for {} are not known here, give --platform", ARCH);
        Ok(targets)
    }
}

impl Variant {
    /// Builds the release binary for a target and what an image needs around it.
    fn build(
        target: &'static Target,
        annotations: &HashMap<String, String>,
        timestamp: u64,
    ) -> Result<Self> {
        let name = target.platform.context("this target has no platform of its own")?;
        let platform = platform(name)?;
        let binary = target.build().with_context(|| format!("there is no image for {name}"))?;
        let binary = fs::read(&binary)
            .with_context(|| format!("cannot read the binary {}", binary.display()))?;

        let mut layer = tar::Builder::new(Vec::new());
        append(&mut layer, "pause", &binary, 0o755, timestamp)?;
        let layer = layer.into_inner()?;
        // Zopfli would save 30 bytes. But it calculates with floating point, so that nobody could
        // promise the same bytes on every machine.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&layer)?;
        let compressed_layer = Blob::new(MediaType::ImageLayerGzip, gzip.finish()?);

        let created = humantime::format_rfc3339(UNIX_EPOCH + Duration::from_secs(timestamp));
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
            .annotations(annotations.clone())
            .build()?;
        let manifest = Blob::json(MediaType::ImageManifest, json!(manifest));
        let sizes = Sizes {
            binary: binary.len() as u64,
            layer: layer.len() as u64,
            compressed_layer: compressed_layer.bytes.len() as u64,
            config: config.bytes.len() as u64,
            manifest: manifest.bytes.len() as u64,
        };
        Ok(Self { platform: name, sizes, target, manifest, config, compressed_layer })
    }

    /// Its manifest, as an index names it.
    fn descriptor(&self) -> Result<Descriptor> {
        let mut descriptor = self.manifest.descriptor.clone();
        descriptor.set_platform(Some(platform(self.platform)?));
        Ok(descriptor)
    }
}

/// An index of manifests, or of one index.
fn index(entries: Vec<Descriptor>) -> Result<Value> {
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(entries)
        .build()?;
    Ok(json!(index))
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

/// What a registry calls these bytes.
pub fn digest(bytes: &[u8]) -> Digest {
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

/// Reads what stands between the slashes: `linux/arm/v7`.
fn platform(name: &str) -> Result<Platform> {
    let mut words = name.split('/');
    let os = words.next().unwrap_or_default();
    let architecture = words.next().unwrap_or_default();
    let mut platform = PlatformBuilder::default()
        .os(Os::from(os))
        .architecture(Arch::from(architecture))
        .build()?;
    platform.set_variant(words.next().map(str::to_owned));
    Ok(platform)
}

/// Reads a value of `--platform`. The variant may be left out.
fn platforms(text: &str) -> Result<Platforms> {
    let named = |name: &str| {
        let rest = name.strip_prefix(text);
        text == "all" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("/v"))
    };
    let found: Vec<_> =
        TARGETS.iter().filter(|target| target.platform.is_some_and(named)).collect();
    let known: Vec<_> = TARGETS.iter().filter_map(|target| target.platform).collect();
    ensure!(!found.is_empty(), "there is no such platform, but all and {}", known.join(", "));
    Ok(Platforms(found))
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
///
/// # Errors
///
/// When it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
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
