//! `cargo xtask size`: whether the image is still as small as promised.

use crate::image::{Image, Project, Recipe};
use anyhow::{Result, ensure};
use clap::Parser as _;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;

/// The command line of `cargo xtask size`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Bytes that a binary may have [default: 1280 for linux/amd64, 2048 for others]
    #[arg(long, value_name = "BYTES")]
    max_binary: Option<u64>,
    /// Bytes that a compressed layer may have [default: 1024 for linux/amd64, 1536 for others]
    #[arg(long, value_name = "BYTES")]
    max_layer: Option<u64>,
    /// Bytes that the whole archive may have [default: 16384 for each platform]
    #[arg(long, value_name = "BYTES")]
    max_archive: Option<u64>,
    /// Print the table as Markdown, for a README
    #[arg(long)]
    markdown: bool,
}

/// A part of the image, its bytes and its budget.
type Row = (String, u64, u64);

/// Measures the image and prints its sizes against their budgets. No file is written.
///
/// # Errors
///
/// When a size is over its budget, all of these by name; when there is no image to measure.
pub fn run(args: &Args) -> Result<()> {
    let rows = measure(args)?;
    println!("{}", table(&rows, args.markdown));
    let over: Vec<_> = rows
        .iter()
        .filter(|(_, bytes, budget)| bytes > budget)
        .map(|(part, bytes, budget)| format!("{part} by {} bytes", HumanCount(bytes - budget)))
        .collect();
    ensure!(over.is_empty(), "over the budget: {}", over.join(", "));
    Ok(())
}

/// The table for the README: the budgets as they are by default.
///
/// # Errors
///
/// When there is no image to measure.
pub fn markdown() -> Result<String> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        args: Args,
    }
    Ok(table(&measure(&Defaults::parse_from([""]).args)?, true))
}

/// The image that is made.
fn measure(args: &Args) -> Result<Vec<Row>> {
    let image = Image::build(&args.recipe, &Project::find()?)?;
    let mut rows = Vec::new();
    for variant in &image.variants {
        let (binary, layer) =
            if variant.platform == "linux/amd64" { (1280, 1024) } else { (2048, 1536) };
        for (part, bytes, budget) in [
            ("binary", variant.sizes.binary, args.max_binary.unwrap_or(binary)),
            ("compressed layer", variant.sizes.compressed_layer, args.max_layer.unwrap_or(layer)),
        ] {
            let part = match image.variants.len() {
                1 => part.to_owned(),
                _ => format!("{}: {part}", variant.platform),
            };
            rows.push((part, bytes, budget));
        }
    }
    let budget = args.max_archive.unwrap_or(16 * 1024 * image.variants.len() as u64);
    rows.push(("archive".to_owned(), image.archive_size, budget));
    Ok(rows)
}

fn table(rows: &[Row], markdown: bool) -> String {
    let mut table = Table::new();
    table.load_preset(if markdown { presets::ASCII_MARKDOWN } else { presets::NOTHING });
    table.set_header(["", "bytes", "budget", "left"]);
    for (part, bytes, budget) in rows {
        let left = HumanCount(budget.abs_diff(*bytes));
        let left = if bytes > budget { format!("-{left}") } else { left.to_string() };
        let [bytes, budget] = [bytes, budget].map(|number| HumanCount(*number).to_string());
        table.add_row([part, &bytes, &budget, &left]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
