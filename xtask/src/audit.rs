//! `cargo xtask audit`: what the shipped file can do, read from the file alone.

mod follow;

use crate::docs::markdown;
use anyhow::{Context, Result, bail, ensure};
use follow::{Call, Code, Value, quoted};
use iced_x86::{Formatter as _, Instruction, IntelFormatter};
use object::Endianness;
use object::elf::{
    EM_X86_64, ET_DYN, FileHeader64, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_LOAD, ProgramHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use support::artifact::TARGETS;
use support::calls;
use syscalls::Sysno;

/// The system calls that there may be in the program for x86_64: those of [`calls`], no more and no
/// fewer.
fn documented() -> BTreeSet<String> {
    let names = calls::all().filter_map(|number| Sysno::new(usize::try_from(number).ok()?));
    // Where this machine has no pause, it is known by another name.
    names
        .map(|call| if call.name() == "ppoll" { "pause" } else { call.name() }.to_owned())
        .collect()
}

/// The command line of `cargo xtask audit`.
#[derive(clap::Args)]
pub struct Args {
    /// The program, an ELF file for x86_64 [default: the release binary, built now]
    file: Option<PathBuf>,
    /// Print the names of the system calls alone, for a seccomp profile
    #[arg(long)]
    calls: bool,
}

/// Prints the page, and then judges.
///
/// # Errors
///
/// When the file cannot be read as a program for x86_64, or is not as documented: all reasons.
pub fn run(args: &Args) -> Result<()> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => native()?,
    };
    let name = path.display();
    let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
    let audit = Audit::of(&bytes).with_context(|| format!("cannot audit {name}"))?;
    if args.calls {
        audit.names().iter().for_each(|name| println!("{name}"));
    } else {
        println!("{}", audit.page()?);
    }
    let objections = audit.objections();
    ensure!(objections.is_empty(), "{name} is not as documented: {}", objections.join("; "));
    Ok(())
}

/// The page for the documents, of the release binary for x86_64.
///
/// # Errors
///
/// When there is no such binary to be had, or it is not as documented.
pub fn page() -> Result<String> {
    let audit = release()?;
    let objections = audit.objections();
    ensure!(objections.is_empty(), "not as documented: {}", objections.join("; "));
    audit.page()
}

/// The names of the reachable system calls, for the documents.
///
/// # Errors
///
/// As [`page`].
pub fn names() -> Result<String> {
    let names = release()?.names();
    Ok(names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
}

/// What the program has at an offset of its file, in words.
pub fn place(bytes: &[u8], offset: usize) -> String {
    let Ok(Audit { code, .. }) = Audit::of(bytes) else {
        return "which is no program for x86_64".into();
    };
    let at = offset as u64;
    if at < code.entry {
        return "in the headers".into();
    }
    let Some((start, instruction)) = code.instructions.range(..=at).next_back() else {
        return "before the code".into();
    };
    if at < instruction.next_ip() {
        return format!("in the instruction {instruction} at {start:#x}");
    }
    let code_end = instruction.next_ip() as usize;
    match code.bytes.get(code_end..offset) {
        Some(before) => {
            let line = before.iter().rposition(|&byte| matches!(byte, b'\n' | 0));
            let line = code_end + line.map_or(0, |end| end + 1);
            format!("in the text {}", code.show_value(Value::Address(line as u64)))
        }
        None => "behind the segment".into(),
    }
}

fn release() -> Result<Audit> {
    let path = native()?;
    Audit::of(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?)
}

/// Builds the release binary for x86_64, on whatever machine.
fn native() -> Result<PathBuf> {
    let target = TARGETS.iter().find(|target| target.emulator == "x86_64");
    target.context("x86_64 is no target any more")?.build()
}

/// What was found in a file.
struct Audit {
    size: usize,
    position_independent: bool,
    sections: u16,
    segments: Vec<ProgramHeader64<Endianness>>,
    code: Code,
}

impl Audit {
    fn of(bytes: &[u8]) -> Result<Self> {
        let elf = FileHeader64::<Endianness>::parse(bytes)
            .ok()
            .filter(|elf| elf.endian().is_ok_and(|endian| elf.e_machine(endian) == EM_X86_64))
            .context("it is no ELF file for x86_64, and the audit knows no other machine's code")?;
        let endian = elf.endian()?;
        let segments = elf.program_headers(endian, bytes)?.to_vec();
        let mut loaded = segments.iter().filter(|it| it.p_type(endian) == PT_LOAD);
        let (Some(text), None) = (loaded.next(), loaded.next()) else {
            bail!("it has not exactly one segment to load");
        };
        // Then what is at an address is at the same place in the file.
        ensure!(
            (text.p_offset(endian), text.p_vaddr(endian)) == (0, 0),
            "its segment is not loaded from the start"
        );
        let length = usize::try_from(text.p_filesz(endian))?;
        let loaded = bytes.get(..length).context("its segment is longer than the file")?;
        let code = Code::follow(loaded, elf.e_entry(endian))?;
        Ok(Self {
            size: bytes.len(),
            position_independent: elf.e_type(endian) == ET_DYN,
            sections: elf.e_shnum(endian),
            segments,
            code,
        })
    }

    /// The names of the system calls that can be reached, in alphabetical order.
    fn names(&self) -> BTreeSet<String> {
        self.code.calls.iter().map(Call::name).collect()
    }

    /// What must not be.
    fn objections(&self) -> Vec<String> {
        let mut objections = self.code.objections.clone();
        let endian = Endianness::Little;
        for segment in &self.segments {
            let (kind, flags) = (segment.p_type(endian), segment.p_flags(endian));
            match kind {
                PT_LOAD if flags.0 & PF_W.0 != 0 => objections.push("a segment is writable".into()),
                PT_LOAD => {}
                PT_GNU_STACK if flags.0 & PF_X.0 != 0 => {
                    objections.push("the stack is executable".into());
                }
                PT_GNU_STACK => {}
                other => objections.push(format!("there is a program header of type {other:?}")),
            }
        }
        if !self.segments.iter().any(|segment| segment.p_type(endian) == PT_GNU_STACK) {
            objections.push("nothing keeps the stack from being executable".into());
        }
        let names = self.names();
        let documented = documented();
        for name in names.difference(&documented) {
            objections.push(format!("the system call {name} is not documented"));
        }
        for name in documented.difference(&names) {
            objections.push(format!("the documented system call {name} is not there"));
        }
        objections
    }

    /// All of it, in Markdown.
    fn page(&self) -> Result<String> {
        Ok(format!(
            "## Segments\n\n{}\n\n## System calls\n\n```text\n{}```\n\n## Code\n\n```text\n{}```",
            self.segments(),
            self.calls(),
            self.listing()?
        ))
    }

    fn segments(&self) -> String {
        let mut rows = Vec::new();
        for segment in &self.segments {
            let endian = Endianness::Little;
            let flags = segment.p_flags(endian);
            let mut letters = String::new();
            for (flag, letter) in [(PF_R, 'r'), (PF_W, 'w'), (PF_X, 'x')] {
                letters.push(if flags.0 & flag.0 != 0 { letter } else { '-' });
            }
            let kind = match segment.p_type(endian) {
                PT_LOAD => "LOAD".to_owned(),
                PT_GNU_STACK => "GNU_STACK".to_owned(),
                other => format!("{other:?}"),
            };
            let file = segment.p_filesz(endian).to_string();
            rows.push([kind, letters, file, segment.p_memsz(endian).to_string()]);
        }
        let table = markdown(["program header", "access", "bytes in the file", "in memory"], rows);
        format!(
            "An ELF file for x86_64 of {} bytes, {}, with {} sections, entered at {:#x}.\n\n{table}",
            self.size,
            if self.position_independent { "position-independent" } else { "at fixed addresses" },
            self.sections,
            self.code.entry
        )
    }

    /// Each call with each set of arguments, in the order in which they are come upon.
    fn calls(&self) -> String {
        let mut lines = Vec::new();
        for call in &self.code.calls {
            let line = format!("{:5x}  {}\n", call.at, self.code.show(call));
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines.concat()
    }

    /// Everything after the headers: the instructions that can be reached, and the text that is
    /// between and behind them.
    fn listing(&self) -> Result<String> {
        let mut out = String::new();
        let mut formatter = IntelFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_branch_leading_zeros(false);
        options.set_rip_relative_addresses(true);
        let mut at = self.code.entry;
        let end = self.code.bytes.len() as u64;
        while at < end {
            if let Some(instruction) = self.code.instructions.get(&at) {
                let mut words = String::new();
                formatter.format(instruction, &mut words);
                let bytes = &self.code.bytes[at as usize..instruction.next_ip() as usize];
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let note = self.note(instruction);
                let line = format!("{at:5x}  {hex:20}  {words:40}{note}");
                writeln!(out, "{}", line.trim_end())?;
                at = instruction.next_ip();
            } else {
                let next = self.code.instructions.range(at..).next().map_or(end, |(&at, _)| at);
                let text = &self.code.bytes[at as usize..next as usize];
                // A line of text is a line here.
                for line in text.split_inclusive(|&byte| matches!(byte, b'\n' | 0)) {
                    writeln!(out, "{at:5x}  {}", quoted(line))?;
                    at += line.len() as u64;
                }
            }
        }
        Ok(out)
    }

    /// What there is to say about an instruction.
    fn note(&self, instruction: &Instruction) -> String {
        let at = instruction.ip();
        let calls = self.code.calls.iter().filter(|call| call.at == at);
        let names: BTreeSet<_> = calls.map(Call::name).collect();
        if !names.is_empty() {
            return format!("; {}", names.into_iter().collect::<Vec<_>>().join(", "));
        }
        let target = instruction.memory_displacement64();
        if !instruction.is_ip_rel_memory_operand() {
            String::new()
        } else if self.code.instructions.contains_key(&target) {
            format!("; code at {target:#x}")
        } else {
            format!("; {}", self.code.show_value(Value::Address(target)))
        }
    }
}
