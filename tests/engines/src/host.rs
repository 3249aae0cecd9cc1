//! What /proc and /sys tell of processes, whichever container they are in.

use crate::wait::{ensure_eq, until};
use anyhow::{Result, bail, ensure};
use caps::{CapSet, Capability};
use harness::proc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::net::dev_status;
use procfs::process::{Process, all_processes};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const CGROUPS: &str = "/sys/fs/cgroup";

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

/// The version of control groups on this machine.
pub fn cgroup_version() -> u8 {
    if Path::new(CGROUPS).join("cgroup.procs").exists() { 2 } else { 1 }
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

/// Everything on this machine that comes and goes with a pod: processes, mounts, network interfaces,
/// control groups.
pub fn surroundings() -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for process in all_processes()?.flatten() {
        // A thread of the kernel has no command line.
        let words = process.cmdline().unwrap_or_default();
        if !words.is_empty() {
            found.insert(format!("process {} {words:?}", process.pid));
        }
    }
    let mounts = Process::myself()?.mountinfo()?;
    found.extend(mounts.iter().map(|mount| format!("mount {}", mount.mount_point.display())));
    found.extend(dev_status()?.keys().map(|link| format!("network interface {link}")));
    // In each hierarchy, engines keep a group at the top. Slices and scopes are systemd's.
    let hierarchies = if cgroup_version() == 2 { vec![CGROUPS.into()] } else { folders(CGROUPS) };
    let tops = hierarchies.iter().flat_map(folders);
    let mut groups: Vec<_> = tops
        .filter(|top| !top.ends_with(".slice") && !top.ends_with(".scope"))
        .flat_map(|top| folders(&top))
        .collect();
    while let Some(group) = groups.pop() {
        groups.extend(folders(&group));
        match group.rsplit('/').next().unwrap_or_default() {
            // Podman and Docker keep these.
            "conmon" | "buildkit" => {}
            name => drop(found.insert(format!("control group {name}"))),
        }
    }
    Ok(found)
}

/// The folders in a folder.
fn folders(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path().display().to_string()).collect()
}
