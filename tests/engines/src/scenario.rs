//! What an engine is tried for, and what it takes to be tried.

use crate::stage::Stage;
use anyhow::Result;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::pin::Pin;

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

/// A scenario as one engine plays it.
pub type Scene<E> = for<'a> fn(&'a E) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// An engine that the image is tried on. Another one is another implementation of this, in a file
/// of its own, and a line in `main`.
pub trait Engine: Sized + 'static {
    /// Its name.
    const NAME: support::engine::Engine;

    /// What it is tried for, in this order. The first takes the image, and always comes along.
    const SCENES: &[(Scenario, Scene<Self>)];

    /// Brings up an instance of its own, apart from every other one on this machine.
    ///
    /// # Errors
    ///
    /// [`Skip`] when the machine has no such engine or may not run it; anything else is a failure.
    async fn start(stage: &Stage) -> Result<Self>;

    /// Removes everything that scenarios left, stops the instance and makes sure that nothing of it
    /// remains. Where this is not reached, dropping stops the instance all the same.
    ///
    /// # Errors
    ///
    /// When something remains, or the instance does not stop by itself.
    async fn teardown(self) -> Result<()>;
}

/// The error that says that something cannot be tried here, and why.
#[derive(Debug)]
pub struct Skip(pub String);

impl Display for Skip {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Error for Skip {}
