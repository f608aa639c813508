//! Traffic that goes on while a test does something to the network.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::host::Host;
use crate::service::{Service, patience};
use crate::tcp::EchoStream;
use crate::udp::UdpSocketIn;

/// A client that sends a message, waits for its echo, and begins again after [`PAUSE`], until it is told to stop or until an
/// echo does not come.
pub struct Steady {
    progress: Progress,
    service: Service,
}

/// A message in two milliseconds is enough to meet every state of a change; as fast as it goes, a few of these keep from the
/// CPUs the commands that they run beside.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Clone, Default)]
struct Progress(Arc<(Mutex<Done>, Condvar)>);

#[derive(Default)]
struct Done {
    exchanges: u64,
    failure: Option<String>,
}

impl Steady {
    /// On one TCP connection to a [`TcpServer`](crate::TcpServer).
    pub fn tcp(host: &Host, target: SocketAddr) -> Result<Self> {
        let mut stream = EchoStream::connect(host, target, None)?;
        Self::start(move |message| stream.exchange(message))
    }

    /// From one UDP socket to a [`UdpEcho`](crate::UdpEcho): a single lost datagram is a failure.
    pub fn udp(host: &Host, target: SocketAddr) -> Result<Self> {
        let socket = UdpSocketIn::connect(host, target, None)?;
        Self::start(move |message| socket.exchange(message))
    }

    fn start(mut exchange: impl FnMut(&[u8]) -> Result<()> + Send + 'static) -> Result<Self> {
        let progress = Progress::default();
        let report = progress.clone();
        let service = Service::start(move |bell| {
            for number in 0_u64.. {
                if bell.rings() {
                    return;
                }
                let outcome = exchange(&number.to_be_bytes());
                let failed = outcome.is_err();
                report.change(|done| match outcome {
                    Ok(()) => done.exchanges += 1,
                    Err(error) => done.failure = Some(format!("after {} exchanges: {error:#}", done.exchanges)),
                });
                if failed {
                    return;
                }
                thread::sleep(PAUSE);
            }
        })?;
        let steady = Self { progress, service };
        steady.wait_for_more(1)?;
        Ok(steady)
    }

    /// Waits for that many exchanges that begin after this call.
    pub fn wait_for_more(&self, exchanges: u64) -> Result<()> {
        self.wait_until(self.count_after(exchanges))
    }

    /// The same of several that go on at once.
    pub fn all_go_on(running: &[Self], exchanges: u64) -> Result<()> {
        let goals: Vec<u64> = running.iter().map(|one| one.count_after(exchanges)).collect();
        running.iter().zip(goals).try_for_each(|(one, goal)| one.wait_until(goal))
    }

    /// How many exchanges there will have been once so many have been that have not begun yet.
    fn count_after(&self, exchanges: u64) -> u64 {
        let done = self.progress.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The one under way may have begun before.
        done.exchanges + exchanges + 1
    }

    fn wait_until(&self, goal: u64) -> Result<()> {
        let (done, changed) = &*self.progress.0;
        let guard = done.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = changed
            .wait_timeout_while(guard, patience(), |done| done.exchanges < goal && done.failure.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &guard.failure {
            Some(failure) => bail!("the steady traffic broke {failure}"),
            None if guard.exchanges < goal => {
                bail!("the steady traffic stands still after {} exchanges", guard.exchanges)
            }
            None => Ok(()),
        }
    }

    /// Waits until an echo does not come, and says how it failed.
    pub fn wait_for_failure(&self) -> Result<String> {
        let (done, changed) = &*self.progress.0;
        let guard = done.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = changed
            .wait_timeout_while(guard, patience() * 2, |done| done.failure.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &guard.failure {
            Some(failure) => Ok(failure.clone()),
            None => bail!("the steady traffic goes on: {} exchanges", guard.exchanges),
        }
    }

    /// Ends it: how many exchanges there were. An error when one failed.
    pub fn stop(self) -> Result<u64> {
        drop(self.service);
        let done = self.progress.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &done.failure {
            Some(failure) => bail!("the steady traffic broke {failure}"),
            None => Ok(done.exchanges),
        }
    }
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut Done)) {
        let (done, changed) = &*self.0;
        change(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }
}
