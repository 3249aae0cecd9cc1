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
    /// Bytes that the binary may have
    #[arg(long, value_name = "BYTES", default_value_t = 1536)]
    max_binary: u64,
    /// Bytes that the compressed layer may have
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    max_layer: u64,
    /// Bytes that the whole archive may have
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024)]
    max_archive: u64,
    /// Print the table as Markdown, for a README
    #[arg(long)]
    markdown: bool,
}

/// A part of the image, its bytes and its budget.
type Row = (&'static str, u64, u64);

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
fn measure(args: &Args) -> Result<[Row; 3]> {
    let sizes = Image::build(&args.recipe, &Project::find()?)?.sizes;
    Ok([
        ("binary", sizes.binary, args.max_binary),
        ("compressed layer", sizes.compressed_layer, args.max_layer),
        ("archive", sizes.archive, args.max_archive),
    ])
}

fn table(rows: &[Row], markdown: bool) -> String {
    let mut table = Table::new();
    table.load_preset(if markdown { presets::ASCII_MARKDOWN } else { presets::NOTHING });
    table.set_header(["", "bytes", "budget", "left"]);
    for &(part, bytes, budget) in rows {
        let left = HumanCount(budget.abs_diff(bytes));
        let left = if bytes > budget { format!("-{left}") } else { left.to_string() };
        let [bytes, budget] = [bytes, budget].map(|number| HumanCount(number).to_string());
        table.add_row([part, &bytes, &budget, &left]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
