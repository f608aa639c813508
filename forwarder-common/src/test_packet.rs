//! Builds the packets that tests send and expect.
//!
//! Every header is written out byte by byte and every checksum summed from scratch, so that nothing here is shared
//! with the code under test: the packet that a translation must yield is simply built with the other addresses.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic in a test's own tools is a failed test"
)]

use core::iter;
use std::{
    net::{IpAddr, SocketAddr},
    vec,
    vec::Vec,
};

use crate::packet::Packet;

/// Where the network header of [`TestPacket::frame`] starts.
pub(crate) const NETWORK: usize = 14;

/// TCP flags, as the tests name them.
pub(crate) mod flags {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const ACK: u8 = 16;
    pub(crate) const SYN_ACK: u8 = SYN | ACK;
    pub(crate) const FIN_ACK: u8 = FIN | ACK;
}

/// What is inside an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A TCP header with the packet's options, if any, and these flags.
    Tcp(u8),
    Udp,
    /// UDP with the checksum field 0.
    UdpUnsummed,
    /// An echo request of the packet's family; the identifier is the source port.
    EchoRequest,
    /// An echo reply of the packet's family; the identifier is the destination port.
    EchoReply,
    /// ICMP or ICMPv6 of this type.
    Icmp(u8),
    /// ICMP or ICMPv6 of this type and code, with these four bytes; the payload is what it embeds.
    IcmpError(u8, u8, [u8; 4]),
    Sctp,
    /// A DCCP request (RFC 4340 section 5.1).
    Dccp,
    /// Any other protocol number: the payload follows the network header.
    Other(u8),
}

/// A packet by its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestPacket {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) body: Body,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
    /// IPv4 options: a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// TCP options: a multiple of four bytes.
    pub(crate) tcp_options: Vec<u8>,
    /// IPv6 extension headers: number, and what follows the first two bytes (six bytes, or eight more each).
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// The fragment word of an IPv4 header, host order.
    pub(crate) fragment: u16,
    /// Bytes after the end of the IP packet: Ethernet padding.
    pub(crate) trailer: Vec<u8>,
}

/// Port or identifier `port` at `ip`.
pub(crate) fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

impl TestPacket {
    pub(crate) fn new(src: SocketAddr, dst: SocketAddr, body: Body) -> Self {
        Self {
            src,
            dst,
            body,
            hop_limit: 64,
            payload: b"a payload".to_vec(),
            options: vec![],
            tcp_options: vec![],
            extensions: vec![],
            fragment: 0,
            trailer: vec![],
        }
    }

    /// The same packet after forwarding: between `src` and `dst`, one hop less.
    pub(crate) fn forwarded(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, hop_limit: self.hop_limit - 1, trailer: self.trailer.clone(), ..self.clone() }
    }

    /// An error of `from` about this packet, sent to where the packet says it came from, with the packet's first
    /// `embedded` bytes.
    pub(crate) fn error(&self, from: IpAddr, body: Body, embedded: usize) -> Self {
        let mut payload = self.ip();
        payload.truncate(embedded);
        Self { payload, ..Self::new(at(from, 0), at(self.src.ip(), 0), body) }
    }

    /// The same packet with the two last bytes of its payload, of even length, such that the transport checksum is 0.
    pub(crate) fn summing_to_zero(&self) -> Self {
        assert!(self.payload.len() >= 2 && self.payload.len().is_multiple_of(2));
        let offset = checksum_offset(self.protocol()).unwrap();
        self.with(|packet| {
            let last = packet.payload.len() - 2;
            packet.payload[last..].fill(0);
            let sum = packet.transport()[offset..offset + 2].to_vec();
            packet.payload[last..].copy_from_slice(&sum);
        })
    }

    /// What the other end answers: ends swapped.
    pub(crate) fn answer(&self, body: Body) -> Self {
        Self { src: self.dst, dst: self.src, body, ..self.clone() }
    }

    pub(crate) fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut other = self.clone();
        change(&mut other);
        other
    }

    pub(crate) fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp(_) => 6,
            Body::Udp | Body::UdpUnsummed => 17,
            Body::EchoRequest | Body::EchoReply | Body::Icmp(_) | Body::IcmpError(..) if self.src.is_ipv4() => 1,
            Body::EchoRequest | Body::EchoReply | Body::Icmp(_) | Body::IcmpError(..) => 58,
            Body::Sctp => 132,
            Body::Dccp => 33,
            Body::Other(number) => number,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        let v4 = self.src.is_ipv4();
        let icmp = |kind: u8, identifier: u16| {
            let [i0, i1] = identifier.to_be_bytes();
            vec![kind, 0, 0, 0, i0, i1, 0, 7]
        };
        let mut bytes = match self.body {
            Body::Tcp(flags) => {
                let mut tcp = ports;
                // Each end's first sequence number is 0x01020304, and both acknowledge it.
                let words = u8::try_from(5 + self.tcp_options.len() / 4).unwrap();
                tcp.extend([1, 2, 3, 4, 1, 2, 3, 5, words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
                tcp.extend(&self.tcp_options);
                tcp
            }
            Body::Udp | Body::UdpUnsummed => {
                let mut udp = ports;
                udp.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
                udp.extend([0, 0]);
                udp
            }
            Body::EchoRequest => icmp(if v4 { 8 } else { 128 }, self.src.port()),
            Body::EchoReply => icmp(if v4 { 0 } else { 129 }, self.dst.port()),
            Body::Icmp(kind) => icmp(kind, 0),
            Body::IcmpError(kind, code, [b0, b1, b2, b3]) => vec![kind, code, 0, 0, b0, b1, b2, b3],
            Body::Sctp => {
                let mut sctp = ports;
                sctp.extend([9, 9, 9, 9, 0xc3, 0x2c, 0xc3, 0x2c]);
                sctp
            }
            Body::Dccp => {
                let mut dccp = ports;
                // A header of four words, a checksum that covers everything, a request, a long sequence number.
                dccp.extend([4, 0, 0, 0, 1, 0, 1, 2, 3, 4, 5, 6]);
                dccp
            }
            Body::Other(_) => vec![],
        };
        bytes.extend(&self.payload);
        if let Some(offset) = checksum_offset(self.protocol())
            && self.body != Body::UdpUnsummed
            && bytes.len() >= offset + 2
        {
            let mut sum = internet_checksum(&[pseudo_header(self, bytes.len()), bytes.clone()].concat());
            if self.body == Body::Udp && sum == 0 {
                sum = 0xffff;
            }
            bytes[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The packet without link header.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut bytes = vec![];
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.options.len();
                bytes.extend([0x40 | u8::try_from(header / 4).unwrap(), 0]);
                bytes.extend(u16::try_from(header + transport.len()).unwrap().to_be_bytes());
                bytes.extend([0x12, 0x34]);
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([self.hop_limit, self.protocol(), 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
                bytes.extend(&self.options);
                let sum = internet_checksum(&bytes);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let numbers: Vec<u8> =
                    self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]).collect();
                let extensions: usize = self.extensions.iter().map(|(_, rest)| rest.len() + 2).sum();
                bytes.extend([0x60, 0, 0, 1]);
                bytes.extend(u16::try_from(extensions + transport.len()).unwrap().to_be_bytes());
                bytes.extend([numbers[0], self.hop_limit]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
                for (next, (_, rest)) in iter::zip(&numbers[1..], &self.extensions) {
                    bytes.extend([*next, u8::try_from((rest.len() + 2) / 8 - 1).unwrap()]);
                    bytes.extend(rest);
                }
            }
            _ => panic!("a packet of two families"),
        }
        bytes.extend(transport);
        bytes
    }

    /// Length of the IP packet in bytes.
    pub(crate) fn length(&self) -> u32 {
        u32::try_from(self.ip().len()).unwrap()
    }

    /// The packet in an Ethernet frame, with its trailer.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        bytes.extend(if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes.extend(self.ip());
        bytes.extend(&self.trailer);
        bytes
    }
}

/// Something of a datagram: which of its bytes after the IP header, as one fragment carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Counted from the end of the IP header; the first is a multiple of 8.
    pub(crate) bytes: core::ops::Range<usize>,
    /// Whether more of the datagram follows.
    pub(crate) more: bool,
}

/// The pieces of a datagram with so many bytes after the IP header, each of `size` of them except the last.
pub(crate) fn pieces(length: usize, size: usize) -> Vec<Piece> {
    (0..length)
        .step_by(size)
        .map(|start| Piece { bytes: start..length.min(start + size), more: start + size < length })
        .collect()
}

impl TestPacket {
    /// How many bytes there are after the IP header, extension headers not counted.
    pub(crate) fn transport_length(&self) -> usize {
        self.transport().len()
    }

    /// The frame of a fragment of this packet (RFC 791 section 3.2, RFC 8200 section 4.5).
    pub(crate) fn fragment(&self, identification: u32, piece: &Piece) -> Vec<u8> {
        let frame = self.frame();
        let ip = &frame[NETWORK..];
        let transport = ip.len() - self.transport_length() - self.trailer.len();
        let word = u16::try_from(piece.bytes.start).unwrap();
        assert_eq!(word % 8, 0);
        let mut header = ip[..transport].to_vec();
        if self.src.is_ipv4() {
            let length = u16::try_from(transport + piece.bytes.len()).unwrap();
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[4..6].copy_from_slice(&u16::try_from(identification).unwrap().to_be_bytes());
            header[6..8].copy_from_slice(&((word / 8) | if piece.more { 0x2000 } else { 0 }).to_be_bytes());
            header[10..12].fill(0);
            let sum = internet_checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            assert!(self.extensions.is_empty());
            header[4..6].copy_from_slice(&u16::try_from(8 + piece.bytes.len()).unwrap().to_be_bytes());
            let next = core::mem::replace(&mut header[6], 44);
            header.extend([next, 0]);
            header.extend((word | u16::from(piece.more)).to_be_bytes());
            header.extend(identification.to_be_bytes());
        }
        [&frame[..NETWORK], &header, &ip[transport..][piece.bytes.clone()]].concat()
    }
}

/// Where a protocol's checksum stands in its header.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 | 33 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

fn pseudo_header(packet: &TestPacket, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    match (packet.src.ip(), packet.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if packet.protocol() != 1 => {
            [&src.octets()[..], &dst.octets(), &[0, packet.protocol()], &length[2..]].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, packet.protocol()]].concat()
        }
        _ => vec![],
    }
}

/// RFC 1071, word by word, folded at the very end.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The frame of an error from `src` to `dst` that quotes these bytes of an IP packet: ICMP type, code and the rest of the
/// header; the type of service where there is one.
pub(crate) fn icmp_error(
    src: IpAddr,
    dst: IpAddr,
    (kind, code, rest): (u8, u8, u32),
    quoted: &[u8],
    tos: u8,
) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest.to_be_bytes());
    icmp.extend(quoted);
    let length = |more: usize| u16::try_from(icmp.len() + more).unwrap().to_be_bytes();
    let (mut header, pseudo_header, ethertype) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, tos];
            header.extend(length(20));
            header.extend([0, 0, 0x40, 0, 64, 1, 0, 0]);
            header.extend([src.octets(), dst.octets()].concat());
            let sum = internet_checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (header, vec![], [8, 0])
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length(0));
            header.extend([58, 64]);
            let ends = [src.octets(), dst.octets()].concat();
            header.extend(&ends);
            (header, [ends, length(0).to_vec(), vec![0, 58]].concat(), [0x86, 0xdd])
        }
        _ => panic!("an error of two families"),
    };
    let sum = internet_checksum(&[pseudo_header, icmp.clone()].concat());
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype);
    frame.append(&mut header);
    frame.append(&mut icmp);
    frame
}

/// How wrong the checksums of a frame are (IP header, transport), 0 for right: what a receiver's sum would be.
///
/// For frames without options and extension headers.
pub(crate) fn wrongness(frame: &[u8]) -> (u16, u16) {
    let ip = &frame[NETWORK..];
    let (header, addresses, protocol, length) = if ip[0] >> 4 == 4 {
        (20, &ip[12..20], ip[9], usize::from(u16::from_be_bytes([ip[2], ip[3]])))
    } else {
        (40, &ip[8..40], ip[6], 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])))
    };
    let transport = &ip[header..length];
    let pseudo = if protocol == 1 {
        vec![]
    } else {
        let length = u32::try_from(transport.len()).unwrap().to_be_bytes();
        [addresses, &length, &[0, 0, 0, protocol]].concat()
    };
    let of_header = if header == 20 { internet_checksum(&ip[..20]) } else { 0 };
    let of_transport = match checksum_offset(protocol) {
        Some(_) => internet_checksum(&[&pseudo, transport].concat()),
        None => 0,
    };
    // In ones' complement both 0 and 0xffff are zero.
    (of_header % 0xffff, of_transport % 0xffff)
}

/// A packet that will be cut into segments of this payload on its way out, as at TC.
pub(crate) struct Segmented<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) payload: u32,
}

impl Packet for Segmented<'_> {
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
        self.payload
    }
}
