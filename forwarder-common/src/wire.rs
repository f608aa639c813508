//! Where header fields are, named once. Offsets are from the start of their header, in bytes.

use core::mem::offset_of;

use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// Ethernet (IEEE 802.3): the type field as loaded from the wire.
pub mod ethernet {
    use super::{EthHdr, EtherType};

    /// Length of the header without tags.
    pub const LEN: usize = EthHdr::LEN;
    /// Offset of the type.
    pub const TYPE: usize = LEN - 2;
    /// Ethertype of IPv4, network order as loaded.
    pub const IPV4: u16 = EtherType::Ipv4 as u16;
    /// Ethertype of IPv6, network order as loaded.
    pub const IPV6: u16 = EtherType::Ipv6 as u16;
    /// Ethertype of ARP, network order as loaded.
    pub const ARP: u16 = EtherType::Arp as u16;
}

/// IPv4 (RFC 791).
pub mod ipv4 {
    use super::{Ipv4Hdr, offset_of};

    /// Length of the header without options.
    pub const LEN: usize = Ipv4Hdr::LEN;
    /// Type of service: DSCP and ECN.
    pub const TYPE_OF_SERVICE: usize = offset_of!(Ipv4Hdr, tos);
    /// Total length.
    pub const TOTAL_LENGTH: usize = offset_of!(Ipv4Hdr, tot_len);
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = offset_of!(Ipv4Hdr, frags);
    /// Time to live.
    pub const TTL: usize = offset_of!(Ipv4Hdr, ttl);
    /// Protocol.
    pub const PROTOCOL: usize = offset_of!(Ipv4Hdr, proto);
    /// Header checksum.
    pub const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
    /// Source address; the destination follows.
    pub const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
    /// More-fragments flag and fragment offset: any of them makes a fragment. Host order.
    pub const FRAGMENT_BITS: u16 = 0x3fff;
    /// The fragment offset, in units of 8 bytes. Host order.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// More fragments of the datagram follow. Host order.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// Routers may not cut the packet. Host order.
    pub const DONT_FRAGMENT: u16 = 0x4000;

    /// Options (RFC 791 section 3.1), as their first byte says.
    pub mod option {
        /// End of the list.
        pub const END: u8 = 0;
        /// A byte of padding.
        pub const NO_OPERATION: u8 = 1;
        /// A way to take, with others allowed in between.
        pub const LOOSE_SOURCE_ROUTE: u8 = 131;
        /// A way to take.
        pub const STRICT_SOURCE_ROUTE: u8 = 137;
    }
}

/// IPv6 (RFC 8200).
pub mod ipv6 {
    use super::{IpProto, Ipv6Hdr, offset_of};

    /// Length of the header.
    pub const LEN: usize = Ipv6Hdr::LEN;
    /// The least MTU that a link has (RFC 8200 section 5).
    pub const LEAST_MTU: u32 = 1280;
    /// Payload length.
    pub const PAYLOAD_LENGTH: usize = offset_of!(Ipv6Hdr, payload_len);
    /// Next header.
    pub const NEXT_HEADER: usize = offset_of!(Ipv6Hdr, next_hdr);
    /// Source address; the destination follows.
    pub const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);

    /// Fragment offset in the third and fourth byte of a Fragment header. Host order.
    pub const FRAGMENT_OFFSET: u16 = 0xfff8;
    /// Hop-by-hop options header.
    pub const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    /// Routing header.
    pub const ROUTING: u8 = IpProto::Ipv6Route as u8;
    /// Fragment header.
    pub const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    /// Length of the fragment header.
    pub const FRAGMENT_LEN: usize = 8;
    /// Nothing follows (RFC 8200 section 4.7).
    pub const NO_NEXT_HEADER: u8 = IpProto::Ipv6NoNxt as u8;
    /// Destination options header.
    pub const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
}

/// Protocol numbers (IANA).
pub mod protocol {
    use super::IpProto;

    /// ICMP for IPv4.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// DCCP.
    pub const DCCP: u8 = IpProto::Dccp as u8;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = IpProto::UdpLite as u8;
    /// The authentication header.
    pub const AH: u8 = IpProto::Ah as u8;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// SCTP.
    pub const SCTP: u8 = IpProto::Sctp as u8;
}

/// TCP (RFC 9293).
pub mod tcp {
    use super::{TcpHdr, offset_of};

    /// Length of the header without options.
    pub const LEN: usize = TcpHdr::LEN;
    /// Sequence number; the acknowledgment number follows it.
    pub const SEQUENCE: usize = offset_of!(TcpHdr, seq);
    /// The byte of flags.
    pub const FLAGS: usize = 13;
    /// The byte whose upper half is the header's length in 32-bit words.
    pub const DATA_OFFSET: usize = 12;
    /// Checksum.
    pub const CHECKSUM: usize = offset_of!(TcpHdr, check);
    /// Options: end of the list, one byte (RFC 9293 section 3.2).
    pub const OPTION_END: u8 = 0;
    /// Options: nothing, one byte.
    pub const OPTION_NOTHING: u8 = 1;
    /// Options: maximum segment size (RFC 9293 section 3.7.1).
    pub const OPTION_MSS: u8 = 2;
    /// Length of that option.
    pub const OPTION_MSS_LEN: u8 = 4;
    /// FIN flag.
    pub const FIN: u8 = 0x01;
    /// SYN flag.
    pub const SYN: u8 = 0x02;
    /// RST flag.
    pub const RST: u8 = 0x04;
    /// ACK flag.
    pub const ACK: u8 = 0x10;
}

/// UDP (RFC 768).
pub mod udp {
    use super::{UdpHdr, offset_of};

    /// Length of the header.
    pub const LEN: usize = UdpHdr::LEN;
    /// Checksum.
    pub const CHECKSUM: usize = offset_of!(UdpHdr, check);
}

/// SCTP (RFC 9260).
pub mod sctp {
    /// Length of the common header.
    pub const LEN: usize = 12;
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443): the echo messages have the same shape in both.
pub mod icmp {
    /// Length of an echo header, and of what precedes the packet in an error.
    pub const LEN: usize = 8;
    /// Checksum.
    pub const CHECKSUM: usize = 2;
    /// Identifier of an echo message.
    pub const IDENTIFIER: usize = 4;
    /// Echo reply (RFC 792).
    pub const ECHO_REPLY: u8 = 0;
    /// Destination Unreachable (RFC 792).
    pub const UNREACHABLE: u8 = 3;
    /// Code of Destination Unreachable: no route to the network (RFC 792).
    pub const NET: u8 = 0;
    /// Code of Destination Unreachable: no way to the host (RFC 792).
    pub const HOST: u8 = 1;
    /// Code of Destination Unreachable: larger than the next link takes, and not to be cut (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Code of Destination Unreachable: communication administratively prohibited (RFC 1812 section 5.2.7.1).
    pub const PROHIBITED: u8 = 13;
    /// Time Exceeded (RFC 792).
    pub const TIME_EXCEEDED: u8 = 11;
    /// Destination Unreachable (RFC 4443 section 3.1).
    pub const V6_UNREACHABLE: u8 = 1;
    /// Code of Destination Unreachable: no route to the destination (RFC 4443 section 3.1).
    pub const V6_NO_ROUTE: u8 = 0;
    /// Code of Destination Unreachable: communication administratively prohibited (RFC 4443 section 3.1).
    pub const V6_PROHIBITED: u8 = 1;
    /// Packet Too Big (RFC 4443 section 3.2).
    pub const V6_TOO_BIG: u8 = 2;
    /// Time Exceeded (RFC 4443 section 3.3).
    pub const V6_TIME_EXCEEDED: u8 = 3;
    /// Echo request (RFC 792).
    pub const ECHO_REQUEST: u8 = 8;
    /// Source quench (RFC 792; deprecated by RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect (RFC 792).
    pub const REDIRECT: u8 = 5;
    /// Parameter problem (RFC 792).
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp (RFC 792), with its identifier where an echo has it, as the other queries below.
    pub const TIMESTAMP: u8 = 13;
    /// Timestamp reply (RFC 792).
    pub const TIMESTAMP_REPLY: u8 = 14;
    /// Information request (RFC 792).
    pub const INFORMATION_REQUEST: u8 = 15;
    /// Information reply (RFC 792).
    pub const INFORMATION_REPLY: u8 = 16;
    /// Address mask request (RFC 950).
    pub const ADDRESS_MASK_REQUEST: u8 = 17;
    /// Address mask reply (RFC 950).
    pub const ADDRESS_MASK_REPLY: u8 = 18;
    /// Echo request (RFC 4443 section 4.1).
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// Echo reply (RFC 4443 section 4.2).
    pub const V6_ECHO_REPLY: u8 = 129;
    /// Neighbor Solicitation (RFC 4861 section 4.3).
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// Neighbor Advertisement (RFC 4861 section 4.4).
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
}

/// ARP (RFC 826), for IPv4 over Ethernet.
pub mod arp {
    /// What a request begins with: Ethernet, IPv4, the lengths of their addresses, operation 1.
    pub const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    /// The operation of a reply.
    pub const REPLY_OPERATION: u16 = 2;
    /// The sender's MAC address.
    pub const SENDER_MAC: usize = 8;
    /// The sender's address.
    pub const SENDER: usize = 14;
    /// The MAC address that is asked for.
    pub const TARGET_MAC: usize = 18;
    /// The address that is asked for.
    pub const TARGET: usize = 24;
}

/// Neighbour discovery (RFC 4861): solicitation and advertisement have the same shape.
pub mod discovery {
    /// Length without options.
    pub const LEN: usize = 24;
    /// The address that it is about.
    pub const TARGET: usize = 8;
    /// The only hop limit of messages that are heeded: nobody has forwarded them (section 7.1).
    pub const HOP_LIMIT: u8 = 255;
    /// In the first byte after an advertisement's checksum: it answers a solicitation (section 4.4).
    pub const SOLICITED: u8 = 0x40;
    /// Option: the sender's link-layer address (section 4.6.1).
    pub const SOURCE_LINK_ADDRESS: u8 = 1;
    /// Option: the target's link-layer address.
    pub const TARGET_LINK_ADDRESS: u8 = 2;
}
