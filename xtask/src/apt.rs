//! Packages from the distribution.

use anyhow::{Result, bail, ensure};
use std::process::Command;

/// Installs `packages`, by their names in Debian and Ubuntu.
///
/// # Errors
///
/// When apt-get is missing or fails.
pub fn install(packages: &[&str]) -> Result<()> {
    let install = ["install", "--yes", "--no-install-recommends"];
    for arguments in [&["update"][..], &[&install[..], packages].concat()] {
        let mut apt = Command::new("apt-get");
        match apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status() {
            Ok(status) => ensure!(status.success(), "{apt:?}: {status} (it has to be root's)"),
            Err(error) => bail!(
                "cannot run apt-get: {error}; --install is for Debian and Ubuntu, elsewhere \
                 install what is there {}",
                packages.join(" ")
            ),
        }
    }
    Ok(())
}
