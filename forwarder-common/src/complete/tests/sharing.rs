//! Several flows that want the same port, and flows that lost a half: no packet may reach somebody else.

use std::{collections::BTreeMap, net::SocketAddr, vec::Vec};

use proptest::prelude::*;

use super::*;

both_families!(
    two_clients_with_the_same_source_port,
    one_client_port_to_two_listens_of_one_backend,
    ports_run_out,
    where_all_ports_are_taken_an_ended_connections_is_used_again,
    protocols_without_changeable_ports_serve_one_client_each,
    ports_of_local_sockets_are_left_alone,
    a_lost_forward_half_comes_back,
    a_lost_reply_half_comes_back_with_the_clients_next_packet,
    a_lost_reply_half_whose_port_is_taken_does_not_share_it,
    an_expired_reply_half_of_a_living_flow_is_not_taken_over,
    the_end_of_a_flow_leaves_another_that_took_its_port_alone,
    translating_there_and_back_is_the_identity,
    no_packet_reaches_somebody_else,
);

fn of_other_client<F: TestFamily>(packet: &TestPacket) -> TestPacket {
    packet.with(|p| p.src.set_ip(F::OTHER_CLIENT))
}

fn two_clients_with_the_same_source_port<F: TestFamily>() {
    let kinds = [
        (Body::Tcp(flags::SYN), Body::Tcp(flags::SYN_ACK), Body::Tcp(flags::ACK)),
        (Body::Udp, Body::Udp, Body::Udp),
        (Body::EchoRequest, Body::EchoReply, Body::EchoRequest),
    ];
    for (request, reply, again) in kinds {
        let mut world = World::<F>::new();
        world.forward_address(F::LISTEN, F::BACKEND, Source::Address(F::OURS));
        let first = TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 0), request);
        let second = of_other_client::<F>(&first);
        let to_first = opens(&world, &first, reply);
        let to_second = opens(&world, &second, reply);
        assert_eq!(to_first.dst, at(F::OURS, 61_001), "the first keeps its port");
        assert_ne!(to_second.dst, to_first.dst);
        if request != Body::EchoRequest {
            assert_eq!(to_second.dst.port() % 2, 1, "parity (RFC 4787 REQ-4)");
        }
        for _ in 0..2 {
            world.back(&to_second, second.dst, second.src);
            world.back(&to_first, first.dst, first.src);
            world.out(&first.with(|p| p.body = again), to_first.dst, to_first.src);
            world.out(&second.with(|p| p.body = again), to_second.dst, to_second.src);
        }
        assert_eq!(world.entries(), (4, 0));
    }
}

fn one_client_port_to_two_listens_of_one_backend<F: TestFamily>() {
    for source in [Source::PreservedByFlow, Source::Address(F::OURS)] {
        let mut world = World::<F>::with_rule(source);
        world.forward(at(F::OTHER_LISTEN, 81), at(F::BACKEND, 8080), source);
        let first = to::<F>(61_001, Body::Udp);
        let second = first.with(|p| p.dst = at(F::OTHER_LISTEN, 81));
        let to_first = opens(&world, &first, Body::Udp);
        let to_second = opens(&world, &second, Body::Udp);
        assert_eq!(to_first.dst.port(), 61_001);
        assert_eq!(to_second.dst.ip(), to_first.dst.ip());
        assert_ne!(to_second.dst, to_first.dst);
        for _ in 0..2 {
            world.back(&to_second, second.dst, second.src);
            world.back(&to_first, first.dst, first.src);
            world.out(&first, to_first.dst, to_first.src);
            world.out(&second, to_second.dst, to_second.src);
        }
        assert_eq!(world.tables.counted(101).forward.packets, 3);
        assert_eq!(world.tables.counted(102).forward.packets, 3);
    }
}

fn ports_run_out<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Address(F::OURS));
    for (range, port) in world.tables.settings.ports.iter_mut().zip([100, 200, 300]) {
        (range.first, range.last) = (port, port);
    }
    let clients = [1, 3, 5, 7].map(|port| to::<F>(port, Body::Udp));
    let mut ports = Vec::new();
    for client in &clients[..3] {
        ports.push(opens(&world, client, Body::Udp).dst.port());
    }
    assert_eq!(ports, [100, 200, 300], "the ranges in their order");
    world.leaves(Hook::Tc, &clients[3], Outcome::DropNoPort);
    assert_eq!(world.entries(), (0, 6));
    assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 3);
    // Those that have a flow go on; what has expired makes room.
    world.tables.wait(TIMEOUTS.udp_opening);
    for client in &clients[..2] {
        world.process_bytes(Hook::Tc, client.frame());
    }
    world.tables.wait(1);
    assert_eq!(opens(&world, &clients[3], Body::Udp).dst.port(), 300);
}

fn where_all_ports_are_taken_an_ended_connections_is_used_again<F: TestFamily>() {
    use flags::{ACK, FIN_ACK, SYN, SYN_ACK};
    let mut world = World::<F>::with_rule(Source::Address(F::OURS));
    for (range, port) in world.tables.settings.ports.iter_mut().zip([100, 200, 300]) {
        (range.first, range.last) = (port, port);
    }
    let clients = [1, 3, 5, 7].map(|port| to::<F>(port, Body::Tcp(SYN)));
    let mut answers = Vec::new();
    for client in &clients[..3] {
        let answer = opens(&world, client, Body::Tcp(SYN_ACK));
        world.back(&answer, client.dst, client.src);
        world.out(&client.with(|p| p.body = Body::Tcp(ACK)), answer.dst, answer.src);
        answers.push(answer);
    }
    assert_eq!(world.entries(), (6, 0));
    let none = |newcomer: &TestPacket| {
        world.leaves(Hook::Tc, newcomer, Outcome::DropNoPort);
        assert_eq!(world.entries(), (6, 0));
    };
    world.tables.wait(2000);
    none(&clients[3]);
    // Closed by one side, then by both.
    world.out(&clients[1].with(|p| p.body = Body::Tcp(FIN_ACK)), answers[1].dst, answers[1].src);
    world.tables.wait(2000);
    none(&clients[3]);
    world.back(&answers[1].with(|p| p.body = Body::Tcp(FIN_ACK)), clients[1].dst, clients[1].src);
    world.tables.wait(999);
    none(&clients[3]);
    world.tables.wait(1);
    // Only for a new connection.
    none(&clients[3].with(|p| p.body = Body::Tcp(ACK)));
    assert_eq!(opens(&world, &clients[3], Body::Tcp(SYN_ACK)).dst.port(), 200);
    assert_eq!(world.entries(), (4, 2));
    world.tables.check_protected_pairs();
    // The others go on.
    for (client, answer) in [(&clients[0], &answers[0]), (&clients[2], &answers[2])] {
        world.out(&client.with(|p| p.body = Body::Tcp(ACK)), answer.dst, answer.src);
        world.back(&answer.with(|p| p.body = Body::Tcp(ACK)), client.dst, client.src);
    }
}

fn protocols_without_changeable_ports_serve_one_client_each<F: TestFamily>() {
    for body in [Body::Sctp, Body::Other(47)] {
        let mut world = World::<F>::new();
        world.forward_address(F::LISTEN, F::BACKEND, Source::Address(F::OURS));
        let port = |port| if body == Body::Sctp { port } else { 0 };
        let first = TestPacket::new(at(F::CLIENT, port(5000)), at(F::LISTEN, port(5000)), body);
        let second = of_other_client::<F>(&first);
        let back = opens(&world, &first, body);
        assert_eq!(back.dst.port(), port(5000));
        world.leaves(Hook::Tc, &second, Outcome::DropNoPort);
        world.back(&back, first.dst, first.src);
        world.out(&first, back.dst, back.src);
        world.leaves(Hook::Tc, &second, Outcome::DropNoPort);
        assert_eq!(world.entries(), (2, 0));
    }
}

fn ports_of_local_sockets_are_left_alone<F: TestFamily>() {
    let mut world = World::<F>::with_rule(Source::Address(F::OURS));
    let socket = |protocol, port: u16| (protocol, F::address(F::OURS), port.to_be());
    world.tables.sockets.extend([socket(17, 61_001), socket(17, 61_003), socket(6, 61_005)]);
    // The client's own port, then two random ones, of which the first clashes too.
    *world.tables.randoms.borrow_mut() = vec![8, 2];
    let packet = to::<F>(61_001, Body::Udp);
    assert_eq!(opens(&world, &packet, Body::Udp).dst.port(), 61_009);
    assert_eq!(world.tables.counted(101).events, [Event::PortClash, Event::PortClash, Event::FlowBegun]);
    // A socket of the other protocol is no clash, and without an address of ours there is none to clash with.
    assert_eq!(opens(&world, &to::<F>(61_005, Body::Udp), Body::Udp).dst.port(), 61_005);
    let mut preserved = World::<F>::with_rule(Source::PreservedByFlow);
    preserved.tables.sockets.insert((17, F::address(F::CLIENT), 61_001u16.to_be()));
    assert_eq!(opens(&preserved, &packet, Body::Udp).dst.port(), 61_001);
    assert_eq!(preserved.tables.counted(101).events, [Event::FlowBegun]);
}

fn lose<F: TestFamily>(world: &World<F>, packet: &TestPacket) {
    let key: FlowKey<F::Address> = World::<F>::key(packet);
    assert!(world.tables.embryonic.borrow_mut().remove(&key).is_some());
}

fn a_lost_forward_half_comes_back<F: TestFamily>() {
    // With the reply, which also moves the flow on.
    for port in [61_001, 53] {
        let world = World::<F>::with_rule(Source::Address(F::OURS));
        let there = to::<F>(port, Body::Udp);
        let back = opens(&world, &there, Body::Udp);
        lose(&world, &there);
        world.back(&back, there.dst, there.src);
        assert_eq!(world.entries(), (0, 2));
        world.out(&there, back.dst, back.src);
        assert_eq!(world.entries(), (2, 0));
        world.back(&back, there.dst, there.src);
    }
    // With the client's packet: its own reply half does not keep it from its port.
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let there = to::<F>(61_001, Body::Udp);
    let back = opens(&world, &there, Body::Udp);
    lose(&world, &there);
    assert_eq!(opens(&world, &there, Body::Udp), back);
    world.back(&back, there.dst, there.src);
}

fn a_lost_reply_half_comes_back_with_the_clients_next_packet<F: TestFamily>() {
    for source in [Source::PreservedByFlow, Source::Address(F::OURS)] {
        for port in [61_001, 53] {
            let world = World::<F>::with_rule(source);
            let syn = to::<F>(port, Body::Tcp(flags::SYN));
            let back = opens(&world, &syn, Body::Tcp(flags::SYN_ACK));
            lose(&world, &back);
            world.leaves(Hook::Tc, &back, Outcome::NotOurs);
            // Nobody answers now, so the client asks again.
            world.out(&syn, back.dst, back.src);
            world.back(&back, syn.dst, syn.src);
            world.out(&syn.with(|p| p.body = Body::Tcp(flags::ACK)), back.dst, back.src);
            assert_eq!(world.entries(), (2, 0));
            assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
        }
    }
}

fn a_lost_reply_half_whose_port_is_taken_does_not_share_it<F: TestFamily>() {
    for protected in [false, true] {
        let world = World::<F>::with_rule(Source::Address(F::OURS));
        let first = to::<F>(61_001, Body::Udp);
        let back = opens(&world, &first, Body::Udp);
        lose(&world, &back);
        let second = of_other_client::<F>(&first);
        assert_eq!(opens(&world, &second, Body::Udp), back);
        if protected {
            world.back(&back, second.dst, second.src);
            world.out(&second, back.dst, back.src);
        }
        // The first one's next packet takes another port: the backend must not take it for the second one's.
        let to_first = opens(&world, &first, Body::Udp);
        assert_ne!(to_first.dst, back.dst);
        world.back(&back, second.dst, second.src);
        world.back(&to_first, first.dst, first.src);
    }
}

fn an_expired_reply_half_of_a_living_flow_is_not_taken_over<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(61_001, Body::Udp);
    let back = opens(&world, &first, Body::Udp);
    // The client sends on and on, the backend has yet to answer.
    for _ in 0..3 {
        world.tables.wait(TIMEOUTS.udp_opening);
        world.out(&first, back.dst, back.src);
    }
    let second = of_other_client::<F>(&first);
    assert_ne!(opens(&world, &second, Body::Udp).dst, back.dst);
    world.back(&back, first.dst, first.src);
}

fn the_end_of_a_flow_leaves_another_that_took_its_port_alone<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(61_001, Body::Udp);
    let back = opens(&world, &first, Body::Udp);
    world.tables.wait(TIMEOUTS.udp_opening + 1);
    let second = of_other_client::<F>(&first);
    assert_eq!(opens(&world, &second, Body::Udp).dst, back.dst, "what has expired is free");
    // The first client comes back: its old flow goes, not the second one's.
    let to_first = opens(&world, &first, Body::Udp);
    assert_ne!(to_first.dst, back.dst);
    world.back(&back, second.dst, second.src);
    world.back(&to_first, first.dst, first.src);
}

fn translating_there_and_back_is_the_identity<F: TestFamily>() {
    let kinds = [
        (Body::Tcp(flags::ACK), Body::Tcp(flags::ACK)),
        (Body::Udp, Body::Udp),
        (Body::UdpUnsummed, Body::UdpUnsummed),
        (Body::EchoRequest, Body::EchoReply),
        (Body::Other(47), Body::Other(47)),
    ];
    let sources = [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)];
    let runner = &mut proptest::test_runner::TestRunner::default();
    let inputs = (0..kinds.len(), 0..3usize, any::<[u16; 2]>(), proptest::collection::vec(any::<u8>(), 0..99usize));
    let check = |(kind, source, [port, listen], payload): (usize, usize, [u16; 2], Vec<u8>)| {
        let (request, reply) = kinds[kind];
        let mut world = World::<F>::new();
        world.forward_address(F::LISTEN, F::BACKEND, sources[source]);
        let there = TestPacket::new(at(F::CLIENT, port), at(F::LISTEN, listen), request).with(|p| p.payload = payload);
        let (_, translated) = world.process_bytes(Hook::Tc, there.frame());
        // The backend sends the very same bytes back, ends swapped, as its answer.
        let ours = match sources[source] {
            Source::Address(ours) => at(ours, u16::from_be(world.flow(&there).unwrap().rewrite.src_port)),
            _ => there.src,
        };
        let back = there.forwarded(ours, at(F::BACKEND, listen));
        prop_assert_eq!(&translated, &back.frame());
        let (_, returned) = world.process_bytes(Hook::Tc, back.answer(reply).frame());
        let expected = there.answer(reply).with(|p| p.hop_limit = there.hop_limit - 2);
        prop_assert_eq!(returned, expected.frame());
        Ok(())
    };
    runner.run(&inputs, check).unwrap();
}

/// What can happen to a few clients, a backend and a small machine.
#[derive(Clone, Debug)]
enum Act {
    /// Which client, listen, port; and the TCP flags, or UDP.
    Client(bool, bool, u16, Option<u8>),
    /// The backend answers one of the sources it has seen.
    Backend(usize, Option<u8>),
    /// Time passes.
    Wait(u32),
    /// A flood pushes an entry of a new flow out.
    Lose(usize),
    /// So many entries fit the protected table.
    Protect(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let tcp_flags = prop_oneof![
        Just(None),
        Just(Some(flags::SYN)),
        Just(Some(flags::ACK)),
        Just(Some(flags::SYN_ACK)),
        Just(Some(flags::FIN_ACK)),
        Just(Some(flags::RST)),
    ];
    let act = prop_oneof![
        5 => (any::<bool>(), any::<bool>(), 61_000..61_003u16, tcp_flags.clone())
            .prop_map(|(client, listen, port, flags)| Act::Client(client, listen, port, flags)),
        5 => (any::<usize>(), tcp_flags).prop_map(|(which, flags)| Act::Backend(which, flags)),
        2 => (0..260_000u32).prop_map(Act::Wait),
        2 => any::<usize>().prop_map(Act::Lose),
        1 => (0..6usize).prop_map(Act::Protect),
    ];
    proptest::collection::vec(act, 1..60usize)
}

/// Whatever happens: what the backend answers to a source goes to whoever sent from that source last, or nowhere.
fn no_packet_reaches_somebody_else<F: TestFamily>() {
    let runner =
        &mut proptest::test_runner::TestRunner::new(ProptestConfig { cases: 2000, ..ProptestConfig::default() });
    let check = |(masquerade, acts): (bool, Vec<Act>)| {
        let source = if masquerade { Source::Address(F::OURS) } else { Source::PreservedByFlow };
        let mut world = World::<F>::with_rule(source);
        world.forward(at(F::OTHER_LISTEN, 80), at(F::BACKEND, 8080), source);
        for range in &mut world.tables.settings.ports {
            (range.first, range.last) = (61_000, 61_005);
        }
        let body = |flags: Option<u8>| flags.map_or(Body::Udp, Body::Tcp);
        // By protocol and source that the backend sees: the client's end and the listen it talks to.
        let mut senders: BTreeMap<(bool, SocketAddr), (SocketAddr, SocketAddr)> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Client(client, listen, port, flags) => {
                    let client = at(if client { F::CLIENT } else { F::OTHER_CLIENT }, port);
                    let listen = at(if listen { F::LISTEN } else { F::OTHER_LISTEN }, 80);
                    let packet = TestPacket::new(client, listen, body(flags));
                    let (verdict, bytes) = world.process_bytes(Hook::Tc, packet.frame());
                    if verdict.outcome == Outcome::Forwarded {
                        let seen = answer(&world, &packet, packet.body).dst;
                        prop_assert_eq!(bytes, packet.forwarded(seen, at(F::BACKEND, 8080)).frame());
                        senders.insert((flags.is_some(), seen), (client, listen));
                    }
                }
                Act::Backend(which, flags) => {
                    let count = senders.len().max(1);
                    let Some(((is_tcp, seen), (client, listen))) = senders.iter().nth(which % count) else { continue };
                    let flags = if *is_tcp { flags.or(Some(flags::ACK)) } else { None };
                    let packet = TestPacket::new(at(F::BACKEND, 8080), *seen, body(flags));
                    for hook in [Hook::Xdp, Hook::Tc] {
                        let (verdict, bytes) = world.process_bytes(hook, packet.frame());
                        let forwarded = verdict.outcome == Outcome::Forwarded;
                        let expected =
                            if forwarded { packet.forwarded(*listen, *client).frame() } else { packet.frame() };
                        prop_assert_eq!(&bytes, &expected);
                    }
                }
                Act::Wait(ticks) => world.tables.wait(ticks),
                Act::Lose(which) => {
                    let mut entries = world.tables.embryonic.borrow_mut();
                    let count = entries.len().max(1);
                    if let Some(key) = entries.keys().nth(which % count).copied() {
                        entries.remove(&key);
                    }
                }
                Act::Protect(capacity) => world.tables.established_capacity.set(capacity),
            }
        }
        Ok(())
    };
    runner.run(&(any::<bool>(), acts()), check).unwrap();
}
