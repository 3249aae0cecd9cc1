//! The tests themselves are safe to run as root: nothing dangerous runs outside of the system that is
//! made for it.

use anyhow::{Result, ensure};
use harness::build::build_program;
use harness::sandbox::ensure_inside;
use harness::trial::Trials;
use harness::{helper, tests};
use nix::unistd::geteuid;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Output};

fn main() -> ExitCode {
    let mut trials = Trials::new();
    trials.add_all(tests![dangerous_helper_refuses_on_the_host, engines_refuses_on_the_host], None);
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

fn dangerous_helper_refuses_on_the_host() -> Result<()> {
    refuses(&mut KILLER.command(), "runs only inside a sandbox")
}

/// The arguments name files that do not exist, and nobody runs it: without the check it fails, too,
/// before it touches anything.
fn engines_refuses_on_the_host() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let program = directory.path().join("engines");
    fs::copy(build_program("engines")?, &program)?;
    let mut engines = Command::new(program);
    engines.args(["--image=/none", "--reference=none", "--binary=/none"]);
    if geteuid().is_root() {
        // nobody, who owns nothing
        engines.uid(65534).gid(65534);
    }
    refuses(&mut engines, "run `cargo xtask engines`")
}

/// The command fails with this reason, and prints nothing else.
fn refuses(command: &mut Command, reason: &str) -> Result<()> {
    let Output { status, stdout, stderr } = command.output()?;
    let stderr = String::from_utf8(stderr)?;
    ensure!(!status.success() && stdout.is_empty(), "it ran");
    ensure!(stderr.contains(reason), "{stderr}");
    Ok(())
}
