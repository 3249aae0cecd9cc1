//! What an engine is tried for.

use crate::engine::Engine;
use crate::scenes;
use crate::stage::Stage;
use anyhow::Result;
use std::fmt::{self, Display, Formatter};

/// What an engine is tried for: a row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The engine comes up.
    Start,
    /// It takes the archive, and shows the image as it should be.
    Load,
    /// Its own way to end a container ends pause with exit code 0, and leaves nothing.
    Stop,
    /// pause answers arguments, and refuses unknown ones.
    Arguments,
    /// In the host's PID namespace pause warns, does no harm and stops as ever.
    HostPid,
    /// A container joins pause's namespaces, finds it as PID 1, and its orphans leave no zombie.
    Pod,
    /// A container of a pod dies and another takes its place; the pod is still the same.
    Replace,
    /// As little as the engine can be told to allow is enough.
    Hardened,
    /// The Dockerfile makes the same program as cargo.
    Build,
    /// The engine goes, and nothing of it is left.
    Teardown,
}

impl Scenario {
    /// All of them, in the order in which the matrix shows them.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Load,
        Self::Stop,
        Self::Arguments,
        Self::HostPid,
        Self::Pod,
        Self::Replace,
        Self::Hardened,
        Self::Build,
        Self::Teardown,
    ];
}

impl Display for Scenario {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Load => "load",
            Self::Stop => "stop",
            Self::Arguments => "arguments",
            Self::HostPid => "host-pid",
            Self::Pod => "pod",
            Self::Replace => "replace",
            Self::Hardened => "hardened",
            Self::Build => "build",
            Self::Teardown => "teardown",
        })
    }
}

impl Scenario {
    /// Plays it on an engine. Those that an engine begins and ends with are not played, but done.
    ///
    /// # Errors
    ///
    /// When something is not as it should be; [`Skip`](crate::engine::Skip) or
    /// [`Lacks`](crate::engine::Lacks) when it cannot be tried.
    pub async fn play<E: Engine>(self, engine: &mut E, stage: &Stage) -> Result<()> {
        match self {
            Self::Start | Self::Teardown => Ok(()),
            Self::Load => scenes::load(engine, stage).await,
            Self::Stop => scenes::stop(engine, stage).await,
            Self::Arguments => scenes::arguments(engine, stage).await,
            Self::HostPid => scenes::host_pid(engine, stage).await,
            Self::Pod => scenes::pod(engine, stage).await,
            Self::Replace => scenes::replace(engine, stage).await,
            Self::Hardened => scenes::hardened(engine, stage).await,
            Self::Build => scenes::build(engine, stage).await,
        }
    }
}
