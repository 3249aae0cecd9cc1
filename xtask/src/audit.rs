//! `cargo xtask audit`: the functions of the file that ships for x86_64, their instructions, and the
//! system calls that they make.

use anyhow::{Context, Result, ensure};
use harness::build::build_with_symbols;
use harness::target::TARGETS;
use harness::{calls, markdown};
use iced_x86::{
    Code, Decoder, FlowControl, Formatter as _, Instruction, InstructionInfoFactory,
    IntelFormatter, OpAccess, Register,
};
use indicatif::HumanCount;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// The command line of `cargo xtask audit`.
#[derive(clap::Args)]
pub struct Args {
    /// Binary for x86_64 of the same commit [default: the release binary, built now]
    file: Option<PathBuf>,
    /// Print only the names of the system calls, for a seccomp profile
    #[arg(long)]
    calls: bool,
}

/// Prints the functions and the listing. Fails if there are objections.
pub fn run(args: &Args) -> Result<()> {
    let program = Program::read(args.file.clone())?;
    match args.calls {
        true => program.calls_in(0..program.code_end).iter().for_each(|name| println!("{name}")),
        false => println!("{}", program.page()),
    }
    program.check()
}

/// The same for the documents, of the release binary.
pub fn page() -> Result<String> {
    let program = Program::read(None)?;
    program.check()?;
    Ok(program.page())
}

struct Program {
    bytes: Vec<u8>,
    functions: BTreeMap<u64, String>,
    instructions: BTreeMap<u64, Instruction>,
    /// Where the last function ends and the text begins.
    code_end: u64,
}

impl Program {
    fn read(file: Option<PathBuf>) -> Result<Self> {
        let target = TARGETS.iter().find(|target| target.arch == "x86_64");
        let target = target.context("x86_64 is not a target")?;
        let mut bytes = fs::read(target.build()?)?;
        let elf = fs::read(build_with_symbols(target)?)?;
        let elf = ElfFile64::<Endianness>::parse(&*elf)?;
        let text = elf.section_by_name(".text").context("there is no .text")?.data()?;
        ensure!(text == bytes, "the build with symbols gave other code than the release binary");
        if let Some(file) = file {
            let given =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            ensure!(
                given.len() == bytes.len(),
                "{} is not a binary for x86_64 of this commit: check out its own",
                file.display()
            );
            bytes = given;
        }
        let (mut functions, mut code_end) = (BTreeMap::new(), 0);
        for symbol in elf.symbols() {
            if symbol.kind() == SymbolKind::Text || symbol.name() == Ok("_start") {
                let name = format!("{:#}", rustc_demangle::demangle(symbol.name()?));
                functions.insert(symbol.address(), name);
                code_end = code_end.max(symbol.address() + symbol.size());
            }
        }
        let start = *functions.keys().next().context("there are no functions")?;
        let code = &bytes[start as usize..code_end as usize];
        let instructions = Decoder::with_ip(64, code, start, 0).into_iter();
        let instructions =
            instructions.map(|instruction| (instruction.ip(), instruction)).collect();
        Ok(Self { bytes, functions, instructions, code_end })
    }

    /// Returns an error that names everything that is not as documented.
    fn check(&self) -> Result<()> {
        let mut objections = Vec::new();
        for (at, instruction) in &self.instructions {
            // Indirect jumps and calls, and other ways into the kernel, are not followed.
            let is_followed = match instruction.flow_control() {
                FlowControl::Call => {
                    [Code::Syscall, Code::Call_rel32_64].contains(&instruction.code())
                }
                FlowControl::Exception => instruction.code() == Code::Ud2,
                FlowControl::Next | FlowControl::Return => true,
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => true,
                _ => false,
            };
            if !is_followed {
                objections.push(format!("{at:#x} is {instruction}"));
            }
            for next in successors(instruction) {
                if next != self.code_end && !self.instructions.contains_key(&next) {
                    objections.push(format!("{at:#x} leads into the middle of {next:#x}"));
                }
            }
            if instruction.code() == Code::Syscall && self.calls(*at).is_none() {
                objections.push(format!("the number of the call at {at:#x} is not constant"));
            }
        }
        let found = self.calls_in(0..self.code_end);
        // Where this machine has no call named pause, the list has ppoll in its place.
        let documented: BTreeSet<_> = calls::all()
            .filter_map(|number| syscalls::Sysno::new(usize::try_from(number).ok()?))
            .map(|call| if call.name() == "ppoll" { "pause" } else { call.name() })
            .collect();
        for name in found.symmetric_difference(&documented) {
            let problem = if found.contains(name) { "undocumented" } else { "missing" };
            objections.push(format!("the system call {name} is {problem}"));
        }
        ensure!(objections.is_empty(), "not as documented: {}", objections.join("; "));
        Ok(())
    }

    /// The names of the system calls that a `syscall` instruction makes, found by following the code
    /// backwards to where the number was set. None if there is a path on which it is not constant.
    fn calls(&self, at: u64) -> Option<BTreeSet<&'static str>> {
        let mut names = BTreeSet::new();
        let mut name = |number| {
            let call = syscalls::x86_64::Sysno::new(number as usize);
            names.insert(call.map_or("unknown", |call| call.name()));
        };
        let mut seen = BTreeSet::new();
        let mut factory = InstructionInfoFactory::new();
        let mut unknown = vec![(Register::RAX, at)];
        while let Some((register, at)) = unknown.pop() {
            let before = self.before(at);
            if before.is_empty() {
                return None;
            }
            for instruction in before {
                if !seen.insert((register, instruction.ip())) {
                    continue;
                }
                let is_syscall = instruction.code() == Code::Syscall;
                let is_call = instruction.flow_control() == FlowControl::Call;
                let has_returned = is_call && instruction.next_ip() == at;
                let is_written = factory.info(instruction).used_registers().iter().any(|used| {
                    let is_read = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                    used.register().full_register() == register && !is_read
                });
                match instruction.code() {
                    // A function that has returned has changed registers; the kernel has changed rax.
                    _ if has_returned && (!is_syscall || register == Register::RAX) => return None,
                    _ if !is_written => unknown.push((register, instruction.ip())),
                    Code::Mov_r32_imm32 => name(instruction.immediate(1)),
                    Code::Mov_rm32_r32 | Code::Mov_rm64_r64 => {
                        let source = instruction.op1_register().full_register();
                        unknown.push((source, instruction.ip()));
                    }
                    Code::Pop_r64 => match self.before(instruction.ip())[..] {
                        [push] if push.code() == Code::Pushq_imm8 => name(push.immediate(0)),
                        _ => return None,
                    },
                    _ => return None,
                }
            }
        }
        Some(names)
    }

    /// The names of all system calls between two addresses.
    fn calls_in(&self, range: Range<u64>) -> BTreeSet<&'static str> {
        let instructions = self.instructions.range(range);
        let syscalls = instructions.filter(|(_, it)| it.code() == Code::Syscall);
        syscalls.filter_map(|(&at, _)| self.calls(at)).flatten().collect()
    }

    /// The instructions that can be executed right before the one at `at`.
    fn before(&self, at: u64) -> Vec<&Instruction> {
        self.instructions.values().filter(|it| successors(it).contains(&at)).collect()
    }

    /// A table of the functions, and the instructions of each.
    fn page(&self) -> String {
        let mut starts: Vec<_> = self.functions.iter().map(|(at, name)| (*at, &**name)).collect();
        let headers = starts.first().map_or(0, |(at, _)| *at);
        let end = self.bytes.len() as u64;
        starts.push((self.code_end, ""));
        let mut parts = vec![("ELF header and program headers".to_owned(), 0, headers)];
        for pair in starts.windows(2) {
            parts.push((format!("`{}`", pair[0].1), pair[0].0, pair[1].0));
        }
        parts.push(("text".to_owned(), self.code_end, end));
        parts.push(("**file**".to_owned(), 0, end));
        let rows = parts.into_iter().map(|(part, start, end)| {
            let calls: Vec<_> = self.calls_in(start..end).into_iter().collect();
            [part, HumanCount(end - start).to_string(), calls.join(", ")]
        });
        let table = markdown::table(["part", "bytes", "system calls"], rows);

        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        formatter.options_mut().set_uppercase_hex(false);
        formatter.options_mut().set_branch_leading_zeros(false);
        let mut listing = String::new();
        for (at, instruction) in &self.instructions {
            if let Some(name) = self.functions.get(at) {
                listing += &format!("\n{name}:\n");
            }
            let mut words = String::new();
            formatter.format(instruction, &mut words);
            let note = match instruction.is_ip_rel_memory_operand() {
                true => self.describe(instruction.ip_rel_memory_address()),
                false => Vec::from_iter(self.calls_in(*at..at + 1)).join(", "),
            };
            listing += format!("{at:5x}  {words:40}{note}").trim_end();
            listing += "\n";
        }
        format!("{table}\n\n```text{listing}```")
    }

    /// The function or the line of text at an address.
    fn describe(&self, address: u64) -> String {
        let text = self.bytes.get(address as usize..).unwrap_or_default();
        let line = text.split(|byte| matches!(byte, b'\n' | 0)).next().unwrap_or_default();
        let line = || format!("{:?}", String::from_utf8_lossy(line));
        self.functions.get(&address).cloned().unwrap_or_else(line)
    }
}

/// Addresses that can be executed right after an instruction.
fn successors(instruction: &Instruction) -> Vec<u64> {
    let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
    match instruction.flow_control() {
        FlowControl::Next => vec![next],
        FlowControl::Call if instruction.code() == Code::Syscall => vec![next],
        FlowControl::Call | FlowControl::ConditionalBranch => vec![next, target],
        FlowControl::UnconditionalBranch => vec![target],
        _ => vec![],
    }
}
