//! `cargo xtask docs`: the generated tables of the documents.

use crate::image::Selection;
use crate::{audit, size};
use anyhow::Result;
use harness::target::TARGETS;
use harness::{build, markdown};
use indicatif::HumanCount;
use std::fs;

type Make = fn() -> Result<String>;

/// Every table that this command makes, by its document and the name that it has there.
const TABLES: &[(&str, &str, Make)] = &[
    ("audit.md", "audit", || audit::page(None)),
    ("platforms.md", "sizes", || size::table(&Selection::default())),
    // The last, for it takes compilers for all platforms.
    ("platforms.md", "platforms", platforms),
];

/// Updates all tables.
pub fn run() -> Result<()> {
    for (document, name, make) in TABLES {
        let path = build::project().join("docs").join(document);
        markdown::update_section(&path, &format!("cargo xtask docs: {name}"), &make()?)?;
    }
    Ok(())
}

/// The platforms, the size of the program on each, and where it has been tested.
fn platforms() -> Result<String> {
    let mut rows = Vec::new();
    for target in TARGETS {
        let bytes = fs::metadata(target.build()?)?.len();
        let mut tested = match target.qemu {
            "x86_64" => "on a real kernel and with container engines".to_owned(),
            _ => "under qemu's emulation of system calls".to_owned(),
        };
        for (index, (kernel, page)) in target.kernels.iter().enumerate() {
            tested += if index == 0 { "; booted on " } else { ", " };
            tested += kernel;
            if *page != 4 {
                tested += &format!(" (pages of {page} KiB)");
            }
        }
        rows.push([target.platform.to_owned(), HumanCount(bytes).to_string(), tested]);
    }
    Ok(markdown::table(["platform", "bytes", "tested"], rows))
}
