//! The operations that `main.rs` is written in, in two flavors. The freestanding one ships; it needs
//! neither a C library nor std. The hosted one is for a Unix that the freestanding one does not
//! support, and the baseline that shows what std costs.

#[cfg(flavor = "freestanding")]
mod freestanding;
#[cfg(flavor = "freestanding")]
pub use freestanding::*;

#[cfg(flavor = "hosted")]
mod hosted;
#[cfg(flavor = "hosted")]
pub use hosted::*;

/// A system call failed. There is no errno, because the program treats all of them alike.
#[derive(Debug)]
pub struct Error;

/// Number of descriptors that are closed one by one where close_range(2) is unavailable: the default
/// limit of open files.
const MAX_FD_FALLBACK: core::ffi::c_int = 1024;
