//! `cargo xtask docs`: the generated tables of the documents.

use crate::{audit, size};
use anyhow::{Result, ensure};
use harness::attacks::{ATTACKERS, ATTACKS};
use harness::build;
use harness::markdown::{self, Mode};
use harness::target::TARGETS;
use indicatif::HumanCount;
use std::fs;
use std::path::PathBuf;

/// The command line of `cargo xtask docs`.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing, and fail if a table is out of date
    #[arg(long)]
    check: bool,
}

type Make = fn() -> Result<String>;

/// Every table that this command makes, by the name that the documents call for it with.
const TABLES: &[(&str, Make)] = &[
    ("attacks", attacks),
    ("audit", audit::page),
    ("sizes", size::markdown),
    // The last, for it takes compilers for all platforms.
    ("platforms", platforms),
];

/// Writes or checks all tables in README.md and docs/.
pub fn run(args: &Args) -> Result<()> {
    let mode = if args.check { Mode::Check } else { Mode::Write };
    let mut documents = vec![build::project().join("README.md")];
    for entry in fs::read_dir(build::project().join("docs"))? {
        documents.push(entry?.path());
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    for (name, make) in TABLES {
        let command = format!("cargo xtask docs: {name}");
        let mark = format!("<!-- {command} -->");
        let wants = |path: &&PathBuf| fs::read_to_string(path).is_ok_and(|it| it.contains(&mark));
        let wanted: Vec<_> = documents.iter().filter(wants).collect();
        ensure!(!wanted.is_empty(), "no document has the line {mark}");
        let table = make()?;
        for document in wanted {
            markdown::update_section(document, &command, &table, mode)?;
        }
    }
    Ok(())
}

/// What a hostile container tries, and what comes of it.
fn attacks() -> Result<String> {
    let [user, _, _, root, ..] = &ATTACKERS;
    let rows = ATTACKS.iter().map(|attack| {
        let [user, root] = [user, root].map(|attacker| (attacker.outcome)(attack).to_owned());
        [attack.attempt.to_owned(), user, root, format!("`{}`", attack.name)]
    });
    Ok(markdown::table(["attempt on PID 1", "by its user", "by root", "test"], rows))
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
