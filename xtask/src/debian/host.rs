//! The host, which has to be after a run as it was before.

use anyhow::{Context, Result, ensure};
use harness::proc::wait_until;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// What the names of the control groups of all runs begin with. Then comes the PID of the runner.
const CGROUPS: &str = "pause-debian-";

/// Top of the tree of control groups.
const TOP: &str = "/sys/fs/cgroup";

/// Name of the control groups of this run.
pub fn own_cgroup() -> String {
    format!("{CGROUPS}{}", process::id())
}

/// Removes the control groups of runs that have ended; they are empty.
pub fn remove_cgroups() -> Result<()> {
    let mut left = cgroups(Path::new(TOP))?;
    left.retain(|path| runner(path).is_some_and(|pid| !is_running(pid) || pid == process::id()));
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

fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// The folders below `folder`, each after its parent.
fn cgroups(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
            found.extend(cgroups(&entry.path())?);
        }
    }
    Ok(found)
}

/// What a run could change: things by their names, with their values.
#[derive(PartialEq)]
pub struct State(BTreeMap<String, String>);

impl State {
    /// Reads it.
    pub fn read() -> Result<Self> {
        let mut state = BTreeMap::new();
        let dpkg = Command::new("dpkg").arg("--get-selections").output();
        let dpkg = dpkg.context("cannot run dpkg")?.stdout;
        for line in String::from_utf8_lossy(&dpkg).lines() {
            state.insert(format!("package {line}"), String::new());
        }
        for line in fs::read_to_string("/proc/self/mounts")?.lines() {
            state.insert(format!("mount {line}"), String::new());
        }
        for link in fs::read_dir("/sys/class/net")? {
            state.insert(format!("network interface {}", link?.path().display()), String::new());
        }
        // A group of another run is that one's.
        let others = |path: &PathBuf| runner(path).is_none_or(|pid| pid == process::id());
        for path in cgroups(Path::new(TOP))?.into_iter().filter(others) {
            state.insert(format!("control group {}", path.display()), String::new());
        }
        settings(Path::new("/proc/sys"), &mut state)?;
        Ok(Self(state))
    }

    /// Waits until the host is so again.
    ///
    /// # Errors
    ///
    /// The differences, if they stay.
    pub fn wait(&self) -> Result<()> {
        let mut differences = Vec::new();
        let same = wait_until("the host is as it was", || {
            // It fails as long as a process of the run is there.
            let removed = remove_cgroups();
            differences = match Self::read() {
                Ok(now) => self.differences(&now),
                Err(error) => vec![error.to_string()],
            };
            differences.extend(removed.err().map(|error| format!("{error:#}")));
            differences.is_empty()
        });
        let list = differences.join("\n");
        ensure!(
            same.is_ok(),
            "the run, or somebody else meanwhile, has changed this host:\n{list}"
        );
        Ok(())
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let gone = self.0.keys().filter(|name| !now.0.contains_key(*name));
        // A run does not see the control groups of others.
        let gone =
            gone.filter(|name| !name.starts_with("control group")).map(|name| format!("- {name}"));
        let other = now.0.iter().filter_map(|(name, value)| match self.0.get(name) {
            // The kernel loads modules, which bring settings, when they are asked for.
            None if name.starts_with("setting") => None,
            None => Some(format!("+ {name}")),
            Some(old) => (old != value).then(|| format!("{name} was {old} and is {value}")),
        });
        gone.chain(other).collect()
    }
}

/// Collects the settings of the kernel, as sysctl(8) does.
fn settings(folder: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = (entry.as_ref().unwrap().path(), entry?.metadata()?);
        // What cannot be written are counters; this one counts as well.
        if metadata.is_dir() {
            settings(&path, found)?;
        } else if metadata.permissions().mode() & 0o200 != 0 && !path.ends_with("ns_last_pid") {
            // Some can only be written.
            let value = fs::read_to_string(&path).unwrap_or_default();
            found.insert(format!("setting {}", path.display()), value.trim().to_owned());
        }
    }
    Ok(())
}
