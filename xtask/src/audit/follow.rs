//! Follows the program from its entry along every path, and keeps what is known of each register
//! and of each word of the stack: enough to tell which system calls it can make, with what.
//!
//! Calls are followed with their caller, so that a function that several call with different
//! constants is seen once with each. A value that comes from anywhere but constants is not guessed.

use anyhow::{Result, bail, ensure};
use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use syscalls::x86_64::Sysno;

/// What is known of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// This very number.
    Number(u64),
    /// A place in the file.
    Address(u64),
    /// A place on the stack, in bytes from where the stack pointer was at the entry.
    Stack(i64),
    /// What the kernel left above it: argc, or a pointer to an argument.
    Argument,
    /// Anything else.
    Unknown,
}

/// A system call, as it was come upon.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Call {
    /// Where its instruction is.
    pub at: u64,
    /// Its number.
    pub number: u64,
    /// The six registers of arguments, whether it takes them or not.
    pub arguments: [Value; 6],
    /// Where the second argument points, word by word: a struct on the stack.
    words: [Value; 6],
}

impl Call {
    /// What the kernel calls it.
    pub fn name(&self) -> String {
        let number = usize::try_from(self.number).ok();
        match number.and_then(Sysno::new) {
            Some(call) => call.name().to_owned(),
            None => format!("system call {}", self.number),
        }
    }
}

/// The program, followed to its ends.
pub struct Code {
    /// What is loaded.
    pub bytes: Vec<u8>,
    /// Where it begins.
    pub entry: u64,
    /// The instructions that can be reached.
    pub instructions: BTreeMap<u64, Instruction>,
    /// The system calls that can be reached, in the order in which they were.
    pub calls: Vec<Call>,
    /// Why it cannot be followed everywhere, or should not be.
    pub objections: Vec<String>,
}

/// A moment of the program.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Moment {
    at: u64,
    registers: [Value; 16],
    /// Words of the stack by their place; what is not here is unknown.
    stack: BTreeMap<i64, Value>,
    /// The zero flag, right after a test of a register that is known.
    zero: Option<bool>,
}

impl Moment {
    /// At a place where nothing is known but some registers, and the stack is empty.
    fn at(at: u64, known: &[(Register, Value)]) -> Self {
        let mut registers = [Value::Unknown; 16];
        for (register, value) in known.iter().chain([&(Register::RSP, Value::Stack(0))]) {
            registers[register.number()] = *value;
        }
        Self { at, registers, stack: BTreeMap::new(), zero: None }
    }
}

/// More moments than the program has by far. It only ends a search that would not end.
const MOMENTS: usize = 1_000_000;

const WORD: i64 = 8;

impl Code {
    /// Follows the program from `entry`, and from each handler that it installs.
    ///
    /// # Errors
    ///
    /// When there is no end to it.
    pub fn follow(bytes: &[u8], entry: u64) -> Result<Self> {
        let mut code = Self {
            bytes: bytes.to_vec(),
            entry,
            instructions: BTreeMap::new(),
            calls: Vec::new(),
            objections: Vec::new(),
        };
        let mut ahead = vec![Moment::at(entry, &[])];
        let mut seen = HashSet::new();
        while let Some(moment) = ahead.pop() {
            if seen.insert(moment.clone()) {
                ensure!(seen.len() < MOMENTS, "it has too many paths to follow");
                // The last is the next: along the straight path first.
                let mut next = code.step(moment);
                next.reverse();
                ahead.append(&mut next);
            }
        }
        let reached: BTreeSet<u64> = code.instructions.keys().copied().collect();
        for (&at, instruction) in &code.instructions {
            if reached.range(at + 1..instruction.next_ip()).next().is_some() {
                code.objections.push(format!("instructions overlap at {at:#x}"));
            }
        }
        code.objections.sort();
        code.objections.dedup();
        Ok(code)
    }

    /// What can come after a moment: nothing where the path ends.
    fn step(&mut self, moment: Moment) -> Vec<Moment> {
        let result = self.instruction_at(moment.at).and_then(|it| self.follow_one(moment, &it));
        result.unwrap_or_else(|objection| {
            self.objections.push(objection.to_string());
            Vec::new()
        })
    }

    fn instruction_at(&mut self, at: u64) -> Result<Instruction> {
        let start = usize::try_from(at)?;
        let inside = at >= self.entry && start < self.bytes.len();
        ensure!(inside, "the program runs out of its segment, to {at:#x}");
        let mut decoder = Decoder::with_ip(64, &self.bytes[start..], at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        ensure!(!instruction.is_invalid(), "no instruction at {at:#x}");
        self.instructions.insert(at, instruction);
        Ok(instruction)
    }

    fn follow_one(&mut self, mut moment: Moment, it: &Instruction) -> Result<Vec<Moment>> {
        let at = it.ip();
        moment.at = it.next_ip();
        match it.flow_control() {
            FlowControl::Next => return Ok(moment.run(it)),
            FlowControl::UnconditionalBranch => moment.at = it.near_branch_target(),
            FlowControl::ConditionalBranch => {
                let branch = Moment { at: it.near_branch_target(), ..moment.clone() };
                return Ok(match (it.condition_code(), moment.zero) {
                    (ConditionCode::e, Some(zero)) if zero => vec![branch],
                    (ConditionCode::ne, Some(zero)) if !zero => vec![branch],
                    (ConditionCode::e | ConditionCode::ne, Some(_)) => vec![moment],
                    _ => vec![moment, branch],
                });
            }
            FlowControl::Call if it.mnemonic() == Mnemonic::Syscall => {
                return self.system_call(moment, at);
            }
            FlowControl::Call if it.is_call_near() => {
                moment.push(Value::Address(it.next_ip()));
                moment.at = it.near_branch_target();
            }
            FlowControl::Return => match moment.pop() {
                Value::Address(caller) => moment.at = caller,
                _ => bail!("the return at {at:#x} does not lead to a caller"),
            },
            FlowControl::IndirectBranch => bail!("there is an indirect jump at {at:#x}"),
            FlowControl::IndirectCall => bail!("there is an indirect call at {at:#x}"),
            other => bail!("there is a jump of another kind at {at:#x}: {other:?}"),
        }
        Ok(vec![moment])
    }

    fn system_call(&mut self, mut after: Moment, at: u64) -> Result<Vec<Moment>> {
        use Register::{R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI};
        let Value::Number(number) = after.get(RAX) else {
            bail!("the number of the system call at {at:#x} is not constant");
        };
        let arguments = [RDI, RSI, RDX, R10, R8, R9].map(|register| after.get(register));
        let mut words = [Value::Unknown; 6];
        if let Value::Stack(place) = arguments[1] {
            for (word, place) in words.iter_mut().zip((place..).step_by(WORD as usize)) {
                *word = after.load(place);
            }
        }
        let call = Call { at, number, arguments, words };
        for register in [RAX, RCX, R11] {
            after.set(register, Value::Unknown);
        }
        // After an exit too: nothing says that the call was not refused.
        let mut next = vec![after];
        if call.name() == "rt_sigaction" {
            match words[0] {
                // SIG_DFL, SIG_IGN.
                Value::Number(0 | 1) => {}
                // It runs at any time, on a stack of its own, and has nothing to return to.
                Value::Address(handler) => next.push(Moment::at(handler, &[(RDI, arguments[0])])),
                _ => bail!("the handler that is installed at {at:#x} is not known"),
            }
        }
        if !self.calls.contains(&call) {
            self.calls.push(call);
        }
        Ok(next)
    }

    /// A call as one would write it: only what it takes, by the names of the manual.
    pub fn show(&self, call: &Call) -> String {
        let name = call.name();
        let [first, second, third, fourth, ..] = call.arguments;
        let pointer = |value| match value {
            Value::Number(0) => "NULL".to_owned(),
            value => self.show_value(value),
        };
        let arguments = match &*name {
            "getpid" | "pause" => vec![],
            "chdir" => vec![self.show_value(first)],
            "exit_group" | "close" => vec![self.show_value(first)],
            "close_range" => [first, second, third].map(|it| self.show_value(it)).into(),
            "rt_sigaction" => {
                let [handler, flags, _, mask, ..] = call.words;
                let handler = match handler {
                    Value::Number(0) => "SIG_DFL".to_owned(),
                    Value::Number(1) => "SIG_IGN".to_owned(),
                    Value::Address(at) => format!("handler at {at:#x}"),
                    other => self.show_value(other),
                };
                let flags = flags_of(flags, &[("SA_NOCLDWAIT", 2), ("SA_RESTORER", 0x0400_0000)])
                    .unwrap_or_else(|| self.show_value(flags));
                let mask = match mask {
                    Value::Number(u64::MAX) => "all".to_owned(),
                    Value::Number(0) => "none".to_owned(),
                    other => self.show_value(other),
                };
                let action = format!("{{{handler}, {flags}, mask {mask}}}");
                vec![self.signal(first), action, pointer(third), self.show_value(fourth)]
            }
            "rt_sigprocmask" => {
                let how = one_of(first, &["SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK"]);
                let set = match (second, call.words[0]) {
                    (Value::Stack(_), Value::Number(0)) => "{none}".to_owned(),
                    (other, _) => pointer(other),
                };
                let how = how.unwrap_or_else(|| self.show_value(first));
                vec![how, set, pointer(third), self.show_value(fourth)]
            }
            "wait4" => {
                let options = flags_of(third, &[("WNOHANG", 1), ("__WALL", 0x4000_0000)]);
                let options = options.unwrap_or_else(|| self.show_value(third));
                vec![self.show_value(first), pointer(second), options, pointer(fourth)]
            }
            "prctl" => {
                let option = match first {
                    Value::Number(4) => "PR_SET_DUMPABLE".to_owned(),
                    Value::Number(36) => "PR_SET_CHILD_SUBREAPER".to_owned(),
                    other => self.show_value(other),
                };
                vec![option, self.show_value(second)]
            }
            "madvise" => {
                let advice = match third {
                    Value::Number(4) => "MADV_DONTNEED".to_owned(),
                    other => self.show_value(other),
                };
                vec![self.show_value(first), self.show_value(second), advice]
            }
            "write" => {
                vec![self.show_value(first), self.text(second, third), self.show_value(third)]
            }
            "writev" => {
                let parts = match third {
                    Value::Number(parts @ 0..=3) => call.words[..2 * parts as usize]
                        .chunks(2)
                        .map(|part| self.text(part[0], part[1]))
                        .collect::<Vec<_>>()
                        .join(", "),
                    _ => self.show_value(second),
                };
                vec![self.show_value(first), format!("[{parts}]"), self.show_value(third)]
            }
            _ => call.arguments.map(|it| self.show_value(it)).into(),
        };
        format!("{name}({})", arguments.join(", "))
    }

    fn signal(&self, value: Value) -> String {
        let name = match value {
            Value::Number(2) => "SIGINT",
            Value::Number(13) => "SIGPIPE",
            Value::Number(15) => "SIGTERM",
            Value::Number(17) => "SIGCHLD",
            other => return self.show_value(other),
        };
        name.to_owned()
    }

    /// The text at `place`, as long as it is known to be.
    fn text(&self, place: Value, length: Value) -> String {
        let bytes = match place {
            Value::Address(at) => self.bytes.get(at as usize..).unwrap_or_default(),
            other => return self.show_value(other),
        };
        match length {
            Value::Number(length) if length <= bytes.len() as u64 => {
                quoted(&bytes[..length as usize])
            }
            _ => self.show_value(place),
        }
    }

    /// A value by itself. Text is shown to the end of its line.
    pub fn show_value(&self, value: Value) -> String {
        match value {
            Value::Number(number) if number as i64 == -1 => "-1".to_owned(),
            Value::Number(number) if number > 0xffff => format!("{number:#x}"),
            Value::Number(number) => number.to_string(),
            Value::Address(at) => {
                let bytes = self.bytes.get(at as usize..).unwrap_or_default();
                let end = bytes.iter().position(|&byte| matches!(byte, b'\n' | 0));
                match end {
                    Some(end) if bytes[end] == 0 => quoted(&bytes[..end]),
                    Some(end) => quoted(&bytes[..=end]),
                    None => format!("{at:#x}"),
                }
            }
            Value::Stack(_) => "on the stack".to_owned(),
            Value::Argument => "from the command line".to_owned(),
            Value::Unknown => "computed".to_owned(),
        }
    }
}

/// Text as one would write it.
pub fn quoted(text: &[u8]) -> String {
    format!("\"{}\"", text.escape_ascii()).replace("\\'", "'")
}

/// A set of flags by their names, if it has no others.
fn flags_of(value: Value, names: &[(&str, u64)]) -> Option<String> {
    let Value::Number(mut rest) = value else { return None };
    let mut found = Vec::new();
    for (name, flag) in names {
        if rest & flag != 0 {
            found.push(*name);
            rest &= !flag;
        }
    }
    (rest == 0 && !found.is_empty()).then(|| found.join(" + "))
}

/// The name of a small number.
fn one_of(value: Value, names: &[&str]) -> Option<String> {
    let Value::Number(number) = value else { return None };
    names.get(usize::try_from(number).ok()?).map(|name| (*name).to_owned())
}

impl Moment {
    fn get(&self, register: Register) -> Value {
        let value = self.registers[register.full_register().number()];
        match (register.size(), value) {
            (8, value) => value,
            (4, Value::Number(number)) => Value::Number(number & 0xffff_ffff),
            _ => Value::Unknown,
        }
    }

    /// Writes a register; 32 bits clear the other half, fewer leave it, and so nothing is known.
    fn set(&mut self, register: Register, value: Value) {
        let value = match (register.size(), value) {
            (8, value) => value,
            (4, Value::Number(number)) => Value::Number(number & 0xffff_ffff),
            _ => Value::Unknown,
        };
        self.registers[register.full_register().number()] = value;
    }

    /// A word of the stack.
    fn load(&self, place: i64) -> Value {
        match self.stack.get(&place) {
            Some(&value) => value,
            None if place >= 0 => Value::Argument,
            None => Value::Unknown,
        }
    }

    /// Writes a word of the stack, and forgets those that it overlaps.
    fn store(&mut self, place: i64, value: Value) {
        self.stack.retain(|&other, _| (other - place).abs() >= WORD);
        self.stack.insert(place, value);
    }

    fn push(&mut self, value: Value) {
        if let Value::Stack(top) = self.get(Register::RSP) {
            self.set(Register::RSP, Value::Stack(top - WORD));
            self.store(top - WORD, value);
        }
    }

    fn pop(&mut self) -> Value {
        let Value::Stack(top) = self.get(Register::RSP) else { return Value::Unknown };
        let value = self.load(top);
        self.move_stack(top + WORD);
        value
    }

    /// Moves the stack pointer; what is below it is gone.
    fn move_stack(&mut self, top: i64) {
        self.stack = self.stack.split_off(&top);
        self.set(Register::RSP, Value::Stack(top));
    }

    /// Where the operand in memory is.
    fn place(&self, it: &Instruction) -> Value {
        if it.is_ip_rel_memory_operand() {
            return Value::Address(it.memory_displacement64());
        }
        if it.memory_index() != Register::None || it.memory_base() == Register::None {
            return Value::Unknown;
        }
        match (self.get(it.memory_base()), it.memory_displacement64() as i64) {
            (Value::Stack(place), displacement) => Value::Stack(place.wrapping_add(displacement)),
            (Value::Argument, _) => Value::Argument,
            (value, 0) => value,
            _ => Value::Unknown,
        }
    }

    /// What an operand is worth.
    fn operand(&self, it: &Instruction, index: u32) -> Value {
        match it.op_kind(index) {
            OpKind::Register => self.get(it.op_register(index)),
            OpKind::Memory => match (self.place(it), it.memory_size().size()) {
                (Value::Stack(place), 8) => self.load(place),
                _ => Value::Unknown,
            },
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Value::Unknown,
            _ => it.try_immediate(index).map_or(Value::Unknown, Value::Number),
        }
    }

    /// Writes the first operand.
    fn assign(&mut self, it: &Instruction, value: Value) {
        if it.op0_kind() == OpKind::Register {
            match (it.op0_register(), value) {
                (Register::RSP, Value::Stack(top)) => self.move_stack(top),
                (register, value) => self.set(register, value),
            }
            return;
        }
        match self.place(it) {
            Value::Stack(place) if it.memory_size().size() == 8 => self.store(place, value),
            Value::Stack(place) => self.store(place, Value::Unknown),
            // It may be any word of the stack, a place to return to among them.
            _ => self.stack.clear(),
        }
    }

    /// Carries out an instruction that does not jump. Two moments where it depends.
    fn run(mut self, it: &Instruction) -> Vec<Self> {
        let same = it.op_count() == 2
            && it.op0_kind() == OpKind::Register
            && it.op1_kind() == OpKind::Register
            && it.op0_register() == it.op1_register();
        // What is not flagged again below is not known: whatever runs may change it.
        self.zero = None;
        match it.mnemonic() {
            Mnemonic::Test if same => {
                self.zero = match self.operand(it, 0) {
                    Value::Number(number) => Some(number == 0),
                    _ => None,
                }
            }
            Mnemonic::Mov => self.assign(it, self.operand(it, 1)),
            // No sums of numbers: loops count with them, and would never look the same twice.
            Mnemonic::Lea => self.assign(it, self.place(it)),
            Mnemonic::Push => self.push(self.operand(it, 0)),
            Mnemonic::Pop => {
                let value = self.pop();
                self.assign(it, value);
            }
            Mnemonic::Xor | Mnemonic::Sub if same => self.assign(it, Value::Number(0)),
            Mnemonic::And | Mnemonic::Or => {
                let (old, new) = (self.operand(it, 0), self.operand(it, 1));
                let and = it.mnemonic() == Mnemonic::And;
                let value = match (old, new) {
                    (Value::Number(old), Value::Number(new)) if and => Value::Number(old & new),
                    (Value::Number(old), Value::Number(new)) => Value::Number(old | new),
                    (_, Value::Number(0)) if and => Value::Number(0),
                    (_, Value::Number(u64::MAX)) if !and => Value::Number(u64::MAX),
                    _ => Value::Unknown,
                };
                self.assign(it, value);
            }
            Mnemonic::Add | Mnemonic::Sub => {
                let value = match (self.operand(it, 0), self.operand(it, 1)) {
                    (Value::Stack(place), Value::Number(by)) if it.mnemonic() == Mnemonic::Add => {
                        Value::Stack(place.wrapping_add(by as i64))
                    }
                    (Value::Stack(place), Value::Number(by)) => {
                        Value::Stack(place.wrapping_sub(by as i64))
                    }
                    _ => Value::Unknown,
                };
                self.assign(it, value);
            }
            Mnemonic::Xchg => {
                let (first, second) = (self.operand(it, 0), self.operand(it, 1));
                self.assign(it, second);
                if it.op1_kind() == OpKind::Register {
                    self.set(it.op1_register(), first);
                }
            }
            // A conditional move: of those that do not jump the only one with two operands.
            _ if it.condition_code() != ConditionCode::None && it.op_count() == 2 => {
                let mut moved = self.clone();
                moved.assign(it, self.operand(it, 1));
                return vec![self, moved];
            }
            _ => self.forget(it),
        }
        vec![self]
    }

    /// After any other instruction nothing is known of what it writes.
    fn forget(&mut self, it: &Instruction) {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(it);
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        };
        for used in info.used_registers().iter().filter(|used| writes(used.access())) {
            if used.register().is_gpr() {
                self.registers[used.register().full_register().number()] = Value::Unknown;
            }
        }
        if info.used_memory().iter().any(|used| writes(used.access())) {
            self.stack.clear();
        }
    }
}
