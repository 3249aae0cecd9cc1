//! Samples of what pods cost with the image that is tried and with upstream's, for `cargo xtask bench`.

use crate::engine::{Engine, Name, Pod, Sandbox, Spec};
use crate::host;
use crate::images::{self, BUSYBOX, Image};
use crate::wait::until;
use anyhow::{Context, Result};
use harness::proc::anonymous;
use nix::unistd::Pid;
use procfs::process::Process;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Rounds with each image in turn, and pods in a row.
const ROUNDS: usize = 5;
const PODS: usize = 10;

/// Pods at once.
const MANY: usize = 200;

/// Where samples are written: a line with the engine, the program, the figure and its value.
pub struct Samples {
    file: File,
    engine: String,
    program: &'static str,
}

impl Samples {
    fn add(&mut self, figure: &str, value: f64) -> Result<()> {
        Ok(writeln!(self.file, "{}\t{}\t{figure}\t{value}", self.engine, self.program)?)
    }

    /// Adds how long something takes.
    async fn time<T>(&mut self, figure: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = work.await?;
        self.add(figure, start.elapsed().as_secs_f64() * 1e3)?;
        Ok(result)
    }
}

/// Measures on one engine, both images in turn.
pub async fn on<E: Engine>(name: Name, image: &Image, upstream: &Path, file: &Path) -> Result<()> {
    let engine = E::start(name, image).await?;
    let file = File::options().append(true).create(true).open(file)?;
    let version = format!("{name} {}", name.version().await?);
    let mut samples = Samples { file, engine: version, program: "" };
    engine.load(images::helpers().await?[0]).await?;
    for round in 0..ROUNDS {
        for (program, archive) in [("pause", &*image.archive), ("upstream", upstream)] {
            samples.program = program;
            change(&engine, image, archive, program == "pause").await?;
            measure(&engine, &mut samples).await?;
            if round == 0 {
                measure_many(&engine, &mut samples).await?;
            }
        }
    }
    engine.remove_all().await?;
    engine.end().await
}

/// Loads another image under the same name, and waits until pods are made of it.
async fn change<E: Engine>(engine: &E, ours: &Image, archive: &Path, is_ours: bool) -> Result<()> {
    engine.load(archive).await?;
    let program = ours.binary()?;
    until("pods run the other program", async || {
        let pod = engine.start_pod("change", Sandbox::Usual).await?;
        let running = fs::read(format!("/proc/{}/exe", engine.pid(&pod.pause).await?))?;
        engine.remove_pod(pod).await?;
        Ok(((running == program) == is_ours).then_some(()))
    })
    .await
}

/// Starts and stops pods, one after the other.
async fn measure<E: Engine>(engine: &E, samples: &mut Samples) -> Result<()> {
    for _ in 0..PODS {
        let pod = samples.time("start, ms", engine.start_pod("cost", Sandbox::Usual)).await?;
        let process = Process::new(engine.pid(&pod.pause).await?)?;
        samples.add("charged, KiB", host::memory_charge(&process)? as f64 / 1024.0)?;
        samples.time("stop, ms", engine.stop_pod(&pod)).await?;
        samples.time("remove, ms", engine.remove_pod(pod)).await?;
    }
    Ok(())
}

/// Stops a container that ignores SIGTERM; then starts many pods, and measures the memory of each and
/// of its shim.
async fn measure_many<E: Engine>(engine: &E, samples: &mut Samples) -> Result<()> {
    let pod = engine.start_pod("grace", Sandbox::Usual).await?;
    let sleep = Spec { shares_pid: false, ..Spec::new(BUSYBOX, &["sleep", "infinity"]) };
    let sleep = engine.run(&pod, "sleep", sleep).await?;
    samples.time("stop of `sleep infinity`, ms", engine.stop(&sleep)).await?;

    let mut pods: Vec<Pod> = Vec::new();
    for number in 0..MANY {
        pods.push(engine.start_pod(&format!("many-{number}"), Sandbox::Usual).await?);
    }
    for pod in &pods {
        let process = Process::new(engine.pid(&pod.pause).await?)?;
        let [program, shim] =
            [own_memory(&process)?, own_memory(&Process::new(process.stat()?.ppid)?)?];
        samples.add("program, KiB", program)?;
        samples.add("shim, KiB", shim)?;
        samples
            .add("program's share of program and shim, %", 100.0 * program / (program + shim))?;
    }
    engine.remove_all().await
}

/// Anonymous memory and page tables of a process, in KiB.
fn own_memory(process: &Process) -> Result<f64> {
    let page_tables = process.status()?.vmpte.context("no VmPTE")?;
    Ok((anonymous(Pid::from_raw(process.pid))? + page_tables) as f64)
}
