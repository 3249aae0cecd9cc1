//! What the host's /proc tells of processes, whichever container they are in.

use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use harness::proc;
use nix::unistd::Pid;
use procfs::ProcError;
use procfs::process::{MountInfo, Process, all_processes};
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::fs;

/// Waits until the process `pid` sleeps as pause does when it has done everything else. It has to be
/// `binary`, run by `user` of its user namespace, whoever that is on the host.
///
/// # Errors
///
/// When it ends before that, or is another program or another user's.
pub async fn asleep(pid: i32, binary: &[u8], user: u32) -> Result<Process> {
    let process = Process::new(pid)?;
    until("pause sleeps", async || {
        // With an error when it is gone.
        process.stat()?;
        Ok(proc::is_asleep(Pid::from_raw(pid)).then_some(()))
    })
    .await?;
    same("the command line", process.cmdline()?, vec!["/pause".to_owned()])?;
    let status = process.status()?;
    let expected = (on_host(pid, "uid_map", user)?, on_host(pid, "gid_map", user)?);
    same("the user and the group", (status.euid, status.egid), expected)?;
    ensure!(fs::read(format!("/proc/{pid}/exe"))? == binary, "the program is another one");
    Ok(process)
}

/// What a user or a group of the user namespace that process `pid` lives in is on the host.
fn on_host(pid: i32, map: &str, id: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/{map}"))?;
    // Where a range begins inside, where outside, and how long it is.
    let ranges = text.lines().map(|line| line.split_whitespace().map(|number| number.parse()));
    for range in ranges {
        if let [inside, outside, length] = range.collect::<Result<Vec<u32>, _>>()?[..]
            && (inside..=inside.saturating_add(length - 1)).contains(&id)
        {
            return Ok(outside + (id - inside));
        }
    }
    bail!("{id} is nobody in {map}: {text}")
}

/// The bytes of memory that the control group of `process` may use.
///
/// # Errors
///
/// When it has ended, or there is no limit.
pub fn memory_limit(process: &Process) -> Result<u64> {
    let mounts = Process::myself()?.mountinfo()?.0;
    for group in process.cgroups()? {
        // All controllers of version 2 are in hierarchy 0, which names none.
        let (kind, file) = match group.controllers.iter().any(|name| name == "memory") {
            true => ("cgroup", "memory.limit_in_bytes"),
            false if group.hierarchy == 0 => ("cgroup2", "memory.max"),
            false => continue,
        };
        let holds = |mount: &&MountInfo| {
            mount.fs_type == kind
                && (kind == "cgroup2" || mount.super_options.contains_key("memory"))
        };
        let Some(mount) = mounts.iter().find(holds) else { continue };
        let path = mount.mount_point.join(group.pathname.trim_start_matches('/')).join(file);
        if let Ok(limit) = fs::read_to_string(path) {
            return limit.trim().parse().context("there is no limit");
        }
    }
    bail!("it is in no control group for memory")
}

/// Whether this process may raise limits and lower OOM scores. Even root may not everywhere.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn has_cap_sys_resource() -> Result<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    Ok(Process::myself()?.status()?.capeff & CAP_SYS_RESOURCE != 0)
}

/// The namespaces of `kinds` (`net`, `ipc`, ...) that `process` lives in, by their numbers.
///
/// # Errors
///
/// When it has ended, or there is no such kind.
pub fn namespaces(process: &Process, kinds: &[&str]) -> Result<Vec<u64>> {
    let namespaces = process.namespaces()?.0;
    kinds
        .iter()
        .map(|kind| {
            let namespace = namespaces.iter().find(|(name, _)| name.as_os_str() == *kind);
            Ok(namespace.with_context(|| format!("no namespace of kind {kind}"))?.1.identifier)
        })
        .collect()
}

/// The processes that descend from `ancestor` and have not ended. This process adopts the orphans
/// among its descendants ([`adopt`]), so that none gets out of its sight.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn descendants(ancestor: i32) -> Result<HashMap<i32, String>> {
    let mut children: HashMap<i32, Vec<_>> = HashMap::new();
    for process in all_processes()? {
        match process.and_then(|process| process.stat()) {
            Ok(stat) => {
                children.entry(stat.ppid).or_default().push((stat.pid, stat.state, stat.comm))
            }
            Err(ProcError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut found = HashMap::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for (pid, state, name) in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            if state != 'Z' {
                found.insert(pid, name);
            }
        }
    }
    Ok(found)
}

/// Makes this process the parent of every orphan among its descendants.
///
/// # Errors
///
/// None that Linux since 3.4 knows.
pub fn adopt() -> Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// The mounts and the network interfaces that `process` sees.
///
/// # Errors
///
/// When it has ended.
pub fn surroundings(process: &Process) -> Result<HashSet<String>> {
    let mounts = process.mountinfo()?;
    let mounts = mounts.iter().map(|mount| format!("mount {}", mount.mount_point.display()));
    let links = process.dev_status()?;
    Ok(mounts.chain(links.keys().map(|link| format!("network interface {link}"))).collect())
}

/// Fails, with both of them, unless what was seen is what was expected.
///
/// # Errors
///
/// That.
pub fn same<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> Result<()> {
    ensure!(seen == expected, "{what}: {seen:?}, where {expected:?} was expected");
    Ok(())
}
