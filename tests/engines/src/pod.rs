//! What a pod expects of its PID 1, as a container in it finds it.

use crate::engine::{Container, Engine};
use crate::host::same;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use harness::proc::activity;
use nix::unistd::Pid;
use procfs::FromRead;
use procfs::process::{Process, Stat};

/// How many.
const ORPHANS: usize = 2_000;

/// PID 1 is `/pause`, as the user it is to be, where the container's own `ps` looks.
///
/// # Errors
///
/// When it is not.
pub async fn init<E: Engine>(engine: &E, container: &Container) -> Result<()> {
    let list = shell(engine, container, "ps -o pid,user,args").await?;
    let init = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|columns| columns.first() == Some(&"1"))
        .with_context(|| format!("ps shows no PID 1:\n{list}"))?;
    same("PID 1 in ps", init, vec!["1", &E::USER.to_string(), "/pause"])
}

/// Orphans end in the pod, nothing of them remains, and nobody woke pause for it.
///
/// # Errors
///
/// When zombies remain, or pause was woken.
pub async fn reaps(pause: &Process, engine: &impl Engine, container: &Container) -> Result<()> {
    let pid = Pid::from_raw(pause.pid);
    let before = activity(pid)?;
    make_orphans(engine, container).await?;
    let mut left = 0;
    let gone = until("every orphan is gone", async || {
        left = orphans(engine, container).await?.len();
        Ok((left == 0).then_some(()))
    });
    gone.await.with_context(|| format!("{left} orphans are left"))?;
    same("what pause cost the scheduler", activity(pid)?, before)
}

/// The counterpart, without which [`reaps`] proves nothing: where PID 1 does not reap, the same
/// orphans do remain, and are found.
///
/// # Errors
///
/// When they are not.
pub async fn does_not_reap(engine: &impl Engine, container: &Container) -> Result<()> {
    make_orphans(engine, container).await?;
    let mut zombies = 0;
    let all = until("every orphan is a zombie", async || {
        zombies =
            orphans(engine, container).await?.iter().filter(|orphan| orphan.state == 'Z').count();
        Ok((zombies == ORPHANS).then_some(()))
    });
    all.await.with_context(|| format!("{zombies} zombies are there"))
}

/// Forks twice for each orphan: its parent ends at once.
async fn make_orphans(engine: &impl Engine, container: &Container) -> Result<()> {
    // The last field of loadavg is the newest PID of the namespace.
    let script =
        format!("cat /proc/loadavg; for i in $(seq {ORPHANS}); do (: &); done; cat /proc/loadavg");
    let said = shell(engine, container, &script).await?;
    let pids = said
        .lines()
        .map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse()?))
        .collect::<Result<Vec<usize>>>()
        .with_context(|| format!("cannot read {said:?}"))?;
    ensure!(
        matches!(pids[..], [before, after] if after - before >= 2 * ORPHANS),
        "the PIDs {pids:?} leave no room for {ORPHANS} orphans"
    );
    Ok(())
}

/// The processes whose parent is PID 1. What engines put into a pod has a parent outside of it.
async fn orphans(engine: &impl Engine, container: &Container) -> Result<Vec<Stat>> {
    // Some end while cat is on its way.
    let stats = shell(engine, container, "cat /proc/[0-9]*/stat 2>/dev/null || true").await?;
    let stats: Vec<_> = stats
        .lines()
        .map(|line| Stat::from_read(line.as_bytes()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot read {stats:?}"))?;
    ensure!(stats.iter().any(|stat| stat.pid == 1), "PID 1 is not in /proc");
    Ok(stats.into_iter().filter(|stat| stat.ppid == 1).collect())
}

/// Runs a script in a container and returns what it prints.
///
/// # Errors
///
/// When it fails.
pub async fn shell(engine: &impl Engine, container: &Container, script: &str) -> Result<String> {
    engine.exec(container, &["sh", "-c", script]).await
}
