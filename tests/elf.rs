//! The shape of the shipped file, to the byte, and the link that refuses any other shape.
//!
//! A target whose `core` is not at hand counts as ignored and says how to get it; with
//! `PAUSE_NO_SKIP=1`, as CI has it, it fails.

use anyhow::{Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use object::Endianness;
use object::elf::{
    EM_AARCH64, EM_X86_64, ET_DYN, FileHeader64, Machine, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD,
    ProgramHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::process::{Command, ExitCode, Output};
use std::{env, fs};
use support::artifact::{self, Flavor};

/// A target, what its file says it is for, and the bytes that it may have.
struct Target {
    triple: &'static str,
    machine: Machine,
    budget: usize,
}

const TARGETS: &[Target] = &[
    Target { triple: "x86_64-unknown-linux-gnu", machine: EM_X86_64, budget: 1536 },
    Target { triple: "aarch64-unknown-linux-gnu", machine: EM_AARCH64, budget: 2048 },
];

/// The smallest page of any architecture.
const PAGE: u64 = 4096;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let no_skip = env::var_os("PAUSE_NO_SKIP").is_some_and(|value| value == "1");
    let mut trials = Vec::new();
    for target in TARGETS {
        let try_it = move || match artifact::find_core(target.triple) {
            Err(reason) if !no_skip && !is_here(target) => {
                Ok(Completion::ignored_with(format!("{reason:#}")))
            }
            _ => outcome(has_its_shape(target)),
        };
        trials.push(Trial::ignorable_test(format!("shape::{}", target.triple), try_it));
    }
    for breakage in BREAKAGES {
        let name = format!("link_refuses::{}", breakage.name);
        trials.push(Trial::ignorable_test(name, || outcome(is_refused(breakage))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn outcome(result: Result<()>) -> Result<Completion, Failed> {
    result.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
}

/// Whether plain cargo builds for the target.
fn is_here(target: &Target) -> bool {
    target.triple.starts_with(env::consts::ARCH)
}

fn has_its_shape(target: &Target) -> Result<()> {
    let path = if is_here(target) {
        artifact::build(Flavor::Freestanding)?
    } else {
        artifact::build_for(target.triple)?
    };
    let bytes = fs::read(path)?;
    let file = FileHeader64::<Endianness>::parse(&*bytes)?;
    let endian = file.endian()?;
    ensure!(bytes.len() <= target.budget, "{} bytes", bytes.len());
    ensure!(file.e_machine(endian) == target.machine, "{:?}", file.e_machine(endian));

    // Position-independent, and nothing in it depends on the position.
    ensure!(file.e_type(endian) == ET_DYN, "type {}", file.e_type(endian));
    // Without sections there are no symbols, no relocations and no debug information either.
    ensure!(file.e_shnum(endian) == 0 && file.e_shoff(endian) == 0, "there are sections");

    // Only these two headers: no interpreter, no dynamic section, no note, no other segment.
    let headers = file.program_headers(endian, &*bytes)?;
    let [load, stack] = headers else { bail!("{} program headers", headers.len()) };
    ensure!(load.p_type(endian) == PT_LOAD, "first header: {}", load.p_type(endian));
    ensure!(stack.p_type(endian) == PT_GNU_STACK, "second header: {}", stack.p_type(endian));
    ensure!(load.p_flags(endian) == PF_R | PF_X, "segment flags {}", load.p_flags(endian));
    ensure!(stack.p_flags(endian) == PF_R | PF_W, "stack flags {}", stack.p_flags(endian));

    let size = load.p_filesz(endian);
    ensure!(load.p_offset(endian) == 0 && load.p_vaddr(endian) == 0, "not from the file's start");
    ensure!(size == load.p_memsz(endian), "{size} bytes of {}", load.p_memsz(endian));
    ensure!(size < PAGE, "{size} bytes are not less than a page");
    let align = load.p_align(endian);
    ensure!(align.is_power_of_two() && align >= PAGE, "aligned to {align}");

    let headers_end = (size_of::<FileHeader64<Endianness>>()
        + headers.len() * size_of::<ProgramHeader64<Endianness>>()) as u64;
    let entry = file.e_entry(endian);
    ensure!((headers_end..size).contains(&entry), "entry at {entry}");
    // Code begins where the headers end, and what follows the segment is the room of two section
    // headers that the linker reserves and leaves empty.
    ensure!(entry == headers_end, "{} bytes before the entry", entry - headers_end);
    let tail = &bytes[usize::try_from(size)?..];
    ensure!(tail.len() < 2 * 64 + 8 && tail.iter().all(|&byte| byte == 0), "tail {tail:x?}");
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
        new: "    core::hint::black_box(argument).unwrap();",
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
