#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

mod garbage;
mod properties;

use core::net::IpAddr;
use std::{collections::BTreeMap, net::SocketAddr, vec};

use crate::{
    abi::{Direction, Flow, FlowKey, NextHopState, next_hop_flags, rule_flags},
    prefix,
    tables::{
        Event, Hop,
        memory::{HOP, TIMEOUTS},
    },
    test_packet::{Body, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families, ip, mappable},
    verdict::{Outcome, Verdict},
};

both_families!(
    every_error_about_every_packet,
    every_type,
    whole_addresses_and_every_protocol,
    one_to_one,
    options_and_extension_headers_in_both_headers,
    what_follows_the_embedded_packet_is_not_touched,
    a_first_fragment_tells_its_ports,
    states_of_the_flow,
    an_expired_flow_is_none,
    half_a_flow,
    the_way_back,
);

/// A connection as each side sees it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    client: SocketAddr,
    listen: SocketAddr,
    /// The client as the backend sees it.
    seen: SocketAddr,
    backend: SocketAddr,
    request: Body,
    reply: Body,
}

impl Connection {
    fn request(&self) -> TestPacket {
        TestPacket::new(self.client, self.listen, self.request)
    }

    fn request_at_backend(&self) -> TestPacket {
        TestPacket::new(self.seen, self.backend, self.request)
    }

    fn reply(&self) -> TestPacket {
        TestPacket::new(self.backend, self.seen, self.reply)
    }

    fn reply_at_client(&self) -> TestPacket {
        TestPacket::new(self.listen, self.client, self.reply)
    }

    /// The packet that fails, as it was when it failed, and as its sender knows it; and who else could say so instead
    /// of its destination.
    fn failing<F: TestFamily>(&self, direction: Direction) -> (TestPacket, TestPacket, IpAddr) {
        match direction {
            // An error in the direction of replies is about a request.
            Direction::Reply => (self.request_at_backend(), self.request(), F::OTHER_LISTEN),
            Direction::Forward => (self.reply_at_client(), self.reply(), F::OTHER_CLIENT),
        }
    }

    /// From whom the receiver must see an error of `from`.
    fn source_of_error(&self, direction: Direction, from: IpAddr) -> IpAddr {
        match direction {
            Direction::Reply => self.listen.ip(),
            Direction::Forward if self.seen == self.client => from,
            Direction::Forward => self.seen.ip(),
        }
    }
}

/// Bodies of a request and of its reply.
const BODIES: [(Body, Body); 4] = [
    (Body::Tcp(flags::SYN), Body::Tcp(flags::SYN_ACK)),
    (Body::Udp, Body::Udp),
    (Body::UdpUnsummed, Body::UdpUnsummed),
    (Body::EchoRequest, Body::EchoReply),
];

/// An unreachable port.
fn unreachable<F: TestFamily>() -> Body {
    if F::CLIENT.is_ipv4() { Body::IcmpError(3, 3, [0; 4]) } else { Body::IcmpError(1, 4, [0; 4]) }
}

const fn network_header<F: TestFamily>() -> usize {
    if F::CLIENT.is_ipv4() { 20 } else { 40 }
}

/// How many bytes of a packet end in the middle of TCP's checksum. Half of one is not translated.
const fn half_a_checksum<F: TestFamily>() -> usize {
    network_header::<F>() + 17
}

/// A world where a connection has begun, if its rule keeps flows.
fn connected<F: TestFamily>(source: Source, bodies: (Body, Body)) -> (World<F>, Connection) {
    connected_from(source, bodies, 40_001, true)
}

/// A world where a connection from `port` has begun, if its rule keeps flows; where the backend sees a port, another if
/// that one is `taken`.
fn connected_from<F: TestFamily>(
    source: Source,
    (request, reply): (Body, Body),
    port: u16,
    taken: bool,
) -> (World<F>, Connection) {
    let echo = request == Body::EchoRequest;
    let mut world = World::<F>::new();
    let (listen, to) = if echo { (0, 0) } else { (80, 8080) };
    if echo {
        world.forward_address(F::LISTEN, F::BACKEND, source);
    } else {
        world.forward(at(F::LISTEN, 80), at(F::BACKEND, 8080), source);
    }
    let client = at(F::CLIENT, port);
    let mut connection =
        Connection { client, listen: at(F::LISTEN, listen), seen: client, backend: at(F::BACKEND, to), request, reply };
    if echo {
        // An echo's identifier stands at both its ends' places in turn.
        connection.listen.set_port(port);
        connection.backend.set_port(port);
    }
    if let Source::Address(ours) = source
        && taken
    {
        for protocol in [1, 6, 17, 58] {
            world.tables.sockets.insert((protocol, F::address(ours), port.to_be()));
        }
    }
    if source != Source::Preserved {
        let (verdict, _) = world.process_bytes(Hook::Tc, connection.request().frame());
        assert_eq!(verdict, Verdict::transmit(HOP), "{connection:?}");
        if let Source::Address(ours) = source {
            let flow = world.flow(&connection.request()).unwrap();
            connection.seen = at(ours, u16::from_be(flow.rewrite.src_port));
            if echo {
                connection.backend.set_port(connection.seen.port());
            } else {
                // So that a port that is not translated shows.
                assert!(!taken || connection.seen.port() != port);
            }
        }
    }
    (world, connection)
}

const SOURCES: [fn(IpAddr) -> Source; 3] =
    [|_| Source::Preserved, |_| Source::PreservedByFlow, |ours| Source::Address(ours)];

/// Every source mode and body.
fn connections<F: TestFamily>() -> impl Iterator<Item = (World<F>, Connection)> {
    SOURCES.iter().flat_map(|source| BODIES.map(|bodies| connected::<F>(source(F::OURS), bodies)))
}

type Entries<A> = [BTreeMap<FlowKey<A>, Flow<A>>; 2];

fn entries<F: TestFamily>(world: &World<F>) -> Entries<F::Address> {
    [&world.tables.established, &world.tables.embryonic]
        .map(|table| table.borrow().iter().map(|(key, flow)| (*key, flow.get())).collect())
}

/// The error becomes `expected`, and no flow has noticed.
#[track_caller]
fn becomes<F: TestFamily>(world: &World<F>, error: &TestPacket, direction: Direction, expected: &TestPacket) {
    let before = entries(world);
    world.forwards(Hook::Tc, error, direction, expected);
    assert_eq!(entries(world), before, "{error:?} changed a flow");
    world.leaves(
        Hook::Xdp,
        error,
        if error.options.is_empty() && error.extensions.is_empty() { Outcome::IcmpOther } else { Outcome::ToTc },
    );
}

/// The error is passed or dropped as it came, and no flow has noticed.
#[track_caller]
fn is_left<F: TestFamily>(world: &World<F>, error: &TestPacket, outcome: Outcome) {
    let before = entries(world);
    world.leaves(Hook::Tc, error, outcome);
    assert_eq!(entries(world), before, "{error:?} changed a flow");
    assert!(world.tables.counted.borrow().values().all(|counted| counted.times(Event::Denied) == 0));
}

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Reply];

fn every_error_about_every_packet<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, sent, router) = connection.failing::<F>(direction);
            let network = network_header::<F>();
            for from in [failed.dst.ip(), router] {
                // From the whole packet down to the eight bytes that RFC 792 promises.
                for embedded in (network + 8..=failed.ip().len()).filter(|embedded| *embedded != half_a_checksum::<F>())
                {
                    let error = failed.error(from, unreachable::<F>(), embedded);
                    let back = sent
                        .error(connection.source_of_error(direction, from), unreachable::<F>(), embedded)
                        .with(|error| error.hop_limit -= 1);
                    becomes(&world, &error, direction, &back);
                }
            }
        }
    }
}

fn every_type<F: TestFamily>() {
    let (world, connection) = connected::<F>(Source::Address(F::OURS), BODIES[1]);
    let v4 = F::CLIENT.is_ipv4();
    for direction in DIRECTIONS {
        let (failed, sent, router) = connection.failing::<F>(direction);
        for kind in 0..=255 {
            for code in [0, 1, 4, 255] {
                // The MTU of "fragmentation needed", the pointer of "parameter problem": whatever it is, it stays.
                let body = Body::IcmpError(kind, code, [kind, code, 0x05, 0x14]);
                let error = failed.error(router, body, 64);
                match (v4, kind) {
                    (true, 3 | 4 | 11 | 12) | (false, 0..=127) => {
                        let from = connection.source_of_error(direction, router);
                        let back = sent.error(from, body, 64).with(|error| error.hop_limit -= 1);
                        becomes(&world, &error, direction, &back);
                    }
                    (true, 5) => is_left(&world, &error, Outcome::DropRedirect),
                    // Queries and their replies, of no flow.
                    (true, 0 | 8 | 13..=18) | (false, 128 | 129) => is_left(&world, &error, Outcome::NotOurs),
                    _ => is_left(&world, &error, Outcome::IcmpOther),
                }
            }
        }
    }
}

fn whole_addresses_and_every_protocol<F: TestFamily>() {
    for source in SOURCES {
        for body in [Body::Sctp, Body::Other(47), Body::Other(50), Body::Tcp(flags::ACK), Body::Udp, Body::EchoReply] {
            let mut world = World::<F>::new();
            world.forward_address(F::LISTEN, F::BACKEND, source(F::OURS));
            let client = at(F::CLIENT, 5000);
            let (listen, backend) = (at(F::LISTEN, 7), at(F::BACKEND, 7));
            let mut connection = Connection { client, listen, seen: client, backend, request: body, reply: body };
            if body == Body::EchoReply {
                if source(F::OURS) != Source::Preserved {
                    continue;
                }
                connection.reply = Body::EchoRequest;
            }
            world.process_bytes(Hook::Tc, connection.request().frame());
            if source(F::OURS) == Source::Address(F::OURS) {
                let flow = world.flow(&connection.request()).unwrap();
                let port = if flow.rewrite.src_port == 0 { 5000 } else { u16::from_be(flow.rewrite.src_port) };
                connection.seen = at(F::OURS, port);
            }
            for direction in DIRECTIONS {
                let (failed, sent, router) = connection.failing::<F>(direction);
                let shortest = network_header::<F>() + if matches!(body, Body::Other(_)) { 0 } else { 8 };
                for embedded in (shortest..=failed.ip().len()).filter(|embedded| *embedded != half_a_checksum::<F>()) {
                    let error = failed.error(router, unreachable::<F>(), embedded);
                    let from = connection.source_of_error(direction, router);
                    let back = sent.error(from, unreachable::<F>(), embedded).with(|error| error.hop_limit -= 1);
                    becomes(&world, &error, direction, &back);
                }
            }
        }
    }
}

fn one_to_one<F: TestFamily>() {
    for bits in if F::CLIENT.is_ipv4() { [24, 29] } else { [48, 64] } {
        let mut world = World::<F>::new();
        let outer = mappable(F::LISTEN);
        let slot = world.forward_prefix(outer, mappable(F::BACKEND), bits);
        let inner = ip::<F>(prefix::inside(&world.tables.rules[&slot], F::address(outer)).unwrap());
        for (request, reply) in BODIES.into_iter().chain([(Body::Sctp, Body::Sctp), (Body::Other(47), Body::Other(47))])
        {
            let client = at(F::CLIENT, 5000);
            let connection =
                Connection { client, listen: at(outer, 7), seen: client, backend: at(inner, 7), request, reply };
            for direction in DIRECTIONS {
                let (failed, sent, router) = connection.failing::<F>(direction);
                let shortest = network_header::<F>() + if matches!(request, Body::Other(_)) { 0 } else { 8 };
                for embedded in (shortest..=failed.ip().len()).filter(|embedded| *embedded != half_a_checksum::<F>()) {
                    let error = failed.error(router, unreachable::<F>(), embedded);
                    let from = connection.source_of_error(direction, router);
                    let back = sent.error(from, unreachable::<F>(), embedded).with(|error| error.hop_limit -= 1);
                    becomes(&world, &error, direction, &back);
                }
            }
        }
    }
}

/// IPv4 options and IPv6 extension headers, as much as there can be.
fn with_options(packet: &TestPacket) -> TestPacket {
    packet.with(|p| p.options = vec![1; 40]).with(|p| {
        p.extensions = vec![
            (0, vec![1, 4, 0, 0, 0, 0]),
            (43, vec![4, 0, 0, 0, 0, 0]),
            (60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
    })
}

fn options_and_extension_headers_in_both_headers<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, sent, router) = connection.failing::<F>(direction);
            let from = connection.source_of_error(direction, router);
            for (inner, outer) in [(true, false), (false, true), (true, true)] {
                let inside = |packet: &TestPacket| if inner { with_options(packet) } else { packet.clone() };
                let outside = |packet: &TestPacket| if outer { with_options(packet) } else { packet.clone() };
                let error = outside(&inside(&failed).error(router, unreachable::<F>(), 200));
                let back = outside(&inside(&sent).error(from, unreachable::<F>(), 200));
                becomes(&world, &error, direction, &back.with(|error| error.hop_limit -= 1));
            }
        }
    }
}

/// RFC 4884: padding up to 128 bytes, then extensions with a checksum of their own; and an odd number of bytes.
fn what_follows_the_embedded_packet_is_not_touched<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, sent, router) = connection.failing::<F>(direction);
            let body = if F::CLIENT.is_ipv4() {
                Body::IcmpError(11, 0, [0, 32, 0, 0])
            } else {
                Body::IcmpError(3, 0, [16, 0, 0, 0])
            };
            // An MPLS label stack (RFC 4950).
            let extension = [0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xab, 0xcd, 0xe1, 0xff];
            for length in 0..=extension.len() {
                let extended = |packet: &TestPacket, from| {
                    packet.error(from, body, 128).with(|error| {
                        error.payload.resize(128, 0);
                        error.payload.extend(&extension[..length]);
                        error.trailer = vec![0xee; 3];
                    })
                };
                let back = extended(&sent, connection.source_of_error(direction, router));
                becomes(&world, &extended(&failed, router), direction, &back.with(|error| error.hop_limit -= 1));
            }
        }
    }
}

fn a_first_fragment_tells_its_ports<F: TestFamily>() {
    for (world, connection) in connections::<F>() {
        for direction in DIRECTIONS {
            let (failed, sent, router) = connection.failing::<F>(direction);
            let first = |packet: &TestPacket| {
                packet.with(|p| p.fragment = 0x2000).with(|p| p.extensions = vec![(44, vec![0, 1, 1, 2, 3, 4])])
            };
            let error = first(&failed).error(router, unreachable::<F>(), 200);
            let back = first(&sent).error(connection.source_of_error(direction, router), unreachable::<F>(), 200);
            becomes(&world, &error, direction, &back.with(|error| error.hop_limit -= 1));
            let later = |packet: &TestPacket| {
                packet.with(|p| p.fragment = 0x2001).with(|p| p.extensions = vec![(44, vec![0, 9, 1, 2, 3, 4])])
            };
            is_left(&world, &later(&failed).error(router, unreachable::<F>(), 200), Outcome::IcmpStray);
        }
    }
}

/// The error about a request of this connection that the backend sends, and what it must become.
fn of_backend<F: TestFamily>(connection: &Connection) -> (TestPacket, TestPacket) {
    let error = connection.request_at_backend().error(F::BACKEND, unreachable::<F>(), 200);
    let back = connection.request().error(F::LISTEN, unreachable::<F>(), 200);
    (error, back.with(|error| error.hop_limit -= 1))
}

/// Also a flow that is over has errors, as long as its entries live.
fn states_of_the_flow<F: TestFamily>() {
    for source in [Source::PreservedByFlow, Source::Address(F::OURS)] {
        let (world, connection) = connected::<F>(source, BODIES[0]);
        let (error, back) = of_backend::<F>(&connection);
        let packets = [
            connection.reply(),
            connection.request().with(|p| p.body = Body::Tcp(flags::ACK)),
            connection.reply().with(|p| p.body = Body::Tcp(flags::FIN_ACK)),
            connection.request().with(|p| p.body = Body::Tcp(flags::FIN_ACK)),
            connection.reply().with(|p| p.body = Body::Tcp(flags::RST)),
        ];
        for packet in packets {
            becomes(&world, &error, Direction::Reply, &back);
            let (verdict, _) = world.process_bytes(Hook::Tc, packet.frame());
            assert_eq!(verdict.outcome, Outcome::Forwarded);
        }
        becomes(&world, &error, Direction::Reply, &back);
        // Its own rule may be gone meanwhile.
        let mut world = world;
        world.tables.endpoints.clear();
        becomes(&world, &error, Direction::Reply, &back);
    }
}

/// An error keeps no flow alive, and removes none.
fn an_expired_flow_is_none<F: TestFamily>() {
    let (world, connection) = connected::<F>(Source::Address(F::OURS), BODIES[0]);
    let (error, back) = of_backend::<F>(&connection);
    world.tables.wait(TIMEOUTS.tcp_opening);
    becomes(&world, &error, Direction::Reply, &back);
    world.tables.wait(1);
    is_left(&world, &error, Outcome::IcmpStray);
    assert_eq!(world.entries(), (0, 2));

    let (world, connection) = connected::<F>(Source::Address(F::OURS), BODIES[0]);
    for packet in [connection.reply(), connection.request().with(|p| p.body = Body::Tcp(flags::ACK))] {
        world.process_bytes(Hook::Tc, packet.frame());
    }
    assert_eq!(world.entries(), (2, 0));
    world.tables.wait(TIMEOUTS.tcp_established);
    // One direction goes on: the other does not expire either.
    world.process_bytes(Hook::Tc, connection.request().with(|p| p.body = Body::Tcp(flags::ACK)).frame());
    world.tables.wait(TIMEOUTS.tcp_established);
    becomes(&world, &error, Direction::Reply, &back);
    world.tables.wait(1);
    is_left(&world, &error, Outcome::IcmpStray);
    assert_eq!(world.entries(), (2, 0));
}

/// A flood has pushed one of a new flow's entries out, or somebody else has taken its place.
fn half_a_flow<F: TestFamily>() {
    let (world, connection) = connected::<F>(Source::Address(F::OURS), BODIES[1]);
    let (error, back) = of_backend::<F>(&connection);
    let forward_key = World::<F>::key(&connection.request());
    let forward = world.tables.embryonic.borrow_mut().remove(&forward_key).unwrap();
    becomes(&world, &error, Direction::Reply, &back);
    let mut other = forward.get();
    other.rewrite.src_port ^= 1;
    forward.set(other);
    world.tables.embryonic.borrow_mut().insert(forward_key, forward);
    is_left(&world, &error, Outcome::IcmpStray);
}

fn the_way_back<F: TestFamily>() {
    for source in SOURCES {
        let (mut world, connection) = connected::<F>(source(F::OURS), BODIES[1]);
        let (error, back) = of_backend::<F>(&connection);
        for hop_limit in [0, 1] {
            is_left(&world, &error.with(|error| error.hop_limit = hop_limit), Outcome::DropTtl);
        }
        becomes(&world, &error.with(|e| e.hop_limit = 2), Direction::Reply, &back.with(|e| e.hop_limit = 1));

        let client = F::address(F::CLIENT);
        let fits = Hop { mtu: error.length(), ..HOP };
        for (hop, outcome) in [
            (Hop { state: NextHopState::Unreachable, ..HOP }, Outcome::DropNoRoute),
            (Hop { state: NextHopState::Unknown, ..HOP }, Outcome::DropNoRoute),
            (Hop { state: NextHopState::Local, ..HOP }, Outcome::ToSelf),
            (Hop { mtu: error.length() - 1, ..HOP }, Outcome::DropTooBig),
        ] {
            world.tables.hops.insert(client, hop);
            is_left(&world, &error, outcome);
        }
        for (hop, by_neighbour) in [
            (fits, false),
            (Hop { state: NextHopState::Unresolved, ..fits }, true),
            (Hop { flags: next_hop_flags::CONFIRM, ..fits }, true),
            (Hop { flags: next_hop_flags::CONFIRM | next_hop_flags::NO_LINK_HEADER, ..fits }, false),
        ] {
            world.tables.hops.insert(client, hop);
            let (verdict, bytes) = world.process_bytes(Hook::Tc, error.frame());
            let expected = if by_neighbour { Verdict::neighbour(hop) } else { Verdict::transmit(hop) };
            assert_eq!((verdict, bytes), (expected, back.frame()));
        }
    }
}
