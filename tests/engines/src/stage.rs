//! What every engine is given.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// What every engine is given.
pub struct Stage {
    /// The image's archive.
    pub image: PathBuf,
    /// The name that the archive gives it.
    pub reference: String,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
}

impl Stage {
    /// Prepares it. `binary` is the program that `image` was made with.
    ///
    /// # Errors
    ///
    /// When that cannot be read.
    pub fn set(image: PathBuf, reference: String, binary: &Path) -> Result<Self> {
        let binary = fs::read(binary).with_context(|| format!("cannot read {binary:?}"))?;
        Ok(Self { image, reference, binary })
    }

    /// The version that the image's name ends in.
    pub fn version(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }
}
