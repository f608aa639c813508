//! TCP's maximum segment size (RFC 9293 section 3.7.1), made to fit the way in both directions.
//!
//! An end announces the largest segment it takes by its own link's MTU. It knows nothing of a narrower link further
//! on, such as a tunnel, and of what that link sends back when a packet does not fit, nothing may come through. So the
//! option of SYN and SYN-ACK is lowered to what both the way out and the way back take, as by netfilter's
//! `TCPMSS --clamp-mss-to-pmtu`. It is never raised, and never added.

use crate::{
    checksum::Delta,
    packet::{ChecksumChange, Packet},
    parse::{Family, Parsed},
    tables::Tables,
    wire::tcp,
};

/// Of a rule or flow: the option stays as it is.
pub const UNCHANGED: u16 = 0;
/// Of a rule or flow: only the MTUs limit the option. Any other number limits it as well.
pub const BY_MTU: u16 = u16::MAX;

/// A list of options has at most 40 bytes, and each option at least one.
const MOST_OPTIONS: usize = 40;

/// Whether a packet is one that announces a segment size: SYN or SYN-ACK.
#[inline(always)]
pub const fn announced<A>(parsed: &Parsed<A>) -> bool {
    parsed.tcp.flags & tcp::SYN != 0
}

/// The largest segment size that fits the way out, whose MTU is `out`, and the way back to the packet's source, and is
/// at most `most`. [`BY_MTU`] where no MTU leaves room for a segment.
#[inline(always)]
pub fn limit<F: Family, T: Tables<F::Address>>(tables: &T, parsed: &Parsed<F::Address>, out: u32, most: u16) -> u16 {
    let back = tables.mtu(parsed.key.dst, parsed.key.src);
    let mtu = if back < out { back } else { out };
    let headers = (F::HEADER + tcp::LEN) as u32;
    if mtu <= headers {
        return BY_MTU;
    }
    let fits = mtu - headers;
    if fits < u32::from(most) { fits as u16 } else { most }
}

/// Whether a packet of the common shape needs no change: it announces nothing, or first of all what fits, as about
/// every SYN does. For XDP, which leaves the others to TC.
///
/// Not inlined: a stack frame of its own, which only SYNs pay for.
#[inline(never)]
pub fn fits<F: Family, T: Tables<F::Address>>(
    packet: &impl Packet,
    tables: &T,
    parsed: &Parsed<F::Address>,
    out: u32,
    most: u16,
) -> bool {
    let at = parsed.transport_at();
    let Some([words]) = packet.read(at + tcp::DATA_OFFSET) else { return false };
    if usize::from(words >> 4) * 4 == tcp::LEN {
        return true;
    }
    // Bytes by a word: the compiler may look at bytes before it knows that they are there, which the verifier refuses.
    let Some(option) = packet.read(at + tcp::LEN) else { return false };
    let option = u32::from_be_bytes(option);
    let is_mss = option >> 16 == u32::from_be_bytes([0, 0, tcp::OPTION_MSS, tcp::OPTION_MSS_LEN]);
    is_mss && option as u16 <= limit::<F, _>(tables, parsed, out, most)
}

/// Lowers the segment size that a packet announces to what [`limit`] says, whatever else it holds. Options that are malformed
/// before it comes are left alone: what the receiver makes of them is anybody's guess.
///
/// Not inlined: a stack frame of its own, which only SYNs pay for.
#[inline(never)]
pub fn clamp<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    parsed: &Parsed<F::Address>,
    &(out, most): &(u32, u16),
) {
    let limit = limit::<F, _>(tables, parsed, out, most);
    packet.lower_segment_size(parsed.transport_at(), network + parsed.length as usize, limit);
}

/// As [`clamp`], to what fits an MTU and is at most `most`, of a packet that nobody translates and that ends at `end`; if it
/// announces anything.
#[inline(always)]
pub fn clamp_to<F: Family>(packet: &mut impl Packet, at: usize, end: usize, &(mtu, most): &(u32, u16)) {
    let Some([flags]) = packet.read(at + tcp::FLAGS) else { return };
    let headers = (F::HEADER + tcp::LEN) as u32;
    if most == UNCHANGED || flags & tcp::SYN == 0 || mtu <= headers {
        return;
    }
    let fits = mtu - headers;
    packet.lower_segment_size(at, end, if fits < u32::from(most) { fits as u16 } else { most });
}

/// Lowers the segment size in the TCP header at `at` to `limit`; the packet ends at `last`.
#[inline(always)]
pub fn lower_to(packet: &mut impl Packet, at: usize, last: usize, limit: u16) {
    let Some([words]) = packet.read(at + tcp::DATA_OFFSET) else { return };
    let end = at + usize::from(words >> 4) * 4;
    if end > last {
        return;
    }
    let value = find(packet, at, end - at);
    if value != 0 {
        // Too short a packet would have been noticed; there is nothing to undo.
        let _ = lower(packet, at, value, limit);
    }
}

/// The largest offset within a TCP header.
const OPTIONS_MASK: usize = 0x3f;

/// Where the TCP header at `transport`, which is `length` bytes long, has the value of its MSS option, from its start;
/// 0 if it has none, or if the list of options is malformed before it.
#[inline(always)]
fn find(packet: &impl Packet, transport: usize, length: usize) -> usize {
    let mut at = tcp::LEN;
    for _ in 0..MOST_OPTIONS {
        if at >= length {
            break;
        }
        let Some([kind]) = packet.read(transport + at) else { break };
        if kind == tcp::OPTION_END {
            break;
        }
        if kind == tcp::OPTION_NOTHING {
            at = (at + 1) & OPTIONS_MASK;
            continue;
        }
        let Some([size]) = packet.read(transport + at + 1) else { break };
        let next = at + usize::from(size);
        if size < 2 || next > length {
            break;
        }
        if kind == tcp::OPTION_MSS {
            return if size == tcp::OPTION_MSS_LEN { at + 2 } else { 0 };
        }
        at = next & OPTIONS_MASK;
    }
    0
}

/// Writes `limit` at `value` of the TCP header at `transport`, if it is lower than what is there.
#[inline(always)]
fn lower(packet: &mut impl Packet, transport: usize, value: usize, limit: u16) -> Option<()> {
    let [m0, m1] = packet.read(transport + value)?;
    if u16::from_be_bytes([m0, m1]) <= limit {
        return Some(());
    }
    let [n0, n1] = limit.to_be_bytes();
    // At an odd offset each byte is the other half of its word (RFC 1071 section 2B).
    let change = if value.is_multiple_of(2) {
        Delta::word(u16::from_ne_bytes([m0, m1]), u16::from_ne_bytes([n0, n1]))
    } else {
        Delta::word(u16::from_ne_bytes([m1, m0]), u16::from_ne_bytes([n1, n0]))
    };
    packet.change_checksum(ChecksumChange {
        offset: transport + tcp::CHECKSUM,
        pseudo_header: Delta::NONE,
        transport: change,
        zero_is_none: false,
    })?;
    packet.write(transport + value, [n0, n1])
}

#[cfg(test)]
mod tests;
