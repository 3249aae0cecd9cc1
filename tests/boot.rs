//! The process as PID 1 of real kernels, in machines that qemu makes. The kernels are Debian's: [`KERNELS`]
//! lists them, `.ci/foreign-kernels` fetches them, and `PAUSE_FOREIGN_KERNELS` names their folder. Targets
//! for which Debian 12's qemu boots none have no trial here.

use anyhow::{Context, Result, ensure};
use cpio::newc;
use harness::build;
use harness::target::{KERNELS, Kernel, TARGETS, Target};
use harness::trial::{Trials, obstacle};
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Options of the machine, and the number of the call that pause is to sleep in there.
fn machine(target: &Target) -> (&'static [&'static str], u32) {
    match target.arch {
        "x86_64" => (&["-machine", "q35"], 34),
        // One of the processors that can have pages of 16 KiB. It has ppoll, and no pause.
        "aarch64" => (&["-machine", "virt", "-cpu", "cortex-a76"], 73),
        "arm" => (&["-machine", "virt", "-cpu", "cortex-a15"], 29),
        "powerpc64" => (&["-machine", "pseries"], 29),
        "s390x" => (&["-machine", "s390-ccw-virtio"], 29),
        other => panic!("tests/boot.rs has no options for a machine of {other}"),
    }
}

fn main() -> ExitCode {
    let mut trials = Trials::new();
    for kernel in KERNELS {
        let target = TARGETS.iter().find(|it| it.arch == kernel.arch).expect("a known target");
        let obstacle = obstacle(prerequisites(target, kernel));
        let run = || boots(target, kernel, &prerequisites(target, kernel)?);
        trials.add(format!("{}::{}", target.triple, kernel.name), obstacle, run);
    }
    trials.run()
}

/// Finds what the trial needs, and returns the kernel's folder.
fn prerequisites(target: &Target, kernel: &Kernel) -> Result<PathBuf> {
    build::find_core(target.triple)?;
    target.system_emulator()?;
    let folder = env::var_os("PAUSE_FOREIGN_KERNELS").context(
        "there are no kernels; get them as .ci/run does, and name them in PAUSE_FOREIGN_KERNELS",
    )?;
    let folder = Path::new(&folder).join(kernel.name);
    ensure!(folder.exists(), "there is no kernel at {}", folder.display());
    Ok(folder)
}

/// Boots the kernel with pause as its init; tests/boot/init tries it from inside.
fn boots(target: &Target, kernel: &Kernel, folder: &Path) -> Result<()> {
    let (options, call) = machine(target);
    let temporary = tempfile::tempdir()?;
    let initramfs = temporary.path().join("initramfs");
    let init = build::project().join("tests/boot/init");
    let busybox = folder.join("busybox");
    let files = [("init", &init), ("pause", &target.build()?), ("busybox", &busybox)];
    pack(&initramfs, &files).context("cannot pack the initramfs")?;

    // A kernel whose init ends panics and then restarts the machine, which is where qemu exits.
    let serial = if target.arch == "x86_64" { "console=ttyS0" } else { "" };
    // A machine is many times slower than this one.
    let mut machine = Command::new("timeout")
        .args(["--signal=KILL", "120", "setpriv", "--pdeathsig", "KILL"])
        .arg(target.system_emulator()?)
        .args(options)
        // One processor: nobody can look while a dead process is on its way out.
        .args(["-smp", "1", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-append", &format!("panic=-1 quiet {serial}")])
        .arg("-kernel")
        .arg(folder.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run timeout, which is to start qemu")?;

    let ready = "init: waits for Ctrl-C";
    let again = format!("init: after SIGTERM from inside: (pause) S in call {call}");
    let lines = [
        &format!("init: sleeps in call {call}"),
        &format!("init: pages of {} KiB", kernel.page),
        "init: orphans: 100",
        "init: zombies: 0",
        "init: times that PID 1 ran for them: 0",
        &again,
        // As PID 1 of a PID namespace.
        &again,
        "pause: SIGTERM",
        "init: exit code after SIGTERM from outside: 0",
        ready,
        "pause: SIGINT",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000",
    ];
    let mut keyboard = machine.stdin.take().context("qemu has no stdin")?;
    let console = machine.stdout.take().context("qemu has no stdout")?;
    let mut printed = String::new();
    let mut expected = &lines[..];
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        printed += &format!("{line}\n");
        if line.contains(ready) {
            keyboard.write_all(b"\x03")?;
        }
        // Something of the kernel's may stand before it in the line.
        if line.trim_end().ends_with(expected[0]) {
            expected = &expected[1..];
        }
        if expected.is_empty() {
            break;
        }
    }
    machine.kill()?;
    machine.wait()?;
    ensure!(expected.is_empty(), "{expected:?} is not next on the console: {printed}");
    Ok(())
}

/// Writes an initramfs of programs, each under its name at the top.
fn pack(initramfs: &Path, programs: &[(&str, &PathBuf)]) -> io::Result<()> {
    let mut archive = File::create(initramfs)?;
    for (name, path) in programs {
        let program = fs::read(path)?;
        let size = u32::try_from(program.len()).map_err(io::Error::other)?;
        let mut entry = newc::Builder::new(name).mode(0o100_755).write(&mut archive, size);
        entry.write_all(&program)?;
        entry.finish()?;
    }
    newc::trailer(archive)?;
    Ok(())
}
