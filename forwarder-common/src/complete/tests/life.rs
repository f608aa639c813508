//! One flow from its first packet to its end.

use std::vec::Vec;

use super::{FlowState::*, *};

both_families!(
    tcp_step_by_step,
    a_forged_acknowledgment_establishes_nothing,
    what_is_out_of_the_window_ends_nothing,
    how_far_a_connection_has_come_is_followed_at_both_hooks,
    other_protocols_step_by_step,
    a_port_that_cannot_be_kept_is_changed_for_the_whole_life,
    a_full_protected_table_keeps_no_flow_from_working,
    idle_flows_end_at_their_timeout,
    either_direction_keeps_a_flow_alive,
    a_flow_seen_by_another_cpu_meanwhile_lives,
    a_reply_after_the_end_is_not_forwarded,
    rules_that_are_gone_leave_their_flows,
);

fn sources<F: TestFamily>() -> [Source; 2] {
    [Source::PreservedByFlow, Source::Address(F::OURS)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Backend,
}
use Sender::{Backend, Client};

/// Sends both ends' packets through TC, or through XDP and then TC, and checks every byte, counter and state.
fn converse<F: TestFamily>(
    world: &World<F>,
    with_xdp: bool,
    first: &TestPacket,
    steps: &[(Sender, Body, FlowState, (usize, usize))],
) {
    let mut answer_to_first = None;
    for (number, (from, body, state, entries)) in steps.iter().enumerate() {
        world.tables.wait(50);
        let (packet, direction, src, dst) = match (from, &answer_to_first) {
            (Client, None) => {
                let reply = steps.iter().find(|step| step.0 == Backend).unwrap().1;
                answer_to_first = Some(opens(world, first, reply));
                assert_eq!((world.state(first), world.entries()), (Some(*state), *entries), "step {number}");
                continue;
            }
            (Client, Some(answer)) => (first.with(|p| p.body = *body), Direction::Forward, answer.dst, answer.src),
            (Backend, answer) => {
                let answer = answer.clone().unwrap().with(|p| p.body = *body);
                (answer, Direction::Reply, first.dst, first.src)
            }
        };
        let before = world.state(first);
        let plain = !matches!(body, Body::Tcp(f) if f & (flags::SYN | flags::FIN | flags::RST) != 0);
        let expected = packet.forwarded(src, dst);
        if with_xdp && plain && before == Some(Established) {
            world.forwards(Hook::Xdp, &packet, direction, &expected);
        } else {
            if with_xdp {
                let (verdict, bytes) = world.process_bytes(Hook::Xdp, packet.frame());
                assert!(matches!(verdict.outcome, Outcome::ToTc | Outcome::NotOurs), "{verdict:?} at {number}");
                assert_eq!(bytes, packet.frame());
            }
            world.forwards(Hook::Tc, &packet, direction, &expected);
        }
        assert_eq!(world.state(first), Some(*state), "step {number} from {before:?}: {from:?} {body:?}");
        assert_eq!(world.entries(), *entries, "entries after step {number}: {from:?} {body:?}");
        let flow = world.flow(&packet).unwrap();
        assert_eq!(flow.last_seen, world.tables.now(), "step {number} was not noted");
    }
    // Every packet is counted in its own direction's entry, also over the move to the protected table.
    let sent = |who| steps.iter().filter(|(from, ..)| *from == who).count() as u64;
    assert_eq!(world.flow(first).unwrap().packets, sent(Client));
    let reply = answer_to_first.unwrap().with(|p| p.body = steps.iter().find(|step| step.0 == Backend).unwrap().1);
    assert_eq!(world.flow(&reply).map_or(0, |flow| flow.packets), sent(Backend));
    assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
}

fn tcp_step_by_step<F: TestFamily>() {
    use flags::{ACK, FIN_ACK, RST, SYN, SYN_ACK};
    let steps = [
        (Client, SYN, Opening, (0, 2)),
        (Client, SYN, Opening, (0, 2)),
        (Backend, SYN_ACK, Answered, (0, 2)),
        (Backend, SYN_ACK, Answered, (0, 2)),
        (Client, SYN, Answered, (0, 2)),
        (Client, ACK, Established, (2, 0)),
        (Backend, ACK, Established, (2, 0)),
        (Client, ACK, Established, (2, 0)),
        (Client, SYN, Established, (2, 0)),
        (Client, FIN_ACK, ClientClosed, (2, 0)),
        (Backend, ACK, ClientClosed, (2, 0)),
        (Client, FIN_ACK, ClientClosed, (2, 0)),
        (Backend, FIN_ACK, Closed, (2, 0)),
        (Client, ACK, Closed, (2, 0)),
        (Backend, SYN_ACK, Closed, (2, 0)),
        // The same ports again.
        (Client, SYN, Opening, (2, 0)),
        (Backend, SYN_ACK, Answered, (2, 0)),
        (Client, ACK, Established, (2, 0)),
        (Backend, FIN_ACK, BackendClosed, (2, 0)),
        (Client, ACK, BackendClosed, (2, 0)),
        (Client, FIN_ACK, Closed, (2, 0)),
        (Client, SYN, Opening, (2, 0)),
        (Backend, RST | ACK, Reset, (2, 0)),
        (Client, SYN, Opening, (2, 0)),
        (Client, RST, Reset, (2, 0)),
    ];
    let steps = steps.map(|(from, flags, state, entries)| (from, Body::Tcp(flags), state, entries));
    let refused = [
        (Client, Body::Tcp(SYN), Opening, (0, 2)),
        (Backend, Body::Tcp(RST | ACK), Reset, (0, 2)),
        (Client, Body::Tcp(SYN), Opening, (0, 2)),
        (Backend, Body::Tcp(SYN_ACK), Answered, (0, 2)),
        (Client, Body::Tcp(FIN_ACK), ClientClosed, (0, 2)),
    ];
    for source in sources::<F>() {
        for with_xdp in [false, true] {
            let first = to::<F>(61_001, Body::Tcp(SYN));
            converse(&World::<F>::with_rule(source), with_xdp, &first, &steps);
            converse(&World::<F>::with_rule(source), with_xdp, &first, &refused);
        }
    }
}

/// Who did not see the SYN-ACK is forwarded, but gets no place in the protected table.
fn a_forged_acknowledgment_establishes_nothing<F: TestFamily>() {
    for source in sources::<F>() {
        let world = World::<F>::with_rule(source);
        let there = to::<F>(61_001, Body::Tcp(flags::SYN));
        let back = opens(&world, &there, Body::Tcp(flags::SYN_ACK));
        world.back(&back, there.dst, there.src);
        let ack = there.with(|p| p.body = Body::Tcp(flags::ACK));
        // The number is the third word of the TCP header, before the payload.
        let field = ack.frame().len() - ack.payload.len() - 12;
        for forged in [0x0102_0304u32, 0x0112_0305, 0, 0x8102_0305] {
            let mut frame = ack.frame();
            frame[field..field + 4].copy_from_slice(&forged.to_be_bytes());
            assert_eq!(world.process_bytes(Hook::Tc, frame).0, Verdict::transmit(HOP));
            assert_eq!((world.state(&there), world.entries()), (Some(Answered), (0, 2)), "{forged:#x}");
        }
        // Some of what the backend sent at once may be acknowledged too.
        let mut frame = ack.frame();
        frame[field..field + 4].copy_from_slice(&0x0102_7777u32.to_be_bytes());
        world.process_bytes(Hook::Tc, frame);
        assert_eq!((world.state(&there), world.entries()), (Some(Established), (2, 0)));
    }
}

/// A TCP packet with these numbers, which the usual ones all have at 0x01020304 and one more.
fn numbered(packet: &TestPacket, flags: u8, (sequence, acknowledgment): (u32, u32)) -> Vec<u8> {
    let packet = packet.with(|p| p.body = Body::Tcp(flags));
    let mut frame = packet.frame();
    let field = frame.len() - packet.payload.len() - 16;
    frame[field..field + 4].copy_from_slice(&sequence.to_be_bytes());
    frame[field + 4..field + 8].copy_from_slice(&acknowledgment.to_be_bytes());
    frame
}

/// Where both ends of an established connection of the tests are.
const AT: u32 = 0x0102_0304;

fn established<F: TestFamily>() -> (World<F>, TestPacket, TestPacket) {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let there = to::<F>(61_001, Body::Tcp(flags::SYN));
    let back = opens(&world, &there, Body::Tcp(flags::SYN_ACK));
    world.back(&back, there.dst, there.src);
    world.out(&there.with(|p| p.body = Body::Tcp(flags::ACK)), back.dst, back.src);
    assert_eq!(world.state(&there), Some(Established));
    (world, there, back)
}

fn what_is_out_of_the_window_ends_nothing<F: TestFamily>() {
    use flags::{ACK, FIN_ACK, RST};
    for from in [Client, Backend] {
        for (flags, ended) in
            [(RST, Reset), (RST | ACK, Reset), (FIN_ACK, if from == Client { ClientClosed } else { BackendClosed })]
        {
            let (world, there, back) = established::<F>();
            let packet = if from == Client { &there } else { &back };
            for far in [1 << 31, 1 << 28, (1u32 << 24).wrapping_neg(), AT.wrapping_neg()] {
                let (verdict, _) = world.process_bytes(Hook::Tc, numbered(packet, flags, (AT.wrapping_add(far), AT)));
                // The end host judges.
                assert_eq!(verdict, Verdict::transmit(HOP));
                assert_eq!(world.state(&there), Some(Established), "{from:?} {flags:#04x} {far:#x}");
            }
            // What is forged as data does not make room for what is forged as a RST.
            for hook in [Hook::Xdp, Hook::Tc] {
                world.tables.wait(1);
                let (verdict, _) = world.process_bytes(hook, numbered(&back, ACK, (AT + (1 << 30), AT + (1 << 30))));
                assert_eq!(verdict, Verdict::transmit(HOP));
            }
            world.process_bytes(Hook::Tc, numbered(packet, flags, (AT + (1 << 30), AT)));
            assert_eq!(world.state(&there), Some(Established));
            world.process_bytes(Hook::Tc, numbered(packet, flags, (AT + 100_000, AT)));
            assert_eq!(world.state(&there), Some(ended));
        }
    }
}

fn how_far_a_connection_has_come_is_followed_at_both_hooks<F: TestFamily>() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let (world, there, back) = established::<F>();
        let mut at = (AT, AT);
        // Both ends go on by far more than the window, in steps that the backend's packets show.
        for _ in 0..50 {
            at = (at.0.wrapping_add(100 << 20), at.1.wrapping_add(70 << 20));
            world.tables.wait(1);
            assert_eq!(world.process_bytes(hook, numbered(&there, flags::ACK, at)).0, Verdict::transmit(HOP));
            assert_eq!(world.process_bytes(hook, numbered(&back, flags::ACK, (at.1, at.0))).0, Verdict::transmit(HOP));
        }
        for (packet, sequence) in [(&there, AT.wrapping_add(1 << 29)), (&back, at.1.wrapping_add(1 << 30))] {
            world.process_bytes(Hook::Tc, numbered(packet, flags::RST, (sequence, 0)));
            assert_eq!(world.state(&there), Some(Established), "{hook:?}");
        }
        world.process_bytes(Hook::Tc, numbered(&there, flags::FIN_ACK, at));
        assert_eq!(world.state(&there), Some(ClientClosed), "{hook:?}");
        world.process_bytes(Hook::Tc, numbered(&back, flags::RST, (at.1, at.0)));
        assert_eq!(world.state(&there), Some(Reset), "{hook:?}");
        // The same ports again: other numbers, known from what the backend answers.
        let again = (AT.wrapping_add(1 << 31), AT.wrapping_add(3 << 30));
        for (packet, body, numbers) in [
            (&there, flags::SYN, (again.0, 0)),
            (&back, flags::SYN_ACK, (again.1, again.0 + 1)),
            (&there, flags::ACK, (again.0 + 1, again.1 + 1)),
        ] {
            world.process_bytes(Hook::Tc, numbered(packet, body, numbers));
        }
        assert_eq!(world.state(&there), Some(Established), "{hook:?}");
        world.process_bytes(Hook::Tc, numbered(&back, flags::RST, (at.1, at.0)));
        assert_eq!(world.state(&there), Some(Established), "{hook:?}: the old connection's");
        world.process_bytes(Hook::Tc, numbered(&back, flags::RST, (again.1 + 1, again.0)));
        assert_eq!(world.state(&there), Some(Reset), "{hook:?}");
    }
}

fn other_protocols_step_by_step<F: TestFamily>() {
    let kinds = [
        (Body::Udp, Body::Udp),
        (Body::UdpUnsummed, Body::UdpUnsummed),
        (Body::EchoRequest, Body::EchoReply),
        (Body::Sctp, Body::Sctp),
        (Body::Other(47), Body::Other(47)),
    ];
    for source in sources::<F>() {
        for (request, reply) in kinds {
            let steps = [
                (Client, request, Opening, (0, 2)),
                (Client, request, Opening, (0, 2)),
                (Backend, reply, Answered, (0, 2)),
                (Backend, reply, Answered, (0, 2)),
                (Client, request, Established, (2, 0)),
                (Client, request, Established, (2, 0)),
                (Backend, reply, Established, (2, 0)),
            ];
            for with_xdp in [false, true] {
                let mut world = World::<F>::new();
                world.forward_address(F::LISTEN, F::BACKEND, source);
                // Protocols without ports have 0 there, so that the packets built say the same.
                let port = |port| if matches!(request, Body::Other(_)) { 0 } else { port };
                let first = TestPacket::new(at(F::CLIENT, port(61_001)), at(F::LISTEN, port(4500)), request);
                let first = if request == Body::EchoRequest { first.with(|p| p.dst.set_port(0)) } else { first };
                converse(&world, with_xdp, &first, &steps);
            }
        }
    }
}

fn a_port_that_cannot_be_kept_is_changed_for_the_whole_life<F: TestFamily>() {
    let world = World::<F>::with_rule(Source::Address(F::OURS));
    let first = to::<F>(53, Body::Udp);
    let steps = [
        (Client, Body::Udp, Opening, (0, 2)),
        (Backend, Body::Udp, Answered, (0, 2)),
        (Client, Body::Udp, Established, (2, 0)),
        (Backend, Body::Udp, Established, (2, 0)),
        (Client, Body::Udp, Established, (2, 0)),
    ];
    converse(&world, true, &first, &steps);
    assert!(answer(&world, &first, Body::Udp).dst.port() >= 61_000);
}

fn a_full_protected_table_keeps_no_flow_from_working<F: TestFamily>() {
    for source in sources::<F>() {
        let world = World::<F>::with_rule(source);
        world.tables.established_capacity.set(1);
        let there = to::<F>(61_001, Body::Udp);
        let back = opens(&world, &there, Body::Udp);
        world.back(&back, there.dst, there.src);
        assert_eq!(world.tables.counted(101).times(Event::Unprotected), 0);
        world.out(&there, back.dst, back.src);
        assert_eq!(world.tables.counted(101).times(Event::Unprotected), 1);
        assert_eq!(world.entries(), (0, 2));
        world.back(&back, there.dst, there.src);
        // As soon as there is room it is protected after all.
        world.tables.established_capacity.set(2);
        world.out(&there, back.dst, back.src);
        assert_eq!(world.entries(), (2, 0));
        assert_eq!(world.state(&there), Some(Established));
        world.back(&back, there.dst, there.src);
    }
}

/// Every state of every kind of protocol, with the timeout that must hold for it.
fn timeouts() -> impl Iterator<Item = (Body, Body, FlowState, crate::abi::Ticks)> {
    let t = TIMEOUTS;
    let tcp =
        [t.tcp_opening, t.tcp_opening, t.tcp_established, t.tcp_closing, t.tcp_closing, t.tcp_closing, t.tcp_reset];
    let udp = [t.udp_opening, t.udp_opening, t.udp_established];
    let kinds = [
        (Body::Tcp(flags::ACK), Body::Tcp(flags::ACK), tcp.to_vec()),
        (Body::Udp, Body::Udp, udp.to_vec()),
        (Body::EchoRequest, Body::EchoReply, vec![t.icmp; 3]),
        (Body::Sctp, Body::Sctp, vec![t.other; 3]),
    ];
    kinds.into_iter().flat_map(|(request, reply, timeouts)| {
        FlowState::ALL.into_iter().zip(timeouts).map(move |(state, timeout)| (request, reply, state, timeout))
    })
}

/// A world with one flow in this state, last seen now: its client's and its backend's packet.
fn flow_in<F: TestFamily>(request: Body, reply: Body, state: FlowState) -> (World<F>, TestPacket, TestPacket) {
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Address(F::OURS));
    let there = TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 0), request);
    let back = opens(&world, &there, reply);
    let protected = !matches!(state, Opening | Answered);
    if protected {
        world.back(&back, there.dst, there.src);
        world.out(&there, back.dst, back.src);
    }
    for table in [&world.tables.established, &world.tables.embryonic] {
        for entry in table.borrow().values() {
            entry.set_state(state);
            entry.seen(world.tables.now(), 0);
        }
    }
    assert_eq!(world.entries(), if protected { (2, 0) } else { (0, 2) });
    (world, there, back)
}

fn idle_flows_end_at_their_timeout<F: TestFamily>() {
    for (request, reply, state, timeout) in timeouts() {
        let (world, there, back) = flow_in::<F>(request, reply, state);
        world.tables.wait(timeout);
        world.back(&back, there.dst, there.src);
        let (world, there, back) = flow_in::<F>(request, reply, state);
        world.tables.wait(timeout);
        world.out(&there, back.dst, back.src);
        assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1, "{request:?} {state:?} lived");

        let (world, there, back) = flow_in::<F>(request, reply, state);
        world.tables.wait(timeout + 1);
        world.leaves(Hook::Tc, &back, Outcome::NotOurs);
        assert_eq!(world.entries(), (0, 0), "{request:?} {state:?}: both halves go");
        let (world, there_again, _) = flow_in::<F>(request, reply, state);
        world.tables.wait(timeout + 1);
        let (verdict, _) = world.process_bytes(Hook::Tc, there_again.frame());
        assert_eq!(verdict, Verdict::transmit(HOP));
        assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 2, "{request:?} {state:?} began anew");
        assert_eq!((world.state(&there), world.entries()), (Some(Opening), (0, 2)));
    }
}

/// A flow has one life: a download keeps alive what the client must still be able to acknowledge (RFC 4787 REQ-6).
fn either_direction_keeps_a_flow_alive<F: TestFamily>() {
    for (request, reply, state, timeout) in timeouts() {
        for seen_last in [Client, Backend] {
            let (world, there, back) = flow_in::<F>(request, reply, state);
            let key = World::<F>::key(if seen_last == Client { &there } else { &back });
            world.tables.wait(timeout);
            let entry = world.tables.established(&key).or_else(|| world.tables.embryonic(&key)).unwrap();
            entry.seen(world.tables.now(), 0);
            world.tables.wait(1);
            // The direction that was idle longer than the timeout goes on.
            match seen_last {
                Client => world.back(&back, there.dst, there.src),
                Backend => world.out(&there, back.dst, back.src),
            }
            let begun = world.tables.counted(101).times(Event::FlowBegun);
            assert_eq!(begun, 1, "{request:?} {state:?} seen last by {seen_last:?}");
        }
    }
}

fn a_flow_seen_by_another_cpu_meanwhile_lives<F: TestFamily>() {
    for (request, reply, state, _) in timeouts() {
        let (world, there, back) = flow_in::<F>(request, reply, state);
        for table in [&world.tables.established, &world.tables.embryonic] {
            table.borrow().values().for_each(|entry| entry.seen(world.tables.now() + 1, 0));
        }
        world.back(&back, there.dst, there.src);
        world.out(&there, back.dst, back.src);
        assert_eq!(world.tables.counted(101).times(Event::FlowBegun), 1);
    }
}

fn a_reply_after_the_end_is_not_forwarded<F: TestFamily>() {
    let (world, _, back) = flow_in::<F>(Body::Udp, Body::Udp, Established);
    world.tables.wait(TIMEOUTS.udp_established + 1);
    world.leaves(Hook::Xdp, &back, Outcome::ToTc);
    world.leaves(Hook::Tc, &back, Outcome::NotOurs);
    world.leaves(Hook::Xdp, &back, Outcome::NotOurs);
}

fn rules_that_are_gone_leave_their_flows<F: TestFamily>() {
    for state in [Answered, Established] {
        let (mut world, there, back) = flow_in::<F>(Body::Udp, Body::Udp, state);
        world.tables.ranges.clear();
        world.tables.rules.clear();
        world.out(&there, back.dst, back.src);
        world.back(&back, there.dst, there.src);
        let other = there.with(|p| p.src.set_port(61_002));
        world.leaves(Hook::Tc, &other, Outcome::NotOurs);
    }
}
