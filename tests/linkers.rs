//! Linkers, compilers and options to build the product with, and changes to its sources: each gives
//! the file that ships, or at least one that runs, or an error that says why not.

use anyhow::{Context, Result, ensure};
use harness::build::{self, Flavor};
use harness::target::{TARGETS, Target};
use harness::trial::{Trials, obstacle};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use which::which;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for options in OPTIONS {
        let linker = options.flags.split_once("-fuse-ld=");
        let missing = linker.and_then(|(_, name)| {
            let found = which(format!("ld.{name}"));
            obstacle(found.context("on Debian: apt install binutils lld mold"))
        });
        let name = options.flags.trim_start_matches("-C").replace(" -C", "+");
        trials.add(format!("options::{name}"), missing, || {
            gives(build::project(), options.flags, options.result)
        });
    }
    for version in VERSIONS {
        trials.add(format!("refuses::{version}"), None, || is_refused_by_version(version));
    }
    for compiler in COMPILERS {
        let found = which(compiler.name).with_context(|| {
            format!("on Debian: apt install gcc-{}", compiler.name.trim_end_matches("-gcc"))
        });
        let core = build::find_core(compiler.triple);
        let missing = obstacle(core).or(obstacle(found));
        trials.add(format!("compiler::{}", compiler.name), missing, || compiler.gives_what_ships());
    }
    let missing =
        obstacle(build::find_core(MUSL).and_then(|_| build::find_core(TARGETS[0].triple)));
    trials.add("musl", missing, musl_makes_no_difference);
    for change in CHANGES {
        trials.add(format!("link_refuses::{}", change.name), None, || change.is_refused());
    }
    trials.run()
}

/// What becomes of a build.
#[derive(Clone, Copy)]
enum Outcome {
    /// The file that ships.
    Same,
    /// A file that runs.
    Runs,
    /// No file, and an error that has this text.
    Refused(&'static str),
}
use Outcome::{Refused, Runs, Same};

struct Options {
    flags: &'static str,
    result: Outcome,
}

const RELOCATION: Outcome = Refused("something needs a relocation or writable memory");
const PANIC: Outcome = Refused("undefined symbol: something_can_panic");

/// RUSTFLAGS: all that chooses a linker, changes the link, or makes code of another kind.
const OPTIONS: &[Options] = &[
    Options { flags: "-Clink-arg=-fuse-ld=bfd", result: Same },
    Options { flags: "-Clink-arg=-fuse-ld=lld", result: Same },
    Options { flags: "-Clink-arg=-fuse-ld=gold", result: Refused("use lld") },
    Options { flags: "-Clink-arg=-fuse-ld=mold", result: Refused("use lld") },
    Options { flags: "-Clinker-features=-lld", result: Same },
    Options { flags: "-Ctarget-feature=+crt-static", result: Same },
    Options { flags: "-Clink-arg=-no-pie", result: Same },
    Options { flags: "-Clink-arg=-Wl,--no-gc-sections", result: Same },
    Options { flags: "-Cdefault-linker-libraries=yes", result: Same },
    Options { flags: "-Crelocation-model=pie", result: Same },
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
    Options { flags: "-Copt-level=3", result: Runs },
    Options { flags: "-Cdebuginfo=2", result: Same },
    Options { flags: "-Cstrip=none", result: Same },
    Options { flags: "-Cforce-unwind-tables=yes", result: Same },
    Options { flags: "-Clink-dead-code", result: Runs },
    Options { flags: "-Clto=off", result: Runs },
    Options { flags: "-Clinker-plugin-lto", result: Runs },
];

/// Builds `sources` with RUSTFLAGS and compares.
fn gives(sources: &Path, flags: &str, result: Outcome) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut build = build::cargo("build");
    build.current_dir(sources).args(["--release", "--package=pause", "--target-dir"]);
    build.arg(folder.path()).env("CARGO_ENCODED_RUSTFLAGS", flags.replace(' ', "\x1f"));
    let output = build.output()?;
    let (status, stderr) = (output.status, String::from_utf8_lossy(&output.stderr));
    let path = folder.path().join("release/pause");
    if let Refused(reason) = result {
        ensure!(!status.success() && stderr.contains(reason), "{status}: {stderr}");
        ensure!(!path.exists(), "there is a file all the same");
        return Ok(());
    }
    ensure!(status.success(), "{status}: {stderr}");
    let output = Command::new(&path).arg("--version").output()?;
    let version = format!("pause {}\n", env!("CARGO_PKG_VERSION"));
    ensure!(output.status.success() && output.stdout == version.as_bytes(), "{output:?}");
    if let Same = result {
        let ships = fs::read(build::build(Flavor::Freestanding)?)?;
        ensure!(fs::read(path)? == ships, "it made another file");
    }
    Ok(())
}

/// Linkers that cannot make the file, or not the same everywhere, in their own words.
const VERSIONS: &[&str] = &[
    "LLD 13.0.1 (compatible with GNU linkers)",
    "Wild version 0.5.0 (compatible with GNU linkers)",
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

/// A compiler of Debian 12 for another architecture. It has none for loongarch64.
struct Compiler {
    name: &'static str,
    triple: &'static str,
}

const COMPILERS: &[Compiler] = &[
    Compiler { name: "aarch64-linux-gnu-gcc", triple: "aarch64-unknown-linux-gnu" },
    Compiler { name: "arm-linux-gnueabihf-gcc", triple: "armv7-unknown-linux-gnueabihf" },
    Compiler { name: "powerpc64le-linux-gnu-gcc", triple: "powerpc64le-unknown-linux-gnu" },
    Compiler { name: "riscv64-linux-gnu-gcc", triple: "riscv64gc-unknown-linux-gnu" },
    Compiler { name: "s390x-linux-gnu-gcc", triple: "s390x-unknown-linux-gnu" },
];

impl Compiler {
    /// Builds with it as the linker, and with the toolchain's lld, as on a machine of its architecture.
    fn gives_what_ships(&self) -> Result<()> {
        let is_same = |target: &&Target| target.triple == self.triple;
        let target = TARGETS.iter().find(is_same).context("it is a target")?;
        let lld = build::sysroot()?.join("lib/rustlib").join(TARGETS[0].triple).join("bin/gcc-ld");
        let path = std::env::var("PATH")?;
        let triple = self.triple.to_uppercase().replace('-', "_");
        let file = built_for(self.triple, self.triple, |build| {
            build.env(format!("CARGO_TARGET_{triple}_LINKER"), self.name);
            build.env("PATH", format!("{}:{path}", lld.display()));
        })?;
        ensure!(file == fs::read(target.build()?)?, "it made another file");
        Ok(())
    }
}

const MUSL: &str = "x86_64-unknown-linux-musl";

/// Builds for musl, where rustc adds startup files with another `_start`.
fn musl_makes_no_difference() -> Result<()> {
    let [usual, musl] = [TARGETS[0].triple, MUSL].map(|triple| built_for(triple, MUSL, |_| ()));
    ensure!(musl? == usual?, "it made another file");
    Ok(())
}

/// Builds for a target by a compiler that has `core` for `core`, and returns the file.
fn built_for(triple: &str, core: &str, configure: impl FnOnce(&mut Command)) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let mut build = build::cargo("build");
    build.args(["--release", "--package=pause", "--target", triple, "--target-dir"]);
    build.arg(folder.path()).env("RUSTC", build::find_core(core)?);
    configure(build.env("CARGO_ENCODED_RUSTFLAGS", ""));
    let output = build.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::read(folder.path().join(triple).join("release/pause"))?)
}

/// A change to src/main.rs with which the program would crash at run time.
struct Change {
    name: &'static str,
    new: &'static str,
    result: Outcome,
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
