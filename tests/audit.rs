//! `cargo xtask audit` accepts the release binary, and objects to others that were patched.

use anyhow::{Context, Result, ensure};
use harness::build::{build_xtask, find_core};
use harness::target::TARGETS;
use harness::trial::{Trials, obstacle};
use std::fs;
use std::process::{Command, ExitCode, Output};
use tempfile::NamedTempFile;

/// The code that is changed: push 0x27; pop rax; syscall.
const GETPID: &[u8; 5] = b"\x6a\x27\x58\x0f\x05";

/// What it is changed to, with what follows, and the objection.
const PATCHES: &[(&str, &[u8], &str)] = &[
    ("missing_call", b"\x6a\x6e\x58\x0f\x05", "the system call getpid is missing"),
    ("other_call", b"\x6a\x6e\x58\x0f\x05", "the system call getppid is undocumented"),
    // mov eax, [rsp] in place of push and pop.
    ("computed_number", b"\x8b\x04\x24\x0f\x05", "is not constant"),
    // jne from behind the syscall back to it.
    ("other_number_in_a_loop", b"\x6a\x27\x58\x0f\x05\x75\xfc\x90\x90", "is not constant"),
    // jmp rax.
    ("indirect_jump", b"\xff\xe0\x90\x0f\x05", "jmp rax"),
    ("other_way_to_the_kernel", b"\x6a\x27\x58\xcd\x80", "int 80h"),
    // jmp into the number of the call.
    ("jump_into_an_instruction", b"\xeb\xff\x58\x0f\x05", "the middle of"),
];

fn main() -> ExitCode {
    let target = TARGETS.iter().find(|target| target.arch == "x86_64").expect("a target");
    let missing = || obstacle(find_core(target.triple)).filter(|_| !target.is_native());
    let mut trials = Trials::new();
    trials.add("release_binary_is_as_documented", missing(), || {
        let Output { status, stderr, .. } = audit(&fs::read(target.build()?)?)?;
        ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        Ok(())
    });
    trials.add("other_files_are_refused", missing(), || {
        is_refused(b"another file", "is not a binary for x86_64 of this commit")
    });
    for (name, new, objection) in PATCHES {
        trials.add(format!("objects_to::{name}"), missing(), move || {
            let mut bytes = fs::read(target.build()?)?;
            let at = bytes.windows(5).position(|window| window == GETPID);
            let at = at.context("the code has changed: choose other bytes")?;
            bytes[at..at + new.len()].copy_from_slice(new);
            is_refused(&bytes, objection)
        });
    }
    trials.run()
}

fn is_refused(binary: &[u8], objection: &str) -> Result<()> {
    let Output { status, stderr, .. } = audit(binary)?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.code() == Some(1) && stderr.contains(objection), "{status}: {stderr}");
    Ok(())
}

fn audit(binary: &[u8]) -> Result<Output> {
    let file = NamedTempFile::new()?;
    fs::write(&file, binary)?;
    Ok(Command::new(build_xtask()?).arg("audit").arg(file.path()).output()?)
}
