//! Selects the flavor and, for the freestanding one, sets the linker's options.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/sys/freestanding");
    println!("cargo::rustc-check-cfg=cfg(flavor, values(\"freestanding\", \"hosted\"))");

    let freestanding = Path::new(&variable("CARGO_MANIFEST_DIR")).join("src/sys/freestanding");
    let arch = variable("CARGO_CFG_TARGET_ARCH");

    let is_supported = variable("CARGO_CFG_TARGET_OS") == "linux"
        && freestanding.join(&arch).with_extension("rs").exists()
        && (arch != "powerpc64" || variable("CARGO_CFG_TARGET_ENDIAN") == "little");

    // Errors of this script instead of `compile_error!`, after which the compiler prints a page of
    // other errors.
    let flavor = if env::var_os("CARGO_FEATURE_HOSTED").is_some() {
        if env::var_os("CARGO_CFG_UNIX").is_none() {
            println!("cargo::error=the hosted flavor needs a Unix");
        }
        "hosted"
    } else {
        if !is_supported {
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

/// Sets the linker script and the options for the binary only. (RUSTFLAGS would apply to build
/// scripts, too.)
fn link(script: &Path) -> io::Result<()> {
    // A compiler driver would add the C library's startup files. For other architectures the linker is
    // called directly. The output format is an option and not in the script because gold ignores it
    // there, and would make an ELF file with a segment that is writable and executable.
    let linker = PathBuf::from(env::var_os("RUSTC_LINKER").unwrap_or_default());
    if linker.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b"ld")) {
        println!("cargo::rustc-link-arg-bins=--oformat=binary");
    } else {
        println!("cargo::rustc-link-arg-bins=-nostartfiles");
        println!("cargo::rustc-link-arg-bins=-Wl,--oformat=binary");
    }
    // Cargo corrects paths below OUT_DIR, and no others, in a copy of sources and target/.
    let copy = PathBuf::from(variable("OUT_DIR")).join("pause.ld");
    fs::copy(script, &copy)?;
    println!("cargo::rustc-link-arg-bins=-T{}", copy.display());

    // The crate `libc` asks for these, but only its constants and types are used. As they are empty, a
    // call of a C library's function is an undefined symbol.
    let empty = PathBuf::from(variable("OUT_DIR"));
    for library in ["c", "m", "rt", "pthread"] {
        fs::write(empty.join(format!("lib{library}.a")), "!<arch>\n")?;
    }
    println!("cargo::rustc-link-arg-bins=-L{}", empty.display());
    Ok(())
}

/// The minor version of the compiler.
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
