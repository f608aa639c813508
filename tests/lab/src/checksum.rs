//! Whether a captured packet has the checksum it must have.
//!
//! A socket does not tell: on a veth, what was verified once counts as verified at every hop that follows, so what is
//! changed on the way and gets a wrong checksum still arrives.

use std::net::IpAddr;

use etherparse::{IpNumber, NetSlice};

use crate::capture::{Checksum, Frame};

/// Of a UDP header: where its checksum is.
const UDP_CHECKSUM: usize = 6;

impl Frame {
    /// Whether the checksums of the network header and of what it carries are right, and what that is. `None` where that cannot
    /// be told: the checksum is not complete, or absent, or there is none; or the packet is a fragment. Hardware fills in those
    /// of TCP and UDP: in an ICMP error it would be that of what the error quotes, so the error's own must be right before.
    pub fn has_right_checksums(&self) -> Option<(IpNumber, bool)> {
        let packet = self.parse().ok()?;
        let (ends, payload, header_is_right) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let ends = (IpAddr::from(header.source_addr()), IpAddr::from(header.destination_addr()));
                (ends, ip.payload(), internet_checksum(header.slice()) == 0)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                ((header.source_addr().into(), header.destination_addr().into()), ip.payload(), true)
            }
            NetSlice::Arp(_) => return None,
        };
        if payload.fragmented {
            return None;
        }
        let protocol = payload.ip_number;
        let covered = match protocol {
            IpNumber::ICMP => payload.payload.to_vec(),
            IpNumber::TCP | IpNumber::UDP if self.checksum == Checksum::Partial => return None,
            IpNumber::UDP if payload.payload.get(UDP_CHECKSUM..)?.starts_with(&[0, 0]) => return None,
            IpNumber::TCP | IpNumber::UDP | IpNumber::IPV6_ICMP => {
                let length = u32::try_from(payload.payload.len()).ok()?.to_be_bytes();
                [&bytes(ends.0), &bytes(ends.1), &length[..], &[0, 0, 0, protocol.0], payload.payload].concat()
            }
            _ => return None,
        };
        Some((protocol, header_is_right && internet_checksum(&covered) == 0))
    }
}

/// As in a pseudo-header.
fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071: of bytes that have their checksum in them, 0 if it is right.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (16 - 8 * pair.len()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::internet_checksum;

    /// The example of RFC 1071 section 3, and an odd number of bytes.
    #[test]
    fn sums() {
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(internet_checksum(&[0x12, 0x34, 0x56]), !0x6834);
        assert_eq!(internet_checksum(&[0x12, 0x34, 0x56, 0x00, 0x97, 0xcb]), 0);
    }
}
