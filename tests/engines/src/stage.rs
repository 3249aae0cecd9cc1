//! What every engine is given.

use crate::busybox;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What every engine is given.
pub struct Stage {
    /// The image's archive.
    pub image: PathBuf,
    /// The name that the archive gives it.
    pub reference: String,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
    /// Where the archives of the helper images are.
    folder: TempDir,
}

impl Stage {
    /// Prepares it. `binary` is the program that `image` was made with.
    ///
    /// # Errors
    ///
    /// When that cannot be read, or a helper image not be made.
    pub fn set(image: PathBuf, reference: String, binary: &Path) -> Result<Self> {
        let binary = fs::read(binary).with_context(|| format!("cannot read {binary:?}"))?;
        let folder = tempfile::Builder::new().prefix("pause-images-").tempdir()?;
        let stage = Self { image, reference, binary, folder };
        busybox::write(&stage.busybox()).context("cannot make an image of busybox")?;
        Ok(stage)
    }

    /// The version that the image's name ends in.
    pub fn version(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }

    /// The archive of [`busybox::REFERENCE`].
    pub fn busybox(&self) -> PathBuf {
        self.folder.path().join("busybox.tar")
    }
}
