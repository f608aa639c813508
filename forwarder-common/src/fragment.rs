//! Fragments. The first of a datagram has the transport header, and is treated like a packet ([`crate::complete`]); what
//! became of it is noted. The others have neither ports nor checksum: they go the same way, with other addresses.

use crate::{
    abi::{Datagram, Direction, Fate, NextHopState, Rewrite, Ticks, elapsed, ticks_from_millis},
    address::Address,
    decide::Decision,
    packet::Packet,
    parse::{Family, Parsed},
    tables::{Hop, Tables},
    verdict::{Kind, Outcome, Verdict},
};

/// How long after its first fragment others of a datagram are expected: as long as a receiver waits (RFC 8200 section
/// 4.5: 60 seconds; RFC 1122 section 3.3.2: 60 to 120 seconds).
const LIFETIME: Ticks = ticks_from_millis(60_000);

/// Notes that a first fragment is forwarded as decided. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn goes<F: Family, T: Tables<F::Address>>(
    tables: &T,
    first: &Parsed<F::Address>,
    decision: &Decision<F::Address>,
) {
    let Decision { rewrite, counter, direction } = *decision;
    let datagram = Datagram {
        rewrite,
        since: tables.now(),
        counter,
        direction: direction as u8,
        fate: Fate::Forward as u8,
        zero: 0,
    };
    tables.note_datagram(&F::datagram(first), &datagram);
}

/// Notes that a first fragment is passed or dropped. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn stays<F: Family, T: Tables<F::Address>>(tables: &T, first: &Parsed<F::Address>, outcome: Outcome) {
    let fate = if outcome.kind() == Kind::Drop { Fate::Drop } else { Fate::Pass };
    let key = F::datagram(first);
    // Without a note its fragments pass anyway, unless an older datagram of the same name has left one.
    if fate == Fate::Pass && tables.datagram(&key).is_none() {
        return;
    }
    let datagram = Datagram {
        rewrite: Rewrite::default(),
        since: tables.now(),
        counter: 0,
        direction: 0,
        fate: fate as u8,
        zero: 0,
    };
    tables.note_datagram(&key, &datagram);
}

/// Decides a fragment without a readable transport header, and rewrites it if it is to be forwarded.
#[inline(always)]
pub fn later<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let Some(mut draft) = tables.draft() else { return Verdict::of(Outcome::DropError) };
    let known = recall::<F, T>(packet, tables, network, &mut draft.decision);
    if known.outcome.kind() != Kind::Forward {
        return Verdict::of(known.outcome);
    }
    let decision = &draft.decision;
    let hop = next_hop(tables, decision);
    if !matches!(hop.state, NextHopState::Resolved | NextHopState::Unresolved) {
        return Verdict::of(Outcome::DropNoRoute);
    }
    if known.hop_limit <= 1 {
        return Verdict::of(Outcome::DropTtl);
    }
    if known.length > hop.mtu {
        return Verdict::of(Outcome::DropTooBig);
    }
    if F::rewrite(packet, network, &decision.rewrite).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    tables.count_forwarded(decision.counter, decision.direction, known.length);
    Verdict::forward(hop)
}

/// What is known of a fragment when its datagram has been looked up.
struct Known {
    /// [`Outcome::Forwarded`], or why not.
    outcome: Outcome,
    hop_limit: u8,
    length: u32,
}

/// Reads a fragment, and decides as its first fragment was decided. Not inlined: a stack frame of its own.
#[inline(never)]
fn recall<F: Family, T: Tables<F::Address>>(
    packet: &impl Packet,
    tables: &T,
    network: usize,
    decision: &mut Decision<F::Address>,
) -> Known {
    let left = |outcome| Known { outcome, hop_limit: 0, length: 0 };
    let fragment = match F::fragment(packet, network) {
        Ok(fragment) => fragment,
        Err(outcome) => return left(outcome),
    };
    let noted = match tables.datagram(&fragment.datagram) {
        Some(datagram) if elapsed(tables.now(), datagram.since) <= LIFETIME => datagram,
        _ => return left(Outcome::Fragment),
    };
    if noted.fate == Fate::Pass as u8 {
        return left(Outcome::Fragment);
    }
    if noted.fate == Fate::Drop as u8 || fragment.overlaps_header() {
        return left(Outcome::DropFragment);
    }
    decision.rewrite = noted.rewrite;
    decision.counter = noted.counter;
    let forward = noted.direction == Direction::Forward as u8;
    decision.direction = if forward { Direction::Forward } else { Direction::Reply };
    Known { outcome: Outcome::Forwarded, hop_limit: fragment.hop_limit, length: fragment.length }
}

/// Where the first fragment went. Not inlined: a stack frame of its own.
#[inline(never)]
fn next_hop<A: Address, T: Tables<A>>(tables: &T, decision: &Decision<A>) -> Hop {
    tables.next_hop(decision.rewrite.src, decision.rewrite.dst)
}

#[cfg(test)]
mod tests;
