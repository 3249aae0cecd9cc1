//! The process as PID 1 of real kernels of other architectures, in machines that qemu makes.
//!
//! The kernels are Debian's, as `.ci/foreign-kernels` fetches them; `PAUSE_FOREIGN_KERNELS` names their
//! folder. What is missing counts as ignored and says how to get it; with `PAUSE_NO_SKIP=1`, as CI has
//! it, it fails.

use anyhow::{Context, Result, bail, ensure};
use cpio::newc;
use harness::proc::wait_until;
use harness::target::{Kernel, TARGETS, Target};
use harness::{build, trial};
use libtest_mimic::{Arguments, Completion, Trial};
use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Options of the machine, and the number of the call that pause is to sleep in there.
fn machine(target: &Target) -> (&'static [&'static str], u32) {
    match target.qemu {
        // One of the processors that can have pages of 16 KiB. It has ppoll, and no pause.
        "aarch64" => (&["-machine", "virt", "-cpu", "cortex-a76"], 73),
        "arm" => (&["-machine", "virt", "-cpu", "cortex-a15"], 29),
        "ppc64le" => (&["-machine", "pseries"], 29),
        "s390x" => (&["-machine", "s390-ccw-virtio"], 29),
        other => panic!("teach this test about {other}"),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for target in TARGETS.iter().filter(|target| !target.is_native()) {
        if target.kernels.is_empty() {
            // Not even CI can have one, so this is not trial::skip.
            let reason = "no kernel of Debian 12 is listed for it";
            let ignored = move || Ok(Completion::ignored_with(reason));
            trials.push(Trial::ignorable_test(target.triple, ignored));
        }
        for kernel in target.kernels {
            let try_it = move || match prerequisites(target, kernel) {
                Err(reason) => trial::skip(format!("{reason:#}")),
                Ok((qemu, folder)) => trial::outcome(boots(target, kernel, &qemu, &folder)),
            };
            let name = format!("{}::{}", target.triple, kernel.name);
            trials.push(Trial::ignorable_test(name, try_it));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Finds what the trial needs: the program that makes the machine, and the kernel's folder.
fn prerequisites(target: &Target, kernel: &Kernel) -> Result<(PathBuf, PathBuf)> {
    build::find_core(target.triple)?;
    let qemu = target.system_emulator()?;
    let folder = env::var_os("PAUSE_FOREIGN_KERNELS").context(
        "there are no kernels; get them as .ci/run does, and name them in PAUSE_FOREIGN_KERNELS",
    )?;
    let folder = Path::new(&folder).join(kernel.name);
    ensure!(folder.exists(), "there is no kernel at {}", folder.display());
    Ok((qemu, folder))
}

/// Boots the kernel with pause as its init; tests/boot/init tries it from inside.
fn boots(target: &Target, kernel: &Kernel, qemu: &Path, folder: &Path) -> Result<()> {
    let (options, call) = machine(target);
    let temporary = tempfile::tempdir()?;
    let initramfs = temporary.path().join("initramfs");
    let busybox = folder.join("busybox");
    let init = build::project().join("tests/boot/init");
    let files = [("init", &init), ("pause", &target.build()?), ("busybox", &busybox)];
    pack(&initramfs, &files).context("cannot pack the initramfs")?;

    let console = temporary.path().join("console");
    let output = File::create(&console)?;
    let mut machine = Command::new(qemu)
        .args(options)
        // One processor: nobody can look while a dead process is on its way out.
        .args(["-smp", "1", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio"])
        // A kernel whose init ends panics, and then starts again, which is where qemu leaves.
        .args(["-no-reboot", "-append", "panic=-1 quiet"])
        .arg("-kernel")
        .arg(folder.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot run {}", qemu.display()))?;
    let ended = wait_until("the machine is off", || !matches!(machine.try_wait(), Ok(None)));
    let _ = machine.kill();
    machine.wait()?;

    let console = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    ended.with_context(|| format!("on the console: {console}"))?;
    let expected: [&str; 7] = [
        &format!("init: sleeps in call {call}"),
        &format!("init: pages of {} KiB", kernel.page),
        "init: orphans: 100",
        "init: zombies: 0",
        "init: times that PID 1 ran for them: 0",
        "pause: SIGTERM",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000",
    ];
    // Something of the kernel's may stand before it in the line.
    let mut lines = console.lines();
    for expected in expected {
        if !lines.any(|line| line.trim_end().ends_with(expected)) {
            bail!("missing on the console, or not in its place: {expected}; there was: {console}");
        }
    }
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
