//! The report: the same tables on the terminal, in docs/benchmarks.md and in README.md.

use super::peer::{OURS, Peer, Results, UPSTREAM};
use super::samples::{Samples, number};
use super::scale;
use super::targets;
use anyhow::{Context, Result};
use harness::build;
use harness::markdown::{self, update_section};
use nix::sys::utsname::uname;
use nix::unistd::{SysconfVar, sysconf};
use std::env;
use std::fs;
use std::process::Command;
use std::time::SystemTime;

/// A measurement.
struct Section {
    title: &'static str,
    note: &'static str,
    columns: &'static [Column],
}

/// A figure of all peers.
struct Column {
    /// What it is, and its unit.
    title: &'static str,
    /// How many digits after the point mean anything.
    digits: usize,
    figure: fn(&Results) -> &Samples,
}

const FILE: Column = Column { title: "file, bytes", digits: 0, figure: |it| &it.file };
const OWN_MEMORY: Column =
    Column { title: "anonymous memory + page tables, KiB", digits: 1, figure: |it| &it.own_memory };
const WAKE_UPS: Column =
    Column { title: "wake-ups of PID 1", digits: 0, figure: |it| &it.wake_ups };
const CPU: Column = Column { title: "CPU time of PID 1, ms", digits: 2, figure: |it| &it.cpu };
const CLONE_TO_GONE: Column =
    Column { title: "clone to gone, µs", digits: 0, figure: |it| &it.clone_to_gone };

const SECTIONS: &[Section] = &[
    Section {
        title: "Size",
        note: "The program alone. Shared libraries that it loads, and the command that it runs, are \
               not counted.",
        columns: &[FILE],
    },
    Section {
        title: "Memory of a sleeping instance",
        note: "Mean of 1,000 instances, each PID 1 of its own PID namespace, by the kernel's account \
               of each process, which other programs cannot disturb: anonymous memory, and VmPTE \
               with the topmost page table, which VmPTE leaves out. Resident memory counts shared \
               pages in full. The growth is that of /proc/meminfo, divided by 1,000: on an idle \
               machine it equals the account.",
        columns: &[
            OWN_MEMORY,
            Column { title: "anonymous, KiB", digits: 1, figure: |it| &it.anonymous },
            Column { title: "page tables, KiB", digits: 1, figure: |it| &it.page_tables },
            Column { title: "resident, KiB", digits: 0, figure: |it| &it.resident },
            Column {
                title: "growth of AnonPages + PageTables, KiB",
                digits: 1,
                figure: |it| &it.growth,
            },
        ],
    },
    Section {
        title: "Reaping, per 1,000 orphans",
        note: "Measured with 2,000 orphans, one after the other, that PID 1 adopts and that exit at \
               once. Interruptions are switches to other processes while PID 1 could have gone on.",
        columns: &[
            WAKE_UPS,
            CPU,
            Column { title: "interruptions", digits: 0, figure: |it| &it.interruptions },
        ],
    },
    Section {
        title: "Churn for a minute",
        note: "A pod that shares its PID namespace, whose containers leave 200 orphans per second \
               for a minute. Both programs at the same time.",
        columns: &[
            Column { title: "wake-ups of PID 1", digits: 0, figure: |it| &it.churn_wake_ups },
            Column { title: "interruptions", digits: 0, figure: |it| &it.churn_interruptions },
            Column { title: "CPU time of PID 1, ms", digits: 1, figure: |it| &it.churn_cpu },
        ],
    },
    Section {
        title: "Start and stop",
        note: "300 instances of each peer, in random order, each PID 1 of its own PID namespace. From \
               clone(2) until wait(2) returns, with SIGTERM as soon as all processes of the instance \
               sleep; and the part of it between the start of the program and that sleep.",
        columns: &[
            CLONE_TO_GONE,
            Column { title: "exec to asleep, µs", digits: 0, figure: |it| &it.exec_to_asleep },
        ],
    },
];

/// The columns of the README, each with its unit and workload.
const SUMMARY: &[(&str, Column)] = &[
    ("file, bytes", FILE),
    ("own memory while asleep, KiB", OWN_MEMORY),
    ("wake-ups of PID 1 per 1,000 orphans", WAKE_UPS),
    ("its CPU time for them, ms", CPU),
    ("start, sleep and stop, µs", CLONE_TO_GONE),
];

/// Peers that the README shows.
const SUMMARY_PEERS: [&str; 6] = [
    "pause",
    "upstream",
    "upstream, musl",
    "catatonit -P",
    "tini (2 processes)",
    "dumb-init (2 processes)",
];

/// The cells of a row, with multiples of upstream's.
fn row(peers: &[Peer], peer: &Peer, columns: &mut dyn Iterator<Item = &Column>) -> Vec<String> {
    let mut cells = vec![peer.name.to_owned()];
    for Column { digits, figure, .. } in columns {
        let base = (peer.name != peers[UPSTREAM].name).then_some(figure(&peers[UPSTREAM].results));
        cells.push(figure(&peer.results).cell(base, *digits));
    }
    cells
}

/// The tables of all sections.
pub fn sections(peers: &[Peer]) -> String {
    let mut text = format!("## Targets\n\n{}\n", targets::table(peers));
    for Section { title, note, columns } in SECTIONS {
        let rows = peers.iter().map(|peer| row(peers, peer, &mut columns.iter()));
        let rows = rows.filter(|row| row[1..].iter().any(|cell| cell != "–"));
        let header = [""].into_iter().chain(columns.iter().map(|column| column.title));
        let table = markdown::table(header.collect::<Vec<_>>(), rows);
        text += &format!("\n## {title}\n\n{note}\n\n{table}\n");
    }
    text + "\n" + &scale::section(peers)
}

/// Writes docs/benchmarks.md, its picture, and the table in README.md.
pub fn write(peers: &[Peer], versions: &str, sections: &str) -> Result<()> {
    let docs = build::project().join("docs");
    let intro = format!(
        "# What it costs\n\nWritten by `cargo xtask bench --report`, not by hand. All programs were \
         measured in one run, in turn. A figure is the median; ± is half the distance between the \
         quartiles; in parentheses is how many times upstream's it is, or ≈ where the spread hides the \
         difference; – means that there is nothing to measure.\n\n{}\n\n{}\n\n\
         ![Memory of a sleeping instance](benchmarks.svg)\n\n",
        markdown::table(
            ["peer", "command", "what it is"],
            peers.iter().map(|it| [it.name, &*it.command(), it.description].map(String::from)),
        ),
        markdown::table(["", ""], setting(versions)?),
    );
    let path = docs.join("benchmarks.md");
    fs::write(&path, intro + sections).context("cannot write docs/benchmarks.md")?;
    let path = docs.join("benchmarks.svg");
    fs::write(&path, picture(peers)).context("cannot write docs/benchmarks.svg")?;

    let header = [""].into_iter().chain(SUMMARY.iter().map(|(title, _)| *title));
    let peer = |name: &&str| peers.iter().find(|peer| peer.name == *name);
    let rows = SUMMARY_PEERS
        .iter()
        .filter_map(peer)
        .map(|peer| row(peers, peer, &mut SUMMARY.iter().map(|(_, column)| column)));
    let table = markdown::table(header.collect::<Vec<_>>(), rows);
    update_section(&build::project().join("README.md"), "cargo xtask bench", &table)
}

/// Bars for the memory of each peer, on a panel of their own: it can be read on a light
/// page and on a dark one.
fn picture(peers: &[Peer]) -> String {
    let rows = peers.iter().filter_map(|peer| Some((peer.name, peer.results.own_memory.median()?)));
    let rows: Vec<_> = rows.collect();
    let most = rows.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let height = 56 + 30 * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"760\" height=\"{height}\" fill=\"#fbfaf7\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"16\">Anonymous memory and page tables of a sleeping \
         instance, KiB</text>\n"
    );
    for (index, (name, value)) in rows.iter().enumerate() {
        let y = 46 + 30 * index;
        let width = (value / most * 480.0).round();
        let color = if index == OURS { "#d95f2b" } else { "#8f9bad" };
        svg += &format!(
            "<text x=\"190\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"200\" y=\"{y}\" width=\"{width}\" height=\"20\" fill=\"{color}\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>\n",
            y + 15,
            208.0 + width,
            y + 15,
            number(*value, 1),
        );
    }
    svg + "</svg>\n"
}

/// Where the figures are from.
fn setting(versions: &str) -> Result<Vec<[String; 2]>> {
    let system = uname()?;
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let processor =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = processor.map_or("unknown processor", |(_, name)| name);
    let processors = std::thread::available_parallelism()?;
    let page = sysconf(SysconfVar::PAGE_SIZE)?.context("unknown page size")?;
    let arguments: Vec<_> = env::args().skip(1).collect();
    Ok([
        ("machine", format!("{}, {processors} × {processor}", system.machine().display())),
        ("kernel", format!("Linux {}, pages of {page} bytes", system.release().display())),
        ("peers", versions.to_owned()),
        ("compiler", first_line("rustc", &["--version"])?),
        ("commit", first_line("git", &["describe", "--always", "--dirty"])?),
        ("date", humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
        ("command", format!("`cargo xtask {}`", arguments.join(" "))),
    ]
    .map(|(name, value)| [name.to_owned(), value])
    .into())
}

/// The first line of a command's output.
fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(build::project()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned())
}
