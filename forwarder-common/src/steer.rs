//! `[[steer]]`: a packet leaves by the line that its source belongs to, whoever sent it and wherever routing would send it.
//!
//! Which line that is, is part of where the way out comes from ([`line`], asked by [`Tables::next_hop`]), so that what rules
//! translate is steered without a word more. What nobody translates comes here: [`forward`] for what arrives, [`leave`]
//! for what the machine itself sends.

use crate::{
    abi::{Direction, NextHopState, RangeKey, Rewrite, RuleRef, Settings, next_hop_flags, setting_flags},
    address::Address,
    complete::on_the_wire,
    mss,
    packet::Packet,
    parse::{Family, LAST_OFFSET},
    tables::{Ends, Event, Hop, Tables},
    verdict::{Outcome, Verdict},
    wire::{ethernet, protocol, tcp},
};

/// What of a packet's protocol and source port (network order) its way depends on: [`Ends::kind`].
#[inline(always)]
pub const fn kind(settings: &Settings, protocol: u8, src_port: u16) -> u32 {
    if settings.flags & setting_flags::STEER_BY_KIND == 0 {
        return 0;
    }
    (protocol as u32) << 8 | (src_port as u32) << 16
}

/// The line that packets leave by, as the slot of its rule; 0 where routing decides.
///
/// What is directly connected needs no line: the machine's own networks, itself, broadcast and multicast.
#[inline(always)]
pub fn line<A: Address, T: Tables<A>>(tables: &T, src: &A, dst: &A, kind: u32) -> u32 {
    let mut line = by_source(tables, src, 0);
    if kind != 0 {
        line = longer(tables, line, by_source(tables, src, kind & 0xffff));
        if kind >> 16 != 0 {
            line = longer(tables, line, by_source(tables, src, kind));
        }
    }
    if line != 0 && is_on_link(tables, dst) { 0 } else { line }
}

/// Of two lines for the same source, that of the longer prefix; where they are equally long, the second, which says more
/// about the packet.
#[inline(always)]
fn longer<A: Address, T: Tables<A>>(tables: &T, one: u32, other: u32) -> u32 {
    if one == 0 || other == 0 {
        return one | other;
    }
    match (tables.rule(one), tables.rule(other)) {
        // Of two prefixes of one address, the longer mask has every bit of the other.
        (Some(first), Some(second)) if !first.mask.shares(first.mask, second.mask) => one,
        _ => other,
    }
}

/// Not inlined: a stack frame of its own.
#[inline(never)]
fn by_source<A: Address, T: Tables<A>>(tables: &T, src: &A, kind: u32) -> u32 {
    in_force(tables, tables.range(&RangeKey::steered(kind, *src)))
}

/// Not inlined: a stack frame of its own.
#[inline(never)]
fn is_on_link<A: Address, T: Tables<A>>(tables: &T, dst: &A) -> bool {
    in_force(tables, tables.range(&RangeKey::on_link(*dst))) != 0
}

#[inline(always)]
fn in_force<A, T: Tables<A>>(tables: &T, reference: Option<RuleRef>) -> u32 {
    reference.and_then(|reference| reference.slot(tables.generation())).unwrap_or(0)
}

/// Whether what the steps before left of a packet, as this outcome, may be on its way through this machine.
#[inline(always)]
pub const fn may_forward(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::NotOurs | Outcome::Untranslatable | Outcome::Fragment | Outcome::IcmpOther | Outcome::IcmpStray
    )
}

/// What a packet's way depends on, read without caring for what follows the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressed<A> {
    /// Network order.
    pub src: A,
    /// Network order.
    pub dst: A,
    /// The protocol that follows the network header, extension headers not stepped over.
    pub protocol: u8,
    /// Its source port, network order; 0 where it has none or is not in this fragment.
    pub src_port: u16,
    /// Where what follows the network header starts.
    pub transport_offset: usize,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Length of the IP packet by its own header, in bytes.
    pub length: u32,
}

impl<A> Addressed<A> {
    /// Where what follows the network header starts, as the verifier sees it.
    #[inline(always)]
    const fn transport_at(&self) -> usize {
        self.transport_offset & LAST_OFFSET
    }
}

/// A packet that arrived and that nobody translates: if its source belongs to a line and it is not for this machine, it
/// leaves by that line. `passed` is what becomes of every other.
#[inline(always)]
pub fn forward<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    passed: Outcome,
) -> Verdict {
    let Some(addressed) = F::addressed(packet, network) else { return Verdict::of(passed) };
    if matches!(passed, Outcome::NotOurs) && addressed.protocol == protocol::TCP {
        fit_segments_of_answers::<F, T>(packet, tables, network, &addressed);
    }
    let hop = way_out(tables, &addressed);
    if hop.line == 0 {
        return Verdict::of(passed);
    }
    // A source that this machine would reach by another interface than the packet came in by is forged (RFC 2827, RFC
    // 3704 section 2.2); one that came in by its own line has been there already.
    let back = Ends { src: addressed.dst, dst: addressed.src, kind: 0 };
    if hop.interface == tables.ingress() || tables.way(&back).interface != tables.ingress() {
        return Verdict::of(passed);
    }
    if !leads_out(&hop) {
        return go_nowhere(tables, &hop);
    }
    // The kernel tells the sender.
    if addressed.hop_limit <= 1 {
        return Verdict::of(passed);
    }
    if on_the_wire(packet, network, addressed.transport_offset, addressed.protocol, addressed.length) > hop.mtu {
        return Verdict::of(Outcome::DropTooBig);
    }
    let unchanged = Rewrite { src: addressed.src, dst: addressed.dst, ..Rewrite::default() };
    if F::rewrite(packet, network, &unchanged).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    fit_segments::<F, T>(packet, tables, network, &addressed, &hop);
    Verdict::forward(hop)
}

/// A packet that the machine itself sends, on its way out of `interface`: if its source belongs to another line, or to
/// another router of this one, it goes there.
#[inline(always)]
pub fn leave<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    interface: u32,
) -> Verdict {
    let Some(addressed) = F::addressed(packet, network) else { return Verdict::of(Outcome::NotOurs) };
    let hop = way_out(tables, &addressed);
    if hop.line == 0 {
        return Verdict::of(Outcome::NotOurs);
    }
    if !leads_out(&hop) {
        return go_nowhere(tables, &hop);
    }
    fit_segments::<F, T>(packet, tables, network, &addressed, &hop);
    if hop.interface == interface && is_addressed_to(packet, network, &hop) {
        count(tables, &hop, Direction::Reply, addressed.length);
        return Verdict::of(Outcome::NotOurs);
    }
    if on_the_wire(packet, network, addressed.transport_offset, addressed.protocol, addressed.length) > hop.mtu {
        return Verdict::refused(Outcome::DropTooBig, hop);
    }
    count(tables, &hop, Direction::Reply, addressed.length);
    Verdict::neighbour(hop)
}

/// The way out of a packet, by the line that its source belongs to or by routing.
#[inline(always)]
fn way_out<A: Address, T: Tables<A>>(tables: &T, addressed: &Addressed<A>) -> Hop {
    let kind = kind(tables.settings(), addressed.protocol, addressed.src_port);
    tables.next_hop(&Ends { src: addressed.src, dst: addressed.dst, kind })
}

/// Lowers the segment size that a SYN or SYN-ACK announces to what its line takes: what the line's other end would send could
/// not come through either, as a rule.
#[inline(always)]
fn fit_segments<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    addressed: &Addressed<F::Address>,
    hop: &Hop,
) {
    if addressed.protocol != protocol::TCP {
        return;
    }
    let most = tables.rule(hop.line).map_or(mss::UNCHANGED, |rule| rule.mss);
    let end = network + addressed.length as usize;
    mss::clamp_to::<F>(packet, addressed.transport_at(), end, &(hop.mtu, most));
}

/// The same for what is answered by a line, perhaps by this machine itself: the kernel would fit it to the way that it
/// thinks its answers take.
#[inline(always)]
fn fit_segments_of_answers<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    addressed: &Addressed<F::Address>,
) {
    let Some([p0, p1, flags]) = answers_to(packet, addressed.transport_at()) else { return };
    if flags & tcp::SYN == 0 {
        return;
    }
    let kind = kind(tables.settings(), protocol::TCP, u16::from_ne_bytes([p0, p1]));
    let hop = tables.next_hop(&Ends { src: addressed.dst, dst: addressed.src, kind });
    if hop.line != 0 && leads_out(&hop) {
        fit_segments::<F, T>(packet, tables, network, addressed, &hop);
    }
}

/// The destination port of a TCP segment as it is there, and its flags.
#[inline(always)]
fn answers_to(packet: &impl Packet, transport: usize) -> Option<[u8; 3]> {
    let [p0, p1] = packet.read(transport + 2)?;
    let [flags] = packet.read(transport + tcp::FLAGS)?;
    Some([p0, p1, flags])
}

const fn leads_out(hop: &Hop) -> bool {
    matches!(hop.state, NextHopState::Resolved | NextHopState::Unresolved)
}

/// The line is down. By another it would go out with an address that is not of it, and that nobody answers.
#[inline(always)]
fn go_nowhere<A: Address, T: Tables<A>>(tables: &T, hop: &Hop) -> Verdict {
    if let Some(rule) = tables.rule(hop.line) {
        tables.count(rule.counter, Event::Denied);
    }
    Verdict::of(Outcome::DropLineDown)
}

/// Whether the frame has the next hop's link address already.
#[inline(always)]
fn is_addressed_to(packet: &impl Packet, network: usize, hop: &Hop) -> bool {
    if network == 0 || hop.flags & next_hop_flags::NO_LINK_HEADER != 0 {
        return true;
    }
    let [d0, d1, d2, d3, d4, d5, ..] = hop.link_addresses;
    packet.read::<{ ethernet::LEN }>(0).is_some_and(|[f0, f1, f2, f3, f4, f5, ..]| {
        // An unresolved router has no address yet; the kernel asks for it.
        hop.state == NextHopState::Resolved && [f0, f1, f2, f3, f4, f5] == [d0, d1, d2, d3, d4, d5]
    })
}

/// Counts a packet that leaves by a line, for the rule whose line it is.
#[inline(always)]
pub fn count<A: Address, T: Tables<A>>(tables: &T, hop: &Hop, direction: Direction, bytes: u32) {
    if let Some(rule) = tables.rule(hop.line) {
        tables.count_forwarded(rule.counter, direction, bytes);
    }
}

#[cfg(test)]
mod tests;
