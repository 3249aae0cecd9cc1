//! `cargo xtask verify`: whether these sources make a given image, byte for byte.

use crate::image::{INDEX, Image, Recipe, Selection, sha256, write};
use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use harness::build;
use serde_json::{Value, from_slice};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::time::UNIX_EPOCH;

/// The command line of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Archive that cargo xtask image wrote, or digest (sha256:...) of an index, manifest, config,
    /// layer or binary. For an archive, platforms, tag and time are read from it
    #[arg(value_name = "DIGEST-OR-ARCHIVE")]
    pub subject: String,
    #[command(flatten)]
    pub recipe: Recipe,
}

/// Builds the image again and compares.
pub fn run(args: &Args) -> Result<()> {
    let subject = &args.subject;
    if subject.starts_with("sha256:") {
        return verify_digest(subject, &args.recipe);
    }
    let theirs = fs::read(subject).with_context(|| {
        format!("{subject:?} is neither a digest (sha256:...) nor a file that can be read")
    })?;
    let unreadable = || format!("{subject} is not an archive of an image");
    let parts = Parts::read(&theirs).with_context(unreadable)?;
    let recipe = parts.recipe(&args.recipe).with_context(unreadable)?;
    let image = Image::build(&recipe)?;
    if image.archive == theirs {
        println!("{subject} is what these sources make, byte for byte: {}", image.digest);
        return Ok(());
    }
    let ours = build::project().join("target/image/verify.tar");
    write(&ours, &image.archive)?;
    let mut differences = String::new();
    for (part, digest) in &Parts::read(&image.archive)?.digests {
        match parts.digests.get(part) {
            Some(theirs) if theirs == digest => {}
            Some(theirs) => {
                differences += &format!("\n  {part}: {theirs}, but it should be {digest}")
            }
            None => differences += &format!("\n  {part}: missing, but it should be {digest}"),
        }
    }
    if differences.is_empty() {
        differences = "\n  the image is the same, but its archive is not".to_owned();
    }
    bail!(
        "{subject} is not what these sources make:{differences}\n\
         diffoscope can explain it: what they make is in {}",
        ours.display()
    )
}

fn verify_digest(wanted: &str, recipe: &Recipe) -> Result<()> {
    let is_hex = |it: u8| it.is_ascii_digit() || (b'a'..=b'f').contains(&it);
    let hex = wanted.trim_start_matches("sha256:");
    ensure!(hex.len() == 64 && hex.bytes().all(is_hex), "{wanted} is not a digest of SHA-256");
    let made = Parts::read(&Image::build(recipe)?.archive)?.digests;
    let Some((part, _)) = made.iter().find(|(_, digest)| *digest == wanted) else {
        let made: Vec<_> = made.iter().map(|(part, it)| format!("\n  {it}  {part}")).collect();
        bail!(
            "these sources make nothing with the digest {wanted}; it may be of another commit, \
             platform or time stamp, see cargo xtask verify --help. They make:{}",
            made.concat()
        );
    };
    println!("{wanted} is what these sources make: the {part}");
    Ok(())
}

/// What an archive of an image consists of.
struct Parts {
    /// Digests by what they are of, such as "config for linux/amd64".
    digests: BTreeMap<String, String>,
    tag: String,
    created: String,
    revision: Option<String>,
    platforms: Vec<String>,
}

impl Parts {
    fn read(archive: &[u8]) -> Result<Self> {
        let files = unpack(archive)?;
        let index: Value = from_slice(files.get("index.json").context("it has no index.json")?)?;
        let root = &index["manifests"][0];
        let mut parts = Self {
            digests: BTreeMap::new(),
            tag: text(&root["annotations"]["io.containerd.image.name"])?,
            created: String::new(),
            revision: None,
            platforms: Vec::new(),
        };
        let mut manifests = vec![root.clone()];
        if root["mediaType"] == INDEX {
            parts.digests.insert("index".to_owned(), text(&root["digest"])?);
            let index: Value = from_slice(blob(&files, root)?)?;
            manifests = index["manifests"].as_array().context("the index is empty")?.clone();
        }
        for descriptor in manifests {
            let manifest: Value = from_slice(blob(&files, &descriptor)?)?;
            let config: Value = from_slice(blob(&files, &manifest["config"])?)?;
            let mut layer = Vec::new();
            GzDecoder::new(blob(&files, &manifest["layers"][0])?).read_to_end(&mut layer)?;
            let layer = unpack(&layer)?;
            let words = ["os", "architecture", "variant"].map(|key| config[key].as_str());
            let platform = words.into_iter().flatten().collect::<Vec<_>>().join("/");
            for (part, digest) in [
                ("manifest", text(&descriptor["digest"])?),
                ("config", text(&manifest["config"]["digest"])?),
                ("layer", text(&manifest["layers"][0]["digest"])?),
                ("binary", sha256(layer.get("pause").context("there is no /pause")?)),
            ] {
                parts.digests.insert(format!("{part} for {platform}"), digest);
            }
            parts.created = text(&config["created"])?;
            let revision = &manifest["annotations"]["org.opencontainers.image.revision"];
            parts.revision = revision.as_str().map(str::to_owned);
            parts.platforms.push(platform);
        }
        Ok(parts)
    }

    /// The recipe that the archive would have been made with. The revision is that of these sources.
    fn recipe(&self, given: &Recipe) -> Result<Recipe> {
        let created = humantime::parse_rfc3339(&self.created)?;
        Ok(Recipe {
            tag: Some(self.tag.clone()),
            selection: Selection { platform: self.platforms.clone() },
            revision: given.revision().or(self.revision.clone()),
            timestamp: created.duration_since(UNIX_EPOCH)?.as_secs(),
        })
    }
}

/// The files of an archive by their paths.
fn unpack(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    // The library's own messages quote what it read, which need not be text.
    for entry in tar::Archive::new(archive).entries().ok().context("it is not a tar archive")? {
        let mut entry = entry.ok().context("it is not a tar archive, or not a whole one")?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(entry.path()?.to_string_lossy().into_owned(), content);
    }
    Ok(files)
}

/// What a descriptor describes.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Result<&'a [u8]> {
    let digest = text(&descriptor["digest"])?;
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let blob = files.get(&path).with_context(|| format!("it has no {path}"))?;
    ensure!(sha256(blob) == digest, "{path} does not have the digest that it is named after");
    Ok(blob)
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).context("a digest, name or time is missing")
}
