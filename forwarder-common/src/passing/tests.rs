#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::net::SocketAddr;

use crate::{
    abi::Direction,
    outgoing::tests::{INSIDE, OUTSIDE, gateway, host},
    tables::memory::TIMEOUTS,
    test_packet::{Body, TestPacket, at, flags},
    test_world::{Hook, TestFamily, World, both_families},
    verdict::Outcome,
};

both_families!(
    what_came_in_by_itself_is_answered_by_itself,
    a_connection_is_noted_as_long_as_it_lives,
    what_did_not_begin_outside_goes_out_masqueraded,
    notes_are_protected_as_flows_are,
    without_room_nothing_is_noted,
);

/// From somebody outside to a host behind us, by its own address.
fn coming_in<F: TestFamily>(from: SocketAddr, port: u16, body: Body) -> TestPacket {
    TestPacket::new(from, at(host::<F>(0), port), body)
}

/// The packet is the kernel's.
#[track_caller]
fn passes<F: TestFamily>(world: &World<F>, from: u32, packet: &TestPacket) {
    world.tables.ingress.set(from);
    world.leaves(Hook::Xdp, packet, Outcome::NotOurs);
    world.leaves(Hook::Tc, packet, Outcome::NotOurs);
}

#[track_caller]
fn is_masqueraded<F: TestFamily>(world: &World<F>, packet: &TestPacket) {
    world.tables.ingress.set(INSIDE);
    let (verdict, frame) = world.process_bytes(Hook::Tc, packet.frame());
    assert_eq!(verdict.outcome, Outcome::Forwarded, "{packet:?}");
    assert_eq!(frame, packet.forwarded(at(F::LISTEN, packet.src.port()), packet.dst).frame());
}

fn what_came_in_by_itself_is_answered_by_itself<F: TestFamily>() {
    for (request, reply) in [
        (Body::Tcp(flags::SYN), Body::Tcp(flags::SYN_ACK)),
        (Body::Udp, Body::Udp),
        (Body::EchoRequest, Body::EchoReply),
        (Body::Sctp, Body::Sctp),
        (Body::Other(47), Body::Other(47)),
    ] {
        let world = gateway::<F>(0);
        let has_ports = !matches!(request, Body::Other(_));
        let port = |port| if has_ports { port } else { 0 };
        let there = coming_in::<F>(at(F::CLIENT, port(61_001)), port(80), request);
        let there = if request == Body::EchoRequest { there.with(|p| p.dst.set_port(0)) } else { there };
        let back = there.answer(reply);
        for _ in 0..4 {
            passes(&world, OUTSIDE, &there);
            passes(&world, INSIDE, &back);
        }
        assert_eq!(world.tables.counted(101), crate::tables::memory::Counted::default(), "no flow of the rule's");
        // What else the host sends goes out by its mapping.
        let own = TestPacket::new(at(host::<F>(0), 61_003), at(F::CLIENT, 5000), Body::Udp);
        is_masqueraded(&world, &own);
    }
}

fn a_connection_is_noted_as_long_as_it_lives<F: TestFamily>() {
    let conversation = |world: &World<F>, there: &TestPacket| {
        let back = there.answer(Body::Tcp(flags::SYN_ACK));
        passes(world, OUTSIDE, there);
        passes(world, INSIDE, &back);
        passes(world, OUTSIDE, &there.with(|p| p.body = Body::Tcp(flags::ACK)));
        assert_eq!(world.entries(), (2, 0), "protected");
        back.with(|p| p.body = Body::Tcp(flags::ACK))
    };
    let there = coming_in::<F>(at(F::CLIENT, 61_001), 61_005, Body::Tcp(flags::SYN));
    let world = gateway::<F>(0);
    let back = conversation(&world, &there);
    world.tables.wait(TIMEOUTS.tcp_established);
    passes(&world, INSIDE, &back);
    world.tables.wait(TIMEOUTS.tcp_established + 1);
    is_masqueraded(&world, &back);

    let world = gateway::<F>(0);
    let back = conversation(&world, &there);
    for (from, packet) in [(INSIDE, &back), (OUTSIDE, &there)] {
        passes(&world, from, &packet.with(|p| p.body = Body::Tcp(flags::FIN_ACK)));
    }
    world.tables.wait(TIMEOUTS.tcp_closing);
    passes(&world, INSIDE, &back);
    // The same ports again.
    passes(&world, OUTSIDE, &there);
    passes(&world, INSIDE, &there.answer(Body::Tcp(flags::SYN_ACK)));
    world.tables.wait(TIMEOUTS.tcp_opening + 1);
    is_masqueraded(&world, &back);
}

fn what_did_not_begin_outside_goes_out_masqueraded<F: TestFamily>() {
    let world = gateway::<F>(0);
    // What begins nothing is not noted, and neither is what is for nobody behind us.
    let there = coming_in::<F>(at(F::CLIENT, 61_001), 61_005, Body::Tcp(flags::SYN_ACK));
    for body in [Body::Tcp(flags::SYN_ACK), Body::Tcp(flags::RST), Body::EchoReply] {
        passes(&world, OUTSIDE, &there.with(|p| p.body = body));
    }
    passes(&world, OUTSIDE, &there.with(|p| p.dst.set_ip(F::OTHER_CLIENT)));
    assert_eq!(world.entries(), (0, 0));
    is_masqueraded(&world, &there.answer(Body::Tcp(flags::SYN)));
    // The flow that went out first goes on, whatever comes to the host by its own address with the same ends.
    passes(&world, OUTSIDE, &there.with(|p| p.body = Body::Tcp(flags::SYN)));
    is_masqueraded(&world, &there.answer(Body::Tcp(flags::ACK)));
}

fn notes_are_protected_as_flows_are<F: TestFamily>() {
    let world = gateway::<F>(0);
    let there = coming_in::<F>(at(F::CLIENT, 61_001), 61_005, Body::Tcp(flags::SYN));
    passes(&world, OUTSIDE, &there);
    passes(&world, INSIDE, &there.answer(Body::Tcp(flags::SYN_ACK)));
    // Whoever has not seen the answer cannot say what it acknowledges, and gets no place among the protected.
    let ack = there.with(|p| p.body = Body::Tcp(flags::ACK));
    let mut forged = ack.frame();
    let field = forged.len() - ack.payload.len() - 12;
    forged[field] ^= 0x40;
    world.tables.ingress.set(OUTSIDE);
    assert_eq!(world.process_bytes(Hook::Tc, forged).0.outcome, Outcome::NotOurs);
    assert_eq!(world.entries(), (0, 2));
    passes(&world, OUTSIDE, &ack);
    assert_eq!(world.entries(), (2, 0));
    // One half may be pushed out of the new ones: the other enters it again.
    let other = coming_in::<F>(at(F::CLIENT, 61_003), 61_005, Body::Udp);
    for kept in [Direction::Forward, Direction::Reply] {
        passes(&world, OUTSIDE, &other);
        world.tables.embryonic.borrow_mut().retain(|_, entry| entry.get().direction() == kept);
        match kept {
            Direction::Forward => passes(&world, OUTSIDE, &other),
            Direction::Reply => passes(&world, INSIDE, &other.answer(Body::Udp)),
        }
        assert_eq!(world.entries(), (2, 2));
        world.tables.embryonic.borrow_mut().clear();
    }
}

fn without_room_nothing_is_noted<F: TestFamily>() {
    let world = gateway::<F>(0);
    world.tables.embryonic_capacity.set(0);
    let there = coming_in::<F>(at(F::CLIENT, 61_001), 61_005, Body::Udp);
    passes(&world, OUTSIDE, &there);
    world.tables.embryonic_capacity.set(100);
    is_masqueraded(&world, &there.answer(Body::Udp));
}
