//! What the tests and the workshop share: the artifact as it ships, and namespaces to try it in.

pub mod artifact;
pub mod engine;
