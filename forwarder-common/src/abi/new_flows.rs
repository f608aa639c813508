//! The table of new flows: which of them make room for others.
//!
//! An array of buckets. A flow stands in the bucket that its key's hash says, in any of its [`WAYS`]; a bucket begins with a
//! word for each way, in one cache line, so a packet without a flow looks at that line and no more. Where all ways are taken,
//! the flow that was not looked for the longest time makes room: in a flood the oldest new flow, within the accuracy of
//! one bucket.

use super::{FlowHash, FlowKey, FlowSlot, Slotted, Ticks, layout};
use crate::address::{V4, V6};

/// How many entries a bucket holds.
pub const WAYS: u32 = 16;
/// How many flows there is a bucket for: each has two entries, and half of the ways stay free, so that by chance alone few
/// buckets overflow.
pub const FLOWS_PER_BUCKET: u32 = WAYS / 4;

/// A bucket of the table of new flows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Bucket<A: Slotted> {
    /// Who is in each way: [`Mark`].
    pub marks: [u32; WAYS as usize],
    /// The entries, each with its key; while one is written, the key's protocol is [`super::Tag::BUSY`].
    pub slots: [FlowSlot<A>; WAYS as usize],
}
layout!(Bucket<V4>, 1088, [[u32; 16], [FlowSlot<V4>; 16]]);
layout!(Bucket<V6>, 2112, [[u32; 16], [FlowSlot<V6>; 16]]);

/// What a bucket says of one of its ways: a part of the key's hash, and when it was looked for. 0 for a free way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u32);

impl Mark {
    /// The way is taken.
    const TAKEN: u32 = 1 << 31;
    /// Its flow was looked for after it came.
    const SOUGHT: u32 = 1 << 30;
    /// How many of the lower bits of [`Ticks`] are kept: 275 s. By default new flows live shorter, but for those of other protocols than TCP, UDP and ICMP.
    const TIME_BITS: u32 = 18;
    const TIME: u32 = (1 << Self::TIME_BITS) - 1;
    /// Which bits of the hash are kept, above the time.
    const HASH: u32 = 0xfff << Self::TIME_BITS;
    /// After how many ticks the time is noted anew: not for every packet, for other CPUs read the same line.
    const REST: u32 = 8;
    /// By how many ticks a CPU may have read the clock before another that has entered or looked for a flow meanwhile.
    const AHEAD: u32 = 64;

    /// The mark of a key with this hash, entered at `now`.
    #[inline(always)]
    pub const fn new(hash: u32, now: Ticks) -> Self {
        Self(Self::TAKEN | (hash << Self::TIME_BITS) & Self::HASH | now & Self::TIME)
    }

    /// Whether the entry may be that of the key which `other` was made for.
    #[inline(always)]
    pub const fn is_like(self, other: Self) -> bool {
        (self.0 ^ other.0) & (Self::TAKEN | Self::HASH) == 0
    }

    /// Whether nobody is in the way.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 & Self::TAKEN == 0
    }

    /// When it was made, or its flow looked for: the lower 18 bits alone.
    #[inline(always)]
    pub const fn time(self) -> Ticks {
        self.0 & Self::TIME
    }

    /// The mark of an entry that was looked for; `None` if that need not be noted: the packet that made it may look for it too.
    /// Of `now`, the lower 18 bits matter.
    #[inline(always)]
    pub const fn sought(self, now: Ticks) -> Option<Self> {
        let rest = if self.0 & Self::SOUGHT == 0 { 1 } else { Self::REST };
        if self.age(now) < Self::AHEAD + rest {
            return None;
        }
        Some(Self(self.0 & !Self::TIME | Self::SOUGHT | now & Self::TIME))
    }

    /// Ticks since it came or was looked for, and [`Self::AHEAD`] more, so that what another CPU notes a little later is not
    /// the oldest of all; modulo 2^18. What is older seems young, and waits the longer for somebody who needs its place.
    #[inline(always)]
    const fn age(self, now: Ticks) -> u32 {
        now.wrapping_add(Self::AHEAD).wrapping_sub(self.0) & Self::TIME
    }

    /// Who makes room first: the largest. Free ways, then the oldest; whose flow was looked for since it came counts as a
    /// quarter as old, for in a flood of first packets those are the ones that are answered or go on. Without branches, so
    /// that the kernel's verifier need not follow each way's.
    #[inline(always)]
    pub const fn precedence(self, now: Ticks) -> u32 {
        let free = (!self.0 >> 31) << 20;
        let shift = (self.0 >> 29) & 2;
        free | self.age(now) >> shift
    }
}

impl FlowHash {
    /// The bucket of a new flow, and the mark of one that is entered at `now`.
    #[inline(always)]
    pub fn bucket<A: Slotted>(&self, key: &FlowKey<A>, now: Ticks) -> (u32, Mark) {
        let mixed = self.mixed(key);
        // D. Lemire, "Fast random integer generation in an interval", 2019: a product instead of a remainder.
        let bucket = ((mixed >> 32) * u64::from(self.buckets)) >> 32;
        (bucket as u32, Mark::new(mixed as u32, now))
    }

    /// The buckets of a table for so many new flows.
    pub const fn buckets(flows: u32) -> u32 {
        flows.div_ceil(FLOWS_PER_BUCKET)
    }
}

#[cfg(test)]
mod tests;
