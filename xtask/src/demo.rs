//! `cargo xtask demo`: demonstrates a pod sandbox with the shipped binary.

use anyhow::{Context, Result, bail, ensure};
use harness::build::{self, Flavor};
use harness::helper;
use harness::orphans;
use harness::proc::{activity, children, resident, wait_until};
use harness::sandbox::{STOPPED, Sandbox, Setup};
use indicatif::HumanCount;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
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

/// Where container A serves. The network namespace is new, so no port is taken.
const ADDRESS: &str = "127.0.0.1:8080";

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

    let container = Container::start(&pod)?;
    println!("container A  joins the namespaces and serves on {ADDRESS}");
    println!("container B  joins them too and fetches {:?}", fetch(&pod)?);

    container.kill()?;
    ensure!(pod.run(&FETCH, &[]).is_err(), "somebody answers in place of container A");
    println!("container A  is killed: nobody answers any more");

    let container = Container::start(&pod)?;
    let greeting = fetch(&pod)?;
    ensure!(self::namespaces(&pod)? == namespaces, "the namespaces have changed");
    println!("container A  is back: B fetches {greeting:?}, the namespaces are the same");

    reap(&pod, args.orphans)?;

    if args.hold {
        hold(&pod)?;
    }

    container.kill()?;
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
    let containers = children(pod.pid);
    let before = activity(pod.pid)?;
    pod.run(&orphans::ORPHANS, &[&number.to_string()])?;
    wait_until("all orphans are gone", || children(pod.pid) == containers)?;
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

/// Container A: a server in the pod.
struct Container {
    joiner: Child,
    process: Pid,
}

impl Container {
    /// Starts it and waits until it listens.
    fn start(pod: &Sandbox) -> Result<Self> {
        let mut joiner = pod.command(&SERVE);
        joiner.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Ctrl-C on a terminal is for this program alone.
        joiner.process_group(0);
        let mut joiner = joiner.spawn()?;
        let mut ready = String::new();
        BufReader::new(joiner.stdout.take().context("stdout")?).read_line(&mut ready)?;
        ensure!(ready == "ready\n", "container A does not serve");
        let [process] = children(Pid::from_raw(joiner.id() as i32))[..] else {
            bail!("container A has exited");
        };
        Ok(Self { joiner, process })
    }

    fn kill(mut self) -> Result<()> {
        kill(self.process, Signal::SIGKILL)?;
        self.joiner.wait()?;
        Ok(())
    }
}

/// What container B gets from container A.
fn fetch(pod: &Sandbox) -> Result<String> {
    let got = pod.run(&FETCH, &[])?;
    ensure!(got == GREETING, "container B got {got:?}");
    Ok(got)
}

/// Serves forever.
fn serve(_: &[OsString]) -> Result<()> {
    bring_up_loopback()?;
    let listener = TcpListener::bind(ADDRESS)?;
    println!("ready");
    for client in listener.incoming() {
        client?.write_all(GREETING.as_bytes())?;
    }
    Ok(())
}

/// Prints what is served.
fn fetch_and_print(_: &[OsString]) -> Result<()> {
    let mut text = String::new();
    TcpStream::connect(ADDRESS)?.read_to_string(&mut text)?;
    print!("{text}");
    Ok(())
}

/// Brings up `lo`, which is down in a new network namespace: netdevice(7).
fn bring_up_loopback() -> Result<()> {
    let socket = TcpListener::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq consists of integers and pointers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&b"lo".map(|byte| byte as libc::c_char));
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and the pointer is to one that lives until it returns.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    ensure!(done == 0, "cannot bring up lo: {}", std::io::Error::last_os_error());
    Ok(())
}
