//! All rows in turn, again and again, each right after the limit.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cpu::Cpu;
use crate::forwarding::{Forwarded, Forwarder};
use crate::groups::Group;
use crate::network::Network;
use crate::programs::{Flows, Run};
use crate::progress::Progress;
use crate::row::{Hook, Row, Way};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Of one measurement.
    pub(crate) length: Duration,
    /// Whether flows are visited in the order in which they were made.
    pub(crate) in_order: bool,
}

/// A row and the limit right before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) limit: Run,
    pub(crate) row: Run,
}

/// What was measured of a row.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) samples: Vec<Sample>,
}

/// Frames of the first run of a row, which tells how many make up a measurement.
const FIRST_FRAMES: u32 = 1 << 16;
/// XDP leaves a packet to TC now and then, to have neighbours confirmed; more than this share is another row.
const LEAST_SHARE_OF_XDP: f64 = 0.99;
/// Other frames that may reach the backend's interface during a run: the kernel's own, of IPv6.
const TOLERATED_STRAYS: u64 = 8;

/// How often a run is made of which most packets get lost: where the kernel puts off handling them, to its thread for that,
/// the generator goes on and queues run over. What loses them each time ends the bench.
const TRIES: usize = 3;

/// How many steps of progress [`run`] makes.
pub(crate) fn steps(group: &Group, plan: &Plan) -> usize {
    limits(group).len() + group.rows.len() * (1 + plan.rounds)
}

/// The limits that the rows of a group are measured against.
fn limits(group: &Group) -> Vec<Row> {
    let mut limits: Vec<Row> = Vec::new();
    for limit in group.rows.iter().map(|row| row.limit()) {
        if !limits.contains(&limit) {
            limits.push(limit);
        }
    }
    limits
}

pub(crate) fn run(
    group: &Group,
    plan: &Plan,
    binaries: &[&Path],
    cpu: &Cpu,
    progress: &Progress,
) -> Result<Vec<Measured>> {
    let build = |row: Row| {
        progress.show(format!("{}: setting up {row}", group.title));
        let binary = binaries.get(row.binary).with_context(|| format!("no forwarder for {row}"))?;
        let bench = Bench::build(row, plan, binary, cpu);
        progress.step();
        bench
    };
    let mut limits = limits(group)
        .into_iter()
        .map(|limit| Ok((limit.to_string(), build(limit)?)))
        .collect::<Result<BTreeMap<String, Bench>>>()?;
    let mut benches = group.rows.iter().map(|row| build(*row)).collect::<Result<Vec<Bench>>>()?;
    let mut measured: Vec<Measured> =
        group.rows.iter().map(|row| Measured { row: *row, samples: Vec::new() }).collect();
    for round in 1..=plan.rounds {
        for (bench, measured) in benches.iter_mut().zip(&mut measured) {
            progress.show(format!("{}: round {round} of {}: {}", group.title, plan.rounds, measured.row));
            let limit = limits.get_mut(&measured.row.limit().to_string()).context("a row without limit")?;
            measured.samples.push(Sample { limit: limit.measure(cpu)?, row: bench.measure(cpu)? });
            progress.step();
        }
    }
    benches.iter().try_for_each(Bench::check_hook)?;
    Ok(measured)
}

/// A network and how it is measured.
struct Bench {
    network: Network,
    flows: Flows,
    frames: u32,
    /// What forwarder had forwarded before it was measured.
    before: Forwarded,
}

impl Bench {
    fn build(row: Row, plan: &Plan, binary: &Path, cpu: &Cpu) -> Result<Self> {
        let network = Network::build(row, binary, cpu)?;
        // Each step about 0.618 of the way around: neighbours in time are no neighbours in memory.
        let scattered = ((u64::from(row.flows) * 0x9e37_79b9) >> 32) as u32 | 1;
        let stride = if plan.in_order || row.fresh { 1 } else { scattered };
        let flows = Flows { stride, ..Flows::in_order(0, row.flows) };
        let before = network.forwarder.as_ref().map(Forwarder::forwarded).transpose()?.unwrap_or_default();
        let mut bench = Self { network, flows, frames: FIRST_FRAMES, before };
        // Caches, page pools, next hops.
        let first = bench.measure(cpu)?;
        bench.frames = (first.rate() * plan.length.as_secs_f64()).clamp(1e4, 1e8) as u32;
        Ok(bench)
    }

    fn measure(&mut self, cpu: &Cpu) -> Result<Run> {
        let mut run = self.once(cpu)?;
        for _ in 1..TRIES {
            if !self.is_lost(&run) {
                break;
            }
            run = self.once(cpu)?;
        }
        let row = self.network.row;
        if run.stray > TOLERATED_STRAYS || self.is_lost(&run) {
            bail!(
                "{row}: of {} packets {} arrived and {} others{}",
                self.frames,
                run.arrived,
                run.stray,
                self.network
                    .forwarder
                    .as_ref()
                    .map_or_else(String::new, |forwarder| { format!("; forwarder says:\n{}", forwarder.everything()) })
            );
        }
        Ok(run)
    }

    fn once(&mut self, cpu: &Cpu) -> Result<Run> {
        self.network.forget()?;
        let run = self.network.run(cpu, self.flows, self.frames, false)?;
        // Where the last repetition stopped: none begins with flows that are still in the caches.
        self.flows = self.flows.after(self.frames);
        Ok(run)
    }

    /// Whether most packets of a run were lost.
    fn is_lost(&self, run: &Run) -> bool {
        run.arrived < u64::from(self.frames) / 2
    }

    /// Whether the packets went by the hook that the row is about.
    fn check_hook(&self) -> Result<()> {
        let Some(forwarder) = &self.network.forwarder else { return Ok(()) };
        let now = forwarder.forwarded()?;
        let forwarded = Forwarded { xdp: now.xdp - self.before.xdp, tc: now.tc - self.before.tc };
        let row = self.network.row;
        let by_xdp = forwarded.xdp as f64 / (forwarded.xdp + forwarded.tc).max(1) as f64;
        match row.way {
            // Who begins flows is not the same in all versions.
            _ if row.fresh => Ok(()),
            Way::Forwarder { hook: Hook::Xdp, .. } if by_xdp < LEAST_SHARE_OF_XDP => {
                bail!("{row}: XDP forwarded only {} packets and left {} to TC", forwarded.xdp, forwarded.tc)
            }
            Way::Forwarder { hook: Hook::Tc, .. } if forwarded.xdp != 0 => {
                bail!("{row}: XDP forwarded {} packets", forwarded.xdp)
            }
            _ => Ok(()),
        }
    }
}
