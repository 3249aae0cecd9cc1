//! Runs the scenarios and tells how they went, in the words of `cargo test`.
//!
//! Not libtest-mimic: it cannot give up in the middle and still clean up, nor put the matrix before
//! its last line.

use crate::engine::{Engine, Lacks, Skip};
use crate::kind::Engine as Name;
use crate::scenario::Scenario;
use crate::stage::Stage;
use anyhow::{Context, Error, Result, anyhow, ensure};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

/// Around the matrix in a document.
const BEGIN: &str = "<!-- cargo xtask engines --report -->\n";
const END: &str = "<!-- end -->";

/// How long a scenario may take before it counts as hanging. No measure of anything.
const DEADLINE: Duration = Duration::from_secs(600);

/// How a scenario went.
enum Outcome {
    Passed,
    Failed(String),
    /// This machine cannot do it.
    Skipped(String),
    /// This engine cannot do it anywhere.
    Lacking(&'static str),
}

/// What was asked for, and how it went so far.
pub struct Report {
    required: Vec<Name>,
    filter: String,
    started: Instant,
    versions: Vec<(Name, String)>,
    outcomes: Vec<(Name, Scenario, Outcome)>,
    filtered_out: usize,
    signals: Signals,
}

impl Report {
    /// A report on nothing yet. An engine in `required` fails where another one would be skipped;
    /// only scenarios with `filter` in their names (`docker::stop`) are run.
    ///
    /// # Errors
    ///
    /// When signals cannot be handled.
    pub fn new(required: Vec<Name>, filter: String) -> Result<Self> {
        Ok(Self {
            required,
            filter,
            started: Instant::now(),
            versions: Vec::new(),
            outcomes: Vec::new(),
            filtered_out: 0,
            signals: Signals::new()?,
        })
    }

    /// Tries one engine, and stops it again in any case.
    pub async fn on<E: Engine>(&mut self, stage: &Stage) {
        let name = |scenario| format!("{}::{scenario}", E::NAME);
        // Loading comes along with all others.
        let &[start, load, ref rest @ .., teardown] = Scenario::value_variants() else {
            unreachable!("there are more")
        };
        let wanted = |scenario: &Scenario| name(*scenario).contains(&self.filter);
        let (all, rest) = (rest.len(), rest.iter().copied().filter(wanted).collect::<Vec<_>>());
        self.filtered_out += all - rest.len();
        if rest.is_empty() && !wanted(&load) {
            self.filtered_out += 1;
            return;
        }

        let mut engine = None;
        let mut version = String::new();
        self.play(E::NAME, start, async {
            let started = engine.insert(E::start(stage).await?);
            version = started.version().await?;
            Ok(())
        })
        .await;
        if !version.is_empty() {
            self.versions.push((E::NAME, version));
        }
        let absent = match self.outcomes.last() {
            Some((_, _, Outcome::Skipped(reason))) => reason.clone(),
            _ => "it did not start".to_owned(),
        };
        for scenario in [load].into_iter().chain(rest) {
            let run = async {
                match &mut engine {
                    Some(engine) => scenario.play(engine, stage).await,
                    None => Err(Skip(absent.clone()).into()),
                }
            };
            self.play(E::NAME, scenario, run).await;
        }
        if let Some(engine) = engine {
            self.announce(E::NAME, teardown);
            let result = timeout(DEADLINE, engine.teardown()).await;
            self.note(E::NAME, teardown, result.unwrap_or_else(|_| Err(hangs())));
        }
    }

    /// Runs one scenario, unless or until a signal says that it is enough.
    async fn play(
        &mut self,
        engine: Name,
        scenario: Scenario,
        run: impl Future<Output = Result<()>>,
    ) {
        self.announce(engine, scenario);
        let result = select! {
            biased;
            signal = self.signals.any() => Err(Skip(format!("stopped by {signal}")).into()),
            result = timeout(DEADLINE, run) => result.unwrap_or_else(|_| Err(hangs())),
        };
        self.note(engine, scenario, result);
    }

    fn announce(&self, engine: Name, scenario: Scenario) {
        print!("test {engine}::{scenario} ... ");
        let _ = stdout().flush();
    }

    fn note(&mut self, engine: Name, scenario: Scenario, result: Result<()>) {
        let outcome = match result {
            Ok(()) => Outcome::Passed,
            Err(error) => match (error.downcast_ref::<Skip>(), error.downcast_ref::<Lacks>()) {
                (Some(skip), _) if self.required.contains(&engine) => {
                    Outcome::Failed(format!("required, but skipped: {skip}"))
                }
                (Some(Skip(reason)), _) => Outcome::Skipped(reason.clone()),
                (_, Some(Lacks(reason))) => Outcome::Lacking(reason),
                _ => Outcome::Failed(format!("{error:#}")),
            },
        };
        match &outcome {
            Outcome::Passed => println!("ok"),
            Outcome::Failed(_) => println!("FAILED"),
            Outcome::Skipped(reason) => println!("ignored, {reason}"),
            Outcome::Lacking(reason) => println!("ignored, {reason}"),
        }
        self.outcomes.push((engine, scenario, outcome));
    }

    /// Prints the matrix, the reasons and the sum, and says how to exit.
    pub fn close(self) -> ExitCode {
        println!("\n{}\n", self.matrix(Scenario::to_string));
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for (_, _, outcome) in &self.outcomes {
            *match outcome {
                Outcome::Passed => &mut passed,
                Outcome::Failed(_) => &mut failed,
                Outcome::Skipped(_) | Outcome::Lacking(_) => &mut skipped,
            } += 1;
        }
        for reason in self.reasons() {
            println!("{reason}\n");
        }
        let good = failed == 0 && self.signals.seen.is_none();
        println!(
            "test result: {}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; \
             {} filtered out; finished in {:.2}s",
            if good { "ok" } else { "FAILED" },
            self.filtered_out,
            self.started.elapsed().as_secs_f64()
        );
        match self.signals.seen {
            Some(signal) => ExitCode::from(128 + signal.as_raw_value() as u8),
            None if good => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        }
    }

    /// Writes the matrix and what was left out into a document, between its two marks.
    ///
    /// # Errors
    ///
    /// When that cannot be read or written, or has no such marks, or not everything was tried.
    pub fn write(&self, document: &Path) -> Result<()> {
        let shown = document.display();
        ensure!(self.signals.seen.is_none(), "stopped before the end: {shown} stays as it was");
        let old = fs::read_to_string(document).with_context(|| format!("cannot read {shown}"))?;
        let marks = old
            .split_once(BEGIN)
            .and_then(|(before, rest)| rest.split_once(END).map(|(_, after)| (before, after)));
        let (before, after) = marks.with_context(|| format!("no {BEGIN:?} in {shown}"))?;
        let reasons: Vec<_> = self.reasons().map(|reason| format!("- {reason}")).collect();
        let row = |scenario: &Scenario| format!("`{scenario}`: {}", scenario.about());
        let new = [&self.matrix(row).trim_fmt(), "", &reasons.join("\n")].join("\n");
        fs::write(document, format!("{before}{BEGIN}\n{}\n\n{END}{after}", new.trim_end()))
            .with_context(|| format!("cannot write {shown}"))
    }

    /// Why what did not pass did not.
    fn reasons(&self) -> impl Iterator<Item = String> {
        let mut told = None;
        self.outcomes.iter().filter_map(move |(engine, scenario, outcome)| {
            let (how, reason) = match outcome {
                Outcome::Passed => return None,
                Outcome::Failed(reason) => ("failed", reason.as_str()),
                Outcome::Skipped(reason) => ("skipped", reason.as_str()),
                Outcome::Lacking(reason) => ("left out", *reason),
            };
            // An engine that is not there is skipped for one reason throughout.
            let again = told.replace((engine, reason)) == Some((engine, reason));
            let failed = matches!(outcome, Outcome::Failed(_));
            (failed || !again).then(|| format!("{engine}::{scenario} {how}: {reason}"))
        })
    }

    /// Engine by scenario; `row` says what to call one.
    fn matrix(&self, row: impl Fn(&Scenario) -> String) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        let version = |engine: Name| {
            let version = self.versions.iter().find(|(name, _)| *name == engine);
            version.map_or(engine.to_string(), |(_, version)| format!("{engine} {version}"))
        };
        table.set_header([String::new()].into_iter().chain(Name::ALL.map(version)));
        for scenario in Scenario::value_variants() {
            let cell = |engine| {
                let of = |entry: &&(_, _, _)| entry.0 == engine && entry.1 == *scenario;
                match self.outcomes.iter().find(of) {
                    None => "",
                    Some((_, _, Outcome::Passed)) => "passed",
                    Some((_, _, Outcome::Failed(_))) => "FAILED",
                    Some((_, _, Outcome::Skipped(_))) => "skipped",
                    Some((_, _, Outcome::Lacking(_))) => "-",
                }
            };
            let cells = Name::ALL.map(cell).map(str::to_owned);
            table.add_row([row(scenario)].into_iter().chain(cells));
        }
        table
    }
}

fn hangs() -> Error {
    anyhow!("it hangs: no end after {DEADLINE:?}")
}

/// The signals that end this early.
struct Signals {
    streams: [(&'static str, SignalKind, Signal); 3],
    seen: Option<SignalKind>,
}

impl Signals {
    fn new() -> Result<Self> {
        let stream = |name, kind| Ok::<_, Error>((name, kind, signal(kind)?));
        let streams = [
            stream("SIGINT", SignalKind::interrupt())?,
            stream("SIGTERM", SignalKind::terminate())?,
            stream("SIGHUP", SignalKind::hangup())?,
        ];
        Ok(Self { streams, seen: None })
    }

    /// Waits for one of them; once one has come it does not wait any more.
    async fn any(&mut self) -> &'static str {
        let [interrupt, terminate, hangup] = &mut self.streams;
        let known = [&*interrupt, &*terminate, &*hangup].map(|(name, kind, _)| (*name, *kind));
        if let Some(seen) = self.seen {
            return known.into_iter().find(|(_, kind)| *kind == seen).map_or("", |(name, _)| name);
        }
        let (name, kind) = select! {
            _ = interrupt.2.recv() => known[0],
            _ = terminate.2.recv() => known[1],
            _ = hangup.2.recv() => known[2],
        };
        self.seen = Some(kind);
        name
    }
}
