//! Linkers, compilers and options to build the product with, and changes to its sources: each gives
//! the file that ships, or at least one that runs, or an error that says why not.

use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor};
use harness::target::{TARGETS, Target};
use harness::trial::{Trials, obstacle};
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use which::which;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for options in OPTIONS {
        let name = options.flags.trim_start_matches("-C").replace(" -C", "+");
        let linker = options.flags.rsplit_once("-fuse-ld=").map_or("lld", |(_, linker)| linker);
        trials.add(format!("options::{name}"), missing(&format!("ld.{linker}"), linker), || {
            gives(build::project(), options.flags, options.result)
        });
    }
    for version in VERSIONS {
        trials.add(format!("refuses::{version}"), None, || is_refused_by_version(version));
    }
    // Debian 12 has no compiler for loongarch64.
    for target in TARGETS.iter().filter(|it| !it.is_native() && it.arch != "loongarch64") {
        let name = target.triple.replace("-unknown", "");
        let name = name.replace("armv7", "arm").replace("riscv64gc", "riscv64");
        let compiler = format!("{name}-gcc");
        let missing = missing(&compiler, &format!("gcc-{name}"))
            .or(obstacle(build::find_core(target.triple)));
        trials.add(format!("compiler::{compiler}"), missing, move || {
            gives_what_ships(&compiler, target)
        });
    }
    let missing =
        obstacle(build::find_core(MUSL).and_then(|_| build::find_core(TARGETS[0].triple)));
    trials.add("musl", missing, musl_makes_no_difference);
    for change in CHANGES {
        trials.add(format!("link_refuses::{}", change.name), None, || change.is_refused());
    }
    trials.run()
}

/// Says how to get a program, if it is not there.
fn missing(program: &str, package: &str) -> Option<String> {
    obstacle(which(program).with_context(|| format!("on Debian: apt install {package}")))
}

#[derive(Clone, Copy)]
enum BuildOutcome {
    /// The file that ships.
    Same,
    /// A file that runs.
    Runs,
    /// No file, and an error that has this text.
    Refused(&'static str),
}
use BuildOutcome::{Refused, Runs, Same};

struct Options {
    flags: &'static str,
    result: BuildOutcome,
}

const RELOCATION: BuildOutcome = Refused("something needs a relocation or writable memory");
const PANIC: BuildOutcome = Refused("undefined symbol: something_can_panic");

/// RUSTFLAGS that choose a linker, change the link, or make code of another kind.
const OPTIONS: &[Options] = &[
    // GNU ld.
    Options { flags: "-Clinker-features=-lld", result: Same },
    // The system's lld, and not the toolchain's.
    Options { flags: "-Clink-arg=-fuse-ld=lld", result: Same },
    Options { flags: "-Clink-arg=-fuse-ld=mold", result: Refused("use lld") },
    Options {
        flags: "-Clink-arg=-no-pie -Clink-arg=-Wl,--no-gc-sections -Cdefault-linker-libraries=yes",
        result: Same,
    },
    Options { flags: "-Crelocation-model=pie -Ctarget-feature=+crt-static", result: Same },
    Options { flags: "-Cdebuginfo=2 -Cstrip=none -Cforce-unwind-tables=yes", result: Same },
    Options { flags: "-Copt-level=3 -Clto=off", result: Runs },
    Options { flags: "-Clink-dead-code", result: Runs },
    Options { flags: "-Clinker-plugin-lto", result: Runs },
    Options { flags: "-Crelocation-model=static", result: Refused("recompile with -fPIC") },
    Options {
        flags: "-Crelocation-model=static -Clinker-features=-lld",
        result: Refused("relocation truncated to fit"),
    },
    Options { flags: "-Ccode-model=large", result: RELOCATION },
    Options {
        flags: "-Ccode-model=large -Crelocation-model=static -Clinker-features=-lld",
        result: RELOCATION,
    },
];

/// Builds the product with RUSTFLAGS in a folder, and returns the path of the file.
fn build_with(
    folder: &Path,
    flags: &str,
    configure: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<PathBuf> {
    let mut cargo = build::cargo("build");
    cargo.args(["--release", "--package=pause", "--message-format=json-render-diagnostics"]);
    cargo.arg("--target-dir").arg(folder);
    configure(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.replace(' ', "\x1f")));
    build::binary_of(cargo)
}

/// Builds `sources` with RUSTFLAGS and checks what becomes of it.
fn gives(sources: &Path, flags: &str, outcome: BuildOutcome) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let built = build_with(folder.path(), flags, |cargo| cargo.current_dir(sources));
    if let Refused(reason) = outcome {
        let error = built.err().context("it was built")?.to_string();
        ensure!(error.contains(reason), "{error}");
        return Ok(());
    }
    let path = built?;
    let version = build::stdout_of(Command::new(&path).arg("--version"))?;
    ensure!(version == format!("pause {}\n", env!("CARGO_PKG_VERSION")), "{version}");
    if let Same = outcome {
        let ships = fs::read(build::build(Flavor::Freestanding)?)?;
        ensure!(fs::read(path)? == ships, "it made another file");
    }
    Ok(())
}

/// Linkers that cannot make the file, or not the same everywhere, in their own words.
const VERSIONS: &[&str] = &[
    "GNU gold (GNU Binutils for Debian 2.40) 1.16",
    "LLD 13.0.1 (compatible with GNU linkers)",
    "Wild version 0.5.0 (compatible with GNU linkers)",
    "mold 1.10.1 (compatible with GNU ld)",
    "zig ld 0.15.2",
];

fn is_refused_by_version(version: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let linker = folder.path().join("linker");
    // For whatever else than its version it calls the compiler, which links the build scripts.
    let script = format!("case \"$*\" in *--version) echo '{version}';; *) exec cc \"$@\";; esac");
    fs::write(&linker, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&linker, Permissions::from_mode(0o755))?;
    gives(build::project(), &format!("-Clinker={}", linker.display()), Refused("lld 14 or later"))
}

/// Builds with a compiler for another architecture as the linker, and with the toolchain's lld, as on a
/// machine of that architecture.
fn gives_what_ships(compiler: &str, target: &Target) -> Result<()> {
    let lld = build::sysroot()?.join("lib/rustlib").join(TARGETS[0].triple).join("bin/gcc-ld");
    let path = format!("{}:{}", lld.display(), env::var("PATH")?);
    let rustc = build::find_core(target.triple)?;
    let folder = tempfile::tempdir()?;
    let built = build_with(folder.path(), &format!("-Clinker={compiler}"), |cargo| {
        cargo.args(["--target", target.triple]).env("RUSTC", rustc).env("PATH", path)
    })?;
    ensure!(fs::read(built)? == fs::read(target.build()?)?, "it made another file");
    Ok(())
}

const MUSL: &str = "x86_64-unknown-linux-musl";

/// Builds for musl, where rustc adds startup files with another `_start`.
fn musl_makes_no_difference() -> Result<()> {
    let rustc = build::find_core(MUSL)?;
    let build_for = |triple| -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let target = ["--target", triple];
        let built = build_with(folder.path(), "", |cargo| cargo.args(target).env("RUSTC", &rustc))?;
        Ok(fs::read(built)?)
    };
    ensure!(build_for(MUSL)? == build_for(TARGETS[0].triple)?, "it made another file");
    Ok(())
}

/// A change to src/main.rs with which the program would crash at run time.
struct Change {
    name: &'static str,
    new: &'static str,
    result: BuildOutcome,
}

/// The line of src/main.rs that is replaced.
const OLD: &str = "    let _ = sys::ignore(SIGPIPE);";

const CHANGES: &[Change] = &[
    Change {
        name: "static_data_with_pointers",
        new: r#"static TABLE: [&[u8]; 2] = [b"a", b"b"]; core::hint::black_box(&TABLE);"#,
        result: RELOCATION,
    },
    Change {
        name: "writable_data",
        new: "use core::sync::atomic::*; static COUNT: AtomicU8 = AtomicU8::new(1);
              COUNT.fetch_add(1, Ordering::Relaxed);",
        result: RELOCATION,
    },
    Change {
        name: "a_panic",
        new: "core::hint::black_box(arguments.first()).unwrap();",
        result: PANIC,
    },
    Change {
        name: "a_function_of_the_c_library",
        new: "unsafe { libc::sync() };",
        result: Refused("undefined symbol: sync"),
    },
];

impl Change {
    fn is_refused(&self) -> Result<()> {
        let folder = tempfile::tempdir()?;
        build::copy_sources(folder.path())?;
        let path = folder.path().join("src/main.rs");
        let source = fs::read_to_string(&path)?;
        ensure!(source.matches(OLD).count() == 1, "src/main.rs has changed");
        fs::write(&path, source.replace(OLD, self.new))?;
        gives(folder.path(), "", self.result)
    }
}
