//! The container engines that the image is tried on.

use anyhow::{Error, Result, anyhow};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// A container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Docker: its daemon, driven by its command line.
    Docker,
    /// containerd's CRI plugin, driven over its socket as a kubelet does.
    Containerd,
    /// Podman's pods, root's.
    Podman,
    /// Podman's pods, an ordinary user's.
    PodmanRootless,
    /// runc with bundles of our own.
    Runc,
    /// crun with bundles of our own.
    Crun,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Docker,
        Self::Containerd,
        Self::Podman,
        Self::PodmanRootless,
        Self::Runc,
        Self::Crun,
    ];
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::PodmanRootless => "podman-rootless",
            Self::Runc => "runc",
            Self::Crun => "crun",
        })
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(|engine| engine.to_string()).join(", ");
        Self::ALL
            .into_iter()
            .find(|engine| engine.to_string() == name)
            .ok_or_else(|| anyhow!("no such engine; there are {}", known()))
    }
}
