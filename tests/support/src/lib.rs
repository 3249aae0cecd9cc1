//! What the tests and the workshop share: the artifact as it ships, namespaces to try it in, and
//! the processes that keep it company there.

pub mod actor;
pub mod artifact;
pub mod attacks;
pub mod calls;
pub mod cgroup;
pub mod engine;
pub mod life;
pub mod orphans;
pub mod proc;
pub mod sandbox;
pub mod seccomp;
pub mod trial;
