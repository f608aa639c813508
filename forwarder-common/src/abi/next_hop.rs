//! Where a packet goes next, kept per CPU so that the kernel's routing is asked about once a second, not per packet.

use super::{Ticks, layout};
use crate::address::{V4, V6};

/// What the kernel's routing last said about a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop<A> {
    /// The destination this is about; network order.
    pub dst: A,
    /// The source this is about where the way depends on it ([`super::setting_flags::ROUTE_BY_SOURCE`],
    /// [`super::setting_flags::STEER`]), else zero.
    pub src: A,
    /// The kind of packet this is about, where steering looks at it ([`crate::steer::kind`]), else 0.
    pub kind: u32,
    /// The slot of the rule whose line it is; 0 where routing decided.
    pub line: u32,
    /// When the kernel was asked.
    pub asked: Ticks,
    /// [`super::Settings::epoch`] when the kernel was asked: another epoch makes the answer stale at once.
    pub epoch: u32,
    /// The interface out; native order.
    pub interface: u32,
    /// The route's MTU in bytes of IP packet.
    pub mtu: u32,
    /// Destination MAC, then source MAC: the first 12 bytes of the frame.
    pub link_addresses: [u8; 12],
    /// [`NextHopState`] as a number.
    pub state: u16,
    /// [`next_hop_flags`].
    pub flags: u16,
}
layout!(NextHop<V4>, 48, [V4, V4, u32, u32, u32, u32, u32, u32, [u8; 12], u16, u16]);
layout!(NextHop<V6>, 72, [V6, V6, u32, u32, u32, u32, u32, u32, [u8; 12], u16, u16]);

/// How many next hops each CPU keeps; a power of two, for the index is a masked hash.
pub const NEXT_HOPS: u32 = 1024;

/// What kind of answer a [`NextHop`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum NextHopState {
    /// Nothing is known: an empty slot.
    Unknown = 0,
    /// The neighbour is resolved: `link_addresses` and `interface` are good.
    Resolved = 1,
    /// The destination is the machine itself (or a broadcast or multicast address): not ours to forward.
    Local = 2,
    /// The route is good, the neighbour not resolved: the kernel's neighbour code has to send it.
    Unresolved = 3,
    /// The route says that the destination cannot be reached.
    Unreachable = 4,
    /// The route forbids it.
    Prohibited = 5,
    /// Nothing goes there, and nobody is to be told: a blackhole, or what the kernel could not answer.
    Blackhole = 6,
}

impl NextHopState {
    /// The state that a map value holds; an unknown number is no next hop.
    #[inline(always)]
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Resolved,
            2 => Self::Local,
            3 => Self::Unresolved,
            4 => Self::Unreachable,
            5 => Self::Prohibited,
            6 => Self::Blackhole,
            _ => Self::Unknown,
        }
    }
}

/// Bits of [`NextHop::flags`].
pub mod next_hop_flags {
    /// XDP may redirect to the interface: its driver takes such frames and has the program it needs.
    pub const XDP_OUT: u16 = 1;
    /// The interface has no link header (tun, WireGuard, PPP): `link_addresses` mean nothing.
    pub const NO_LINK_HEADER: u16 = 1 << 1;
    /// XDP asked anew: the next packet goes by the kernel's neighbour code, so that a dead neighbour is noticed.
    pub const CONFIRM: u16 = 1 << 2;
    /// With [`XDP_OUT`]: the bits above are the interface's slot, by which XDP redirects.
    pub const SLOT_SHIFT: u16 = 8;
}
