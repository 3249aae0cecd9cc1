//! `cargo xtask docs`: the generated tables of docs/platforms.md.

use crate::image::Selection;
use crate::size;
use anyhow::Result;
use harness::build::project;
use harness::markdown;
use harness::target::{KERNELS, TARGETS};
use indicatif::HumanCount;
use std::fs;

/// Updates both tables.
pub fn run() -> Result<()> {
    let document = project().join("docs/platforms.md");
    let sizes = size::table(&Selection::default())?;
    markdown::update_section(&document, "cargo xtask docs: sizes", &sizes)?;
    // This is the last because it needs compilers for all platforms.
    markdown::update_section(&document, "cargo xtask docs: platforms", &platforms()?)
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
        let kernels =
            KERNELS.iter().filter(|it| it.arch == target.arch).map(|kernel| match kernel.page {
                4 => kernel.name.to_owned(),
                page => format!("{} (pages of {page} KiB)", kernel.name),
            });
        let kernels = Vec::from_iter(kernels).join(", ");
        if !kernels.is_empty() {
            tested += &format!("; booted on {kernels}");
        }
        rows.push([target.platform.to_owned(), HumanCount(bytes).to_string(), tested]);
    }
    Ok(markdown::table(["platform", "bytes", "tested"], rows))
}
