//! The ends of connections: processes of their own, as they are on real machines.
//!
//! Both are this program again, each in the namespace of its host. As threads of one process they would share an address
//! space, which no users' ends do.

use std::env;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use forwarder_lab::{Host, Spawned};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Load, load, server};

/// The first word of an end's command line, which only the bench itself uses.
const WORD: &str = "end";
/// Still this program if its file has been replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// What a server prints once it takes connections.
const SERVING: &str = "serving";

/// An end, as its command line says it.
#[derive(Debug, Parser)]
#[command(name = WORD)]
pub(crate) enum End {
    /// The server, until it is killed.
    Serve { address: SocketAddr },
    /// The clients; prints [`Done`] as JSON.
    Load { load: Load, server: SocketAddr, milliseconds: u64 },
}

/// What clients did.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// Those of the load's metrics that clients see.
    pub(super) values: Vec<f64>,
    /// Bytes that went over, if that is what the load is about.
    pub(super) bytes: u64,
    /// CPU time of the clients' process meanwhile, with that of the kernel on its time.
    pub(super) cpu: Duration,
}

impl End {
    /// The end that this process has been started as, if so.
    pub(crate) fn of_this_process() -> Option<Self> {
        let mut words = env::args_os().skip(1).peekable();
        (words.peek()? == WORD).then(|| Self::parse_from(words))
    }

    /// Does what it is for.
    pub(crate) fn run(self) -> Result<()> {
        // Whoever started it may be killed without a chance to end it.
        prctl::set_pdeathsig(Signal::SIGKILL).context("cannot be bound to the life of the bench")?;
        match self {
            Self::Serve { address } => server::serve(address, || println!("{SERVING}")),
            Self::Load { load, server, milliseconds } => {
                let before = process_time()?;
                let mut done = load::run(load, server, Duration::from_millis(milliseconds))?;
                done.cpu = process_time()?.saturating_sub(before);
                println!("{}", serde_json::to_string(&done)?);
                Ok(())
            }
        }
    }
}

fn process_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("cannot read this process's clock")?;
    Ok(time.into())
}

fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = host.command(THIS_PROGRAM);
    command.arg(WORD).args(arguments);
    command
}

/// A serving server. Dropped, it is killed.
pub(super) struct Server(Spawned);

impl Server {
    pub(super) fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let server = Spawned::start(command(host, &["serve", &address.to_string()]))?;
        server.wait_for_line(|line| line == SERVING)?;
        Ok(Self(server))
    }

    /// Its CPU time so far, with that of the kernel on its time.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        let time = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).context("cannot read the server's clock")?;
        Ok(time.into())
    }
}

/// Has clients on this host do this for so long.
pub(super) fn load(host: &Host, load: Load, server: SocketAddr, duration: Duration) -> Result<Done> {
    let milliseconds = duration.as_millis().to_string();
    let mut command = command(host, &["load", load.name(), &server.to_string(), &milliseconds]);
    let output = command.stdin(Stdio::null()).output().context("cannot start the clients")?;
    if !output.status.success() {
        bail!("the clients ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cannot read what the clients printed")
}
