//! Fragments: XDP leaves them to TC, which sends them after the first of their datagram.

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::fixture::{Expected, check_frame, warm_up};
use crate::plan::{end, side_of, station};
use crate::test_packet::Body::{Tcp, Udp};
use crate::test_packet::{Body, Piece, TestPacket, flags, pieces};
use crate::world::{self, Hook, World};

const RULES: &str = include_str!("../fixtures/rules.toml");

/// This piece of `packet` as it arrives.
fn arriving(world: &World, packet: &TestPacket, piece: &Piece) -> Vec<u8> {
    let mut frame = packet.fragment(77, piece);
    frame[..6].copy_from_slice(&world.mac());
    frame
}

/// XDP passes the piece, and TC sends it as that piece of `becomes`.
fn check_sent(world: &mut World, packet: &TestPacket, becomes: &TestPacket, piece: &Piece) {
    let frame = arriving(world, packet, piece);
    let at_xdp = world.run(Hook::Xdp, &frame);
    let left = if packet.src.is_ipv4() { Outcome::Fragment } else { Outcome::ToTc };
    assert_eq!((at_xdp.outcome, at_xdp.frame), (left, frame.clone()), "{piece:?} of {packet:?}");
    let at_tc = world.run(Hook::Tc, &frame);
    let to = becomes.dst.ip();
    assert_eq!(
        (at_tc.outcome, at_tc.interface),
        (Outcome::Forwarded, world.index(side_of(to))),
        "{piece:?} of {packet:?}"
    );
    let mut wanted = becomes.fragment(77, piece);
    wanted[..12].copy_from_slice(&[station(to), world.mac_of(side_of(to))].concat());
    assert_eq!(at_tc.frame, wanted, "{piece:?} of {packet:?}");
}

#[test]
fn fragments_go_the_way_of_their_first() {
    // A port that stays free, and outside the ports of local sockets: it is kept.
    const CLIENT_PORT: u16 = 61_001;
    let table = [
        ("stateless", 8443, ("client", CLIENT_PORT), 443),
        ("a flow", 92, ("client", CLIENT_PORT), 92),
        ("masqueraded", 90, ("inner", CLIENT_PORT), 9090),
    ];
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for (about, port, seen, backend_port) in table {
                for body in [Udp, Body::UdpUnsummed, Tcp(flags::SYN)] {
                    let client = end(family, "client", CLIENT_PORT);
                    let (listen, backend) = (end(family, "public", port), end(family, "backend", backend_port));
                    let seen = end(family, seen.0, seen.1);
                    let request = TestPacket::new(client, listen, body).with(|p| p.payload = vec![7; 3000]);
                    let all = pieces(request.transport_length(), 1448);
                    assert_eq!(all.len(), 3, "{about}");
                    let sent = request.forwarded(seen, backend);
                    for piece in &all {
                        check_sent(world, &request, &sent, piece);
                    }
                    let answer = sent.answer(body).with(|p| p.hop_limit = 64);
                    let back = answer.forwarded(listen, client);
                    for piece in &all {
                        check_sent(world, &answer, &back, piece);
                    }
                }
            }
        }
    });
}

/// TC keeps those that come before their first, and hands all in again when it comes (which a test run does not see).
#[test]
fn fragments_wait_for_their_first() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for port in [8443, 92, 90] {
                let (client, listen) = (end(family, "client", 61_003), end(family, "public", port));
                let request = TestPacket::new(client, listen, Udp).with(|p| p.payload = vec![7; 3000]);
                let all = pieces(request.transport_length(), 1448);
                // The last, the middle one, the last once more, the first.
                let order = [2, 1, 2, 0];
                let outcomes =
                    order.map(|piece| if piece == 0 { Outcome::HeldToFollow } else { Outcome::HeldForFirst });
                for (piece, outcome) in order.map(|piece| &all[piece]).into_iter().zip(outcomes) {
                    let frame = arriving(world, &request, piece);
                    let left = if family == Family::V4 { Outcome::Fragment } else { Outcome::ToTc };
                    check_frame(world, "before its first", Hook::Xdp, &frame, &Expected::from(left));
                    if outcome == Outcome::HeldToFollow {
                        // Its place is taken by those that are handed in.
                        assert_eq!(world.run(Hook::Tc, &frame).outcome, outcome, "{family:?} {port}");
                    } else {
                        check_frame(world, "before its first", Hook::Tc, &frame, &Expected::from(outcome));
                    }
                }
            }
        }
    });
}

/// What is longer than a place to wait in cannot wait: the first would have been sent in no more than that either.
#[test]
fn a_fragment_that_cannot_wait_is_dropped() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let (client, listen) = (end(family, "client", 61_004), end(family, "public", 8443));
            let request = TestPacket::new(client, listen, Udp).with(|p| p.payload = vec![7; 3_300]);
            let header = if family == Family::V4 { 20 } else { 48 };
            // The longest that can, in eight bytes, and the next.
            let most = (1_504 - header) / 8 * 8;
            for (length, outcome) in [(most, Outcome::HeldForFirst), (most + 8, Outcome::DropNotHeld)] {
                let bytes = 1_600..1_600 + length;
                let frame = arriving(world, &request, &Piece { bytes, more: true });
                check_frame(world, "before its first", Hook::Tc, &frame, &Expected::from(outcome));
            }
        }
    });
}
