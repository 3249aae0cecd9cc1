//! The audit of the shipped file: what it finds is what a trace of the running program finds, and it
//! objects to a program that is not as documented.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use object::Endianness;
use object::elf::{FileHeader64, ProgramHeader64};
use object::read::elf::FileHeader as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::{env, fs};
use support::actor::{self, Part};
use support::artifact::{self, Flavor};
use support::{sandbox, trial};

#[cfg(target_arch = "x86_64")]
const PARTS: &[Part] = &[("tracer", tracer::play)];
#[cfg(not(target_arch = "x86_64"))]
const PARTS: &[Part] = &[];

type Test = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    actor::take_the_stage(PARTS);
    let mut trials = vec![Trial::ignorable_test("trace_finds_the_same_calls", || {
        if !cfg!(target_arch = "x86_64") {
            return Ok(Completion::ignored_with("the audit knows the code of x86_64 alone"));
        }
        match sandbox::is_available() {
            Ok(()) => trial::outcome(trace_finds_the_same_calls()),
            Err(error) => trial::skip(format!("{error:#}")),
        }
    })];
    let tests: [Test; 9] = [
        ("writable_segment_is_objected_to", writable_segment_is_objected_to),
        ("executable_stack_is_objected_to", executable_stack_is_objected_to),
        ("missing_stack_header_is_objected_to", missing_stack_header_is_objected_to),
        ("patched_call_is_objected_to", patched_call_is_objected_to),
        ("patched_jumps_are_objected_to", patched_jumps_are_objected_to),
        ("extra_call_is_objected_to", extra_call_is_objected_to),
        ("missing_call_is_objected_to", missing_call_is_objected_to),
        ("indirect_call_is_objected_to", indirect_call_is_objected_to),
        ("other_files_are_refused", other_files_are_refused),
    ];
    for (name, test) in tests {
        trials.push(Trial::ignorable_test(name, move || {
            if !cfg!(target_arch = "x86_64") {
                return Ok(Completion::ignored_with("the audit knows the code of x86_64 alone"));
            }
            trial::outcome(test())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The lives that together make every call: whether as PID 1, which call is refused, what ends the
/// sleep, and what is on the command line.
const LIVES: &[(&str, &str, &str, &[&str])] = &[
    ("init", "", "SIGTERM", &[]),
    ("init", "", "SIGINT", &[]),
    ("plain", "", "SIGTERM", &[]),
    ("plain", "", "SIGINT", &[]),
    ("init", "close_range", "SIGTERM", &[]),
    ("init", "rt_sigaction", "SIGTERM", &[]),
    ("plain", "", "", &["--version"]),
    ("plain", "write", "", &["--version"]),
    ("plain", "", "", &["--help"]),
    ("plain", "", "", &["unknown"]),
    ("plain", "writev", "", &["unknown"]),
];

fn trace_finds_the_same_calls() -> Result<()> {
    let found: BTreeSet<String> =
        audit(&["--calls"])?.lines().map(|line| line.to_owned()).collect();
    let binary = artifact::build(Flavor::Freestanding)?;
    let mut traced = BTreeSet::new();
    for (place, refused, signal, arguments) in LIVES {
        let mut tracer = actor::command("tracer");
        tracer.args([place, refused, signal]).arg(&binary).args(*arguments);
        let Output { status, stdout, stderr } = tracer.output()?;
        let complaint = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "{place} {refused} {arguments:?}: {status}: {complaint}");
        traced.extend(String::from_utf8(stdout)?.lines().map(|line| line.to_owned()));
    }
    // No more, and no fewer: there is no call that only the audit believes in.
    ensure!(traced == found, "traced {traced:?}, but the audit finds {found:?}");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod tracer {
    use anyhow::{Result, bail, ensure};
    use nix::libc;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::ptrace;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::geteuid;
    use std::ffi::OsString;
    use std::fs::File;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use support::actor::spawn;
    use syscalls::x86_64::Sysno;

    /// Runs a program, whether as PID 1 or not, and prints the name of each system call that it
    /// makes. One of them it refuses. When the program sleeps it sends the signal.
    pub fn play(arguments: &[OsString]) -> Result<()> {
        let [place, refused, end, binary, arguments @ ..] = arguments else {
            bail!("takes init or plain, a call to refuse, a signal, the program and its arguments");
        };
        let end = end.to_string_lossy();
        if place == "init" {
            let user =
                if geteuid().is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
            unshare(CloneFlags::CLONE_NEWPID | user)?;
        }
        let pid = spawn(|| {
            let nowhere = || File::options().write(true).open("/dev/null");
            let mut command = Command::new(binary);
            command.args(arguments).stdout(nowhere()?).stderr(nowhere()?);
            ptrace::traceme()?;
            Err(command.exec().into())
        })?;
        // It stops when exec is done.
        let status = waitpid(pid, None)?;
        ensure!(status == WaitStatus::Stopped(pid, Signal::SIGTRAP), "{status:?}");
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
        let mut signal = None;
        loop {
            ptrace::syscall(pid, signal.take())?;
            match waitpid(pid, None)? {
                WaitStatus::PtraceSyscall(pid) => {
                    let call = ptrace::syscall_info(pid)?;
                    if call.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
                        continue;
                    }
                    // SAFETY: at the entry of a system call it is this one of the union.
                    let number = unsafe { call.u.entry.nr };
                    let name = Sysno::new(number as usize).map_or("unknown", |call| call.name());
                    println!("{name}");
                    if name == "pause" {
                        kill(pid, end.parse::<Signal>()?)?;
                    }
                    if refused == name {
                        // There is no such call: ENOSYS.
                        let mut registers = ptrace::getregs(pid)?;
                        registers.orig_rax = u64::MAX;
                        ptrace::setregs(pid, registers)?;
                    }
                }
                WaitStatus::Stopped(_, other) => signal = Some(other),
                WaitStatus::Exited(..) => return Ok(()),
                other => bail!("{other:?}"),
            }
        }
    }
}

/// What `cargo xtask audit` prints. It must be content.
fn audit(arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = run_audit(arguments)?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

fn run_audit(arguments: &[&str]) -> Result<Output> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(artifact::project()).args(["xtask", "audit"]).args(arguments);
    Ok(cargo.output()?)
}

/// It must object to the file for this reason.
fn objects(file: &Path, reason: &str) -> Result<()> {
    let path = file.to_str().context("a path in letters")?;
    let Output { status, stderr, .. } = run_audit(&[path])?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.code() == Some(1) && stderr.contains(reason), "{status}: {stderr}");
    Ok(())
}

/// Has the audit look at the release binary with something changed in one of its two program
/// headers, which follow the header of the file.
fn objects_to_header(index: usize, reason: &str, change: impl Fn(&mut [u8])) -> Result<()> {
    let mut bytes = fs::read(artifact::build(Flavor::Freestanding)?)?;
    let headers = size_of::<FileHeader64<Endianness>>();
    let size = size_of::<ProgramHeader64<Endianness>>();
    change(&mut bytes[headers + index * size..][..size]);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pause");
    fs::write(&file, bytes)?;
    objects(&file, reason)
}

fn writable_segment_is_objected_to() -> Result<()> {
    // Flags are the second word: read, write and execute.
    objects_to_header(0, "a segment is writable", |header| header[4] = 7)
}

fn executable_stack_is_objected_to() -> Result<()> {
    objects_to_header(1, "the stack is executable", |header| header[4] = 7)
}

fn missing_stack_header_is_objected_to() -> Result<()> {
    // PT_NULL.
    objects_to_header(1, "nothing keeps the stack from", |header| header[..4].fill(0))
}

/// Has the audit look at the release binary with other code where it is entered.
fn objects_to_code(code: &[u8], reason: &str) -> Result<()> {
    let mut bytes = fs::read(artifact::build(Flavor::Freestanding)?)?;
    let header = FileHeader64::<Endianness>::parse(&*bytes)?;
    let entry = usize::try_from(header.e_entry(header.endian()?))?;
    bytes[entry..][..code.len()].copy_from_slice(code);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pause");
    fs::write(&file, bytes)?;
    objects(&file, reason)
}

fn patched_call_is_objected_to() -> Result<()> {
    // mov eax, 162; syscall; and that again.
    let sync = [0xb8, 162, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    objects_to_code(&sync, "the system call sync is not documented")
}

fn patched_jumps_are_objected_to() -> Result<()> {
    // call rax; jmp rax.
    objects_to_code(&[0xff, 0xd0], "there is an indirect call")?;
    objects_to_code(&[0xff, 0xe0], "there is an indirect jump")
}

/// Has the audit look at the program with something put before the first thing that it does.
fn objects_to_source(statement: &str, reason: &str) -> Result<()> {
    const FIRST: &str = "    let _ = set_action(libc::SIGPIPE, libc::SIG_IGN, 0);";
    let folder = tempfile::tempdir()?;
    artifact::copy_sources(folder.path())?;
    let path = folder.path().join("src/sys/freestanding/mod.rs");
    let source = fs::read_to_string(&path)?;
    ensure!(source.matches(FIRST).count() == 1, "the first thing has changed");
    fs::write(&path, source.replace(FIRST, statement))?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--package=pause", "--target-dir=target"]);
    let Output { status, stderr, .. } = cargo.current_dir(folder.path()).output()?;
    if !status.success() {
        bail!("{}", String::from_utf8_lossy(&stderr));
    }
    objects(&folder.path().join("target/release/pause"), reason)
}

fn extra_call_is_objected_to() -> Result<()> {
    let sync = "let _ = unsafe { syscall(libc::SYS_sync, []) };";
    objects_to_source(sync, "the system call sync is not documented")
}

fn missing_call_is_objected_to() -> Result<()> {
    objects_to_source("exit(0);", "the documented system call chdir is not there")
}

fn indirect_call_is_objected_to() -> Result<()> {
    let call = "core::hint::black_box(become_subreaper as fn())();";
    objects_to_source(call, "there is an indirect call")
}

fn other_files_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text");
    fs::write(&text, "no program")?;
    objects(&text, "it is no ELF file for x86_64")?;
    objects(&folder.path().join("nowhere"), "cannot read")?;
    let mut bytes = fs::read(artifact::build(Flavor::Freestanding)?)?;
    bytes.truncate(200);
    fs::write(&text, bytes)?;
    objects(&text, "its segment is longer than the file")
}
