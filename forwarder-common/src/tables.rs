//! The maps as the core sees them. The programs implement this over BPF maps, tests over ordinary collections.

use core::ops::DerefMut;

use crate::{
    abi::{
        Datagram, DatagramKey, Direction, Endpoint, Flow, FlowKey, NextHopState, RangeKey, Rewrite, Rule, RuleRef,
        Settings, Ticks, next_hop_flags,
    },
    address::Address,
    answer::About,
    decide::{self, Decision},
    flow_state::FlowState,
    packet::Packet,
    parse::{Parsed, fragment::Fragment},
    verdict::Outcome,
    window::Reached,
};

/// An entry of a flow table, in place: cheap to copy, every write goes to the table.
pub trait FlowEntry<A>: Copy {
    /// The entry as it is now.
    fn get(self) -> Flow<A>;
    /// Whether what was read of a flow was that of the flow that was looked up by `key`: another CPU may have given its place
    /// to another flow meanwhile. To be asked after each copy that something is decided by.
    fn is_of(self, key: &FlowKey<A>) -> bool;
    /// A packet of `bytes` IP bytes was forwarded at `now`.
    fn seen(self, now: Ticks, bytes: u32);
    /// It is in use at `now`, though not by a packet of its own.
    fn refresh(self, now: Ticks);
    /// The flow has come to another state.
    fn set_state(self, state: FlowState);
    /// What the client of a new TCP flow has to acknowledge: [`Flow::sweep_slot`].
    fn await_acknowledgment(self, acknowledgment: u32);
    /// How far both sides of an established TCP flow have come; at its reply direction only: [`Flow::sweep_slot`].
    fn note_reached(self, reached: Reached);
}

/// What of a packet, as it leaves, its way depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// Network order.
    pub src: A,
    /// Network order.
    pub dst: A,
    /// Its protocol and source port, as far as they matter: [`crate::steer::kind`].
    pub kind: u32,
}

/// The way out for packets of some kind, ready for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// What is known.
    pub state: NextHopState,
    /// [`crate::abi::next_hop_flags`].
    pub flags: u16,
    /// The interface out.
    pub interface: u32,
    /// The slot of the rule whose line it is; 0 where routing decided.
    pub line: u32,
    /// The route's MTU in bytes of IP packet.
    pub mtu: u32,
    /// Destination MAC, then source MAC.
    pub link_addresses: [u8; 12],
}

impl Hop {
    /// Whether the link header can be written at once. Else the kernel's neighbour code sends the packet.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        let known = matches!(self.state, NextHopState::Resolved) && self.flags & next_hop_flags::CONFIRM == 0;
        // A device without link header has no neighbours to ask.
        known || self.flags & next_hop_flags::NO_LINK_HEADER != 0
    }

    /// What becomes of a packet that has no way out.
    #[inline(always)]
    pub const fn missing(&self) -> Outcome {
        if self.line == 0 { Outcome::DropNoRoute } else { Outcome::DropLineDown }
    }

    /// No way out.
    pub const NONE: Self =
        Self { state: NextHopState::Unknown, flags: 0, interface: 0, line: 0, mtu: 0, link_addresses: [0; 12] };
}

/// The way to a destination, as far as it says whose packet one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What is known.
    pub state: NextHopState,
    /// The interface out.
    pub interface: u32,
}

impl Way {
    /// As one word. A function of its own in a BPF program returns that: where it returns a record through memory, it may leave
    /// the pointer to it in the register for results, and the verifier refuses a pointer to a stack there.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.interface as u64 | (self.state as u64) << 32
    }

    /// From that.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { state: NextHopState::from_number((word >> 32) as u16), interface: word as u32 }
    }
}

/// Which hook a packet is at: XDP may use less of the kernel, and TC confirms neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// XDP, native or generic.
    Xdp,
    /// TC, at the ingress.
    Tc,
}

/// Why a flow could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// The key is taken.
    Taken,
    /// The table is full, or the kernel refused for another reason.
    Refused,
}

/// Where a new flow would be entered, for [`Tables::insert_in_room`]: what is in the table's way, and the way's number, each a
/// word of what the table makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room(pub u64);

impl Room {
    /// Nobody has looked.
    pub const UNKNOWN: Self = Self(0);
    /// There is none, for the key is taken.
    pub const TAKEN: Self = Self(u64::MAX);
}

/// The tables of one address family.
pub trait Tables<A> {
    /// How flow entries are held.
    type Entry: FlowEntry<A>;
    /// How memory for a [`Draft`] is held: not on the stack, of which a BPF program has 512 bytes.
    type Draft: DerefMut<Target = Draft<A>>;

    /// The settings in force.
    fn settings(&self) -> &Settings;
    /// [`Settings::generation`], read once for the packet: it may change under way.
    fn generation(&self) -> u32;
    /// The clock.
    fn now(&self) -> Ticks;
    /// A random number, unpredictable to outsiders (RFC 6056 section 3.1).
    fn random(&self) -> u32;

    /// Looks a protected flow up.
    fn established(&self, key: &FlowKey<A>) -> Option<Self::Entry>;
    /// Looks a new flow up.
    fn embryonic(&self, key: &FlowKey<A>) -> Option<Self::Entry>;
    /// Whether a key may be that of a new flow: never wrong in saying no.
    fn may_be_new(&self, key: &FlowKey<A>) -> bool;
    /// Looks a new flow up that is probably not there: then the room that it would get.
    fn embryonic_or_room(&self, key: &FlowKey<A>) -> Result<Self::Entry, Room>;
    /// Has the memory of a room come closer, while there is something else to do.
    fn fetch(&self, room: Room);
    /// Enters one direction of a new flow, unless the key is taken. The one that was not looked for the longest makes room;
    /// it need not be looked for where the key's `room` is known and still as it was.
    fn insert_in_room(&self, key: &FlowKey<A>, flow: &Flow<A>, room: Room) -> Result<(), NotInserted>;
    /// The same, without knowing a room.
    #[inline(always)]
    fn insert_embryonic(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), NotInserted> {
        self.insert_in_room(key, flow, Room::UNKNOWN)
    }
    /// Removes one direction of a new flow, if it is there.
    fn remove_embryonic(&self, key: &FlowKey<A>);
    /// Enters both directions of a flow into the protected table, and `forward` into the sweeper's list:
    /// [`Flow::sweep_slot`] of `forward` says where.
    ///
    /// # Errors
    /// The table is full or a key is taken; then nothing was entered.
    fn protect(&self, forward: (&FlowKey<A>, &mut Flow<A>), reply: (&FlowKey<A>, &Flow<A>)) -> Result<(), NotInserted>;
    /// Removes both directions of a protected flow and its place in the sweeper's list.
    fn remove_established(&self, forward: &FlowKey<A>, reply: &FlowKey<A>, sweep_slot: u32);

    /// The slot of the rule that names an endpoint in this packet's generation, 0 for none: what [`decide::find_slot`] finds,
    /// or found for a packet before.
    #[inline(always)]
    fn slot_of(&self, endpoint: &Endpoint<A>) -> u32
    where
        A: Address,
        Self: Sized,
    {
        decide::find_slot(self, endpoint)
    }
    /// The rule that names an endpoint in this packet's generation, if the answer can be kept: for the fast path, which leaves
    /// everything else to the complete one. Good until the next endpoint is asked about: it may be the kept one.
    #[inline(always)]
    fn named(&self, endpoint: &Endpoint<A>) -> Option<&Rule<A>>
    where
        A: Address,
        Self: Sized,
    {
        match self.slot_of(endpoint) {
            0 => None,
            slot => self.rule(slot),
        }
    }
    /// What an exact endpoint stands for.
    fn endpoint(&self, endpoint: &Endpoint<A>) -> Option<RuleRef>;
    /// What the longest matching range or whole address stands for.
    fn range(&self, key: &RangeKey<A>) -> Option<RuleRef>;
    /// Whether any range or whole address is named at all.
    fn has_ranges(&self) -> bool;
    /// A rule by its slot.
    fn rule(&self, slot: u32) -> Option<&Rule<A>>;
    /// Whether an allow list contains a client.
    fn allows(&self, list: u32, client: A) -> bool;

    /// What became of a datagram's first fragment.
    fn datagram(&self, key: &DatagramKey<A>) -> Option<Datagram<A>>;
    /// Notes what became of a datagram's first fragment; the oldest note makes room.
    fn note_datagram(&self, key: &DatagramKey<A>, datagram: &Datagram<A>);

    /// Keeps a fragment, the IP packet of so many bytes at `network`, until the first of its datagram comes. `false`
    /// when it could not be kept.
    fn hold(&self, key: &DatagramKey<A>, packet: &impl Packet, network: usize, length: u32) -> bool;
    /// Whether fragments of a datagram are kept.
    fn holds(&self, key: &DatagramKey<A>) -> bool;

    /// Calls `state.step` with 0, 1, … until it is done, at most `times` times. The kernel has a helper for this: its
    /// verifier looks at the step once, not once for every time.
    fn repeat<R: Repeated>(&self, times: u32, state: &mut R);

    /// Whether a socket of this machine would take a packet with this key.
    fn socket_takes(&self, arriving: &FlowKey<A>) -> bool;
    /// Whether a connected socket of this machine (for UDP: any) would take a packet with this key.
    fn socket_connected(&self, arriving: &FlowKey<A>) -> bool;
    /// Where such packets go: by the line of their source ([`crate::steer::line`]), else as the kernel's routing says.
    fn next_hop(&self, ends: &Ends<A>) -> Hop;
    /// The same, if it is known and no packet has to confirm the neighbour: nobody is asked. Else [`Hop::NONE`].
    fn known_next_hop(&self, ends: &Ends<A>) -> Hop;
    /// The same, without sending the packet that way: it does not count as the one that confirms the neighbour.
    fn way(&self, ends: &Ends<A>) -> Way;
    /// The interface that the packet came in by.
    fn ingress(&self) -> u32;
    /// The MTU of the way towards `dst` for packets from `src`, in bytes of IP packet; `u32::MAX` where it is not known.
    fn mtu(&self, src: A, dst: A) -> u32;

    /// Keeps the address that an answer to the packet comes from; network order.
    fn keep_answerer(&self, answerer: A);
    /// What was kept last; `None` only if the kernel had no memory to give.
    fn answerer(&self) -> Option<A>;
    /// Whether one more answer may be sent now; counts as sent.
    fn may_answer(&self, about: About) -> bool;

    /// Keeps what the parser found in memory that is not on the stack. Beside saving stack, it makes the kernel's
    /// verifier forget along which of the parser's many ways it came, so that it follows the rest only once.
    fn keep(&self, parsed: Parsed<A>);
    /// What was kept last; `None` only if the kernel had no memory to give.
    fn kept(&self) -> Option<&Parsed<A>>;

    /// Memory to work in, with whatever the last packet left in it; at most one at a time. `None` only if the kernel had none to give.
    fn draft(&self) -> Option<Self::Draft>;

    /// Counts a forwarded packet of a rule.
    fn count_forwarded(&self, counter: u32, direction: Direction, bytes: u32);
    /// Counts an event of a rule.
    fn count(&self, counter: u32, event: Event);
}

/// A bounded search, for [`Tables::repeat`].
pub trait Repeated {
    /// One attempt.
    fn step(&mut self, attempt: u32) -> Repeat;
}

/// What a step wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Another attempt.
    Again,
    /// No more.
    Done,
}

/// What is being worked out about a packet and its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Draft<A> {
    /// One direction.
    pub flow: Flow<A>,
    /// The other direction.
    pub peer: Flow<A>,
    /// The other direction's key.
    pub peer_key: FlowKey<A>,
    /// What becomes of the packet.
    pub decision: Decision<A>,
    /// Of an ICMP error.
    pub embedded: Embedded<A>,
    /// Of a packet without a flow, from or to a host that goes out with an address of ours.
    pub outgoing: Outgoing<A>,
    /// The packet, where it is a fragment without transport header.
    pub fragment: Fragment<A>,
    /// Where a flow begins.
    pub at: At,
    /// Room for the forward direction of the flow that begins.
    pub room: Room,
    /// Room for its reply direction.
    pub reply_room: Room,
}

/// What is being worked out about an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Embedded<A> {
    /// What a reply to the embedded packet would be.
    pub answer: Parsed<A>,
    /// How the error's own header is rewritten; ports mean nothing.
    pub outer: Rewrite<A>,
}

/// What is being worked out about a packet from or to a host that goes out with an address of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outgoing<A> {
    /// The sender's mapping, as it is found from inside.
    pub key: FlowKey<A>,
    /// Some other key that is looked up.
    pub other_key: FlowKey<A>,
    /// The host that the packet comes to; network order.
    pub to: A,
    /// Its port; network order.
    pub to_port: u16,
    /// What the mapping that leads there lets in: [`crate::abi::Flow::flags`].
    pub to_filtering: u8,
    /// [`crate::outgoing::Kind`] as a number.
    pub kind: u32,
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

#[cfg(any(test, feature = "testing"))]
pub mod memory;
