//! Cutting IPv4 packets that do not fit their way out and may be cut (RFC 791 section 3.2, RFC 1812 section 5.2.6).
//!
//! A packet is cut as it came, before any translation. The pieces are handed in again, in order, and go the way of
//! fragments ([`crate::fragment`]): what becomes of them is decided in one place.

use crate::{
    checksum::Delta,
    packet::Packet,
    wire::ipv4::{self, DONT_FRAGMENT, FRAGMENT_OFFSET, MORE_FRAGMENTS},
};

/// The longest IP packet that is cut, in bytes; a power of two.
pub const LONGEST: u32 = 1 << 14;
/// No piece carries more, in bytes; a power of two.
pub const LONGEST_PIECE: u32 = 1 << 13;

/// How a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Cut {
    header: [u8; ipv4::LEN],
    /// What each piece but the last carries, in bytes: a multiple of 8.
    size: u32,
    /// What the packet carries, in bytes.
    payload: u32,
}

/// One of the fragments that a packet becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its IPv4 header.
    pub header: [u8; ipv4::LEN],
    /// Where what it carries begins, in bytes after the packet's header.
    pub start: u32,
    /// How many bytes it carries.
    pub length: u32,
}

impl Cut {
    /// How the packet at `network` is cut for a way of this MTU, in bytes of IP packet. `None` if it may not be cut, or is
    /// not: with options, which not every piece would have, or too long.
    #[inline(always)]
    pub fn of(packet: &impl Packet, network: usize, mtu: u32) -> Option<Self> {
        let header: [u8; ipv4::LEN] = packet.read(network)?;
        let [vihl, _, l0, l1, _, _, f0, f1, ..] = header;
        let (length, word) = (u32::from(u16::from_be_bytes([l0, l1])), u16::from_be_bytes([f0, f1]));
        if vihl != 0x45 || word & DONT_FRAGMENT != 0 || length <= ipv4::LEN as u32 || length > LONGEST {
            return None;
        }
        let payload = length - ipv4::LEN as u32;
        let size = (mtu.saturating_sub(ipv4::LEN as u32) & !7).min(LONGEST_PIECE);
        // The end of a datagram is at most 65535 bytes behind its start.
        let fits = u32::from(word & FRAGMENT_OFFSET) * 8 + payload <= u16::MAX.into();
        (size > 0 && fits).then_some(Self { header, size, payload })
    }

    /// What the packet carries, in bytes.
    #[inline(always)]
    pub const fn payload(&self) -> u32 {
        self.payload
    }

    /// How many pieces it becomes.
    #[inline(always)]
    pub const fn pieces(&self) -> u32 {
        // Not `div_ceil`, which may panic as far as the compiler sees.
        match (self.payload + self.size - 1).checked_div(self.size) {
            Some(pieces) => pieces,
            None => 0,
        }
    }

    /// One of the pieces, counted from 0.
    #[inline(always)]
    pub fn piece(&self, number: u32) -> Option<Piece> {
        let start = number.checked_mul(self.size)?;
        let rest = self.payload.checked_sub(start).filter(|rest| *rest > 0)?;
        let is_last = rest <= self.size;
        let length = if is_last { rest } else { self.size };
        let [vihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = self.header;
        let word = u16::from_be_bytes([f0, f1]);
        // Of a fragment that is cut, only the last piece may be the datagram's last.
        let more = if is_last { word & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let word = ((word & FRAGMENT_OFFSET) + (start / 8) as u16) | more;
        let [n0, n1] = (ipv4::LEN as u16 + length as u16).to_be_bytes();
        let [w0, w1] = word.to_be_bytes();
        let change = |old: [u8; 2], new: [u8; 2]| Delta::word(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        let delta = change([l0, l1], [n0, n1]).and(change([f0, f1], [w0, w1]));
        let [c0, c1] = delta.apply(u16::from_ne_bytes([c0, c1])).to_ne_bytes();
        let header = [vihl, tos, n0, n1, i0, i1, w0, w1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3];
        Some(Piece { header, start, length })
    }
}

#[cfg(test)]
mod tests;
