//! `cargo xtask demo`: demonstrates a pod sandbox with the shipped binary.

use anyhow::{Result, ensure};
use harness::build::{self, Flavor};
use harness::helper;
use harness::orphans;
use harness::proc::{activity, children, resident, wait_until};
use harness::sandbox::{STOPPED, Sandbox, Setup};
use indicatif::HumanCount;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Instant;

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

helper!(SERVE = serve);
helper!(FETCH = fetch_and_print);

/// The abstract socket that container A serves on. It belongs to the network namespace: unix(7).
const SOCKET: &str = "greeting";

/// What container A serves.
const GREETING: &str = "Hello from container A";

/// Starts a pod and prints a line for each observation. Fails if one is not as expected.
pub fn run(args: &Args) -> Result<()> {
    let binary = build::build(Flavor::Freestanding)?;
    let bytes = fs::metadata(&binary)?.len();
    let pod = Setup::new(&binary).asleep()?;
    let (bytes, memory) = (HumanCount(bytes), resident(pod.pid)?);
    println!("sandbox      /pause ({bytes} bytes) is PID 1 and sleeps, {memory} KiB resident");
    let namespaces = namespaces(&pod)?;
    println!("             {}", namespaces.join(" "));

    let container = start_container(&pod)?;
    println!("container A  joins the namespaces and serves on the network's socket @{SOCKET}");
    println!("container B  joins them too and fetches {:?}", fetch(&pod)?);

    kill_container(container)?;
    ensure!(fetch(&pod).is_err(), "somebody answers in place of container A");
    println!("container A  is killed: nobody answers any more");

    let container = start_container(&pod)?;
    let greeting = fetch(&pod)?;
    ensure!(self::namespaces(&pod)? == namespaces, "the namespaces have changed");
    println!("container A  is back: B fetches {greeting:?}, the namespaces are the same");

    reap(&pod, args.orphans)?;

    if args.hold {
        hold(&pod)?;
    }

    kill_container(container)?;
    let start = Instant::now();
    pod.stops(Signal::SIGTERM, STOPPED)?;
    let took = start.elapsed().as_micros();
    println!("sandbox      SIGTERM: message \"pause: SIGTERM\", exit code 0 after {took} µs");
    Ok(())
}

/// The kernel's names of the namespaces that make the pod.
fn namespaces(pod: &Sandbox) -> Result<Vec<String>> {
    let link = |name| fs::read_link(format!("/proc/{}/ns/{name}", pod.pid));
    ["pid", "net", "ipc", "uts"].iter().map(|name| Ok(link(name)?.display().to_string())).collect()
}

/// Makes orphans in the pod. None of them may remain, and PID 1 may not wake up for them.
fn reap(pod: &Sandbox, number: u64) -> Result<()> {
    let before = activity(pod.pid)?;
    pod.run(&orphans::ORPHANS, &[&number.to_string()])?;
    wait_until("all orphans are gone", || children(pod.pid).is_empty())?;
    let after = activity(pod.pid)?;
    ensure!(before == after, "PID 1 was woken: {before:?}, then {after:?}");
    println!("orphans      {} exited: 0 zombies, 0 wake-ups of PID 1", HumanCount(number));
    Ok(())
}

/// Prints how to look inside, and waits for Ctrl-C.
fn hold(pod: &Sandbox) -> Result<()> {
    // Blocked, they wait; there is no other thread to take them.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let user = if geteuid().is_root() { "" } else { " --user --preserve-credentials" };
    println!("look inside  nsenter --target {}{user} --net --ipc --uts --pid sh", pod.pid);
    println!("             Ctrl-C ends the pod");
    signals.wait()?;
    // The terminal shows ^C in this line.
    println!();
    Ok(())
}

/// Starts container A and waits until it serves.
fn start_container(pod: &Sandbox) -> Result<Child> {
    let mut joiner = pod.command(&SERVE);
    // Ctrl-C on a terminal is for this program alone.
    let joiner = joiner.stdin(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?;
    wait_until("container A serves", || fetch(pod).is_ok())?;
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

/// What container B gets from container A.
fn fetch(pod: &Sandbox) -> Result<String> {
    let got = pod.run(&FETCH, &[])?;
    ensure!(got == GREETING, "container B got {got:?}");
    Ok(got)
}

/// Serves forever.
fn serve(_: &[OsString]) -> Result<()> {
    for client in UnixListener::bind_addr(&SocketAddr::from_abstract_name(SOCKET)?)?.incoming() {
        client?.write_all(GREETING.as_bytes())?;
    }
    Ok(())
}

/// Prints what is served.
fn fetch_and_print(_: &[OsString]) -> Result<()> {
    let mut text = String::new();
    let address = SocketAddr::from_abstract_name(SOCKET)?;
    UnixStream::connect_addr(&address)?.read_to_string(&mut text)?;
    print!("{text}");
    Ok(())
}
