//! Runs the scenarios and tells how they went, in the words of `cargo test`.
//!
//! Not libtest-mimic: it cannot give up in the middle and still clean up, nor put the matrix before
//! its last line.

use crate::engine::{Engine, Lacks, Skip};
use crate::scenario::Scenario;
use crate::stage::Stage;
use anyhow::{Error, Result, anyhow};
use comfy_table::{Table, presets};
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::engine::Engine as Name;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

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
            outcomes: Vec::new(),
            filtered_out: 0,
            signals: Signals::new()?,
        })
    }

    /// Tries one engine, and stops it again in any case.
    pub async fn on<E: Engine>(&mut self, stage: &Stage) {
        let name = |scenario| format!("{}::{scenario}", E::NAME);
        // Loading comes along with all others.
        let [start, load, rest @ .., teardown] = Scenario::ALL;
        let wanted = |scenario: &&Scenario| name(**scenario).contains(&self.filter);
        let rest: Vec<_> = rest.iter().filter(wanted).copied().collect();
        self.filtered_out += Scenario::ALL.len() - 3 - rest.len();
        if rest.is_empty() && !wanted(&&load) {
            self.filtered_out += 1;
            return;
        }

        let mut engine = None;
        self.play(E::NAME, start, async {
            engine = Some(E::start(stage).await?);
            Ok(())
        })
        .await;
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
        println!("\n{}\n", self.matrix());
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        let mut told = None;
        for (engine, scenario, outcome) in &self.outcomes {
            let (count, reason) = match outcome {
                Outcome::Passed => (&mut passed, None),
                Outcome::Failed(reason) => (&mut failed, Some(("failed", reason.as_str()))),
                Outcome::Skipped(reason) => (&mut skipped, Some(("skipped", reason.as_str()))),
                Outcome::Lacking(reason) => (&mut skipped, Some(("is left out", *reason))),
            };
            *count += 1;
            if let Some((how, reason)) = reason
                && told.replace((engine, reason)) != Some((engine, reason))
            {
                println!("{engine} {scenario} {how}: {reason}\n");
            }
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

    /// Engine by scenario.
    fn matrix(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        let names = Name::ALL.map(|engine| engine.to_string());
        table.set_header(["".to_owned()].into_iter().chain(names));
        for scenario in Scenario::ALL {
            let cell = |engine| {
                let of = |entry: &&(_, _, _)| entry.0 == engine && entry.1 == scenario;
                match self.outcomes.iter().find(of) {
                    None => "",
                    Some((_, _, Outcome::Passed)) => "passed",
                    Some((_, _, Outcome::Failed(_))) => "FAILED",
                    Some((_, _, Outcome::Skipped(_))) => "skipped",
                    Some((_, _, Outcome::Lacking(_))) => "-",
                }
            };
            let cells = Name::ALL.map(cell).map(str::to_owned);
            table.add_row([scenario.to_string()].into_iter().chain(cells));
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
