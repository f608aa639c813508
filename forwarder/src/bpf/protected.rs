//! The protected flows, as the programs see them.
//!
//! What is written here is a single word of a flow, never a slot: the rest of it belongs to the programs.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use forwarder_common::abi::{Flow, FlowKey, FlowSlot, Layout, Slotted, Ticks};

use super::mapped::{MappedArray, Slot};

/// The protected flows of one address family.
#[derive(Debug)]
pub struct ProtectedFlows<A: Slotted> {
    slots: MappedArray<FlowSlot<A>>,
    /// Room for flows.
    pub limit: u32,
}

impl<A: Slotted> ProtectedFlows<A>
where
    FlowSlot<A>: Layout,
{
    /// Opens those pinned in `pins`; `family` is `V4` or `V6`.
    pub fn open(pins: &Path, family: &str) -> Result<Self> {
        let name = format!("ESTABLISHED_{family}");
        let info = MapInfo::from_pin(pins.join(&name)).with_context(|| format!("cannot open the pinned map {name}"))?;
        let slots = MappedArray::open(pins, &format!("FLOWS_{family}"))?;
        Ok(Self { slots, limit: info.max_entries() / 2 })
    }

    fn slots(&self) -> impl Iterator<Item = Slot<'_, A>> {
        // SAFETY: below `count`, and the mapping lasts as long as `self`.
        (0..self.slots.count).map(|index| unsafe { Slot::new(self.slots.at(index)) })
    }

    /// Every flow there is now, both directions of each.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey<A>, Flow<A>)> {
        self.slots().filter_map(Slot::read)
    }

    /// Sets when flows have last seen a packet, for those that `when` says so of.
    pub fn set_last_seen(&self, when: impl Fn(&FlowKey<A>, &Flow<A>) -> Option<Ticks>) {
        for slot in self.slots() {
            slot.set_last_seen(&when);
        }
    }
}
