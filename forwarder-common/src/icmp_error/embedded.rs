//! The packet inside an ICMP error: the beginning of one, perhaps not more than eight bytes after its IP header.

use crate::{
    abi::{FlowKey, Rewrite},
    address::{V4, V6, wire_bytes},
    checksum::Delta,
    packet::Packet,
    parse::{
        Family, Ipv4, Ipv6, LAST_OFFSET, MOST_EXTENSION_HEADERS, Parsed, TcpFields, Transport, is_extension, words,
    },
    verdict::Outcome,
    wire::{icmp, ipv4, ipv6, protocol},
};

/// How a family's errors embed packets.
pub trait Embeds: Family {
    /// The type of a redirect that is an error by [`Self::is_error`]; one that is none where there is no such thing.
    const REDIRECT: u8;

    /// Whether messages of this type embed a packet.
    fn is_error(kind: u8) -> bool;

    /// Reads the packet at `at`, of which everything up to `end` is there, and returns what a reply to it would be: ends
    /// swapped, an echo request for an echo reply. Only the key, the kind of transport and where it starts mean anything.
    ///
    /// As netfilter, it looks only at what it needs. Lengths and checksums of the embedded header are not among it: some
    /// hosts return them in host byte order or already changed (RFC 1122 section 3.2.2 does not forbid it).
    ///
    /// # Errors
    /// Why the error cannot be about anything forwarded.
    fn answer(packet: &impl Packet, at: usize, end: usize) -> Result<Parsed<Self::Address>, Outcome>;

    /// What the sum over the embedded IP header changes by when its addresses change by `addresses`.
    fn embedded_header_change(packet: &impl Packet, at: usize, addresses: Delta) -> Option<Delta>;

    /// Gives the embedded IP header the ends that a reply rewritten like this would answer. `None` and nothing written
    /// when the header is not there.
    fn readdress_embedded(packet: &mut impl Packet, at: usize, rewrite: &Rewrite<Self::Address>) -> Option<()>;
}

/// What there has to be of any transport header (RFC 792; netfilter drops what has less once it is to be translated).
const LEAST: usize = 8;

/// The kind of transport of a reply, and its ports: those of the embedded header swapped.
#[inline(always)]
fn transport(packet: &impl Packet, at: usize, end: usize, protocol: u8) -> Result<(Transport, u16, u16), Outcome> {
    // Options or extension headers are cut off: an error quotes the whole header and more (RFC 792, RFC 4443 section 3.1).
    if end < at {
        return Err(Outcome::Malformed);
    }
    let kind = match protocol {
        protocol::TCP => Transport::Tcp,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => Transport::Udp,
        protocol::SCTP => Transport::Sctp,
        protocol::ICMP | protocol::ICMPV6 => Transport::Icmp,
        // Never forwarded, see the parser.
        protocol::AH | 0 => return Err(Outcome::IcmpStray),
        _ => return Ok((Transport::Other, 0, 0)),
    };
    if end < at + LEAST {
        return Err(Outcome::Malformed);
    }
    let [kind_of_icmp, b1, b2, b3, i0, i1, ..] = packet.read::<LEAST>(at).ok_or(Outcome::Malformed)?;
    if !matches!(kind, Transport::Icmp) {
        return Ok((kind, u16::from_ne_bytes([b2, b3]), u16::from_ne_bytes([kind_of_icmp, b1])));
    }
    let identifier = u16::from_ne_bytes([i0, i1]);
    match (protocol, kind_of_icmp) {
        (protocol::ICMP, icmp::ECHO_REQUEST) | (protocol::ICMPV6, icmp::V6_ECHO_REQUEST) => {
            Ok((Transport::EchoReply, 0, identifier))
        }
        (protocol::ICMP, icmp::ECHO_REPLY) | (protocol::ICMPV6, icmp::V6_ECHO_REPLY) => {
            Ok((Transport::EchoRequest, identifier, 0))
        }
        _ => Err(Outcome::IcmpStray),
    }
}

impl Embeds for Ipv4 {
    const REDIRECT: u8 = icmp::REDIRECT;

    /// As `icmp_is_err` of Linux.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::REDIRECT | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
        )
    }

    #[inline(always)]
    fn answer(packet: &impl Packet, at: usize, end: usize) -> Result<Parsed<V4>, Outcome> {
        if end < at + ipv4::LEN {
            return Err(Outcome::Malformed);
        }
        let [vihl, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            packet.read::<{ ipv4::LEN }>(at).ok_or(Outcome::Malformed)?;
        let header_length = (vihl & 0x0f) as usize * 4;
        if vihl >> 4 != 4 || header_length < ipv4::LEN || protocol == protocol::ICMPV6 {
            return Err(Outcome::Malformed);
        }
        // A later fragment: there are no ports in it.
        if u16::from_be_bytes([f0, f1]) & ipv4::FRAGMENT_OFFSET != 0 {
            return Err(Outcome::IcmpStray);
        }
        let transport_offset = at + header_length;
        let (transport, src_port, dst_port) = transport(packet, transport_offset, end, protocol)?;
        let (src, dst) = (V4::from_ne_bytes([d0, d1, d2, d3]), V4::from_ne_bytes([s0, s1, s2, s3]));
        let key = FlowKey { src, dst, src_port, dst_port, protocol: protocol.into() };
        Ok(Parsed {
            key,
            transport,
            tcp: TcpFields::default(),
            transport_offset,
            hop_limit: 0,
            length: 0,
            is_first_fragment: false,
            identification: 0,
        })
    }

    #[inline(always)]
    fn embedded_header_change(packet: &impl Packet, at: usize, addresses: Delta) -> Option<Delta> {
        let field = u16::from_ne_bytes(packet.read(at + ipv4::CHECKSUM)?);
        Some(addresses.and(Delta::word(field, addresses.apply(field))))
    }

    #[inline(always)]
    fn readdress_embedded(packet: &mut impl Packet, at: usize, rewrite: &Rewrite<V4>) -> Option<()> {
        let field = u16::from_ne_bytes(packet.read(at + ipv4::CHECKSUM)?);
        let [c0, c1] = Delta(rewrite.address_delta).apply(field).to_ne_bytes();
        let [s0, s1, s2, s3] = rewrite.dst.to_ne_bytes();
        let [d0, d1, d2, d3] = rewrite.src.to_ne_bytes();
        packet.write(at + ipv4::CHECKSUM, [c0, c1, s0, s1, s2, s3, d0, d1, d2, d3])
    }
}

impl Embeds for Ipv6 {
    /// An IPv6 redirect (137) is neighbour discovery, and no router forwards it (RFC 4861 section 8.1).
    const REDIRECT: u8 = 137;

    /// RFC 4443 section 2.1: errors are what has the high bit clear, known or not.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        kind < 128
    }

    #[inline(always)]
    fn answer(packet: &impl Packet, at: usize, end: usize) -> Result<Parsed<V6>, Outcome> {
        if end < at + ipv6::LEN {
            return Err(Outcome::Malformed);
        }
        let [vcf, _, _, _, _, _, mut next_header, _] = packet.read(at).ok_or(Outcome::Malformed)?;
        if vcf >> 4 != 6 {
            return Err(Outcome::Malformed);
        }
        let mut offset = at + ipv6::LEN;
        for _ in 0..MOST_EXTENSION_HEADERS {
            if !is_extension(next_header) {
                break;
            }
            let [next, length, fragment, low] = packet.read(offset).ok_or(Outcome::Malformed)?;
            let mut units = length as usize + 1;
            if next_header == ipv6::FRAGMENT {
                if u16::from_be_bytes([fragment, low]) & ipv6::FRAGMENT_OFFSET != 0 {
                    return Err(Outcome::IcmpStray);
                }
                units = 1;
            } else if next_header == ipv6::ROUTING && low != 0 {
                // On its way to a waypoint: never forwarded, see the parser.
                return Err(Outcome::IcmpStray);
            }
            next_header = next;
            offset += units * 8;
        }
        if is_extension(next_header) || offset > LAST_OFFSET || next_header == protocol::ICMP {
            return Err(Outcome::Malformed);
        }
        let src = words(packet.read(at + ipv6::SOURCE + 16).ok_or(Outcome::Malformed)?);
        let dst = words(packet.read(at + ipv6::SOURCE).ok_or(Outcome::Malformed)?);
        let (transport, src_port, dst_port) = transport(packet, offset, end, next_header)?;
        let key = FlowKey { src, dst, src_port, dst_port, protocol: next_header.into() };
        Ok(Parsed {
            key,
            transport,
            tcp: TcpFields::default(),
            transport_offset: offset,
            hop_limit: 0,
            length: 0,
            is_first_fragment: false,
            identification: 0,
        })
    }

    #[inline(always)]
    fn embedded_header_change(_: &impl Packet, _: usize, addresses: Delta) -> Option<Delta> {
        Some(addresses)
    }

    #[inline(always)]
    fn readdress_embedded(packet: &mut impl Packet, at: usize, rewrite: &Rewrite<V6>) -> Option<()> {
        packet.write(at + ipv6::SOURCE, wire_bytes(rewrite.dst))?;
        packet.write(at + ipv6::SOURCE + 16, wire_bytes(rewrite.src))
    }
}
