//! Fragmented datagrams: only the first fragment has ports, so what it was found to be is kept for the others.

use super::{Rewrite, Ticks, layout};
use crate::address::{V4, V6};

/// What all fragments of a datagram have in common, as they arrive (RFC 791 section 2.3, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DatagramKey<A> {
    /// Network order.
    pub src: A,
    /// Network order.
    pub dst: A,
    /// As loaded from the wire: 16 bits of IPv4, 32 of IPv6.
    pub identification: u32,
    /// IPv4: the protocol number, native order. IPv6: 0.
    pub protocol: u32,
}
layout!(DatagramKey<V4>, 16, [V4, V4, u32, u32]);
layout!(DatagramKey<V6>, 40, [V6, V6, u32, u32]);

/// What becomes of the later fragments of a datagram whose first has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Datagram<A> {
    /// With [`Fate::Forward`]: what its addresses become. The ports are of the first fragment only.
    pub rewrite: Rewrite<A>,
    /// When the first fragment came.
    pub since: Ticks,
    /// Index into the rule counters.
    pub counter: u32,
    /// [`super::Direction`] as a number.
    pub direction: u8,
    /// [`Fate`] as a number.
    pub fate: u8,
    /// Always 0.
    pub zero: u16,
}
layout!(Datagram<V4>, 28, [Rewrite<V4>, u32, u32, u8, u8, u16]);
layout!(Datagram<V6>, 52, [Rewrite<V6>, u32, u32, u8, u8, u16]);

/// What became of a first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// Rewritten and sent on.
    Forward = 0,
    /// Passed to the kernel.
    Pass = 1,
    /// Dropped.
    Drop = 2,
}
