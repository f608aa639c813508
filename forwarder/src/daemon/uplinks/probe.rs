//! The task of one line: asks in its interval, and tells when that changes the line's health.

use std::{io, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Changed,
    echo::Echo,
    gateway,
    health::Health,
    plan::{Ask, Plan},
    socket::LineSocket,
};
use crate::machine::netlink::Netlink;

/// Longer than an answer to what is asked.
const ROOM: usize = 256;

/// Runs until it is aborted.
pub(super) async fn run(name: String, plan: Plan, mut health: Health, tell: UnboundedSender<Changed>) {
    let mut ticks = interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut prober = Prober::new(&plan);
    loop {
        ticks.tick().await;
        let asked = prober.ask().await;
        if health.note(asked.is_ok(), plan.fall, plan.rise) {
            let down = asked.err().map(|error| format!("{error:#}"));
            if tell.send(Changed { name: name.clone(), down }).is_err() {
                return;
            }
        }
    }
}

struct Prober<'a> {
    plan: &'a Plan,
    /// Tells our answers from those to somebody else's pings.
    id: u16,
    sequence: u16,
}

impl<'a> Prober<'a> {
    fn new(plan: &'a Plan) -> Self {
        // Of no secrecy: whoever can answer in the target's place has the line in hand anyway.
        let id = std::process::id().wrapping_add(plan.interface.wrapping_mul(0x9e37)) as u16;
        Self { plan, id, sequence: 0 }
    }

    /// Ok as soon as one of those who are asked answers; else why the last of them did not.
    async fn ask(&mut self) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let netlink = Netlink::connect()?;
        let questions = self.plan.asks.iter().map(|ask| Box::pin(self.one(&netlink, *ask)));
        futures_util::future::select_ok(questions).await.map(drop)
    }

    async fn one(&self, netlink: &Netlink, ask: Ask) -> Result<()> {
        let index = self.plan.interface;
        match ask {
            Ask::Gateway(gateway) => {
                anyhow::ensure!(gateway::is_there(netlink, index, gateway).await?, "{gateway} does not answer");
                Ok(())
            }
            Ask::Echo { target, from, gateway } => {
                let from = from.with_context(|| format!("there is no address to ping {target} from"))?;
                let station = match gateway {
                    Some(gateway) => gateway::link_address(netlink, index, gateway)
                        .await?
                        .with_context(|| format!("the gateway {gateway} does not answer"))?,
                    None => [0; 6],
                };
                let echo = Echo { from, to: target, id: self.id, sequence: self.sequence };
                self.exchange(&echo, station)
                    .await
                    .with_context(|| format!("cannot ping {target}"))?
                    .with_context(|| format!("{target} does not answer pings"))
            }
        }
    }

    /// None without an answer.
    async fn exchange(&self, echo: &Echo, station: [u8; 6]) -> io::Result<Option<()>> {
        let Some(request) = echo.request() else { return Ok(None) };
        let socket = LineSocket::open(self.plan.interface, matches!(echo.to, IpAddr::V6(_)))?;
        socket.send(&request, station)?;
        let answer = async {
            let mut buffer = [0; ROOM];
            loop {
                let length = socket.receive(&mut buffer).await?;
                if buffer.get(..length).is_some_and(|packet| echo.is_answered_by(packet)) {
                    return Ok(());
                }
            }
        };
        // An answer to the one before comes with another number; so this one has until the next is due.
        timeout(patience(self.plan.interval), answer)
            .await
            .map_or(Ok(None), |answered: io::Result<()>| answered.map(Some))
    }
}

/// How long an answer is waited for.
fn patience(interval: Duration) -> Duration {
    /// Round trips take less, also by satellite.
    const LONGEST: Duration = Duration::from_secs(5);
    interval.min(LONGEST)
}
