//! `cargo xtask verify`: whether these sources make a given image, byte for byte.

use crate::debian::{Debian, Release};
use crate::image::{Image, Recipe, Selection, sha256, write};
use anyhow::{Context, Result, bail, ensure};
use harness::build;
use serde_json::{Value, from_slice};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The command line of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Archive that cargo xtask image wrote, or digest (sha256:...) of an index, manifest, config,
    /// layer or binary. For an archive, platforms, tag and time are read from it
    #[arg(value_name = "DIGEST-OR-ARCHIVE")]
    subject: String,
    #[command(flatten)]
    recipe: Recipe,
    /// Build the archive's image on these releases of Debian, as another user; only root can do that
    #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
    debian: Vec<Release>,
}

/// Builds the image again and compares.
pub fn run(args: &Args) -> Result<()> {
    let subject = &args.subject;
    if !args.debian.is_empty() {
        return args.debian.iter().try_for_each(|release| verify_on(*release, subject));
    }
    if subject.starts_with("sha256:") {
        return verify_digest(subject, &args.recipe);
    }
    let theirs = fs::read(subject).with_context(|| {
        format!("{subject:?} is neither a digest (sha256:...) nor a file that can be read")
    })?;
    let unreadable = || format!("{subject} is not an archive of an image");
    let archive = Archive::read(&theirs).with_context(unreadable)?;
    let image = Image::build(&archive.recipe(&args.recipe).with_context(unreadable)?)?;
    if image.archive == theirs {
        println!("{subject} is what these sources make, byte for byte: {}", image.digest);
        return Ok(());
    }
    let ours = build::project().join("target/image/verify.tar");
    write(&ours, &image.archive)?;
    let mut differences = String::new();
    for (part, bytes) in image.blobs() {
        if !archive.files.values().any(|file| file == bytes) {
            differences += &format!("\n  the {part} should be {}", sha256(bytes));
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

/// Does the same in a Debian system, with this machine's Rust.
fn verify_on(release: Release, archive: &str) -> Result<()> {
    let rust = build::stdout_of(Command::new("rustc").args(["--print=sysroot"]))?;
    let default = || env::home_dir().unwrap_or_default().join(".cargo");
    let cargo = env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from);
    let name = format!("rust-{}", release.name());
    let mut debian = Debian::make(&name, release, &["gcc", "iproute2", "libc6-dev"])?;
    debian.show = vec![
        (rust.trim().into(), "/rust"),
        (cargo.join("registry"), "/registry"),
        (build::project().to_owned(), "/sources"),
    ];
    debian.add(Path::new(archive), "/pause.tar")?;
    let status = debian.run(&["sh", "-ec", include_str!("verify.sh")])?;
    ensure!(status.success(), "not verified on {}: {status}", release.name());
    Ok(())
}

fn verify_digest(wanted: &str, recipe: &Recipe) -> Result<()> {
    let image = Image::build(recipe)?;
    let binaries = image.variants.iter();
    let binaries = binaries.map(|it| (format!("binary for {}", it.platform), &it.binary));
    let mut made = String::new();
    for (part, bytes) in image.blobs().into_iter().chain(binaries) {
        let digest = sha256(bytes);
        if digest == wanted {
            println!("{wanted} is what these sources make: the {part}");
            return Ok(());
        }
        made += &format!("\n  {digest}  {part}");
    }
    bail!(
        "these sources make nothing with the digest {wanted}; it may be of another commit, platform \
         or time stamp, see cargo xtask verify --help. They make:{made}"
    )
}

/// An archive that somebody else wrote.
struct Archive {
    /// Its files by their paths.
    files: BTreeMap<String, Vec<u8>>,
    /// Time of its files, in seconds since 1970.
    timestamp: u64,
}

impl Archive {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut archive = Self { files: BTreeMap::new(), timestamp: 0 };
        // The library's own messages quote what it read, which need not be text.
        for entry in tar::Archive::new(bytes).entries().ok().context("it is not a tar archive")? {
            let mut entry = entry.ok().context("it is not a tar archive, or not a whole one")?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            archive.timestamp = entry.header().mtime()?;
            archive.files.insert(entry.path()?.to_string_lossy().into_owned(), content);
        }
        Ok(archive)
    }

    /// What it would have been made from. The commit is that of these sources, where it is known.
    fn recipe(&self, given: &Recipe) -> Result<Recipe> {
        let index = self.json("index.json")?;
        let image = &index["manifests"][0];
        let tag = image["annotations"]["io.containerd.image.name"].as_str();
        // An image for one platform has no index of its own.
        let manifests = match image["platform"] {
            Value::Null => self.blob(image)?["manifests"].clone(),
            _ => index["manifests"].clone(),
        };
        let manifests = manifests.as_array().context("its index has no manifests")?;
        let platforms = manifests.iter().map(|manifest| {
            let words =
                ["os", "architecture", "variant"].map(|key| manifest["platform"][key].as_str());
            words.into_iter().flatten().collect::<Vec<_>>().join("/")
        });
        let annotations = &self.blob(&manifests[0])?["annotations"];
        let revision = annotations["org.opencontainers.image.revision"].as_str().map(str::to_owned);
        Ok(Recipe {
            tag: Some(tag.context("it has no name")?.to_owned()),
            selection: Selection { platform: platforms.collect() },
            revision: given.revision().or(revision),
            timestamp: self.timestamp,
            ..Recipe::default()
        })
    }

    fn json(&self, path: &str) -> Result<Value> {
        let file = self.files.get(path).with_context(|| format!("it has no {path}"))?;
        from_slice(file).with_context(|| format!("{path} is not JSON"))
    }

    /// What a descriptor describes.
    fn blob(&self, descriptor: &Value) -> Result<Value> {
        let digest = descriptor["digest"].as_str().context("a digest is missing")?;
        self.json(&format!("blobs/{}", digest.replace(':', "/")))
    }
}
