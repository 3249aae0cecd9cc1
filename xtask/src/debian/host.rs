//! The host, which has to be after a run as it was before.

use anyhow::{Context, Result, ensure};
use harness::proc::wait_until;
use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// What the names of the control groups of all runs begin with. Then comes the PID of the runner.
const CGROUPS: &str = "pause-debian-";

/// Name of the control groups of this run.
pub fn own_cgroup() -> String {
    format!("{CGROUPS}{}", process::id())
}

/// Removes the control groups of runs that have ended; they are empty.
pub fn remove_cgroups() -> Result<()> {
    let has_ended = |pid: u32| pid == process::id() || !Path::new(&format!("/proc/{pid}")).exists();
    let mut left = cgroups()?;
    left.retain(|path| runner(path).is_some_and(has_ended));
    // A group goes after its children.
    for path in left.iter().rev() {
        fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The PID of the runner whose control group this is.
fn runner(cgroup: &Path) -> Option<u32> {
    let mut names = cgroup.iter().filter_map(|name| name.to_str()?.strip_prefix(CGROUPS));
    names.next()?.parse().ok()
}

fn cgroups() -> Result<Vec<PathBuf>> {
    let mut cgroups = walk(Path::new("/sys/fs/cgroup"))?;
    cgroups.retain(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(cgroups.iter().map(DirEntry::path).collect())
}

/// Everything below a folder, each entry after the folder that it is in.
fn walk(folder: &Path) -> Result<Vec<DirEntry>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        // Somebody else has removed it meanwhile.
        Err(_) if !folder.exists() => return Ok(found),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let below = if entry.file_type()?.is_dir() { walk(&entry.path())? } else { Vec::new() };
        found.push(entry);
        found.extend(below);
    }
    Ok(found)
}

/// What a run could change, in a line for each thing.
pub struct State(BTreeSet<String>);

impl State {
    /// Reads it.
    pub fn read() -> Result<Self> {
        let dpkg = Command::new("dpkg").arg("--get-selections").output();
        let packages = String::from_utf8(dpkg.context("cannot run dpkg")?.stdout)?;
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut state = BTreeSet::new();
        state.extend(packages.lines().map(|line| format!("package {line}")));
        state.extend(mounts.lines().map(|line| format!("mount {line}")));
        for link in fs::read_dir("/sys/class/net")? {
            state.insert(format!("network interface {}", link?.path().display()));
        }
        // A group of another run is that one's.
        let others = |path: &PathBuf| runner(path).is_none_or(|pid| pid == process::id());
        for path in cgroups()?.into_iter().filter(others) {
            state.insert(format!("control group {}", path.display()));
        }
        // As sysctl(8) does it. What cannot be written are counters; ns_last_pid counts as well.
        for entry in walk(Path::new("/proc/sys"))? {
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let is_writable = metadata.is_file() && metadata.permissions().mode() & 0o200 != 0;
            if is_writable && !path.ends_with("ns_last_pid") {
                // Some can only be written.
                let value = fs::read_to_string(&path).unwrap_or_default();
                state.insert(format!("setting {}: {}", path.display(), value.trim()));
            }
        }
        Ok(Self(state))
    }

    /// Waits until the host is so again; if it does not become so, the error lists the differences.
    pub fn wait(&self) -> Result<()> {
        let mut differences = Vec::new();
        let same = wait_until("the host is as it was", || {
            // It fails as long as a process of the run is there.
            let found = remove_cgroups().and_then(|()| Ok(self.differences(&Self::read()?)));
            differences = found.unwrap_or_else(|error| vec![format!("{error:#}")]);
            differences.is_empty()
        });
        let list = differences.join("\n");
        ensure!(
            same.is_ok(),
            "the run, or somebody else meanwhile, has changed this host:\n{list}"
        );
        Ok(())
    }

    /// What has gone, which includes the old value of a setting, and what has come.
    fn differences(&self, now: &Self) -> Vec<String> {
        // A run does not see the control groups of others.
        let gone = self.0.difference(&now.0).filter(|it| !it.starts_with("control group"));
        // The kernel loads modules, which bring settings, when they are asked for.
        let come = now.0.difference(&self.0).filter(|it| !it.starts_with("setting"));
        gone.map(|it| format!("- {it}")).chain(come.map(|it| format!("+ {it}"))).collect()
    }
}
