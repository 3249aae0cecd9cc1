//! How a trial ends, in libtest-mimic's words: passed, failed, or ignored because of the machine.

use libtest_mimic::{Completion, Failed};
use std::env;

/// Whether nothing may be skipped: with `PAUSE_NO_SKIP=1`, as CI has it.
pub fn no_skip() -> bool {
    env::var_os("PAUSE_NO_SKIP").is_some_and(|value| value == "1")
}

/// What cannot be tried on this machine is ignored with the reason; where nothing may be skipped, it
/// fails.
///
/// # Errors
///
/// The reason, if [`no_skip`].
pub fn skip(reason: String) -> Result<Completion, Failed> {
    if no_skip() { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) }
}

/// What was tried has passed, or failed for the error and its causes.
///
/// # Errors
///
/// The error, in a line.
pub fn outcome(result: anyhow::Result<()>) -> Result<Completion, Failed> {
    result.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
}
