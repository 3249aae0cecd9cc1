//! What pods cost on real engines, as their users feel it, with this program and with upstream's.

use super::figures::{self, Results};
use super::peer::Peer;
use crate::debian::Release;
use crate::engines;
use crate::image::{self, Recipe};
use anyhow::{Context, Result, bail, ensure};
use harness::build;
use std::collections::BTreeMap;
use std::fs;

/// The figures, as `tests/engines/src/cost.rs` names them. Those that have a target come first.
const FIGURES: [&str; 8] = [
    "start, ms",
    "stop, ms",
    "remove, ms",
    "charged, KiB",
    "program, KiB",
    "shim, KiB",
    "program's share of program and shim, %",
    "stop of `sleep infinity`, ms",
];

/// What was measured with each program, by engine and program.
pub struct Pods(BTreeMap<[String; 2], Results>);

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
        ensure!(debian.run(&command)?.success(), "the pods could not be measured");
        let lines = fs::read_to_string(debian.changed("/samples"))?;
        debian.wipe()?;

        let mut pods = BTreeMap::<_, Results>::new();
        for line in lines.lines() {
            let words: Vec<_> = line.split('\t').collect();
            let [engine, program, figure, value] = *words else { bail!("not a sample: {line}") };
            let results = pods.entry([engine, program].map(str::to_owned)).or_default();
            results.add(figure, value.parse().context("not a number")?);
        }
        Ok(Self(pods))
    }

    /// The name of each row, its results, and upstream's on the same engine.
    fn rows(&self) -> impl Iterator<Item = (String, &Results, &Results)> {
        self.0.iter().filter_map(|([engine, program], results)| {
            let upstreams = self.0.get(&[engine.clone(), "upstream".to_owned()])?;
            Some((format!("{program} on {engine}"), results, upstreams))
        })
    }

    /// The targets that are missed: a pod starts and stops no slower than with upstream's program,
    /// beyond the spread.
    pub fn missed(&self) -> Vec<String> {
        let targets =
            self.rows().flat_map(|row| FIGURES[..2].iter().map(move |it| (row.clone(), it)));
        let missed = targets.filter(|((_, results, upstreams), figure)| {
            let (ours, upstreams) = (results.of(figure), upstreams.of(figure));
            !(ours.median() <= upstreams.median() || ours.overlaps(upstreams))
        });
        missed
            .map(|((name, ..), figure)| format!("{figure}: {name}, not slower than upstream's"))
            .collect()
    }

    /// The section of the report.
    pub fn section(&self) -> String {
        format!(
            "## Pods\n\nOn real engines, 50 pods with each program in turn. containerd is driven over \
             CRI, by RunPodSandbox, StopPodSandbox and RemovePodSandbox; Docker by `docker run \
             --detach`, `docker stop` and `docker rm`. The charge is that of the control group of the \
             sandbox. Then 200 pods at once: anonymous memory and page tables of the program, and of \
             the shim that the engine runs for each pod. A `sleep` as PID 1 ignores SIGTERM, so that \
             stopping it takes the grace period.\n\n\
             Target: start and stop are not slower than upstream's beyond the spread; {}.\n\n{}\n",
            if self.missed().is_empty() { "met" } else { "missed" },
            figures::table(&FIGURES, self.rows())
        )
    }
}
