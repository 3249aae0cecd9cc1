//! Control groups, of either version: cgroups(7).

use crate::proc::wait_until;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;

/// A control group for a test. Dropping it removes it.
pub struct Cgroup {
    /// Its folder in /sys/fs/cgroup.
    pub folder: PathBuf,
    unified: bool,
}

impl Cgroup {
    /// Makes an empty group with the controller memory, cpu or pids: below the closest group around
    /// this process whose children already have it. No existing group is changed.
    pub fn new(controller: &str) -> Result<Self> {
        let top = Path::new("/sys/fs/cgroup");
        let unified = top.join("cgroup.controllers").exists();
        let parent = if unified { parent_with(controller, top)? } else { top.join(controller) };
        remove_left_over(&parent, controller)?;
        let folder = parent.join(format!("pause-{controller}-{}", process::id()));
        fs::create_dir(&folder)
            .with_context(|| format!("cannot make the control group {}", folder.display()))?;
        Ok(Self { folder, unified })
    }

    /// Writes to a file of the group: file and value for version 1, and for version 2.
    pub fn set(&self, v1: (&str, &str), v2: (&str, &str)) -> Result<()> {
        let (file, value) = if self.unified { v2 } else { v1 };
        fs::write(self.folder.join(file), value)
            .with_context(|| format!("cannot set {file} to {value}"))
    }

    /// Opens the file that moves a process into the group when the process writes 0 to it.
    pub fn procs_file(&self) -> Result<File> {
        Ok(File::options().write(true).open(self.folder.join("cgroup.procs"))?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is busy until its last process has been reaped.
        let _ = wait_until("the group is removed", || fs::remove_dir(&self.folder).is_ok());
    }
}

fn parent_with(controller: &str, top: &Path) -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no control group")?;
    let has_it = |folder: &&Path| {
        let enabled = fs::read_to_string(folder.join("cgroup.subtree_control"));
        folder.starts_with(top)
            && enabled.is_ok_and(|it| it.split_whitespace().any(|it| it == controller))
    };
    let own = top.join(own);
    let parent = own.ancestors().find(has_it).with_context(|| {
        format!("no control group around this process has {controller} in cgroup.subtree_control")
    })?;
    Ok(parent.to_owned())
}

/// Removes the groups of test programs that were killed.
fn remove_left_over(parent: &Path, controller: &str) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(&format!("pause-{controller}-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // The kernel refuses where a process is in it.
            let _ = fs::remove_dir(parent.join(&name));
        }
    }
    Ok(())
}
