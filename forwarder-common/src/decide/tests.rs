#![allow(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use super::*;
use crate::{
    abi::RuleRef,
    test_packet::{Body, NETWORK, TestPacket, at},
    test_world::{Source, TestFamily, World, both_families, flipped},
};

both_families!(
    an_exact_port_comes_before_a_range_before_a_whole_address,
    a_reload_switches_both_sides_of_a_rule_at_its_generation,
    an_exact_port_that_is_gone_leaves_the_range_below_it,
    a_longer_prefix_comes_before_a_shorter_one,
    nothing_is_looked_up_that_no_rule_needs,
    protocols_and_sides_are_told_apart,
    allow_lists,
    port_shifts_wrap_both_ways,
);

fn parsed<F: TestFamily>(packet: &TestPacket) -> Parsed<F::Address> {
    F::walk(&packet.frame().as_mut_slice(), NETWORK).unwrap()
}

/// The counters of the rules that a packet finds as a client's and as a backend's.
fn found<F: TestFamily>(world: &World<F>, packet: &TestPacket) -> (Option<u32>, Option<u32>) {
    let parsed = parsed::<F>(packet);
    let counter = |rule: Option<&Rule<_>>| rule.map(|rule| rule.counter);
    (counter(listen_rule(&world.tables, &parsed)), counter(backend_rule(&world.tables, &parsed)))
}

fn to<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, port), body)
}

fn from<F: TestFamily>(port: u16, body: Body) -> TestPacket {
    TestPacket::new(at(F::BACKEND, port), at(F::CLIENT, 40001), body)
}

fn an_exact_port_comes_before_a_range_before_a_whole_address<F: TestFamily>() {
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved); // 101
    world.forward_block((at(F::LISTEN, 4096), at(F::BACKEND, 4096)), (6, 12), Source::Preserved); // 102
    world.forward_block((at(F::LISTEN, 4352), at(F::BACKEND, 4352)), (6, 8), Source::Preserved); // 103
    world.forward(at(F::LISTEN, 4400), at(F::BACKEND, 4400), Source::Preserved); // 104
    let tcp = Body::Tcp(0);
    let table = [
        (4095, tcp, 101),
        (4096, tcp, 102),
        (4351, tcp, 102),
        (4352, tcp, 103),
        (4399, tcp, 103),
        (4400, tcp, 104),
        (4607, tcp, 103),
        (4608, tcp, 102),
        (8191, tcp, 102),
        (8192, tcp, 101),
        (0, tcp, 101),
        (65535, tcp, 101),
        (4097, Body::Udp, 101),
        (4400, Body::Udp, 104),
        (4400, Body::Sctp, 101),
        (4400, Body::EchoRequest, 101),
        (4400, Body::EchoReply, 101),
        (0, Body::Other(47), 101),
    ];
    for (port, body, counter) in table {
        assert_eq!(found(&world, &to::<F>(port, body)), (Some(counter), None), "{port} {body:?}");
        // An answered echo carries its identifier in the other direction's place, and a whole address asks for none.
        assert_eq!(found(&world, &from::<F>(port, body)), (None, Some(counter)), "{port} {body:?}");
    }
}

fn a_reload_switches_both_sides_of_a_rule_at_its_generation<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    let other = world.forward(at(F::OTHER_LISTEN, 1), at(F::BACKEND, 2), Source::Preserved);
    for reference in world.tables.endpoints.values_mut() {
        *reference = RuleRef { before: reference.after, after: if reference.after == 1 { other } else { 0 }, at: 5 };
    }
    let [listened, answered] = [to::<F>(80, Body::Udp), from::<F>(8080, Body::Udp)];
    let removed = to::<F>(1, Body::Udp).with(|p| p.dst = at(F::OTHER_LISTEN, 1));
    for (generation, rule, gone) in [(1, 101, Some(102)), (4, 101, Some(102)), (5, 102, None), (6, 102, None)] {
        world.tables.settings.generation = generation;
        assert_eq!(found(&world, &listened), (Some(rule), None), "generation {generation}");
        assert_eq!(found(&world, &answered), (None, Some(rule)), "generation {generation}");
        assert_eq!(found(&world, &removed), (gone, None), "generation {generation}");
    }
}

fn an_exact_port_that_is_gone_leaves_the_range_below_it<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    for reference in world.tables.endpoints.values_mut() {
        *reference = RuleRef { before: 1, after: 0, at: 2 };
    }
    assert_eq!(found(&world, &to::<F>(80, Body::Udp)), (Some(101), None));
    world.tables.settings.generation = 2;
    assert_eq!(found(&world, &to::<F>(80, Body::Udp)), (Some(102), None));
    // A slot without a rule is no rule.
    world.tables.rules.clear();
    assert_eq!(found(&world, &to::<F>(80, Body::Udp)), (None, None));
}

fn a_longer_prefix_comes_before_a_shorter_one<F: TestFamily>() {
    let mut world = World::<F>::new();
    let all = if F::LISTEN.is_ipv4() { 32 } else { 128 };
    // Both listens, and all addresses of the tests, share their first 14 bits or more.
    world.forward_prefix(F::LISTEN, F::BACKEND, 14); // 101
    world.forward_prefix(F::LISTEN, F::BACKEND, all - 6); // 102
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved); // 103
    world.forward(at(F::LISTEN, 80), at(F::BACKEND, 80), Source::Preserved); // 104
    let table = [
        (F::LISTEN, 80, Some(104)),
        (F::LISTEN, 81, Some(103)),
        (F::OTHER_LISTEN, 80, Some(102)),
        (flipped(F::LISTEN, 5), 80, Some(102)),
        (flipped(F::LISTEN, 6), 80, Some(101)),
        (flipped(F::LISTEN, all - 15), 80, Some(101)),
        (flipped(F::LISTEN, all - 14), 80, None),
    ];
    for (address, port, counter) in table {
        let packet = to::<F>(port, Body::Udp).with(|p| p.dst.set_ip(address));
        assert_eq!(found(&world, &packet).0, counter, "{address} {port}");
    }
    let table = [(0, 80, Some(104)), (0, 81, Some(103)), (5, 80, Some(102)), (6, 80, Some(101)), (all - 14, 80, None)];
    for (bit, port, counter) in table {
        let backend = if bit == 0 { F::BACKEND } else { flipped(F::BACKEND, bit) };
        let packet = TestPacket::new(at(backend, port), at(F::CLIENT, 1), Body::Udp);
        assert_eq!(found(&world, &packet).1, counter, "{backend} {port}");
    }
}

fn nothing_is_looked_up_that_no_rule_needs<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    world.tables.settings.flags &= !setting_flags::STATELESS;
    assert_eq!(found(&world, &from::<F>(8080, Body::Udp)), (None, None));
}

fn protocols_and_sides_are_told_apart<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Preserved);
    assert_eq!(found(&world, &to::<F>(80, Body::Sctp)), (None, None));
    assert_eq!(found(&world, &to::<F>(81, Body::Udp)), (None, None));
    assert_eq!(found(&world, &to::<F>(80, Body::Udp).with(|p| p.dst = at(F::OTHER_LISTEN, 80))), (None, None));
    // The listen's end as a source, the backend's as a destination: nobody's.
    assert_eq!(found(&world, &to::<F>(80, Body::Udp).answer(Body::Udp)), (None, None));
    assert_eq!(found(&world, &from::<F>(8080, Body::Udp).answer(Body::Udp)), (None, None));
    let masquerade = World::<F>::with_rule(Source::Address(F::OURS));
    assert_eq!(found(&masquerade, &to::<F>(80, Body::Udp)), (Some(101), None));
    assert_eq!(found(&masquerade, &from::<F>(8080, Body::Udp)), (None, None));
}

fn allow_lists<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Preserved);
    let (client, other) = (F::address(F::CLIENT), F::address(F::OTHER_CLIENT));
    let everyone = *world.tables.rule(1).unwrap();
    let some = Rule { flags: everyone.flags | rule_flags::ALLOW, allow: 9, ..everyone };
    world.tables.allowed.extend([(9, client), (8, other)]);
    let tables = &world.tables;
    assert_eq!([client, other].map(|client| admits(tables, &everyone, client)), [true, true]);
    assert_eq!(tables.counted(101).times(Event::Denied), 0);
    assert_eq!([client, other].map(|client| admits(tables, &some, client)), [true, false]);
    assert_eq!(tables.counted(101).times(Event::Denied), 1);
}

fn port_shifts_wrap_both_ways<F: TestFamily>() {
    for (listen, backend) in [(80, 80), (80, 8080), (8080, 80), (65535, 1), (1, 65535), (255, 256), (0x1234, 0x3412)] {
        let mut world = World::<F>::new();
        world.forward(at(F::LISTEN, listen), at(F::BACKEND, backend), Source::Preserved);
        let rule = world.tables.rule(1).unwrap();
        let forward = stateless_forward(rule, &parsed::<F>(&to::<F>(listen, Body::Udp))).unwrap();
        assert_eq!((forward.rewrite.src_port, forward.rewrite.dst_port), (40001u16.to_be(), backend.to_be()));
        assert_eq!((forward.counter, forward.direction), (101, Direction::Forward));
        let reply = stateless_reply(rule, &parsed::<F>(&from::<F>(backend, Body::Udp))).unwrap();
        assert_eq!((reply.rewrite.src_port, reply.rewrite.dst_port), (listen.to_be(), 40001u16.to_be()));
        assert_eq!((reply.counter, reply.direction), (101, Direction::Reply));
    }
}

/// Every port, by every 257th shift: there and back.
#[test]
fn every_port_is_mapped_there_and_back() {
    for by in (0..=u16::MAX).step_by(257) {
        for port in 0..=u16::MAX {
            let there = shifted(port.to_be(), by);
            assert_eq!(u32::from(u16::from_be(there)), (u32::from(port) + u32::from(by)) % 0x1_0000);
            assert_eq!(shifted(there, by.wrapping_neg()), port.to_be());
        }
    }
}
