//! `cargo xtask verify`: whether an image is what these sources make.

use crate::audit;
use crate::image::{Image, Project, Recipe, digest};
use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;
use oci_spec::image::Digest;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::time::UNIX_EPOCH;

/// The command line of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// An archive that cargo xtask image wrote, or a digest (sha256:...) of an index, manifest,
    /// config, layer or binary. An archive says itself which platforms, name and time it is for
    #[arg(value_name = "DIGEST-OR-ARCHIVE")]
    subject: String,
    #[command(flatten)]
    recipe: Recipe,
}

/// Builds the image anew and compares.
///
/// For an archive the recipe is the archive's own, but for the revision: that is the one of the
/// sources that are here. For a digest it is that of the command line.
///
/// # Errors
///
/// Tells every difference.
pub fn run(args: &Args) -> Result<()> {
    if args.subject.starts_with("sha256:") {
        verify_digest(&args.subject, &args.recipe)
    } else {
        let name = &args.subject;
        let bytes = fs::read(name).with_context(|| {
            format!("{name} is no digest (sha256:...), and cannot be read as an archive")
        })?;
        verify_archive(name, bytes, &args.recipe)
    }
}

fn verify_digest(wanted: &str, recipe: &Recipe) -> Result<()> {
    let _: Digest = wanted.parse().with_context(|| format!("{wanted} is no digest"))?;
    let image = Image::build(recipe, &Project::find()?)?;
    let mut made = Vec::new();
    if image.variants.len() > 1 {
        made.push(("index".to_owned(), image.digest.to_string()));
    }
    let ours = Archive::read(image.archive)?;
    for (platform, variant) in ours.variants()? {
        let binary = variant.files.values().next().context("the layer is empty")?;
        for (part, digest) in [
            ("manifest", variant.digest),
            ("config", variant.manifest["config"]["digest"].as_str().unwrap_or_default().into()),
            ("layer", variant.manifest["layers"][0]["digest"].as_str().unwrap_or_default().into()),
            ("binary", digest(binary).to_string()),
        ] {
            made.push((format!("{part} for {platform}"), digest));
        }
    }
    let Some((part, _)) = made.iter().find(|(_, digest)| digest == wanted) else {
        let made: Vec<_> = made.iter().map(|(part, it)| format!("\n  {it}  {part}")).collect();
        bail!(
            "these sources make nothing that is {wanted}. (Is it of another commit, platform or \
             time stamp? cargo xtask verify --help.) They make{}",
            made.concat()
        );
    };
    println!("{wanted} is what these sources make: the {part}");
    Ok(())
}

fn verify_archive(name: &str, bytes: Vec<u8>, recipe: &Recipe) -> Result<()> {
    let unreadable = || format!("{name} cannot be read as an archive of an image");
    let theirs = Archive::read(bytes).with_context(unreadable)?;
    let recipe = theirs.recipe(recipe).with_context(unreadable)?;
    let image = Image::build(&recipe, &Project::find()?)?;
    let digest = image.digest.clone();
    let ours = Archive::read(image.archive)?;
    if ours.bytes == theirs.bytes {
        println!("{name} is what these sources make, byte for byte: {digest}");
        return Ok(());
    }
    let mut differences = ours.compare(&theirs).with_context(unreadable)?;
    if differences.is_empty() {
        let at = first_difference(&ours.bytes, &theirs.bytes);
        differences.push(format!("the image is the same, but the archive is not, from byte {at}"));
    }
    bail!("{name} is not what these sources make:\n  {}", differences.join("\n  "))
}

/// An archive that was read.
struct Archive {
    bytes: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

/// What it has for one platform.
struct Variant {
    digest: String,
    manifest: Value,
    config: Value,
    /// What is in the layer, by a name that tells all of its header.
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    fn read(bytes: Vec<u8>) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&*bytes).entries()? {
            // (What tar says of a file that is none of its own is mostly that file.)
            let mut entry = entry.map_err(|_| anyhow!("it is no tar archive"))?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            ensure!(files.insert(path.clone(), content).is_none(), "{path} is there twice");
        }
        Ok(Self { bytes, files })
    }

    fn json(&self, path: &str) -> Result<Value> {
        let file = self.files.get(path).with_context(|| format!("there is no {path}"))?;
        serde_json::from_slice(file).with_context(|| format!("{path} is no JSON"))
    }

    /// What a descriptor describes, if it is that.
    fn blob(&self, descriptor: &Value) -> Result<&[u8]> {
        let name = descriptor["digest"].as_str().context("a descriptor has no digest")?;
        let path = format!("blobs/{}", name.replace(':', "/"));
        let blob = self.files.get(&path).with_context(|| format!("there is no {path}"))?;
        ensure!(digest(blob).as_ref() == name, "{path} is not what its name says");
        Ok(blob)
    }

    /// What the outermost index names.
    fn root(&self) -> Result<Value> {
        Ok(self.json("index.json")?["manifests"][0].clone())
    }

    /// The parts for each platform, by its name.
    fn variants(&self) -> Result<BTreeMap<String, Variant>> {
        let root = self.root()?;
        let is_index = root["mediaType"].as_str().is_some_and(|it| it.contains(".index."));
        let descriptors = if is_index {
            serde_json::from_slice::<Value>(self.blob(&root)?)?["manifests"].clone()
        } else {
            json!([root])
        };
        let mut variants = BTreeMap::new();
        for descriptor in descriptors.as_array().context("the index has no manifests")? {
            let manifest: Value = serde_json::from_slice(self.blob(descriptor)?)?;
            let config: Value = serde_json::from_slice(self.blob(&manifest["config"])?)?;
            let mut files = BTreeMap::new();
            for layer in manifest["layers"].as_array().context("a manifest has no layers")? {
                let layer = GzDecoder::new(self.blob(layer)?);
                for entry in tar::Archive::new(layer).entries()? {
                    let mut entry = entry?;
                    let header = entry.header();
                    let name = format!(
                        "/{} (mode {:o}, owner {}:{}, time {}, type {:?})",
                        entry.path()?.display(),
                        header.mode()?,
                        header.uid()?,
                        header.gid()?,
                        header.mtime()?,
                        header.entry_type(),
                    );
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    files.insert(name, content);
                }
            }
            let words = ["os", "architecture", "variant"].map(|key| config[key].as_str());
            let platform = words.into_iter().flatten().collect::<Vec<_>>().join("/");
            let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
            variants.insert(platform, Variant { digest, manifest, config, files });
        }
        Ok(variants)
    }

    /// The recipe that it would have been made by.
    fn recipe(&self, given: &Recipe) -> Result<Recipe> {
        let variants = self.variants()?;
        let first = variants.values().next().context("it is for no platform")?;
        let root = self.root()?;
        let tag = &root["annotations"]["io.containerd.image.name"];
        let created = first.config["created"].as_str().context("it has no time of creation")?;
        let created = humantime::parse_rfc3339(created)?.duration_since(UNIX_EPOCH)?;
        let revision = &first.manifest["annotations"]["org.opencontainers.image.revision"];
        let platforms: Vec<_> = variants.keys().map(String::as_str).collect();
        let tag = tag.as_str().context("it has no name")?;
        given.of_image(tag, &platforms, revision.as_str(), created.as_secs())
    }

    /// All differences of another archive from this one.
    fn compare(&self, other: &Self) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        for file in ["oci-layout", "index.json", "manifest.json"] {
            compare_json(file, &self.json(file)?, &other.json(file)?, &mut differences);
        }
        let (ours, theirs) = (self.variants()?, other.variants()?);
        for (platform, ours) in &ours {
            let theirs = theirs.get(platform).with_context(|| format!("nothing for {platform}"))?;
            let mut compare = |part: &str, ours, theirs| {
                compare_json(&format!("{platform}: {part}"), ours, theirs, &mut differences);
            };
            compare("manifest", &ours.manifest, &theirs.manifest);
            compare("config", &ours.config, &theirs.config);
            let names: BTreeSet<_> = ours.files.keys().chain(theirs.files.keys()).collect();
            for name in names {
                match (ours.files.get(name), theirs.files.get(name)) {
                    (Some(ours), Some(theirs)) if ours == theirs => {}
                    (Some(ours), Some(theirs)) => differences
                        .push(format!("{platform}: {name}: {}", difference(ours, theirs))),
                    (Some(_), None) => differences.push(format!("{platform}: lacks {name}")),
                    _ => differences.push(format!("{platform}: has {name}, which is not ours")),
                }
            }
        }
        Ok(differences)
    }
}

/// Tells where two values differ, down to single ones.
fn compare_json(place: &str, ours: &Value, theirs: &Value, differences: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                compare_json(&format!("{place}, {key}"), &ours[key], &theirs[key], differences);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (ours, theirs)) in a.iter().zip(b).enumerate() {
                compare_json(&format!("{place}, {index}"), ours, theirs, differences);
            }
        }
        _ if ours != theirs => differences.push(format!("{place}: {theirs}, but ours is {ours}")),
        _ => {}
    }
}

fn first_difference(ours: &[u8], theirs: &[u8]) -> usize {
    let common = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    common.unwrap_or(ours.len().min(theirs.len()))
}

/// How one program differs from ours.
fn difference(ours: &[u8], theirs: &[u8]) -> String {
    let at = first_difference(ours, theirs);
    let byte = |bytes: &[u8]| bytes.get(at).map_or("its end".into(), |byte| format!("{byte:#04x}"));
    format!(
        "{} bytes, ours has {}; from byte {at:#x} on: {}, but ours has {}, {}",
        theirs.len(),
        ours.len(),
        byte(theirs),
        byte(ours),
        audit::place(ours, at)
    )
}
