//! `cargo xtask size`: the sizes of the image, and whether they are within their budgets.

use crate::image::{Args, Image, PlatformImage, Selection};
use anyhow::{Result, ensure};
use harness::markdown;
use indicatif::HumanCount;

/// Builds the image and returns its sizes. Fails if one is over its budget.
pub fn table(selection: &Selection) -> Result<String> {
    let image = Image::new(&Args { selection: selection.clone(), ..Args::default() })?;
    let mut parts = Vec::new();
    let mut archive = 0;
    for PlatformImage { target, binary, layer, .. } in &image.platforms {
        let (platform, budget) = (target.platform, target.budget());
        parts.push((format!("binary for {platform}"), binary.len(), budget.binary));
        parts.push((format!("compressed layer for {platform}"), layer.bytes.len(), budget.layer));
        archive += budget.archive;
    }
    parts.push(("archive".to_owned(), image.archive.len(), archive));
    let over = parts.iter().filter(|(_, bytes, budget)| *bytes as u64 > *budget);
    let over = over.map(|(part, bytes, budget)| format!("{part} ({bytes} of {budget} bytes)"));
    let over = Vec::from_iter(over).join(", ");
    ensure!(over.is_empty(), "over the budget: {over}");
    let rows = parts.into_iter().map(|(part, bytes, budget)| {
        [part, HumanCount(bytes as u64).to_string(), HumanCount(budget).to_string()]
    });
    Ok(markdown::table(["part", "bytes", "budget"], rows))
}
