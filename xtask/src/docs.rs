//! `cargo xtask docs`: the generated tables of docs/platforms.md.

use crate::image::Selection;
use crate::size;
use anyhow::Result;
use harness::target::TARGETS;
use harness::{build, markdown};
use indicatif::HumanCount;
use std::fs;

/// Updates all tables.
pub fn run() -> Result<()> {
    update("sizes", &size::table(&Selection::default())?)?;
    // This is the last because it needs compilers for all platforms.
    update("platforms", &platforms()?)
}

/// Replaces the table `name` of docs/platforms.md.
fn update(name: &str, table: &str) -> Result<()> {
    let path = build::project().join("docs/platforms.md");
    markdown::update_section(&path, &format!("cargo xtask docs: {name}"), table)
}

/// The platforms, the size of the program on each, and where it has been tested.
fn platforms() -> Result<String> {
    let mut rows = Vec::new();
    for target in TARGETS {
        let bytes = fs::metadata(target.build()?)?.len();
        let mut tested = match target.arch {
            "x86_64" => "on a real kernel and with container engines".to_owned(),
            _ => "with qemu-user".to_owned(),
        };
        for (index, kernel) in target.kernels().enumerate() {
            tested += if index == 0 { "; booted on " } else { ", " };
            tested += kernel.name;
            if kernel.page != 4 {
                tested += &format!(" (pages of {} KiB)", kernel.page);
            }
        }
        rows.push([target.platform.to_owned(), HumanCount(bytes).to_string(), tested]);
    }
    Ok(markdown::table(["platform", "bytes", "tested"], rows))
}
