//! Packets built from a description that can also say what no network stack would send.

use std::net::IpAddr;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const GRE: u8 = 47;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
pub(crate) const UDP_LITE: u8 = 136;
const FRAGMENT_HEADER: u8 = 44;
/// The shortest transport header that has ports, in bytes.
const UDP_HEADER: usize = 8;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// A packet, or, when [`Self::pieces`] says so, the fragments of one.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Stands in the IPv4 identification or in the IPv6 flow label, which nobody on the way changes: by it, what comes
    /// out is recognised.
    pub(crate) mark: u16,
    /// The upper bits of the flow label.
    pub(crate) label: u8,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    /// IPv4's "do not fragment".
    pub(crate) df: bool,
    /// IPv4 options; a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: type, and what follows the first two bytes (6 bytes more than a multiple of 8).
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) body: Body,
    pub(crate) damage: Option<Damage>,
    /// Bytes after the end of the IP packet.
    pub(crate) trailer: usize,
    /// The fragments, where it is cut, in the order in which they are sent.
    pub(crate) pieces: Vec<Piece>,
}

/// A fragment: these bytes of what follows the IP header. `start` is a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// More follow, it says.
    pub(crate) more: bool,
}

/// What follows the IP header. Ports in host order.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Tcp {
        src: u16,
        dst: u16,
        seq: u32,
        ack: u32,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    },
    /// `unsummed`: with checksum 0.
    Udp {
        src: u16,
        dst: u16,
        unsummed: bool,
        payload: Vec<u8>,
    },
    Echo {
        reply: bool,
        id: u16,
        seq: u16,
        payload: Vec<u8>,
    },
    /// Any other ICMP message.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        payload: Vec<u8>,
    },
    Other {
        protocol: u8,
        payload: Vec<u8>,
    },
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The transport checksum is off by this much.
    Checksum(u16),
    HeaderChecksum(u16),
    /// The IP header says that the packet is longer (shorter) than it is by so many bytes.
    Length(i16),
    /// The IP header says version and header length so.
    FirstByte(u8),
    /// UDP says that it is longer (shorter) by so many bytes.
    UdpLength(i16),
    /// TCP says its header has so many words.
    TcpOffset(u8),
    /// The IP packet ends after so many bytes, and says so.
    Cut(usize),
    /// The frame ends after so many bytes of the IP packet, which does not say so.
    Truncated(usize),
}

impl Body {
    pub(crate) fn protocol(&self, v6: bool) -> u8 {
        match self {
            Self::Tcp { .. } => TCP,
            Self::Udp { .. } => UDP,
            Self::Echo { .. } | Self::Icmp { .. } => {
                if v6 {
                    ICMPV6
                } else {
                    ICMP
                }
            }
            Self::Other { protocol, .. } => *protocol,
        }
    }

    /// The bytes, with 0 for the checksum, and where it is to stand.
    fn bytes(&self, v6: bool) -> (Vec<u8>, Option<usize>) {
        let mut bytes = Vec::new();
        match self {
            Self::Tcp { src, dst, seq, ack, flags, options, payload } => {
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([(((20 + options.len()) / 4) << 4) as u8, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(payload);
                (bytes, Some(16))
            }
            Self::Udp { src, dst, unsummed, payload } => {
                bytes.extend(src.to_be_bytes());
                bytes.extend(dst.to_be_bytes());
                bytes.extend((8 + payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (bytes, (!unsummed).then_some(6))
            }
            Self::Echo { reply, id, seq, payload } => {
                bytes.extend([if v6 { 128 + u8::from(*reply) } else { 8 * u8::from(!reply) }, 0, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(payload);
                (bytes, Some(2))
            }
            Self::Icmp { kind, code, rest, payload } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                bytes.extend(payload);
                (bytes, Some(2))
            }
            Self::Other { payload, .. } => (payload.clone(), None),
        }
    }
}

impl Packet {
    pub(crate) fn new(src: IpAddr, dst: IpAddr, mark: u16, body: Body) -> Self {
        Self {
            src,
            dst,
            mark,
            label: 0,
            traffic_class: 0,
            hop_limit: 64,
            df: false,
            options: Vec::new(),
            extensions: Vec::new(),
            body,
            damage: None,
            trailer: 0,
            pieces: Vec::new(),
        }
    }

    const fn v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// The frames, in the order in which they are sent.
    pub(crate) fn frames(&self, to: [u8; 6], from: [u8; 6]) -> Vec<Vec<u8>> {
        let ethertype: u16 = if self.v6() { 0x86dd } else { 0x0800 };
        let frame = |ip: Vec<u8>| [&to[..], &from, &ethertype.to_be_bytes(), &ip, &vec![0x5a; self.trailer]].concat();
        self.ip_packets().into_iter().map(frame).collect()
    }

    /// The IP packet, or its fragments.
    pub(crate) fn ip_packets(&self) -> Vec<Vec<u8>> {
        let payload = self.payload();
        let protocol = self.body.protocol(self.v6());
        if self.pieces.is_empty() {
            return vec![self.ip_packet(protocol, payload, None)];
        }
        // Marks come again within the lifetime of fragments. IPv6 has room for what they hold, too; not for a checksum,
        // which differs between the labs with the ports that they choose.
        let half =
            payload.get(UDP_HEADER..).and_then(<[u8]>::last_chunk).map_or(0x4d4b, |last| u16::from_be_bytes(*last));
        let part = |piece: &Piece| {
            let end = piece.end.min(payload.len());
            let bytes = payload[piece.start.min(end)..end].to_vec();
            self.ip_packet(protocol, bytes, Some((piece.start as u16, piece.more, half)))
        };
        self.pieces.iter().map(part).collect()
    }

    /// The length of what follows the IP header, in bytes.
    pub(crate) fn transport_length(&self) -> usize {
        self.payload().len()
    }

    /// Transport header and payload with their checksum, damaged as wanted.
    fn payload(&self) -> Vec<u8> {
        let (mut bytes, checksum_at) = self.body.bytes(self.v6());
        match self.damage {
            Some(Damage::UdpLength(by)) => {
                let length = (bytes.len() as u16).wrapping_add_signed(by);
                bytes[4..6].copy_from_slice(&length.to_be_bytes());
            }
            Some(Damage::TcpOffset(words)) => bytes[12] = words << 4,
            _ => {}
        }
        if let Some(at) = checksum_at {
            let protocol = self.body.protocol(self.v6());
            let mut checksum = transport_checksum(self.src, self.dst, protocol, &bytes);
            if protocol == UDP && checksum == 0 {
                checksum = 0xffff;
            }
            if let Some(Damage::Checksum(bits)) = self.damage {
                // One's complement, so that it is as wrong whatever the right one is.
                let off = u32::from(checksum) + u32::from(bits);
                checksum = (off & 0xffff) as u16 + (off >> 16) as u16;
            }
            bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    /// What the transport checksum has to be, not adjusted.
    pub(crate) fn right_checksum(&self) -> u16 {
        transport_checksum(self.src, self.dst, self.body.protocol(self.v6()), &self.body.bytes(self.v6()).0)
    }

    fn ip_packet(&self, protocol: u8, payload: Vec<u8>, fragment: Option<(u16, bool, u16)>) -> Vec<u8> {
        let mut ip = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.options.len();
                let mut flags = u16::from(self.df) << 14;
                if let Some((offset, more, _)) = fragment {
                    flags |= (offset / 8) | (u16::from(more) << 13);
                }
                let mut ip = vec![0x40 | (header / 4) as u8, self.traffic_class];
                ip.extend(((header + payload.len()) as u16).to_be_bytes());
                ip.extend(self.mark.to_be_bytes());
                ip.extend(flags.to_be_bytes());
                ip.extend([self.hop_limit, protocol, 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&self.options);
                ip
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut headers: Vec<(u8, Vec<u8>)> = self.extensions.clone();
                if let Some((offset, more, half)) = fragment {
                    let ([first, second], [high, low]) = (half.to_be_bytes(), self.mark.to_be_bytes());
                    let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
                    headers.push((FRAGMENT_HEADER, vec![o0, o1, first, second, high, low]));
                }
                let length: usize = headers.iter().map(|(_, body)| body.len() + 2).sum::<usize>() + payload.len();
                let class = u32::from(self.traffic_class) << 20;
                let mut ip = (0x6000_0000 | class | u32::from(self.label & 0xf) << 16 | u32::from(self.mark))
                    .to_be_bytes()
                    .to_vec();
                ip.extend((length as u16).to_be_bytes());
                ip.extend([headers.first().map_or(protocol, |(kind, _)| *kind), self.hop_limit]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                for (index, (kind, body)) in headers.iter().enumerate() {
                    ip.push(headers.get(index + 1).map_or(protocol, |(next, _)| *next));
                    ip.push(if *kind == FRAGMENT_HEADER { 0 } else { (body.len() + 2) as u8 / 8 - 1 });
                    ip.extend(body);
                }
                ip
            }
            _ => panic!("{} and {} are of different families", self.src, self.dst),
        };
        ip.extend(payload);
        self.break_header(&mut ip);
        ip
    }

    fn break_header(&self, ip: &mut Vec<u8>) {
        let length_at = if self.v6() { 4 } else { 2 };
        match self.damage {
            Some(Damage::Length(by)) => {
                let said = u16::from_be_bytes([ip[length_at], ip[length_at + 1]]);
                ip[length_at..length_at + 2].copy_from_slice(&said.wrapping_add_signed(by).to_be_bytes());
            }
            Some(Damage::FirstByte(byte)) => ip[0] = byte,
            Some(Damage::Cut(length)) => {
                ip.truncate(length.max(if self.v6() { 40 } else { 20 + self.options.len() }));
                let said = if self.v6() { ip.len() - 40 } else { ip.len() } as u16;
                ip[length_at..length_at + 2].copy_from_slice(&said.to_be_bytes());
            }
            _ => {}
        }
        if !self.v6() {
            let mut checksum = !sum(&ip[..20 + self.options.len()]);
            if let Some(Damage::HeaderChecksum(bits)) = self.damage {
                checksum ^= bits;
            }
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        if let Some(Damage::Truncated(length)) = self.damage {
            ip.truncate(length);
        }
    }
}

/// The one's complement sum of big-endian words.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of a transport header and its payload, whose own checksum field is 0.
pub(crate) fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut covered = Vec::new();
    if protocol != ICMP {
        for address in [src, dst] {
            match address {
                IpAddr::V4(address) => covered.extend(address.octets()),
                IpAddr::V6(address) => covered.extend(address.octets()),
            }
        }
        covered.extend((bytes.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
    }
    covered.extend(bytes);
    !sum(&covered)
}
