//! Counters, one copy per CPU: no packet waits for another's.

use crate::verdict::Outcome;

/// How many interfaces an instance can serve; the length of the interface counters.
pub const INTERFACE_SLOTS: u32 = 32;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Traffic {
    /// Packets; a GSO packet of TC counts as one.
    pub packets: u64,
    /// Bytes, IP header included, link header not.
    pub bytes: u64,
}

/// What a named rule did, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RuleCounters {
    /// Client to backend.
    pub forward: Traffic,
    /// Backend to client.
    pub reply: Traffic,
    /// Flows begun.
    pub flows: u64,
    /// Packets of clients that the rule does not allow.
    pub denied: u64,
    /// Packets that would have moved their flow to the protected table, had it not been full; each further one of the
    /// client tries again.
    pub unprotected: u64,
    /// Source ports not taken because a socket of this machine uses them.
    pub port_clashes: u64,
}

/// How often each [`Outcome`] happened on an interface and hook, on one CPU: every packet counts exactly once
/// for each hook it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct InterfaceCounters {
    /// Indexed by [`Outcome`], at XDP.
    pub xdp: [u64; Outcome::COUNT],
    /// Indexed by [`Outcome`], at TC.
    pub tc: [u64; Outcome::COUNT],
    /// Indexed by [`Outcome`], at TC on the way out: only what was steered or dropped there.
    pub egress: [u64; Outcome::COUNT],
}

impl Default for InterfaceCounters {
    fn default() -> Self {
        Self { xdp: [0; Outcome::COUNT], tc: [0; Outcome::COUNT], egress: [0; Outcome::COUNT] }
    }
}
