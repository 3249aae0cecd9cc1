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
}

/// A kernel of Debian's.
pub struct Kernel {
    /// `target_arch` in Rust.
    pub arch: &'static str,
    /// Release and name. The package is `linux-image-` and the name.
    pub name: &'static str,
    /// The size of its pages in KiB.
    pub page: u32,
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
    target("x86_64-unknown-linux-gnu", "x86_64", "linux/amd64"),
    target("aarch64-unknown-linux-gnu", "aarch64", "linux/arm64/v8"),
    target("armv7-unknown-linux-gnueabihf", "arm", "linux/arm/v7"),
    target("loongarch64-unknown-linux-gnu", "loongarch64", "linux/loong64"),
    target("powerpc64le-unknown-linux-gnu", "powerpc64", "linux/ppc64le"),
    target("riscv64gc-unknown-linux-gnu", "riscv64", "linux/riscv64"),
    target("s390x-unknown-linux-gnu", "s390x", "linux/s390x"),
];

const fn target(triple: &'static str, arch: &'static str, platform: &'static str) -> Target {
    Target { triple, arch, platform }
}

/// Every kernel that it is booted on.
pub const KERNELS: &[Kernel] = &[
    Kernel { arch: "x86_64", name: "bullseye/cloud-amd64", page: 4 },
    Kernel { arch: "x86_64", name: "bookworm/cloud-amd64", page: 4 },
    Kernel { arch: "x86_64", name: "trixie/cloud-amd64", page: 4 },
    Kernel { arch: "x86_64", name: "forky/cloud-amd64", page: 4 },
    Kernel { arch: "aarch64", name: "bookworm/cloud-arm64", page: 4 },
    Kernel { arch: "aarch64", name: "trixie/arm64-16k", page: 16 },
    Kernel { arch: "arm", name: "bookworm/armmp", page: 4 },
    Kernel { arch: "powerpc64", name: "bookworm/powerpc64le", page: 64 },
    Kernel { arch: "s390x", name: "bookworm/s390x", page: 4 },
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
