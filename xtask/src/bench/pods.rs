//! What pods cost on real engines, as their users feel it, with this program and with upstream's.

use super::peer::Peer;
use super::samples::{Samples, number};
use crate::debian::Release;
use crate::engines;
use crate::image::{self, Recipe};
use anyhow::{Context, Result, bail, ensure};
use harness::{build, markdown};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The programs, as `tests/engines/src/cost.rs` names them.
const PROGRAMS: [&str; 2] = ["pause", "upstream"];

/// The figures, as `tests/engines/src/cost.rs` names them, and their columns.
const FIGURES: [(&str, &str); 7] = [
    ("start", "start, ms"),
    ("stop", "stop, ms"),
    ("remove", "remove, ms"),
    ("charged", "charged, KiB"),
    ("program", "program, KiB"),
    ("shim", "shim, KiB"),
    ("stop of sleep", "stop of `sleep infinity`, ms"),
];

/// The samples of each engine, program and figure.
pub struct Pods(BTreeMap<[String; 3], Samples>);

impl Pods {
    /// Has `tests/engines/src/cost.rs` measure on the engines of a release of Debian.
    pub fn measure(release: Release, upstream: &Peer) -> Result<Self> {
        let archive = build::project().join("target/image/upstream.tar");
        let recipe = Recipe { program: Some(upstream.program.clone()), ..Recipe::default() };
        image::make(&image::Args { recipe, output: Some(archive.clone()) })?;
        let mut debian = engines::system(release)?;
        let mut command = engines::program(&mut debian)?;
        debian.add(&archive, "/inputs/upstream")?;
        command.extend(["--cost", "/inputs/upstream", "/samples"].map(str::to_owned));
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        ensure!(debian.run(&command)?.success(), "the pods could not be measured");
        let lines = fs::read_to_string(debian.changed("/samples"))?;
        debian.wipe()?;

        let mut samples = BTreeMap::<_, Samples>::new();
        for line in lines.lines() {
            let words: Vec<_> = line.split('\t').collect();
            let [engine, program, figure, value] = *words else { bail!("not a sample: {line}") };
            let key = [engine, program, figure].map(str::to_owned);
            samples.entry(key).or_default().push(value.parse().context("not a number")?);
        }
        Ok(Self(samples))
    }

    fn engines(&self) -> BTreeSet<&str> {
        self.0.keys().map(|[engine, ..]| engine.as_str()).collect()
    }

    fn samples(&self, engine: &str, program: &str, figure: &str) -> Option<&Samples> {
        self.0.get(&[engine, program, figure].map(str::to_owned))
    }

    /// The targets that are missed: a pod starts and stops no slower than with upstream's program,
    /// beyond the spread.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for engine in self.engines() {
            for figure in ["start", "stop"] {
                let is_slower = || {
                    let ours = self.samples(engine, "pause", figure)?;
                    let upstreams = self.samples(engine, "upstream", figure)?;
                    Some(ours.median() > upstreams.median() && !ours.overlaps(upstreams))
                };
                if is_slower() != Some(false) {
                    missed
                        .push(format!("{figure} of a pod on {engine}, not slower than upstream's"));
                }
            }
        }
        missed
    }

    /// The section of the report.
    pub fn section(&self) -> String {
        let mut rows = Vec::new();
        for (engine, program) in
            self.engines().into_iter().flat_map(|engine| PROGRAMS.map(|program| (engine, program)))
        {
            let mut row = vec![engine.to_owned(), program.to_owned()];
            for (figure, _) in FIGURES {
                let base = self.samples(engine, "upstream", figure).filter(|_| program == "pause");
                let samples = self.samples(engine, program, figure);
                row.push(samples.map_or("–".to_owned(), |samples| samples.cell(base, 0)));
            }
            let median = |figure| self.samples(engine, program, figure).and_then(Samples::median);
            let share = median("program").zip(median("shim"));
            let share = share.map_or(f64::NAN, |(program, shim)| program / (program + shim));
            row.push(format!("{} %", number(share * 100.0, 1)));
            rows.push(row);
        }
        let header = ["", "program"].into_iter().chain(FIGURES.map(|(_, title)| title));
        let header = header.chain(["program's share of program and shim"]);
        format!(
            "## Pods\n\nOn real engines, 50 pods with each program in turn. containerd is driven over \
             CRI, by RunPodSandbox, StopPodSandbox and RemovePodSandbox; Docker by `docker run \
             --detach`, `docker stop` and `docker rm`. The charge is that of the control group of the \
             sandbox. Then 200 pods at once: anonymous memory and page tables of the program, and of \
             the shim that the engine runs for each pod. A `sleep` as PID 1 ignores SIGTERM, so that \
             stopping it takes the grace period.\n\n\
             Target: start and stop are not slower than upstream's beyond the spread; {}.\n\n{}\n",
            if self.missed().is_empty() { "met" } else { "missed" },
            markdown::table(header.collect::<Vec<_>>(), rows)
        )
    }
}
