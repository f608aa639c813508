//! The maps as the core sees them. The programs implement this over BPF maps, tests over ordinary collections.

use crate::{
    abi::{Direction, Endpoint, Flow, FlowKey, NextHopState, RangeKey, Rule, RuleRef, Settings, Ticks},
    flow_state::FlowState,
};

/// An entry of a flow table, in place: cheap to copy, every write goes to the table.
pub trait FlowEntry<A>: Copy {
    /// The entry as it is now.
    fn get(self) -> Flow<A>;
    /// A packet of `bytes` IP bytes was forwarded at `now`.
    fn seen(self, now: Ticks, bytes: u32);
    /// The flow has come to another state.
    fn set_state(self, state: FlowState);
}

/// The kernel's routing for one destination, ready for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// What is known.
    pub state: NextHopState,
    /// [`crate::abi::next_hop_flags`].
    pub flags: u16,
    /// The interface out.
    pub interface: u32,
    /// The route's MTU in bytes of IP packet.
    pub mtu: u32,
    /// Destination MAC, then source MAC.
    pub link_addresses: [u8; 12],
}

/// Why a flow could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// The key is taken.
    Taken,
    /// The table is full, or the kernel refused for another reason.
    Refused,
}

/// The tables of one address family.
pub trait Tables<A> {
    /// How flow entries are held.
    type Entry: FlowEntry<A>;

    /// The settings in force.
    fn settings(&self) -> &Settings;
    /// The clock.
    fn now(&self) -> Ticks;
    /// A random number, unpredictable to outsiders (RFC 6056 section 3.1).
    fn random(&self) -> u32;

    /// Looks a protected flow up.
    fn established(&self, key: &FlowKey<A>) -> Option<Self::Entry>;
    /// Looks a new flow up.
    fn embryonic(&self, key: &FlowKey<A>) -> Option<Self::Entry>;
    /// Enters one direction of a new flow, unless the key is taken.
    fn insert_embryonic(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), NotInserted>;
    /// Removes one direction of a new flow, if it is there.
    fn remove_embryonic(&self, key: &FlowKey<A>);
    /// Enters both directions of a flow into the protected table, and `forward` into the sweeper's list.
    ///
    /// # Errors
    /// The table is full or a key is taken; then nothing was entered.
    fn protect(&self, forward: (&FlowKey<A>, &Flow<A>), reply: (&FlowKey<A>, &Flow<A>)) -> Result<(), NotInserted>;
    /// Removes both directions of a protected flow and its place in the sweeper's list.
    fn remove_established(&self, forward: &FlowKey<A>, reply: &FlowKey<A>, sweep_slot: u32);

    /// What an exact endpoint stands for.
    fn endpoint(&self, endpoint: &Endpoint<A>) -> Option<RuleRef>;
    /// What the longest matching range or whole address stands for.
    fn range(&self, key: &RangeKey<A>) -> Option<RuleRef>;
    /// Whether any range or whole address is named at all.
    fn has_ranges(&self) -> bool;
    /// A rule by its slot.
    fn rule(&self, slot: u32) -> Option<Rule<A>>;
    /// Whether an allow list contains a client.
    fn allows(&self, list: u32, client: A) -> bool;

    /// Whether a socket of this machine would take a packet with this key.
    fn socket_takes(&self, arriving: &FlowKey<A>) -> bool;
    /// The kernel's routing towards `dst` for packets from `src`.
    fn next_hop(&self, src: A, dst: A) -> Hop;

    /// Counts a forwarded packet of a rule.
    fn count_forwarded(&self, counter: u32, direction: Direction, bytes: u32);
    /// Counts an event of a rule.
    fn count(&self, counter: u32, event: Event);
}

/// Things a rule counts beside traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A flow began.
    FlowBegun,
    /// A client that is not allowed.
    Denied,
    /// A flow could not be protected because the table is full.
    Unprotected,
    /// A source port was left to a socket of this machine.
    PortClash,
}

#[cfg(test)]
pub mod memory;
