//! The tables in ordinary collections, for tests.
//!
//! It behaves as the kernel's maps do where that matters: an entry that was looked up stays readable and writable
//! after its removal, tables have a capacity, and "another CPU" can be let in between two steps.
#![allow(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic in a test's own tools is a failed test"
)]

use core::cell::{Cell, RefCell};
use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use super::{At, Draft, Embedded, Ends, Event, FlowEntry, Hop, NotInserted, Repeat, Repeated, Room, Tables, Way};
use crate::{
    abi::{
        Datagram, DatagramKey, Direction, Endpoint, Flow, FlowKey, NextHopState, PortRange, RangeKey, Rule, RuleRef,
        Settings, Ticks, Timeouts, Traffic, next_hop_flags, setting_flags,
    },
    address::Address,
    answer::{About, Budget},
    decide::Decision,
    flow_state::FlowState,
    packet::Packet,
    parse::{Parsed, TcpFields, Transport, fragment::Fragment},
    steer,
    window::Reached,
};

/// What the in-memory tables ask of an address.
pub trait MemoryAddress: Address + Ord + bytemuck::Pod + core::fmt::Debug {}
impl<A: Address + Ord + bytemuck::Pod + core::fmt::Debug> MemoryAddress for A {}

/// What one rule has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Client to backend.
    pub forward: Traffic,
    /// Backend to client.
    pub reply: Traffic,
    /// Events in the order they came.
    pub events: Vec<Event>,
}

impl Counted {
    /// How often an event came.
    pub fn times(&self, event: Event) -> usize {
        self.events.iter().filter(|other| **other == event).count()
    }
}

type Entries<A> = RefCell<BTreeMap<FlowKey<A>, &'static Cell<Flow<A>>>>;
type OtherCpu<A> = Box<dyn FnOnce(&Memory<A>)>;

/// All tables of one family.
pub struct Memory<A: MemoryAddress> {
    /// The settings in force.
    pub settings: Settings,
    /// The clock.
    pub now: Cell<Ticks>,
    /// Numbers that [`Tables::random`] yields first, the last one first; then a fixed pseudo-random sequence.
    pub randoms: RefCell<Vec<u32>>,
    seed: Cell<u32>,
    parsed: Cell<Option<&'static Parsed<A>>>,
    answerer: Cell<Option<A>>,
    /// How many answers of each kind may be sent.
    pub budgets: Cell<[Budget; About::COUNT]>,
    /// Exact endpoints.
    pub endpoints: BTreeMap<Endpoint<A>, RuleRef>,
    /// Ranges and whole addresses.
    pub ranges: BTreeMap<RangeKey<A>, RuleRef>,
    /// Rules by slot.
    pub rules: BTreeMap<u32, Rule<A>>,
    /// Clients of each allow list.
    pub allowed: BTreeSet<(u32, A)>,
    /// Sockets of the machine: protocol, address, port in network order.
    pub sockets: BTreeSet<(u32, A, u16)>,
    /// Connections of the machine, by what arrives for them.
    pub connected: BTreeSet<FlowKey<A>>,
    /// The kernel's routing by destination; [`Self::default_hop`] for every other.
    pub hops: BTreeMap<A, Hop>,
    /// The way to everywhere else.
    pub default_hop: Hop,
    /// The interface that packets come in by.
    pub ingress: Cell<u32>,
    /// Protected flows.
    pub established: Entries<A>,
    /// How many entries the protected table takes.
    pub established_capacity: Cell<usize>,
    /// The sweeper's list.
    pub sweep: RefCell<BTreeMap<u32, [FlowKey<A>; 2]>>,
    /// New flows.
    pub embryonic: Entries<A>,
    /// How many entries the table of new flows takes.
    pub embryonic_capacity: Cell<usize>,
    /// Fragmented datagrams whose first fragment has come.
    pub datagrams: RefCell<BTreeMap<DatagramKey<A>, Datagram<A>>>,
    /// Fragments that wait for the first of their datagram: IP packets, in the order they came.
    pub held: RefCell<Vec<(DatagramKey<A>, Vec<u8>)>>,
    /// How many may wait; then the oldest goes.
    pub held_capacity: Cell<usize>,
    /// By rule counter.
    pub counted: RefCell<BTreeMap<u32, Counted>>,
    /// What another CPU does before the insertion into the table of new flows that is so many insertions away.
    pub other_cpu: RefCell<Option<(u32, OtherCpu<A>)>>,
    /// What another CPU does just before the next fragment is held.
    pub while_holding: RefCell<Option<OtherCpu<A>>>,
}

/// Different for each kind of timeout, so that a test sees which one was taken.
pub const TIMEOUTS: Timeouts = Timeouts {
    tcp_opening: 240_000,
    tcp_established: 7_440_000,
    tcp_closing: 250_000,
    tcp_reset: 10_000,
    udp_opening: 120_000,
    udp_established: 300_000,
    icmp: 60_000,
    other: 600_000,
};

/// A resolved next hop that XDP may use.
pub const HOP: Hop = Hop {
    state: NextHopState::Resolved,
    flags: next_hop_flags::XDP_OUT,
    interface: 7,
    line: 0,
    mtu: 1500,
    link_addresses: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8],
};

impl<A: MemoryAddress> Default for Memory<A> {
    fn default() -> Self {
        let ports = [(61_000, 65_535), (16_384, 32_767), (32_768, 60_999)];
        Self {
            settings: Settings {
                version: crate::abi::VERSION,
                generation: 1,
                epoch: 0,
                flags: setting_flags::FLOWS
                    | setting_flags::RANGES_V4
                    | setting_flags::RANGES_V6
                    | setting_flags::STATELESS,
                next_hop_lifetime: 1000,
                timeouts: TIMEOUTS,
                ports: ports.map(|(first, last)| PortRange { first, last }),
            },
            now: Cell::new(1_000_000),
            randoms: RefCell::default(),
            seed: Cell::new(1),
            parsed: Cell::new(None),
            answerer: Cell::new(None),
            budgets: Cell::default(),
            endpoints: BTreeMap::new(),
            ranges: BTreeMap::new(),
            rules: BTreeMap::new(),
            allowed: BTreeSet::new(),
            sockets: BTreeSet::new(),
            connected: BTreeSet::new(),
            hops: BTreeMap::new(),
            default_hop: HOP,
            ingress: Cell::new(HOP.interface),
            established: RefCell::default(),
            established_capacity: Cell::new(1000),
            sweep: RefCell::default(),
            embryonic: RefCell::default(),
            embryonic_capacity: Cell::new(1000),
            datagrams: RefCell::default(),
            held: RefCell::default(),
            held_capacity: Cell::new(64),
            counted: RefCell::default(),
            other_cpu: RefCell::new(None),
            while_holding: RefCell::new(None),
        }
    }
}

impl<A: MemoryAddress> Memory<A> {
    /// What a rule has counted so far.
    pub fn counted(&self, counter: u32) -> Counted {
        self.counted.borrow().get(&counter).cloned().unwrap_or_default()
    }

    /// A flow entry of either table, protected ones first.
    pub fn flow(&self, key: &FlowKey<A>) -> Option<Flow<A>> {
        self.established(key).or_else(|| self.embryonic(key)).map(Cell::get)
    }

    /// Time passes.
    pub fn wait(&self, ticks: Ticks) {
        self.now.set(self.now.get().wrapping_add(ticks));
    }

    /// Panics unless every protected flow has both halves, each undoing the other, and the sweeper knows it.
    pub fn check_protected_pairs(&self) {
        let established = self.established.borrow();
        for (key, entry) in &*established {
            let flow = entry.get();
            let peer_key = flow.peer_key(key.protocol);
            let peer = established.get(&peer_key).unwrap_or_else(|| panic!("half a flow: {key:?}")).get();
            assert_eq!(peer.peer_key(key.protocol), *key, "the halves are not each other's");
            assert_eq!(peer.state, flow.state, "the halves are in different states");
            assert_ne!(peer.direction(), flow.direction());
            let forward = if flow.direction() == Direction::Forward { flow } else { peer };
            let pair = self.sweep.borrow()[&forward.sweep_slot];
            assert!(pair == [*key, peer_key] || pair == [peer_key, *key], "the sweeper would remove another flow");
        }
        assert_eq!(established.len(), self.sweep.borrow().len() * 2);
    }
}

/// Like a map value in the kernel, an entry outlives its removal.
fn entry<A: MemoryAddress>(flow: &Flow<A>) -> &'static Cell<Flow<A>> {
    Box::leak(Box::new(Cell::new(*flow)))
}

impl<A: MemoryAddress> FlowEntry<A> for &'static Cell<Flow<A>> {
    fn get(self) -> Flow<A> {
        Cell::get(self)
    }

    fn is_of(self, _key: &FlowKey<A>) -> bool {
        true
    }

    fn seen(self, now: Ticks, bytes: u32) {
        let mut flow = Cell::get(self);
        flow.last_seen = now;
        flow.packets += 1;
        flow.bytes += u64::from(bytes);
        self.set(flow);
    }

    fn refresh(self, now: Ticks) {
        let mut flow = Cell::get(self);
        flow.last_seen = now;
        self.set(flow);
    }

    fn set_state(self, state: FlowState) {
        let mut flow = Cell::get(self);
        flow.state = state as u8;
        self.set(flow);
    }

    fn await_acknowledgment(self, acknowledgment: u32) {
        let mut flow = Cell::get(self);
        flow.sweep_slot = acknowledgment;
        self.set(flow);
    }

    fn note_reached(self, reached: Reached) {
        let mut flow = Cell::get(self);
        assert_eq!(flow.direction(), Direction::Reply, "the sweeper would lose the flow");
        flow.sweep_slot = reached.0;
        self.set(flow);
    }
}

impl<A: MemoryAddress> Tables<A> for Memory<A> {
    type Entry = &'static Cell<Flow<A>>;
    type Draft = Box<Draft<A>>;

    fn generation(&self) -> u32 {
        self.settings.generation
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn now(&self) -> Ticks {
        self.now.get()
    }

    fn random(&self) -> u32 {
        if let Some(scripted) = self.randoms.borrow_mut().pop() {
            return scripted;
        }
        // A linear congruential generator; its high bits are the random ones.
        self.seed.set(self.seed.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.seed.get().rotate_left(16)
    }

    fn established(&self, key: &FlowKey<A>) -> Option<Self::Entry> {
        self.established.borrow().get(key).copied()
    }

    fn embryonic(&self, key: &FlowKey<A>) -> Option<Self::Entry> {
        self.embryonic.borrow().get(key).copied()
    }

    fn may_be_new(&self, key: &FlowKey<A>) -> bool {
        self.embryonic(key).is_some()
    }

    fn embryonic_or_room(&self, key: &FlowKey<A>) -> Result<Self::Entry, Room> {
        self.embryonic(key).ok_or(Room::UNKNOWN)
    }

    fn fetch(&self, _room: Room) {}

    fn insert_in_room(&self, key: &FlowKey<A>, flow: &Flow<A>, _room: Room) -> Result<(), NotInserted> {
        let other_cpu = self.other_cpu.take();
        match other_cpu {
            Some((0, act)) => act(self),
            Some((left, act)) => *self.other_cpu.borrow_mut() = Some((left - 1, act)),
            None => {}
        }
        let mut entries = self.embryonic.borrow_mut();
        if entries.contains_key(key) {
            return Err(NotInserted::Taken);
        }
        if entries.len() >= self.embryonic_capacity.get() {
            return Err(NotInserted::Refused);
        }
        entries.insert(*key, entry(flow));
        Ok(())
    }

    fn remove_embryonic(&self, key: &FlowKey<A>) {
        self.embryonic.borrow_mut().remove(key);
    }

    fn protect(&self, forward: (&FlowKey<A>, &mut Flow<A>), reply: (&FlowKey<A>, &Flow<A>)) -> Result<(), NotInserted> {
        assert_eq!((forward.1.direction(), reply.1.direction()), (Direction::Forward, Direction::Reply));
        let mut entries = self.established.borrow_mut();
        if entries.contains_key(forward.0) || entries.contains_key(reply.0) {
            return Err(NotInserted::Taken);
        }
        if entries.len() + 2 > self.established_capacity.get() {
            return Err(NotInserted::Refused);
        }
        let mut sweep = self.sweep.borrow_mut();
        let slot = (1..u32::MAX).find(|slot| !sweep.contains_key(slot)).unwrap();
        sweep.insert(slot, [*forward.0, *reply.0]);
        forward.1.sweep_slot = slot;
        for (key, flow) in [(forward.0, &*forward.1), reply] {
            entries.insert(*key, entry(flow));
        }
        Ok(())
    }

    fn remove_established(&self, forward: &FlowKey<A>, reply: &FlowKey<A>, sweep_slot: u32) {
        let pair = self.sweep.borrow_mut().remove(&sweep_slot);
        let mut keys = [*forward, *reply];
        let mut listed = pair.unwrap();
        keys.sort();
        listed.sort();
        assert_eq!(keys, listed, "the sweeper's slot belongs to another flow");
        self.established.borrow_mut().retain(|key, _| !keys.contains(key));
    }

    fn endpoint(&self, endpoint: &Endpoint<A>) -> Option<RuleRef> {
        self.endpoints.get(endpoint).copied()
    }

    fn range(&self, key: &RangeKey<A>) -> Option<RuleRef> {
        let wanted = bits(key);
        let matching = self.ranges.iter().filter(|(range, _)| {
            let significant = usize::try_from(range.prefix_len).unwrap();
            // As in the kernel, a key finds nothing that says more than itself.
            range.prefix_len <= key.prefix_len && bits(range).iter().zip(&wanted).take(significant).all(|(a, b)| a == b)
        });
        matching.max_by_key(|(range, _)| range.prefix_len).map(|(_, reference)| *reference)
    }

    fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    fn rule(&self, slot: u32) -> Option<&Rule<A>> {
        self.rules.get(&slot)
    }

    fn allows(&self, list: u32, client: A) -> bool {
        self.allowed.contains(&(list, client))
    }

    fn datagram(&self, key: &DatagramKey<A>) -> Option<Datagram<A>> {
        self.datagrams.borrow().get(key).copied()
    }

    fn note_datagram(&self, key: &DatagramKey<A>, datagram: &Datagram<A>) {
        self.datagrams.borrow_mut().insert(*key, *datagram);
    }

    fn hold(&self, key: &DatagramKey<A>, packet: &impl Packet, network: usize, length: u32) -> bool {
        let end = network + usize::try_from(length).unwrap();
        let bytes = (network..end).map(|offset| packet.read::<1>(offset).unwrap()[0]).collect();
        let other_cpu = self.while_holding.take();
        if let Some(act) = other_cpu {
            act(self);
        }
        let mut held = self.held.borrow_mut();
        if held.len() >= self.held_capacity.get() {
            held.remove(0);
        }
        held.push((*key, bytes));
        true
    }

    fn holds(&self, key: &DatagramKey<A>) -> bool {
        self.held.borrow().iter().any(|(of, _)| of == key)
    }

    fn repeat<R: Repeated>(&self, times: u32, state: &mut R) {
        (0..times).any(|attempt| state.step(attempt) == Repeat::Done);
    }

    fn socket_connected(&self, arriving: &FlowKey<A>) -> bool {
        self.connected.contains(arriving)
    }

    fn socket_takes(&self, arriving: &FlowKey<A>) -> bool {
        self.sockets.contains(&(arriving.protocol, arriving.dst, arriving.dst_port))
    }

    fn known_next_hop(&self, ends: &Ends<A>) -> Hop {
        let hop = self.next_hop(ends);
        if hop.flags & next_hop_flags::CONFIRM == 0 { hop } else { Hop::NONE }
    }

    fn next_hop(&self, ends: &Ends<A>) -> Hop {
        let routed = self.hops.get(&ends.dst).copied().unwrap_or(self.default_hop);
        let line = steer::line(self, &ends.src, &ends.dst, ends.kind);
        let Some(rule) = self.rules.get(&line) else { return routed };
        if rule.allow == 0 {
            return Hop { state: NextHopState::Unreachable, line, ..Hop::NONE };
        }
        let to = if rule.to == A::default() { ends.dst } else { rule.to };
        let hop = self.hops.get(&to).copied().unwrap_or(HOP);
        Hop { interface: rule.allow, line, ..hop }
    }

    fn way(&self, ends: &Ends<A>) -> Way {
        let Hop { state, interface, .. } = self.next_hop(ends);
        Way { state, interface }
    }

    fn ingress(&self) -> u32 {
        self.ingress.get()
    }

    fn mtu(&self, src: A, dst: A) -> u32 {
        let hop = self.next_hop(&Ends { src, dst, kind: 0 });
        if hop.interface == 0 { u32::MAX } else { hop.mtu }
    }

    fn keep_answerer(&self, answerer: A) {
        self.answerer.set(Some(answerer));
    }

    fn answerer(&self) -> Option<A> {
        self.answerer.get()
    }

    fn may_answer(&self, about: About) -> bool {
        let mut budgets = self.budgets.get();
        let may = budgets[about as usize].take(self.now.get(), about);
        self.budgets.set(budgets);
        may
    }

    fn keep(&self, parsed: Parsed<A>) {
        self.parsed.set(Some(Box::leak(Box::new(parsed))));
    }

    fn kept(&self) -> Option<&Parsed<A>> {
        self.parsed.get()
    }

    /// Memory with remains of another flow in it.
    fn draft(&self) -> Option<Self::Draft> {
        let flow =
            Flow { counter: 999, state: 9, flags: 9, mss: 9, sweep_slot: 9, packets: 99, bytes: 99, ..Flow::default() };
        let answer = Parsed {
            key: FlowKey::default(),
            transport: Transport::Other,
            tcp: TcpFields { flags: 9, sequence: 9, acknowledgment: 9 },
            transport_offset: 9,
            hop_limit: 9,
            length: 9,
            is_first_fragment: true,
            identification: 9,
        };
        let embedded = Embedded { answer, outer: flow.rewrite };
        let decision = Decision::of_flow(&flow);
        Some(Box::new(Draft {
            at: At::Tc,
            room: Room::UNKNOWN,
            reply_room: Room::UNKNOWN,
            flow,
            peer: flow,
            peer_key: FlowKey::default(),
            decision,
            embedded,
            fragment: Fragment::default(),
            outgoing: super::Outgoing::default(),
        }))
    }

    fn count_forwarded(&self, counter: u32, direction: Direction, bytes: u32) {
        let mut by_rule = self.counted.borrow_mut();
        let of_rule = by_rule.entry(counter).or_default();
        let traffic = match direction {
            Direction::Forward => &mut of_rule.forward,
            Direction::Reply => &mut of_rule.reply,
        };
        traffic.packets += 1;
        traffic.bytes += u64::from(bytes);
    }

    fn count(&self, counter: u32, event: Event) {
        self.counted.borrow_mut().entry(counter).or_default().events.push(event);
    }
}

/// What a longest-prefix-match key compares, bit by bit, as the kernel does.
fn bits<A: MemoryAddress>(key: &RangeKey<A>) -> Vec<bool> {
    let mut bytes = vec![];
    bytes.extend(key.side.to_ne_bytes());
    bytes.extend(bytemuck::bytes_of(&key.address));
    bytes.extend(key.protocol.to_ne_bytes());
    bytes.extend(key.port.to_ne_bytes());
    bytes.into_iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
}
