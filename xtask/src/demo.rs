//! `cargo xtask demo`: demonstrates a pod sandbox with the shipped binary.

use anyhow::{Result, ensure};
use harness::build::{self, Flavor};
use harness::helper;
use harness::orphans::ORPHANS;
use harness::proc::{children, context_switches, resident, wait_until};
use harness::sandbox::{STOPPED, Sandbox, Setup};
use indicatif::HumanCount;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::fs;
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

/// The command line of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Number of orphans that exit in the pod
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    orphans: u64,
    /// Keep the pod until Ctrl-C, so that you can look inside
    #[arg(long)]
    hold: bool,
}

/// The abstract socket that container A serves on. It belongs to the network namespace: unix(7).
const SOCKET: &str = "greeting";
const GREETING: &str = "Hello from container A";

helper!(
    /// Container A: serves the greeting forever.
    SERVE = |_| {
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(SOCKET)?)?;
        Ok(socket.incoming().try_for_each(|client| client?.write_all(GREETING.as_bytes()))?)
    }
);
helper!(
    /// Container B: prints what is served.
    FETCH = |_| {
        let address = SocketAddr::from_abstract_name(SOCKET)?;
        io::copy(&mut UnixStream::connect_addr(&address)?, &mut io::stdout())?;
        Ok(())
    }
);

/// Starts a pod and prints a line for each observation. Fails if one is not as expected.
pub fn run(args: &Args) -> Result<()> {
    let binary = build::build(Flavor::Freestanding)?;
    let bytes = HumanCount(fs::metadata(&binary)?.len());
    let pod = Setup::new(&binary).asleep()?;
    let kib = resident(pod.pid)?;
    println!("sandbox      /pause ({bytes} bytes) is PID 1 and sleeps, {kib} KiB resident");

    let container = start_container(&pod)?;
    println!("container A  joins the namespaces and serves on the network's socket @{SOCKET}");
    println!("container B  joins them, too, and fetches {:?}", pod.run(&FETCH, &[])?);
    kill_container(container)?;
    ensure!(pod.run(&FETCH, &[]).is_err(), "container A was killed, but its socket still answers");
    println!("container A  is killed: its socket no longer answers");
    let container = start_container(&pod)?;
    println!("container A  is restarted: B fetches {:?}", pod.run(&FETCH, &[])?);

    let before = context_switches(pod.pid)?;
    pod.run(&ORPHANS, &[&args.orphans.to_string()])?;
    wait_until("no orphan is left", || children(pod.pid).is_empty())?;
    ensure!(context_switches(pod.pid)? == before, "PID 1 was woken");
    println!("orphans      {} exited: 0 zombies, 0 wake-ups of PID 1", HumanCount(args.orphans));
    if args.hold {
        hold(&pod)?;
    }
    kill_container(container)?;
    pod.stops(Signal::SIGTERM, STOPPED)?;
    println!("sandbox      SIGTERM: message \"pause: SIGTERM\", exit code 0");
    Ok(())
}

/// Starts container A and waits until it serves. Returns the process that joined the pod for it.
fn start_container(pod: &Sandbox) -> Result<Child> {
    // Ctrl-C on a terminal is for this program alone.
    let joiner = pod.command(&SERVE).stderr(Stdio::null()).process_group(0).spawn()?;
    wait_until("container A serves", || pod.run(&FETCH, &[]).is_ok_and(|it| it == GREETING))?;
    Ok(joiner)
}

/// Kills container A, which is the child of the process that joined the pod.
fn kill_container(mut joiner: Child) -> Result<()> {
    for container in children(Pid::from_raw(joiner.id() as i32)) {
        kill(container, Signal::SIGKILL)?;
    }
    joiner.wait()?;
    Ok(())
}

/// Prints how to look inside, and waits for Ctrl-C.
fn hold(pod: &Sandbox) -> Result<()> {
    // Blocked signals wait; there is no other thread to take them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let user = if geteuid().is_root() { "" } else { " --user --preserve-credentials" };
    println!("look inside  nsenter --target {}{user} --net --ipc --uts --pid sh", pod.pid);
    println!("             Ctrl-C ends the pod");
    signals.wait()?;
    // The terminal shows ^C in this line.
    println!();
    Ok(())
}
