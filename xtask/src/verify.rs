//! `cargo xtask verify`: whether these sources make a given image, byte for byte.

use crate::image::{self, Image, write};
use anyhow::{Context, Result, bail};
use harness::build;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// The command line of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// Archive that cargo xtask image wrote. Platforms, reference and time are read from it
    archive: PathBuf,
}

/// Builds the image again and compares.
pub fn run(args: &Args) -> Result<()> {
    let name = args.archive.display();
    let theirs = fs::read(&args.archive).with_context(|| format!("cannot read {name}"))?;
    let recipe = recipe(&theirs);
    let recipe = recipe.with_context(|| format!("{name} is not an archive of an image"))?;
    let image = Image::new(&recipe)?;
    if image.archive == theirs {
        println!("{name} is what these sources make, byte for byte: {}", image.digest);
        return Ok(());
    }
    let ours = build::project().join("target/image/verify.tar");
    write(&ours, &image.archive)?;
    bail!(
        "{name} is not what these sources make; diffoscope can explain how it differs from {}",
        ours.display()
    )
}

/// What an archive would have been made from, if this can be read. It need not be right: all bytes are
/// compared afterwards.
fn recipe(archive: &[u8]) -> Option<image::Args> {
    let mut recipe = image::Args::default();
    for entry in tar::Archive::new(archive).entries().ok()? {
        let entry = entry.ok()?;
        recipe.timestamp = entry.header().mtime().ok()?.try_into().ok();
        let Ok(document) = serde_json::from_reader::<_, Value>(entry) else { continue };
        // The index that all is found by has the reference, a configuration has the rest.
        let names = &document["manifests"][0]["annotations"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        recipe.reference = text(&names["io.containerd.image.name"]).or(recipe.reference);
        let words = ["os", "architecture", "variant"].map(|key| document[key].as_str());
        if words[0].is_some() {
            let platform = words.into_iter().flatten().collect::<Vec<_>>().join("/");
            recipe.selection.platform.push(platform);
            let labels = &document["config"]["Labels"];
            recipe.revision = text(&labels["org.opencontainers.image.revision"]);
        }
    }
    Some(recipe).filter(|recipe| recipe.reference.is_some())
}
