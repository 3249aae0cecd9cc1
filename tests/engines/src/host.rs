//! What /proc and /sys tell of processes, whichever container they are in.

use crate::wait::{ensure_eq, script, until, until_equal};
use anyhow::{Result, bail, ensure};
use caps::{CapSet, Capability};
use harness::proc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::process::Process;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Waits until the process `pid` sleeps as pause does when it has done everything else, and no signal
/// is pending. It has to be `binary`, run by `user` of its user namespace.
pub fn asleep(pid: i32, binary: &[u8], user: u32) -> Result<Process> {
    let process = Process::new(pid)?;
    until("pause sleeps", || {
        // Fails when it is gone.
        let status = process.status()?;
        let pending = status.sigpnd | status.shdpnd;
        let is_pending = |signal| pending >> (signal as i32 - 1) & 1 == 1;
        let is_busy = is_pending(Signal::SIGTERM) || is_pending(Signal::SIGINT);
        Ok((!is_busy && proc::is_asleep(Pid::from_raw(pid))).then_some(()))
    })?;
    ensure_eq("the first word", process.cmdline()?.first().map(String::as_str), Some("/pause"))?;
    let status = process.status()?;
    let expected = (host_id(pid, "uid_map", user)?, host_id(pid, "gid_map", user)?);
    ensure_eq("the user and the group", (status.euid, status.egid), expected)?;
    ensure!(fs::read(format!("/proc/{pid}/exe"))? == binary, "the program is another one");
    Ok(process)
}

/// The host's ID of a user or a group of the user namespace that process `pid` is in.
fn host_id(pid: i32, map: &str, id: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/{map}"))?;
    for line in text.lines() {
        let range: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let &[inside, outside, length] = &range[..] else { bail!("{map}: {text}") };
        if inside <= id && id - inside < length {
            return Ok(outside + (id - inside));
        }
    }
    bail!("{id} is nobody in {map}: {text}")
}

/// Whether this process may raise limits and lower OOM scores. Even root may not everywhere.
pub fn has_cap_sys_resource() -> Result<bool> {
    Ok(caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE)?)
}

/// Whether AppArmor's profile for containers may keep them from signaling pause, which is in no profile.
pub fn has_apparmor() -> bool {
    Path::new("/sys/kernel/security/apparmor/profiles").exists()
}

/// The namespaces of `kinds` (`net`, `ipc`, ...) that `process` is in, by their names.
pub fn namespaces(process: &Process, kinds: &[&str]) -> Result<Vec<PathBuf>> {
    let folder = Path::new("/proc").join(process.pid.to_string()).join("ns");
    kinds.iter().map(|kind| Ok(fs::read_link(folder.join(kind))?)).collect()
}

/// Everything on this machine that comes and goes with a pod, as lines.
pub fn surroundings() -> Result<HashSet<String>> {
    let found = script(include_str!("../surroundings.sh"), &[])?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Waits until everything that is there, as far as it counts, was there `before`.
pub fn is_as_before(
    before: &HashSet<String>,
    now: impl Fn() -> Result<HashSet<String>>,
    counts: impl Fn(&str) -> bool,
) -> Result<()> {
    let is_left = |it: &String| counts(it) && !before.contains(it);
    let left = || Ok(now()?.into_iter().filter(is_left).collect());
    until_equal("what is left behind", left, BTreeSet::new())
}
