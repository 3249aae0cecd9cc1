//! `cargo xtask audit`: the instructions of the file that ships for x86_64 with the names of their
//! functions, and the system calls that they make.

use anyhow::{Context, Result, ensure};
use harness::build::build_with_symbols;
use harness::calls;
use harness::target::TARGETS;
use iced_x86::{
    Code, Decoder, FlowControl, Formatter as _, Instruction, InstructionInfoFactory,
    IntelFormatter, OpAccess, Register, UsedRegister,
};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The command line of `cargo xtask audit`.
#[derive(clap::Args)]
pub struct Args {
    /// Binary for x86_64 of the same commit [default: the release binary, built now]
    file: Option<PathBuf>,
}

/// Prints the system calls and the listing.
pub fn run(args: &Args) -> Result<()> {
    println!("{}", page(args.file.as_deref())?);
    Ok(())
}

/// The system calls and the listing of `file`, or of the release binary. Fails if anything is not as
/// documented.
pub fn page(file: Option<&Path>) -> Result<String> {
    let program = Program::read(file)?;
    let calls = program.calls()?;
    let names = Vec::from_iter(BTreeSet::from_iter(calls.values().copied())).join(", ");
    Ok(format!("System calls: {names}.\n\n```text{}```", program.listing(&calls)))
}

struct Program {
    bytes: Vec<u8>,
    functions: BTreeMap<u64, String>,
    instructions: BTreeMap<u64, Instruction>,
    /// Where the last function ends and the text begins.
    code_end: u64,
}

impl Program {
    fn read(file: Option<&Path>) -> Result<Self> {
        let target = TARGETS.iter().find(|target| target.arch == "x86_64");
        let target = target.context("x86_64 is not a target")?;
        let shipped = target.build()?;
        let elf = fs::read(build_with_symbols(target)?)?;
        let elf = ElfFile64::<Endianness>::parse(&*elf)?;
        let text = elf.section_by_name(".text").context("there is no .text")?.data()?;
        let is_same = text == fs::read(&shipped)?;
        ensure!(is_same, "the build with symbols gave other code than the release binary");
        let file = file.unwrap_or(&shipped);
        let name = file.display();
        let bytes = fs::read(file).with_context(|| format!("cannot read {name}"))?;
        let is_other = bytes.len() != text.len();
        ensure!(!is_other, "{name} is not a binary for x86_64 of this commit: check out its own");
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
        let instructions = instructions.map(|it| (it.ip(), it)).collect();
        Ok(Self { bytes, functions, instructions, code_end })
    }

    /// The system calls by the addresses of their instructions. The error names everything that is not
    /// as documented.
    fn calls(&self) -> Result<BTreeMap<u64, &'static str>> {
        let mut objections = Vec::new();
        let mut calls = BTreeMap::new();
        for (&at, instruction) in &self.instructions {
            let Some(successors) = successors(instruction) else {
                objections.push(format!("{at:#x} is {instruction}"));
                continue;
            };
            for next in successors {
                if next != self.code_end && !self.instructions.contains_key(&next) {
                    objections.push(format!("{at:#x} leads into the middle of {next:#x}"));
                }
            }
            if instruction.code() != Code::Syscall {
                continue;
            }
            if let Some(number) = self.constant(Register::RAX, at) {
                let call = syscalls::x86_64::Sysno::new(number as usize);
                calls.insert(at, call.map_or("unknown", |call| call.name()));
            } else {
                objections.push(format!("the number of the call at {at:#x} is not constant"));
            }
        }
        let found: BTreeSet<_> = calls.values().copied().collect();
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
        Ok(calls)
    }

    /// The constant that a register holds at `at`: the nearest instruction above that changes the register
    /// loads it, and only from there on, or in loops that keep it, can `at` be reached.
    fn constant(&self, register: Register, at: u64) -> Option<u64> {
        let mut above = self.instructions.range(..at).map(|(_, it)| it);
        let load = above.rfind(|it| changes(it, register))?;
        let start = load.next_ip();
        let end = self.leading_to(start..=at).map(Instruction::ip).fold(at, u64::max);
        let keeps = |it: &Instruction| (start..=end).contains(&it.ip()) && !changes(it, register);
        let is_kept = self.leading_to(start..=end).all(|it| it.ip() == load.ip() || keeps(it))
            && self.functions.range(start..=end).next().is_none();
        let before: Vec<_> = self.leading_to(load.ip()..=load.ip()).collect();
        match (load.code(), &before[..]) {
            _ if !is_kept => None,
            (Code::Mov_r32_imm32, _) => Some(load.immediate(1)),
            (Code::Mov_rm64_r64, _) => self.constant(load.op1_register(), load.ip()),
            (Code::Pop_r64, [push]) if push.code() == Code::Pushq_imm8 => Some(push.immediate(0)),
            _ => None,
        }
    }

    /// The instructions right after which one in a range can be executed.
    fn leading_to(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = &Instruction> {
        self.instructions.values().filter(move |it| {
            successors(it).is_some_and(|next| next.iter().any(|at| range.contains(at)))
        })
    }

    /// The functions with their instructions.
    fn listing(&self, calls: &BTreeMap<u64, &str>) -> String {
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
            let address = match instruction.is_ip_rel_memory_operand() {
                true => instruction.ip_rel_memory_address(),
                false => instruction.near_branch_target(),
            };
            let text = self.bytes.get(address as usize..).filter(|_| address >= self.code_end);
            let line = text.and_then(|text| text.split(|byte| b"\n\0".contains(byte)).next());
            let line = line.map(|line| format!("{:?}", String::from_utf8_lossy(line)));
            let name = calls.get(at).copied().or(self.functions.get(&address).map(String::as_str));
            let note = name.or(line.as_deref()).unwrap_or_default();
            listing += format!("{at:5x}  {words:40}{note}").trim_end();
            listing += "\n";
        }
        listing
    }
}

/// Whether a register can have another value after an instruction. A call of a function can change every
/// register, a call of the kernel puts its result into rax.
fn changes(instruction: &Instruction, register: Register) -> bool {
    let is_written = |it: &UsedRegister| {
        it.register().full_register() == register && it.access() != OpAccess::Read
    };
    let mut factory = InstructionInfoFactory::new();
    match instruction.code() {
        Code::Call_rel32_64 => true,
        Code::Syscall if register == Register::RAX => true,
        _ => factory.info(instruction).used_registers().iter().any(is_written),
    }
}

/// Addresses that can be executed right after an instruction. None for what is not followed: indirect
/// jumps and calls, and other ways into the kernel than `syscall`.
fn successors(instruction: &Instruction) -> Option<Vec<u64>> {
    let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
    match (instruction.flow_control(), instruction.code()) {
        (FlowControl::Next, _) | (_, Code::Syscall) => Some(vec![next]),
        (FlowControl::ConditionalBranch, _) | (_, Code::Call_rel32_64) => Some(vec![next, target]),
        (FlowControl::UnconditionalBranch, _) => Some(vec![target]),
        (FlowControl::Return, _) | (_, Code::Ud2) => Some(vec![]),
        _ => None,
    }
}
