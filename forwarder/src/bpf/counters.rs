//! Reading the counters: the sum over all CPUs.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use forwarder_common::{
    abi::{InterfaceCounters, RuleCounters, Traffic},
    verdict::Outcome,
};

use super::{Plain, load::pinned};

/// The counters of the running instance.
pub struct Counters {
    rules: PerCpuArray<MapData, Plain<RuleCounters>>,
    interfaces: PerCpuArray<MapData, Plain<InterfaceCounters>>,
}

impl Counters {
    /// Opens the counters pinned in `pins`.
    pub fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            rules: pinned(pins, "RULE_COUNTERS", Map::PerCpuArray)?,
            interfaces: pinned(pins, "INTERFACE_COUNTERS", Map::PerCpuArray)?,
        })
    }

    /// What the rule with this counter did since it was loaded or added.
    pub fn rule(&self, counter: u32) -> Result<RuleCounters> {
        let values = self.rules.get(&counter, 0).with_context(|| format!("cannot read rule counter {counter}"))?;
        Ok(values.iter().fold(RuleCounters::default(), |sum, Plain(one)| RuleCounters {
            forward: add(sum.forward, one.forward),
            reply: add(sum.reply, one.reply),
            flows: sum.flows.wrapping_add(one.flows),
            denied: sum.denied.wrapping_add(one.denied),
            unprotected: sum.unprotected.wrapping_add(one.unprotected),
            port_clashes: sum.port_clashes.wrapping_add(one.port_clashes),
        }))
    }

    /// What happened on the interface in this slot.
    pub fn interface(&self, slot: u32) -> Result<InterfaceCounters> {
        let values = self
            .interfaces
            .get(&slot, 0)
            .with_context(|| format!("cannot read the counters of interface slot {slot}"))?;
        let none = [0; Outcome::COUNT];
        let mut sum = InterfaceCounters { xdp: none, tc: none, egress: none };
        for Plain(one) in values.iter() {
            add_all(&mut sum.xdp, &one.xdp);
            add_all(&mut sum.tc, &one.tc);
            add_all(&mut sum.egress, &one.egress);
        }
        Ok(sum)
    }
}

const fn add(a: Traffic, b: Traffic) -> Traffic {
    Traffic { packets: a.packets.wrapping_add(b.packets), bytes: a.bytes.wrapping_add(b.bytes) }
}

fn add_all(sum: &mut [u64], one: &[u64]) {
    for (sum, one) in sum.iter_mut().zip(one) {
        *sum = sum.wrapping_add(*one);
    }
}
