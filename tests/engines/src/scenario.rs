//! What an engine is tried for.

use crate::engine::Engine;
use crate::scenes;
use crate::stage::Stage;
use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use std::fmt::{self, Display, Formatter};

/// What an engine is tried for: a row of the matrix, which takes name and text from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The engine comes up.
    Start,
    /// It takes the archive, and shows the image as it should be.
    Load,
    /// On the engine's SIGTERM pause ends with exit code 0; removed, it leaves nothing.
    Stop,
    /// Arguments are answered, unknown ones refused.
    Arguments,
    /// In the host's PID namespace it warns, does no harm and stops as ever.
    HostPid,
    /// PID 1 of the pod's containers is `/pause`, and 2,000 orphans leave no zombie.
    Pod,
    /// The pod of Kubernetes' tutorial: nginx serves what another container writes.
    Tutorial,
    /// The containers of a pod have network, host name and System V IPC in common.
    Shared,
    /// A container dies, comes back, is replaced: the pod is still the same.
    Replace,
    /// The engine's daemon goes and comes back, and finds the pod as it was.
    Restart,
    /// Somebody kills pause: the engine takes note, and starts the pod again.
    Killed,
    /// Read-only root, no capabilities, no new privileges, seccomp, least memory.
    Hardened,
    /// In a user namespace of its own.
    Remapped,
    /// The image for another architecture is refused, with the reason.
    Foreign,
    /// From the image for all platforms the engine picks its own.
    Platforms,
    /// 100 pods at once, and none is lost.
    Many,
    /// The Dockerfile makes the same program as cargo.
    Build,
    /// The engine goes, and nothing of it is left.
    Teardown,
}

impl Scenario {
    /// What stands here about it.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

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

impl Display for Scenario {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", PossibleValue::get_name))
    }
}
