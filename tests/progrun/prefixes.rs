//! One prefix onto another: both hooks do the same, in both directions, for every protocol, and keep nothing.

use std::net::{IpAddr, SocketAddr};

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::connection::entries;
use crate::fixture::{check, check_at_tc, check_both, forward, reply, warm_up};
use crate::plan::end;
use crate::test_packet::{Body, TestPacket, flags};
use crate::world::{self, Hook};

const RULES: &str = include_str!("../fixtures/prefixes.toml");

/// What `backend` and `backend_2` are outside. IPv6: worked out by hand after RFC 6296 section 3.6.
fn outer(family: Family) -> [IpAddr; 2] {
    match family {
        Family::V4 => ["192.0.2.2", "192.0.2.3"],
        Family::V6 => ["2001:db8:9:cf46::2", "2001:db8:9:cf46::3"],
    }
    .map(|address| address.parse().unwrap())
}

const BODIES: [(Body, u16); 10] = [
    (Body::Tcp(flags::SYN), 5),
    (Body::Tcp(flags::RST), 5),
    (Body::Udp, 5),
    (Body::UdpUnsummed, 5),
    (Body::EchoRequest, 5),
    (Body::EchoReply, 5),
    (Body::Sctp, 5),
    (Body::Dccp, 5),
    (Body::Other(47), 0),
    (Body::Other(50), 0),
];

#[test]
fn every_protocol_both_ways() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let before = entries(world, family);
            for (outer, inner) in outer(family).into_iter().zip(["backend", "backend_2"]) {
                for (body, port) in BODIES {
                    let (client, outer, inner) =
                        (end(family, "client", port), SocketAddr::new(outer, port), end(family, inner, port));
                    let request = TestPacket::new(client, outer, body);
                    check_both(world, "to a host behind", &request, forward("net", request.forwarded(client, inner)));
                    let answer = TestPacket::new(inner, client, body);
                    check_both(world, "from a host behind", &answer, reply("net", answer.forwarded(outer, client)));
                }
            }
            assert_eq!(entries(world, family), before);
        }
    });
}

/// Of DCCP that is a sum like any other (RFC 4340 section 9.1), while UDP over IPv4 has none then (RFC 768).
#[test]
fn a_checksum_of_zero() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for body in [Body::Dccp, Body::Udp] {
                let (client, backend) = (end(family, "client", 5), end(family, "backend", 5));
                let packet = |src, dst| TestPacket::new(src, dst, body).with(|packet| packet.payload = vec![7; 8]);
                let outer = SocketAddr::new(outer(family)[0], 5);
                // Before it is changed, and after.
                for request in [
                    packet(client, outer).summing_to_zero(),
                    packet(client, backend).summing_to_zero().with(|packet| packet.dst = outer),
                ] {
                    check_both(world, "a checksum of 0", &request, forward("net", request.forwarded(client, backend)));
                }
            }
        }
    });
}

#[test]
fn one_host_behind_to_another() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let [a_outer, b_outer] = outer(family).map(|address| SocketAddr::new(address, 5));
            let (a, b) = (end(family, "backend", 5), end(family, "backend_2", 5));
            for body in [Body::Tcp(flags::SYN), Body::Udp, Body::EchoRequest] {
                let request = TestPacket::new(a, b_outer, body);
                check_both(world, "request", &request, forward("net", request.forwarded(a_outer, b)));
                let answer = TestPacket::new(b, a_outer, body);
                check_both(world, "answer", &answer, forward("net", answer.forwarded(b_outer, a)));
            }
        }
    });
}

/// Of a rule whose backend is a host behind: XDP must not give its answers the prefix's address.
#[test]
fn the_answers_of_a_more_specific_rule() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let at = |name, port| end(family, name, port);
            let (client, public, backend) = (at("client", 4000), at("public", 80), at("backend", 80));
            let request = TestPacket::new(client, public, Body::Udp);
            check_at_tc(world, "first", &request, forward("port", request.forwarded(client, backend)).begins_flow());
            let answer = TestPacket::new(backend, client, Body::Udp);
            check_at_tc(world, "its answer", &answer, reply("port", answer.forwarded(public, client)));
            check_at_tc(world, "second", &request, forward("port", request.forwarded(client, backend)));
            check_both(world, "established", &answer, reply("port", answer.forwarded(public, client)));
            // What answers nothing of that rule is the host's own.
            let own = TestPacket::new(backend, at("client", 4001), Body::Udp);
            let outside = SocketAddr::new(outer(family)[0], 80);
            check_both(world, "its own", &own, reply("net", own.forwarded(outside, at("client", 4001))));
        }
    });
}

/// RFC 6296: subnet ffff of a /48 has no counterpart.
#[test]
fn an_address_without_counterpart() {
    world::with(RULES, |world| {
        warm_up(world);
        let outside =
            TestPacket::new(end(Family::V6, "client", 5), "[2001:db8:9:ffff::2]:5".parse().unwrap(), Body::Udp);
        let inside = TestPacket::new("[fd08:0:0:ffff::2]:5".parse().unwrap(), end(Family::V6, "client", 5), Body::Udp);
        check(world, "to it", Hook::Xdp, &outside, &Outcome::ToTc.into());
        check(world, "from it", Hook::Xdp, &inside, &Outcome::ToTc.into());
        check(world, "from it", Hook::Tc, &inside, &Outcome::DropNoMapping.into());
    });
}
