//! The transport header: its kind, its ports or identifier, and TCP's fields.

use super::Parsed;
use crate::{
    packet::{Packet, pair_of},
    verdict::Outcome,
    wire::{icmp, protocol, sctp, tcp, udp},
};

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
pub(super) struct TransportHeader {
    pub(super) kind: Transport,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    pub(super) tcp: TcpFields,
}

impl TransportHeader {
    /// Of anything but TCP.
    #[inline(always)]
    const fn new(kind: Transport, src_port: u16, dst_port: u16) -> Self {
        Self { kind, src_port, dst_port, tcp: TcpFields { flags: 0, sequence: 0, acknowledgment: 0 } }
    }
}

/// The shortest header of a protocol, in bytes.
pub(super) const fn shortest_header(protocol: u8) -> usize {
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
pub(super) fn transport(
    packet: &impl Packet,
    offset: usize,
    end: usize,
    protocol: u8,
) -> Result<TransportHeader, Outcome> {
    // A frame may go on after its packet (Ethernet padding): what is read there is no header. Asked for each protocol by
    // itself, so that only one comparison says which it is.
    let is_there = |header: usize| if end < offset + header { Err(Outcome::Malformed) } else { Ok(()) };
    match protocol {
        protocol::TCP => {
            is_there(tcp::LEN)?;
            let [ports, sequence, acknowledgment, flags, _] = packet.words(offset).ok_or(Outcome::Malformed)?;
            let [src_port, dst_port] = pair_of(ports);
            let [_, flags, _, _] = flags.to_ne_bytes();
            let (sequence, acknowledgment) = (u32::from_be(sequence), u32::from_be(acknowledgment));
            Ok(TransportHeader {
                kind: Transport::Tcp,
                src_port,
                dst_port,
                tcp: TcpFields { flags, sequence, acknowledgment },
            })
        }
        // All three have ports first and a checksum over them and the addresses at the same place.
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => {
            is_there(udp::LEN)?;
            let [ports, _] = packet.words(offset).ok_or(Outcome::Malformed)?;
            let [src_port, dst_port] = pair_of(ports);
            Ok(TransportHeader::new(Transport::Udp, src_port, dst_port))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            is_there(icmp::LEN)?;
            let [kind, identifier] = packet.words(offset).ok_or(Outcome::Malformed)?;
            let [identifier, _] = pair_of(identifier);
            let [kind, _, _, _] = kind.to_ne_bytes();
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
            is_there(sctp::LEN)?;
            let [ports, _, _] = packet.words(offset).ok_or(Outcome::Malformed)?;
            let [src_port, dst_port] = pair_of(ports);
            Ok(TransportHeader::new(Transport::Sctp, src_port, dst_port))
        }
        // AH authenticates the addresses (RFC 4302 section 3.3.3); protocol 0 inside is no protocol.
        protocol::AH | 0 => Err(Outcome::Untranslatable),
        _ => {
            is_there(0)?;
            Ok(TransportHeader::new(Transport::Other, 0, 0))
        }
    }
}

/// The source port of what stands at `offset`, network order; 0 where it has none.
#[inline(always)]
pub(super) fn source_port(packet: &impl Packet, offset: usize, protocol: u8) -> u16 {
    if !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return 0;
    }
    packet.read(offset).map_or(0, u16::from_ne_bytes)
}

/// XDP has nothing to do with other ICMP than echo, nor has a fragment of it what its checksum covers.
#[inline(always)]
pub(super) const fn no_icmp_but_echo<A: Copy>(parsed: Parsed<A>) -> Result<Parsed<A>, Outcome> {
    if matches!(parsed.transport, Transport::Icmp) { Err(Outcome::IcmpOther) } else { Ok(parsed) }
}
