//! IPv4 options, as far as forwarding cares: whether the kernel would let such a packet pass.

use crate::{
    checksum::halves,
    packet::Packet,
    wire::ipv4::{self, option},
};

/// The most bytes of options that a header can have: its length field counts to 15 words.
const MOST: usize = 60 - ipv4::LEN;

/// Where the scan is, between two bytes.
struct Scan {
    /// Bytes of the current option that are still to come.
    rest: usize,
    /// The next byte is the length of an option.
    at_length: bool,
    /// The list has ended (RFC 791 section 3.1, option 0): padding follows.
    ended: bool,
    /// Not to be forwarded.
    refused: bool,
}

impl Scan {
    #[inline(always)]
    const fn step(&mut self, byte: u8, bytes_left: usize) {
        if self.ended {
            return;
        }
        if self.at_length {
            self.at_length = false;
            let length = byte as usize;
            // The length counts the two bytes up to here.
            if length < 2 || length - 2 > bytes_left {
                self.refused = true;
                self.ended = true;
                return;
            }
            self.rest = length - 2;
        } else if self.rest > 0 {
            self.rest -= 1;
        } else {
            match byte {
                option::END => self.ended = true,
                option::NO_OPERATION => {}
                // Hosts that are no source routers do not follow them (RFC 7126 section 4.3): the kernel's decision.
                option::LOOSE_SOURCE_ROUTE | option::STRICT_SOURCE_ROUTE => {
                    self.refused = true;
                    self.ended = true;
                }
                _ if bytes_left == 0 => {
                    self.refused = true;
                    self.ended = true;
                }
                _ => self.at_length = true,
            }
        }
    }
}

/// The sum of the options' words, for the header checksum, if the options of a header of `header_length` bytes at
/// `network` are a well-formed list (RFC 791 section 3.1) without a source route.
#[inline(always)]
pub(super) fn forwardable(packet: &impl Packet, network: usize, header_length: usize) -> Option<u32> {
    let length = header_length - ipv4::LEN;
    let mut sum = 0;
    let mut scan = Scan { rest: 0, at_length: false, ended: false, refused: false };
    for word in 0..MOST / 4 {
        let at = word * 4;
        if at >= length {
            break;
        }
        let bytes = packet.read::<4>(network + ipv4::LEN + at)?;
        sum += halves(u32::from_ne_bytes(bytes));
        for (n, byte) in bytes.into_iter().enumerate() {
            scan.step(byte, length - at - n - 1);
        }
    }
    (!scan.refused).then_some(sum)
}

#[cfg(test)]
mod tests;
