#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{vec, vec::Vec};

use super::*;
use crate::{
    abi::NextHopState as State,
    complete,
    tables::memory::HOP,
    test_packet::{Body, NETWORK, TestPacket, at, flags, icmp_error as error, internet_checksum},
    test_world::{Hook, Source, TestFamily, World, both_families},
    verdict::Kind,
};

both_families!(
    every_reason_has_its_message,
    the_sender_is_told_from_an_address_it_knows,
    as_much_is_quoted_as_fits,
    an_unfinished_checksum_changes_nothing,
    what_cannot_be_answered_stays_dropped,
    answers_are_limited_and_the_mtu_has_a_share_of_its_own,
    segments_are_told_about_too,
);

/// A packet whose link header may be missing, whose checksum may be unfinished, and on which each step may fail.
#[derive(Clone, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Where the checksum that is to be finished sums from, and where it is.
    unfinished: Option<(usize, usize)>,
    segment: u32,
    /// Steps until one fails.
    fails: Option<usize>,
    steps: usize,
}

impl Buffer {
    fn step(&mut self) -> Option<()> {
        let fails = self.fails == Some(self.steps);
        self.steps += 1;
        (!fails).then_some(())
    }

    /// What the network card does: sums what is there, and writes the complement.
    fn finish(&mut self) {
        let Some((start, field)) = self.unfinished else { return };
        let sum = internet_checksum(&self.bytes[start..]);
        self.bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Packet for Buffer {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.bytes.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
    fn length(&self) -> usize {
        self.bytes.len()
    }
    fn segment_payload(&self) -> u32 {
        self.segment
    }
}

impl Quotable for Buffer {
    fn is_unfinished(&mut self, _: usize) -> Option<bool> {
        self.step()?;
        Some(self.unfinished.is_some())
    }
    fn shorten(&mut self, length: usize) -> Option<()> {
        self.step()?;
        // The kernel refuses this.
        if self.unfinished.is_some_and(|(_, field)| length < field + 2) {
            return None;
        }
        assert!(length <= self.bytes.len(), "made longer");
        self.bytes.truncate(length);
        self.segment = 0;
        Some(())
    }
    fn make_room(&mut self, length: usize) -> Option<()> {
        self.step()?;
        self.bytes.splice(NETWORK..NETWORK, vec![0xaa; length]);
        if let Some((start, field)) = &mut self.unfinished {
            *start += length;
            *field += length;
        }
        Some(())
    }
}

/// Puts a packet through TC, and what is refused there through [`answer`].
fn run<F: TestFamily + Answering>(world: &World<F>, mut packet: Buffer) -> (Verdict, Buffer) {
    let verdict = complete::process::<F, _>(&mut packet, &world.tables, NETWORK);
    if verdict.outcome.kind() != Kind::Drop {
        return (verdict, packet);
    }
    (answer::<F, _>(&mut packet, &world.tables, NETWORK, &verdict), packet)
}

fn to<F: TestFamily>(body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 61_001), at(F::LISTEN, 80), body).with(|p| p.fragment = 0x4000)
}

fn buffer(packet: &TestPacket) -> Buffer {
    Buffer { bytes: packet.frame(), ..Buffer::default() }
}

/// Type, code and the rest of the header by the family's own numbers.
fn by_family<F: TestFamily>(v4: (u8, u8, u32), v6: (u8, u8, u32)) -> (u8, u8, u32) {
    if F::CLIENT.is_ipv4() { v4 } else { v6 }
}

fn time_exceeded<F: TestFamily>() -> (u8, u8, u32) {
    by_family::<F>((11, 0, 0), (3, 0, 0))
}

fn world_with<F: TestFamily>(source: Source, hop: Hop) -> World<F> {
    let mut world = World::<F>::with_rule(source);
    world.tables.hops.insert(F::address(F::BACKEND), hop);
    world
}

fn every_reason_has_its_message<F: TestFamily + Answering>() {
    use Outcome::{AnsweredNoRoute, AnsweredTooBig, AnsweredTtl, DropNoRoute};
    let hop = |state, mtu| Hop { state, mtu, ..HOP };
    let big = to::<F>(Body::Udp).with(|p| p.payload = vec![7; 1300]);
    let last = to::<F>(Body::Udp).with(|p| p.hop_limit = 1);
    let plain = to::<F>(Body::Udp);
    let table = [
        (&last, hop(State::Resolved, 1500), AnsweredTtl, by_family::<F>((11, 0, 0), (3, 0, 0))),
        (&last, hop(State::Unresolved, 1500), AnsweredTtl, by_family::<F>((11, 0, 0), (3, 0, 0))),
        (&big, hop(State::Resolved, 1299), AnsweredTooBig, by_family::<F>((3, 4, 1299), (2, 0, 1299))),
        (&big, hop(State::Unresolved, 1290), AnsweredTooBig, by_family::<F>((3, 4, 1290), (2, 0, 1290))),
        // No IPv6 sender goes below 1280.
        (&big, hop(State::Resolved, 1000), AnsweredTooBig, by_family::<F>((3, 4, 1000), (2, 0, 1280))),
        (&plain, hop(State::Local, 0), AnsweredNoRoute, by_family::<F>((3, 0, 0), (1, 0, 0))),
        (&plain, hop(State::Unreachable, 0), AnsweredNoRoute, by_family::<F>((3, 1, 0), (1, 0, 0))),
        (&plain, hop(State::Prohibited, 0), AnsweredNoRoute, by_family::<F>((3, 13, 0), (1, 1, 0))),
        // Nobody is told of a blackhole, nor of what is not known.
        (&plain, hop(State::Blackhole, 0), DropNoRoute, (0, 0, 0)),
        (&plain, hop(State::Unknown, 0), DropNoRoute, (0, 0, 0)),
    ];
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        for (packet, hop, outcome, message) in table {
            let world = world_with::<F>(source, hop);
            let (verdict, left) = run(&world, buffer(packet));
            assert_eq!(verdict.outcome, outcome, "{source:?} {hop:?}");
            assert_eq!(world.entries(), (0, 0), "what is not forwarded begins no flow");
            if verdict.outcome == DropNoRoute {
                assert_eq!(left.bytes, packet.frame());
                continue;
            }
            assert_eq!(verdict.hop, HOP, "the way back to the client");
            let ip = packet.ip();
            let quoted = &ip[..ip.len().min(F::LONGEST - F::HEADERS)];
            assert_eq!(left.bytes, error(F::LISTEN, F::CLIENT, message, quoted, 0xc0), "{source:?} {hop:?}");
        }
    }
}

fn the_sender_is_told_from_an_address_it_knows<F: TestFamily + Answering>() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(F::OURS)] {
        let world = World::<F>::with_rule(source);
        let there = to::<F>(Body::Tcp(flags::SYN));
        let (verdict, _) = world.process_bytes(Hook::Tc, there.frame());
        assert_eq!(verdict.outcome, Outcome::Forwarded);
        // The client's next packet, of a flow now, and the backend's answer.
        let ours = source == Source::Address(F::OURS);
        let seen = if ours { at(F::OURS, 61_001) } else { there.src };
        let back = TestPacket::new(at(F::BACKEND, 8080), seen, Body::Tcp(flags::SYN_ACK));
        let known = if ours { F::OURS } else { F::LISTEN };
        for (packet, known) in [(there, F::LISTEN), (back, known)] {
            let packet = packet.with(|p| p.hop_limit = 1);
            let (verdict, left) = run(&world, buffer(&packet));
            assert_eq!(verdict, Verdict::refused(Outcome::AnsweredTtl, HOP), "{source:?}");
            let expected = error(known, packet.src.ip(), time_exceeded::<F>(), &packet.ip(), 0xc0);
            assert_eq!(left.bytes, expected, "{source:?} {packet:?}");
        }
    }
}

fn as_much_is_quoted_as_fits<F: TestFamily + Answering>() {
    let most = F::LONGEST - F::HEADERS;
    for (length, back, quoted) in [
        (60, 1500, 60),
        (61, 1500, 61),
        (most - 1, 1500, most - 1),
        (most, 1500, most),
        (most + 1, 1500, most),
        (1400, 1500, most),
        (1400, F::LONGEST, most),
        (1400, 301, 301 - F::HEADERS),
        (1400, F::HEADERS + F::HEADER + 8, F::HEADER + 8),
    ] {
        let mut world = World::<F>::with_rule(Source::Preserved);
        let mtu = u32::try_from(back).unwrap();
        world.tables.hops.insert(F::address(F::CLIENT), Hop { mtu, ..HOP });
        let packet = to::<F>(Body::Udp).with(|p| p.hop_limit = 1);
        let payload = length - F::HEADER - 8;
        let packet = packet.with(|p| p.payload = (0..payload).map(|n| (n * 7) as u8).collect());
        // What comes after the IP packet is not quoted.
        let padded = packet.with(|p| p.trailer = vec![0x55; 9]);
        let (verdict, left) = run(&world, buffer(&padded));
        assert_eq!(verdict.outcome, Outcome::AnsweredTtl, "{length} {back}");
        let expected = error(F::LISTEN, F::CLIENT, time_exceeded::<F>(), &packet.ip()[..quoted], 0xc0);
        assert_eq!(left.bytes, expected, "{length} bytes, a way back of {back}");
    }
    // Options, extension headers and the type of service belong to the quoted packet.
    let packet = to::<F>(Body::Udp)
        .with(|p| p.hop_limit = 0)
        .with(|p| p.options = vec![1; 40])
        .with(|p| p.extensions = vec![(0, vec![0; 6]), (60, vec![1; 14])]);
    let mut bytes = packet.frame();
    let v4 = F::CLIENT.is_ipv4();
    if v4 {
        bytes[NETWORK + 1] = 0xbb;
        bytes[NETWORK + 10..NETWORK + 12].fill(0);
        let sum = internet_checksum(&bytes[NETWORK..NETWORK + 60]);
        bytes[NETWORK + 10..NETWORK + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let (verdict, left) =
        run(&World::<F>::with_rule(Source::Preserved), Buffer { bytes: bytes.clone(), ..Buffer::default() });
    assert_eq!(verdict.outcome, Outcome::AnsweredTtl);
    // Precedence 6, the rest of the DSCP, no ECN.
    let expected = error(F::LISTEN, F::CLIENT, time_exceeded::<F>(), &bytes[NETWORK..], 0xd8);
    assert_eq!(left.bytes, expected);
}

fn an_unfinished_checksum_changes_nothing<F: TestFamily + Answering>() {
    let most = F::LONGEST - F::HEADERS;
    for (body, field) in [(Body::Tcp(flags::ACK), 16), (Body::Udp, 6)] {
        // Lengths by which everything is quoted, odd ones too, and by which it is cut.
        for payload in (0..40).chain([most, most + 1, 1200]) {
            let packet = to::<F>(body).with(|p| p.hop_limit = 1);
            let packet = packet.with(|p| p.payload = (0..payload).map(|n| (n * 31) as u8).collect());
            let mut bytes = packet.frame();
            let transport = NETWORK + F::HEADER;
            // Any number may stand there; the pseudo-header's sum does.
            for partial in [0x1234_u16, 0, 0xffff, 0x8001] {
                bytes[transport + field..transport + field + 2].copy_from_slice(&partial.to_be_bytes());
                let unfinished = Some((transport, transport + field));
                let (verdict, mut left) = run(
                    &World::<F>::with_rule(Source::Preserved),
                    Buffer { bytes: bytes.clone(), unfinished, ..Buffer::default() },
                );
                assert_eq!(verdict.outcome, Outcome::AnsweredTtl);
                let quoted = NETWORK + F::HEADERS;
                for about in ["before it is finished", "after"] {
                    let ip = left.bytes[quoted..].to_vec();
                    let expected = error(F::LISTEN, F::CLIENT, time_exceeded::<F>(), &ip, 0xc0);
                    // 0 and 0xffff are the same sum.
                    assert_eq!(left.bytes[..quoted - 6], expected[..quoted - 6], "{about}");
                    assert_eq!(
                        left.bytes[quoted - 6..quoted - 4],
                        expected[quoted - 6..quoted - 4],
                        "{about}: {body:?} {payload}"
                    );
                    left.finish();
                }
                // All but the checksum is as it came.
                let mut wanted = bytes[NETWORK..].to_vec();
                wanted.truncate(most);
                let at = F::HEADER + field;
                wanted[at..at + 2].copy_from_slice(&left.bytes[quoted + at..quoted + at + 2]);
                assert_eq!(left.bytes[quoted..], wanted);
            }
        }
    }
}

fn what_cannot_be_answered_stays_dropped<F: TestFamily + Answering>() {
    let last = |body| to::<F>(body).with(|p| p.hop_limit = 1);
    let dropped = |world: &World<F>, packet: Buffer, outcome: Outcome| {
        let (verdict, _) = run(world, packet);
        assert_eq!(verdict.outcome, outcome);
        // Whoever is not told is dropped, and what is dropped has no way out.
        assert!(verdict.outcome.kind() != Kind::Drop || verdict.hop == Hop::NONE);
    };
    // Each step on the packet may fail.
    let world = World::<F>::with_rule(Source::Preserved);
    for step in 0..3 {
        let long = last(Body::Udp).with(|p| p.payload = vec![7; F::LONGEST]);
        let packet = Buffer { fails: Some(step), ..buffer(&long) };
        dropped(&world, packet, Outcome::DropTtl);
    }
    // What is quoted whole can keep what is behind it.
    let short = last(Body::Udp).with(|p| p.trailer = vec![9; 20]);
    let cut = run(&world, buffer(&short)).1.bytes;
    let (verdict, whole) = run(&world, Buffer { fails: Some(1), ..buffer(&short) });
    assert_eq!(verdict.outcome, Outcome::AnsweredTtl);
    assert_eq!(whole.bytes, [cut, vec![9; 20]].concat());
    let unfinished = Some((NETWORK + F::HEADER, NETWORK + F::HEADER + 6));
    dropped(&world, Buffer { fails: Some(1), unfinished, ..buffer(&short) }, Outcome::DropTtl);
    // No way back, or one too narrow to say anything.
    for hop in [
        Hop { state: State::Local, ..HOP },
        Hop { state: State::Unreachable, ..HOP },
        Hop { state: State::Unknown, ..HOP },
        Hop { mtu: 0, ..HOP },
        Hop { mtu: u32::try_from(F::HEADERS + F::HEADER + 7).unwrap(), ..HOP },
    ] {
        let mut world = World::<F>::with_rule(Source::Preserved);
        world.tables.hops.insert(F::address(F::CLIENT), hop);
        dropped(&world, buffer(&last(Body::Udp)), Outcome::DropTtl);
    }
    // An unfinished checksum that is not the packet's own.
    let mut world = World::<F>::new();
    world.forward_address(F::LISTEN, F::BACKEND, Source::Preserved);
    for body in [Body::Sctp, Body::Other(47)] {
        let unfinished = Some((NETWORK + F::HEADER, NETWORK + F::HEADER + 2));
        dropped(&world, Buffer { unfinished, ..buffer(&last(body)) }, Outcome::DropTtl);
    }
    // Finished ones of any protocol are told about, also echo requests and replies.
    for body in [Body::Sctp, Body::Other(47), Body::EchoRequest, Body::EchoReply] {
        dropped(&world, buffer(&last(body)), Outcome::AnsweredTtl);
    }
    // A verdict that does not know the way the packet could not take: of a step that may not be answered.
    let verdict = Verdict::of(Outcome::DropTtl);
    let mut packet = buffer(&last(Body::Udp));
    assert_eq!(answer::<F, _>(&mut packet, &world.tables, NETWORK, &verdict), verdict);
    assert_eq!(packet.bytes, last(Body::Udp).frame());
    // Nor other drops.
    let other = Verdict::refused(Outcome::DropNotAllowed, HOP);
    let unanswered = Verdict::of(Outcome::DropNotAllowed);
    assert_eq!(answer::<F, _>(&mut packet, &world.tables, NETWORK, &other), unanswered);
    // ICMP errors and fragments do not get that far.
    let error = last(Body::Icmp(if F::CLIENT.is_ipv4() { 3 } else { 1 }));
    assert_eq!(run(&world, buffer(&error)).0.outcome, Outcome::IcmpOther);
}

fn answers_are_limited_and_the_mtu_has_a_share_of_its_own<F: TestFamily + Answering>() {
    let world = world_with::<F>(Source::Preserved, Hop { mtu: 1300, ..HOP });
    let last = buffer(&to::<F>(Body::Udp).with(|p| p.hop_limit = 1));
    let big = buffer(&to::<F>(Body::Udp).with(|p| p.payload = vec![1; 1400]));
    let answered = |packet: &Buffer, times: usize| {
        let outcome = |_| run(&world, packet.clone()).0.outcome;
        (0..times).map(outcome).filter(|outcome| outcome.kind() == Kind::Answer).count()
    };
    assert_eq!(answered(&last, 200), 50);
    assert_eq!(answered(&big, 200), 50, "another share");
    world.tables.wait(1);
    assert_eq!((answered(&last, 10), answered(&big, 10)), (1, 1), "one each tick");
    world.tables.wait(7);
    assert_eq!((answered(&last, 10), answered(&big, 10)), (7, 7));
    world.tables.wait(100_000);
    assert_eq!((answered(&last, 200), answered(&big, 200)), (50, 50), "never more at once");
    // Those that are not told are still refused, and unchanged.
    let (verdict, left) = run(&world, last.clone());
    assert_eq!((verdict.outcome, left.bytes), (Outcome::DropTtl, last.bytes));
}

fn segments_are_told_about_too<F: TestFamily + Answering>() {
    let world = World::<F>::with_rule(Source::Preserved);
    let packet = to::<F>(Body::Tcp(flags::ACK)).with(|p| p.payload = vec![9; 20_000]);
    let most = F::LONGEST - F::HEADERS;
    for (segment, outcome) in [(1500 - 20, Outcome::AnsweredTooBig), (1300, Outcome::Forwarded)] {
        let unfinished = Some((NETWORK + F::HEADER, NETWORK + F::HEADER + 16));
        let (verdict, left) = run(&world, Buffer { unfinished, segment, ..buffer(&packet) });
        assert_eq!(verdict.outcome, outcome);
        if outcome == Outcome::AnsweredTooBig {
            assert_eq!((left.segment, left.bytes.len()), (0, NETWORK + F::HEADERS + most));
            let rest = &left.bytes[NETWORK + F::HEADERS - 4..NETWORK + F::HEADERS];
            assert_eq!(rest, 1500_u32.to_be_bytes());
        }
    }
}

#[test]
fn a_budget_is_whole_at_first_and_after_any_wait() {
    for start in [0, 1, 49, 50, 1_000_000, u32::MAX - 3] {
        let mut budget = Budget::default();
        let at_once = (0..100).filter(|_| budget.take(start, About::Other)).count();
        // Only right after the clock began there has not been a burst's time yet.
        assert_eq!(at_once, (start.min(50)) as usize * usize::from(start < 1 << 31), "{start}");
        let now = start.wrapping_add(60);
        assert_eq!((0..100).filter(|_| budget.take(now, About::Other)).count(), 50);
        // The clock of another packet may be a little behind.
        assert!(!budget.take(now.wrapping_sub(1), About::Other));
    }
}
