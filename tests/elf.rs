//! The ELF file that ships, and changes to the sources and linkers that fail to make it.
//!
//! A target without `core` on this machine is ignored, and the reason says how to get it. With
//! `PAUSE_NO_SKIP=1`, as in CI, it fails.

use anyhow::{Context, Result, bail, ensure};
use harness::build::{self, Flavor};
use harness::target::{TARGETS, Target};
use harness::trial::{Trials, obstacle};
use object::elf::{ET_DYN, FileHeader32, FileHeader64, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Output};
use which::which;

/// The smallest page of any architecture.
const PAGE: u64 = 4096;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for target in TARGETS {
        let missing = obstacle(build::find_core(target.triple)).filter(|_| !target.is_native());
        let name = format!("freestanding::shape::{}", target.triple);
        trials.add(name, missing, || has_its_shape(target));
    }
    for (name, place, new, complaint) in BREAKAGES {
        trials.add(format!("link_refuses::{name}"), None, || is_refused(*place, new, complaint));
    }
    for (linker, refusal) in LINKERS {
        let found = which(format!("ld.{linker}"));
        let missing = obstacle(found.context("on Debian: apt install binutils lld mold"));
        let option = format!("-Clink-arg=-fuse-ld={linker}");
        trials.add(format!("linker::{linker}"), missing, move || {
            links_or_refuses(build::project(), &[&option], *refusal)
        });
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

/// A build with other sources or options makes the file that ships, or fails. It never makes another
/// file.
fn links_or_refuses(sources: &Path, options: &[&str], refusal: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut link = build::cargo("rustc");
    link.current_dir(sources).args(["--release", "--package=pause", "--target-dir"]);
    link.arg(folder.path()).arg("--").args(options).env("CARGO_ENCODED_RUSTFLAGS", "");
    let Output { status, stderr, .. } = link.output()?;
    let stderr = String::from_utf8_lossy(&stderr);
    let binary = fs::read(folder.path().join("release/pause"));
    let Some(refusal) = refusal else {
        ensure!(status.success(), "{status}: {stderr}");
        let ours = fs::read(build::build(Flavor::Freestanding)?)?;
        ensure!(binary? == ours, "it made another file");
        return Ok(());
    };
    ensure!(!status.success() && stderr.contains(refusal), "{status}: {stderr}");
    ensure!(binary.is_err(), "there is a file all the same");
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
    ensure!(bytes.len() as u64 <= target.budget().binary, "{} bytes", bytes.len());

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
    // Code begins where the headers end, and the segment is all of the file.
    ensure!(entry == headers_end, "entry at {entry}, headers end at {headers_end}");
    ensure!(size == bytes.len() as u64, "{} bytes behind the segment", bytes.len() as u64 - size);
    Ok(())
}

/// A place in the sources, and how the link fails if it is changed.
const START: (&str, &str) = ("src/main.rs", "    sys::ignore_sigpipe();");
const STRLEN: (&str, &str) = ("src/sys/freestanding/mod.rs", "string.add(length).read_volatile()");
const RELOCATION: &str = "something needs a relocation or writable memory";

/// Changes with which the program would crash at run time: what each is, where, the new code, and the
/// linker's complaint.
const BREAKAGES: &[(&str, (&str, &str), &str, &str)] = &[
    (
        "static_data_with_pointers",
        START,
        r#"static TABLE: [&[u8]; 2] = [b"a", b"b"]; core::hint::black_box(&TABLE);"#,
        RELOCATION,
    ),
    (
        "writable_data",
        START,
        "use core::sync::atomic::*; static COUNT: AtomicU8 = AtomicU8::new(1);
         COUNT.fetch_add(1, Ordering::Relaxed);",
        RELOCATION,
    ),
    (
        "a_panic",
        START,
        "core::hint::black_box(arguments.first()).unwrap();",
        "undefined symbol: something_can_panic",
    ),
    ("a_call_to_strlen", STRLEN, "string.add(length).read()", "undefined symbol: strlen"),
    ("a_function_of_the_c_library", START, "unsafe { libc::sync() };", "undefined symbol: sync"),
];

fn is_refused((file, old): (&str, &str), new: &str, complaint: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    build::copy_sources(folder.path())?;
    let path = folder.path().join(file);
    let source = fs::read_to_string(&path)?;
    ensure!(source.matches(old).count() == 1, "{file} has changed");
    fs::write(&path, source.replace(old, new))?;
    links_or_refuses(folder.path(), &[], Some(complaint))
}
