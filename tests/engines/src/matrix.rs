//! Runs the scenarios, prints the results, and makes the matrix.

use crate::engine::{Driver, Engine, Lacks, Skip};
use crate::host;
use crate::scenario::{Run, Scenario};
use anyhow::{Context, Result};
use clap::ValueEnum;
use harness::markdown;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::time::Instant;

const FAILED: &str = "FAILED";

/// Processes that containerd 2.1 now and then leaves running when it ends.
const FORGOTTEN: &str = "containerd-shim-runc-v2";

/// What was asked for, and the results so far.
pub struct Matrix {
    required: Vec<Engine>,
    filter: Vec<String>,
    run: Run,
    /// The versions of the engines that started.
    versions: BTreeMap<Engine, String>,
    results: BTreeMap<(Engine, Scenario), &'static str>,
    /// For each reason why scenarios of an engine have not just passed: which ones.
    reasons: BTreeMap<(Engine, String), Vec<String>>,
    /// The names of the scenarios that failed.
    pub failed: Vec<String>,
}

impl Matrix {
    /// A matrix without results. An engine in `required` fails where another one would be skipped.
    /// Only scenarios with one of `filter` in their names (`docker::stop`) are run, or all.
    pub fn new(required: Vec<Engine>, filter: Vec<String>, run: Run) -> Self {
        let (versions, results, reasons) = Default::default();
        Self { required, filter, run, versions, results, reasons, failed: Vec::new() }
    }

    fn wants(&self, engine: Engine, scenario: Scenario) -> bool {
        // They need a system that no other engine has used, so they have to be named.
        let is_apart = [Engine::Kubernetes, Engine::Kubelet].contains(&engine);
        let is_named = self.filter.iter().any(|part| part.starts_with("kube"));
        let name = format!("{engine}::{scenario}");
        let is_in = self.filter.is_empty() || self.filter.iter().any(|part| name.contains(part));
        is_in && (is_named || !is_apart)
    }

    /// Tests one engine.
    pub fn test<D: Driver>(&mut self, engine: Engine) -> Result<()> {
        use Scenario::{End, Load, Start};
        let all = Scenario::value_variants().iter().copied();
        let mut tests: Vec<_> = all.filter_map(|it| Some((it, D::test(engine, it)?))).collect();
        let mut names = tests.iter().map(|(it, _)| *it).chain([Start, End]);
        if !names.any(|it| self.wants(engine, it)) {
            return Ok(());
        }
        // Without the images there is nothing to test.
        tests.retain(|(it, _)| *it == Load || self.wants(engine, *it));

        let processes = host::surroundings()?;
        let mut started = None;
        self.note(engine, Start, |run| {
            let driver = D::start(engine, &run.candidate)?;
            started = Some((driver.version()?, driver));
            Ok(())
        });
        let Some((version, mut driver)) = started else { return Ok(()) };
        self.versions.insert(engine, version);

        let surroundings = |driver: &D| -> Result<HashSet<String>> {
            let mut found = host::surroundings()?;
            found.extend(driver.list()?);
            Ok(found)
        };
        let before = surroundings(&driver)?;
        for (scenario, test) in tests {
            self.note(engine, scenario, |run| {
                let result = test(&mut driver, run);
                result.and(driver.remove_all())
            });
        }
        self.note(engine, End, |_| {
            // The daemon may be another one now, and its network interfaces stay when it ends.
            let is_process = |it: &str| it.starts_with("process");
            host::is_as_before(&before, || surroundings(&driver), |it| !is_process(it))?;
            driver.end()?;
            let counts = |it: &str| is_process(it) && !it.contains(FORGOTTEN);
            host::is_as_before(&processes, host::surroundings, counts)
        });
        Ok(())
    }

    /// Runs one scenario, prints and notes the result.
    fn note(&mut self, engine: Engine, scenario: Scenario, test: impl FnOnce(&Run) -> Result<()>) {
        print!("{engine}::{scenario} ... ");
        let _ = stdout().flush();
        let start = Instant::now();
        let result = test(&self.run);
        let left_out = Vec::from_iter(self.run.left_out.take());
        let (result, reasons) = match result {
            Ok(()) if left_out.is_empty() => ("passed", vec![]),
            Ok(()) => {
                let reasons = left_out.iter().map(|it| format!("not looked at: {it}"));
                ("in part", reasons.collect())
            }
            Err(error) => {
                let (result, prefix) = match error.downcast_ref() {
                    Some(Skip(_)) if self.required.contains(&engine) => (FAILED, "required, but "),
                    Some(Skip(_)) => ("skipped", ""),
                    Some(Lacks(_)) => ("n/a", ""),
                    None => (FAILED, "FAILED: "),
                };
                (result, vec![format!("{prefix}{error:#}")])
            }
        };
        println!("{result} ({:.1} s)", start.elapsed().as_secs_f64());
        self.results.insert((engine, scenario), result);
        if result == FAILED {
            self.failed.push(format!("{engine}::{scenario}"));
        }
        for reason in reasons {
            println!("    {reason}");
            self.reasons.entry((engine, reason)).or_default().push(format!("`{scenario}`"));
        }
    }

    /// Writes a section for docs/engines.md: engines by scenarios, and the reasons.
    pub fn write(&self, path: &Path) -> Result<()> {
        let titles = self.versions.iter().map(|(engine, version)| format!("{engine} {version}"));
        let header = Vec::from_iter([String::new()].into_iter().chain(titles));
        let is_used = |it: &&Scenario| self.results.keys().any(|(_, scenario)| scenario == *it);
        let rows = Scenario::value_variants().iter().filter(is_used).map(|scenario| {
            let results =
                self.versions.keys().map(|engine| self.results.get(&(*engine, *scenario)));
            let cells = results.map(|it| it.copied().unwrap_or_default().to_owned());
            let value = scenario.to_possible_value();
            let about = value.and_then(|it| it.get_help().map(ToString::to_string));
            let title = format!("`{scenario}`: {}", about.unwrap_or_default());
            Vec::from_iter([title].into_iter().chain(cells))
        });
        let table = markdown::table(header, rows);
        let reasons = self.reasons.iter().map(|((engine, reason), scenarios)| {
            format!("- {engine} {}: {reason}\n", scenarios.join(", "))
        });
        let reasons = String::from_iter(reasons);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cgroups = if Path::new("/sys/fs/cgroup/cgroup.procs").exists() { 2 } else { 1 };
        let head = format!("Kernel {}, control groups of version {cgroups}", kernel.trim());
        fs::write(path, format!("{head}\n\n{table}\n\n{reasons}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
