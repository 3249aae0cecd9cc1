//! What /proc and /sys tell of processes, whichever container they are in.

use crate::wait::{script, success, until};
use anyhow::{Context, Result, bail, ensure};
use caps::{CapSet, Capability};
use harness::proc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::net::dev_status;
use procfs::process::{Process, all_processes};
use std::collections::HashSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::process::Command;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Waits until the process `pid` sleeps as pause does when it has done everything else, and no signal
/// is pending. It has to be `binary`, run by `user` of its user namespace.
pub async fn asleep(pid: i32, binary: &[u8], user: u32) -> Result<Process> {
    let process = Process::new(pid)?;
    until("pause sleeps", async || {
        // With an error when it is gone.
        let status = process.status()?;
        let pending = status.sigpnd | status.shdpnd;
        let is_pending = |signal| pending >> (signal as i32 - 1) & 1 == 1;
        let is_busy = is_pending(Signal::SIGTERM) || is_pending(Signal::SIGINT);
        Ok((!is_busy && proc::is_asleep(Pid::from_raw(pid))).then_some(()))
    })
    .await?;
    same("the first word", process.cmdline()?.first().map(String::as_str), Some("/pause"))?;
    let status = process.status()?;
    let expected = (on_host(pid, "uid_map", user)?, on_host(pid, "gid_map", user)?);
    same("the user and the group", (status.euid, status.egid), expected)?;
    ensure!(fs::read(format!("/proc/{pid}/exe"))? == binary, "the program is another one");
    Ok(process)
}

/// What a user or a group of the user namespace that process `pid` lives in is on the host.
fn on_host(pid: i32, map: &str, id: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/{map}"))?;
    for line in text.lines() {
        // Where a range begins inside, where outside, and how long it is.
        let range: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        if range[0] <= id && id - range[0] < range[2] {
            return Ok(range[1] + (id - range[0]));
        }
    }
    bail!("{id} is nobody in {map}: {text}")
}

/// The version of control groups on this machine.
pub fn cgroup_version() -> u8 {
    if Path::new(CGROUPS).join("cgroup.procs").exists() { 2 } else { 1 }
}

/// The bytes of memory that the control group of `process` may use, and those that it is in.
pub fn memory_limit(process: &Process) -> Result<u64> {
    least_memory(process, "memory.limit_in_bytes", "memory.max")
}

/// The least number in files of the control group of `process`, and of those that it is in.
fn least_memory(process: &Process, v1: &str, v2: &str) -> Result<u64> {
    for group in process.cgroups()? {
        let (hierarchy, file) = match cgroup_version() {
            2 if group.hierarchy == 0 => ("", v2),
            1 if group.controllers == ["memory"] => ("memory", v1),
            _ => continue,
        };
        let top = Path::new(CGROUPS).join(hierarchy);
        let path = top.join(&group.pathname[1..]);
        let groups = path.ancestors().take_while(|group| group.starts_with(&top));
        let limits = groups.filter_map(|group| fs::read_to_string(group.join(file)).ok());
        let least = limits.filter_map(|limit| limit.trim().parse().ok()).min();
        return least.with_context(|| format!("there is no number in {file}"));
    }
    bail!("it is in no control group for memory")
}

/// Whether the kernel runs programs of other architectures by an emulator.
pub async fn has_emulator() -> Result<bool> {
    const LIST: &str = r#"
        folder=$(mktemp --directory)
        mount -t binfmt_misc binfmt_misc "$folder" 2> /dev/null || exit 0
        ls "$folder"
        umount "$folder"
    "#;
    Ok(script(LIST, &[]).await?.contains("qemu-"))
}

/// Whether this process may raise limits and lower OOM scores. Even root may not everywhere.
pub fn has_cap_sys_resource() -> Result<bool> {
    Ok(caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE)?)
}

/// The IP address of a process, whose namespace has one interface besides `lo`.
pub async fn address(process: &Process) -> Result<String> {
    let mut show = Command::new("nsenter");
    show.args(["--target", &process.pid.to_string(), "--net", "hostname", "--all-ip-addresses"]);
    let addresses = success(&mut show).await?;
    Ok(addresses.split(' ').next().unwrap_or_default().to_owned())
}

/// The namespaces of `kinds` (`net`, `ipc`, ...) that `process` lives in, by their names.
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

/// Fails, with both of them, unless what was seen is what was expected.
pub fn same<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> Result<()> {
    ensure!(seen == expected, "{what}: {seen:?}, where {expected:?} was expected");
    Ok(())
}
