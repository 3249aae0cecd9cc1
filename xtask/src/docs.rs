//! `cargo xtask docs`: the tables of the documents, filled in by the commands that know.

use crate::{audit, size};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use std::fs;
use std::process::Command;
use support::artifact::{self, Flavor, Kernel, TARGETS};
use support::attacks::{ATTACKS, Attack};

/// The command line of `cargo xtask docs`.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail when a table is out of date
    #[arg(long)]
    check: bool,
}

const DOCUMENTS: &[&str] =
    &["README.md", "docs/audit.md", "docs/how-it-works.md", "docs/security.md"];

/// Around each table: the name of what fills it in stands between the two.
const BEGIN: &str = "<!-- cargo xtask docs: ";
const BEGIN_END: &str = " -->\n";
const END: &str = "<!-- end -->";

/// Fills in the tables, or checks that they are as they would be filled in.
///
/// # Errors
///
/// When a table cannot be made, or, if only checked, is out of date.
pub fn run(args: &Args) -> Result<()> {
    for document in DOCUMENTS {
        let path = artifact::project().join(document);
        let old = fs::read_to_string(&path).with_context(|| format!("cannot read {document}"))?;
        let new = fill_in(&old).with_context(|| format!("cannot fill in {document}"))?;
        ensure!(
            old == new || !args.check,
            "a table of {document} is out of date: run cargo xtask docs and commit what it writes"
        );
        if old != new {
            fs::write(&path, new).with_context(|| format!("cannot write {document}"))?;
        }
    }
    Ok(())
}

/// The document with every table made anew.
fn fill_in(document: &str) -> Result<String> {
    let mut new = String::new();
    let mut rest = document;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, after) = after.split_once(BEGIN_END).context("a table has no name")?;
        let (_, after) = after.split_once(END).with_context(|| format!("{name} has no end"))?;
        let table = match name {
            "attacks" => attacks(),
            "sizes" => size::markdown()?,
            "audit" => audit::page()?,
            "bytes" => bytes()?,
            "calls" => audit::names()?,
            "platforms" => platforms()?,
            name => bail!("there is no table {name}"),
        };
        new += &format!("{before}{BEGIN}{name}{BEGIN_END}\n{table}\n\n{END}");
        rest = after;
    }
    Ok(new + rest)
}

/// What a hostile container tries, and what comes of it.
fn attacks() -> String {
    let row = |attack: &Attack| {
        let test = format!("`{}`", attack.name);
        [attack.attempt.to_owned(), attack.user.to_string(), attack.root.to_string(), test]
    };
    let header = ["attempt on PID 1", "by user 65535", "by root", "test"];
    markdown(header, ATTACKS.iter().map(row).collect())
}

/// A table in Markdown.
pub fn markdown<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    table.trim_fmt()
}

/// What the program is built for, how large it is there, and what it has been tried on.
fn platforms() -> Result<String> {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(["platform", "bytes", "tested"]);
    for target in TARGETS {
        let platform = target.platform.unwrap_or(match target.triple {
            "thumbv7neon-unknown-linux-gnueabihf" => "linux/arm/v7, compiled to Thumb",
            triple => triple,
        });
        let bytes = fs::metadata(target.build()?)?.len();
        let tested = match target.emulator {
            "x86_64" => "on the real kernel, and with container engines".to_owned(),
            _ => "under qemu's emulation of system calls".to_owned() + &booted(target.kernels),
        };
        table.add_row([platform, &HumanCount(bytes).to_string(), &tested]);
    }
    table.column_mut(1).context("a column")?.set_cell_alignment(CellAlignment::Right);
    Ok(table.trim_fmt())
}

/// On what real kernels tests/boot.rs starts it, if on any.
fn booted(kernels: &[Kernel]) -> String {
    if kernels.is_empty() {
        return String::new();
    }
    let pages: Vec<_> = kernels.iter().map(|kernel| kernel.page.to_string()).collect();
    format!("; booted on real kernels with pages of {} KiB", pages.join(" and "))
}

/// What each byte of the binary is for, as the linker tells it.
fn bytes() -> Result<String> {
    let map = artifact::project().join("target/map");
    let status = Command::new("cargo")
        .current_dir(artifact::project())
        .args(["rustc", "--release", "--quiet", "--package=pause", "--"])
        .arg(format!("-Clink-arg=-Wl,-Map={}", map.display()))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo rustc: {status}");
    let file = fs::metadata(artifact::build(Flavor::Freestanding)?)?.len();

    let mut rows = Vec::new();
    let mut text = 0;
    let map = fs::read_to_string(map)?;
    // Address, load address, size and alignment; then what it is, further right the finer it is:
    // a section of the file, one of the compiler's, a symbol.
    let mut lines = map.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        let size = words.nth(2).and_then(|size| u64::from_str_radix(size, 16).ok());
        (size.unwrap_or(0), words.skip(1).collect::<Vec<_>>().join(" "))
    });
    while let Some((size, what)) = lines.next() {
        if what.contains(":(.rodata") {
            text += size;
        } else if what.contains(":(.text") || what.contains(":(.headers") {
            let (_, symbol) = lines.next().context("a function has no name")?;
            let name = symbol.rsplit_once("::h").map_or(&*symbol, |(name, _hash)| name);
            rows.push((format!("`{name}`"), size));
        }
    }
    rows.push(("text".to_owned(), text));
    let total: u64 = rows.iter().map(|(_, size)| size).sum();
    ensure!(total == file, "{} bytes of the file have no name", file - total);
    rows.push(("**file**".to_owned(), file));

    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(["", "bytes"]);
    for (what, size) in rows {
        table.add_row([what, HumanCount(size).to_string()]);
    }
    table.column_mut(1).context("a column")?.set_cell_alignment(CellAlignment::Right);
    Ok(table.trim_fmt())
}
