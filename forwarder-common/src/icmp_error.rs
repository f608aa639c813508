//! ICMP errors about packets that were forwarded: the error and the packet inside it become what the receiver knows.
//!
//! An error embeds the beginning of the packet it is about, as that packet arrived where it failed: after translation.
//! A reply to it would be looked up with its ends swapped, so that key finds what undoes the translation. What would
//! make that reply one to the original packet makes the embedded packet the original one, with source and destination
//! in each other's place, and leads the error to the original sender.
//!
//! ```text
//!   client ── listen │ our source ── backend            an error of the backend about the client's packet:
//!                                                        outer  backend → our source    becomes  listen → client
//!                                                        inner  our source → backend    becomes  client → listen
//! ```
//!
//! RFC 5508 section 4 says what a NAT does with ICMP errors; where it leaves room, and for IPv6, this does what
//! netfilter does (`nf_conntrack_inet_error`, `nf_nat_icmp_reply_translation`). Nothing here begins, refreshes, advances or ends a
//! flow: an error is easily forged (RFC 5508 REQ-6, RFC 5927).

mod embedded;
mod related;

pub use embedded::Embeds;

use crate::{
    abi::{NextHopState, Rewrite},
    address::Address,
    checksum::{Delta, is_complete, pseudo_header},
    packet::{ChecksumChange, Packet},
    parse::{Parsed, Transport},
    tables::{Draft, Embedded, Ends, Hop, Tables},
    verdict::{Outcome, Verdict},
    wire::{icmp, protocol, tcp, udp},
};

/// Decides a packet for which [`crate::complete::process`] said [`Outcome::IcmpOther`], and which it kept. If it is an
/// error about something forwarded, it is translated. Changes nothing that it passes.
#[inline(always)]
pub fn process<F: Embeds, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let Some(error) = tables.kept() else { return Verdict::of(Outcome::DropError) };
    let at = error.transport_at();
    let Some([kind]) = packet.read(at) else { return Verdict::of(Outcome::Malformed) };
    if !matches!(error.transport, Transport::Icmp) || !F::is_error(kind) {
        return Verdict::of(Outcome::IcmpOther);
    }
    let Some(mut draft) = tables.draft() else { return Verdict::of(Outcome::DropError) };
    let draft = &mut *draft;
    if let Err(outcome) = read_embedded::<F>(packet, network, error, &mut draft.embedded) {
        return Verdict::of(outcome);
    }
    // As netfilter: an error goes to where the embedded packet came from, or it is forged.
    if draft.embedded.answer.key.dst != error.key.dst {
        return Verdict::of(Outcome::IcmpStray);
    }
    if let Err(outcome) = related::find(tables, &draft.embedded.answer, &mut draft.decision) {
        return Verdict::of(outcome);
    }
    // RFC 5508 REQ-3: not before the checksum is known to be right. Last, since it is what costs most.
    if !is_intact::<F>(packet, network, error) {
        return Verdict::of(Outcome::IcmpBadChecksum);
    }
    if kind == F::REDIRECT {
        return Verdict::of(Outcome::DropRedirect);
    }
    readdress(error, draft);
    let hop = next_hop(tables, &draft.embedded.outer);
    match hop.state {
        NextHopState::Resolved | NextHopState::Unresolved => {}
        NextHopState::Local => return Verdict::of(Outcome::ToSelf),
        _ => return Verdict::of(hop.missing()),
    }
    if error.hop_limit <= 1 {
        return Verdict::of(Outcome::DropTtl);
    }
    if error.length > hop.mtu {
        return Verdict::of(Outcome::DropTooBig);
    }
    if translate::<F>(packet, network, error, draft).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    tables.count_forwarded(draft.decision.counter, draft.decision.direction, error.length);
    Verdict::forward(hop)
}

/// What the embedded packet is. Not inlined: a stack frame of its own.
#[inline(never)]
fn read_embedded<F: Embeds>(
    packet: &impl Packet,
    network: usize,
    error: &Parsed<F::Address>,
    embedded: &mut Embedded<F::Address>,
) -> Result<(), Outcome> {
    embedded.answer = F::answer(packet, error.transport_at() + icmp::LEN, network + error.length as usize)?;
    Ok(())
}

/// Whether the checksum of the whole message is right. Not inlined: a stack frame of its own.
#[inline(never)]
fn is_intact<F: Embeds>(packet: &impl Packet, network: usize, error: &Parsed<F::Address>) -> bool {
    let at = error.transport_at();
    let Some(length) = (network + error.length as usize).checked_sub(at) else { return false };
    let Some(sum) = packet.sum(at, length) else { return false };
    if !F::ECHO_HAS_PSEUDO_HEADER {
        return is_complete(sum);
    }
    is_complete(sum.and(pseudo_header(error.key.src, error.key.dst, length as u32, protocol::ICMPV6)))
}

/// The outer addresses of the error after translation. Not inlined: a stack frame of its own.
#[inline(never)]
fn readdress<A: Address>(error: &Parsed<A>, draft: &mut Draft<A>) {
    let rewrite = &draft.decision.rewrite;
    let outer = &mut draft.embedded.outer;
    // RFC 5508 REQ-4 and REQ-5: to the source of the embedded packet. From the address that the receiver knows instead
    // of the backend's or the client's, even if a router on the way sent it: what the receiver's side knows of those
    // routers is as little as of whom they route for. Where nothing is hidden, the router's own address stays.
    let src = if rewrite.src == draft.embedded.answer.key.src { error.key.src } else { rewrite.src };
    outer.src = src;
    outer.dst = rewrite.dst;
    outer.address_delta = Delta::address(error.key.src, src).and(Delta::address(error.key.dst, rewrite.dst)).0;
}

/// Where the error goes after the rewrite. Not inlined: a stack frame of its own.
#[inline(never)]
fn next_hop<A: Address, T: Tables<A>>(tables: &T, outer: &Rewrite<A>) -> Hop {
    tables.next_hop(&Ends { src: outer.src, dst: outer.dst, kind: 0 })
}

/// Rewrites the error and the packet inside it. `None` means that it is unchanged: the one step that a hook may refuse,
/// the checksum, comes first, and everything that is written has been read before.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn translate<F: Embeds>(
    packet: &mut impl Packet,
    network: usize,
    error: &Parsed<F::Address>,
    draft: &Draft<F::Address>,
) -> Option<()> {
    let (answer, outer, rewrite) = (&draft.embedded.answer, &draft.embedded.outer, &draft.decision.rewrite);
    let inner_network = error.transport_at() + icmp::LEN;
    let inner = answer.transport_at();
    let addresses = Delta(rewrite.address_delta);
    let header = F::embedded_header_change(packet, inner_network, addresses)?;
    let (checksum, ports) = match answer.transport {
        Transport::Tcp => (tcp::CHECKSUM, Delta(rewrite.port_delta)),
        Transport::Udp => (udp::CHECKSUM, Delta(rewrite.port_delta)),
        Transport::EchoRequest | Transport::EchoReply => (icmp::CHECKSUM, Delta(rewrite.port_delta)),
        Transport::Sctp | Transport::Icmp | Transport::Other => (0, Delta::NONE),
    };
    // The message may end before TCP's checksum: RFC 792 promises no more than eight bytes.
    let has_checksum = checksum != 0 && inner + checksum + 2 <= network + error.length as usize;
    let mut change = header.and(ports);
    let mut changed = 0;
    if has_checksum {
        let field = u16::from_ne_bytes(packet.read(inner + checksum)?);
        let is_echo = matches!(answer.transport, Transport::EchoRequest | Transport::EchoReply);
        let covered = if is_echo && !F::ECHO_HAS_PSEUDO_HEADER { ports } else { addresses.and(ports) };
        changed = if answer.zero_is_no_checksum() { covered.apply_udp(field) } else { covered.apply(field) };
        change = change.and(Delta::word(field, changed));
    }
    let pseudo_header = if F::ECHO_HAS_PSEUDO_HEADER { Delta(outer.address_delta) } else { Delta::NONE };
    let offset = error.transport_at() + icmp::CHECKSUM;
    packet.change_checksum(ChecksumChange { offset, pseudo_header, transport: change, zero_is_none: false })?;
    if has_checksum {
        packet.write(inner + checksum, changed.to_ne_bytes())?;
    }
    let [s0, s1] = rewrite.dst_port.to_ne_bytes();
    let [d0, d1] = rewrite.src_port.to_ne_bytes();
    match answer.transport {
        Transport::Tcp | Transport::Udp => packet.write(inner, [s0, s1, d0, d1])?,
        Transport::EchoRequest => packet.write(inner + icmp::IDENTIFIER, [d0, d1])?,
        Transport::EchoReply => packet.write(inner + icmp::IDENTIFIER, [s0, s1])?,
        Transport::Sctp | Transport::Icmp | Transport::Other => {}
    }
    F::readdress_embedded(packet, inner_network, rewrite)?;
    F::rewrite(packet, network, outer)
}

#[cfg(test)]
mod tests;
