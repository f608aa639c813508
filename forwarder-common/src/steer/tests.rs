use std::{net::IpAddr, vec, vec::Vec};

use super::*;
use crate::{
    tables::memory::HOP,
    test_packet::{Body, NETWORK, TestPacket, at, flags},
    test_world::{Hook, Source, TestFamily, World, both_families},
};

both_families!(
    replies_of_rules_leave_by_their_line,
    the_longest_prefix_decides_and_then_the_kind,
    what_is_connected_needs_no_line,
    what_passes_through_is_steered_unless_forged,
    the_kernel_answers_what_cannot_go_on,
    own_packets_go_to_their_line,
    own_packets_on_their_line_already_are_left_alone,
    what_is_too_big_for_the_line_does_not_leave,
    nothing_leaves_by_a_line_that_is_down_nor_by_another,
    segments_fit_the_line_in_both_directions,
);

/// The interface of the line; tests' other routes are by that of [`HOP`].
const LINE: u32 = 21;
/// The interface behind which hosts with addresses of the line are.
const INSIDE: u32 = 8;

/// All of an address.
fn host<F: TestFamily>(address: IpAddr) -> (IpAddr, u32) {
    (address, if F::LISTEN.is_ipv4() { 32 } else { 128 })
}

fn kind_of(protocol: u8, port: u16) -> u32 {
    u32::from(protocol) << 8 | u32::from(port.to_be()) << 16
}

fn udp<F: TestFamily>(src: IpAddr) -> TestPacket {
    TestPacket::new(at(src, 5000), at(F::CLIENT, 53), Body::Udp)
}

/// A router that the routing knows, by its own link address.
fn with_router<F: TestFamily>(world: &mut World<F>) -> Hop {
    let hop = Hop { interface: LINE, link_addresses: [2, 0, 0, 0, 0, 0x77, 2, 0, 0, 0, 0, 0x78], ..HOP };
    world.tables.hops.insert(F::address(F::OTHER_CLIENT), hop);
    hop
}

fn replies_of_rules_leave_by_their_line<F: TestFamily>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        let router = with_router(&mut world);
        let slot = world.steer(host::<F>(F::LISTEN), 0, LINE, Some(F::OTHER_CLIENT));
        let request = TestPacket::new(at(F::CLIENT, 4000), at(F::LISTEN, 80), Body::Udp);
        let (verdict, _) = world.process_bytes(Hook::Tc, request.frame());
        assert_eq!(verdict, Verdict::transmit(HOP), "towards the backend as routing says");
        let seen = world.flow(&request).map_or(at(F::CLIENT, 4000), |flow| {
            at(crate::test_world::ip::<F>(flow.rewrite.src), u16::from_be(flow.rewrite.src_port))
        });
        let answer = TestPacket::new(at(F::BACKEND, 8080), seen, Body::Udp);
        let (verdict, bytes) = world.process_bytes(Hook::Tc, answer.frame());
        assert_eq!(verdict, Verdict::transmit(Hop { line: slot, ..router }), "{source:?}");
        assert_eq!(bytes, answer.forwarded(at(F::LISTEN, 80), at(F::CLIENT, 4000)).frame());
    }
}

fn the_longest_prefix_decides_and_then_the_kind<F: TestFamily>() {
    let mut world = World::<F>::new();
    let wide = (F::LISTEN, if F::LISTEN.is_ipv4() { 24 } else { 64 });
    let tables = [
        world.steer(wide, 0, 1, None),
        world.steer(wide, kind_of(17, 0), 2, None),
        world.steer(wide, kind_of(17, 53), 3, None),
        world.steer(host::<F>(F::OTHER_LISTEN), 0, 4, None),
        world.steer(host::<F>(F::OTHER_LISTEN), kind_of(6, 443), 5, None),
    ];
    let [any, of_udp, dns, other, https] = tables;
    let cases = [
        (F::LISTEN, 6, 80, any),
        (F::LISTEN, 17, 80, of_udp),
        (F::LISTEN, 17, 53, dns),
        (F::LISTEN, 6, 53, any),
        (F::LISTEN, 47, 0, any),
        // A longer prefix says more than any kind of packet of a shorter one.
        (F::OTHER_LISTEN, 17, 53, other),
        (F::OTHER_LISTEN, 6, 443, https),
        (F::OTHER_LISTEN, 6, 444, other),
        (F::BACKEND, 17, 53, 0),
    ];
    for (src, protocol, port, expected) in cases {
        let kind = kind(&world.tables.settings, protocol, u16::to_be(port));
        let found = line(&world.tables, &F::address(src), &F::address(F::CLIENT), kind);
        assert_eq!(found, expected, "{src} protocol {protocol} port {port}");
    }
}

fn what_is_connected_needs_no_line<F: TestFamily>() {
    let mut world = World::<F>::new();
    let slot = world.steer(host::<F>(F::LISTEN), 0, LINE, None);
    let found = |world: &World<F>| line(&world.tables, &F::address(F::LISTEN), &F::address(F::CLIENT), 0);
    assert_eq!(found(&world), slot);
    world.connected(F::CLIENT, 16);
    assert_eq!(found(&world), 0);
}

fn what_passes_through_is_steered_unless_forged<F: TestFamily>() {
    for body in [Body::Udp, Body::Tcp(flags::ACK), Body::EchoRequest, Body::Sctp, Body::Other(47), Body::Icmp(200)] {
        let mut world = World::<F>::new();
        let slot = world.steer(host::<F>(F::BACKEND), 0, LINE, None);
        // The host is where the packet comes from.
        world.tables.hops.insert(F::address(F::BACKEND), Hop { interface: INSIDE, ..HOP });
        world.tables.ingress.set(INSIDE);
        let port = if matches!(body, Body::Other(_) | Body::Icmp(_)) { 0 } else { 5000 };
        let packet = TestPacket::new(at(F::BACKEND, port), at(F::CLIENT, 0), body);
        let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.frame());
        assert_eq!(verdict, Verdict::transmit(Hop { interface: LINE, line: slot, ..HOP }), "{body:?}");
        assert_eq!(bytes, packet.forwarded(packet.src, packet.dst).frame(), "one hop less and nothing else");
        let passed = if matches!(body, Body::Icmp(_)) { Outcome::IcmpOther } else { Outcome::NotOurs };
        // By another interface than its source is behind; by the line itself.
        for ingress in [HOP.interface, LINE] {
            world.tables.ingress.set(ingress);
            world.leaves(Hook::Tc, &packet, passed);
        }
        // A source without a line.
        world.tables.ingress.set(INSIDE);
        world.tables.hops.insert(F::address(F::OTHER_CLIENT), Hop { interface: INSIDE, ..HOP });
        world.leaves(Hook::Tc, &packet.with(|p| p.src.set_ip(F::OTHER_CLIENT)), passed);
    }
}

fn nothing_leaves_by_a_line_that_is_down_nor_by_another<F: TestFamily>() {
    // What rules translate, in both source modes.
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        world.steer(host::<F>(F::LISTEN), 0, 0, None);
        let request = TestPacket::new(at(F::CLIENT, 4000), at(F::LISTEN, 80), Body::Udp);
        assert_eq!(world.process_bytes(Hook::Tc, request.frame()).0, Verdict::transmit(HOP), "{source:?}");
        let seen = world.flow(&request).map_or(at(F::CLIENT, 4000), |flow| {
            at(crate::test_world::ip::<F>(flow.rewrite.src), u16::from_be(flow.rewrite.src_port))
        });
        let answer = TestPacket::new(at(F::BACKEND, 8080), seen, Body::Udp);
        world.leaves(Hook::Tc, &answer, Outcome::DropLineDown);
    }
    // What passes through, and what the machine sends itself.
    let mut world = World::<F>::new();
    let slot = world.steer(host::<F>(F::BACKEND), 0, 0, None);
    world.tables.hops.insert(F::address(F::BACKEND), Hop { interface: INSIDE, ..HOP });
    world.tables.ingress.set(INSIDE);
    let packet = udp::<F>(F::BACKEND);
    world.leaves(Hook::Tc, &packet, Outcome::DropLineDown);
    let mut frame = packet.frame();
    let verdict = leave::<F, _>(&mut frame.as_mut_slice(), &world.tables, NETWORK, HOP.interface);
    assert_eq!((verdict, &frame), (Verdict::of(Outcome::DropLineDown), &packet.frame()));
    assert_eq!(world.tables.counted(slot + 100).events, [Event::Denied; 2], "each is counted");
    // Forged ones are the kernel's, as ever; what is connected needs no line.
    world.tables.ingress.set(HOP.interface);
    world.leaves(Hook::Tc, &packet, Outcome::NotOurs);
    world.connected(F::CLIENT, 16);
    let verdict = leave::<F, _>(&mut packet.frame().as_mut_slice(), &world.tables, NETWORK, HOP.interface);
    assert_eq!(verdict.outcome, Outcome::NotOurs);
}

fn the_kernel_answers_what_cannot_go_on<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.steer(host::<F>(F::BACKEND), 0, LINE, None);
    world.tables.hops.insert(F::address(F::BACKEND), Hop { interface: INSIDE, ..HOP });
    world.tables.ingress.set(INSIDE);
    let packet = udp::<F>(F::BACKEND);
    world.leaves(Hook::Tc, &packet.with(|p| p.hop_limit = 1), Outcome::NotOurs);
    world.leaves(Hook::Tc, &packet.with(|p| p.hop_limit = 0), Outcome::NotOurs);
    let (verdict, _) = world.process_bytes(Hook::Tc, packet.with(|p| p.hop_limit = 2).frame());
    assert_eq!(verdict.outcome, Outcome::Forwarded);
}

/// A packet of the machine itself, on its way out of `interface` in a frame for `to`.
fn leaves_by<F: TestFamily>(world: &World<F>, packet: &TestPacket, interface: u32, to: [u8; 6]) -> (Verdict, Vec<u8>) {
    let mut frame = packet.frame();
    frame.splice(..6, to);
    let before = frame.clone();
    let verdict = leave::<F, _>(&mut frame.as_mut_slice(), &world.tables, NETWORK, interface);
    assert_eq!(frame, before, "the kernel writes the new link addresses");
    (verdict, frame)
}

fn own_packets_go_to_their_line<F: TestFamily>() {
    let mut world = World::<F>::new();
    let router = with_router(&mut world);
    let slot = world.steer(host::<F>(F::OURS), 0, LINE, Some(F::OTHER_CLIENT));
    let packet = udp::<F>(F::OURS);
    let (verdict, _) = leaves_by(&world, &packet, HOP.interface, [2, 0, 0, 0, 0, 9]);
    assert_eq!(verdict, Verdict::neighbour(Hop { line: slot, ..router }));
    let counted = world.tables.counted(slot + 100);
    assert_eq!((counted.reply.packets, counted.reply.bytes), (1, packet.length().into()));
    let other = udp::<F>(F::LISTEN);
    assert_eq!(leaves_by(&world, &other, HOP.interface, [9; 6]).0, Verdict::of(Outcome::NotOurs));
}

fn own_packets_on_their_line_already_are_left_alone<F: TestFamily>() {
    let mut world = World::<F>::new();
    let router = with_router(&mut world);
    let slot = world.steer(host::<F>(F::OURS), 0, LINE, Some(F::OTHER_CLIENT));
    let packet = udp::<F>(F::OURS);
    let [d0, d1, d2, d3, d4, d5, ..] = router.link_addresses;
    let (verdict, _) = leaves_by(&world, &packet, LINE, [d0, d1, d2, d3, d4, d5]);
    assert_eq!(verdict, Verdict::of(Outcome::NotOurs));
    assert_eq!(world.tables.counted(slot + 100).reply.packets, 1, "it left by the line all the same");
    // The right interface, another router on it.
    let (verdict, _) = leaves_by(&world, &packet, LINE, [d0, d1, d2, d3, d4, d5 ^ 1]);
    assert_eq!(verdict.outcome, Outcome::ForwardedByNeighbour);
}

fn what_is_too_big_for_the_line_does_not_leave<F: TestFamily>() {
    let mut world = World::<F>::new();
    let router = with_router(&mut world);
    world.steer(host::<F>(F::OURS), 0, LINE, Some(F::OTHER_CLIENT));
    let packet = udp::<F>(F::OURS);
    for (mtu, fits) in [(packet.length(), true), (packet.length() - 1, false)] {
        world.tables.hops.insert(F::address(F::OTHER_CLIENT), Hop { mtu, ..router });
        let (verdict, _) = leaves_by(&world, &packet, HOP.interface, [9; 6]);
        assert_eq!(verdict.outcome == Outcome::DropTooBig, !fits);
    }
}

/// Whoever says how large segments may be: what answers by a line, or what is answered.
fn segments_fit_the_line_in_both_directions<F: TestFamily>() {
    let headers = if F::LISTEN.is_ipv4() { 40 } else { 60 };
    let syn = |src, dst, size: u16| {
        let [high, low] = size.to_be_bytes();
        TestPacket::new(at(src, 80), at(dst, 4000), Body::Tcp(flags::SYN))
            .with(|packet| packet.tcp_options = vec![2, 4, high, low])
    };
    let mut world = World::<F>::new();
    world.steer(host::<F>(F::LISTEN), 0, LINE, None);
    let fits = HOP.mtu as u16 - headers;
    for (src, dst) in [(F::LISTEN, F::CLIENT), (F::CLIENT, F::LISTEN)] {
        for (size, expected) in [(65_495, fits), (fits, fits), (536, 536)] {
            let mut bytes = syn(src, dst, size).frame();
            if src == F::LISTEN {
                leave::<F, _>(&mut bytes.as_mut_slice(), &world.tables, NETWORK, HOP.interface);
            } else {
                let verdict = forward::<F, _>(&mut bytes.as_mut_slice(), &world.tables, NETWORK, Outcome::NotOurs);
                assert_eq!(verdict.outcome, Outcome::NotOurs);
            }
            assert_eq!(bytes, syn(src, dst, expected).frame(), "{src} {size}");
        }
    }
}
