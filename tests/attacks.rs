//! Attacks of a hostile container of the same pod, see [`harness::attacks`], on the release binary in
//! both flavors.
//!
//! Each attempt is first made on a process that is like PID 1 but unprotected, and has to succeed there,
//! or it would prove nothing. There is no seccomp filter in its way, as an engine's would be.

use anyhow::{Context, Result, bail, ensure};
use harness::attacks::{
    self, ATTACKERS, ATTACKS, Attack, Attacker, DENIED, DROPPED, ENDS, IGNORED, MISSES,
};
use harness::build::Flavor;
use harness::helper;
use harness::helper::spawn;
use harness::orphans::number;
use harness::proc::{activity, anonymous, state, wait_until};
use harness::sandbox::{self, STOPPED, Sandbox, Setup, ensure_inside};
use harness::trial::{Trials, obstacle};
use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::ffi::OsString;
use std::process::ExitCode;

/// Attempts that are made from outside, too, and whether they end the pod.
const FROM_OUTSIDE: [(&str, bool); 5] =
    [("sigterm", true), ("tgkill", true), ("pidfd", true), ("forged", false), ("sigio", false)];

helper!(ATTACKER = attack);
helper!(CONTAINER_ROOT = |_| attacks::become_container_root(0));
helper!(FLOOD = flood);

fn main() -> ExitCode {
    let mut trials = Trials::new();
    let no_sandbox = obstacle(sandbox::is_available());
    let no_root = (!geteuid().is_root()).then(|| "only root can choose the pod's user".to_owned());
    let no_root = no_sandbox.clone().or(no_root);

    for flavor in [Flavor::Freestanding, Flavor::Hosted] {
        let setup = Setup::of(flavor).expect("the release binary can be built");
        let prefix = format!("{flavor:?}").to_lowercase();
        for attacker in &ATTACKERS {
            let is_for_all = ["user", "nested"].contains(&attacker.name);
            let obstacle = if is_for_all { &no_sandbox } else { &no_root };
            for attack in ATTACKS {
                let setup = Setup { user: Some(attacker.pod_user), ..setup.clone() };
                let name = format!("{prefix}::{}::{}", attack.name, attacker.name);
                let run = move || check_attack(setup, attack, attacker);
                trials.add(name, obstacle.clone(), run);
            }
        }
        for (name, ends) in FROM_OUTSIDE {
            let setup = setup.clone();
            let run = move || check_from_outside(setup.asleep()?, name, ends);
            trials.add(format!("{prefix}::{name}::from_outside"), no_sandbox.clone(), run);
        }
        let run = move || check_flood(setup.asleep()?);
        trials.add(format!("{prefix}::flood"), no_sandbox.clone(), run);
    }
    trials.run()
}

/// Checks the outcome of an attack on PID 1.
fn check_attack(setup: Setup, attack: &Attack, attacker: &Attacker) -> Result<()> {
    let preparation = Some(&CONTAINER_ROOT).filter(|_| attacker.pod_user == 0);
    let sandbox = Setup { preparation, ..setup }.asleep()?;
    let before = activity(sandbox.pid)?;
    let mut command = sandbox.command(&ATTACKER);
    let output = command.args([attack.name, attacker.name]).output()?;
    let stdout = String::from_utf8(output.stdout)?;
    let stderr = String::from_utf8_lossy(&output.stderr);

    let outcome = (attacker.outcome)(attack);
    let result = stdout.split_once("the control succeeded\n");
    let (_, result) = result.with_context(|| format!("the control failed: {stdout}{stderr}"))?;
    if outcome == ENDS {
        // The attacker ends together with PID 1.
        return sandbox.ends(0, STOPPED);
    }
    ensure!(output.status.success(), "{stderr}");
    let expected = if [DROPPED, IGNORED, MISSES].contains(&outcome) { "" } else { outcome };
    ensure!(result == expected, "{result:?} instead of {expected:?}");
    sandbox.wait_until_asleep()?;
    let was_woken = activity(sandbox.pid)?.voluntary_switches != before.voluntary_switches;
    let wakes = outcome == IGNORED;
    ensure!(was_woken == wakes, "PID 1 was woken: {was_woken} instead of {wakes}");
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

/// Makes an attempt from the parent PID namespace.
fn check_from_outside(sandbox: Sandbox, name: &str, is_obeyed: bool) -> Result<()> {
    let before = activity(sandbox.pid)?;
    (find(name)?.run)(sandbox.pid)?;
    if !is_obeyed {
        wait_until("PID 1 was woken", || activity(sandbox.pid).is_ok_and(|it| it != before))?;
        sandbox.wait_until_asleep()?;
        sandbox.signal(Signal::SIGTERM)?;
    }
    sandbox.ends(0, STOPPED)
}

/// Checks that PID 1 does not grow by signals that it ignores.
fn check_flood(sandbox: Sandbox) -> Result<()> {
    // The first signal needs a page of the stack, which stays.
    sandbox.run(&FLOOD, &["1"])?;
    sandbox.wait_until_asleep()?;
    let before = anonymous(sandbox.pid)?;
    sandbox.run(&FLOOD, &["1000000"])?;
    sandbox.wait_until_asleep()?;
    let after = anonymous(sandbox.pid)?;
    ensure!(before == after, "{before} KiB of anonymous memory became {after}");
    sandbox.stops(Signal::SIGTERM, STOPPED)
}

fn flood(arguments: &[OsString]) -> Result<()> {
    ensure_inside()?;
    for _ in 0..number(arguments)? {
        kill(Pid::from_raw(1), Signal::SIGTERM)?;
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Attack> {
    ATTACKS.iter().find(|attack| attack.name == name).context("no such attack")
}

/// Attacks an unprotected process, which has to succeed, and then PID 1.
fn attack(arguments: &[OsString]) -> Result<()> {
    let [name, attacker] = arguments else { bail!("takes an attack and an attacker") };
    let attack = find(&name.to_string_lossy())?;
    let attacker = ATTACKERS.iter().find(|it| attacker == it.name).context("no such attacker")?;
    ensure_inside()?;
    attacks::prepare()?;
    (attacker.become_attacker)(attacker.pod_user)?;
    set_dumpable(true)?;

    let victim = if attack.on_itself { Pid::this() } else { spawn(attacks::park)? };
    wait_until("the control sleeps", || attack.on_itself || state(victim) == Some('S'))?;
    (attack.run)(victim).context("it fails on an unprotected process")?;
    let outcome = (attacker.outcome)(attack);
    if [DROPPED, IGNORED, ENDS].contains(&outcome) {
        let has_effect = || matches!(state(victim), Some('T' | 'Z'));
        wait_until("the unprotected process is stopped or dead", has_effect)?;
    }
    println!("the control succeeded");
    if attacker.name == "nested" {
        attacks::nest_children()?;
    }
    match (attack.run)(Pid::from_raw(1)) {
        Ok(()) => {}
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::EINVAL) => print!("{DENIED}"),
            _ => return Err(error.into()),
        },
    }
    Ok(())
}
