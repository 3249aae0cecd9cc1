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
    /// The pod of Kubernetes' tutorial: one container writes what another one serves.
    Tutorial,
    /// The containers of a pod have network, host name and System V IPC in common.
    Shared,
    /// A container of a pod dies, comes back, and one of another image takes its place; the pod is
    /// still the same.
    Replace,
    /// The daemon goes and comes back, and finds the pod as it was.
    Restart,
    /// Somebody kills pause: the engine takes note, and starts the pod again.
    Killed,
    /// As little as the engine can be told to allow is enough.
    Hardened,
    /// It lives in a user namespace of its own.
    Remapped,
    /// The image for another architecture is refused in the engine's own words.
    Foreign,
    /// Of the image for all platforms the engine takes its own.
    Platforms,
    /// 100 pods at once, and none is lost.
    Many,
    /// The Dockerfile makes the same program as cargo.
    Build,
    /// The engine goes, and nothing of it is left.
    Teardown,
}

impl Scenario {
    /// All of them, in the order in which the matrix shows them.
    pub const ALL: [Self; 18] = [
        Self::Start,
        Self::Load,
        Self::Stop,
        Self::Arguments,
        Self::HostPid,
        Self::Pod,
        Self::Tutorial,
        Self::Shared,
        Self::Replace,
        Self::Restart,
        Self::Killed,
        Self::Hardened,
        Self::Remapped,
        Self::Foreign,
        Self::Platforms,
        Self::Many,
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
            Self::Tutorial => "tutorial",
            Self::Shared => "shared",
            Self::Replace => "replace",
            Self::Restart => "restart",
            Self::Killed => "killed",
            Self::Hardened => "hardened",
            Self::Remapped => "remapped",
            Self::Foreign => "foreign",
            Self::Platforms => "platforms",
            Self::Many => "many",
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
            Self::Tutorial => scenes::tutorial(engine).await,
            Self::Shared => scenes::shared(engine).await,
            Self::Replace => scenes::replace(engine, stage).await,
            Self::Restart => scenes::restart(engine, stage).await,
            Self::Killed => scenes::killed(engine, stage).await,
            Self::Hardened => scenes::hardened(engine, stage).await,
            Self::Remapped => scenes::remapped(engine, stage).await,
            Self::Foreign => scenes::foreign(engine, stage).await,
            Self::Platforms => scenes::platforms(engine, stage).await,
            Self::Many => scenes::many(engine, stage).await,
            Self::Build => scenes::build(engine, stage).await,
        }
    }
}
