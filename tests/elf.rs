//! The shape of the ELF file that ships, for each target.

use anyhow::{Result, bail, ensure};
use harness::build;
use harness::target::{TARGETS, Target};
use harness::trial::{Trials, obstacle};
use object::elf::{ET_DYN, FileHeader32, FileHeader64, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use std::fs;
use std::process::ExitCode;

/// The smallest page of any architecture.
const PAGE: u64 = 4096;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for target in TARGETS {
        let missing = obstacle(build::find_core(target.triple)).filter(|_| !target.is_native());
        let name = format!("freestanding::shape::{}", target.triple);
        trials.add(name, missing, || has_its_shape(target));
    }
    trials.run()
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
    // Some scanners call a file broken that has another size here.
    let entry_size = usize::from(file.e_shentsize(endian));
    ensure!(entry_size == size_of::<H::SectionHeader>(), "e_shentsize {entry_size}");

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
