//! The targets that the freestanding flavor is for, and what each is called by whom.

use anyhow::{Context, Result};
use std::env;
use std::path::PathBuf;

/// A target that the freestanding flavor is for.
#[derive(Debug)]
pub struct Target {
    /// Name in rustc.
    pub triple: &'static str,
    /// `target_arch` in Rust.
    pub arch: &'static str,
    /// Platform in image indexes.
    pub platform: &'static str,
    /// Debian's kernels that it is booted on: release and name, and the size of its pages in KiB. The
    /// package is `linux-image-` and the name.
    pub kernels: &'static [(&'static str, u32)],
}

/// How large the image for a target may be, in bytes: with room for a longer version.
pub struct Budget {
    /// For the program.
    pub binary: u64,
    /// For the compressed layer that holds it.
    pub layer: u64,
    /// For each platform in an archive.
    pub archive: u64,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        triple: "x86_64-unknown-linux-gnu",
        arch: "x86_64",
        platform: "linux/amd64",
        kernels: &[
            ("bullseye/cloud-amd64", 4),
            ("bookworm/cloud-amd64", 4),
            ("trixie/cloud-amd64", 4),
            ("forky/cloud-amd64", 4),
        ],
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        arch: "aarch64",
        platform: "linux/arm64/v8",
        kernels: &[("bookworm/cloud-arm64", 4), ("trixie/arm64-16k", 16)],
    },
    Target {
        triple: "armv7-unknown-linux-gnueabihf",
        arch: "arm",
        platform: "linux/arm/v7",
        kernels: &[("bookworm/armmp", 4)],
    },
    Target {
        triple: "loongarch64-unknown-linux-gnu",
        arch: "loongarch64",
        platform: "linux/loong64",
        kernels: &[],
    },
    Target {
        triple: "powerpc64le-unknown-linux-gnu",
        arch: "powerpc64",
        platform: "linux/ppc64le",
        kernels: &[("bookworm/powerpc64le", 64)],
    },
    Target {
        triple: "riscv64gc-unknown-linux-gnu",
        arch: "riscv64",
        platform: "linux/riscv64",
        kernels: &[],
    },
    Target {
        triple: "s390x-unknown-linux-gnu",
        arch: "s390x",
        platform: "linux/s390x",
        kernels: &[("bookworm/s390x", 4)],
    },
];

impl Target {
    /// Whether this machine runs its programs itself.
    pub fn is_native(&self) -> bool {
        self.arch == env::consts::ARCH
    }

    /// Its architecture in the names of qemu's programs.
    pub fn qemu(&self) -> &'static str {
        if self.arch == "powerpc64" { "ppc64le" } else { self.arch }
    }

    /// How large the image for it may be. No other place repeats these numbers.
    pub fn budget(&self) -> Budget {
        match self.arch {
            "x86_64" => Budget { binary: 1_536, layer: 1_152, archive: 16_384 },
            _ => Budget { binary: 2_560, layer: 1_536, archive: 16_384 },
        }
    }

    /// Path of the program that emulates system calls and instructions of this target.
    pub fn user_emulator(&self) -> Result<PathBuf> {
        find(&format!("qemu-{}-static", self.qemu()))
    }

    /// Path of the program that emulates a whole machine of this target.
    pub fn system_emulator(&self) -> Result<PathBuf> {
        find(&format!("qemu-system-{}", self.qemu()))
    }
}

/// Finds one of qemu's programs.
fn find(program: &str) -> Result<PathBuf> {
    which::which(program).with_context(|| {
        format!(
            "there is no {program}; on Debian it is in qemu-user-static, qemu-system-arm, \
             qemu-system-misc, qemu-system-ppc or qemu-system-x86"
        )
    })
}
