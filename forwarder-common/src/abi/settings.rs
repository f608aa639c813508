//! The one record that every packet reads first.

use super::Ticks;

/// Settings of the running instance; the single entry of the `SETTINGS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Settings {
    /// [`super::VERSION`] of the instance.
    pub version: u32,
    /// Which rules are in force: see [`super::RuleRef`]. Starts at 1.
    pub generation: u32,
    /// Raised when routes or neighbours change: makes every kept next hop stale at once.
    pub epoch: u32,
    /// [`setting_flags`].
    pub flags: u32,
    /// How long a next hop is kept.
    pub next_hop_lifetime: Ticks,
    /// How long flows live without packets.
    pub timeouts: Timeouts,
    /// Source ports to allocate from, in order of preference; an empty range is skipped.
    pub ports: [PortRange; 3],
}

/// How long a flow lives without packets, by its protocol and state; in [`Ticks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Timeouts {
    /// TCP before the handshake is complete (RFC 5382 REQ-5: at least 4 minutes for the partially open).
    pub tcp_opening: Ticks,
    /// TCP established (RFC 5382 REQ-5: at least 2 hours 4 minutes).
    pub tcp_established: Ticks,
    /// TCP after a FIN from either side (RFC 5382 REQ-5: at least 4 minutes).
    pub tcp_closing: Ticks,
    /// TCP after a RST (RFC 7857 section 2.2: 4 minutes by default).
    pub tcp_reset: Ticks,
    /// UDP without a reply, or with one packet each way (RFC 4787 REQ-5: at least 2 minutes).
    pub udp_opening: Ticks,
    /// UDP with packets both ways (RFC 4787 REQ-5: 5 minutes recommended).
    pub udp_established: Ticks,
    /// ICMP echo (RFC 5508 REQ-1: at least 60 seconds).
    pub icmp: Ticks,
    /// Every other protocol.
    pub other: Ticks,
}

/// An inclusive range of ports; host order. Empty when `first > last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PortRange {
    /// Lowest port; host order.
    pub first: u16,
    /// Highest port; host order.
    pub last: u16,
}

/// Bits of [`Settings::flags`]: what the rules need, so that nothing else is looked up.
pub mod setting_flags {
    /// Some rule keeps flows, or flows of a rule now gone may live.
    pub const FLOWS: u32 = 1;
    /// Some IPv4 rule names a range or a whole address.
    pub const RANGES_V4: u32 = 1 << 1;
    /// Some IPv6 rule names a range or a whole address.
    pub const RANGES_V6: u32 = 1 << 2;
    /// The machine has routing rules that look at the source: next hops are kept per source too.
    pub const ROUTE_BY_SOURCE: u32 = 1 << 3;
    /// Some rule is stateless: replies are looked up by their source.
    pub const STATELESS: u32 = 1 << 4;
    /// Some stateless rule keeps flows for clients in its backend's network: TC looks flows up, XDP leaves them to it.
    pub const HAIRPIN: u32 = 1 << 5;
    /// Hosts behind us go out with an address of ours, or mappings of a rule now gone may live.
    pub const MASQUERADE: u32 = 1 << 8;
    /// Some sources leave by a line of their own.
    pub const STEER: u32 = 1 << 9;
    /// Some of them only with some protocol or source port.
    pub const STEER_BY_KIND: u32 = 1 << 10;
    /// Questions of neighbours are answered for hosts behind us ([`crate::neighbor`]).
    pub const NEIGHBOR: u32 = 1 << 12;
}
