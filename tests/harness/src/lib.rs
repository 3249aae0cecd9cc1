//! What tests and development commands share: how the product is built and for which targets,
//! sandboxes to run it in, and helper processes inside of them.

pub mod build;
pub mod calls;
pub mod helper;
pub mod markdown;
pub mod orphans;
pub mod proc;
pub mod sandbox;
pub mod seccomp;
pub mod target;
pub mod trial;

pub use linkme;
