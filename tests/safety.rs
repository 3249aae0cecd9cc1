//! The tests themselves are safe to run as root: no helper process reaches the host, and nothing is
//! left behind.

use anyhow::{Context, Result, ensure};
use harness::build::{Flavor, build, project};
use harness::cgroup::Cgroup;
use harness::proc::{SLEEPING_CALL, wait_until};
use harness::sandbox::{self, Sandbox, Setup, ensure_inside};
use harness::target::TARGETS;
use harness::trial::{Test, Trials, obstacle};
use harness::{helper, tests};
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

const SANDBOXED: &[Test] = tests![
    helper_runs_inside,
    recycled_pid_is_not_joined,
    recycled_pid_gets_no_signal,
    libraries_of_the_host_are_read_only,
];
const ANYWHERE: &[Test] =
    tests![dangerous_helper_refuses_on_the_host, sleeping_calls_are_those_of_the_sources];
const CGROUPS: &[Test] = tests![control_group_leaves_nothing];

helper!(KILLER = killer);
helper!(MOUNTS = mounts);

fn main() -> ExitCode {
    helper::dispatch();
    let mut trials = Trials::new();
    trials.add_all(SANDBOXED, obstacle(sandbox::is_available()));
    trials.add_all(ANYWHERE, None);
    trials.add_all(CGROUPS, obstacle(Cgroup::new("pids")));
    trials.run()
}

/// Stands for the helpers that kill: it only says that it would.
fn killer(_: &[OsString]) -> Result<()> {
    ensure_inside()?;
    println!("would kill");
    Ok(())
}

/// A sandbox whose PID 1 has ended, and whose PID is now that of another process: this one.
fn sandbox_with_recycled_pid() -> Result<Sandbox> {
    let mut sandbox = Setup::new(&build(Flavor::Freestanding)?).start()?;
    sandbox.wait_until_asleep()?;
    let pid = sandbox.pid;
    sandbox.signal(Signal::SIGKILL)?;
    wait_until("PID 1 is reaped", || !Path::new(&format!("/proc/{pid}")).exists())?;
    sandbox.pid = Pid::this();
    Ok(sandbox)
}

fn helper_runs_inside() -> Result<()> {
    let sandbox = Setup::new(&build(Flavor::Freestanding)?).start()?;
    ensure!(sandbox.run(&KILLER, &[])? == "would kill\n");
    Ok(())
}

fn recycled_pid_is_not_joined() -> Result<()> {
    let error = sandbox_with_recycled_pid()?.run(&KILLER, &[]).err().context("it ran")?;
    ensure!(format!("{error:#}").contains("cannot join the sandbox"), "{error:#}");
    Ok(())
}

fn recycled_pid_gets_no_signal() -> Result<()> {
    // (SIGWINCH does no harm, should it arrive here.)
    let error =
        sandbox_with_recycled_pid()?.signal(Signal::SIGWINCH).err().context("it was sent")?;
    ensure!(format!("{error:#}").contains("No such process"), "{error:#}");
    Ok(())
}

fn dangerous_helper_refuses_on_the_host() -> Result<()> {
    let output = KILLER.command().output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "it ran");
    ensure!(stderr.contains("runs only inside a sandbox"), "{stderr}");
    Ok(())
}

/// Prints every mount that is not read-only.
fn mounts(_: &[OsString]) -> Result<()> {
    for mount in procfs::process::Process::myself()?.mountinfo()? {
        if !mount.mount_options.contains_key("ro") {
            println!("{}", mount.mount_point.display());
        }
    }
    Ok(())
}

fn libraries_of_the_host_are_read_only() -> Result<()> {
    let sandbox = Setup::new(&build(Flavor::Hosted)?).with_libraries(true).start()?;
    let writable = sandbox.run(&MOUNTS, &[])?;
    ensure!(writable == "/\n/proc\n", "writable: {writable}");
    Ok(())
}

/// No control group is left behind or changed, and one that a killed program left is removed.
fn control_group_leaves_nothing() -> Result<()> {
    let group = Cgroup::new("pids")?;
    let folder = group.folder.clone();
    ensure!(folder.is_dir());
    // No process has this PID: it is above the kernel's limit.
    let left_over = folder.with_file_name("pause-pids-4194304");
    drop(group);
    ensure!(!folder.exists(), "{} is left", folder.display());
    fs::create_dir(&left_over)?;
    let enabled = || fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").ok();
    let before = enabled();
    drop(Cgroup::new("pids")?);
    ensure!(!left_over.exists(), "{} is left", left_over.display());
    ensure!(enabled() == before, "the controllers of the root group were changed");
    Ok(())
}

/// The name in the table is the one in the architecture's source, and the number is that of this
/// machine's.
fn sleeping_calls_are_those_of_the_sources() -> Result<()> {
    for target in TARGETS {
        let path = format!("src/sys/freestanding/{}.rs", target.arch);
        let source = fs::read_to_string(project().join(&path)).context(path.clone())?;
        for call in ["pause", "ppoll"] {
            let is_used = source.contains(&format!("libc::SYS_{call}"));
            ensure!(is_used == (call == target.sleeps_in), "{path}: SYS_{call}");
        }
    }
    let native = TARGETS.iter().find(|it| it.is_native()).context("no target for this machine")?;
    let is_ppoll = SLEEPING_CALL == libc::SYS_ppoll;
    ensure!(is_ppoll == (native.sleeps_in == "ppoll"), "{}: {SLEEPING_CALL}", native.arch);
    Ok(())
}
