//! Runs the scenarios and tells how they went, in the words of `cargo test`.

use crate::engine::{Column, Lacks, Name, Skip};
use crate::host::{self, cgroup_version};
use crate::scenario::{Context, Scenario, is_as_before, surroundings};
use crate::wait::limit;
use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use harness::markdown;
use std::collections::HashSet;
use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use tokio::time::timeout;

/// How a scenario went.
enum Outcome {
    /// With what was not looked at.
    Passed(Vec<String>),
    /// The engine does not have it.
    NotApplicable(String),
    /// This machine cannot do it.
    Skipped(String),
    Failed(String),
}

/// What was asked for, and how it went so far.
pub struct Report {
    required: Vec<Name>,
    filter: Vec<String>,
    context: Context,
    started: Instant,
    engines: Vec<(Name, String)>,
    outcomes: Vec<(Name, Scenario, Outcome)>,
}

impl Report {
    /// A report on nothing yet. An engine in `required` fails where another one would be skipped;
    /// only scenarios with one of `filter` in their names (`docker::stop`) are run, or all.
    pub fn new(required: Vec<Name>, filter: Vec<String>, context: Context) -> Self {
        let (engines, outcomes) = (Vec::new(), Vec::new());
        Self { required, filter, context, started: Instant::now(), engines, outcomes }
    }

    /// Tries one engine.
    pub async fn on<E: Column>(&mut self) -> Result<()> {
        // The others need what is loaded.
        let &[start, load, ref rest @ .., end] = Scenario::value_variants() else {
            unreachable!("there are more")
        };
        let is_in = |name: String| self.filter.iter().any(|part| name.contains(part));
        let wanted = |it: &Scenario| self.filter.is_empty() || is_in(format!("{}::{it}", E::NAME));
        let rest: Vec<_> = rest.iter().copied().filter(wanted).collect();
        if rest.is_empty() && ![start, load, end].iter().any(wanted) {
            return Ok(());
        }

        let mut found = None;
        let is_process = |it: &String| it.starts_with("process");
        let processes = host::surroundings()?;
        self.note(E::NAME, start, async |context| {
            let engine = E::start(&context.image).await?;
            let version = engine.version().await?;
            found = Some((engine, version));
            Ok(())
        })
        .await;
        let Some((mut engine, version)) = found else { return Ok(()) };
        self.engines.push((E::NAME, version));
        let before = surroundings(&engine).await?;
        for scenario in [load].into_iter().chain(rest) {
            self.note(E::NAME, scenario, async |context| engine.run(scenario, context).await).await;
        }
        self.note(E::NAME, end, async |context| {
            engine.remove_all().await?;
            // The daemon may be another one now, and its network interfaces stay when it ends.
            let others = async || {
                let mut now = surroundings(&engine).await?;
                now.retain(|it| !is_process(it));
                Ok(now)
            };
            is_as_before(&before, others).await?;
            engine.end().await?;
            let is_forgotten = |it: &String| E::MAY_FORGET.is_some_and(|name| it.contains(name));
            let left = async || {
                let mut now = host::surroundings()?;
                now.retain(|it| is_process(it) && !is_forgotten(it));
                Ok(now)
            };
            is_as_before(&processes, left).await?;
            if let Some(name) = E::MAY_FORGET
                && host::surroundings()?.iter().any(is_forgotten)
            {
                context.leaves_out(&format!("processes of {name}: the engine forgot some"));
            }
            Ok(())
        })
        .await;
        Ok(())
    }

    /// Runs one scenario and notes how it went.
    async fn note(
        &mut self,
        engine: Name,
        scenario: Scenario,
        run: impl AsyncFnOnce(&Context) -> Result<()>,
    ) {
        print!("test {engine}::{scenario} ... ");
        let _ = stdout().flush();
        let started = Instant::now();
        let result = timeout(limit(600), run(&self.context)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow!("it does not end")));
        let left_out = self.context.left_out.take();
        let outcome = match result {
            Ok(()) => Outcome::Passed(left_out.into_iter().collect()),
            Err(error) => match (error.downcast_ref::<Skip>(), error.downcast_ref::<Lacks>()) {
                (Some(skip), _) if self.required.contains(&engine) => {
                    Outcome::Failed(format!("required, but skipped: {skip}"))
                }
                (Some(Skip(reason)), _) => Outcome::Skipped(reason.clone()),
                (_, Some(Lacks(reason))) => Outcome::NotApplicable((*reason).to_owned()),
                _ => Outcome::Failed(format!("{error:#}")),
            },
        };
        let seconds = started.elapsed().as_secs_f64();
        match &outcome {
            Outcome::Passed(left_out) if left_out.is_empty() => println!("ok ({seconds:.1} s)"),
            Outcome::Passed(_) => println!("ok, in part ({seconds:.1} s)"),
            Outcome::NotApplicable(reason) => println!("not applicable, {reason}"),
            Outcome::Skipped(reason) => println!("ignored, {reason}"),
            Outcome::Failed(reason) => println!("FAILED ({seconds:.1} s)\n{reason}"),
        }
        self.outcomes.push((engine, scenario, outcome));
    }

    /// Prints the matrix and the sum, and says how to exit.
    pub fn close(&self) -> ExitCode {
        println!("\n{}", self.matrix(Scenario::to_string));
        let count = |is: fn(&Outcome) -> bool| self.outcomes.iter().filter(|it| is(&it.2)).count();
        let failed = count(|it| matches!(it, Outcome::Failed(_)));
        println!(
            "test result: {}. {} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s",
            if failed == 0 { "ok" } else { "FAILED" },
            count(|it| matches!(it, Outcome::Passed(_))),
            count(|it| matches!(it, Outcome::Skipped(_) | Outcome::NotApplicable(_))),
            self.started.elapsed().as_secs_f64()
        );
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Writes a section for docs/engines.md.
    pub fn write(&self, path: &Path) -> Result<()> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let (kernel, version) = (kernel.trim(), cgroup_version());
        let head = format!("Kernel {kernel}, control groups of version {version}");
        let row = |scenario: &Scenario| format!("`{scenario}`: {}", scenario.about());
        fs::write(path, format!("{head}\n\n{}", self.matrix(row)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Engines by scenarios, and the reasons; `row` says what to call a scenario.
    fn matrix(&self, row: impl Fn(&Scenario) -> String) -> String {
        let header = self.engines.iter().map(|(name, version)| format!("{name} {version}"));
        let header: Vec<_> = [String::new()].into_iter().chain(header).collect();
        let rows = Scenario::value_variants().iter().map(|scenario| {
            let cell = |(engine, _): &(Name, String)| {
                let found = self.outcomes.iter().find(|it| it.0 == *engine && it.1 == *scenario);
                match found.map(|it| &it.2) {
                    None => "",
                    Some(Outcome::Passed(left_out)) if left_out.is_empty() => "passed",
                    Some(Outcome::Passed(_)) => "in part",
                    Some(Outcome::NotApplicable(_)) => "n/a",
                    Some(Outcome::Skipped(_)) => "skipped",
                    Some(Outcome::Failed(_)) => "FAILED",
                }
                .to_owned()
            };
            [row(scenario)].into_iter().chain(self.engines.iter().map(cell)).collect::<Vec<_>>()
        });
        let table = markdown::table(header, rows);
        format!("{table}\n\n{}\n", self.reasons().join("\n"))
    }

    /// Why what did not pass in full did not, in one line for all scenarios of one reason.
    fn reasons(&self) -> Vec<String> {
        let mut told = HashSet::new();
        let mut lines = Vec::new();
        let all = || self.outcomes.iter().flat_map(|it| it.2.reasons().map(move |why| (it, why)));
        for ((engine, _, _), reason) in all() {
            if told.insert((engine.to_string(), reason.clone())) {
                let same = all().filter(|(it, why)| it.0 == *engine && *why == reason);
                let names: Vec<_> = same.map(|(it, _)| format!("`{}`", it.1)).collect();
                lines.push(format!("- {engine} {}: {reason}", names.join(", ")));
            }
        }
        lines
    }
}

impl Outcome {
    fn reasons(&self) -> impl Iterator<Item = String> {
        let (how, reasons) = match self {
            Self::Passed(left_out) => ("not looked at: ", left_out.clone()),
            Self::NotApplicable(reason) => ("not applicable: ", vec![reason.clone()]),
            Self::Skipped(reason) => ("skipped: ", vec![reason.clone()]),
            Self::Failed(reason) => ("FAILED: ", vec![reason.clone()]),
        };
        reasons.into_iter().map(move |reason| format!("{how}{reason}"))
    }
}
