//! A rule as the programs use it: one listen, one backend.

use super::layout;
use crate::address::{V4, V6};

/// One listen of a `[[forward]]` and where it goes. Immutable once a [`super::RuleRef`] names its slot.
///
/// A `[[forward]]` with several listens takes one slot for each; they share `counter` and `allow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule<A> {
    /// The address clients send to; network order.
    pub listen: A,
    /// The backend's address; network order. With `Side::Steered`: the router at the other end of the line, zero where the
    /// line has but one other end.
    pub to: A,
    /// With [`rule_flags::REWRITE_SOURCE`] or [`rule_flags::HAIRPIN`]: the address of ours that the backend sees;
    /// network order. Else zero.
    pub source: A,
    /// With [`rule_flags::HAIRPIN`]: ones where the addresses of the backend's network are the same as `to`. With
    /// [`rule_flags::PREFIX`], and with `Side::Steered`: ones in the prefixes' bits. Else zero.
    pub mask: A,
    /// Checksum delta of `listen` → `to` ([`crate::checksum::Delta`]).
    pub to_delta: u16,
    /// Added to a listen port (host order, wrapping) to get the backend's port.
    pub port_shift: u16,
    /// [`rule_flags`].
    pub flags: u16,
    /// The largest segment size that TCP may announce ([`crate::mss`]).
    pub mss: u16,
    /// Index into the rule counters, the same for all slots of one named rule.
    pub counter: u32,
    /// With [`rule_flags::ALLOW`]: the list of allowed clients. With `Side::Steered`: the interface of the line, 0
    /// while that is down. Else 0.
    pub allow: u32,
}
layout!(Rule<V4>, 32, [V4, V4, V4, V4, u16, u16, u16, u16, u32, u32]);
layout!(Rule<V6>, 80, [V6, V6, V6, V6, u16, u16, u16, u16, u32, u32]);

/// Bits of [`Rule::flags`].
pub mod rule_flags {
    /// No flow is kept: the listen table and the backend table say everything.
    pub const STATELESS: u16 = 1;
    /// The backend sees [`super::Rule::source`] and a port we allocate (masquerade or a fixed address).
    pub const REWRITE_SOURCE: u16 = 1 << 1;
    /// Only the clients of [`super::Rule::allow`] may use the rule.
    pub const ALLOW: u16 = 1 << 2;
    /// The rule names more than one port: what a connected socket of this machine would take is not forwarded.
    pub const SPARES_SOCKETS: u16 = 1 << 3;
    /// The backend sees the client's address, save those of its own network ([`super::Rule::mask`]), itself included:
    /// to them it would answer directly, past us. For them it sees [`super::Rule::source`], and a flow is kept.
    pub const HAIRPIN: u16 = 1 << 4;
    /// One to one: `listen` and `to` are prefixes of the length that `mask` says ([`crate::prefix`]).
    pub const PREFIX: u16 = 1 << 5;
    /// With `Side::Steered`: a line, not something that packets are for.
    pub const LINE: u16 = 1 << 7;
    /// With `Side::Inside`: everybody may use a mapping (RFC 4787 section 5).
    pub const ENDPOINT_FILTERING: u16 = 1 << 8;
    /// With `Side::Inside`: the addresses may use a mapping which its host has sent to.
    pub const ADDRESS_FILTERING: u16 = 1 << 9;
    /// With `Side::Neighbor`: not for packets, but for the questions of neighbours ([`super::Rule::neighbor`]).
    pub const NEIGHBOR: u16 = 1 << 12;
    /// With [`NEIGHBOR`]: answered only while the host itself answers.
    pub const WHILE_ALIVE: u16 = 1 << 13;
}
