//! Random errors, against a translator that builds the expected packet from its meaning and sums it from scratch.

use std::{boxed::Box, vec::Vec};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    checksum::Delta,
    test_packet::{NETWORK, wrongness},
};

both_families!(any_error, translated_back_it_is_as_it_was, a_wrong_embedded_checksum_stays_as_wrong);

/// Which source mode and bodies; about a reply? from a router?
type Kind = (usize, usize, bool, bool);
/// The client's port; payload; how much of its packet is embedded; type-specific bytes; what follows; hop limit.
type Contents = (u16, Vec<u8>, usize, [u8; 4], Vec<u8>, u8);

fn any_kind() -> impl Strategy<Value = Kind> {
    (0..SOURCES.len(), 0..BODIES.len(), any::<bool>(), any::<bool>())
}

fn any_contents() -> impl Strategy<Value = Contents> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    (any::<u16>(), bytes(600usize), 8..700usize, any::<[u8; 4]>(), bytes(50usize), 3..=255u8)
}

struct Case<F: TestFamily> {
    world: World<F>,
    connection: Connection,
    error: TestPacket,
    direction: Direction,
    /// What the error must become.
    back: TestPacket,
}

fn case<F: TestFamily>((source, bodies, forward, from_router): Kind, contents: Contents) -> Case<F> {
    let (port, payload, embedded, rest, tail, hop_limit) = contents;
    let (world, connection) =
        connected_from::<F>(SOURCES[source](F::OURS), BODIES[bodies], port, port.is_multiple_of(3));
    let direction = if forward { Direction::Forward } else { Direction::Reply };
    let (failed, sent, router) = connection.failing::<F>(direction);
    let from = if from_router { router } else { failed.dst.ip() };
    let body = if F::CLIENT.is_ipv4() { Body::IcmpError(3, 4, rest) } else { Body::IcmpError(2, 0, rest) };
    let build = |packet: &TestPacket, from| {
        let packet = packet.with(|p| p.payload.clone_from(&payload));
        // Where something follows, the whole TCP header is there: RFC 4884 fills up to 128 bytes.
        let least = if tail.is_empty() && embedded != 17 { 0 } else { 20 };
        packet.error(from, body, network_header::<F>() + embedded.max(least)).with(|error| {
            error.payload.extend(&tail);
            error.hop_limit = hop_limit;
        })
    };
    let error = build(&failed, from);
    let back = build(&sent, connection.source_of_error(direction, from)).with(|error| error.hop_limit -= 1);
    Case { world, connection, error, direction, back }
}

fn any_error<F: TestFamily>() {
    let check = |(kind, contents): (Kind, Contents)| {
        let Case { world, error, direction, back, .. } = case::<F>(kind, contents);
        becomes(&world, &error, direction, &back);
        Ok(())
    };
    TestRunner::default().run(&(any_kind(), any_contents()), check).unwrap();
}

/// With the entry that undoes what the one that was found does.
fn translated_back_it_is_as_it_was<F: TestFamily>() {
    let check = |((_, bodies, forward, _), contents): (Kind, Contents)| {
        let Case { world, connection, error, direction, back } = case::<F>((2, bodies, forward, false), contents);
        becomes(&world, &error, direction, &back);
        let (failed, sent, _) = connection.failing::<F>(direction);
        let [there, undone] = [failed, sent].map(|packet| {
            let body = if packet.body == connection.request { connection.reply } else { connection.request };
            World::<F>::key(&packet.answer(body))
        });
        let mut flow = world.tables.flow(&there).unwrap();
        let rewrite = &mut flow.rewrite;
        (rewrite.src, rewrite.dst) = (there.src, there.dst);
        (rewrite.src_port, rewrite.dst_port) = (there.src_port, there.dst_port);
        rewrite.address_delta = Delta(rewrite.address_delta).undone().0;
        rewrite.port_delta = Delta(rewrite.port_delta).undone().0;
        let undoing = World::<F>::new();
        flow.last_seen = undoing.tables.now.get();
        let entry = Box::leak(Box::new(core::cell::Cell::new(flow)));
        undoing.tables.embryonic.borrow_mut().insert(undone, entry);
        let (verdict, bytes) = undoing.process_bytes(Hook::Tc, back.frame());
        prop_assert_eq!(verdict.outcome, Outcome::Forwarded);
        prop_assert_eq!(bytes, error.with(|error| error.hop_limit -= 2).frame());
        Ok(())
    };
    TestRunner::default().run(&(any_kind(), any_contents()), check).unwrap();
}

/// The embedded checksums may be anything, and the message's own is right all the same.
fn a_wrong_embedded_checksum_stays_as_wrong<F: TestFamily>() {
    let check = |(kind, contents, noise): (Kind, Contents, [u16; 2])| {
        let Case { world, connection, error, back, .. } = case::<F>(kind, contents);
        let network = network_header::<F>();
        let transport = network
            + match connection.request {
                Body::Tcp(_) => 16,
                Body::Udp | Body::UdpUnsummed => 6,
                _ => 2,
            };
        let fields: &[usize] = if network == 20 { &[10, transport] } else { &[transport] };
        let values = |embedded: &[u8]| -> Vec<u16> {
            let pairs = fields.iter().filter_map(|field| embedded.get(*field..field + 2));
            pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
        };
        let spoilt = error.with(|error| {
            for ((field, noise), was) in fields.iter().zip(noise).zip(values(&error.payload)) {
                // 0 is no checksum to UDP, and 0xffff is the same as 0 to all others.
                let other = (u32::from(was) + u32::from(noise)) % 0xffff;
                if was != 0 && was != 0xffff && other != 0 {
                    error.payload[*field..field + 2].copy_from_slice(&u16::try_from(other).unwrap().to_be_bytes());
                }
            }
        });
        let (verdict, bytes) = world.process_bytes(Hook::Tc, spoilt.frame());
        prop_assert_eq!(verdict.outcome, Outcome::Forwarded);
        prop_assert_eq!(wrongness(&bytes), (0, 0));
        // As wrong: the same has been added to it, in ones' complement.
        let added = |spoilt: &[u8], right: &[u8]| -> Vec<u32> {
            let pairs = values(spoilt).into_iter().zip(values(right));
            pairs.map(|(a, b)| (u32::from(a) + 0xffff - u32::from(b)) % 0xffff).collect()
        };
        let translated = &bytes[NETWORK + network + 8..];
        prop_assert_eq!(added(translated, &back.payload), added(&spoilt.payload, &error.payload));
        Ok(())
    };
    TestRunner::default().run(&(any_kind(), any_contents(), any::<[u16; 2]>()), check).unwrap();
}
