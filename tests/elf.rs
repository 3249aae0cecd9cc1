//! The ELF file that ships, and changes to the sources and linkers that fail to make it.
//!
//! A target without `core` on this machine is ignored, and the reason says how to get it. With
//! `PAUSE_NO_SKIP=1`, as in CI, it fails.

use anyhow::{Result, anyhow, bail, ensure};
use harness::build::{self, Flavor};
use harness::target::{TARGETS, Target};
use harness::trial::{Trials, obstacle};
use object::elf::{
    EM_AARCH64, EM_ARM, EM_LOONGARCH, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64, ET_DYN, FileHeader32,
    FileHeader64, Machine, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD,
};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use std::process::{Command, ExitCode, Output};
use std::{env, fs};
use which::which;

/// What the ELF header of a target's file names as the architecture.
fn machine(target: &Target) -> Machine {
    match target.arch {
        "aarch64" => EM_AARCH64,
        "arm" => EM_ARM,
        "loongarch64" => EM_LOONGARCH,
        "powerpc64" => EM_PPC64,
        "riscv64" => EM_RISCV,
        "s390x" => EM_S390,
        "x86_64" => EM_X86_64,
        other => panic!("add {other} to this list"),
    }
}

/// The smallest page of any architecture.
const PAGE: u64 = 4096;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for target in TARGETS {
        let missing = obstacle(build::find_core(target.triple)).filter(|_| !target.is_native());
        trials.add(format!("shape::{}", target.triple), missing, || has_its_shape(target));
    }
    for breakage in BREAKAGES {
        let name = format!("link_refuses::{}", breakage.name);
        trials.add(name, None, || is_refused(breakage));
    }
    for (linker, refusal) in LINKERS {
        let missing = obstacle(which(format!("ld.{linker}")).map_err(|_| {
            anyhow!("there is no ld.{linker}; on Debian: apt install binutils lld mold")
        }));
        trials.add(format!("linker::{linker}"), missing, || links_or_refuses(linker, *refusal));
    }
    trials.run()
}

/// Linkers that compilers know by name, and what they say if they cannot make the file.
const LINKERS: &[(&str, Option<&str>)] = &[
    ("bfd", None),
    ("lld", None),
    ("gold", Some("binary output format not compatible with")),
    ("mold", Some("mold: fatal:")),
];

/// A linker makes the file that ships, or fails. It never makes another file.
fn links_or_refuses(linker: &str, refusal: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut link = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    link.current_dir(build::project()).arg("rustc").args(["--release", "--package=pause"]);
    link.arg("--target-dir").arg(folder.path()).env("CARGO_ENCODED_RUSTFLAGS", "");
    let Output { status, stderr, .. } =
        link.args(["--", &format!("-Clink-arg=-fuse-ld={linker}")]).output()?;
    let stderr = String::from_utf8_lossy(&stderr);
    let binary = fs::read(folder.path().join("release/pause"));
    match refusal {
        Some(refusal) => {
            ensure!(!status.success() && stderr.contains(refusal), "{status}: {stderr}");
            ensure!(binary.is_err(), "there is a file all the same");
        }
        None => {
            ensure!(status.success(), "{status}: {stderr}");
            let ours = fs::read(build::build(Flavor::Freestanding)?)?;
            ensure!(binary? == ours, "it made another file");
        }
    }
    Ok(())
}

fn has_its_shape(target: &Target) -> Result<()> {
    let bytes = fs::read(target.build()?)?;
    match FileKind::parse(&*bytes)? {
        FileKind::Elf32 => is_in_shape::<FileHeader32<Endianness>>(&bytes, target),
        FileKind::Elf64 => is_in_shape::<FileHeader64<Endianness>>(&bytes, target),
        other => bail!("{other:?}"),
    }
}

/// The same for either size of address and either order of bytes.
fn is_in_shape<H: FileHeader<Endian = Endianness>>(bytes: &[u8], target: &Target) -> Result<()> {
    let file = H::parse(bytes)?;
    let endian = file.endian()?;
    let machine = machine(target);
    ensure!(bytes.len() as u64 <= target.budget().binary, "{} bytes", bytes.len());
    ensure!(file.e_machine(endian) == machine, "{:?}", file.e_machine(endian));

    // Position-independent, and nothing in it depends on the position.
    ensure!(file.e_type(endian) == ET_DYN, "type {}", file.e_type(endian));
    // Without sections there are no symbols, no relocations and no debug information either.
    ensure!(file.e_shnum(endian) == 0 && file.e_shoff(endian).into() == 0, "there are sections");

    // Only these two headers: no interpreter, no dynamic section, no note, no other segment.
    let headers = file.program_headers(endian, bytes)?;
    let [load, stack] = headers else { bail!("{} program headers", headers.len()) };
    ensure!(load.p_type(endian) == PT_LOAD, "first header: {}", load.p_type(endian));
    ensure!(stack.p_type(endian) == PT_GNU_STACK, "second header: {}", stack.p_type(endian));
    ensure!(load.p_flags(endian) == PF_R | PF_X, "segment flags {}", load.p_flags(endian));
    ensure!(stack.p_flags(endian) == PF_R | PF_W, "stack flags {}", stack.p_flags(endian));

    let [offset, address, size, memory, align] = [
        load.p_offset(endian),
        load.p_vaddr(endian),
        load.p_filesz(endian),
        load.p_memsz(endian),
        load.p_align(endian),
    ]
    .map(Into::<u64>::into);
    ensure!(offset == 0 && address == 0, "not from the file's start");
    ensure!(size == memory, "{size} bytes of {memory}");
    ensure!(size < PAGE, "{size} bytes are not less than a page");
    ensure!(align.is_power_of_two() && align >= PAGE, "aligned to {align}");

    let headers_end = (size_of_val(file) + size_of_val(headers)) as u64;
    let entry = file.e_entry(endian).into();
    ensure!((headers_end..size).contains(&entry), "entry at {entry}");
    // Code begins where the headers end, and the segment is all of the file.
    ensure!(entry == headers_end, "{} bytes before the entry", entry - headers_end);
    ensure!(size == bytes.len() as u64, "{} bytes behind the segment", bytes.len() as u64 - size);
    Ok(())
}

/// A change to the sources with which the program would crash at run time.
struct Breakage {
    name: &'static str,
    file: &'static str,
    old: &'static str,
    new: &'static str,
    complaint: &'static str,
}

const REFUSED: &str = "something needs a relocation or writable memory";

const BREAKAGES: &[Breakage] = &[
    Breakage {
        name: "static_data_with_pointers",
        file: "src/main.rs",
        old: "    sys::ignore_sigpipe();",
        new: "    static TABLE: [&[u8]; 2] = [b\"a\", b\"b\"];
              core::hint::black_box(&TABLE);",
        complaint: REFUSED,
    },
    Breakage {
        name: "writable_data",
        file: "src/main.rs",
        old: "    sys::ignore_sigpipe();",
        new:
            "    static COUNT: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(1);
              COUNT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);",
        complaint: REFUSED,
    },
    Breakage {
        name: "a_panic",
        file: "src/main.rs",
        old: "    sys::ignore_sigpipe();",
        new: "    core::hint::black_box(arguments.first()).unwrap();",
        complaint: "undefined symbol: something_can_panic",
    },
    Breakage {
        name: "a_call_to_strlen",
        file: "src/sys/freestanding/mod.rs",
        old: "string.add(length).read_volatile()",
        new: "string.add(length).read()",
        complaint: "undefined symbol: strlen",
    },
    Breakage {
        name: "a_function_of_the_c_library",
        file: "src/main.rs",
        old: "    sys::ignore_sigpipe();",
        new: "    unsafe { libc::sync() };",
        complaint: "undefined symbol: sync",
    },
];

fn is_refused(breakage: &Breakage) -> Result<()> {
    let folder = tempfile::tempdir()?;
    build::copy_sources(folder.path())?;
    let path = folder.path().join(breakage.file);
    let source = fs::read_to_string(&path)?;
    ensure!(source.matches(breakage.old).count() == 1, "{} has changed", breakage.file);
    fs::write(&path, source.replace(breakage.old, breakage.new))?;

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package=pause", "--target-dir=target"]);
    let Output { status, stderr, .. } = build.current_dir(folder.path()).output()?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(!status.success(), "it linked");
    ensure!(stderr.contains(breakage.complaint), "{stderr}");
    Ok(())
}
