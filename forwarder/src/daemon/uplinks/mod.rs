//! `[[uplink]]`: whether the lines work, found out by asking somebody at their other end, again and again.
//!
//! Each line has a task of its own; what changes reaches the daemon by [`Probes::next`], which makes the rules follow.

mod echo;
mod gateway;
mod health;
pub(super) mod plan;
mod probe;
mod socket;

use std::collections::BTreeMap;

use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
};

use health::Health;
use plan::Plan;

/// A line's health has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changed {
    /// The line.
    name: String,
    /// Why it is down; none if it is up.
    down: Option<String>,
}

/// The lines that are being probed.
pub(super) struct Probes {
    tasks: BTreeMap<String, Task>,
    /// The lines that are down, with the reason.
    down: BTreeMap<String, String>,
    changed: UnboundedReceiver<Changed>,
    tell: UnboundedSender<Changed>,
}

struct Task {
    plan: Plan,
    running: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Default for Probes {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl Probes {
    /// None yet. Lines that were down when somebody last looked begin so.
    pub(super) fn new(down: BTreeMap<String, String>) -> Self {
        let (tell, changed) = mpsc::unbounded_channel();
        Self { tasks: BTreeMap::new(), down, changed, tell }
    }

    /// Probes these lines from now on, and no others.
    pub(super) fn follow(&mut self, plans: BTreeMap<String, Plan>) {
        self.tasks.retain(|name, task| plans.get(name) == Some(&task.plan));
        self.down.retain(|name, _| plans.contains_key(name));
        for (name, plan) in plans {
            let health = Health::new(!self.down.contains_key(&name));
            let (tell, named, planned) = (self.tell.clone(), name.clone(), plan.clone());
            self.tasks.entry(name).or_insert_with(|| Task {
                plan,
                running: tokio::spawn(async move { probe::run(named, planned, health, tell).await }),
            });
        }
    }

    /// Waits until a line goes down or comes up.
    pub(super) async fn next(&mut self) {
        loop {
            // Never none: a sender is in `self`.
            let Some(Changed { name, down }) = self.changed.recv().await else { return std::future::pending().await };
            // Not of a line that is not probed any more.
            if self.tasks.contains_key(&name) {
                match down {
                    Some(why) => drop(self.down.insert(name, why)),
                    None => drop(self.down.remove(&name)),
                }
                return;
            }
        }
    }

    /// The lines that are down by their probes, with the reason.
    pub(super) const fn down(&self) -> &BTreeMap<String, String> {
        &self.down
    }
}
