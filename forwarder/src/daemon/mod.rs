//! `run`: the resident daemon. It loads what is not loaded, and then follows the machine: addresses, interfaces, routes.
//!
//! The data path does not need it: without it everything goes on as it was when it was last here.

mod follow;
mod interfaces;
mod news;
mod pace;
mod supervisor;
mod uplinks;
mod watch;

use std::{
    fmt::Display,
    future, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    cli::{Reload, Run},
    commands::{Instance, describe_error, load, require_privileges},
    machine::netlink::Netlink,
    state::StateFile,
};
use follow::{Follower, Found};
use news::{Known, Stale};
use pace::Pace;
use watch::{Heard, Watch};

/// After a pass that failed, the next try: what was in the way is mostly gone by then.
const RETRY: Duration = Duration::from_secs(1);

/// A line for the journal, or for who has started us by hand.
fn say(what: impl Display) {
    eprintln!("{what}");
}

/// Runs the command: until a signal, or until nothing is loaded any more.
pub async fn run(pins: &Path, options: &Run) -> Result<()> {
    require_privileges()?;
    let pins = std::path::absolute(pins).with_context(|| format!("{} is no path", pins.display()))?;
    let file = StateFile::of(&pins);
    let _lock = match file.become_daemon()? {
        Ok(lock) => lock,
        Err(other) => bail!("another `forwarder run` is at it already: process {other}"),
    };
    let signals = Signals::new()?;
    // Before one looks: what changes meanwhile is heard then.
    let watch = Watch::start()?;
    let mut follower = Follower::new(&pins);
    start(&pins, &file, options, &mut follower).await?;
    let reload = Reload { config: options.load.config.clone(), force: options.load.force };
    let mut daemon = Daemon { follower, watch, known: Known::default(), reload, failed: None };
    daemon.serve(signals).await
}

/// Loads, unless something is loaded.
async fn start(pins: &Path, file: &StateFile, options: &Run, follower: &mut Follower) -> Result<()> {
    if file.read()?.is_none() || !pins.exists() {
        load::load(pins, &options.load, true, &mut io::stderr()).await?;
        if let Some(state) = file.read()? {
            follower.has_said(&state);
        }
        return Ok(());
    }
    let instance = Instance::open(pins)?;
    instance.must_be_here()?;
    follower.knows_of(&instance.state);
    let interfaces: Vec<&str> = instance.state.config.interfaces.iter().map(|name| name.value.as_str()).collect();
    say(format!(
        "takes over what is loaded on {}, as it is; SIGHUP or `forwarder reload` reads the configuration anew",
        interfaces.join(", ")
    ));
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// From a command that has changed what is to be followed.
    user: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            user: listen(SignalKind::user_defined1())?,
        })
    }
}

struct Daemon {
    follower: Follower,
    watch: Watch,
    known: Known,
    reload: Reload,
    /// What went wrong in the last pass, to be said once.
    failed: Option<String>,
}

impl Daemon {
    async fn serve(&mut self, mut signals: Signals) -> Result<()> {
        let mut pace = Pace::new(Instant::now());
        self.look_at_everything().await?;
        let Some(status) = self.pass(Stale::EVERYTHING, &mut pace).await else { return Ok(()) };
        let mut status = status;
        supervisor::ready(&status);
        say(format!("following: {status}"));
        let mut watchdog = supervisor::watchdog().map(interval);
        if let Some(ticks) = &mut watchdog {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let due = pace.due();
            tokio::select! {
                biased;
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => {
                    supervisor::reloading();
                    match self.read_configuration().await {
                        Some(Found::Running(now)) => status = now,
                        Some(Found::Unloaded) => {
                            unloaded();
                            return Ok(());
                        }
                        None => {}
                    }
                    supervisor::ready(&status);
                }
                _ = signals.user.recv() => pace.note(Stale::EVERYTHING),
                () = self.follower.line_changes() => pace.note(Stale::EVERYTHING),
                () = tick(&mut watchdog) => supervisor::alive(),
                () = at(due) => {
                    let stale = pace.take();
                    let Some(now) = self.pass(stale, &mut pace).await else { return Ok(()) };
                    if now != status {
                        status = now;
                        supervisor::status(&status);
                    }
                }
                heard = self.watch.next() => match heard? {
                    Heard::Messages(messages) => {
                        for message in &messages {
                            pace.note(self.known.note(message));
                        }
                    }
                    Heard::Anything => {
                        say("more changed at once than could be told: looking at everything anew");
                        self.look_at_everything().await?;
                        pace.note(Stale::EVERYTHING);
                    }
                },
            }
        }
        if self.follower.is_loaded() {
            supervisor::stopping();
            say("ends; forwarding goes on without it, as it is now, until `forwarder unload`");
        } else {
            unloaded();
        }
        Ok(())
    }

    async fn look_at_everything(&mut self) -> Result<()> {
        self.known = Known::default();
        for message in Netlink::connect()?.history().await? {
            self.known.note(&message);
        }
        Ok(())
    }

    /// Brings what is stale up to date. None when there is nothing left to follow.
    async fn pass(&mut self, stale: Stale, pace: &mut Pace) -> Option<String> {
        let began = Instant::now();
        let found = self.follower.pass(stale).await;
        pace.done(began, Instant::now());
        match found {
            Ok(Found::Running(status)) => {
                self.failed = None;
                Some(status)
            }
            Ok(Found::Unloaded) => {
                unloaded();
                None
            }
            Err(error) => {
                let error = describe_error(&error);
                if self.failed.as_ref() != Some(&error) {
                    say(&error);
                }
                pace.retry(stale, Instant::now() + RETRY);
                Some(self.failed.insert(error).clone())
            }
        }
    }

    async fn read_configuration(&mut self) -> Option<Found> {
        say("SIGHUP: reads the configuration anew");
        match self.follower.reload(&self.reload).await {
            Ok(found) => Some(found),
            Err(error) => {
                say(describe_error(&error));
                say("the configuration is not in force; the rules stay as they were");
                None
            }
        }
    }
}

fn unloaded() {
    supervisor::stopping();
    say("unloaded by another command: nothing is left to follow");
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => future::pending().await,
    }
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(ticks) => drop(ticks.tick().await),
        None => future::pending().await,
    }
}
