//! Runs the scenarios, tells how they went, and makes the matrix.

use crate::engine::{Column, Lacks, Name, Skip};
use crate::host::{self, cgroup_version};
use crate::scenario::{Context, Scenario, is_as_before, surroundings};
use crate::wait::limit;
use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use harness::markdown;
use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::time::Instant;
use tokio::time::timeout;

/// The word for what must not be.
const FAILED: &str = "FAILED";

/// What was asked for, and how it went so far.
pub struct Report {
    required: Vec<Name>,
    filter: Vec<String>,
    context: Context,
    /// Those that started, and their versions.
    engines: Vec<(Name, String)>,
    /// The words for the matrix.
    results: Vec<(Name, Scenario, &'static str)>,
    /// Why scenarios have not just passed.
    reasons: Vec<(Name, String, Vec<Scenario>)>,
}

impl Report {
    /// A report on nothing yet. An engine in `required` fails where another one would be skipped;
    /// only scenarios with one of `filter` in their names (`docker::stop`) are run, or all.
    pub fn new(required: Vec<Name>, filter: Vec<String>, context: Context) -> Self {
        let (engines, results, reasons) = (Vec::new(), Vec::new(), Vec::new());
        Self { required, filter, context, engines, results, reasons }
    }

    /// Tries one engine.
    pub async fn on<E: Column>(&mut self, name: Name) -> Result<()> {
        // The others need what is loaded.
        let &[start, load, ref rest @ .., end] = Scenario::value_variants() else {
            unreachable!("there are more")
        };
        let is_in = |name: String| self.filter.iter().any(|part| name.contains(part));
        let wanted = |it: &Scenario| self.filter.is_empty() || is_in(format!("{name}::{it}"));
        let rest: Vec<_> = rest.iter().copied().filter(wanted).collect();
        if rest.is_empty() && ![start, load, end].iter().any(wanted) {
            return Ok(());
        }

        let mut found = None;
        let is_process = |it: &String| it.starts_with("process");
        let processes = host::surroundings()?;
        self.note(name, start, async |context| {
            let engine = E::start(name, &context.image).await?;
            let version = engine.version(name).await?;
            found = Some((engine, version));
            Ok(())
        })
        .await;
        let Some((mut engine, version)) = found else { return Ok(()) };
        self.engines.push((name, version));
        let before = surroundings(&engine).await?;
        for scenario in [load].into_iter().chain(rest) {
            self.note(name, scenario, async |context| engine.test(scenario, context).await).await;
        }
        self.note(name, end, async |context| {
            engine.remove_all().await?;
            // The daemon may be another one now, and its network interfaces stay when it ends.
            let others = async || {
                Ok(surroundings(&engine).await?.into_iter().filter(|it| !is_process(it)).collect())
            };
            is_as_before(&before, others).await?;
            engine.end().await?;
            let forgotten = name.facts().may_forget;
            let is_forgotten = |it: &String| forgotten.is_some_and(|name| it.contains(name));
            let counts = |it: &String| is_process(it) && !is_forgotten(it);
            let left = async || Ok(host::surroundings()?.into_iter().filter(counts).collect());
            is_as_before(&processes, left).await?;
            if let Some(name) = forgotten
                && host::surroundings()?.iter().any(is_forgotten)
            {
                context.leaves_out(&format!("processes of {name}: the engine forgot some"));
            }
            Ok(())
        })
        .await;
        Ok(())
    }

    /// Runs one scenario, and tells and notes how it went.
    async fn note(
        &mut self,
        engine: Name,
        scenario: Scenario,
        run: impl AsyncFnOnce(&Context) -> Result<()>,
    ) {
        print!("{engine}::{scenario} ... ");
        let _ = stdout().flush();
        let started = Instant::now();
        let result = timeout(limit(1800), run(&self.context)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow!("it does not end")));
        let left_out = Vec::from_iter(self.context.left_out.take());
        let (result, how, reasons) = match result {
            Ok(()) if left_out.is_empty() => ("passed", "", left_out),
            Ok(()) => ("in part", "not looked at", left_out),
            Err(error) => match error.downcast_ref() {
                Some(Skip(why)) if self.required.contains(&engine) => {
                    (FAILED, "required, but skipped", vec![why.to_string()])
                }
                Some(Skip(why)) => ("skipped", "skipped", vec![why.to_string()]),
                Some(Lacks(why)) => ("n/a", "not applicable", vec![why.to_string()]),
                None => (FAILED, FAILED, vec![format!("{error:#}")]),
            },
        };
        println!("{result} ({:.1} s)", started.elapsed().as_secs_f64());
        self.results.push((engine, scenario, result));
        for reason in reasons {
            let reason = format!("{how}: {reason}");
            println!("    {reason}");
            match self.reasons.iter_mut().find(|it| it.0 == engine && it.1 == reason) {
                Some(known) => known.2.push(scenario),
                None => self.reasons.push((engine, reason, vec![scenario])),
            }
        }
    }

    /// The names of the scenarios that failed.
    pub fn failed(&self) -> Vec<String> {
        let failed = self.results.iter().filter(|(.., result)| *result == FAILED);
        failed.map(|(engine, scenario, _)| format!("{engine}::{scenario}")).collect()
    }

    /// Writes a section for docs/engines.md: engines by scenarios, and the reasons.
    pub fn write(&self, path: &Path) -> Result<()> {
        let header = self.engines.iter().map(|(name, version)| format!("{name} {version}"));
        let header: Vec<_> = [String::new()].into_iter().chain(header).collect();
        let rows = Scenario::value_variants().iter().map(|scenario| {
            let cell = |(engine, _): &(Name, String)| {
                let mut found = self.results.iter();
                let found = found.find(|it| it.0 == *engine && it.1 == *scenario);
                found.map_or("", |it| it.2).to_owned()
            };
            let row = [format!("`{scenario}`: {}", scenario.about())];
            row.into_iter().chain(self.engines.iter().map(cell)).collect::<Vec<_>>()
        });
        let table = markdown::table(header, rows);
        let reasons = self.reasons.iter().map(|(engine, reason, scenarios)| {
            let names: Vec<_> = scenarios.iter().map(|it| format!("`{it}`")).collect();
            format!("- {engine} {}: {reason}\n", names.join(", "))
        });
        let reasons = String::from_iter(reasons);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let (kernel, version) = (kernel.trim(), cgroup_version());
        let head = format!("Kernel {kernel}, control groups of version {version}");
        fs::write(path, format!("{head}\n\n{table}\n\n{reasons}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
