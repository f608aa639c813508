//! Whether what ends a connection can be of that connection, as far as its sequence number says.
//!
//! Netfilter follows the windows of both sides packet by packet (`nf_conntrack_proto_tcp.c`), which takes writes to what
//! both directions share. Here the backend's half of an established flow keeps how far both sides had come when it was
//! last dated: a packet of the backend says both, by its sequence and acknowledgment numbers. A RST or FIN far from that
//! is forwarded (the end host judges, RFC 5961 section 3) but ends nothing: an idle connection outlives a forged one.

use crate::{abi::Direction, parse::TcpFields, wire::tcp};

/// How far both sides of a TCP connection have come: the upper 16 bits of each one's next sequence number, the client's
/// above the backend's. 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached(pub u32);

/// In units of 64 KiB: how far behind what was reached a sequence number may be: what was overtaken, sent again, or left
/// over from before the flow was dated last.
const BEHIND: u16 = 16;
/// How far ahead: 128 MiB, what may be in flight or have been sent since the flow was dated.
const AHEAD: u16 = 1 << 11;

impl Reached {
    /// What a packet in this direction says, if it says anything.
    #[inline(always)]
    pub const fn by(direction: Direction, packet: &TcpFields) -> Self {
        if packet.flags & (tcp::ACK | tcp::RST) != tcp::ACK {
            return Self(0);
        }
        let (client, backend) = match direction {
            Direction::Forward => (packet.sequence, packet.acknowledgment),
            Direction::Reply => (packet.acknowledgment, packet.sequence),
        };
        Self(client & 0xffff_0000 | backend >> 16)
    }

    /// Whether a packet that one side sends with this sequence number can be of the same connection.
    #[inline(always)]
    pub const fn admits(self, direction: Direction, sequence: u32) -> bool {
        let reached = match direction {
            Direction::Forward => (self.0 >> 16) as u16,
            Direction::Reply => self.0 as u16,
        };
        self.0 == 0 || ((sequence >> 16) as u16).wrapping_sub(reached).wrapping_add(BEHIND) < BEHIND + AHEAD
    }

    /// Whether `next` can be what comes after this in the same connection: else it is not to be believed, for it would
    /// make room for a RST of the same kind.
    #[inline(always)]
    pub const fn leads_to(self, next: Self) -> bool {
        next.0 != 0 && self.admits(Direction::Forward, next.0) && self.admits(Direction::Reply, next.0 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Forward, Reply};

    fn packet(sequence: u32, acknowledgment: u32, flags: u8) -> TcpFields {
        TcpFields { flags, sequence, acknowledgment }
    }

    #[test]
    fn both_directions_say_the_same() {
        let client = Reached::by(Forward, &packet(0x1234_5678, 0x9abc_def0, tcp::ACK));
        let backend = Reached::by(Reply, &packet(0x9abc_def0, 0x1234_5678, tcp::ACK | tcp::FIN));
        assert_eq!((client, backend), (Reached(0x1234_9abc), Reached(0x1234_9abc)));
        for flags in [0, tcp::SYN, tcp::RST, tcp::RST | tcp::ACK] {
            assert_eq!(Reached::by(Reply, &packet(1 << 20, 1 << 20, flags)), Reached(0), "{flags:#04x}");
        }
    }

    #[test]
    fn what_is_near_is_admitted() {
        const MIB: u32 = 1 << 20;
        for (client, backend) in [(0x1000_0000, 0x9000_0000), (0xffff_8000, 5), (5, 0xffff_8000_u32)] {
            let reached = Reached::by(Forward, &packet(client, backend, tcp::ACK));
            for (direction, at) in [(Forward, client), (Reply, backend)] {
                for near in [0u32, 1, MIB, 127 * MIB, 1u32.wrapping_neg(), (MIB - 65_536).wrapping_neg()] {
                    assert!(reached.admits(direction, at.wrapping_add(near)), "{at:#x} {near:#x}");
                }
                for far in [129 * MIB, 1 << 31, (2 * MIB).wrapping_neg(), (100 * MIB).wrapping_neg()] {
                    assert!(!reached.admits(direction, at.wrapping_add(far)), "{at:#x} {far:#x}");
                }
            }
            // Both sides have to have come on from where they were.
            let later = |client_by, backend_by| {
                let packet = packet(client.wrapping_add(client_by), backend.wrapping_add(backend_by), tcp::ACK);
                Reached::by(Forward, &packet)
            };
            assert!(reached.leads_to(later(0, 0)) && reached.leads_to(later(MIB, 100 * MIB)));
            assert!(!reached.leads_to(later(1 << 30, 0)) && !reached.leads_to(later(0, 1 << 30)));
            assert!(!reached.leads_to(Reached(0)));
        }
        // Who knows nothing refuses nothing.
        for sequence in [0, 1 << 31, u32::MAX] {
            assert!(Reached(0).admits(Forward, sequence) && Reached(0).admits(Reply, sequence));
        }
        assert!(Reached(0).leads_to(Reached(7)));
    }

    /// Blind guesses: 1 of 31 hits (RFC 5961 section 3 leaves that to the end host).
    #[test]
    fn most_of_the_space_is_refused() {
        let reached = Reached::by(Forward, &packet(0x1000_0000, 0x9000_0000, tcp::ACK));
        let hits = (0..=u16::MAX).filter(|upper| reached.admits(Forward, u32::from(*upper) << 16)).count();
        assert_eq!(hits, 2064);
    }
}
