//! The tests themselves are safe to run as root: no helper process reaches the host.

use anyhow::{Result, ensure};
use harness::sandbox::ensure_inside;
use harness::trial::Trials;
use harness::{helper, tests};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Trials::new();
    trials.add_all(tests![dangerous_helper_refuses_on_the_host], None);
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
    let output = KILLER.command().output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "it ran");
    ensure!(stderr.contains("runs only inside a sandbox"), "{stderr}");
    Ok(())
}
