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
        } else if arch == "powerpc64" && minor_version() < 95 {
            println!(
                "cargo::error=asm! is stable on powerpc64 from Rust 1.95 on: build pause with that \
                 or a later one, or with `--features hosted`"
            );
        }
        link(&freestanding.join("pause.ld"), &arch)?;
        "freestanding"
    };
    println!("cargo::rustc-cfg=flavor=\"{flavor}\"");
    Ok(())
}

/// Sets the linker, its script and its options, for the binary only. (RUSTFLAGS would apply to build
/// scripts, too.)
fn link(script: &Path, arch: &str) -> io::Result<()> {
    // Where cargo reads the name of the linker.
    let triple = variable("TARGET").to_uppercase().replace(['-', '.'], "_");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_{triple}_LINKER");
    println!("cargo::rerun-if-changed=.cargo");

    let linker = Linker::from_environment();
    let mut options = match linker.choose(arch) {
        Ok(options) => options,
        Err(reason) => {
            println!("cargo::error={reason}");
            return Ok(());
        }
    };
    if !linker.is_direct {
        // A compiler would add the C library's startup files.
        options.push("-nostartfiles".into());
    }
    // The output format is an option and not in the script because gold ignores it there. `-pie`, after
    // whatever else was said about it, has the linker refuse code that depends on its address.
    let mut last = vec!["--oformat=binary", "-pie"];
    if arch == "x86_64" {
        // GNU ld does not refuse all of it in this format, but no such code can name this address.
        last.push("--defsym=base=0x100000000");
    }
    if variable("CARGO_CFG_TARGET_ENV") == "musl" {
        // The C library's startup files, which rustc itself adds here, have a `_start`, too.
        last.push("--allow-multiple-definition");
    }
    options.extend(last.into_iter().map(|option| linker.option(option)));
    // Cargo corrects paths below OUT_DIR, and no others, in a copy of sources and target/.
    let copy = PathBuf::from(variable("OUT_DIR")).join("pause.ld");
    fs::copy(script, &copy)?;
    options.push(format!("-T{}", copy.display()));

    // The crate `libc` asks for these, but only its constants and types are used. As they are empty, a
    // call of a C library's function is an undefined symbol.
    let empty = PathBuf::from(variable("OUT_DIR"));
    for library in ["c", "m", "rt", "pthread"] {
        fs::write(empty.join(format!("lib{library}.a")), "!<arch>\n")?;
    }
    options.push(format!("-L{}", empty.display()));
    for option in options {
        println!("cargo::rustc-link-arg-bins={option}");
    }
    Ok(())
}

/// What rustc calls to link.
struct Linker {
    program: PathBuf,
    /// Whether it is a linker, and not a compiler that calls one.
    is_direct: bool,
    /// Whether the user has chosen a linker, and not only a compiler.
    is_chosen: bool,
    /// Options that RUSTFLAGS give it.
    options: Vec<String>,
}

impl Linker {
    fn from_environment() -> Self {
        let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        let mut program = env::var_os("RUSTC_LINKER").map(PathBuf::from);
        let (mut options, mut flavor) = (Vec::new(), "");
        let mut is_chosen = false;
        for flag in flags.split('\x1f') {
            let flag = flag.strip_prefix("--codegen").or(flag.strip_prefix("-C")).unwrap_or(flag);
            match flag.trim_start_matches('=').split_once('=') {
                Some(("linker", value)) => program = Some(value.into()),
                Some(("linker-flavor", value)) => flavor = value,
                Some(("linker-features", _)) => is_chosen = true,
                Some(("link-arg", value)) => options.push(value.to_owned()),
                Some(("link-args", values)) => {
                    options.extend(values.split_whitespace().map(str::to_owned));
                }
                _ => {}
            }
        }
        let usual = match flavor {
            "ld" => "ld",
            "ld.lld" => "lld",
            _ => "cc",
        };
        let program = program.unwrap_or_else(|| usual.into());
        // rustc, too, tells linkers from compilers by the name.
        let name = program.file_stem().unwrap_or_default().as_encoded_bytes();
        let is_direct = flavor != "gcc" && (usual != "cc" || name.ends_with(b"ld"));
        let names_linker = |option: &String| {
            ["-fuse-ld", "--ld-path", "-B"].iter().any(|start| option.starts_with(start))
        };
        is_chosen |= is_direct || options.iter().any(names_linker);
        Self { program, is_direct, is_chosen, options }
    }

    /// Returns the options with which it links the same file as everywhere, or why it cannot.
    ///
    /// lld can. GNU ld can on x86_64; elsewhere it refuses the format, or makes another file.
    fn choose(&self, arch: &str) -> Result<Vec<String>, String> {
        // The first version of lld that makes the same file, and its name of the architecture, for a
        // compiler that is for another one.
        let (oldest, emulation) = match arch {
            "aarch64" => (14, "aarch64linux"),
            "arm" => (14, "armelf_linux_eabi"),
            "loongarch64" => (20, "elf64loongarch"),
            "powerpc64" => (14, "elf64lppc"),
            "riscv64" => (14, "elf64lriscv"),
            "s390x" => (18, "elf64_s390"),
            _ => (14, "elf_x86_64"),
        };
        let mut choices = Vec::new();
        if !self.is_chosen {
            // The toolchain's own lld, then the system's: compilers for another architecture do not
            // look there themselves.
            let own = Path::new(&rustc("--print=sysroot")).join("lib/rustlib");
            let mut folders = vec![own.join(variable("HOST")).join("bin/gcc-ld")];
            folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
            folders.retain(|folder| folder.join("ld.lld").exists());
            for folder in folders {
                let folder = format!("-B{}", folder.display());
                choices.push(vec!["-fuse-ld=lld".into(), folder, format!("-Wl,-m{emulation}")]);
            }
        }
        choices.push(Vec::new());
        let mut version = String::new();
        for options in choices {
            version = self.version(&options);
            let lld = version.split_once("LLD ").and_then(|(_, number)| number.split_once('.'));
            let is_good = match lld {
                Some((major, _)) => major.parse().is_ok_and(|major: u32| major >= oldest),
                None => arch == "x86_64" && version.starts_with("GNU ld "),
            };
            if is_good {
                return Ok(options);
            }
        }
        Err(if self.is_chosen {
            let program = self.program.display();
            format!("use lld {oldest} or later; the chosen linker, {program}, says: {version}")
        } else {
            format!("pause for {arch} is linked by lld: install lld {oldest} or later")
        })
    }

    /// Returns the first line in which the linker says what it is, or an error.
    fn version(&self, options: &[String]) -> String {
        let mut command = Command::new(&self.program);
        if self.program.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b"lld")) {
            command.args(["-flavor", "gnu"]);
        }
        command.args(&self.options).args(options).arg(self.option("--version"));
        let text = match command.output() {
            Ok(output) => [output.stdout, output.stderr].concat(),
            Err(error) => error.to_string().into_bytes(),
        };
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }

    /// An option for the linker, as the program takes it.
    fn option(&self, option: &str) -> String {
        if self.is_direct { option.into() } else { format!("-Wl,{option}") }
    }
}

/// The minor version of the compiler.
fn minor_version() -> u32 {
    let version = rustc("--version");
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.unwrap_or_else(|| panic!("rustc --version says {version:?}"))
}

/// Returns what rustc prints with the given option.
fn rustc(option: &str) -> String {
    let output = Command::new(variable("RUSTC")).arg(option).output().expect("rustc runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo did not set {name}: {error}"))
}
