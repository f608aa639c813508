//! The same random packets through the loaded programs and through the core on tables in memory that hold the same: outcome,
//! bytes, way out and flows have to be alike.
//!
//! `FORWARDER_DIFFERENTIAL_PACKETS` and `FORWARDER_DIFFERENTIAL_SEED` make it longer or another one; `cargo xtask fuzz
//! differential` does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use forwarder::bpf::object::BPF_OBJECT;
use forwarder::reconcile::RunningTables;
use forwarder_common::abi::{Flow, FlowKey, Layout, NextHopState, Slotted, next_hop_flags};
use forwarder_common::address::{V4, V6};
use forwarder_common::icmp_error::Embeds;
use forwarder_common::parse::{Ipv4, Ipv6};
use forwarder_common::steps;
use forwarder_common::tables::Hop;
use forwarder_common::tables::memory::{Memory, MemoryAddress};
use forwarder_common::verdict::{Kind, Outcome, Verdict};
use forwarder_lab::Family;

use crate::fixture::warm_up;
use crate::patched::{Patched, helper};
use crate::plan::{self, OWN, STATIONS};
use crate::test_packet::{Body, NETWORK, TestPacket, flags, icmp_error, pieces};
use crate::world::{Hook, LOCAL_PORTS, World, with_object};

const RULES: &str = include_str!("../fixtures/rules.toml");

/// How many packets, if nothing else is said.
const PACKETS: u64 = 6_000;
/// The most flows that are begun in one instance: neither side pushes any out.
const FLOWS: u32 = 4_096;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// An address that both sides know by name.
trait Named: MemoryAddress {
    fn of(ip: IpAddr) -> Self;
}

impl Named for V4 {
    fn of(ip: IpAddr) -> Self {
        let IpAddr::V4(ip) = ip else { panic!("{ip} is not IPv4") };
        Self::from_ne_bytes(ip.octets())
    }
}

impl Named for V6 {
    fn of(ip: IpAddr) -> Self {
        let IpAddr::V6(ip) = ip else { panic!("{ip} is not IPv6") };
        std::array::from_fn(|word| u32::from_ne_bytes(ip.octets()[4 * word..][..4].try_into().unwrap()))
    }
}

/// The names that packets are from and to.
const NAMES: [&str; 12] = [
    "client",
    "client",
    "client_2",
    "public",
    "public",
    "public_2",
    "backend",
    "backend_2",
    "narrow",
    "inner",
    "stranger",
    "prohibited",
];

/// Tables in memory with what the maps hold, and the routes of the plan.
fn memory<A: Named>(world: &World, running: RunningTables<A>, family: Family) -> Memory<A> {
    let mut memory = Memory::<A>::default();
    memory.settings = world.tables.settings().unwrap();
    memory.endpoints = running.endpoints;
    memory.ranges = running.ranges;
    memory.rules = running.rules;
    // Allow lists of the fixtures name single clients.
    memory.allowed = running.allow.iter().map(|key| (key.list, key.address)).collect();
    memory.embryonic_capacity.set(usize::MAX);
    memory.established_capacity.set(usize::MAX);
    memory.held_capacity.set(usize::MAX);
    memory.ingress.set(world.index(plan::Side::Clients));
    // Of what has no route at all, bpf_fib_lookup says no more than that it is not to be forwarded.
    memory.default_hop = Hop { state: NextHopState::Local, ..Hop::NONE };
    let mut way = |name: &str, hop: Hop| memory.hops.insert(A::of(plan::ip(family, name)), hop);
    for name in STATIONS.into_iter().chain(["narrow"]) {
        let address = plan::ip(family, name);
        let side = plan::side_of(address);
        let mtu = if name == "narrow" { plan::NARROW_MTU as u32 } else { 1500 };
        let mut link_addresses = [0; 12];
        link_addresses[..6].copy_from_slice(&plan::station(address));
        link_addresses[6..].copy_from_slice(&world.mac_of(side));
        let interface = world.index(side);
        let state = NextHopState::Resolved;
        way(name, Hop { state, flags: next_hop_flags::XDP_OUT, interface, line: 0, mtu, link_addresses });
    }
    for (side, name) in OWN {
        way(name, Hop { state: NextHopState::Local, interface: world.index(side), mtu: 1500, ..Hop::NONE });
    }
    for name in ["silent", "public_2"] {
        let interface = world.index(plan::side_of(plan::ip(family, name)));
        way(name, Hop { state: NextHopState::Unresolved, interface, mtu: 1500, ..Hop::NONE });
    }
    way("prohibited", Hop { state: NextHopState::Prohibited, ..Hop::NONE });
    memory
}

/// What the core makes of a frame for this station.
fn core<F: Embeds<Address: Named>>(memory: &Memory<F::Address>, hook: Hook, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut bytes = frame.to_vec();
    let mut packet = bytes.as_mut_slice();
    let verdict = match hook {
        Hook::Xdp => steps::xdp::<F, _>(&mut packet, memory, NETWORK),
        Hook::Tc => steps::tc::<F, _>(&mut packet, memory, NETWORK),
    };
    // The pieces that waited are handed in; those of the test run end up nowhere.
    if verdict.outcome == Outcome::HeldToFollow
        && let Ok(first) = F::walk(&bytes.as_mut_slice(), NETWORK)
    {
        let datagram = F::datagram(&first);
        memory.held.borrow_mut().retain(|(of, _)| *of != datagram);
    }
    (verdict, bytes)
}

/// The outcome of a packet whose sender the program has told of it.
const fn unanswered(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::AnsweredTtl => Outcome::DropTtl,
        Outcome::AnsweredNoRoute => Outcome::DropNoRoute,
        Outcome::AnsweredTooBig | Outcome::HeldToCut => Outcome::DropTooBig,
        other => other,
    }
}

/// One family's packets, and what has become of them so far.
struct Run {
    family: Family,
    random: fastrand::Rng,
    /// The frames that left, for answers and errors.
    left: Vec<Vec<u8>>,
    seen: BTreeMap<(u32, Outcome), u64>,
    /// How often the program let the kernel confirm a neighbour, which the core has confirmed already.
    confirmed: u32,
    /// How many flows XDP began.
    begun: usize,
}

impl Run {
    fn port(&mut self) -> u16 {
        let known = [9, 80, 81, 90, 91, 92, 94, 95, 8443, 443, 2050, 3005, 13_005, 9090, 0, 65_535];
        match self.random.u8(..8) {
            0 | 1 => 61_000 + self.random.u16(..40),
            2 => self.random.u16(..),
            _ => known[self.random.usize(..known.len())],
        }
    }

    fn end(&mut self) -> SocketAddr {
        let name = NAMES[self.random.usize(..NAMES.len())];
        plan::end(self.family, name, self.port())
    }

    fn body(&mut self) -> Body {
        let tcp = [flags::SYN, flags::ACK, flags::ACK, flags::SYN_ACK, flags::FIN_ACK, flags::RST, self.random.u8(..)];
        match self.random.u8(..16) {
            0..6 => Body::Tcp(tcp[self.random.usize(..tcp.len())]),
            6..10 => Body::Udp,
            10 => Body::UdpUnsummed,
            11 => Body::EchoRequest,
            12 => Body::EchoReply,
            13 => Body::Sctp,
            14 => Body::Icmp(self.random.u8(..)),
            _ => Body::Other([33, 41, 47, 50, 51, 136][self.random.usize(..6)]),
        }
    }

    fn packet(&mut self) -> TestPacket {
        let (src, dst, body) = (self.end(), self.end(), self.body());
        let random = &mut self.random;
        TestPacket::new(src, dst, body).with(|packet| {
            packet.hop_limit = if random.u8(..8) == 0 { random.u8(..3) } else { 64 };
            let most = [40, 200, 1_272, 1_450][random.usize(..4)];
            packet.payload = vec![0; random.usize(..most)];
            random.fill(&mut packet.payload);
            match random.u8(..16) {
                0 if packet.src.is_ipv4() => packet.options = vec![1; 4 * random.usize(1..4)],
                0 => packet.extensions = vec![(60, vec![0; 6]), (0, vec![1; 14])],
                1 => packet.trailer = vec![0xee; random.usize(..9)],
                2 => packet.tcp_options = vec![2, 4, 5, 0xb4, 1, 1, 1, 0],
                3 => packet.tcp_options = vec![1, 1, 2, 4, 0xff, 0xff, 1, 1],
                4 | 5 if packet.src.is_ipv4() => packet.fragment = 0x4000,
                _ => {}
            }
        })
    }

    /// What answers a frame that left.
    fn answer(&mut self, frame: &[u8]) -> Option<TestPacket> {
        let (src, dst, protocol) = ends(frame)?;
        let body = match protocol {
            6 => {
                Body::Tcp([flags::SYN_ACK, flags::ACK, flags::ACK, flags::FIN_ACK, flags::RST][self.random.usize(..5)])
            }
            17 => Body::Udp,
            1 | 58 => Body::EchoReply,
            132 => Body::Sctp,
            other => Body::Other(other),
        };
        Some(TestPacket::new(dst, src, body))
    }

    /// An error about a frame that left, or nearly.
    fn error(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (src, dst, _) = ends(frame)?;
        let random = &mut self.random;
        let kinds: [u8; 4] = if self.family == Family::V4 { [3, 11, 12, 5] } else { [1, 2, 3, 4] };
        let kind = if random.u8(..8) == 0 { random.u8(..) } else { kinds[random.usize(..4)] };
        let mut quoted = frame[NETWORK..].to_vec();
        quoted.truncate(random.usize(20..quoted.len().clamp(21, 600)));
        if random.u8(..4) == 0 {
            let at = random.usize(..quoted.len());
            quoted[at] = random.u8(..);
        }
        Some(icmp_error(dst.ip(), src.ip(), (kind, random.u8(..4), random.u32(..)), &quoted, 0))
    }

    /// The frames that come next: one, or the pieces of a datagram.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let last = (!self.left.is_empty()).then(|| self.left[self.random.usize(..self.left.len())].clone());
        let kind = self.random.u8(..16);
        let answer = match (kind, &last) {
            (0..5, Some(frame)) => self.answer(frame).map(|packet| vec![packet.frame()]),
            (5 | 6, Some(frame)) => self.error(frame).map(|frame| vec![frame]),
            _ => None,
        };
        let mut frames = answer.unwrap_or_else(|| {
            let packet = self.packet();
            if kind == 15 && packet.options.is_empty() && packet.extensions.is_empty() && packet.transport_length() > 8
            {
                let packet = packet.with(|packet| (packet.fragment, packet.trailer) = (0, vec![]));
                let size = 8 * self.random.usize(1..20);
                let mut pieces = pieces(packet.transport_length(), size);
                // The rings for those that wait differ from the memory's.
                pieces.truncate(6);
                if self.random.bool() {
                    self.random.shuffle(&mut pieces);
                }
                let identification = self.random.u16(..).into();
                return pieces.iter().map(|piece| packet.fragment(identification, piece)).collect();
            }
            vec![packet.frame()]
        });
        for frame in &mut frames {
            // Anything but addresses, whose routes only the kernel knows.
            let addresses = if self.family == Family::V4 { 26..34 } else { 22..54 };
            for _ in 0..[0, 0, 0, 0, 0, 0, 1, 3][self.random.usize(..8)] {
                let at = self.random.usize(NETWORK..frame.len());
                if !addresses.contains(&at) {
                    frame[at] = self.random.u8(..);
                }
            }
            if self.random.u8(..40) == 0 {
                // The kernel runs nothing on less than the header that the ethertype promises.
                let shortest = NETWORK + if self.family == Family::V4 { 20 } else { 40 };
                let length = self.random.usize(shortest..=frame.len().max(shortest));
                frame.truncate(length);
            }
        }
        frames
    }

    /// Runs a frame on both sides and compares what they did.
    fn compare<F: Embeds<Address: Named>>(
        &mut self,
        world: &mut World,
        memory: &Memory<F::Address>,
        hook: Hook,
        frame: &[u8],
        about: &str,
    ) {
        let ran = world.run(hook, frame);
        // Which identifier an echo gets is chance, if its own is taken: what the program drew, the core draws too.
        if let Some((src, ..)) = ends(&ran.frame) {
            memory.randoms.replace(vec![src.port().to_be().into()]);
        }
        let before = memory.embryonic.borrow().len();
        let (verdict, bytes) = core::<F>(memory, hook, frame);
        if hook == Hook::Xdp {
            self.begun += memory.embryonic.borrow().len() - before;
        }
        memory.randoms.take();
        let about = format!(
            "{about} at {hook:?}: {frame:02x?}\nprogram {:?} {:02x?}\ncore {verdict:?}",
            ran.outcome, ran.frame
        );
        *self.seen.entry((hook as u32, ran.outcome)).or_default() += 1;
        match (ran.outcome, verdict.outcome) {
            // The kernel is to confirm the neighbour now and then.
            (Outcome::ForwardedByNeighbour, Outcome::Forwarded) => self.confirmed += 1,
            (Outcome::ToTc, Outcome::Forwarded) if hook == Hook::Xdp => {
                self.confirmed += 1;
                return;
            }
            (program, core) => assert_eq!(unanswered(program), core, "{about}"),
        }
        match ran.outcome.kind() {
            Kind::Forward => {
                assert_eq!(ran.interface, verdict.hop.interface, "{about}");
                assert_eq!(ran.frame[12..], bytes[12..], "{about}\nbytes");
                if ran.outcome == Outcome::Forwarded {
                    assert_eq!(ran.frame[..12], verdict.hop.link_addresses, "{about}\nlink header");
                }
                self.left.push(ran.frame);
                if self.left.len() > 64 {
                    self.left.swap_remove(self.random.usize(..64));
                }
            }
            Kind::Pass => assert_eq!(ran.frame, frame, "{about}\npassed and changed"),
            // What an answer is made of is compared by the fixtures; what is cut is written over.
            Kind::Answer | Kind::Hold => {}
            // An answer that cannot be made in the end leaves what is no use any more.
            Kind::Drop => {
                let told = matches!(ran.outcome, Outcome::DropTtl | Outcome::DropNoRoute | Outcome::DropTooBig);
                assert!(told || ran.frame == frame, "{about}\ndropped and changed");
            }
        }
    }
}

/// Source, destination and protocol of a frame without options.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, u8)> {
    let ip = frame.get(NETWORK..)?;
    let (addresses, protocol, transport) = if ip[0] == 0x45 && ip.len() >= 20 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
        ([address(12), address(16)], ip[9], 20)
    } else if ip[0] >> 4 == 6 && ip.len() >= 40 {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
        ([address(8), address(24)], ip[6], 40)
    } else {
        return None;
    };
    let port = |at: usize| Some(u16::from_be_bytes(ip.get(transport + at..transport + at + 2)?.try_into().ok()?));
    let (from, to) = match protocol {
        6 | 17 | 132 => (port(0)?, port(2)?),
        1 | 58 => (port(4)?, port(4)?),
        _ => (0, 0),
    };
    Some((SocketAddr::new(addresses[0], from), SocketAddr::new(addresses[1], to), protocol))
}

/// What of a flow has to be alike: all but times, and where the sweeper finds it.
fn essence<A: Copy>(flow: &Flow<A>) -> (forwarder_common::abi::Rewrite<A>, [u64; 6]) {
    let Flow { rewrite, counter, state, flags, mss, packets, bytes, .. } = *flow;
    (rewrite, [counter.into(), state.into(), flags.into(), mss.into(), packets, bytes])
}

fn compare_flows<A>(world: &World, memory: &Memory<A>, family: &str, about: &str)
where
    A: Named + Slotted,
    FlowKey<A>: Layout,
    Flow<A>: Layout,
    forwarder_common::abi::FlowSlot<A>: Layout,
    forwarder_common::abi::Bucket<A>: Layout,
{
    for (table, inside) in [("ESTABLISHED", &memory.established), ("EMBRYONIC", &memory.embryonic)] {
        let loaded = world.flows::<A>(&format!("{table}_{family}"));
        let inside: BTreeMap<_, _> = inside.borrow().iter().map(|(key, flow)| (*key, flow.get())).collect();
        let keys = |flows: &BTreeMap<FlowKey<A>, Flow<A>>| flows.keys().copied().collect::<BTreeSet<_>>();
        let (program, core) = (keys(&loaded), keys(&inside));
        assert_eq!(&program - &core, BTreeSet::new(), "{about}: only in the program's {table}");
        assert_eq!(&core - &program, BTreeSet::new(), "{about}: only in the core's {table}");
        for (key, flow) in &loaded {
            assert_eq!(essence(flow), essence(&inside[key]), "{about}: {key:?} in {table}");
        }
    }
}

/// Every rule of the fixtures, one instance for as many packets as its tables have room for.
fn differ<F>(family: Family, running: impl Fn(&World) -> RunningTables<F::Address> + Sync, suffix: &str)
where
    F: Embeds<Address: Named>,
    FlowKey<F::Address>: Layout,
    Flow<F::Address>: Layout,
    forwarder_common::abi::FlowSlot<F::Address>: Layout,
    forwarder_common::abi::Bucket<F::Address>: Layout,
{
    let packets = setting("FORWARDER_DIFFERENTIAL_PACKETS", PACKETS) / 2;
    let seed = setting("FORWARDER_DIFFERENTIAL_SEED", 1);
    let mut left = packets;
    let mut all: BTreeMap<(u32, Outcome), u64> = BTreeMap::new();
    let mut begun = 0;
    let verified = Patched::answering(helper::CSUM_LEVEL, 0);
    for round in 0.. {
        if left == 0 {
            break;
        }
        let now = left.min(u64::from(FLOWS) / 2);
        left -= now;
        let change = |compiled: &mut forwarder::config::Compiled| {
            (compiled.sizes.flows, compiled.sizes.new_flows) = (FLOWS, 16 * FLOWS);
            // Where a port has to be chosen, there is no choice: chance differs.
            for range in &mut compiled.settings.ports {
                (range.first, range.last) = (LOCAL_PORTS.1 + 1, LOCAL_PORTS.1 + 1);
            }
        };
        // In every other round TC is told that somebody has verified each checksum.
        let object = if round % 2 == 1 { verified.bytes() } else { BPF_OBJECT };
        with_object(object, RULES, change, |world| {
            warm_up(world);
            world.let_xdp_begin();
            let about = format!("seed {seed}, {family:?}, round {round}");
            let memory = memory(world, running(world), family);
            let random = fastrand::Rng::with_seed(seed ^ round << 32);
            let mut run = Run { family, random, left: vec![], seen: BTreeMap::new(), confirmed: 0, begun: 0 };
            copy_flows(world, &memory, suffix);
            for number in 0..now {
                for frame in run.frames() {
                    let mut frame = frame;
                    frame[..6].copy_from_slice(&world.mac());
                    let hook = if run.random.u8(..3) == 0 { Hook::Xdp } else { Hook::Tc };
                    run.compare::<F>(world, &memory, hook, &frame, &format!("{about}, packet {number}"));
                }
            }
            compare_flows(world, &memory, suffix, &about);
            assert!(u64::from(run.confirmed) < now / 4, "{about}: {} were left to the kernel", run.confirmed);
            begun += run.begun;
            run.seen.into_iter().for_each(|(outcome, times)| *all.entry(outcome).or_default() += times);
        });
    }
    println!("{family:?}: {packets} packets, seed {seed}: {all:?}");
    for outcome in
        [Outcome::Forwarded, Outcome::NotOurs, Outcome::Malformed, Outcome::IcmpStray, Outcome::DropNotAllowed]
    {
        assert!(all.contains_key(&(Hook::Tc as u32, outcome)), "{outcome:?} was never seen: {all:?}");
    }
    assert!(begun > 0, "XDP never began a flow");
}

/// Warming up has begun flows.
fn copy_flows<A>(world: &World, memory: &Memory<A>, family: &str)
where
    A: Named + Slotted,
    FlowKey<A>: Layout,
    Flow<A>: Layout,
    forwarder_common::abi::FlowSlot<A>: Layout,
    forwarder_common::abi::Bucket<A>: Layout,
{
    let flows = world.flows::<A>(&format!("EMBRYONIC_{family}")).len()
        + world.flows::<A>(&format!("ESTABLISHED_{family}")).len();
    assert_eq!((flows, memory.embryonic.borrow().len()), (0, 0), "warming up begins no flows");
}

#[test]
fn the_core_and_the_programs_do_the_same_to_ipv4() {
    differ::<Ipv4>(Family::V4, |world| world.tables.running(world.rules.clone()).unwrap().v4, "V4");
}

#[test]
fn the_core_and_the_programs_do_the_same_to_ipv6() {
    differ::<Ipv6>(Family::V6, |world| world.tables.running(world.rules.clone()).unwrap().v6, "V6");
}
