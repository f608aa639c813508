//! A machine with rules, for tests of both hooks: packets go in by their meaning, and what must come out is said
//! the same way. Every packet is checked byte by byte and by the counters it must and must not move.
#![allow(clippy::indexing_slicing, clippy::panic, reason = "a panic in a test's own tools is a failed test")]

use core::{marker::PhantomData, net::IpAddr};
use std::{collections::VecDeque, net::SocketAddr, vec::Vec};

use crate::{
    abi::{Direction, Endpoint, Flow, FlowKey, RangeKey, Rule, RuleRef, Side, rule_flags, setting_flags},
    address::{V4, V6},
    checksum::Delta,
    cut::Cut,
    fast,
    flow_state::FlowState,
    icmp_error::Embeds,
    mss,
    parse::{Ipv4, Ipv6},
    steps,
    tables::{
        At,
        memory::{Memory, MemoryAddress},
    },
    test_packet::{Body, NETWORK, TestPacket},
    verdict::{Kind, Outcome, Verdict},
    wire::{ethernet, ipv4},
};

/// A family, and the addresses that tests use of it.
pub(crate) trait TestFamily: Embeds<Address: MemoryAddress> {
    const CLIENT: IpAddr;
    const OTHER_CLIENT: IpAddr;
    const LISTEN: IpAddr;
    const OTHER_LISTEN: IpAddr;
    const OURS: IpAddr;
    const BACKEND: IpAddr;

    fn address(ip: IpAddr) -> Self::Address;
}

const fn v4(ip: [u8; 4]) -> IpAddr {
    IpAddr::V4(core::net::Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]))
}

const fn v6(prefix: u16, host: u16) -> IpAddr {
    IpAddr::V6(core::net::Ipv6Addr::new(0x2001, 0xdb8, prefix, 0xffff, 0, 0x8000, 0, host))
}

impl TestFamily for Ipv4 {
    const CLIENT: IpAddr = v4([198, 51, 100, 10]);
    const OTHER_CLIENT: IpAddr = v4([198, 51, 100, 11]);
    const LISTEN: IpAddr = v4([203, 0, 113, 7]);
    const OTHER_LISTEN: IpAddr = v4([203, 0, 113, 8]);
    const OURS: IpAddr = v4([10, 8, 0, 1]);
    const BACKEND: IpAddr = v4([10, 8, 0, 2]);

    fn address(ip: IpAddr) -> V4 {
        match ip {
            IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
            IpAddr::V6(_) => panic!("{ip} is not IPv4"),
        }
    }
}

impl TestFamily for Ipv6 {
    const CLIENT: IpAddr = v6(1, 0x10);
    const OTHER_CLIENT: IpAddr = v6(1, 0x11);
    const LISTEN: IpAddr = v6(2, 7);
    const OTHER_LISTEN: IpAddr = v6(2, 8);
    const OURS: IpAddr = v6(3, 1);
    const BACKEND: IpAddr = v6(3, 2);

    fn address(ip: IpAddr) -> V6 {
        let IpAddr::V6(ip) = ip else { panic!("{ip} is not IPv6") };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }
}

/// Runs a generic test function for both families.
macro_rules! both_families {
    ($($name:ident),* $(,)?) => {
        mod ipv4 {
            $(#[test] fn $name() { super::$name::<crate::parse::Ipv4>(); })*
        }
        mod ipv6 {
            $(#[test] fn $name() { super::$name::<crate::parse::Ipv6>(); })*
        }
    };
}
pub(crate) use both_families;

/// The address with the bit flipped that so many bits come after.
pub(crate) fn flipped(address: IpAddr, bit: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) ^ (1 << bit)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) ^ (1 << bit)).into()),
    }
}

/// An address near this one that a one-to-one rule can map: the usual IPv6 addresses are in subnet ffff, which has no
/// counterpart.
pub(crate) fn mappable(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { address } else { flipped(address, 64) }
}

/// What [`TestFamily::address`] was made from.
pub(crate) fn ip<F: TestFamily>(address: F::Address) -> IpAddr {
    let bytes = bytemuck::bytes_of(&address);
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
    }
}

/// The address with nothing but its first `bits` left.
pub(crate) fn network(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into()),
    }
}

/// Ones in the first `bits`.
pub(crate) fn mask<F: TestFamily>(bits: u32) -> F::Address {
    F::address(match F::CLIENT {
        IpAddr::V4(_) => network(IpAddr::V4(u32::MAX.into()), bits),
        IpAddr::V6(_) => network(IpAddr::V6(u128::MAX.into()), bits),
    })
}

/// Which hook a packet comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    /// XDP, with the program that begins flows.
    XdpBegins,
    Tc,
}

/// What the backend sees as the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The client, no flow kept.
    Preserved,
    /// The client, with a flow: several listens onto one backend, say.
    PreservedByFlow,
    /// An address of ours: masquerade or fixed.
    Address(IpAddr),
}

/// Tables with rules in them.
pub(crate) struct World<F: TestFamily> {
    pub(crate) tables: Memory<F::Address>,
    family: PhantomData<F>,
}

/// A packet and what became of it.
pub(crate) type Processed = (Verdict, Vec<u8>);

impl<F: TestFamily> World<F> {
    pub(crate) fn new() -> Self {
        Self { tables: Memory::default(), family: PhantomData }
    }

    /// The usual world: one listen, port 80, to the backend's port 8080.
    pub(crate) fn with_rule(source: Source) -> Self {
        let mut world = Self::new();
        world.forward(SocketAddr::new(F::LISTEN, 80), SocketAddr::new(F::BACKEND, 8080), source);
        world
    }

    fn rule(&mut self, listen: SocketAddr, to: SocketAddr, source: Source) -> u32 {
        let slot = u32::try_from(self.tables.rules.len()).unwrap_or(0) + 1;
        let (flags, ours) = match source {
            Source::Preserved => (rule_flags::STATELESS, F::Address::default()),
            Source::PreservedByFlow => (0, F::Address::default()),
            Source::Address(ours) => (rule_flags::REWRITE_SOURCE, F::address(ours)),
        };
        let rule = Rule {
            listen: F::address(listen.ip()),
            to: F::address(to.ip()),
            source: ours,
            to_delta: Delta::address(F::address(listen.ip()), F::address(to.ip())).0,
            port_shift: to.port().wrapping_sub(listen.port()),
            flags,
            mss: mss::BY_MTU,
            // Not the slot, so that a test sees when the wrong one is counted.
            counter: slot + 100,
            allow: 0,
            mask: F::Address::default(),
        };
        self.tables.rules.insert(slot, rule);
        // As the loader does: where this rule's packets come from and go to.
        let seen = if source == Source::Preserved || source == Source::PreservedByFlow { rule.to } else { rule.source };
        for address in [rule.listen, seen] {
            let exact = RangeKey::exact(Endpoint { address, port: 0, protocol: 0, side: Side::Fragment as u8 });
            let key = RangeKey { prefix_len: exact.prefix_len - RangeKey::<F::Address>::TAIL_BITS, ..exact };
            self.tables.ranges.insert(key, RuleRef::settled(slot));
        }
        slot
    }

    /// An exact port of TCP and UDP; returns the rule's slot.
    pub(crate) fn forward(&mut self, listen: SocketAddr, to: SocketAddr, source: Source) -> u32 {
        let slot = self.rule(listen, to, source);
        for protocol in [6, 17] {
            let mut name = |end: SocketAddr, side| {
                let (address, port) = (F::address(end.ip()), end.port().to_be());
                let endpoint = Endpoint { address, port, protocol, side: side as u8 };
                self.tables.endpoints.insert(endpoint, RuleRef::settled(slot));
            };
            name(listen, Side::Listen);
            if source == Source::Preserved {
                name(to, Side::Backend);
            }
        }
        slot
    }

    /// An aligned block of 2^`bits` ports of one protocol, starting at the given ones.
    pub(crate) fn forward_block(
        &mut self,
        (listen, to): (SocketAddr, SocketAddr),
        (protocol, bits): (u8, u32),
        source: Source,
    ) -> u32 {
        let slot = self.rule(listen, to, source);
        let mut name = |end: SocketAddr, side| {
            let port = end.port().to_be();
            let exact = RangeKey::exact(Endpoint { address: F::address(end.ip()), port, protocol, side: side as u8 });
            let key = RangeKey { prefix_len: exact.prefix_len - bits, ..exact };
            self.tables.ranges.insert(key, RuleRef::settled(slot));
        };
        name(listen, Side::Listen);
        if source == Source::Preserved {
            name(to, Side::Backend);
        }
        slot
    }

    /// A whole address: every port of every protocol.
    pub(crate) fn forward_address(&mut self, listen: IpAddr, to: IpAddr, source: Source) -> u32 {
        let ends = (SocketAddr::new(listen, 0), SocketAddr::new(to, 0));
        let slot = self.forward_block(ends, (0, RangeKey::<F::Address>::TAIL_BITS), source);
        if let Some(rule) = self.tables.rules.get_mut(&slot) {
            rule.flags |= rule_flags::SPARES_SOCKETS;
        }
        slot
    }

    /// One to one: the prefixes of so many bits around two addresses; returns the rule's slot.
    pub(crate) fn forward_prefix(&mut self, listen: IpAddr, to: IpAddr, bits: u32) -> u32 {
        let [listen, to] = [listen, to].map(|address| network(address, bits));
        let slot = self.rule(SocketAddr::new(listen, 0), SocketAddr::new(to, 0), Source::Preserved);
        let (listen, to) = (F::address(listen), F::address(to));
        if let Some(rule) = self.tables.rules.get_mut(&slot) {
            rule.flags |= rule_flags::PREFIX;
            rule.mask = mask::<F>(bits);
        }
        for (address, side) in [(listen, Side::Listen), (to, Side::Backend)] {
            for side in [side, Side::Fragment] {
                let key = RangeKey { prefix_len: 32 + bits, side: side as u32, address, protocol: 0, port: 0 };
                self.tables.ranges.insert(key, RuleRef::settled(slot));
            }
        }
        slot
    }

    /// The hosts of `from`'s first `bits` bits go out by `interface` with the address `ours`; `filtering` is of
    /// [`rule_flags`]. Returns the rule's slot.
    pub(crate) fn masquerade(&mut self, from: IpAddr, bits: u32, interface: u32, ours: IpAddr, filtering: u16) -> u32 {
        let slot = u32::try_from(self.tables.rules.len()).unwrap_or(0) + 1;
        let rule = Rule { source: F::address(ours), flags: filtering, counter: slot + 100, ..Rule::default() };
        self.tables.rules.insert(slot, rule);
        self.tables.settings.flags |= setting_flags::MASQUERADE;
        for interface in [interface, 0] {
            let inside = RangeKey::inside(interface, F::address(from));
            let key = RangeKey { prefix_len: RangeKey::<F::Address>::SIDE_BITS + bits, ..inside };
            self.tables.ranges.entry(key).or_insert(RuleRef::settled(slot));
        }
        for (address, bits) in [(from, bits), (ours, if ours.is_ipv4() { 32 } else { 128 })] {
            let endpoint = Endpoint { address: F::address(address), port: 0, protocol: 0, side: Side::Fragment as u8 };
            let exact = RangeKey::exact(endpoint);
            let key = RangeKey { prefix_len: RangeKey::<F::Address>::SIDE_BITS + bits, ..exact };
            self.tables.ranges.entry(key).or_insert(RuleRef::settled(slot));
        }
        slot
    }

    /// What comes from `from`'s first `bits` bits leaves by the line that begins at `interface` and ends at `router`; only
    /// packets of this kind ([`crate::steer::kind`]) if it is not 0. Returns the rule's slot.
    pub(crate) fn steer(
        &mut self,
        (from, bits): (IpAddr, u32),
        kind: u32,
        interface: u32,
        router: Option<IpAddr>,
    ) -> u32 {
        let slot = u32::try_from(self.tables.rules.len()).unwrap_or(0) + 1;
        let rule = Rule {
            to: router.map(F::address).unwrap_or_default(),
            mask: mask::<F>(bits),
            flags: rule_flags::LINE,
            allow: interface,
            mss: mss::BY_MTU,
            counter: slot + 100,
            ..Rule::default()
        };
        self.tables.rules.insert(slot, rule);
        self.tables.settings.flags |= setting_flags::STEER;
        if kind != 0 {
            self.tables.settings.flags |= setting_flags::STEER_BY_KIND;
        }
        let key = RangeKey::steered(kind, F::address(network(from, bits)));
        let key = RangeKey { prefix_len: RangeKey::<F::Address>::SIDE_BITS + bits, ..key };
        self.tables.ranges.insert(key, RuleRef::settled(slot));
        slot
    }

    /// This prefix is connected directly.
    pub(crate) fn connected(&mut self, address: IpAddr, bits: u32) {
        let key = RangeKey::on_link(F::address(network(address, bits)));
        let key = RangeKey { prefix_len: RangeKey::<F::Address>::SIDE_BITS + bits, ..key };
        self.tables.ranges.insert(key, RuleRef::settled(1));
    }

    /// The key under which a packet is looked up.
    pub(crate) fn key(packet: &TestPacket) -> FlowKey<F::Address> {
        let (src_port, dst_port) = match packet.body {
            Body::EchoRequest => (packet.src.port(), 0),
            Body::EchoReply => (0, packet.dst.port()),
            Body::Tcp(_) | Body::Udp | Body::UdpUnsummed | Body::Sctp | Body::Dccp => {
                (packet.src.port(), packet.dst.port())
            }
            Body::Icmp(_) | Body::IcmpError(..) | Body::Other(_) => (0, 0),
        };
        FlowKey {
            src: F::address(packet.src.ip()),
            dst: F::address(packet.dst.ip()),
            src_port: src_port.to_be(),
            dst_port: dst_port.to_be(),
            protocol: packet.protocol().into(),
        }
    }

    /// The flow entry that a packet would find.
    pub(crate) fn flow(&self, packet: &TestPacket) -> Option<Flow<F::Address>> {
        self.tables.flow(&Self::key(packet))
    }

    /// The state of the flow that a packet belongs to; both halves must agree where both are there.
    pub(crate) fn state(&self, packet: &TestPacket) -> Option<FlowState> {
        let flow = self.flow(packet)?;
        if let Some(peer) = self.tables.flow(&flow.peer_key(packet.protocol().into())) {
            assert_eq!(peer.state, flow.state, "the halves are in different states");
        }
        Some(FlowState::from_number(flow.state))
    }

    /// How many entries the protected table and the table of new flows hold.
    pub(crate) fn entries(&self) -> (usize, usize) {
        (self.tables.established.borrow().len(), self.tables.embryonic.borrow().len())
    }

    pub(crate) fn process_bytes(&self, hook: Hook, mut frame: Vec<u8>) -> Processed {
        let mut packet = frame.as_mut_slice();
        let verdict = match hook {
            Hook::Xdp => fast::process::<F, _>(&mut packet, &self.tables, NETWORK, At::Xdp).verdict,
            Hook::XdpBegins => steps::xdp::<F, _>(&mut packet, &self.tables, NETWORK),
            Hook::Tc => steps::tc::<F, _>(&mut packet, &self.tables, NETWORK),
        };
        self.tables.check_protected_pairs();
        (verdict, frame)
    }

    /// A frame at TC, and what is handed in again: what became of each in the end, in this order.
    pub(crate) fn arrives(&self, frame: Vec<u8>) -> Vec<Processed> {
        let mut waiting = VecDeque::from([frame]);
        let mut done = Vec::new();
        while let Some(frame) = waiting.pop_front() {
            let (verdict, bytes) = self.process_bytes(Hook::Tc, frame);
            // As in forwarder-ebpf's cut.rs.
            if verdict.outcome == Outcome::DropTooBig
                && F::ETHERTYPE == ethernet::IPV4
                && let Some(cut) = Cut::of(&bytes.clone().as_mut_slice(), NETWORK, verdict.hop.mtu)
            {
                for piece in (0..).map_while(|number| cut.piece(number)) {
                    let carried = &bytes[NETWORK + ipv4::LEN..][piece.start as usize..][..piece.length as usize];
                    waiting.push_back([&bytes[..NETWORK], &piece.header, carried].concat());
                }
                continue;
            }
            if verdict.outcome.kind() != Kind::Hold {
                done.push((verdict, bytes));
                continue;
            }
            if verdict.outcome == Outcome::HeldToFollow {
                // As in forwarder-ebpf's held.rs.
                let packet = bytes.clone();
                let fragment = F::fragment(&packet.clone().as_mut_slice(), NETWORK).unwrap_or_default();
                if fragment.offset == 0 {
                    waiting.push_back(packet.clone());
                }
                let mut held = self.tables.held.borrow_mut();
                for (_, ip) in held.extract_if(.., |(of, _)| *of == fragment.datagram) {
                    waiting.push_back([&packet[..NETWORK], &ip].concat());
                }
            }
        }
        done
    }

    fn traffic(&self) -> [u64; 4] {
        let mut sum = [0; 4];
        for counted in self.tables.counted.borrow().values() {
            let each = [counted.forward.packets, counted.forward.bytes, counted.reply.packets, counted.reply.bytes];
            sum.iter_mut().zip(each).for_each(|(sum, each)| *sum += each);
        }
        sum
    }

    /// The packet is forwarded as `expected`, and counted so.
    #[track_caller]
    pub(crate) fn forwards(&self, hook: Hook, packet: &TestPacket, direction: Direction, expected: &TestPacket) {
        let [forward, forward_bytes, reply, reply_bytes] = self.traffic();
        let (verdict, bytes) = self.process_bytes(hook, packet.frame());
        assert!(verdict.outcome.kind() == Kind::Forward, "{verdict:?} of {packet:?}");
        assert_eq!(bytes, expected.frame(), "{packet:?}\nshould have become {expected:?}");
        let length = u64::from(packet.length());
        let counted = match direction {
            Direction::Forward => [forward + 1, forward_bytes + length, reply, reply_bytes],
            Direction::Reply => [forward, forward_bytes, reply + 1, reply_bytes + length],
        };
        assert_eq!(self.traffic(), counted, "packets and bytes counted after {packet:?}");
    }

    /// At TC the packet is forwarded between these ends, from client to backend.
    #[track_caller]
    pub(crate) fn out(&self, packet: &TestPacket, src: SocketAddr, dst: SocketAddr) {
        self.forwards(Hook::Tc, packet, Direction::Forward, &packet.forwarded(src, dst));
    }

    /// At TC the packet is forwarded between these ends, from backend to client.
    #[track_caller]
    pub(crate) fn back(&self, packet: &TestPacket, src: SocketAddr, dst: SocketAddr) {
        self.forwards(Hook::Tc, packet, Direction::Reply, &packet.forwarded(src, dst));
    }

    /// The packet is passed or dropped for this reason, and not one byte of it nor of the traffic counters changes.
    #[track_caller]
    pub(crate) fn leaves(&self, hook: Hook, packet: &TestPacket, outcome: Outcome) {
        let before = self.traffic();
        let (verdict, bytes) = self.process_bytes(hook, packet.frame());
        assert_eq!(verdict.outcome, outcome, "{packet:?}");
        assert!(verdict.outcome.kind() != Kind::Forward, "{packet:?}");
        assert_eq!(bytes, packet.frame(), "{packet:?} was changed");
        assert_eq!(self.traffic(), before, "{packet:?} was counted as forwarded");
    }
}
