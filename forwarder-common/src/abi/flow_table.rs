//! The table of protected flows: where in an array each one stands.
//!
//! A kernel hash map costs a packet a call and a cache line each for the bucket, the element's header and the value;
//! the array costs one line and no call. A flow stands in the slot that its key's hash says (its *home*) or, where that
//! is taken, in one of the next [`REACH`] - 1; and where those are taken as well, which one flow in thousands meets in a full
//! table, there is a second home. The home says in which of them flows of its own are, so a packet without
//! flow looks at one line as well, and nothing ever has to move.

use super::{Flow, FlowKey, layout};
use crate::address::{V4, V6};

/// How many slots a flow may stand in: its home and those after it; if all are taken, as many after its second home.
pub const REACH: u32 = 15;
/// The bit in the home's protocol word that says that a flow of its own went to its second home once. It stays.
pub const WENT_ON: u32 = 1 << 31;

/// How keys become slots. The seeds are random: who does not know them cannot aim flows at one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowHash {
    /// Random numbers.
    pub seeds: [u64; 10],
    /// Slots in the table, a power of two, less one.
    pub mask: u32,
    /// Bits of [`used`]: which tables have had a flow. Until then nothing is looked for in them.
    pub used: u32,
    /// Buckets in the table of new flows ([`super::Bucket`]).
    pub buckets: u32,
    /// Zero.
    pub unused: u32,
}
layout!(FlowHash, 96, [[u64; 10], u32, u32, u32, u32]);

/// Bits of [`FlowHash::used`], of either address family. Where rules keep no flows, a packet from one of many clients need not
/// wait for memory to learn that.
pub mod used {
    /// The table of protected flows.
    pub const PROTECTED: u32 = 1;
    /// The table of new flows.
    pub const EMBRYONIC: u32 = 1 << 1;
}

/// What an entry of the flow table needs of an address family.
pub trait Slotted: Copy {
    /// Fills an entry up to whole cache lines.
    type Padding: Copy + core::fmt::Debug + 'static;
    /// The addresses' part of the hash.
    fn hash_ends(seeds: &[u64; 10], src: Self, dst: Self) -> u64;
}

/// One term of the sum: a pair of words under a pair of seeds.
#[inline(always)]
const fn pair(x: u32, y: u32, seeds: (u64, u64)) -> u64 {
    seeds.0.wrapping_add(x as u64).wrapping_mul(seeds.1.wrapping_add(y as u64))
}

impl Slotted for V4 {
    type Padding = [u64; 0];

    #[inline(always)]
    fn hash_ends(seeds: &[u64; 10], src: Self, dst: Self) -> u64 {
        let [_, _, a, b, ..] = *seeds;
        pair(src, dst, (a, b))
    }
}

impl Slotted for V6 {
    type Padding = [u64; 2];

    #[inline(always)]
    fn hash_ends(seeds: &[u64; 10], src: Self, dst: Self) -> u64 {
        let [_, _, a, b, c, d, e, f, g, h] = *seeds;
        let [s0, s1, s2, s3] = src;
        let [d0, d1, d2, d3] = dst;
        pair(s0, s1, (a, b)).wrapping_add(pair(s2, s3, (c, d))).wrapping_add(pair(d0, d1, (e, f))).wrapping_add(pair(
            d2,
            d3,
            (g, h),
        ))
    }
}

impl FlowHash {
    /// The slot that a protected flow stands in if it can.
    #[inline(always)]
    pub fn home<A: Slotted>(&self, key: &FlowKey<A>) -> u32 {
        (self.mixed(key) >> 32) as u32 & self.mask
    }

    /// The hash of a key, whose upper half is the better one.
    ///
    /// Pair-multiply-shift (M. Thorup, "High speed hashing for integers and strings", section 4): strongly universal in
    /// its upper half, so two flows chosen without knowing the seeds meet no more often than by chance. But many whose
    /// ports come one after the other get sums that do so too, at steps which some seeds make nearly whole turns of: they
    /// would crowd at a few slots. So the sum is mixed once more.
    #[inline(always)]
    pub(super) fn mixed<A: Slotted>(&self, key: &FlowKey<A>) -> u64 {
        let [a, b, ..] = self.seeds;
        let ports = u32::from(key.src_port) | u32::from(key.dst_port) << 16;
        let sum = pair(ports, key.protocol, (a, b)).wrapping_add(A::hash_ends(&self.seeds, key.src, key.dst));
        // A step of splitmix64 (G. Steele, D. Lea, C. Flood, 2014).
        (sum ^ (sum >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    /// Where a flow stands if all slots that its home reaches are taken.
    #[inline(always)]
    pub const fn second_home(&self, home: u32) -> u32 {
        // Fibonacci hashing (D. Knuth, TAOCP 6.4): away from the crowd that sent it on.
        (home ^ home >> 15).wrapping_mul(0x9e37_79b1).rotate_left(15) & self.mask
    }

    /// The slots that a table for so many entries has: half of them stay free, so that almost all flows are at home or
    /// next to it.
    pub const fn slots(entries: u32) -> u32 {
        const FEWEST: u32 = 64;
        const MOST: u32 = 1 << 30;
        let wanted = entries.saturating_mul(2);
        if wanted <= FEWEST {
            FEWEST
        } else if wanted >= MOST {
            MOST
        } else {
            wanted.next_power_of_two()
        }
    }
}

/// A slot of the table of protected flows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FlowSlot<A: Slotted> {
    /// Whose it is. The word with the protocol says more: see [`Tag`] and [`near`].
    pub key: FlowKey<A>,
    /// The flow.
    pub flow: Flow<A>,
    /// Zero.
    pub padding: A::Padding,
}
layout!(FlowSlot<V4>, 64, [FlowKey<V4>, Flow<V4>]);
layout!(FlowSlot<V6>, 128, [FlowKey<V6>, Flow<V6>, [u64; 2]]);

/// The lower half of a slot's protocol word: who is in the slot, and below bit 16 how often that has changed.
///
/// Who is about to free a flow's slot while another CPU already does, and gives it to another flow, can tell by the tag: the
/// same one comes back only after 32 flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// [`FlowKey::protocol`], 0 for nobody.
    const OCCUPANT: u32 = 0x7ff;
    /// The occupant while one comes or goes.
    pub const BUSY: u32 = Self::OCCUPANT;
    const ONE_MORE: u32 = 0x800;
    const ALL: u32 = 0xffff;

    /// The tag in a slot's word.
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self(word & Self::ALL)
    }

    /// The tag, as it is part of a word.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether a flow whose key has this protocol word is in the slot.
    #[inline(always)]
    pub const fn is_of(self, protocol: u32) -> bool {
        self.0 & Self::OCCUPANT == protocol
    }

    /// Whether nobody is in the slot.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.is_of(0)
    }

    /// The word of a free slot once it is claimed: another one's now, and busy.
    #[inline(always)]
    pub const fn claimed(word: u32) -> u32 {
        word & !Self::ALL | (word.wrapping_add(Self::ONE_MORE) & Self::ALL) | Self::BUSY
    }

    /// What has to be left of a busy slot's word when a flow with this protocol word is in it; 0 to free the slot.
    #[inline(always)]
    pub const fn settled(protocol: u32) -> u32 {
        !Self::OCCUPANT | protocol
    }

    /// The tag once a claimed slot has a flow with this protocol word in it.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, protocol: u32) -> Self {
        Self(self.0 & Self::settled(protocol))
    }
}

impl<A: Slotted> FlowSlot<A> {
    /// The key of the flow in it; `None` if there is none.
    pub fn occupant(&self) -> Option<FlowKey<A>> {
        let protocol = self.key.protocol & Tag::OCCUPANT;
        (protocol != 0 && protocol != Tag::BUSY).then_some(FlowKey { protocol, ..self.key })
    }
}

/// Where a protected flow stands: the value of the map of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its slot.
    pub index: u32,
    /// How far after its home that is.
    pub distance: u32,
    /// The slot's tag.
    pub tag: Tag,
}

impl Place {
    /// As one word.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.index as u64 | (self.tag.0 as u64) << 32 | (self.distance as u64) << 48
    }

    /// From that.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { index: word as u32, distance: (word >> 48) as u32 & 0xf, tag: Tag::of((word >> 32) as u32) }
    }
}

/// The bit in a slot's protocol word that says that a flow whose home this slot is stands `distance` slots after it.
#[inline(always)]
pub const fn near(distance: u32) -> u32 {
    (1 << 16) << (distance & 0xf)
}

#[cfg(test)]
pub(super) mod tests;
