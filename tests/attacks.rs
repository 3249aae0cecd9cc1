//! What a hostile container of the same pod tries, see [`support::attacks`], on the release binary in
//! both flavors.
//!
//! Each attempt is first made on a process that is like PID 1 but unprotected, and has to work there,
//! or it would prove nothing. No seccomp filter is in the way of it, as an engine's would be.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::ffi::OsString;
use std::process::{ExitCode, Stdio};
use std::thread;
use support::actor::{self, Part, spawn};
use support::artifact::{self, Flavor};
use support::attacks::{self, ATTACKS, Attack, Outcome};
use support::proc::{activity, state, wait_until};
use support::sandbox::{self, Setup};
use support::trial;

const PARTS: &[Part] = &[("attacker", play_attacker)];

fn main() -> ExitCode {
    actor::take_the_stage(PARTS);
    let arguments = Arguments::from_args();
    let obstacle = sandbox::is_available().err().map(|error| format!("{error:#}"));
    let no_root = (!geteuid().is_root())
        .then(|| "only root can make a pod that has root beside user 65535".to_owned());

    let mut trials = Vec::new();
    for flavor in [Flavor::Freestanding, Flavor::Hosted] {
        let binary = artifact::build(flavor).expect("the release binary can be built");
        for attack in ATTACKS {
            for (who, outcome) in [("user", attack.user), ("root", attack.root)] {
                let excuse = if who == "root" { &no_root } else { &None };
                let obstacle = obstacle.clone().or(excuse.clone());
                let setup = Setup::new(&binary).with_libraries(flavor == Flavor::Hosted);
                let run = move || match obstacle {
                    Some(reason) => trial::skip(reason),
                    None => trial::outcome(withstand(setup, attack, who, outcome)),
                };
                let name = format!("{flavor:?}::{}::{who}", attack.name).to_lowercase();
                trials.push(Trial::ignorable_test(name, run));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Sees what comes of an attack on PID 1.
fn withstand(setup: Setup, attack: &Attack, who: &str, outcome: Outcome) -> Result<()> {
    let sandbox = setup.start()?;
    sandbox.wait_until_asleep()?;
    let before = activity(sandbox.pid)?;
    let mut attacker = sandbox.actor("attacker");
    let output = attacker.args([attack.name, who]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8(output.stdout)?;

    if outcome != Outcome::Ends {
        // (The attacker dies with PID 1.)
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let refused = said.contains("refused");
        ensure!(refused == (outcome == Outcome::Denied), "the kernel says {said:?}");
        ensure!(activity(sandbox.pid)? == before, "PID 1 was woken");
        sandbox.wait_until_asleep()?;
        sandbox.signal(Signal::SIGTERM)?;
    }
    let (status, stderr) = sandbox.wait()?;
    let last_word = if attack.name == "sigint" { "pause: SIGINT\n" } else { "pause: SIGTERM\n" };
    ensure!(status.code() == Some(0) && stderr == last_word, "{status}, {stderr:?}");
    ensure!(said.starts_with("tried"), "the attack was none: {said:?}");
    Ok(())
}

/// Attacks a process of its own, which has to be a success, and then PID 1.
fn play_attacker(arguments: &[OsString]) -> Result<()> {
    let [name, who] = arguments else { bail!("takes an attack, and who makes it") };
    let attack = ATTACKS.iter().find(|attack| name == attack.name).context("no such attack")?;
    if who == "root" {
        attacks::become_container_root()?
    } else {
        attacks::become_same_user()?
    }
    attacks::unprotect()?;
    let victim = spawn(|| {
        loop {
            thread::park();
        }
    })?;
    (attack.run)(victim).context("it does not even work on an unprotected process")?;
    if matches!(attack.user, Outcome::Ignored | Outcome::Ends) {
        let has_effect = || matches!(state(victim), Some('T' | 'Z'));
        wait_until("an unprotected process is stopped or dead", has_effect)?;
    }
    println!("tried");
    kill(victim, Signal::SIGKILL)?;
    match (attack.run)(Pid::from_raw(1)) {
        Ok(()) => print!("done"),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => print!("refused"),
            _ => return Err(error.into()),
        },
    }
    Ok(())
}
