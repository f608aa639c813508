//! Carries a decision out on the bytes: network header, ports, checksums. The link header is the hook's business.

use crate::{
    abi::Rewrite,
    checksum::Delta,
    packet::{ChecksumChange, Packet, word_of},
    parse::{Family, Parsed, Transport},
    wire::{icmp, tcp, udp},
};

/// Rewrites `packet`, whose transport header is at `transport`, as decided. `None` means that it is unchanged.
///
/// All-or-nothing: the parser has read every byte that is written here, and the one step that a hook may still
/// refuse, the transport checksum, comes first.
#[inline(always)]
#[must_use]
pub fn apply<F: Family>(
    packet: &mut impl Packet,
    (network, transport): (usize, usize),
    parsed: &Parsed<F::Address>,
    rewrite: &Rewrite<F::Address>,
) -> Option<()> {
    let addresses = Delta(rewrite.address_delta);
    let ports = Delta(rewrite.port_delta);
    let ports_of = [word_of([rewrite.src_port, rewrite.dst_port])];
    let change = |checksum, zero_is_none| ChecksumChange {
        offset: transport + checksum,
        pseudo_header: addresses,
        transport: ports,
        zero_is_none,
    };
    match parsed.transport {
        Transport::Udp => {
            packet.change_checksum(change(udp::CHECKSUM, parsed.zero_is_no_checksum()))?;
            packet.set_words(transport, ports_of)?;
        }
        Transport::Tcp => {
            packet.change_checksum(change(tcp::CHECKSUM, false))?;
            packet.set_words(transport, ports_of)?;
        }
        Transport::EchoRequest | Transport::EchoReply => {
            let pseudo_header = if F::ECHO_HAS_PSEUDO_HEADER { addresses } else { Delta::NONE };
            packet.change_checksum(ChecksumChange { pseudo_header, ..change(icmp::CHECKSUM, false) })?;
            let identifier = match parsed.transport {
                Transport::EchoRequest => rewrite.src_port,
                _ => rewrite.dst_port,
            };
            packet.write(transport + icmp::IDENTIFIER, identifier.to_ne_bytes())?;
        }
        Transport::Sctp | Transport::Icmp | Transport::Other => {}
    }
    F::rewrite(packet, network, rewrite)
}

#[cfg(test)]
mod tests;
