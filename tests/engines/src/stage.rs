//! What every engine is given.

use crate::busybox;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// What every engine is given.
pub struct Stage {
    /// The image's archive.
    pub image: PathBuf,
    /// The name that the archive gives it.
    pub reference: String,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
    /// The archive of the image that the containers beside it are made from:
    /// [`busybox::REFERENCE`].
    pub busybox: PathBuf,
    _folder: TempDir,
}

impl Stage {
    /// Prepares it. `binary` is the program that `image` was made with.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or busybox is not installed.
    pub fn set(image: PathBuf, reference: String, binary: PathBuf) -> Result<Self> {
        let binary = fs::read(&binary).with_context(|| format!("cannot read {binary:?}"))?;
        let folder = tempfile::Builder::new().prefix("pause-engines-").tempdir()?;
        let busybox = folder.path().join("busybox.tar");
        fs::write(&busybox, busybox::archive()?)?;
        Ok(Self { image, reference, binary, busybox, _folder: folder })
    }

    /// The version that the image's name ends in.
    pub fn version(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }
}
