//! What a rule names: the keys that find a rule from a packet, and the reference they yield.

use super::{Rule, layout};
use crate::address::{Address, V4, V6};

/// Which end of a rule an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Where clients send to: matched against a packet's destination.
    Listen = 0,
    /// Where a stateless rule's backend answers from: matched against a packet's source.
    Backend = 1,
    /// An address that packets of rules come from or go to: fragments that have it and come before the first of their
    /// datagram wait for that one. Only in [`RangeKey`]s without protocol and port.
    Fragment = 2,
    /// A host that goes out with an address of ours: matched against a packet's source ([`RangeKey::inside`]).
    Inside = 3,
    /// A source that belongs to a line ([`RangeKey::steered`]).
    Steered = 4,
    /// A destination that is directly connected, or the machine itself: never steered ([`RangeKey::on_link`]).
    OnLink = 5,
    /// An address that lives behind this machine: matched against what a question of neighbours asks for
    /// ([`RangeKey::neighbor`]).
    Neighbor = 8,
}

/// An address, protocol and port that a rule names exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Endpoint<A> {
    /// Network order.
    pub address: A,
    /// Network order; 0 for protocols without ports (ICMP echo).
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Side`] as a number.
    pub side: u8,
}

impl<A: Address> Endpoint<A> {
    /// Whether this is another one too: as `==`, in words where that goes byte by byte.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.tail() == other.tail() && self.address == other.address
    }

    /// What stands behind the address, as a word.
    #[inline(always)]
    const fn tail(&self) -> u32 {
        let [p0, p1] = self.port.to_ne_bytes();
        u32::from_ne_bytes([p0, p1, self.protocol, self.side])
    }
}
layout!(Endpoint<V4>, 8, [V4, u16, u8, u8]);
layout!(Endpoint<V6>, 20, [V6, u16, u8, u8]);

/// A longest-prefix-match key for what no single [`Endpoint`] can say: port ranges, whole addresses and prefixes.
///
/// The data after `prefix_len` is compared bit by bit in memory order, so all of it is in network order.
/// Prefix lengths in bits, with `w` = bits of an address: `32 + n` a prefix of `n` < `w` bits, `32 + w` any protocol and port of the address,
/// `32 + w + 16` any port of one protocol, `32 + w + 32 - k` an aligned block of 2^k ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct RangeKey<A> {
    /// Significant bits of what follows; native order (the kernel's `bpf_lpm_trie_key`).
    pub prefix_len: u32,
    /// [`Side`] as a number, native order; for [`Side::Inside`] with the way out above it, for [`Side::Steered`] with the
    /// kind of packet, for [`Side::Neighbor`] with the interface that is asked.
    pub side: u32,
    /// Network order.
    pub address: A,
    /// IP protocol number, as 16 bits in network order: a BPF program cannot write an unaligned port on its stack.
    pub protocol: u16,
    /// Network order.
    pub port: u16,
}
layout!(RangeKey<V4>, 16, [u32, u32, V4, u16, u16]);
layout!(RangeKey<V6>, 28, [u32, u32, V6, u16, u16]);

impl<A> RangeKey<A> {
    /// Bits of `side`.
    pub const SIDE_BITS: u32 = 32;
    /// Bits of `protocol`.
    pub const PROTOCOL_BITS: u32 = 16;
    /// Bits of `protocol` and `port`.
    pub const TAIL_BITS: u32 = 32;
    /// One more than the highest interface that [`Self::inside`] and [`Self::neighbor`] can name.
    pub const INTERFACES: u32 = 1 << 24;

    /// The key that looks up how a host behind us goes out by an interface; 0 for any, to know whether it is one.
    ///
    /// Prefixes of hosts have prefix lengths up to `32 + w`.
    #[inline(always)]
    pub const fn inside(interface: u32, address: A) -> Self {
        let prefix_len = Self::SIDE_BITS + 8 * size_of::<A>() as u32;
        Self { prefix_len, side: Side::Inside as u32 | interface << 8, address, protocol: 0, port: 0 }
    }

    /// The key that looks the line of a source up; `kind` is [`crate::steer::kind`], or 0 for the line of every packet.
    ///
    /// Prefixes of sources have prefix lengths up to `32 + w`.
    #[inline(always)]
    pub const fn steered(kind: u32, address: A) -> Self {
        let prefix_len = Self::SIDE_BITS + 8 * size_of::<A>() as u32;
        Self { prefix_len, side: Side::Steered as u32 | kind, address, protocol: 0, port: 0 }
    }

    /// The key that tells whether a destination is directly connected.
    #[inline(always)]
    pub const fn on_link(address: A) -> Self {
        let prefix_len = Self::SIDE_BITS + 8 * size_of::<A>() as u32;
        Self { prefix_len, side: Side::OnLink as u32, address, protocol: 0, port: 0 }
    }

    /// The key that looks a packet's endpoint up: all bits significant.
    #[inline(always)]
    pub const fn exact(endpoint: Endpoint<A>) -> Self
    where
        A: Copy,
    {
        Self {
            prefix_len: Self::SIDE_BITS + 8 * size_of::<A>() as u32 + Self::TAIL_BITS,
            side: endpoint.side as u32,
            address: endpoint.address,
            protocol: (endpoint.protocol as u16).to_be(),
            port: endpoint.port,
        }
    }
}

/// A longest-prefix-match key of the clients that a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct AllowKey<A> {
    /// Significant bits of what follows, native order: 32 of `list` plus the client prefix length.
    pub prefix_len: u32,
    /// Which list; [`super::Rule::allow`]. Native order.
    pub list: u32,
    /// Network order.
    pub address: A,
}
layout!(AllowKey<V4>, 12, [u32, u32, V4]);
layout!(AllowKey<V6>, 24, [u32, u32, V6]);

/// Which rule an endpoint was found to name: kept by each CPU for the packets after it.
///
/// What an endpoint means in a generation never changes, and neither does a rule that something names, so there is nothing
/// to take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Meaning<A> {
    /// The endpoint, exact also where a range names it.
    pub endpoint: Endpoint<A>,
    /// In which generation. Memory of zeros is true too: in generation 0 there are no rules.
    pub generation: u32,
    /// The rule's slot; 0 for no rule.
    pub slot: u32,
    /// The rule, if there is one.
    pub rule: Rule<A>,
}
layout!(Meaning<V4>, 48, [Endpoint<V4>, u32, u32, Rule<V4>]);
layout!(Meaning<V6>, 108, [Endpoint<V6>, u32, u32, Rule<V6>]);

/// How many endpoints each CPU keeps the meaning of; a power of two.
pub const MEANINGS: u32 = 4096;

/// What an endpoint stands for, before and after a change of the rules.
///
/// A reload writes every difference as "this until generation `at`, that from then on", and then makes all
/// of them true at once by setting [`super::Settings::generation`]. A packet reads the generation once, so
/// it sees the rules before the reload or after it, never half of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RuleRef {
    /// Slot of the rule while the generation is below `at`; 0 for none.
    pub before: u32,
    /// Slot of the rule from generation `at` on; 0 for none.
    pub after: u32,
    /// The generation that switches.
    pub at: u32,
}

impl RuleRef {
    /// A reference that means `slot` in every generation.
    pub const fn settled(slot: u32) -> Self {
        Self { before: slot, after: slot, at: 0 }
    }

    /// The slot that is meant in `generation`, if any.
    #[inline(always)]
    pub const fn slot(self, generation: u32) -> Option<u32> {
        let slot = if generation >= self.at { self.after } else { self.before };
        if slot == 0 { None } else { Some(slot) }
    }
}
