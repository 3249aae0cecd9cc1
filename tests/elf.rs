//! The shape of the shipped file, to the byte, and the link that refuses any other shape.
//!
//! A target whose `core` is not at hand counts as ignored and says how to get it; with
//! `PAUSE_NO_SKIP=1`, as CI has it, it fails.

use anyhow::{Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use object::elf::{
    EM_AARCH64, EM_ARM, EM_LOONGARCH, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64, ET_DYN, FileHeader32,
    FileHeader64, Machine, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD,
};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use std::process::{Command, ExitCode, Output};
use std::{env, fs};
use support::artifact::{self, TARGETS, Target};
use support::trial;

/// What the file of a target says it is for, and the bytes that it may have.
fn expected(target: &Target) -> (Machine, usize) {
    match target.emulator {
        "aarch64" => (EM_AARCH64, 2048),
        "arm" => (EM_ARM, 2048),
        "loongarch64" => (EM_LOONGARCH, 2048),
        "ppc64le" => (EM_PPC64, 2048),
        "riscv64" => (EM_RISCV, 2048),
        "s390x" => (EM_S390, 2048),
        "x86_64" => (EM_X86_64, 1280),
        other => panic!("teach this test about {other}"),
    }
}

/// The smallest page of any architecture.
const PAGE: u64 = 4096;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for target in TARGETS {
        let try_it = move || match artifact::find_core(target.triple) {
            Err(reason) if !target.is_native() => trial::skip(format!("{reason:#}")),
            _ => trial::outcome(has_its_shape(target)),
        };
        trials.push(Trial::ignorable_test(format!("shape::{}", target.triple), try_it));
    }
    for breakage in BREAKAGES {
        let name = format!("link_refuses::{}", breakage.name);
        trials.push(Trial::ignorable_test(name, || trial::outcome(is_refused(breakage))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
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
    let (machine, budget) = expected(target);
    ensure!(bytes.len() <= budget, "{} bytes", bytes.len());
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

/// A change to the sources after which the program would crash at run time.
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
    artifact::copy_sources(folder.path())?;
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
