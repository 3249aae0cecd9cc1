//! The operations that the life of the process is told in. Two flavors perform them: the one that
//! ships has neither a C library nor std under it; the other runs wherever std does.

#[cfg(flavor = "freestanding")]
mod freestanding;
#[cfg(flavor = "freestanding")]
pub use freestanding::*;

#[cfg(flavor = "hosted")]
mod hosted;
#[cfg(flavor = "hosted")]
pub use hosted::*;

/// The kernel said no. Its errno is dropped: there is no error that the process would meet in a way
/// of its own.
#[derive(Debug)]
pub struct Refused;

/// Descriptors that are closed one by one where close_range(2) is not to be had: as many as a
/// process may open by default.
const DESCRIPTORS: core::ffi::c_int = 1024;
