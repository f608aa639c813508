//! XDP's other program: begins flows, by the same code as the complete path. It takes what is usual and leaves the rest to
//! TC, with nothing changed: no packet, no table, no counter.

use crate::{
    abi::{NextHopState, Rule, Side, rule_flags},
    address::Address,
    complete::{next_hop, rewrite},
    decide::{is_hairpin, lets_in},
    fast::is_for_xdp,
    find::{Found, rule_of},
    mss,
    open_flow::open_flow,
    packet::Packet,
    parse::{Family, Parsed},
    tables::{At, Hop, Room, Tables},
    verdict::{Outcome, Verdict},
};

/// Begins the flow of a packet that [`crate::fast`] says may begin one, rewrites the packet and counts it.
#[inline(always)]
pub fn process<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    match begin::<F, T>(packet, tables, network) {
        Some(hop) => Verdict::transmit(hop),
        None => Verdict::of(Outcome::ToTc),
    }
}

#[inline(always)]
fn begin<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Option<Hop> {
    parse::<F, T>(packet, tables, network)?;
    let parsed = tables.kept()?;
    let rule = rule_of(tables, parsed, Side::Listen)?;
    if !is_usual(tables, parsed, rule) {
        return None;
    }
    let room = room(tables, parsed)?;
    let hop = next_hop(tables, parsed, &Found::New(rule));
    let resolved = hop.state == NextHopState::Resolved && is_for_xdp(&hop) && hop.line == 0;
    if !resolved || parsed.length > hop.mtu {
        return None;
    }
    if mss::announced(parsed)
        && rule.mss != mss::UNCHANGED
        && !mss::fits::<F, _>(packet, tables, parsed, hop.mtu, rule.mss)
    {
        return None;
    }
    let mut draft = tables.draft()?;
    draft.at = At::Xdp;
    draft.room = room;
    open_flow(tables, parsed, rule, &mut draft).ok()?;
    let decision = &draft.decision;
    // Every byte of it was read: XDP refuses none.
    rewrite::<F>(packet, network, parsed, &decision.rewrite)?;
    tables.count_forwarded(decision.counter, decision.direction, parsed.length);
    Some(hop)
}

/// Parses the packet into the tables' memory. Not inlined: a stack frame of its own.
#[inline(never)]
fn parse<F: Family, T: Tables<F::Address>>(packet: &impl Packet, tables: &T, network: usize) -> Option<()> {
    tables.keep(F::plain(packet, network).ok()?);
    Some(())
}

/// Whether a packet needs nothing of TC, whatever its way out. Not inlined: a stack frame of its own.
#[inline(never)]
fn is_usual<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, rule: &Rule<A>) -> bool {
    // The rules may have changed since the packet came.
    let keeps_flows = rule.flags & (rule_flags::STATELESS | rule_flags::SPARES_SOCKETS) == 0;
    let client = parsed.key.src;
    keeps_flows && parsed.hop_limit > 1 && !is_hairpin(rule, client) && lets_in(tables, rule, client)
}

/// Room for a flow that is not there already. Among the protected ones it is looked for last: another CPU enters it there
/// before it leaves the new ones.
#[inline(always)]
fn room<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> Option<Room> {
    let room = tables.embryonic_or_room(&parsed.key).err()?;
    tables.established(&parsed.key).is_none().then_some(room)
}

#[cfg(test)]
mod tests;
