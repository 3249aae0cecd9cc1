//! What every engine is given.

use crate::engine::Skip;
use crate::images;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the command line names: archives of the image, and what they are made of.
#[derive(clap::Args)]
pub struct Props {
    /// Archive of the image
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Name that the archive gives the image
    #[arg(long)]
    reference: String,
    /// The program that the image was made with
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Archive of the image for another architecture, named pause:foreign
    #[arg(long, value_name = "FILE")]
    foreign: Option<PathBuf>,
    /// Archive of the image for several platforms, named pause:all
    #[arg(long, value_name = "FILE")]
    all: Option<PathBuf>,
}

/// What every engine is given.
pub struct Stage {
    /// The image's archive.
    pub image: PathBuf,
    /// The name that the archive gives it.
    pub reference: String,
    /// The bytes of `/pause` in it.
    pub binary: Vec<u8>,
    foreign: Option<PathBuf>,
    all: Option<PathBuf>,
    /// Where the archives of the helper images are.
    folder: TempDir,
}

impl Stage {
    /// The name of the image for another architecture.
    pub const FOREIGN: &str = "localhost/pause:foreign";

    /// The name of the image for several platforms.
    pub const ALL: &str = "localhost/pause:all";

    /// Prepares it.
    ///
    /// # Errors
    ///
    /// When the program cannot be read, or there is no place for files.
    pub fn set(props: Props) -> Result<Self> {
        let Props { image, reference, binary, foreign, all } = props;
        let binary = fs::read(&binary).with_context(|| format!("cannot read {binary:?}"))?;
        let folder = tempfile::Builder::new().prefix("pause-images-").tempdir()?;
        Ok(Self { image, reference, binary, foreign, all, folder })
    }

    /// The version that the image's name ends in.
    pub fn version(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }

    /// The archives of [`images::BUSYBOX`] and [`images::NGINX`].
    ///
    /// # Errors
    ///
    /// When they cannot be made.
    pub fn helpers(&self) -> Result<[PathBuf; 2]> {
        let [busybox, nginx] =
            ["busybox.tar", "nginx.tar"].map(|name| self.folder.path().join(name));
        // The first engine has them made for all.
        if !nginx.exists() {
            images::write_busybox(&busybox).context("cannot make an image of busybox")?;
            images::write_nginx(&nginx).context("cannot make an image of nginx")?;
        }
        Ok([busybox, nginx])
    }

    /// The archive of [`Stage::FOREIGN`].
    ///
    /// # Errors
    ///
    /// [`Skip`] where there is none.
    pub fn foreign(&self) -> Result<&Path> {
        archive(&self.foreign)
    }

    /// The archive of [`Stage::ALL`].
    ///
    /// # Errors
    ///
    /// [`Skip`] where there is none.
    pub fn all(&self) -> Result<&Path> {
        archive(&self.all)
    }
}

fn archive(archive: &Option<PathBuf>) -> Result<&Path> {
    let reason = "there is no core to build it with: rustup target add, or PAUSE_FOREIGN_RUSTC";
    archive.as_deref().ok_or_else(|| Skip(reason.to_owned()).into())
}
