//! IPv6 (RFC 8200): its header, the walk over extension headers, and its rewriting.

use super::{
    Family, Ipv6, LAST_OFFSET, Parsed,
    fragment::{self, Fragment},
    transport::{TransportHeader, no_icmp_but_echo, source_port, transport},
};
use crate::{
    abi::{DatagramKey, FlowKey, Rewrite},
    address::{Address, V6},
    checksum::Delta,
    packet::Packet,
    steer::Addressed,
    verdict::Outcome,
    wire::{ethernet, ipv6, protocol},
};

/// How many extension headers are stepped over; a packet with more is not forwarded (RFC 8504 section 5.3 lets a
/// node limit them).
pub(crate) const MOST_EXTENSION_HEADERS: usize = 6;

/// A hop limit of 1, in the word that it is the last byte of. Only more than that is forwarded.
const ONE_HOP: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
/// What the header's sum changes by with one hop less.
const ONE_HOP_LESS: Delta = Delta::word(u16::from_ne_bytes([0, 1]), 0);

/// The fixed part of an IPv6 header.
pub(super) struct Header6 {
    pub(super) payload_length: usize,
    pub(super) next_header: u8,
    pub(super) hop_limit: u8,
    pub(super) src: V6,
    pub(super) dst: V6,
}

#[inline(always)]
pub(crate) fn words(bytes: [u8; 16]) -> V6 {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = bytes;
    [
        u32::from_ne_bytes([a0, a1, a2, a3]),
        u32::from_ne_bytes([b0, b1, b2, b3]),
        u32::from_ne_bytes([c0, c1, c2, c3]),
        u32::from_ne_bytes([d0, d1, d2, d3]),
    ]
}

#[inline(always)]
pub(super) fn fixed_header6(packet: &impl Packet, network: usize) -> Result<Header6, Outcome> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = packet.words(network).ok_or(Outcome::Malformed)?;
    let [vcf, _, _, _] = first.to_ne_bytes();
    let [l0, l1, next_header, hop_limit] = second.to_ne_bytes();
    let mut payload_length = u16::from_be_bytes([l0, l1]) as usize;
    // A packet that the kernel will cut may be longer than the field can say, and then says 0 (BIG TCP).
    if payload_length == 0 && packet.segment_payload() != 0 {
        payload_length = packet.length().saturating_sub(network + ipv6::LEN);
    }
    if vcf >> 4 != 6 || packet.length() < network + ipv6::LEN + payload_length {
        return Err(Outcome::Malformed);
    }
    Ok(Header6 { payload_length, next_header, hop_limit, src: [s0, s1, s2, s3], dst: [d0, d1, d2, d3] })
}

#[inline(always)]
fn parsed6(
    packet: &impl Packet,
    network: usize,
    header: &Header6,
    protocol: u8,
    transport_offset: usize,
) -> Result<Parsed<V6>, Outcome> {
    if protocol == protocol::ICMP {
        return Err(Outcome::Malformed);
    }
    if header.src.is_martian_source() || header.src == header.dst {
        return Err(Outcome::Martian);
    }
    let length = ipv6::LEN + header.payload_length;
    let TransportHeader { kind, src_port, dst_port, tcp } =
        transport(packet, transport_offset, network + length, protocol)?;
    Ok(Parsed {
        key: FlowKey { src: header.src, dst: header.dst, src_port, dst_port, protocol: protocol.into() },
        transport: kind,
        tcp,
        transport_offset,
        hop_limit: header.hop_limit,
        length: length as u32,
        is_first_fragment: false,
        identification: 0,
    })
}

pub(crate) const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::FRAGMENT | ipv6::DESTINATION)
}

impl Family for Ipv6 {
    type Address = V6;
    const ETHERTYPE: u16 = ethernet::IPV6;
    const HEADER: usize = ipv6::LEN;
    const ECHO_HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn plain(packet: &impl Packet, network: usize) -> Result<Parsed<V6>, Outcome> {
        let header = fixed_header6(packet, network)?;
        if is_extension(header.next_header) {
            return Err(Outcome::ToTc);
        }
        no_icmp_but_echo(parsed6(packet, network, &header, header.next_header, network + ipv6::LEN)?)
    }

    #[inline(always)]
    fn walk(packet: &impl Packet, network: usize) -> Result<Parsed<V6>, Outcome> {
        let header = fixed_header6(packet, network)?;
        let mut next_header = header.next_header;
        let mut offset = network + ipv6::LEN;
        let mut first_of = None;
        for _ in 0..MOST_EXTENSION_HEADERS {
            if !is_extension(next_header) {
                break;
            }
            if next_header == ipv6::FRAGMENT {
                let part = fragment::header6(packet, offset)?;
                if part.offset != 0 {
                    return Err(Outcome::Fragment);
                }
                // Neither more to come nor an offset: an atomic fragment, a whole packet (RFC 6946 section 4).
                if part.more {
                    first_of = Some(part.identification);
                }
                next_header = part.next_header;
                offset += ipv6::FRAGMENT_LEN;
                continue;
            }
            let [next, length, _, segments_left] = packet.read(offset).ok_or(Outcome::Malformed)?;
            // On its way to a waypoint: its checksum covers another destination (RFC 8200 section 8.1), and what
            // becomes of it is the kernel's decision.
            if next_header == ipv6::ROUTING && segments_left != 0 {
                return Err(Outcome::Malformed);
            }
            next_header = next;
            offset += (length as usize + 1) * 8;
        }
        if is_extension(next_header) || offset > LAST_OFFSET {
            return Err(if first_of.is_some() { Outcome::Fragment } else { Outcome::Malformed });
        }
        let parsed = parsed6(packet, network, &header, next_header, offset);
        let Some(identification) = first_of else { return parsed };
        let mut first = parsed.and_then(no_icmp_but_echo).map_err(|_| Outcome::Fragment)?;
        first.is_first_fragment = true;
        first.identification = identification;
        Ok(first)
    }

    #[inline(always)]
    fn fragment(packet: &impl Packet, network: usize) -> Result<Fragment<V6>, Outcome> {
        fragment::ipv6(packet, network)
    }

    /// RFC 8200 section 4.5: addresses and identification alone, whatever a fragment says the next header is.
    #[inline(always)]
    fn datagram(first: &Parsed<V6>) -> DatagramKey<V6> {
        let Parsed { key: FlowKey { src, dst, .. }, identification, .. } = *first;
        DatagramKey { src, dst, identification, protocol: 0 }
    }

    #[inline(always)]
    fn addressed(packet: &impl Packet, network: usize) -> Option<Addressed<V6>> {
        let header = fixed_header6(packet, network).ok()?;
        let transport_offset = network + ipv6::LEN;
        Some(Addressed {
            src: header.src,
            dst: header.dst,
            protocol: header.next_header,
            src_port: source_port(packet, transport_offset, header.next_header),
            transport_offset,
            hop_limit: header.hop_limit,
            length: (ipv6::LEN + header.payload_length) as u32,
        })
    }

    #[inline(always)]
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &Rewrite<V6>) -> Option<()> {
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (rewrite.src, rewrite.dst);
        // The hop limit ends the word before the addresses.
        packet.change_words(network + ipv6::SOURCE - 4, |[word, _, _, _, _, _, _, _, _]| {
            [word.wrapping_sub(ONE_HOP), s0, s1, s2, s3, d0, d1, d2, d3]
        })?;
        packet.note_header_change(Delta(rewrite.address_delta).and(ONE_HOP_LESS));
        Some(())
    }
}
