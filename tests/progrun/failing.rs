//! The programs with a helper of the kernel that fails each time, as it would without memory. Whatever happens then, the packet is
//! as it was or as it has to be, and is counted.

use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType, tc::qdisc_add_clsact};
use forwarder::bpf::{interfaces, load};
use forwarder_common::abi::{KnownInterface, interface_flags};
use forwarder_common::verdict::Outcome;
use forwarder_lab::{Family, Tun, TunKind, patience};

use crate::connection::{Connection, KEEPING_FLOWS, entries};
use crate::fixture::{Expected, arriving, check, check_at_tc, check_frame, difference, forward, warm_up};
use crate::patched::{NO_MEMORY, Patched, helper};
use crate::plan::{NARROW_MTU, end, ip, station};
use crate::test_packet::Body::{IcmpError, Tcp, Udp};
use crate::test_packet::{NETWORK, Piece, TestPacket, flags, icmp_error};
use crate::world::{self, Hook, World};

const RULES: &str = include_str!("../fixtures/rules.toml");

/// Somebody asks on the clients' side for a host on the backends'.
const NEIGHBORS: &str = r#"
[[neighbor]]
name = "asked-{v}"
interface = "eth0"
for = "{backend}"
via = "eth1"
answer = "while-alive"
"#;

/// Runs a test for each family on programs in which this helper fails, with these rules.
fn with_failing_and(helper: u32, rules: &str, test: impl Fn(&mut World, Family) + Send + Sync) {
    world::with_object(
        Patched::answering(helper, NO_MEMORY).bytes(),
        rules,
        |_| {},
        |world| {
            if rules == RULES && ![helper::FIB_LOOKUP, helper::L4_CSUM_REPLACE].contains(&helper) {
                warm_up(world);
            }
            for family in Family::ALL {
                test(world, family);
            }
        },
    );
}

/// With the rules of the fixtures.
fn with_failing(helper: u32, test: impl Fn(&mut World, Family) + Send + Sync) {
    with_failing_and(helper, RULES, test);
}

/// A packet of a rule without state, with one more hop to go than it has.
fn last_hop(family: Family) -> TestPacket {
    let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), Udp);
    // Longer than what an error quotes.
    packet.with(|packet| (packet.hop_limit, packet.payload) = (1, vec![7; 1_400]))
}

/// One that is a byte too long for its way, and may be cut there.
fn to_be_cut() -> TestPacket {
    let packet = TestPacket::new(end(Family::V4, "client", 40_000), end(Family::V4, "public", 95), Udp);
    packet.with(|packet| packet.payload = vec![7; NARROW_MTU + 1 - 28])
}

/// The fragments of a datagram.
fn fragments(world: &World, family: Family) -> [Vec<u8>; 2] {
    let request = TestPacket::new(end(family, "client", 61_005), end(family, "public", 8443), Udp);
    let request = request.with(|packet| packet.payload = vec![7; 2_000]);
    [Piece { bytes: 0..1_448, more: true }, Piece { bytes: 1_448..2_008, more: false }].map(|piece| {
        let mut frame = request.fragment(77, &piece);
        frame[..6].copy_from_slice(&world.mac());
        frame
    })
}

/// What becomes of a frame at TC: dropped, and counted once; as it was, or not any more, for nobody sees it.
fn counted_at_tc(world: &mut World, frame: &[u8]) -> Outcome {
    const TC_ACT_SHOT: u32 = 2;
    let before = world.counts();
    let ran = world.run(Hook::Tc, frame);
    assert_eq!(ran.returned, TC_ACT_SHOT, "{:?}", ran.outcome);
    let counted = difference(&before, &world.counts());
    assert_eq!(counted.interface.tc[ran.outcome as usize], 1, "{:?}", ran.outcome);
    assert_eq!(counted.interface.tc.iter().sum::<u64>(), 1, "{:?}", ran.outcome);
    ran.outcome
}

/// A client asks who has the backend's address (RFC 826; RFC 4861 section 4.3, unicast).
fn question(world: &World, family: Family) -> Vec<u8> {
    let [asker, target] = ["client", "backend"].map(|name| ip(family, name));
    let mac = station(asker);
    let mut frame = match (asker, target) {
        (std::net::IpAddr::V4(asker), std::net::IpAddr::V4(target)) => {
            let request =
                [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac[..], &asker.octets(), &[0; 6], &target.octets()].concat();
            [&[0xff; 12][..], &[8, 6], &request[..]].concat()
        }
        (_, std::net::IpAddr::V6(to)) => {
            let packet = TestPacket::new((asker, 0).into(), (target, 0).into(), IcmpError(135, 0, [0; 4]));
            let payload = [&to.octets()[..], &[1, 1], &mac[..]].concat();
            arriving(world, &packet.with(|packet| (packet.hop_limit, packet.payload) = (255, payload)))
        }
        _ => panic!("of one family"),
    };
    frame[6..12].copy_from_slice(&mac);
    frame
}

/// A backend's host says that a port is not there, about a packet of a rule without state.
fn port_unreachable(world: &World, family: Family) -> Vec<u8> {
    let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 80));
    let about = TestPacket::new(client, backend, Udp).ip();
    let message = if family == Family::V4 { (3, 3, 0) } else { (1, 4, 0) };
    let mut frame = icmp_error(backend.ip(), client.ip(), message, &about, 0);
    frame[..6].copy_from_slice(&world.mac());
    frame
}

fn check_tc(world: &mut World, about: &str, packet: &TestPacket, expected: impl Into<Expected>) {
    check(world, about, Hook::Tc, packet, &expected.into());
}

fn check_tc_frame(world: &mut World, about: &str, frame: &[u8], outcome: Outcome) {
    check_frame(world, about, Hook::Tc, frame, &Expected::from(outcome));
}

/// What must not depend on the helper.
fn stateless_goes_on(world: &mut World, family: Family) {
    let (client, backend) = (end(family, "client", 40_000), end(family, "backend", 80));
    let packet = TestPacket::new(client, end(family, "public", 80), Udp);
    let left = forward("kept", packet.forwarded(client, backend));
    check(world, "without state", Hook::Xdp, &packet, &left.into());
}

/// Nothing says so to the program's caller but what it returns: the tracepoints tell of what is refused later.
#[test]
fn an_interface_that_is_gone_takes_nothing() {
    const XDP_DROP: u32 = 1;
    with_failing(helper::REDIRECT_MAP, |world, family| {
        let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), Udp);
        let frame = arriving(world, &packet);
        let [refused, not_taken] = load::redirect_losses(&world.pins).unwrap();
        let ran = world.run(Hook::Xdp, &frame);
        assert_eq!((ran.outcome, ran.returned), (Outcome::Forwarded, XDP_DROP), "{family:?}");
        assert_eq!(load::redirect_losses(&world.pins).unwrap(), [refused + 1, not_taken], "{family:?}");
    });
}

#[test]
fn ipv6_without_its_program_goes_to_tc() {
    with_failing(helper::TAIL_CALL, |world, family| match family {
        Family::V4 => stateless_goes_on(world, family),
        Family::V6 => {
            let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), Udp);
            check(world, "not handed over", Hook::Xdp, &packet, &Outcome::ToTc.into());
        }
    });
}

#[test]
fn a_checksum_that_cannot_be_changed_drops_the_packet() {
    with_failing(helper::L4_CSUM_REPLACE, |world, family| {
        let (client, listen) = (end(family, "client", 40_000), end(family, "public", 80));
        for body in [Udp, Tcp(flags::SYN)] {
            check_tc(world, "no checksum", &TestPacket::new(client, listen, body), Outcome::DropError);
        }
        // Whether a checksum is finished is asked by the same helper.
        check_tc(world, "not told", &last_hop(family), Outcome::DropTtl);
        if family == Family::V4 {
            check_tc(world, "not cut", &to_be_cut(), Outcome::DropTooBig);
        }
    });
}

#[test]
fn what_cannot_be_told_is_dropped() {
    for failing in [helper::SKB_CHANGE_TAIL, helper::SKB_PULL_DATA, helper::SKB_ADJUST_ROOM] {
        with_failing(failing, |world, family| {
            let frame = arriving(world, &last_hop(family));
            assert_eq!(counted_at_tc(world, &frame), Outcome::DropTtl, "helper {failing}");
        });
    }
}

#[test]
fn what_cannot_be_read_is_not_kept_not_cut_and_not_translated() {
    for failing in [helper::SKB_LOAD_BYTES, helper::CSUM_DIFF] {
        with_failing(failing, |world, family| {
            let error = port_unreachable(world, family);
            check_tc_frame(world, "an error's sum", &error, Outcome::IcmpBadChecksum);
            stateless_goes_on(world, family);
            if failing != helper::SKB_LOAD_BYTES {
                return;
            }
            let [_, fragment] = fragments(world, family);
            check_tc_frame(world, "a fragment", &fragment, Outcome::DropNotHeld);
            if family == Family::V4 {
                let frame = arriving(world, &to_be_cut());
                assert_eq!(counted_at_tc(world, &frame), Outcome::DropTooBig, "not cut");
            }
        });
    }
}

/// The third packet would make it a protected flow.
fn a_flow_stays_unprotected(world: &mut World, family: Family) {
    let connection = Connection::new(family, KEEPING_FLOWS[0], 4000);
    let (packet, left) = connection.request(Udp);
    check_at_tc(world, "the first", &packet, left.begins_flow());
    connection.answer_at_tc(world, "the answer", Udp, Outcome::NotOurs);
    let (packet, left) = connection.request(Udp);
    check_at_tc(world, "the second", &packet, left.unprotected());
    assert_eq!(entries(world, family), (0, 2));
}

#[test]
fn a_table_that_takes_nothing_protects_no_flow() {
    with_failing(helper::MAP_UPDATE_ELEM, |world, family| {
        a_flow_stays_unprotected(world, family);
        // Of the first fragment nothing is noted, and it goes its way; the second cannot wait.
        let [first, second] = fragments(world, family);
        assert_eq!(world.run(Hook::Tc, &first).outcome, Outcome::Forwarded);
        check_tc_frame(world, "a fragment", &second, Outcome::DropNotHeld);
    });
}

#[test]
fn a_flow_that_no_sweep_slot_is_left_for_goes_on_unprotected() {
    with_failing(helper::MAP_POP_ELEM, a_flow_stays_unprotected);
}

#[test]
fn without_an_answer_from_routing_nothing_is_sent() {
    with_failing(helper::FIB_LOOKUP, |world, family| {
        let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), Udp);
        check_at_tc(world, "no answer from routing", &packet, Outcome::DropNoRoute);
    });
}

/// The pieces of what is cut, and what waited for a first fragment, are handed in again by copies of the packet.
#[test]
fn what_cannot_be_handed_in_is_counted_as_lost() {
    for failing in [helper::CLONE_REDIRECT, helper::SKB_STORE_BYTES] {
        with_failing(failing, |world, family| {
            if family == Family::V4 {
                let frame = arriving(world, &to_be_cut());
                assert_eq!(counted_at_tc(world, &frame), Outcome::DropError, "helper {failing}: a piece");
            }
            let [first, second] = fragments(world, family);
            check_tc_frame(world, "a fragment", &second, Outcome::HeldForFirst);
            assert_eq!(counted_at_tc(world, &first), Outcome::DropError, "helper {failing}: a fragment that waited");
            stateless_goes_on(world, family);
        });
    }
}

/// The answer is a copy of the frame, which then becomes a probe; that of IPv6 is longer than the question, or shorter.
#[test]
fn a_neighbour_whose_answer_cannot_be_made_gets_none() {
    for failing in [helper::CLONE_REDIRECT, helper::SKB_CHANGE_TAIL, helper::SKB_PULL_DATA] {
        with_failing_and(failing, NEIGHBORS, |world, family| {
            // An ARP frame keeps its length.
            if failing != helper::CLONE_REDIRECT && family == Family::V4 {
                return;
            }
            let frame = question(world, family);
            assert_eq!(counted_at_tc(world, &frame), Outcome::DropError, "helper {failing}");
        });
    }
}

/// From a device without link header to one that has one. A test run would give the packet a link header.
#[test]
fn what_gets_no_link_header_is_not_sent() {
    const LINE: &str = "line";
    with_failing(helper::SKB_CHANGE_HEAD, |world, family| {
        let line = Tun::create(&world.host, LINE, TunKind::Tun).unwrap();
        let index = world.host.ifindex(LINE).unwrap();
        let known = KnownInterface { flags: interface_flags::SERVED, slot: 0, mac: [0; 6] };
        interfaces::write(&world.pins, &[], [(index, known)].into_iter()).unwrap();
        // As a filter, which every kernel has; it goes with the interface.
        let program: &mut SchedClassifier = world.bpf().program_mut("forwarder_tc_l3").unwrap().try_into().unwrap();
        if program.fd().is_err() {
            program.load().unwrap();
        }
        qdisc_add_clsact(LINE).unwrap();
        program.attach(LINE, TcAttachType::Ingress).unwrap();
        let before = world.counts();
        let packet = TestPacket::new(end(family, "client", 40_000), end(family, "public", 80), Udp);
        line.receives(&packet.frame()[NETWORK..]).unwrap();
        let deadline = Instant::now() + patience();
        let lost = loop {
            let counted = difference(&before, &world.counts()).interface.tc;
            if counted.iter().sum::<u64>() > 0 {
                break counted[Outcome::DropError as usize];
            }
            assert!(Instant::now() < deadline, "nothing was counted");
            thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(lost, 1);
    });
}

#[test]
fn without_the_mtu_of_a_line_others_do_not_care() {
    with_failing(helper::CHECK_MTU, |world, family| {
        stateless_goes_on(world, family);
    });
}

#[test]
fn a_sweeper_that_does_not_start_says_so() {
    for failing in [helper::TIMER_INIT, helper::TIMER_START] {
        world::with_object(
            Patched::answering(failing, NO_MEMORY).bytes(),
            RULES,
            |_| {},
            |world| {
                let error = load::start_sweep(world.bpf()).unwrap_err();
                assert!(error.to_string().contains("did not start"), "{error:#}");
            },
        );
    }
}
