//! Neighbour discovery (RFC 4861): solicitations, and the advertisements of a proxy.

use super::{Answerable, Discovery, Mac, Question, Resolution, is_station, link_header};
use crate::{
    address::{Address, V6, wire_bytes},
    checksum::{Delta, is_complete, pseudo_header},
    packet::Packet,
    parse::words,
    wire::{discovery, ethernet, icmp, ipv6, protocol},
};

/// Where the message starts: solicitations with extension headers are left alone.
const MESSAGE: usize = ethernet::LEN + ipv6::LEN;
/// Solicitations with longer lists of options are left alone; the usual ones have one option or, with a nonce (RFC 7527
/// section 4.1), two.
const MOST_OPTIONS: usize = 4;
/// The longest message with such a list of options as are in use, in bytes.
const LONGEST: usize = discovery::LEN + MOST_OPTIONS * 8;

/// The options of a message, as far as they matter.
struct Options {
    /// Whether the list is well-formed.
    valid: bool,
    /// Whether there is a source link-layer address.
    has_source: bool,
    source: Mac,
}

/// Reads the options from the message's fixed part to `end`.
#[inline(always)]
fn options(packet: &impl Packet, end: usize) -> Options {
    let mut found = Options { valid: true, has_source: false, source: [0; 6] };
    let mut at = MESSAGE + discovery::LEN;
    for _ in 0..MOST_OPTIONS {
        if at >= end {
            break;
        }
        // The mask is for the verifier, which then knows how far in that may be.
        let here = at & 0xff;
        let Some([kind, length]) = packet.read(here) else { return Options { valid: false, ..found } };
        // RFC 4861 section 7.1.1: all included options have a length that is greater than zero.
        if length == 0 {
            return Options { valid: false, ..found };
        }
        if kind == discovery::SOURCE_LINK_ADDRESS && !found.has_source {
            let Some(mac) = packet.read(here + 2).filter(|_| length == 1) else {
                return Options { valid: false, ..found };
            };
            found.has_source = true;
            found.source = mac;
        }
        at = here + length as usize * 8;
    }
    Options { valid: at == end, ..found }
}

#[inline(always)]
const fn is_multicast(address: V6) -> bool {
    let [a, ..] = address;
    a.to_ne_bytes()[0] == 0xff
}

/// ff02::1:ff00:0/104 (RFC 4291 section 2.7.1).
#[inline(always)]
const fn is_solicited_node(address: V6) -> bool {
    let [a, b, c, d] = address;
    a == 0xff02_0000_u32.to_be() && b == 0 && c == 1_u32.to_be() && d.to_ne_bytes()[0] == 0xff
}

const UNSPECIFIED: V6 = [0; 4];
const LOOPBACK: V6 = [0, 0, 0, 1_u32.to_be()];
/// ff02::1.
const ALL_NODES: V6 = [0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()];
/// The MAC address of that group (RFC 2464 section 7).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

impl Resolution for Discovery {
    type Address = V6;

    /// RFC 4861 section 7.1.1; and nothing for an address that is no host's, or that is of the link alone.
    #[inline(always)]
    fn read(packet: &impl Packet) -> Option<Question<V6>> {
        let [version, _, _, _, l0, l1, next_header, hop_limit] = packet.read(ethernet::LEN)?;
        let length = u16::from_be_bytes([l0, l1]) as usize;
        let [kind, code] = packet.read(MESSAGE)?;
        if version >> 4 != 6 || next_header != protocol::ICMPV6 || kind != icmp::NEIGHBOR_SOLICITATION {
            return None;
        }
        if hop_limit != discovery::HOP_LIMIT || code != 0 || !(discovery::LEN..=LONGEST).contains(&length) {
            return None;
        }
        let asker = words(packet.read(ethernet::LEN + ipv6::SOURCE)?);
        let to = words(packet.read(ethernet::LEN + ipv6::SOURCE + 16)?);
        let target = words(packet.read(MESSAGE + discovery::TARGET)?);
        if target.is_martian_source() || is_multicast(asker) || asker == LOOPBACK || asker == target {
            return None;
        }
        let options = options(packet, MESSAGE + length);
        if !options.valid {
            return None;
        }
        let mut mac: Mac = packet.read(6)?;
        if asker == UNSPECIFIED {
            if !is_solicited_node(to) || options.has_source {
                return None;
            }
            mac = ALL_NODES_MAC;
        } else {
            if !is_multicast(to) && to != target {
                return None;
            }
            if options.has_source {
                mac = options.source;
            }
            if !is_station(mac) {
                return None;
            }
        }
        // Last, since it is what costs most.
        let sum = packet.sum(MESSAGE, length)?.and(pseudo_header(asker, to, length as u32, protocol::ICMPV6));
        is_complete(sum).then_some(Question { target, asker, mac })
    }

    /// RFC 4861 section 7.2.4: to who asks, solicited; to who is about to take the address, to all nodes, not solicited. As
    /// section 7.2.8 has it for a proxy: without the Override flag, so that whoever has the address on this link goes
    /// before us. Without the Router flag: nothing is known of that, and the kernel's proxy does not set it either.
    #[inline(always)]
    fn answer(packet: &mut impl Answerable, question: &Question<V6>, mac: Mac, ours: V6) -> Option<()> {
        const LENGTH: u16 = (discovery::LEN + 8) as u16;
        packet.resize(MESSAGE + LENGTH as usize)?;
        let solicited = question.asker != UNSPECIFIED;
        let (to, flags) = if solicited { (question.asker, discovery::SOLICITED) } else { (ALL_NODES, 0) };
        let [l0, l1] = LENGTH.to_be_bytes();
        let [m0, m1, m2, m3, m4, m5] = mac;
        let word = |high, low| Delta(u16::from_ne_bytes([high, low]));
        let sum = pseudo_header(ours, to, LENGTH.into(), protocol::ICMPV6)
            .and(word(icmp::NEIGHBOR_ADVERTISEMENT, 0))
            .and(word(flags, 0))
            .and(Delta::sum(question.target))
            .and(word(discovery::TARGET_LINK_ADDRESS, 1))
            .and(word(m0, m1))
            .and(word(m2, m3))
            .and(word(m4, m5));
        let [c0, c1] = sum.checksum().to_ne_bytes();
        packet.write(0, link_header(question.mac, mac, ethernet::IPV6))?;
        packet.write(ethernet::LEN, [0x60, 0, 0, 0, l0, l1, protocol::ICMPV6, discovery::HOP_LIMIT])?;
        packet.write(ethernet::LEN + ipv6::SOURCE, wire_bytes(ours))?;
        packet.write(ethernet::LEN + ipv6::SOURCE + 16, wire_bytes(to))?;
        packet.write(MESSAGE, [icmp::NEIGHBOR_ADVERTISEMENT, 0, c0, c1, flags, 0, 0, 0])?;
        packet.write(MESSAGE + discovery::TARGET, wire_bytes(question.target))?;
        packet.write(MESSAGE + discovery::LEN, [discovery::TARGET_LINK_ADDRESS, 1, m0, m1, m2, m3, m4, m5])
    }

    /// A packet with nothing in it (RFC 8200 section 4.7), for the next station and for nobody beyond. To ourselves as far
    /// as the link goes: the kernel's neighbour code writes another link header.
    #[inline(always)]
    fn probe(packet: &mut impl Answerable, mac: Mac, ours: V6, target: V6) -> Option<()> {
        packet.resize(MESSAGE)?;
        packet.write(0, link_header(mac, mac, ethernet::IPV6))?;
        packet.write(ethernet::LEN, [0x60, 0, 0, 0, 0, 0, ipv6::NO_NEXT_HEADER, 1])?;
        packet.write(ethernet::LEN + ipv6::SOURCE, wire_bytes(ours))?;
        packet.write(ethernet::LEN + ipv6::SOURCE + 16, wire_bytes(target))
    }
}
