//! IPv4 (RFC 791): its header, fragments of it, and its rewriting.

use super::{
    Family, Ipv4, Parsed,
    fragment::{self, Fragment},
    options,
    transport::{TransportHeader, no_icmp_but_echo, source_port, transport},
};
use crate::{
    abi::{DatagramKey, FlowKey, Rewrite},
    address::{Address, V4},
    checksum::{Delta, is_intact, sum_of_words},
    packet::{Packet, pair_of, word_of},
    steer::Addressed,
    verdict::Outcome,
    wire::{ethernet, ipv4, protocol},
};

/// The fixed part of an IPv4 header, as far as forwarding needs it.
pub(super) struct Header4 {
    pub(super) header_length: usize,
    pub(super) total_length: u16,
    pub(super) identification: u16,
    pub(super) fragment: u16,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    pub(super) src: V4,
    pub(super) dst: V4,
    /// Of the fixed part's words.
    pub(super) sum: u32,
}

impl Header4 {
    /// Whether the whole header is as it was sent, and its options may be forwarded (RFC 1812 section 5.2.2).
    ///
    /// # Errors
    /// [`Outcome::Malformed`]: the kernel judges it, and tells the sender what is wrong with options.
    #[inline(always)]
    pub(super) fn check(&self, packet: &impl Packet, network: usize) -> Result<(), Outcome> {
        let options = if self.header_length == ipv4::LEN {
            0
        } else {
            options::forwardable(packet, network, self.header_length).ok_or(Outcome::Malformed)?
        };
        if is_intact(self.sum + options) { Ok(()) } else { Err(Outcome::Malformed) }
    }
}

/// The first byte of a header without options.
const PLAIN: u8 = 4 << 4 | (ipv4::LEN / 4) as u8;
/// A TTL of 1 in a word with the protocol, which stands behind it.
pub(super) const ONE_HOP: u16 = u16::from_ne_bytes([1, 0]);
/// What the header's checksum changes by with it (RFC 1624 section 3): whatever the word is, its complement and what is one less
/// add up to this. For TTLs above 0, the only ones that are forwarded.
pub(super) const ONE_HOP_LESS: Delta = Delta::word(ONE_HOP, 0);

#[inline(always)]
pub(super) fn header4(packet: &impl Packet, network: usize) -> Result<Header4, Outcome> {
    let [first, second, third, src, dst] = packet.words(network).ok_or(Outcome::Malformed)?;
    let [vihl, _, l0, l1] = first.to_ne_bytes();
    let [i0, i1, f0, f1] = second.to_ne_bytes();
    let [ttl, protocol, _, _] = third.to_ne_bytes();
    // One comparison for what nearly every packet has: version 4, and a header without options.
    let header_length = if vihl == PLAIN { ipv4::LEN } else { (vihl & 0x0f) as usize * 4 };
    if vihl != PLAIN && (vihl >> 4 != 4 || header_length < ipv4::LEN) {
        return Err(Outcome::Malformed);
    }
    let total_length = u16::from_be_bytes([l0, l1]);
    if (total_length as usize) < header_length {
        return Err(Outcome::Malformed);
    }
    if packet.length() < network + total_length as usize {
        return Err(Outcome::Malformed);
    }
    let sum = sum_of_words([first, second, third, src, dst]);
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
    const HEADER: usize = ipv4::LEN;
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
    fn addressed(packet: &impl Packet, network: usize) -> Option<Addressed<V4>> {
        let header = header4(packet, network).ok()?;
        let transport_offset = network + header.header_length;
        let first = header.fragment & ipv4::FRAGMENT_OFFSET == 0;
        let src_port = if first { source_port(packet, transport_offset, header.protocol) } else { 0 };
        Some(Addressed {
            src: header.src,
            dst: header.dst,
            protocol: header.protocol,
            src_port,
            transport_offset,
            hop_limit: header.ttl,
            length: header.total_length.into(),
        })
    }

    #[inline(always)]
    fn rewrite(packet: &mut impl Packet, network: usize, rewrite: &Rewrite<V4>) -> Option<()> {
        let addresses = Delta(rewrite.address_delta);
        // TTL, protocol, checksum and both addresses are neighbours.
        packet.change_words(network + ipv4::TTL, |[word, _, _]| {
            let [ttl_and_protocol, checksum] = pair_of(word);
            let word = word_of([ttl_and_protocol.wrapping_sub(ONE_HOP), ONE_HOP_LESS.apply_with(addresses, checksum)]);
            [word, rewrite.src, rewrite.dst]
        })
    }
}
