//! How large the image may be: round numbers with room. No other place repeats them.

use crate::target::Target;

/// Limits in bytes.
pub struct Budget {
    /// For the program.
    pub binary: u64,
    /// For the compressed layer that holds it.
    pub layer: u64,
    /// For each platform in an archive.
    pub archive: u64,
}

impl Target {
    /// How large the image for it may be.
    pub fn budget(&self) -> Budget {
        match self.triple.starts_with("x86_64-") {
            true => Budget { binary: 1_536, layer: 1_024, archive: 16_384 },
            false => Budget { binary: 2_560, layer: 1_536, archive: 16_384 },
        }
    }
}
