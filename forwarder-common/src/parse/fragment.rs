//! Reading fragments that have no transport header of their own.

use super::{
    ipv4::{Header4, header4},
    ipv6::{MOST_EXTENSION_HEADERS, fixed_header6, is_extension},
    transport::shortest_header,
};
use crate::{
    abi::DatagramKey,
    address::{Address as _, V4, V6},
    packet::Packet,
    verdict::Outcome,
    wire::{ipv4, ipv6},
};

/// A fragment: some of a datagram's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment<A> {
    /// The datagram that it is of.
    pub datagram: DatagramKey<A>,
    /// Where its bytes belong in the datagram.
    pub offset: u16,
    /// The datagram's protocol as this fragment says it: only the first fragment's counts (RFC 8200 section 4.5).
    pub protocol: u8,
    /// A first fragment (offset 0) that ends before its transport header does.
    pub lacks_header: bool,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Length of the IP packet by its own header, in bytes.
    pub length: u32,
}

impl<A> Fragment<A> {
    /// Whether its bytes would lie over the transport header in the first fragment (RFC 1858 section 4.2, RFC 3128).
    #[inline(always)]
    pub const fn overlaps_header(&self) -> bool {
        (self.offset as usize) < shortest_header(self.protocol)
    }
}

/// Reads an IPv4 fragment.
#[inline(always)]
pub(super) fn ipv4(packet: &impl Packet, network: usize) -> Result<Fragment<V4>, Outcome> {
    let header = header4(packet, network)?;
    header.check(packet, network)?;
    let Header4 { header_length, total_length, identification, fragment, ttl, protocol, src, dst, .. } = header;
    if src.is_martian_source() || src == dst {
        return Err(Outcome::Martian);
    }
    Ok(Fragment {
        datagram: DatagramKey { src, dst, identification: identification.into(), protocol: protocol.into() },
        offset: (fragment & ipv4::FRAGMENT_OFFSET) << 3,
        protocol,
        lacks_header: (total_length as usize) < header_length + shortest_header(protocol),
        hop_limit: ttl,
        length: total_length.into(),
    })
}

/// Reads an IPv6 fragment.
#[inline(always)]
pub(super) fn ipv6(packet: &impl Packet, network: usize) -> Result<Fragment<V6>, Outcome> {
    let header = fixed_header6(packet, network)?;
    if header.src.is_martian_source() || header.src == header.dst {
        return Err(Outcome::Martian);
    }
    let mut next_header = header.next_header;
    let mut offset = network + ipv6::LEN;
    for _ in 0..MOST_EXTENSION_HEADERS {
        if next_header == ipv6::FRAGMENT || !is_extension(next_header) {
            break;
        }
        let [next, length] = packet.read(offset).ok_or(Outcome::Malformed)?;
        next_header = next;
        offset += (length as usize + 1) * 8;
    }
    if next_header != ipv6::FRAGMENT {
        return Err(Outcome::Malformed);
    }
    let part = header6(packet, offset)?;
    let length = ipv6::LEN + header.payload_length;
    // RFC 7112 section 5: the first fragment has all headers, also those behind the fragment header.
    let behind = offset + ipv6::FRAGMENT_LEN + shortest_header(part.next_header);
    Ok(Fragment {
        datagram: DatagramKey { src: header.src, dst: header.dst, identification: part.identification, protocol: 0 },
        offset: part.offset,
        protocol: part.next_header,
        lacks_header: is_extension(part.next_header) || network + length < behind,
        hop_limit: header.hop_limit,
        length: length as u32,
    })
}

/// An IPv6 fragment header (RFC 8200 section 4.5).
pub(super) struct FragmentHeader6 {
    pub(super) next_header: u8,
    /// In bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
    /// As loaded from the wire.
    pub(super) identification: u32,
}

#[inline(always)]
pub(super) fn header6(packet: &impl Packet, offset: usize) -> Result<FragmentHeader6, Outcome> {
    let [next_header, _, o0, o1, i0, i1, i2, i3] =
        packet.read::<{ ipv6::FRAGMENT_LEN }>(offset).ok_or(Outcome::Malformed)?;
    let word = u16::from_be_bytes([o0, o1]);
    Ok(FragmentHeader6 {
        next_header,
        offset: word & !7,
        more: word & 1 != 0,
        identification: u32::from_ne_bytes([i0, i1, i2, i3]),
    })
}
