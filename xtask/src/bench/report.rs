//! What was measured, for a terminal, for programs and for the documents.

use super::bars::{self, find};
use super::charts;
use super::figures::{Section, number};
use super::peer::Peer;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use harness::build;
use nix::sys::utsname::uname;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::SystemTime;

/// All that one run has found.
pub struct Report {
    peers: Vec<Peer>,
    sections: Vec<Section>,
    left_out: Vec<String>,
    /// Machine, kernel, versions.
    setting: Vec<(&'static str, String)>,
}

/// Around what is written into the README.
const BEGIN: &str = "<!-- cargo xtask bench -->\n";
const END: &str = "<!-- end -->";

/// What the README shows of it all.
const BEST_OF: [&str; 5] =
    ["file", "AnonPages", "PageTables", "wake-ups of PID 1", "clone to gone"];

impl Report {
    /// Adds to the figures where they are from.
    ///
    /// # Errors
    ///
    /// When the machine does not tell.
    pub fn new(peers: Vec<Peer>, sections: Vec<Section>, left_out: Vec<String>) -> Result<Self> {
        Ok(Self { peers, sections, left_out, setting: setting()? })
    }

    /// Tables for people.
    pub fn terminal(&self) -> String {
        let mut text = format!("\nPeers\n{}\n", self.who(false));
        for section in &self.sections {
            let Section { title, note, .. } = section;
            text += &format!("\n{title}\n{}\n{note}\n", self.table(section, false));
        }
        text += &format!("\nBars\n{}\n", self.bars(false));
        for line in &self.left_out {
            text += &format!("\nleft out: {line}");
        }
        text
    }

    /// Everything for programs.
    pub fn json(&self) -> Value {
        let names: Vec<_> = self.peers.iter().map(|peer| peer.name.clone()).collect();
        let peers = self.peers.iter().map(|peer| {
            json!({
                "name": peer.name,
                "command": peer.command(),
                "origin": peer.origin,
                "leaves_on_sigterm": peer.leaves,
                "reaps": peer.reaps.as_ref().ok(),
            })
        });
        let sections = self.sections.iter().map(|section| {
            let figures: Vec<_> = section.figures.iter().map(|it| it.json(&names)).collect();
            json!({ "title": section.title, "note": section.note, "figures": figures })
        });
        let bars: Vec<_> = bars::all(&self.peers, &self.sections)
            .into_iter()
            .map(|bar| json!({ "promise": bar.promise, "seen": bar.seen, "held": bar.held }))
            .collect();
        let sections: Vec<Value> = sections.collect();
        let peers: Vec<Value> = peers.collect();
        let setting: serde_json::Map<_, _> =
            self.setting.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        json!({
            "setting": setting,
            "peers": peers,
            "sections": sections,
            "bars": bars,
            "left_out": self.left_out,
        })
    }

    /// Writes docs/benchmarks.md, its charts, and the README's part.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write(&self) -> Result<()> {
        let project = build::project();
        let charts = project.join("docs/benchmarks");
        fs::create_dir_all(&charts).context("cannot make docs/benchmarks")?;
        charts::draw_all(&self.peers, &self.sections, &charts)?;
        let path = project.join("docs/benchmarks.md");
        fs::write(&path, self.markdown()).context("cannot write docs/benchmarks.md")?;

        let path = project.join("README.md");
        let readme = fs::read_to_string(&path).context("cannot read README.md")?;
        let (before, rest) = readme.split_once(BEGIN).context("README.md has no place for it")?;
        let (_, after) = rest.split_once(END).context("that place in README.md has no end")?;
        fs::write(&path, format!("{before}{BEGIN}\n{}\n\n{END}{after}", self.best()))
            .context("cannot write README.md")
    }

    /// The whole report.
    fn markdown(&self) -> String {
        let mut text = "# What it costs\n\nWritten by `cargo xtask bench --install --report`, and \
            not by hand. All peers were measured in the same run, in turn. A figure is the median, \
            ± is half the distance between the quartiles, and behind it stands how many times ours \
            it is; ≈ where the spread hides the difference, – where there is nothing to measure.\n\n"
            .to_owned();
        text += &format!("{}\n\n", self.who(true));
        let mut table = markdown_table();
        table.set_header(["", ""]);
        for (key, value) in &self.setting {
            table.add_row([key, &**value]);
        }
        text += &format!("{}\n\n", table.trim_fmt());
        text += &format!("## The bars\n\n{}\n", self.bars(true));
        for section in &self.sections {
            text += &format!("\n## {}\n\n{}\n\n", section.title, section.note);
            if let Some((file, title)) = section.chart {
                text += &format!("![{title}](benchmarks/{file}.svg)\n\n");
            }
            text += &format!("{}\n", self.table(section, true));
        }
        if !self.left_out.is_empty() {
            text += "\n## Left out\n\n";
            for line in &self.left_out {
                text += &format!("- {line}\n");
            }
        }
        text
    }

    /// What the README shows.
    fn best(&self) -> String {
        let mut table = markdown_table();
        let figures: Vec<_> =
            BEST_OF.iter().filter_map(|name| find(&self.sections, name)).collect();
        let header = |unit: &str, name: &str| match unit {
            "" => name.to_owned(),
            unit => format!("{name}, {unit}"),
        };
        let titles = figures.iter().map(|figure| header(figure.unit, &figure.name));
        table.set_header(["".to_owned()].into_iter().chain(titles));
        for (index, peer) in self.peers.iter().enumerate() {
            let cells = figures.iter().map(|figure| match figure.summary(index) {
                Some(summary) => number(summary.median, figure.digits),
                None => "–".to_owned(),
            });
            table.add_row([peer.name.clone()].into_iter().chain(cells));
        }
        align(&mut table);
        format!(
            "![Memory of a sleeping instance, by kind](docs/benchmarks/memory.svg)\n\n{}",
            table.trim_fmt()
        )
    }

    /// Who was measured, and by which command.
    fn who(&self, markdown: bool) -> String {
        let mut table = if markdown { markdown_table() } else { terminal_table() };
        table.set_header(["peer", "command", "version", "on SIGTERM", "orphans"]);
        for peer in &self.peers {
            let command = match markdown {
                true => format!("`{}`", peer.command()),
                false => peer.command(),
            };
            let leaves = if peer.leaves { "leaves" } else { "stays" };
            let reaps = match &peer.reaps {
                Ok(true) => "reaped",
                Ok(false) => "stay as zombies",
                Err(_) => "not tried",
            };
            table.add_row([&peer.name, &command, &peer.origin, leaves, reaps]);
        }
        table.trim_fmt()
    }

    fn table(&self, section: &Section, markdown: bool) -> String {
        let mut table = if markdown { markdown_table() } else { terminal_table() };
        let header = |name: &str, unit: &str| match unit {
            "" => name.to_owned(),
            unit => format!("{name}, {unit}"),
        };
        let titles = section.figures.iter().map(|figure| header(&figure.name, figure.unit));
        table.set_header(["".to_owned()].into_iter().chain(titles));
        for (index, peer) in self.peers.iter().enumerate() {
            let cells = section.figures.iter().map(|figure| figure.cell(index));
            table.add_row([peer.name.clone()].into_iter().chain(cells));
        }
        align(&mut table);
        table.trim_fmt()
    }

    fn bars(&self, markdown: bool) -> String {
        let mut table = if markdown { markdown_table() } else { terminal_table() };
        table.set_header(["bar", "seen", ""]);
        for bar in bars::all(&self.peers, &self.sections) {
            table.add_row([bar.promise, &bar.seen, bar.verdict()]);
        }
        table.column_mut(1).expect("a column").set_cell_alignment(CellAlignment::Right);
        table.trim_fmt()
    }
}

fn markdown_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table
}

fn terminal_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Numbers stand to the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Where the figures are from.
fn setting() -> Result<Vec<(&'static str, String)>> {
    let system = uname()?;
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| {
        line.strip_prefix("model name").and_then(|rest| rest.trim_start().strip_prefix(": "))
    });
    let count = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"));
    let total: f64 = total.context("/proc/meminfo has no MemTotal")?.trim().parse()?;
    let page = sysconf(SysconfVar::PAGE_SIZE)?.context("the page size is not known")?;
    let distribution = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = distribution.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    Ok(vec![
        (
            "machine",
            format!(
                "{}, {} × {}, {} GiB",
                system.machine().display(),
                count,
                model.unwrap_or("unnamed processor"),
                number(total / 1024.0 / 1024.0, 0)
            ),
        ),
        ("kernel", format!("Linux {}, pages of {page} bytes", system.release().display())),
        ("system", distribution.unwrap_or("unknown").trim_matches('"').to_owned()),
        ("compiler", said("rustc", &["--version"])),
        ("commit", said("git", &["describe", "--always", "--dirty"])),
        ("date", humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
        ("command", format!("`cargo xtask {}`", shell_words::join(std::env::args().skip(1)))),
    ])
}

/// The first line of what a command says.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(build::project()).output();
    let said = output.ok().filter(|output| output.status.success());
    let said = said.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    said.lines().next().unwrap_or("unknown").to_owned()
}
