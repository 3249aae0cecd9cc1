//! Picks the flavor and, for the freestanding one, tells the linker how to make its file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/sys/freestanding");
    println!("cargo::rustc-check-cfg=cfg(flavor, values(\"freestanding\", \"hosted\"))");

    let freestanding = Path::new(&variable("CARGO_MANIFEST_DIR")).join("src/sys/freestanding");
    let arch = variable("CARGO_CFG_TARGET_ARCH");

    let freestands = variable("CARGO_CFG_TARGET_OS") == "linux"
        && freestanding.join(&arch).with_extension("rs").exists()
        && (arch != "powerpc64" || variable("CARGO_CFG_TARGET_ENDIAN") == "little");

    // Errors of this script and not `compile_error!`, which the compiler would follow up with a page
    // of others.
    let flavor = if env::var_os("CARGO_FEATURE_HOSTED").is_some() {
        if env::var_os("CARGO_CFG_UNIX").is_none() {
            println!("cargo::error=the hosted flavor needs a Unix");
        }
        "hosted"
    } else {
        if !freestands {
            println!(
                "cargo::error=pause has no freestanding flavor for this target: build it with \
                 `--features hosted` if the target is a Unix with std, or add its \
                 src/sys/freestanding/<arch>.rs"
            );
        } else if arch == "powerpc64" && minor_version()? < 95 {
            println!(
                "cargo::error=asm! is stable on powerpc64 from Rust 1.95 on: build pause with that \
                 or a later one, or with `--features hosted`"
            );
        }
        link(&freestanding.join("pause.ld"))?;
        "freestanding"
    };
    println!("cargo::rustc-cfg=flavor=\"{flavor}\"");
    Ok(())
}

/// Hands the linker script and its options to the linker of the binary alone. (RUSTFLAGS would
/// reach build scripts too.)
fn link(script: &Path) -> io::Result<()> {
    // For other architectures it is the linker itself, and no compiler's driver that would add files.
    let linker = PathBuf::from(env::var_os("RUSTC_LINKER").unwrap_or_default());
    if !linker.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b"ld")) {
        println!("cargo::rustc-link-arg-bins=-nostartfiles");
    }
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());

    // The crate `libc`, of which only the numbers are wanted, names these to the linker. Empty ones
    // serve, and make sure of it: a function of a C library is then an undefined symbol.
    let empty = PathBuf::from(variable("OUT_DIR"));
    for library in ["c", "m", "rt", "pthread"] {
        fs::write(empty.join(format!("lib{library}.a")), "!<arch>\n")?;
    }
    println!("cargo::rustc-link-arg-bins=-L{}", empty.display());
    Ok(())
}

/// The number after the first dot of the compiler's version.
fn minor_version() -> io::Result<u32> {
    let output = Command::new(variable("RUSTC")).arg("--version").output()?;
    let version = String::from_utf8_lossy(&output.stdout);
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.ok_or_else(|| io::Error::other(format!("rustc --version says {version:?}")))
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo did not set {name}: {error}"))
}
