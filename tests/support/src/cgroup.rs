//! Control groups, of either version: cgroups(7).

use crate::proc::wait_until;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;

/// A control group for a test. Dropping it removes it.
pub struct Cgroup {
    folder: PathBuf,
    unified: bool,
}

impl Cgroup {
    /// Makes an empty group that `controller` (memory, cpu, pids) is there for.
    ///
    /// # Errors
    ///
    /// When this machine, or this user, has none.
    pub fn new(controller: &str) -> Result<Self> {
        let top = Path::new("/sys/fs/cgroup");
        let unified = top.join("cgroup.controllers").exists();
        let parent = if unified { top.to_owned() } else { top.join(controller) };
        if unified {
            fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
                .with_context(|| format!("cannot have the controller {controller}"))?;
        }
        let folder = parent.join(format!("pause-{controller}-{}", process::id()));
        fs::create_dir(&folder)
            .with_context(|| format!("cannot make the control group {}", folder.display()))?;
        Ok(Self { folder, unified })
    }

    /// Writes to a file of the group: its name and what it is to say, for version 1 and for 2.
    ///
    /// # Errors
    ///
    /// When the kernel does not take it.
    pub fn set(&self, v1: (&str, &str), v2: (&str, &str)) -> Result<()> {
        let (file, value) = if self.unified { v2 } else { v1 };
        fs::write(self.folder.join(file), value)
            .with_context(|| format!("cannot set {file} to {value}"))
    }

    /// A file that takes a process into the group when the process writes 0 to it.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn door(&self) -> Result<File> {
        Ok(File::options().write(true).open(self.folder.join("cgroup.procs"))?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is busy until the last process in it is gone for good.
        let _ = wait_until("the group is removed", || fs::remove_dir(&self.folder).is_ok());
    }
}
