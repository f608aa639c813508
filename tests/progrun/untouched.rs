//! What no rule names, what is not for the forwarder, and what is no proper packet: not a byte of it changes.

use std::net::{IpAddr, TcpListener, UdpSocket};

use forwarder_common::{fast::LEAST_TRANSPORT, verdict::Outcome};
use forwarder_lab::Family;

use crate::fixture::{Expected, arriving, check_both, check_frame, forward, warm_up};
use crate::plan::{end, ip};
use crate::test_packet::Body::{Tcp, Udp};
use crate::test_packet::{Body, NETWORK, TestPacket, flags};
use crate::world::{self, Hook, World};

const RULES: &str = include_str!("../fixtures/rules.toml");

/// A packet that is forwarded unless something is wrong with it.
fn proper(family: Family, body: Body) -> TestPacket {
    TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), body)
}

fn check_frame_both(world: &mut World, about: &str, frame: &[u8], xdp: Outcome, tc: Outcome) {
    for (hook, outcome) in [(Hook::Xdp, xdp), (Hook::Tc, tc)] {
        check_frame(world, about, hook, frame, &Expected::from(outcome));
    }
}

#[test]
fn what_no_rule_names_passes() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let to = |name, port, body| TestPacket::new(end(family, "client", 40_000), end(family, name, port), body);
            let table = [
                ("a port next to that of a rule", to("public", 79, Tcp(flags::SYN))),
                ("SSH", to("public", 22, Tcp(flags::SYN))),
                ("before a range", to("public", 1999, Udp)),
                ("after a range", to("public", 2100, Udp)),
                ("another protocol of a port", to("public", 80, Body::Sctp)),
                ("another protocol of an address", to("public", 0, Body::Other(47))),
                ("another address", to("inner", 80, Tcp(flags::SYN))),
                (
                    "not an answer of a backend",
                    TestPacket::new(end(family, "backend", 81), end(family, "public", 40_000), Body::Sctp),
                ),
                (
                    "another port of a backend",
                    TestPacket::new(end(family, "backend", 79), end(family, "client", 40_000), Udp),
                ),
                ("to a stranger", to("stranger", 80, Udp)),
            ];
            for (about, packet) in table {
                check_both(world, about, &packet, Outcome::NotOurs);
            }
            for protocol in [0, 51] {
                let packet = to("public_2", 0, Body::Other(protocol));
                let outcome = if family == Family::V6 && protocol == 0 { continue } else { Outcome::Untranslatable };
                check_both(world, "what a whole address does not take either", &packet, outcome);
            }
            for source in if family == Family::V4 {
                ["127.0.0.1", "224.0.0.1", "169.254.7.9"]
            } else {
                ["::1", "ff02::1", "fe80::1"]
            } {
                let martian =
                    TestPacket { src: (source.parse::<IpAddr>().unwrap(), 40_000).into(), ..to("public", 80, Udp) };
                check_both(world, "a source that cannot be answered", &martian, Outcome::Martian);
            }
            for kind in [133, 135, 136] {
                check_both(world, "ICMP that is no echo", &to("public", 0, Body::Icmp(kind)), Outcome::IcmpOther);
            }
        }
    });
}

#[test]
fn what_belongs_to_a_connection_of_the_machine_passes_a_wide_rule() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let public = ip(family, "public");
            let _sockets = (TcpListener::bind((public, 2001)).unwrap(), UdpSocket::bind((public, 2002)).unwrap());
            let to = |port, body| TestPacket::new(end(family, "client", 40_000), end(family, "public", port), body);
            check_both(world, "a port of a range with a socket", &to(2002, Udp), Outcome::ToSelf);
            // One that only listens is shadowed by the rule.
            let packet = to(2001, Tcp(flags::SYN));
            let left = forward("range", packet.forwarded(packet.src, end(family, "backend", 2001)));
            check_both(world, "a port of a range with a listener", &packet, left);
        }
    });
}

#[test]
fn frames_that_are_not_for_the_forwarder_pass() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let frame = arriving(world, &proper(family, Udp));
            let with_destination = |mac: [u8; 6]| [&mac[..], &frame[6..]].concat();
            for (about, mac) in [
                ("another station", [2, 0, 0, 0, 0xff, 0xff]),
                ("broadcast", [0xff; 6]),
                ("IPv4 multicast", [1, 0, 0x5e, 0, 0, 1]),
                ("IPv6 multicast", [0x33, 0x33, 0, 0, 0, 1]),
            ] {
                check_frame_both(world, about, &with_destination(mac), Outcome::NotForUs, Outcome::NotForUs);
            }
            // Tagged, it is of another network. (At TC the kernel usually takes the tag out: tests/netns.)
            for tag in [[0x81, 0x00, 0x00, 0x64], [0x88, 0xa8, 0x00, 0x64]] {
                let tagged = [&frame[..12], &tag, &frame[12..]].concat();
                check_frame_both(world, "VLAN", &tagged, Outcome::NotIp, Outcome::NotIp);
            }
            for kind in [[0x08, 0x06], [0x88, 0xcc], [0x00, 0x26], [0x88, 0x64]] {
                let other = [&frame[..12], &kind, &frame[14..]].concat();
                check_frame_both(world, "another ethertype", &other, Outcome::NotIp, Outcome::NotIp);
            }
        }
    });
}

#[test]
fn what_is_malformed_passes() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for body in [Tcp(flags::ACK), Udp, Body::EchoRequest] {
                let frame = arriving(world, &proper(family, body));
                for length in NETWORK + 1..frame.len() {
                    let about = format!("cut to {length} bytes");
                    let [malformed, to_tc] = [Outcome::Malformed, Outcome::ToTc].map(Expected::from);
                    let header = NETWORK + if family == Family::V4 { 20 } else { 40 };
                    // What has an ethertype, which XDP reads with two bytes behind it, but not all headers is for TC to judge.
                    let short = (NETWORK + 2..header + LEAST_TRANSPORT).contains(&length);
                    let at_xdp = if short { &to_tc } else { &malformed };
                    check_frame(world, &about, Hook::Xdp, &frame[..length], at_xdp);
                    // Newer kernels (6.18) refuse a test run at TC with less than a network header.
                    if length >= header {
                        check_frame(world, &about, Hook::Tc, &frame[..length], &malformed);
                    }
                }
            }
            let frame = arriving(world, &proper(family, Udp));
            let changed = |at: usize, byte: u8| {
                let mut frame = frame.clone();
                frame[NETWORK + at] = byte;
                frame
            };
            let table: &[(&str, Vec<u8>)] = if family == Family::V4 {
                &[
                    ("version 6 in an IPv4 frame", changed(0, 0x65)),
                    ("a header of 16 bytes", changed(0, 0x44)),
                    ("a header longer than the packet", changed(0, 0x4f)),
                    ("a length shorter than its header", changed(3, 19)),
                    ("a length shorter than its UDP header", changed(3, 27)),
                    ("a length longer than its frame", changed(2, 1)),
                    ("ICMPv6 in IPv4", changed(9, 58)),
                ]
            } else {
                &[
                    ("version 4 in an IPv6 frame", changed(0, 0x45)),
                    ("a length shorter than its UDP header", changed(5, 7)),
                    ("a length longer than its frame", changed(4, 1)),
                    ("no length", changed(5, 0)),
                    ("ICMP in IPv6", changed(6, 1)),
                ]
            };
            for (about, frame) in table {
                check_frame_both(world, about, frame, Outcome::Malformed, Outcome::Malformed);
            }
        }
    });
}

#[test]
fn fragments_without_their_first_pass() {
    world::with(RULES, |world| {
        warm_up(world);
        // To an address that no rule names: to one that a rule does name it may belong, and waits for its first.
        let proper_to_stranger = |family| proper(family, Udp).with(|packet| packet.dst = end(family, "stranger", 80));
        for (about, word) in [("one in the middle", 0x2001), ("the last", 0x00b9)] {
            let fragment = proper_to_stranger(Family::V4).with(|packet| packet.fragment = word);
            check_both(world, about, &fragment, Outcome::Fragment);
        }
        for rest in [[0, 9, 1, 2, 3, 4], [0, 8, 1, 2, 3, 4]] {
            let fragment = proper_to_stranger(Family::V6).with(|packet| packet.extensions.push((44, rest.to_vec())));
            let frame = arriving(world, &fragment);
            check_frame_both(world, "an IPv6 fragment", &frame, Outcome::ToTc, Outcome::Fragment);
        }
        // Don't Fragment is no fragment.
        let whole = proper(Family::V4, Udp).with(|packet| packet.fragment = 0x4000);
        let left = whole.forwarded(whole.src, end(Family::V4, "backend", 80));
        check_both(world, "don't fragment", &whole, forward("kept", left));
    });
}
