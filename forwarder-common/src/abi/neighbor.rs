//! A `[[neighbor]]` as the programs use it: a [`Rule`] that a question finds by the interface it came in by and by the
//! address that is asked for.

use super::{RangeKey, Rule, Side, rule_flags};

impl<A> RangeKey<A> {
    /// The key that looks up whether an interface's questions for an address are answered.
    ///
    /// Prefixes of addresses have prefix lengths up to `32 + w`.
    #[inline(always)]
    pub const fn neighbor(interface: u32, address: A) -> Self {
        let prefix_len = Self::SIDE_BITS + 8 * size_of::<A>() as u32;
        Self { prefix_len, side: Side::Neighbor as u32 | interface << 8, address, protocol: 0, port: 0 }
    }
}

impl<A: Default> Rule<A> {
    /// The rule of a `[[neighbor]]`. `via`: the interface that leads to the hosts. `ours`: our address where it is asked,
    /// which the answer comes from. `prober`: our address where the hosts are. Both in network order.
    pub fn neighbor(via: u32, ours: A, prober: A, while_alive: bool) -> Self {
        let flags = rule_flags::NEIGHBOR | if while_alive { rule_flags::WHILE_ALIVE } else { 0 };
        let (high, low) = ((via >> 16) as u16, via as u16);
        Self { source: ours, to: prober, to_delta: high, port_shift: low, flags, ..Self::default() }
    }
}

impl<A> Rule<A> {
    /// Of a `[[neighbor]]`: the interface that leads to the hosts.
    #[inline(always)]
    pub const fn via(&self) -> u32 {
        (self.to_delta as u32) << 16 | self.port_shift as u32
    }
}
