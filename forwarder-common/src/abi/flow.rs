//! A flow: two entries, one for each direction, each found by the packet as it arrives.

use super::{Ticks, layout};
use crate::{
    address::{V4, V6},
    checksum::Delta,
};

/// What identifies a packet of a flow as it arrives, before translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Network order.
    pub src: A,
    /// Network order.
    pub dst: A,
    /// Network order. An ICMP echo request has its identifier here, an echo reply has 0.
    pub src_port: u16,
    /// Network order. An ICMP echo reply has its identifier here, an echo request has 0.
    pub dst_port: u16,
    /// IP protocol number, native order: a word, so that the key has no padding. Above the number what the entry is if
    /// it is none that is forwarded: [`Self::MAPPING`], [`Self::PERMISSION`], [`Self::PASSING`].
    pub protocol: u32,
}
layout!(FlowKey<V4>, 16, [V4, V4, u16, u16, u32]);
layout!(FlowKey<V6>, 40, [V6, V6, u16, u16, u32]);

impl<A: Copy + Default> FlowKey<A> {
    /// Above the protocol: a mapping, the same for every remote end (RFC 4787 section 4.1).
    pub const MAPPING: u32 = 1 << 8;
    /// Above the protocol: a remote end that a mapping lets in (RFC 4787 section 5).
    pub const PERMISSION: u32 = 1 << 9;

    /// Above the protocol: a connection that the kernel forwards ([`crate::passing`]).
    pub const PASSING: u32 = 1 << 10;

    /// The number of the protocol alone.
    #[inline(always)]
    pub const fn protocol_number(&self) -> u8 {
        self.protocol as u8
    }

    /// Whether this is the key of a mapping, a permission or what the kernel forwards, not of packets that are forwarded.
    #[inline(always)]
    pub const fn is_of_no_packet(&self) -> bool {
        self.protocol > u8::MAX as u32
    }

    /// Where it stands that the kernel forwards packets with `key`.
    #[inline(always)]
    pub const fn passing(key: &Self) -> Self {
        Self { protocol: key.protocol | Self::PASSING, ..*key }
    }

    /// Where the mapping of `port` at `inside` to an address of ours is found by those who are behind us.
    #[inline(always)]
    pub fn mapping_from_inside(protocol: u8, inside: A, port: u16, ours: A) -> Self {
        let protocol = u32::from(protocol) | Self::MAPPING;
        Self { src: inside, dst: ours, src_port: port, dst_port: 0, protocol }
    }

    /// Where the same mapping is found by everyone else: by our address and the port that it has there.
    #[inline(always)]
    pub fn mapping_from_outside(protocol: u8, ours: A, port: u16) -> Self {
        let protocol = u32::from(protocol) | Self::MAPPING;
        Self { src: A::default(), dst: ours, src_port: 0, dst_port: port, protocol }
    }

    /// Where it stands that who is mapped to `ours` and `port` has sent to `remote`; `remote_port` 0 for any port.
    #[inline(always)]
    pub fn permission(protocol: u8, (remote, remote_port): (A, u16), (ours, port): (A, u16)) -> Self {
        let protocol = u32::from(protocol) | Self::PERMISSION;
        Self { src: remote, dst: ours, src_port: remote_port, dst_port: port, protocol }
    }
}

/// What a packet's addresses and ports become, with the checksum deltas worked out beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rewrite<A> {
    /// New source; network order.
    pub src: A,
    /// New destination; network order.
    pub dst: A,
    /// New source port or echo identifier; network order.
    pub src_port: u16,
    /// New destination port or echo identifier; network order.
    pub dst_port: u16,
    /// Delta of both addresses: what the IPv4 header and the pseudo-header change by.
    pub address_delta: u16,
    /// Delta of both ports: what the transport header changes by.
    pub port_delta: u16,
}
layout!(Rewrite<V4>, 16, [V4, V4, u16, u16, u16, u16]);
layout!(Rewrite<V6>, 40, [V6, V6, u16, u16, u16, u16]);

/// Which way a packet of a rule goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the backend.
    Forward = 0,
    /// From the backend to the client.
    Reply = 1,
}

/// One direction of a flow. Its peer entry has the key that a reply to the rewritten packet would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<A> {
    /// How packets of this direction are rewritten.
    pub rewrite: Rewrite<A>,
    /// When this direction last saw a packet.
    pub last_seen: Ticks,
    /// Index into the rule counters.
    pub counter: u32,
    /// [`crate::flow_state::FlowState`] as a number; both directions of a flow hold the same one.
    pub state: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// The largest segment size that TCP may announce ([`crate::mss`]); the same in both directions.
    pub mss: u16,
    /// Of an established flow: in the forward direction, where the sweeper finds it; in the reply direction of TCP,
    /// [`crate::window::Reached`]. While embryonic, in the client's direction of a TCP flow: the acknowledgment number
    /// (host order) that shows that the client has seen the backend's SYN-ACK; else 0.
    pub sweep_slot: u32,
    /// Packets of this direction.
    pub packets: u64,
    /// Bytes of this direction, IP header included, link header not.
    pub bytes: u64,
}
/// Bits of [`Flow::flags`]; but for [`REPLY`](flow_flags::REPLY), both entries of a flow have the same ones.
pub mod flow_flags {
    /// Begun by a host behind us that goes out with an address of ours: it keeps a mapping alive.
    pub const OUTBOUND: u8 = 1;
    /// Let in by a mapping, which it keeps alive. With [`OUTBOUND`]: from one host behind us to another (RFC 4787
    /// section 6).
    pub const INBOUND: u8 = 1 << 1;
    /// Of a mapping that everybody may use, and its flows (RFC 4787 section 5, endpoint-independent filtering).
    pub const ENDPOINT_FILTERING: u8 = 1 << 2;
    /// Of a mapping that the addresses may use which its host has sent to, and its flows (address-dependent filtering).
    pub const ADDRESS_FILTERING: u8 = 1 << 3;
    /// Both of them.
    pub const FILTERING: u8 = ENDPOINT_FILTERING | ADDRESS_FILTERING;
    /// The entry of the backend's direction ([`super::Direction`]).
    pub const REPLY: u8 = 1 << 7;
}

layout!(Flow<V4>, 48, [Rewrite<V4>, u32, u32, u8, u8, u16, u32, u64, u64]);
layout!(Flow<V6>, 72, [Rewrite<V6>, u32, u32, u8, u8, u16, u32, u64, u64]);

impl<A: Copy + Eq> Flow<A> {
    /// Whether this is the other direction of packets with `key`: not only found where theirs would be, but leading back.
    #[inline(always)]
    pub fn undoes(&self, key: &FlowKey<A>) -> bool {
        self.rewrite.dst == key.src
            && self.rewrite.src == key.dst
            && self.rewrite.dst_port == key.src_port
            && self.rewrite.src_port == key.dst_port
    }
}

impl<A: Copy> Flow<A> {
    /// Which way packets of this entry go.
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        if self.flags & flow_flags::REPLY == 0 { Direction::Forward } else { Direction::Reply }
    }

    /// Makes this the entry of the other direction of `flow`: it undoes what that one does to packets with `key`.
    ///
    /// In place, field by field: a BPF program has no stack to spare for a whole one in between.
    #[inline(always)]
    pub const fn become_peer(&mut self, flow: &Self, key: &FlowKey<A>) {
        self.rewrite.src = key.dst;
        self.rewrite.dst = key.src;
        self.rewrite.src_port = key.dst_port;
        self.rewrite.dst_port = key.src_port;
        self.rewrite.address_delta = Delta(flow.rewrite.address_delta).undone().0;
        self.rewrite.port_delta = Delta(flow.rewrite.port_delta).undone().0;
        self.last_seen = flow.last_seen;
        self.counter = flow.counter;
        self.state = flow.state;
        self.flags = flow.flags ^ flow_flags::REPLY;
        self.mss = flow.mss;
        self.sweep_slot = flow.sweep_slot;
        self.packets = 0;
        self.bytes = 0;
    }

    /// The entry of the other direction, by value: [`Self::become_peer`].
    #[must_use]
    pub const fn peer(&self, key: &FlowKey<A>) -> Self {
        let mut peer = *self;
        peer.become_peer(self, key);
        peer
    }

    /// Makes `peer` the key of the other direction, in place: [`Self::peer_key`].
    #[inline(always)]
    pub const fn write_peer_key(&self, protocol: u32, peer: &mut FlowKey<A>) {
        peer.src = self.rewrite.dst;
        peer.dst = self.rewrite.src;
        peer.src_port = self.rewrite.dst_port;
        peer.dst_port = self.rewrite.src_port;
        peer.protocol = protocol;
    }

    /// The key of the other direction: what a reply to a rewritten packet looks like on arrival.
    #[inline(always)]
    pub const fn peer_key(&self, protocol: u32) -> FlowKey<A> {
        FlowKey {
            src: self.rewrite.dst,
            dst: self.rewrite.src,
            src_port: self.rewrite.dst_port,
            dst_port: self.rewrite.src_port,
            protocol,
        }
    }
}
