//! `cargo xtask size`: the sizes of the image, and whether they are within their budgets.

use crate::image::{Image, Recipe, Selection};
use anyhow::{Result, ensure};
use harness::markdown;
use indicatif::HumanCount;

/// The command line of `cargo xtask size`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
}

/// A part of the image, its bytes and its budget.
type Row = (String, u64, u64);

/// Builds the image and prints its sizes. Fails if one is over its budget.
pub fn run(args: &Args) -> Result<()> {
    let rows = measure(&args.selection)?;
    println!("{}", table(&rows));
    let over: Vec<_> = rows.iter().filter(|row| row.1 > row.2).map(|row| &*row.0).collect();
    ensure!(over.is_empty(), "over the budget: {}", over.join(", "));
    Ok(())
}

/// The table for the documents.
pub fn markdown() -> Result<String> {
    Ok(table(&measure(&Selection::default())?))
}

fn measure(selection: &Selection) -> Result<Vec<Row>> {
    let recipe = Recipe { selection: selection.clone(), ..Recipe::default() };
    let image = Image::build(&recipe)?;
    let mut rows = Vec::new();
    let mut archive = 0;
    for variant in &image.variants {
        let budget = variant.target.budget();
        let platform = variant.platform;
        let (binary, layer) = (variant.binary.len(), variant.compressed_layer.bytes.len());
        rows.push((format!("binary for {platform}"), binary as u64, budget.binary));
        rows.push((format!("compressed layer for {platform}"), layer as u64, budget.layer));
        archive += budget.archive;
    }
    rows.push(("archive".to_owned(), image.archive.len() as u64, archive));
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let rows = rows.iter().map(|(part, bytes, budget)| {
        [part.clone(), HumanCount(*bytes).to_string(), HumanCount(*budget).to_string()]
    });
    markdown::table(["part", "bytes", "budget"], rows)
}
