//! The tests themselves are safe to run as root: no helper process reaches the host, and nothing is
//! left behind.

use anyhow::{Context, Result, ensure};
use harness::build::{Flavor, build_program};
use harness::cgroup::Cgroup;
use harness::proc::{state, wait_until};
use harness::sandbox::{self, Setup, ensure_inside};
use harness::trial::{Trials, obstacle};
use harness::{helper, tests};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    trials.add_all(
        tests![pid_is_kept_when_pid_1_has_ended, libraries_of_the_host_are_read_only],
        obstacle(sandbox::is_available()),
    );
    trials.add_all(tests![dangerous_helper_refuses_on_the_host, engines_refuses_on_the_host], None);
    trials.add_all(tests![control_group_leaves_nothing], obstacle(Cgroup::new("pids")));
    trials.run()
}

helper!(
    /// Stands for the helpers that kill: it only says that it would.
    KILLER = |_| {
        ensure_inside()?;
        println!("would kill");
        Ok(())
    }
);

/// The PID of a sandbox is never that of another process.
fn pid_is_kept_when_pid_1_has_ended() -> Result<()> {
    let sandbox = Setup::of(Flavor::Freestanding)?.asleep()?;
    sandbox.signal(Signal::SIGKILL)?;
    wait_until("PID 1 is a zombie", || state(sandbox.pid) == Some('Z'))?;
    let error = sandbox.run(&KILLER, &[]).err().context("it ran")?;
    ensure!(format!("{error:#}").contains("cannot join the sandbox"), "{error:#}");
    Ok(())
}

fn dangerous_helper_refuses_on_the_host() -> Result<()> {
    let output = KILLER.command().output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "it ran");
    ensure!(stderr.contains("runs only inside a sandbox"), "{stderr}");
    Ok(())
}

/// The arguments name files that do not exist, and nobody runs it: without the check it fails, too,
/// before it touches anything.
fn engines_refuses_on_the_host() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let program = folder.path().join("engines");
    fs::copy(build_program("engines")?, &program)?;
    let mut engines = Command::new(program);
    engines.args(["--image=/none", "--reference=none", "--binary=/none"]);
    if geteuid().is_root() {
        engines.uid(NOBODY).gid(NOBODY);
    }
    let output = engines.output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "it ran");
    ensure!(stderr.contains("run `cargo xtask engines`"), "{stderr}");
    Ok(())
}

helper!(
    /// Prints every mount that is not read-only.
    MOUNTS = |_| {
        for mount in procfs::process::Process::myself()?.mountinfo()? {
            if !mount.mount_options.contains_key("ro") {
                println!("{}", mount.mount_point.display());
            }
        }
        Ok(())
    }
);

fn libraries_of_the_host_are_read_only() -> Result<()> {
    let sandbox = Setup::of(Flavor::Hosted)?.start()?;
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
