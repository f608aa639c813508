#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::{net::SocketAddr, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    checksum::Delta,
    test_packet::{Body, NETWORK, Segmented, TestPacket, at, flags, internet_checksum},
    test_world::{TestFamily, World, both_families},
};

both_families!(
    fields_of_a_plain_packet,
    a_frame_cut_short_anywhere_is_malformed,
    headers_that_do_not_fit_their_ip_packet_are_malformed,
    every_icmp_type,
    nobody_sends_to_itself,
    every_protocol_number,
    what_looks_like_udp_is_read_like_udp,
    a_source_that_cannot_be_answered_is_not_forwarded,
    a_trailer_is_not_part_of_the_packet,
    a_larger_offset_of_the_network_header,
    any_bytes_are_read_without_a_panic,
    plain_and_walk_agree_on_mutated_packets,
);

/// For every TTL that is forwarded, and every protocol.
#[test]
fn one_hop_less_changes_the_header_checksum_by_the_same() {
    for [ttl, protocol] in (1..=255).flat_map(|ttl| (0..=255).map(move |protocol| [ttl, protocol])) {
        let (old, new) = (u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([ttl - 1, protocol]));
        assert_eq!(old - crate::parse::ipv4::ONE_HOP, new);
        assert_eq!(Delta::word(old, new), crate::parse::ipv4::ONE_HOP_LESS, "{ttl} {protocol}");
    }
}

/// A packet that hears what its header's bytes change by.
struct Heard<'a>(&'a mut [u8], Delta);

impl Packet for Heard<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.0.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }

    fn length(&self) -> usize {
        self.0.len()
    }

    fn note_header_change(&mut self, change: Delta) {
        self.1 = self.1.and(change);
    }
}

/// Nothing else keeps the sum of an IPv6 header right, and IPv4's makes up for all of its changes.
#[test]
fn what_a_header_changes_by_is_told_where_no_checksum_makes_up_for_it() {
    fn sum(bytes: &[u8]) -> Delta {
        bytes.chunks(2).fold(Delta::NONE, |sum, pair| sum.and(Delta(u16::from_ne_bytes([pair[0], pair[1]]))))
    }
    // 0 and 0xffff are the same sum.
    let folded = |delta: Delta| if delta.0 == 0xffff { 0 } else { delta.0 };
    let (client, listen) = ("[2001:db8::5]:4000".parse().unwrap(), "[2001:db8::7]:80".parse().unwrap());
    for hop_limit in [2, 64, 255] {
        let mut bytes = TestPacket::new(client, listen, Body::Udp).with(|packet| packet.hop_limit = hop_limit).ip();
        let before = sum(&bytes[..40]);
        let (src, dst) = ([1, 2, 3, 4_u32], [0xffff_ffff, 0, 0x1234_5678, 9]);
        let parsed = Ipv6::walk(&bytes.as_mut_slice(), 0).unwrap();
        let address_delta = Delta::address(parsed.key.src, src).and(Delta::address(parsed.key.dst, dst)).0;
        let mut packet = Heard(&mut bytes, Delta::NONE);
        Ipv6::rewrite(&mut packet, 0, &Rewrite { src, dst, address_delta, ..Rewrite::default() }).unwrap();
        let heard = packet.1;
        assert_eq!(folded(before.and(heard)), folded(sum(&bytes[..40])), "{hop_limit}");
    }
    let (client, listen) = ("192.0.2.5:4000".parse().unwrap(), "192.0.2.7:80".parse().unwrap());
    let mut bytes = TestPacket::new(client, listen, Body::Udp).ip();
    let before = sum(&bytes[..20]);
    let parsed = Ipv4::walk(&bytes.as_mut_slice(), 0).unwrap();
    let (src, dst) = (0x1234_5678, 9);
    let address_delta = Delta::address(parsed.key.src, src).and(Delta::address(parsed.key.dst, dst)).0;
    let mut packet = Heard(&mut bytes, Delta::NONE);
    Ipv4::rewrite(&mut packet, 0, &Rewrite { src, dst, address_delta, ..Rewrite::default() }).unwrap();
    assert_eq!(packet.1, Delta::NONE);
    assert_eq!(folded(before), folded(sum(&bytes[..20])));
}

type Read<F> = Result<Parsed<<F as Family>::Address>, Outcome>;

/// What both ways say about a frame: plain, walk.
fn both<F: Family>(mut frame: Vec<u8>) -> (Read<F>, Read<F>) {
    let packet = frame.as_mut_slice();
    (F::plain(&packet, NETWORK), F::walk(&packet, NETWORK))
}

/// The lengths in the tables below are those of seven bytes of payload.
fn packet<F: TestFamily>(body: Body) -> TestPacket {
    TestPacket::new(at(F::CLIENT, 40001), at(F::LISTEN, 80), body).with(|p| p.payload = b"payload".to_vec())
}

const BODIES: [Body; 7] = [
    Body::Tcp(flags::SYN),
    Body::Udp,
    Body::UdpUnsummed,
    Body::EchoRequest,
    Body::EchoReply,
    Body::Sctp,
    Body::Other(47),
];

fn expected<F: TestFamily>(packet: &TestPacket, transport_offset: usize) -> Parsed<F::Address> {
    Parsed {
        key: World::<F>::key(packet),
        transport: match packet.body {
            Body::Tcp(_) => Transport::Tcp,
            Body::Udp | Body::UdpUnsummed | Body::Dccp => Transport::Udp,
            Body::EchoRequest => Transport::EchoRequest,
            Body::EchoReply => Transport::EchoReply,
            Body::Sctp => Transport::Sctp,
            Body::Icmp(_) | Body::IcmpError(..) => Transport::Icmp,
            Body::Other(_) => Transport::Other,
        },
        tcp: match packet.body {
            Body::Tcp(flags) => TcpFields { flags, sequence: 0x0102_0304, acknowledgment: 0x0102_0305 },
            _ => TcpFields::default(),
        },
        transport_offset,
        hop_limit: packet.hop_limit,
        length: packet.length(),
        is_first_fragment: false,
        identification: 0,
    }
}

const fn header_length(ends: &SocketAddr) -> usize {
    if ends.is_ipv4() { 20 } else { 40 }
}

fn fields_of_a_plain_packet<F: TestFamily>() {
    for body in BODIES {
        for hop_limit in [0, 1, 255] {
            let packet = packet::<F>(body).with(|p| p.hop_limit = hop_limit);
            let parsed = expected::<F>(&packet, NETWORK + header_length(&packet.src));
            let (plain, walk) = both::<F>(packet.frame());
            assert_eq!((plain, walk), (Ok(parsed), Ok(parsed)), "{packet:?}");
        }
    }
}

fn a_frame_cut_short_anywhere_is_malformed<F: TestFamily>() {
    for body in BODIES {
        let frame = packet::<F>(body).frame();
        for length in 0..frame.len() {
            let (plain, walk) = both::<F>(frame[..length].to_vec());
            assert_eq!((plain, walk), (Err(Outcome::Malformed), Err(Outcome::Malformed)), "{body:?} of {length} bytes");
        }
    }
}

/// Makes the checksum of an IPv4 header right again, as far as the header goes.
fn sum_header(frame: &mut [u8]) {
    let end = frame.len().min(NETWORK + usize::from(frame[NETWORK] & 0x0f) * 4).max(NETWORK + 20);
    frame[NETWORK + 10..NETWORK + 12].fill(0);
    let sum = internet_checksum(&frame[NETWORK..end]);
    frame[NETWORK + 10..NETWORK + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Sets the length in the IP header to one that leaves `transport` bytes after the plain network header.
fn claim_transport_length(frame: &mut [u8], transport: usize) {
    let transport = u16::try_from(transport).unwrap();
    if frame[NETWORK] >> 4 == 4 {
        frame[NETWORK + 2..NETWORK + 4].copy_from_slice(&(20 + transport).to_be_bytes());
        sum_header(frame);
    } else {
        frame[NETWORK + 4..NETWORK + 6].copy_from_slice(&transport.to_be_bytes());
    }
}

/// The bytes are there, as Ethernet padding: they are no part of the packet.
fn headers_that_do_not_fit_their_ip_packet_are_malformed<F: TestFamily>() {
    let smallest = [(Body::Tcp(0), 20), (Body::Udp, 8), (Body::EchoRequest, 8), (Body::EchoReply, 8), (Body::Sctp, 12)];
    for (body, smallest) in smallest {
        let packet = packet::<F>(body).with(|p| p.payload = vec![0; 60]);
        for length in 0..smallest + 2 {
            let mut frame = packet.frame();
            claim_transport_length(&mut frame, length);
            let (plain, walk) = both::<F>(frame);
            let fits = length >= smallest;
            assert_eq!((plain.is_ok(), walk.is_ok()), (fits, fits), "{body:?} of {length} bytes: {plain:?} {walk:?}");
            for read in [plain, walk] {
                assert!(fits || read == Err(Outcome::Malformed));
            }
        }
    }
}

fn every_icmp_type<F: TestFamily>() {
    for kind in 0..=255 {
        let (plain, walk) = both::<F>(packet::<F>(Body::Icmp(kind)).frame());
        let v4 = F::CLIENT.is_ipv4();
        let expected = match (v4, kind) {
            (true, 8 | 13 | 15 | 17) | (false, 128) => Ok(Transport::EchoRequest),
            (true, 0 | 14 | 16 | 18) | (false, 129) => Ok(Transport::EchoReply),
            _ => Ok(Transport::Icmp),
        };
        assert_eq!(walk.map(|parsed| parsed.transport), expected, "type {kind}");
        let at_xdp = if expected == Ok(Transport::Icmp) { Err(Outcome::IcmpOther) } else { walk };
        assert_eq!(plain, at_xdp);
    }
}

fn every_protocol_number<F: TestFamily>() {
    let v4 = F::CLIENT.is_ipv4();
    for number in 0..=255 {
        let packet = packet::<F>(Body::Other(number)).with(|p| p.payload.clear());
        let (plain, walk) = both::<F>(packet.frame());
        let expected = match number {
            // Without a single byte of their header; ICMP of the wrong family too.
            6 | 17 | 33 | 136 | 1 | 58 | 132 => (Err(Outcome::Malformed), Err(Outcome::Malformed)),
            0 | 43 | 44 | 60 if !v4 => (Err(Outcome::ToTc), Err(Outcome::Malformed)),
            // What authenticates the addresses, and what is no protocol.
            51 => (Err(Outcome::Untranslatable), Err(Outcome::Untranslatable)),
            0 if v4 => (Err(Outcome::Untranslatable), Err(Outcome::Untranslatable)),
            _ => (Ok(Transport::Other), Ok(Transport::Other)),
        };
        assert_eq!((plain.map(|p| p.transport), walk.map(|p| p.transport)), expected, "protocol {number}");
    }
    let other_familys_icmp = packet::<F>(Body::Other(if v4 { 58 } else { 1 })).with(|p| p.payload = vec![8; 64]);
    assert_eq!(both::<F>(other_familys_icmp.frame()), (Err(Outcome::Malformed), Err(Outcome::Malformed)));
}

fn what_looks_like_udp_is_read_like_udp<F: TestFamily>() {
    for number in [33, 136] {
        let packet = packet::<F>(Body::Other(number)).with(|p| p.payload = vec![0x9c, 0x41, 0, 80, 0, 8, 0, 0]);
        let (plain, walk) = both::<F>(packet.frame());
        let plain = plain.unwrap();
        assert_eq!(
            (plain.transport, plain.key.src_port, plain.key.dst_port),
            (Transport::Udp, 40001u16.to_be(), 80u16.to_be())
        );
        assert_eq!(Ok(plain), walk);
    }
}

fn a_source_that_cannot_be_answered_is_not_forwarded<F: TestFamily>() {
    let sources: &[&str] = if F::CLIENT.is_ipv4() {
        &["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.0.1", "224.0.0.1", "239.9.9.9", "240.0.0.1", "255.255.255.255"]
    } else {
        &["::", "::1", "fe80::1", "febf::1", "ff02::1"]
    };
    for source in sources {
        let source = SocketAddr::new(source.parse().unwrap(), 40001);
        let packet = TestPacket::new(source, at(F::LISTEN, 80), Body::Udp);
        assert_eq!(both::<F>(packet.frame()), (Err(Outcome::Martian), Err(Outcome::Martian)), "{source}");
    }
}

fn a_trailer_is_not_part_of_the_packet<F: TestFamily>() {
    for body in BODIES {
        let packet = packet::<F>(body);
        let padded = packet.with(|p| p.trailer = vec![0xaa; 46]);
        assert_eq!(both::<F>(packet.frame()), both::<F>(padded.frame()));
    }
}

/// On a device without link header the network header is at 0; the walk is the same.
fn a_larger_offset_of_the_network_header<F: TestFamily>() {
    let packet = packet::<F>(Body::Udp);
    let mut bytes = packet.ip();
    let at_zero = F::walk(&bytes.as_mut_slice(), 0).unwrap();
    assert_eq!(at_zero.transport_offset, header_length(&packet.src));
    assert_eq!(at_zero.key, World::<F>::key(&packet));
    let past_the_end = bytes.len() + 1;
    assert_eq!(F::plain(&bytes.as_mut_slice(), past_the_end), Err(Outcome::Malformed));
    assert_eq!(F::walk(&bytes.as_mut_slice(), past_the_end), Err(Outcome::Malformed));
}

/// Whatever is read, what `apply` will touch lies inside the IP packet, and the two ways differ only by what XDP
/// leaves to TC.
fn check_any<F: TestFamily>(frame: &[u8]) {
    let (plain, walk) = both::<F>(frame.to_vec());
    match (plain, walk) {
        (Err(Outcome::ToTc | Outcome::Fragment), _)
        | (Err(Outcome::IcmpOther), Ok(Parsed { transport: Transport::Icmp, .. })) => {}
        _ => assert_eq!(plain, walk, "{frame:?}"),
    }
    for parsed in [plain, walk].into_iter().flatten() {
        let header = match parsed.transport {
            Transport::Tcp => 20,
            Transport::Udp | Transport::EchoRequest | Transport::EchoReply => 8,
            Transport::Sctp => 12,
            Transport::Icmp | Transport::Other => 0,
        };
        let end = NETWORK + usize::try_from(parsed.length).unwrap();
        assert!(parsed.transport_offset + header <= end && end <= frame.len(), "{parsed:?} of {frame:?}");
    }
}

fn any_bytes_are_read_without_a_panic<F: TestFamily>() {
    let version = if F::CLIENT.is_ipv4() { 4 } else { 6 };
    let runner = &mut proptest::test_runner::TestRunner::default();
    let frames = (proptest::collection::vec(any::<u8>(), 0..160usize), any::<bool>());
    let read = |(mut frame, right_version): (Vec<u8>, bool)| {
        if right_version && frame.len() > NETWORK {
            frame[NETWORK] = version << 4 | frame[NETWORK] & 0xf;
        }
        check_any::<F>(&frame);
        Ok(())
    };
    runner.run(&frames, read).unwrap();
}

fn plain_and_walk_agree_on_mutated_packets<F: TestFamily>() {
    let extended = TestPacket::with(&packet::<F>(Body::Udp), |p| {
        p.extensions = vec![(0, vec![1; 6]), (60, vec![2; 14]), (43, vec![0; 6])];
        p.options = vec![1; 8];
    });
    let packets: Vec<Vec<u8>> =
        BODIES.iter().map(|body| packet::<F>(*body)).chain([extended]).map(|packet| packet.frame()).collect();
    let runner = &mut proptest::test_runner::TestRunner::default();
    let mutations = proptest::collection::vec((0..120usize, any::<u8>()), 0..6usize);
    let read = |(which, mutations, cut): (usize, Vec<(usize, u8)>, usize)| {
        let mut frame = packets[which].clone();
        for (place, value) in mutations {
            let place = place % frame.len();
            frame[place] = value;
        }
        frame.truncate(frame.len() - cut % 8);
        check_any::<F>(&frame);
        Ok(())
    };
    runner.run(&(0..packets.len(), mutations, 0..8usize), read).unwrap();
}

/// Bytes of an IP header to overwrite: offset and value.
type Change = &'static [(usize, u8)];
/// Read, or why not.
type Judged = Result<(), Outcome>;

/// A frame made from a plain UDP packet over IPv4 by overwriting some bytes of the IP header.
fn v4_with(change: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = packet::<Ipv4>(Body::Udp).frame();
    for (offset, value) in change {
        frame[NETWORK + offset] = *value;
    }
    sum_header(&mut frame);
    frame
}

#[test]
fn a_wrong_ipv4_header_checksum_is_malformed() {
    for options in [vec![], vec![1; 8]] {
        let frame = packet::<Ipv4>(Body::Udp).with(|p| p.options = options).frame();
        let header = frame.len() - NETWORK - 15;
        for bit in 0..header * 8 {
            let mut frame = frame.clone();
            frame[NETWORK + bit / 8] ^= 1 << (bit % 8);
            let (plain, walk) = both::<Ipv4>(frame);
            assert!(
                matches!(plain, Err(Outcome::Malformed | Outcome::ToTc | Outcome::Fragment)),
                "bit {bit}: {plain:?}"
            );
            assert!(matches!(walk, Err(Outcome::Malformed | Outcome::Fragment)), "bit {bit}: {walk:?}");
        }
    }
}

#[test]
fn a_source_route_is_not_forwarded() {
    let routed = packet::<Ipv4>(Body::Udp).with(|p| p.options = vec![131, 7, 4, 10, 0, 0, 1, 0]);
    assert_eq!(both::<Ipv4>(routed.frame()), (Err(Outcome::ToTc), Err(Outcome::Malformed)));
}

fn nobody_sends_to_itself<F: TestFamily>() {
    for body in BODIES {
        let packet = packet::<F>(body).with(|p| p.src.set_ip(F::LISTEN));
        assert_eq!(packet.src.ip(), packet.dst.ip());
        assert_eq!(both::<F>(packet.frame()), (Err(Outcome::Martian), Err(Outcome::Martian)));
    }
}

#[test]
fn ipv4_headers() {
    // The plain packet is 20 + 8 + 7 = 35 bytes.
    let malformed = Err(Outcome::Malformed);
    let fragment = Err(Outcome::Fragment);
    let to_tc = Err(Outcome::ToTc);
    let table: [(&str, Change, Judged, Judged); 18] = [
        ("as it is", &[], Ok(()), Ok(())),
        ("version 0", &[(0, 0x05)], malformed, malformed),
        ("version 6", &[(0, 0x65)], malformed, malformed),
        ("header of 0 words", &[(0, 0x40)], malformed, malformed),
        ("header of 4 words", &[(0, 0x44)], malformed, malformed),
        ("header of 6 words: ports are cut off, and no options", &[(0, 0x46)], to_tc, malformed),
        ("header longer than the packet", &[(0, 0x4f)], malformed, malformed),
        ("total length 0", &[(3, 0)], malformed, malformed),
        ("total length below the header", &[(3, 19)], malformed, malformed),
        ("total length is the header", &[(3, 20)], malformed, malformed),
        ("total length one too long", &[(3, 36)], malformed, malformed),
        ("total length much too long", &[(2, 0xff)], malformed, malformed),
        ("don't fragment", &[(6, 0x40)], Ok(()), Ok(())),
        ("the reserved bit (RFC 3514)", &[(6, 0x80)], Ok(()), Ok(())),
        ("first fragment", &[(6, 0x20)], fragment, Ok(())),
        ("first fragment without its ports", &[(6, 0x20), (3, 27)], fragment, fragment),
        ("second fragment", &[(7, 1)], fragment, fragment),
        ("last fragment, don't fragment set", &[(6, 0x5f), (7, 0xff)], fragment, fragment),
    ];
    for (what, change, plain, walk) in table {
        let (is_plain, is_walk) = both::<Ipv4>(v4_with(change));
        assert_eq!((is_plain.map(|_| ()), is_walk.map(|_| ())), (plain, walk), "{what}");
    }
}

#[test]
fn ipv4_options_are_stepped_over() {
    for words in 1..=10 {
        for body in BODIES {
            let packet = packet::<Ipv4>(body).with(|p| p.options = vec![1; 4 * words]);
            let parsed = expected::<Ipv4>(&packet, NETWORK + 20 + 4 * words);
            assert_eq!(both::<Ipv4>(packet.frame()), (Err(Outcome::ToTc), Ok(parsed)));
            let first = packet.with(|p| p.fragment = 0x2000);
            let identification = 0x1234u16.to_be().into();
            let parsed = Parsed { is_first_fragment: true, identification, ..parsed };
            assert_eq!(both::<Ipv4>(first.frame()), (Err(Outcome::ToTc), Ok(parsed)));
            let later = packet.with(|p| p.fragment = 0x2001);
            assert_eq!(both::<Ipv4>(later.frame()).1, Err(Outcome::Fragment));
        }
    }
}

#[test]
fn ipv6_headers() {
    // The plain packet is 40 + 8 + 7 = 55 bytes, payload length 15.
    let malformed = Err(Outcome::Malformed);
    let table: [(&str, Change, Judged); 7] = [
        ("as it is", &[], Ok(())),
        ("version 0", &[(0, 0)], malformed),
        ("version 4", &[(0, 0x45)], malformed),
        ("traffic class and flow label", &[(0, 0x6f), (1, 0xff), (2, 0xff), (3, 0xff)], Ok(())),
        ("payload length 0", &[(5, 0)], malformed),
        ("payload length one too long", &[(5, 16)], malformed),
        ("payload length much too long", &[(4, 0xff)], malformed),
    ];
    for (what, change, outcome) in table {
        let mut frame = packet::<Ipv6>(Body::Udp).frame();
        for (offset, value) in change {
            frame[NETWORK + offset] = *value;
        }
        let (plain, walk) = both::<Ipv6>(frame);
        assert_eq!((plain.map(|_| ()), walk.map(|_| ())), (outcome, outcome), "{what}");
    }
}

fn extended(extensions: &[(u8, usize)], body: Body) -> TestPacket {
    packet::<Ipv6>(body).with(|p| {
        p.extensions = extensions.iter().map(|(number, length)| (*number, vec![0; 8 * length + 6])).collect();
    })
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    let chains: [(&str, &[(u8, usize)]); 6] = [
        ("hop-by-hop", &[(0, 0)]),
        ("routing, no segments left", &[(43, 2)]),
        ("destination options", &[(60, 1)]),
        ("all of them, in the order of RFC 8200", &[(0, 0), (60, 0), (43, 1), (60, 3)]),
        ("one of the longest kind", &[(60, 100)]),
        ("as many as are stepped over", &[(60, 0); MOST_EXTENSION_HEADERS]),
    ];
    for (what, chain) in chains {
        for body in BODIES {
            let packet = extended(chain, body);
            let skipped: usize = chain.iter().map(|(_, length)| 8 * (length + 1)).sum();
            let parsed = expected::<Ipv6>(&packet, NETWORK + 40 + skipped);
            assert_eq!(both::<Ipv6>(packet.frame()), (Err(Outcome::ToTc), Ok(parsed)), "{what}");
        }
    }
}

#[test]
fn ipv6_extension_headers_that_are_not_forwarded() {
    let udp = Body::Udp;
    let mut one_short = extended(&[(60, 0)], udp).frame();
    one_short[NETWORK + 41] = 1; // Claims 16 bytes: the ports would start in the payload, and end after it.
    let mut far_out = extended(&[(0, 0)], Body::Other(47)).frame();
    far_out[NETWORK + 41] = 255;
    let mut into_the_trailer = extended(&[(0, 0)], Body::Other(47)).with(|p| p.trailer = vec![0; 3000]).frame();
    into_the_trailer[NETWORK + 41] = 255;
    let mut waypoint = extended(&[(43, 2)], udp).frame();
    waypoint[NETWORK + 43] = 1; // One segment left: the destination here is not the one the checksum covers.
    let table = [
        ("one too many", extended(&[(60, 0); MOST_EXTENSION_HEADERS + 1], udp).frame(), Outcome::Malformed),
        ("a header longer than it is", one_short, Outcome::Malformed),
        ("a header longer than the frame", far_out, Outcome::Malformed),
        ("a header longer than the packet", into_the_trailer, Outcome::Malformed),
        ("segments left", waypoint, Outcome::Malformed),
        ("a later fragment", fragment(&[], 8, udp), Outcome::Fragment),
        ("a later fragment behind others", fragment(&[(0, 0), (60, 0)], 8, udp), Outcome::Fragment),
        ("a first fragment of ICMP that is no echo", fragment(&[], 1, Body::Icmp(1)), Outcome::Fragment),
    ];
    for (what, frame, outcome) in table {
        assert_eq!(both::<Ipv6>(frame), (Err(Outcome::ToTc), Err(outcome)), "{what}");
    }
}

/// A packet with a fragment header that says these offset and flags, behind other headers.
fn fragment(before: &[(u8, usize)], word: u8, body: Body) -> Vec<u8> {
    let packet = extended(before, body);
    packet.with(|p| p.extensions.push((44, vec![0, word, 1, 2, 3, 4]))).frame()
}

/// RFC 8200 section 4.5, RFC 6946: with nothing before it and nothing after it, it is a whole packet.
#[test]
fn ipv6_first_and_atomic_fragments_are_read() {
    for before in [&[][..], &[(0, 0)], &[(0, 0), (60, 1)]] {
        let at = NETWORK + 40 + before.iter().map(|(_, length)| 8 * (length + 1)).sum::<usize>() + 8;
        for body in BODIES {
            let extensions = extended(before, body).with(|p| p.extensions.push((44, vec![0; 6])));
            let whole = expected::<Ipv6>(&extensions, at);
            // The six bits between offset and flag mean nothing.
            for word in [0, 2, 4, 6] {
                assert_eq!(both::<Ipv6>(fragment(before, word, body)), (Err(Outcome::ToTc), Ok(whole)), "{word}");
            }
            let identification = u32::from_ne_bytes([1, 2, 3, 4]);
            let first = Parsed { is_first_fragment: true, identification, ..whole };
            assert_eq!(both::<Ipv6>(fragment(before, 1, body)), (Err(Outcome::ToTc), Ok(first)));
        }
    }
}

/// Larger than its length field can say (BIG TCP): the kernel has it say 0, and cuts it on the way out.
#[test]
fn an_ipv6_packet_to_be_segmented_may_have_no_length() {
    let mut frame = packet::<Ipv6>(Body::Tcp(flags::ACK)).with(|p| p.payload = vec![7; 4000]).frame();
    claim_transport_length(&mut frame, 0);
    let bytes = frame.len() - NETWORK;
    let parsed = Ipv6::walk(&Segmented { bytes: &mut frame, payload: 1400 }, NETWORK).unwrap();
    assert_eq!((parsed.tcp.flags, parsed.length as usize), (flags::ACK, bytes));
    assert_eq!(Ipv6::walk(&Segmented { bytes: &mut frame, payload: 0 }, NETWORK), Err(Outcome::Malformed));
}
