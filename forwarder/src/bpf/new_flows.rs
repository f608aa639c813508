//! The new flows, as the programs see them: buckets of marks and slots.

use std::{
    mem,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;
use forwarder_common::abi::{Bucket, FLOWS_PER_BUCKET, Flow, FlowKey, FlowSlot, Layout, Mark, Slotted, WAYS};

use super::mapped::{MappedArray, Slot};

/// The new flows of one address family.
#[derive(Debug)]
pub struct NewFlows<A: Slotted> {
    buckets: MappedArray<Bucket<A>>,
    /// Room for flows.
    pub limit: u32,
}

/// A way of a bucket: its mark and its slot.
struct Way<'m, A: Slotted> {
    mark: &'m AtomicU32,
    slot: Slot<'m, A>,
}

impl<A: Slotted> Way<'_, A> {
    /// The flow in it, and its mark; `None` for a free way.
    fn read(&self) -> Option<(Mark, FlowKey<A>, Flow<A>)> {
        loop {
            let mark = Mark(self.mark.load(Ordering::SeqCst));
            if mark.is_free() {
                return None;
            }
            let flow = self.slot.read();
            // Else somebody else's meanwhile: the mark and the flow have to be of the same.
            if mark.is_like(Mark(self.mark.load(Ordering::SeqCst))) {
                return flow.map(|(key, flow)| (mark, key, flow));
            }
        }
    }
}

impl<A: Slotted> NewFlows<A>
where
    Bucket<A>: Layout,
{
    /// Opens those pinned in `pins`; `family` is `V4` or `V6`.
    pub fn open(pins: &Path, family: &str) -> Result<Self> {
        let buckets: MappedArray<Bucket<A>> = MappedArray::open(pins, &format!("EMBRYONIC_{family}"))?;
        let limit = u32::try_from(buckets.count).unwrap_or(u32::MAX).saturating_mul(FLOWS_PER_BUCKET);
        Ok(Self { buckets, limit })
    }

    fn ways(&self) -> impl Iterator<Item = Way<'_, A>> {
        let ways = WAYS as usize;
        (0..self.buckets.count * ways).map(move |index| {
            let (bucket, way) = (index / ways, index % ways);
            // SAFETY: below `count`, and a way of a bucket; the mapping lasts as long as `self`. The programs change a mark as
            // a whole.
            unsafe {
                let bucket = self.buckets.at(bucket);
                let marks = bucket.byte_add(mem::offset_of!(Bucket<A>, marks)).cast::<u32>();
                let slots = bucket.byte_add(mem::offset_of!(Bucket<A>, slots)).cast::<FlowSlot<A>>();
                Way { mark: AtomicU32::from_ptr(marks.add(way).as_ptr()), slot: Slot::new(slots.add(way)) }
            }
        })
    }

    /// Every flow there is now, both directions of each.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey<A>, Flow<A>)> {
        self.ways().filter_map(|way| way.read()).map(|(_, key, flow)| (key, flow))
    }

    /// Removes the flows that `which` says so of. Packets that have found one already still use it.
    pub fn remove(&self, which: impl Fn(&FlowKey<A>, &Flow<A>) -> bool) {
        for way in self.ways() {
            while let Some((mark, key, flow)) = way.read()
                && which(&key, &flow)
            {
                // Fails where a packet has noted that it looked for the flow, or another flow has taken the way.
                if way.mark.compare_exchange(mark.0, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    break;
                }
            }
        }
    }
}
