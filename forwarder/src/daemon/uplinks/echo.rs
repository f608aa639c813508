//! Echo requests and their answers, as IP packets (RFC 792, RFC 4443 section 4). Pure.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// Hops that a probe may take.
const HOP_LIMIT: u8 = 64;
/// What probes carry: so many bytes that they look like anybody's, and say whose they are.
const PAYLOAD: &[u8; 24] = b"forwarder: is it there? ";

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// The line's own address.
    pub(super) from: IpAddr,
    /// Who is asked; of the same family.
    pub(super) to: IpAddr,
    /// Identifier, host order.
    pub(super) id: u16,
    /// Sequence number, host order.
    pub(super) sequence: u16,
}

impl Echo {
    /// The request, from its IP header on; none if the addresses are of different families.
    pub(super) fn request(&self) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        let written = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT)
                .icmpv4_echo_request(self.id, self.sequence)
                .write(&mut packet, PAYLOAD),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT)
                .icmpv6_echo_request(self.id, self.sequence)
                .write(&mut packet, PAYLOAD),
            _ => return None,
        };
        written.ok()?;
        Some(packet)
    }

    /// Whether an IP packet answers it.
    pub(super) fn is_answered_by(&self, packet: &[u8]) -> bool {
        let Ok(sliced) = SlicedPacket::from_ip(packet) else { return false };
        let ends = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            _ => return false,
        };
        let echo = match &sliced.transport {
            Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
                Icmpv4Type::EchoReply(echo) => echo,
                _ => return false,
            },
            Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
                Icmpv6Type::EchoReply(echo) => echo,
                _ => return false,
            },
            _ => return false,
        };
        ends == (self.to, self.from) && (echo.id, echo.seq) == (self.id, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

    use super::*;

    fn echo(from: &str, to: &str) -> Echo {
        Echo { from: from.parse().unwrap(), to: to.parse().unwrap(), id: 0x1234, sequence: 7 }
    }

    /// The one's complement sum, all ones where the checksum in it is right (RFC 1071).
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }

    /// What the one who is asked makes of the request.
    fn reply(request: &Echo) -> Vec<u8> {
        let mut packet = Vec::new();
        match (request.to, request.from) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60)
                .icmpv4_echo_reply(request.id, request.sequence)
                .write(&mut packet, PAYLOAD),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60)
                .icmpv6_echo_reply(request.id, request.sequence)
                .write(&mut packet, PAYLOAD),
            _ => unreachable!(),
        }
        .unwrap();
        packet
    }

    #[test]
    fn a_request_byte_by_byte() {
        let packet = echo("192.0.2.1", "198.51.100.9").request().unwrap();
        // RFC 791 section 3.1: 20 + 8 + 24 bytes, not to be cut, 64 hops, protocol 1; then RFC 792: type 8, code 0.
        assert_eq!(packet[..10], [0x45, 0, 0, 52, 0, 0, 0x40, 0, 64, 1]);
        assert_eq!(packet[12..22], [192, 0, 2, 1, 198, 51, 100, 9, 8, 0]);
        assert_eq!(packet[24..28], [0x12, 0x34, 0, 7]);
        assert_eq!((sum(&packet[..20]), sum(&packet[20..])), (0xffff, 0xffff));
        let packet = echo("2001:db8::1", "2001:db8::2").request().unwrap();
        assert_eq!((packet[0] >> 4, packet[6], packet[7], packet[40], packet.len()), (6, 58, 64, 128, 40 + 32));
        assert_eq!(echo("192.0.2.1", "2001:db8::2").request(), None);
    }

    #[test]
    fn only_its_own_answer_counts() {
        for (from, to, other) in
            [("192.0.2.1", "198.51.100.9", "198.51.100.8"), ("2001:db8::1", "2001:db8::2", "2001:db8::3")]
        {
            let asked = echo(from, to);
            let answer = reply(&asked);
            assert!(asked.is_answered_by(&answer));
            assert!(!asked.is_answered_by(&asked.request().unwrap()), "the question itself");
            assert!(!Echo { sequence: 8, ..asked }.is_answered_by(&answer), "to an earlier question");
            assert!(!Echo { id: 1, ..asked }.is_answered_by(&answer), "to somebody else");
            assert!(!echo(from, other).is_answered_by(&answer), "by somebody else");
            for length in 0..answer.len() - PAYLOAD.len() {
                assert!(!asked.is_answered_by(&answer[..length]), "cut to {length}");
            }
        }
    }
}
