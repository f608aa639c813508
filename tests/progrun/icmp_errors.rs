//! ICMP errors about packets that were forwarded, and what only looks like that.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use forwarder_common::abi::{Flow, FlowKey};
use forwarder_common::address::{V4, V6};
use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::connection::{Connection, KEEPING_FLOWS};
use crate::fixture::{Expected, Sent, arriving, check, check_frame, forward, reply, warm_up};
use crate::plan::{end, ip};
use crate::test_packet::Body::{EchoReply, EchoRequest, IcmpError, Tcp, Udp, UdpUnsummed};
use crate::test_packet::{Body, TestPacket, flags};
use crate::world::{self, Hook, World};

const RULES: &str = include_str!("../fixtures/rules.toml");
/// The whole of a packet.
const ALL: usize = 2000;

/// An error as it arrives, and as it has to leave.
struct Translated {
    error: TestPacket,
    left: TestPacket,
    /// In the direction of replies?
    to_client: bool,
}

/// An error about a packet, and about the same packet as its sender knows it.
#[derive(Clone, Copy, Debug)]
struct Case {
    connection: Connection,
    /// About a request, or about an answer?
    about_request: bool,
    body: Body,
    from_router: bool,
}

/// Requests and their answers.
const BODIES: [(Body, Body); 3] = [(Tcp(flags::ACK), Tcp(flags::ACK)), (Udp, Udp), (UdpUnsummed, UdpUnsummed)];

impl Case {
    fn family(self) -> Family {
        if self.connection.client.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The error with so many bytes of its packet.
    fn error(self, kind: Body, embedded: usize, change: impl Fn(&mut TestPacket)) -> Translated {
        let Connection { client, listen, source, backend, .. } = self.connection;
        let packet = |src, dst| TestPacket::new(src, dst, self.body).with(&change);
        let router = |name| ip(self.family(), name);
        // Who sends it, and whom the receiver sees: always somebody it knows, unless nothing is hidden from it.
        let (failed, sent, from, seen): (TestPacket, TestPacket, IpAddr, IpAddr) = if self.about_request {
            let from = if self.from_router { router("backend_2") } else { backend.ip() };
            (packet(source, backend), packet(client, listen), from, listen.ip())
        } else {
            let from = if self.from_router { router("client_2") } else { client.ip() };
            let seen = if source.ip() == client.ip() { from } else { source.ip() };
            (packet(listen, client), packet(backend, source), from, seen)
        };
        Translated {
            error: failed.error(from, kind, embedded),
            left: sent.error(seen, kind, embedded).with(|error| error.hop_limit -= 1),
            to_client: self.about_request,
        }
    }

    fn check(self, world: &mut World, about: &str, Translated { error, left, to_client }: &Translated) {
        let about = format!("{about}: {self:?}");
        let rule = self.connection.rule;
        let sent: Sent = if *to_client { reply(rule, left.clone()) } else { forward(rule, left.clone()) };
        check(world, &about, Hook::Xdp, error, &at_xdp(error).into());
        check(world, &about, Hook::Tc, error, &sent.into());
    }

    fn check_left(self, world: &mut World, about: &str, frame: &[u8], outcome: Outcome) {
        check_frame(world, &format!("{about}: {self:?}"), Hook::Tc, frame, &Expected::from(outcome));
    }
}

fn at_xdp(error: &TestPacket) -> Outcome {
    if error.options.is_empty() && error.extensions.is_empty() { Outcome::IcmpOther } else { Outcome::ToTc }
}

type Entries<A> = [BTreeMap<FlowKey<A>, Flow<A>>; 2];

/// All flow entries, to the last counter.
fn flows(world: &World) -> (Entries<V4>, Entries<V6>) {
    (
        ["ESTABLISHED_V4", "EMBRYONIC_V4"].map(|name| world.flows(name)),
        ["ESTABLISHED_V6", "EMBRYONIC_V6"].map(|name| world.flows(name)),
    )
}

/// Destination unreachable, port unreachable.
fn unreachable(family: Family) -> Body {
    if family == Family::V4 { IcmpError(3, 3, [0; 4]) } else { IcmpError(1, 4, [0; 4]) }
}

/// Connections of every kind, those of rules that keep flows established.
fn connections(world: &mut World, family: Family) -> Vec<(Connection, Body, Body)> {
    let mut all = vec![];
    for (rule, listen, backend) in
        [("kept", 80, 80), ("changed", 8443, 443), ("range", 2050, 2050), ("shifted", 3001, 13001)]
    {
        let client: SocketAddr = end(family, "client", 4000);
        let (listen, backend) = (end(family, "public", listen), end(family, "backend", backend));
        let connection = Connection { rule, client, listen, source: client, backend };
        all.extend(BODIES.map(|(request, answer)| (connection, request, answer)));
    }
    for rule in KEEPING_FLOWS {
        let connection = Connection::new(family, rule, 4000);
        connection.open(world);
        all.push((connection, Tcp(flags::ACK), Tcp(flags::ACK)));
        for body in [Udp, UdpUnsummed] {
            let connection = Connection::new(family, rule, if body == Udp { 4002 } else { 4004 });
            for packet in [connection.request(body), connection.answer(body), connection.request(body)] {
                let frame = arriving(world, &packet.0);
                world.run(Hook::Tc, &frame);
            }
            all.push((connection, body, body));
        }
    }
    let mut echo = Connection::echo(family, 4006);
    let frame = arriving(world, &echo.request(EchoRequest).0);
    world.run(Hook::Tc, &frame);
    // The identifier stands at one end of a request, and at the other of its answer.
    echo.listen.set_port(4006);
    echo.backend.set_port(4006);
    all.push((echo, EchoRequest, EchoReply));
    all
}

fn cases(world: &mut World, family: Family) -> Vec<Case> {
    let mut cases = vec![];
    for (connection, request, answer) in connections(world, family) {
        for (about_request, body) in [(true, request), (false, answer)] {
            cases.extend([false, true].map(|from_router| Case { connection, about_request, body, from_router }));
        }
    }
    cases
}

fn with_cases(test: impl Fn(&mut World, Family, Case) + Sync) {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let cases = cases(world, family);
            let before = flows(world);
            for case in cases {
                test(world, family, case);
            }
            assert_eq!(flows(world), before, "an error has changed a flow");
        }
    });
}

#[test]
fn every_error_leads_back() {
    with_cases(|world, family, case| {
        let header = if family == Family::V4 { 20 } else { 40 };
        for embedded in [header + 8, header + 12, header + 18, header + 20, ALL] {
            case.check(world, "an error", &case.error(unreachable(family), embedded, |_| {}));
        }
    });
}

#[test]
fn errors_of_every_size() {
    with_cases(|world, family, case| {
        // The checksum is worked out in pieces of 512 bytes.
        for payload in [0_u32, 1, 2, 3, 400, 1000, 1001, 1400] {
            let long = |packet: &mut TestPacket| packet.payload = (0..payload).map(|n| n as u8).collect();
            let translated = case.error(unreachable(family), ALL, long);
            if translated.error.length() > 1500 {
                continue;
            }
            case.check(world, "a long error", &translated);
            let mut frame = arriving(world, &translated.error);
            *frame.last_mut().unwrap() ^= 0x80;
            case.check_left(world, "its last byte is wrong", &frame, Outcome::IcmpBadChecksum);
        }
    });
}

#[test]
fn every_length_around_the_pieces_of_the_checksum() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let case = cases(world, family)[0];
            let fixed = case.error(unreachable(family), ALL, |packet| packet.payload.clear()).error.ip().len();
            let header = if family == Family::V4 { 20 } else { 40 };
            for message in (500..530).chain(1020..1030) {
                let payload = message + header - fixed;
                let long = |packet: &mut TestPacket| packet.payload = (0..payload).map(|n| (n * 7) as u8).collect();
                case.check(world, "a message", &case.error(unreachable(family), ALL, long));
            }
        }
    });
}

#[test]
fn every_type() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let kinds: &[u8] = if family == Family::V4 { &[3, 4, 11, 12] } else { &[1, 2, 3, 4, 100, 127] };
            for case in cases(world, family).into_iter().filter(|case| case.connection.rule == "masquerade") {
                for kind in kinds {
                    let body = IcmpError(*kind, 4, [0, 0, 5, 20]);
                    case.check(world, "a type", &case.error(body, ALL, |_| {}));
                }
                let kinds: &[u8] = if family == Family::V4 { &[1, 6, 19, 41] } else { &[133, 137, 200] };
                for kind in kinds {
                    let frame = arriving(world, &case.error(IcmpError(*kind, 0, [0; 4]), ALL, |_| {}).error);
                    case.check_left(world, "no error", &frame, Outcome::IcmpOther);
                }
                if family == Family::V4 {
                    let frame = arriving(world, &case.error(IcmpError(5, 1, [10, 8, 0, 3]), ALL, |_| {}).error);
                    case.check_left(world, "a redirect", &frame, Outcome::DropRedirect);
                }
            }
        }
    });
}

#[test]
fn options_and_extension_headers_inside_and_outside() {
    with_cases(|world, family, case| {
        let options = |packet: &mut TestPacket| {
            packet.options = vec![1; 40];
            packet.extensions =
                vec![(0, vec![1, 4, 0, 0, 0, 0]), (60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
        };
        let Translated { error, left, to_client } = case.error(unreachable(family), ALL, options);
        let outside = Translated { error: error.with(options), left: left.with(options), to_client };
        case.check(world, "options inside", &Translated { error, left, to_client });
        case.check(world, "options inside and outside", &outside);
    });
}

#[test]
fn extensions_after_the_embedded_packet() {
    with_cases(|world, family, case| {
        // RFC 4884: so many words, then extensions; here a label stack (RFC 4950).
        let kind = if family == Family::V4 { IcmpError(11, 0, [0, 32, 0, 0]) } else { IcmpError(3, 0, [16, 0, 0, 0]) };
        let extend = |packet: &TestPacket| {
            packet.with(|packet| {
                packet.payload.resize(128, 0);
                packet.payload.extend([0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xab, 0xcd, 0xe1, 0xff]);
            })
        };
        let Translated { error, left, to_client } = case.error(kind, 128, |_| {});
        case.check(world, "extensions", &Translated { error: extend(&error), left: extend(&left), to_client });
    });
}

#[test]
fn fragments_inside() {
    with_cases(|world, family, case| {
        let first = |packet: &mut TestPacket| {
            (packet.fragment, packet.extensions) = (0x2000, vec![(44, vec![0, 1, 1, 2, 3, 4])]);
        };
        case.check(world, "about a first fragment", &case.error(unreachable(family), ALL, first));
        let later = |packet: &mut TestPacket| {
            (packet.fragment, packet.extensions) = (0x2001, vec![(44, vec![0, 9, 1, 2, 3, 4])]);
        };
        let frame = arriving(world, &case.error(unreachable(family), ALL, later).error);
        case.check_left(world, "about a later fragment", &frame, Outcome::IcmpStray);
    });
}

#[test]
fn nonsense_passes() {
    with_cases(|world, family, case| {
        let error = case.error(unreachable(family), ALL, |_| {}).error;
        let header = if family == Family::V4 { 20 } else { 40 };
        let mut left = |about: &str, error: &TestPacket, outcome| {
            let frame = arriving(world, error);
            case.check_left(world, about, &frame, outcome);
        };
        for embedded in [0, 1, header - 1, header, header + 7] {
            let cut = error.with(|error| error.payload.truncate(embedded));
            left("cut short", &cut, Outcome::Malformed);
        }
        left("another version inside", &error.with(|error| error.payload[0] ^= 0x20), Outcome::Malformed);
        left("noise inside", &error.with(|error| error.payload.fill(0xff)), Outcome::Malformed);
        let stranger = end(family, "stranger", 0);
        left("to somebody else", &error.with(|error| error.dst = stranger), Outcome::IcmpStray);
        let about_stranger = case.error(unreachable(family), ALL, |packet| packet.src.set_ip(stranger.ip())).error;
        if !case.about_request || case.connection.source != case.connection.client {
            left("about a stranger's packet", &about_stranger, Outcome::IcmpStray);
        }
        left("no hop left", &error.with(|error| error.hop_limit = 1), Outcome::DropTtl);
        let mut frame = arriving(world, &error);
        let checksum = frame.len() - error.payload.len() - 6;
        frame[checksum] ^= 1;
        case.check_left(world, "a wrong checksum", &frame, Outcome::IcmpBadChecksum);
    });
}
