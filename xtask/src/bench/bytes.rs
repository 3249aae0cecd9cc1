//! How large a peer is on a disk and on a wire.

use super::figures::{Figure, Section};
use super::peer::Peer;
use crate::image::{Image, Recipe};
use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write;

/// Measures the files of the peers.
///
/// # Errors
///
/// When a file cannot be read, or there is no image.
pub fn measure(peers: &[Peer]) -> Result<Section> {
    let figure = |name| Figure::new(name, "bytes", 0, peers.len());
    let [mut file, mut gzip, mut zstd, mut archive] =
        ["file", "gzip -9", "zstd -19", "image archive"].map(figure);
    for (index, peer) in peers.iter().enumerate() {
        let path = peer.program();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        file.samples[index].push(bytes.len() as f64);
        gzip.samples[index].push(encoder.finish()?.len() as f64);
        zstd.samples[index].push(zstd::bulk::compress(&bytes, 19)?.len() as f64);
        if peer.is_ours() {
            let image = Image::build(&Recipe::default())?;
            archive.samples[index].push(image.archive.len() as f64);
        }
    }
    Ok(Section {
        title: "Bytes",
        note:
            "Of the program alone: shared libraries that it loads, and the command that it runs, \
               come on top. The archive is what `cargo xtask image` writes, uncompressed."
                .to_owned(),
        figures: vec![file, gzip, zstd, archive],
        chart: Some(("bytes", "Bytes of the program")),
    })
}
