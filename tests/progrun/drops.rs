//! Packets of a rule that must not, or cannot, be forwarded; and odd ones that can.

use forwarder_common::verdict::Outcome;
use forwarder_lab::Family;

use crate::fixture::{
    Expected, arriving, check, check_at_tc, check_both, check_frame, compare, denied, difference, forward, reply, told,
    warm_up,
};
use crate::plan::{NARROW_MTU, end, ip};
use crate::test_packet::Body::{Tcp, Udp};
use crate::test_packet::{Body, NETWORK, TestPacket, flags, pieces, wrongness};
use crate::world::{self, Hook, World};

/// The fragment word of a packet that is not to be cut.
const DONT_FRAGMENT: u16 = 0x4000;

/// The sender of a packet to `narrow` is told that route's MTU.
fn told_mtu(family: Family, packet: &TestPacket) -> Expected {
    let mtu = u32::try_from(NARROW_MTU).unwrap();
    let message = if family == Family::V4 { (3, 4, mtu) } else { (2, 0, mtu) };
    told(Outcome::AnsweredTooBig, ip(family, "public"), message, packet)
}

const RULES: &str = include_str!("../fixtures/rules.toml");

#[test]
fn only_allowed_clients_are_let_in() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let (client, other) = (end(family, "client", 40_000), end(family, "client_2", 40_000));
            let packet = |src, port| TestPacket::new(src, end(family, "public", port), Tcp(flags::SYN));
            let allowed = packet(client, 81);
            check_both(
                world,
                "allowed",
                &allowed,
                forward("allowed", allowed.forwarded(client, end(family, "backend", 81))),
            );
            check_both(world, "not allowed", &packet(other, 81), denied(family, "allowed"));
            // A rule with flows is judged at TC.
            check_at_tc(world, "not allowed a flow", &packet(other, 91), denied(family, "fixed"));
        }
    });
}

#[test]
fn the_last_hop_is_not_taken() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 80));
            let with_limit = |limit: u8| {
                TestPacket::new(client, end(family, "public", 80), Udp).with(|packet| packet.hop_limit = limit)
            };
            for limit in [0, 1] {
                let packet = with_limit(limit);
                let exceeded = if family == Family::V4 { (11, 0, 0) } else { (3, 0, 0) };
                let expected = told(Outcome::AnsweredTtl, ip(family, "public"), exceeded, &packet);
                check_at_tc(world, "no hop left", &packet, expected);
            }
            for limit in [2, 255] {
                let packet = with_limit(limit);
                check_both(world, "enough hops", &packet, forward("kept", packet.forwarded(client, backend)));
            }
        }
    });
}

#[test]
fn no_way_out() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let client = end(family, "client", 40_000);
            let prohibited = TestPacket::new(client, end(family, "public", 94), Udp);
            let forbidden = if family == Family::V4 { (3, 13, 0) } else { (1, 1, 0) };
            let expected = told(Outcome::AnsweredNoRoute, ip(family, "public"), forbidden, &prohibited);
            check_at_tc(world, "a route that forbids", &prohibited, expected);
            // A silent neighbour: the kernel asks, and keeps the packet meanwhile.
            let unresolved = TestPacket::new(client, end(family, "public", 93), Udp);
            let left = forward("unresolved", unresolved.forwarded(client, end(family, "silent", 93))).by_neighbour();
            for _ in 0..2 {
                check_at_tc(world, "an unresolved neighbour", &unresolved, left.clone());
            }
            // An answer to this machine's own connection to a backend.
            let own = TestPacket::new(end(family, "backend", 80), end(family, "inner", 40_000), Tcp(flags::ACK));
            check_at_tc(world, "an answer to the machine itself", &own, Outcome::ToSelf);
        }
    });
}

#[test]
fn no_packet_is_longer_than_its_route_takes() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let client = end(family, "client", 40_000);
            let of_length = |body: Body, length: usize| {
                let empty = TestPacket::new(client, end(family, "public", 95), body)
                    .with(|packet| packet.payload.clear())
                    .with(|packet| packet.fragment = DONT_FRAGMENT);
                let rest = length - empty.length() as usize;
                empty.with(|packet| packet.payload = (0..rest).map(|i| i as u8).collect())
            };
            for body in [Udp, Tcp(flags::ACK)] {
                let fits = of_length(body, NARROW_MTU);
                let left = forward("narrow", fits.forwarded(client, end(family, "narrow", 95)));
                check_both(world, "as long as the route takes", &fits, left);
                let long = of_length(body, NARROW_MTU + 1);
                check_at_tc(world, "a byte too long", &long, told_mtu(family, &long));
                if family == Family::V4 {
                    let to_be_cut = long.with(|packet| packet.fragment = 0);
                    check_both_pieces(world, &to_be_cut);
                }
            }
            // TC also sees packets that the kernel will cut: each segment counts by itself.
            let header = if family == Family::V4 { 20 + 20 } else { 40 + 20 };
            let long = of_length(Tcp(flags::ACK), 2 * NARROW_MTU - header);
            let fits = NARROW_MTU - header;
            let left = forward("narrow", long.forwarded(client, end(family, "narrow", 95)));
            for (segment, expected) in [(fits, Expected::from(left)), (fits + 1, told_mtu(family, &long))] {
                let frame = arriving(world, &long);
                let before = world.counts();
                let ran = world.run_segmented(Hook::Tc, &frame, u32::try_from(segment).unwrap());
                let counted = difference(&before, &world.counts());
                compare(world, "segments", Hook::Tc, &frame, &ran, &counted, &expected);
            }
        }
    });
}

/// XDP leaves it to TC, which cuts it: the pieces before the last are handed in again, which a test run does not
/// see, and the last is what stays in the packet's place.
fn check_both_pieces(world: &mut World, packet: &TestPacket) {
    let frame = arriving(world, packet);
    let about = "a byte too long, and to be cut";
    check_frame(world, about, Hook::Xdp, &frame, &Expected::Passed(Outcome::ToTc));
    let ran = world.run(Hook::Tc, &frame);
    assert_eq!(ran.outcome, Outcome::HeldToCut, "{about}");
    // A piece but the last takes a multiple of 8 bytes (RFC 791 section 2.3).
    let [first, last] = &pieces(packet.transport_length(), (NARROW_MTU - 20) / 8 * 8)[..] else {
        panic!("{about}: two pieces");
    };
    assert_eq!((first.more, last.more), (true, false), "{about}");
    let identification = u16::from_be_bytes([frame[NETWORK + 4], frame[NETWORK + 5]]);
    let wanted = packet.fragment(identification.into(), last);
    assert_eq!(ran.frame[NETWORK..], wanted[NETWORK..], "{about}: the last piece");
}

#[test]
fn options_and_extension_headers_go_by_tc() {
    world::with(RULES, |world| {
        warm_up(world);
        let change_both_ways = |world: &mut World, family, about: &str, change: &dyn Fn(&mut TestPacket)| {
            let (client, listen) = (end(family, "client", 40_000), end(family, "public", 8443));
            let backend = end(family, "backend", 443);
            for body in [Tcp(flags::SYN), Udp] {
                let request = TestPacket::new(client, listen, body).with(change);
                check_at_tc(world, about, &request, forward("changed", request.forwarded(client, backend)));
                let answer = TestPacket::new(backend, client, body).with(change);
                check_at_tc(world, about, &answer, reply("changed", answer.forwarded(listen, client)));
            }
        };
        for length in [4, 8, 40] {
            // Record Route (RFC 791) padded with end-of-list, which nobody fills in here.
            let options: Vec<u8> = [7, 3, 4].into_iter().chain(std::iter::repeat(0)).take(length).collect();
            change_both_ways(world, Family::V4, "options", &|packet| packet.options.clone_from(&options));
        }
        let padding = vec![1, 4, 0, 0, 0, 0];
        let (hop_by_hop, destination, routing) =
            ((0, padding.clone()), (60, padding.clone()), (43, vec![0, 0, 0, 0, 0, 0]));
        for extensions in [
            vec![hop_by_hop.clone()],
            vec![destination.clone()],
            vec![hop_by_hop.clone(), destination.clone()],
            vec![hop_by_hop, routing, destination.clone(), destination.clone()],
        ] {
            change_both_ways(world, Family::V6, "extension headers", &|packet| {
                packet.extensions.clone_from(&extensions);
            });
        }
        let (client, listen) = (end(Family::V6, "client", 40_000), end(Family::V6, "public", 8443));
        let too_many = TestPacket::new(client, listen, Udp).with(|packet| packet.extensions = vec![destination; 7]);
        check_at_tc(world, "too many extension headers", &too_many, Outcome::Malformed);
        let waypoint =
            TestPacket::new(client, listen, Udp).with(|packet| packet.extensions = vec![(43, vec![0, 1, 0, 0, 0, 0])]);
        check_at_tc(world, "on its way to a waypoint", &waypoint, Outcome::Malformed);
    });
}

#[test]
fn bytes_after_the_packet_stay_and_do_not_count() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 443));
            let padded = TestPacket::new(client, end(family, "public", 8443), Udp).with(|packet| {
                packet.payload.clear();
                packet.trailer = vec![0xee; 18];
            });
            check_both(world, "padding", &padded, forward("changed", padded.forwarded(client, backend)));
        }
    });
}

#[test]
fn a_checksum_that_comes_to_zero_is_sent_as_all_ones() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 443));
            let with_word = |word: u16| {
                TestPacket::new(client, end(family, "public", 8443), Udp)
                    .with(|packet| packet.payload = word.to_be_bytes().to_vec())
            };
            // The word that makes the forwarded packet's sum zero: what its checksum is with a word of 0.
            let checksum = NETWORK + if family == Family::V4 { 20 } else { 40 } + 6;
            let plain = with_word(0).forwarded(client, backend).frame();
            let word = u16::from_be_bytes([plain[checksum], plain[checksum + 1]]);
            let packet = with_word(word);
            let left = packet.forwarded(client, backend);
            assert_eq!(left.frame()[checksum..checksum + 2], [0xff, 0xff], "the test's own arithmetic");
            check_both(world, "comes to zero", &packet, forward("changed", left.clone()));
            // And the other way: all ones is a checksum like any other.
            let answer = TestPacket::new(backend, client, Udp);
            let listen = end(family, "public", 8443);
            let plain = answer.with(|packet| packet.payload = vec![0, 0]).frame();
            let word = [plain[checksum], plain[checksum + 1]];
            let answer = answer.with(|packet| packet.payload = word.to_vec());
            assert_eq!(answer.frame()[checksum..checksum + 2], [0xff, 0xff], "the test's own arithmetic");
            check_both(world, "comes from zero", &answer, reply("changed", answer.forwarded(listen, client)));
        }
    });
}

#[test]
fn a_wrong_checksum_stays_exactly_as_wrong() {
    world::with(RULES, |world| {
        warm_up(world);
        for family in Family::ALL {
            for (body, at) in [(Tcp(flags::ACK), 16), (Udp, 6)] {
                let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 8443), body);
                let mut frame = arriving(world, &packet);
                let checksum = NETWORK + if family == Family::V4 { 20 } else { 40 } + at;
                frame[checksum] ^= 0x5a;
                let wrong = wrongness(&frame);
                assert_ne!(wrong.1, 0);
                for hook in Hook::BOTH {
                    let ran = world.run(hook, &frame);
                    assert_eq!(ran.outcome, Outcome::Forwarded);
                    assert_eq!(wrongness(&ran.frame), wrong, "{hook:?} {body:?}");
                }
            }
        }
    });
}

#[test]
fn the_way_out_is_asked_for_once_and_confirmed_by_the_kernel() {
    world::with(RULES, |world| {
        for family in Family::ALL {
            let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 80));
            let packet = TestPacket::new(client, end(family, "public", 80), Udp);
            let known = forward("kept", packet.forwarded(client, backend));
            let asked = known.clone().by_neighbour();
            for about in ["nobody has asked yet", "another epoch"] {
                check_at_tc(world, about, &packet, asked.clone());
                check_both(world, "known now", &packet, known.clone());
                world.forget_next_hops();
            }
            // At TC alone the packet that asks is the one that confirms.
            check(world, "another epoch, at TC", Hook::Tc, &packet, &asked.clone().into());
            check_both(world, "known again", &packet, known.clone());
            // Of the packets at XDP only the one that asks is left to TC, also when TC never sees it.
            world.forget_next_hops();
            check(world, "another epoch, at XDP", Hook::Xdp, &packet, &Outcome::ToTc.into());
            check(world, "asked at XDP", Hook::Xdp, &packet, &known.clone().into());
            check(world, "confirmed at TC", Hook::Tc, &packet, &asked.clone().into());
        }
        let frame = arriving(world, &TestPacket::new(end(Family::V4, "client", 1), end(Family::V4, "public", 22), Udp));
        check_frame(world, "not ours", Hook::Xdp, &frame, &Outcome::NotOurs.into());
    });
}
