//! From bytes to what a packet is: its addresses, ports, and where its headers stand.
//!
//! Two ways to the same [`Parsed`]: [`Family::plain`] knows only the common shape (no options, no extension
//! headers), with every offset a constant; [`Family::walk`] steps over options and extension headers, bounded.
//! XDP takes the first and leaves the rest to TC.

pub mod fragment;
mod options;

use crate::{
    abi::{DatagramKey, FlowKey},
    address::{Address, V4, V6, wire_bytes},
    checksum::{halves, is_intact},
    packet::Packet,
    verdict::Outcome,
    wire::{ethernet, icmp, ipv4, ipv6, protocol, sctp, tcp, udp},
};
use fragment::Fragment;

/// What stands after the network header, as far as forwarding cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP; [`Parsed::tcp`] has more of it.
    Tcp,
    /// UDP, and what looks like it: UDP-Lite (RFC 3828), DCCP (RFC 4340).
    Udp,
    /// ICMP or ICMPv6 echo request, or another ICMP query with an identifier: it is the source port.
    EchoRequest,
    /// ICMP or ICMPv6 echo reply, or that of another ICMP query: the identifier is the destination port.
    EchoReply,
    /// SCTP: its ports are read, never changed, for its CRC32c (RFC 9260 section 6.8) covers them, not the addresses.
    Sctp,
    /// ICMP or ICMPv6 that is no echo: [`Family::walk`] only.
    Icmp,
    /// Any other protocol: no ports, nothing in it depends on the addresses.
    Other,
}

/// What forwarding needs of a TCP header beside its ports; all 0 for every other protocol.
///
/// A record of its own, not part of [`Transport`]: a variant with fields leaves them undefined in the others, and the
/// kernel's verifier refuses a program that as much as copies them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFields {
    /// The flags byte.
    pub flags: u8,
    /// The sequence number; host order.
    pub sequence: u32,
    /// The acknowledgment number, meaningful with the ACK flag; host order.
    pub acknowledgment: u32,
}

/// Kind, ports and TCP's fields of what stands after the network header.
struct TransportHeader {
    kind: Transport,
    src_port: u16,
    dst_port: u16,
    tcp: TcpFields,
}

impl TransportHeader {
    /// Of anything but TCP.
    #[inline(always)]
    const fn new(kind: Transport, src_port: u16, dst_port: u16) -> Self {
        Self { kind, src_port, dst_port, tcp: TcpFields { flags: 0, sequence: 0, acknowledgment: 0 } }
    }
}

/// A well-formed packet with a transport header: whole, or the first fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<A> {
    /// Addresses, ports and protocol.
    pub key: FlowKey<A>,
    /// What is inside.
    pub transport: Transport,
    /// More of a TCP header.
    pub tcp: TcpFields,
    /// Where the transport header starts. Use [`Self::transport_at`].
    pub transport_offset: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Length of the IP packet by its own header, in bytes.
    pub length: u32,
    /// Whether more fragments of its datagram follow.
    pub is_first_fragment: bool,
    /// With `is_first_fragment`: which datagram of its sender it is, as loaded from the wire. Else 0.
    pub identification: u32,
}

/// No header of a packet that is forwarded starts further in: a power of two less one.
pub(crate) const LAST_OFFSET: usize = 0x1fff;

impl<A> Parsed<A> {
    /// Where the transport header starts. The verifier does not remember what the parser made sure of: it sees it here.
    #[inline(always)]
    pub const fn transport_at(&self) -> usize {
        self.transport_offset & LAST_OFFSET
    }

    /// Whether the source port (or echo identifier) may be changed.
    #[inline(always)]
    pub const fn source_port_is_ours_to_choose(&self) -> bool {
        matches!(self.transport, Transport::Tcp | Transport::Udp | Transport::EchoRequest)
    }

    /// The protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.key.protocol as u8
    }
}

/// One of the two IP versions: how its packets are read and how its header is rewritten.
pub trait Family {
    /// Its addresses.
    type Address: Address;
    /// Its ethertype, as loaded from the wire.
    const ETHERTYPE: u16;

    /// Reads a packet of the common shape: no IP options, no extension headers, no fragment, no ICMP but echo.
    ///
    /// # Errors
    /// [`Outcome::ToTc`] when only [`Self::walk`] can tell; otherwise why the packet is not forwarded.
    fn plain(packet: &impl Packet, network: usize) -> Result<Parsed<Self::Address>, Outcome>;

    /// Reads any packet, stepping over options and a bounded number of extension headers.
    ///
    /// # Errors
    /// Why the packet is not forwarded.
    fn walk(packet: &impl Packet, network: usize) -> Result<Parsed<Self::Address>, Outcome>;

    /// Reads a fragment: what [`Self::walk`] calls [`Outcome::Fragment`].
    ///
    /// # Errors
    /// Why it is not looked at any further.
    fn fragment(packet: &impl Packet, network: usize) -> Result<Fragment<Self::Address>, Outcome>;

    /// The datagram that a first fragment begins.
    fn datagram(first: &Parsed<Self::Address>) -> DatagramKey<Self::Address>;

    /// Rewrites the network header: addresses, one hop less, and the header checksum where there is one.
    /// `None` and nothing written when the header is not there.
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &crate::abi::Rewrite<Self::Address>) -> Option<()>;

    /// Whether echo messages of this family are covered by a pseudo-header (ICMPv6: RFC 4443 section 2.3).
    const ECHO_HAS_PSEUDO_HEADER: bool;
}

/// IPv4.
pub struct Ipv4;
/// IPv6.
pub struct Ipv6;

/// The shortest header of a protocol, in bytes.
const fn shortest_header(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => tcp::LEN,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => udp::LEN,
        protocol::ICMP | protocol::ICMPV6 => icmp::LEN,
        protocol::SCTP => sctp::LEN,
        _ => 0,
    }
}

/// Ports (or echo identifier) and kind of what stands at `offset` of an IP packet that ends at `end`.
#[inline(always)]
fn transport(packet: &impl Packet, offset: usize, end: usize, protocol: u8) -> Result<TransportHeader, Outcome> {
    // A frame may go on after its packet (Ethernet padding): what is read there is no header.
    if end < offset + shortest_header(protocol) {
        return Err(Outcome::Malformed);
    }
    match protocol {
        protocol::TCP => {
            let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, ..] =
                packet.read::<{ tcp::LEN }>(offset).ok_or(Outcome::Malformed)?;
            let sequence = u32::from_be_bytes([q0, q1, q2, q3]);
            let acknowledgment = u32::from_be_bytes([a0, a1, a2, a3]);
            Ok(TransportHeader {
                kind: Transport::Tcp,
                src_port: u16::from_ne_bytes([s0, s1]),
                dst_port: u16::from_ne_bytes([d0, d1]),
                tcp: TcpFields { flags, sequence, acknowledgment },
            })
        }
        // All three have ports first and a checksum over them and the addresses at the same place.
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => {
            let [s0, s1, d0, d1, ..] = packet.read::<{ udp::LEN }>(offset).ok_or(Outcome::Malformed)?;
            Ok(TransportHeader::new(Transport::Udp, u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([d0, d1])))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind, _, _, _, i0, i1, ..] = packet.read::<{ icmp::LEN }>(offset).ok_or(Outcome::Malformed)?;
            let identifier = u16::from_ne_bytes([i0, i1]);
            match (protocol, kind) {
                (
                    protocol::ICMP,
                    icmp::ECHO_REQUEST | icmp::TIMESTAMP | icmp::INFORMATION_REQUEST | icmp::ADDRESS_MASK_REQUEST,
                )
                | (protocol::ICMPV6, icmp::V6_ECHO_REQUEST) => {
                    Ok(TransportHeader::new(Transport::EchoRequest, identifier, 0))
                }
                (
                    protocol::ICMP,
                    icmp::ECHO_REPLY | icmp::TIMESTAMP_REPLY | icmp::INFORMATION_REPLY | icmp::ADDRESS_MASK_REPLY,
                )
                | (protocol::ICMPV6, icmp::V6_ECHO_REPLY) => {
                    Ok(TransportHeader::new(Transport::EchoReply, 0, identifier))
                }
                _ => Ok(TransportHeader::new(Transport::Icmp, 0, 0)),
            }
        }
        protocol::SCTP => {
            let [s0, s1, d0, d1, ..] = packet.read::<{ sctp::LEN }>(offset).ok_or(Outcome::Malformed)?;
            Ok(TransportHeader::new(Transport::Sctp, u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([d0, d1])))
        }
        // AH authenticates the addresses (RFC 4302 section 3.3.3); protocol 0 inside is no protocol.
        protocol::AH | 0 => Err(Outcome::Untranslatable),
        _ => Ok(TransportHeader::new(Transport::Other, 0, 0)),
    }
}

/// XDP has nothing to do with other ICMP than echo, nor has a fragment of it what its checksum covers.
#[inline(always)]
const fn no_icmp_but_echo<A: Copy>(parsed: Parsed<A>) -> Result<Parsed<A>, Outcome> {
    if matches!(parsed.transport, Transport::Icmp) { Err(Outcome::IcmpOther) } else { Ok(parsed) }
}

/// The fixed part of an IPv4 header, as far as forwarding needs it.
struct Header4 {
    header_length: usize,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    src: V4,
    dst: V4,
    /// Of the fixed part's words.
    sum: u32,
}

impl Header4 {
    /// Whether the whole header is as it was sent, and its options may be forwarded (RFC 1812 section 5.2.2).
    ///
    /// # Errors
    /// [`Outcome::Malformed`]: the kernel judges it, and tells the sender what is wrong with options.
    #[inline(always)]
    fn check(&self, packet: &impl Packet, network: usize) -> Result<(), Outcome> {
        let options = if self.header_length == ipv4::LEN {
            0
        } else {
            options::forwardable(packet, network, self.header_length).ok_or(Outcome::Malformed)?
        };
        if is_intact(self.sum + options) { Ok(()) } else { Err(Outcome::Malformed) }
    }
}

#[inline(always)]
fn header4(packet: &impl Packet, network: usize) -> Result<Header4, Outcome> {
    let [vihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] =
        packet.read::<{ ipv4::LEN }>(network).ok_or(Outcome::Malformed)?;
    let header_length = (vihl & 0x0f) as usize * 4;
    let total_length = u16::from_be_bytes([l0, l1]);
    if vihl >> 4 != 4 || header_length < ipv4::LEN || (total_length as usize) < header_length {
        return Err(Outcome::Malformed);
    }
    if packet.length() < network + total_length as usize {
        return Err(Outcome::Malformed);
    }
    let (src, dst) = (V4::from_ne_bytes([s0, s1, s2, s3]), V4::from_ne_bytes([d0, d1, d2, d3]));
    let sum = halves(u32::from_ne_bytes([vihl, tos, l0, l1]))
        + halves(u32::from_ne_bytes([i0, i1, f0, f1]))
        + halves(u32::from_ne_bytes([ttl, protocol, c0, c1]))
        + halves(src)
        + halves(dst);
    Ok(Header4 {
        header_length,
        total_length,
        identification: u16::from_ne_bytes([i0, i1]),
        fragment: u16::from_be_bytes([f0, f1]),
        ttl,
        protocol,
        src,
        dst,
        sum,
    })
}

#[inline(always)]
fn parsed4(
    packet: &impl Packet,
    network: usize,
    header: &Header4,
    transport_offset: usize,
) -> Result<Parsed<V4>, Outcome> {
    // ICMPv6 inside IPv4 is just another protocol; its checksum could not be valid.
    if header.protocol == protocol::ICMPV6 {
        return Err(Outcome::Malformed);
    }
    if header.src.is_martian_source() || header.src == header.dst {
        return Err(Outcome::Martian);
    }
    let end = network + header.total_length as usize;
    let TransportHeader { kind, src_port, dst_port, tcp } = transport(packet, transport_offset, end, header.protocol)?;
    Ok(Parsed {
        key: FlowKey { src: header.src, dst: header.dst, src_port, dst_port, protocol: header.protocol.into() },
        transport: kind,
        tcp,
        transport_offset,
        hop_limit: header.ttl,
        length: header.total_length.into(),
        is_first_fragment: false,
        identification: 0,
    })
}

impl Family for Ipv4 {
    type Address = V4;
    const ETHERTYPE: u16 = ethernet::IPV4;
    const ECHO_HAS_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn plain(packet: &impl Packet, network: usize) -> Result<Parsed<V4>, Outcome> {
        let header = header4(packet, network)?;
        if header.header_length != ipv4::LEN {
            return Err(Outcome::ToTc);
        }
        if header.fragment & ipv4::FRAGMENT_BITS != 0 {
            return Err(Outcome::Fragment);
        }
        header.check(packet, network)?;
        no_icmp_but_echo(parsed4(packet, network, &header, network + ipv4::LEN)?)
    }

    #[inline(always)]
    fn walk(packet: &impl Packet, network: usize) -> Result<Parsed<V4>, Outcome> {
        let header = header4(packet, network)?;
        let fragment = header.fragment & ipv4::FRAGMENT_BITS;
        if fragment & ipv4::FRAGMENT_OFFSET != 0 {
            return Err(Outcome::Fragment);
        }
        header.check(packet, network)?;
        let parsed = parsed4(packet, network, &header, network + header.header_length);
        if fragment == 0 {
            return parsed;
        }
        let mut first = parsed.and_then(no_icmp_but_echo).map_err(|_| Outcome::Fragment)?;
        first.is_first_fragment = true;
        first.identification = header.identification.into();
        Ok(first)
    }

    #[inline(always)]
    fn fragment(packet: &impl Packet, network: usize) -> Result<Fragment<V4>, Outcome> {
        fragment::ipv4(packet, network)
    }

    #[inline(always)]
    fn datagram(first: &Parsed<V4>) -> DatagramKey<V4> {
        let Parsed { key: FlowKey { src, dst, protocol, .. }, identification, .. } = *first;
        DatagramKey { src, dst, identification, protocol }
    }

    #[inline(always)]
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &crate::abi::Rewrite<V4>) -> Option<()> {
        use crate::checksum::Delta;
        // TTL, protocol, checksum and both addresses are neighbours: one read, one write.
        let [ttl, protocol, c0, c1] = packet.read(network + ipv4::TTL)?;
        let less = ttl.wrapping_sub(1);
        // RFC 1624, with the TTL as the first byte of a word whose second byte stays.
        let hop = Delta::word(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([less, protocol]));
        let [c0, c1] = Delta(rewrite.address_delta).and(hop).apply(u16::from_ne_bytes([c0, c1])).to_ne_bytes();
        let [s0, s1, s2, s3] = rewrite.src.to_ne_bytes();
        let [d0, d1, d2, d3] = rewrite.dst.to_ne_bytes();
        packet.write(network + ipv4::TTL, [less, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3])
    }
}

/// How many extension headers are stepped over; a packet with more is not forwarded (RFC 8504 section 5.3 lets a
/// node limit them).
pub(crate) const MOST_EXTENSION_HEADERS: usize = 6;

/// The fixed part of an IPv6 header.
struct Header6 {
    payload_length: usize,
    next_header: u8,
    hop_limit: u8,
    src: V6,
    dst: V6,
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
fn header6(packet: &impl Packet, network: usize) -> Result<Header6, Outcome> {
    let [vcf, _, _, _, l0, l1, next_header, hop_limit] = packet.read(network).ok_or(Outcome::Malformed)?;
    let src = packet.read(network + ipv6::SOURCE).ok_or(Outcome::Malformed)?;
    let dst = packet.read(network + ipv6::SOURCE + 16).ok_or(Outcome::Malformed)?;
    let mut payload_length = u16::from_be_bytes([l0, l1]) as usize;
    // A packet that the kernel will cut may be longer than the field can say, and then says 0 (BIG TCP).
    if payload_length == 0 && packet.segment_payload() != 0 {
        payload_length = packet.length().saturating_sub(network + ipv6::LEN);
    }
    if vcf >> 4 != 6 || packet.length() < network + ipv6::LEN + payload_length {
        return Err(Outcome::Malformed);
    }
    Ok(Header6 { payload_length, next_header, hop_limit, src: words(src), dst: words(dst) })
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
    const ECHO_HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn plain(packet: &impl Packet, network: usize) -> Result<Parsed<V6>, Outcome> {
        let header = header6(packet, network)?;
        if is_extension(header.next_header) {
            return Err(Outcome::ToTc);
        }
        no_icmp_but_echo(parsed6(packet, network, &header, header.next_header, network + ipv6::LEN)?)
    }

    #[inline(always)]
    fn walk(packet: &impl Packet, network: usize) -> Result<Parsed<V6>, Outcome> {
        let header = header6(packet, network)?;
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
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &crate::abi::Rewrite<V6>) -> Option<()> {
        let [hop_limit] = packet.read(network + ipv6::HOP_LIMIT)?;
        packet.write(network + ipv6::HOP_LIMIT, [hop_limit.wrapping_sub(1)])?;
        packet.write(network + ipv6::SOURCE, wire_bytes(rewrite.src))?;
        packet.write(network + ipv6::SOURCE + 16, wire_bytes(rewrite.dst))
    }
}

#[cfg(test)]
mod tests;
