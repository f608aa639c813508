#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::IpAddr, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    parse::Ipv4,
    tables::{Hop, memory::HOP},
    test_packet::{Body, NETWORK, TestPacket, at},
    test_world::{Source, TestFamily as _, World},
    verdict::Outcome,
};

/// A datagram of so many bytes behind the UDP header, with this fragment word.
fn datagram(payload: usize, fragment: u16) -> TestPacket {
    let address = |last| IpAddr::from([198, 51, 100, last]);
    let packet = TestPacket::new(at(address(1), 1000), at(address(2), 53), Body::Udp);
    packet.with(|p| {
        p.payload = (0..=u8::MAX).cycle().take(payload).collect();
        p.fragment = fragment;
    })
}

fn cut(packet: &TestPacket, mtu: u32) -> Option<Cut> {
    Cut::of(&packet.frame().as_mut_slice(), NETWORK, mtu)
}

/// The fragments as IP packets.
fn pieces(packet: &TestPacket, mtu: u32) -> Vec<Vec<u8>> {
    let ip = packet.ip();
    let cut = cut(packet, mtu).unwrap();
    let of = |piece: Piece| {
        let carried = &ip[ipv4::LEN..][piece.start as usize..][..piece.length as usize];
        [&piece.header[..], carried].concat()
    };
    let pieces: Vec<_> = (0..cut.pieces()).map(|number| of(cut.piece(number).unwrap())).collect();
    assert_eq!(cut.piece(cut.pieces()), None);
    pieces
}

fn word(ip: &[u8]) -> u16 {
    u16::from_be_bytes([ip[6], ip[7]])
}

#[test]
fn known_pieces() {
    // 1308 bytes behind the header, of which 1280 - 20 go into the first: 1256 is a multiple of 8.
    let words = |packet: &TestPacket, mtu| -> Vec<(usize, u16)> {
        pieces(packet, mtu).iter().map(|ip| (ip.len(), word(ip))).collect()
    };
    assert_eq!(words(&datagram(1300, 0), 1280), [(1276, MORE_FRAGMENTS), (72, 157)]);
    // A fragment that is cut: the pieces go on where it began; its last is only the datagram's last if it was.
    assert_eq!(
        words(&datagram(1300, MORE_FRAGMENTS + 200), 1280),
        [(1276, MORE_FRAGMENTS + 200), (72, MORE_FRAGMENTS + 357)]
    );
    assert_eq!(words(&datagram(1300, 200), 1280), [(1276, MORE_FRAGMENTS + 200), (72, 357)]);
    // The least MTU that there is (RFC 791).
    assert_eq!(words(&datagram(92, 0), 68), [(68, MORE_FRAGMENTS), (68, MORE_FRAGMENTS + 6), (24, 12)]);
}

#[test]
fn the_pieces_of_a_packet_of_a_rule_are_those_of_its_translation() {
    for source in [Source::Preserved, Source::PreservedByFlow, Source::Address(Ipv4::OURS)] {
        let mut world = World::<Ipv4>::with_rule(source);
        world.tables.default_hop = Hop { mtu: 600, ..HOP };
        let packet = TestPacket::new(at(Ipv4::CLIENT, 61_001), at(Ipv4::LISTEN, 80), Body::Udp)
            .with(|p| p.payload = (0..=u8::MAX).cycle().take(1600).collect());
        let seen = if let Source::Address(ours) = source { ours } else { Ipv4::CLIENT };
        let becomes = packet.forwarded(at(seen, 61_001), at(Ipv4::BACKEND, 8080));
        let arrived = world.arrives(packet.frame());
        assert!(arrived.iter().all(|(verdict, _)| verdict.outcome == Outcome::Forwarded), "{arrived:?}");
        let arrived: Vec<_> = arrived.into_iter().map(|(_, frame)| frame[NETWORK..].to_vec()).collect();
        assert_eq!(arrived, pieces(&becomes, 600), "{source:?}");
        assert_eq!(arrived.len(), 3);
        // A fragment that another router made and that is too large for this way.
        let large = packet.with(|p| p.fragment = MORE_FRAGMENTS);
        let arrived = world.arrives(large.frame());
        let words: Vec<_> = arrived.iter().map(|(_, frame)| word(&frame[NETWORK..])).collect();
        assert_eq!(words, [MORE_FRAGMENTS, MORE_FRAGMENTS + 72, MORE_FRAGMENTS + 144]);
    }
}

#[test]
fn what_is_not_cut() {
    assert!(cut(&datagram(1300, 0), 1280).is_some());
    let table = [
        ("do not fragment", datagram(1300, 0x4000), 1280),
        ("options", datagram(1300, 0).with(|p| p.options = vec![1, 1, 1, 0]), 1280),
        ("no room for 8 bytes", datagram(1300, 0), 27),
        ("no MTU at all", datagram(1300, 0), 0),
        ("longer than what is kept", datagram(LONGEST as usize, 0), 1280),
        ("a datagram that is too long", datagram(1300, 0x1fff), 1280),
    ];
    for (about, packet, mtu) in table {
        assert_eq!(cut(&packet, mtu), None, "{about}");
    }
}

proptest! {
    #[test]
    fn pieces_are_the_packet(payload in 0..9000usize, mtu in 28..9000u32, offset in 0..100u16, more: bool) {
        let fragment = offset | if more { MORE_FRAGMENTS } else { 0 };
        let packet = datagram(payload, fragment);
        let ip = packet.ip();
        let mut together = vec![];
        let pieces = pieces(&packet, mtu);
        for (number, piece) in pieces.iter().enumerate() {
            prop_assert!(piece.len() <= mtu as usize);
            prop_assert_eq!(usize::from(u16::from_be_bytes([piece[2], piece[3]])), piece.len());
            prop_assert_eq!(usize::from(word(piece) & FRAGMENT_OFFSET), usize::from(offset) + together.len() / 8);
            let is_last = number + 1 == pieces.len();
            prop_assert_eq!(word(piece) & MORE_FRAGMENTS != 0, !is_last || more);
            let sum: u32 = piece[..ipv4::LEN].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            prop_assert_eq!((sum >> 16) + (sum & 0xffff), 0xffff, "header checksum");
            // Everything but the lengths, the place and the sum is the packet's.
            prop_assert_eq!((&piece[..2], &piece[4..6], &piece[8..10], &piece[12..20]), (&ip[..2], &ip[4..6], &ip[8..10], &ip[12..20]));
            together.extend_from_slice(&piece[ipv4::LEN..]);
        }
        prop_assert_eq!(&together[..], &ip[ipv4::LEN..]);
    }
}
