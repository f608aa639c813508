//! Fragments. The first of a datagram has the transport header, and is treated like a packet ([`crate::complete`]); what
//! became of it is noted. The others have neither ports nor checksum: they go the same way, with other addresses.
//!
//! Those that come before their first wait ([`Tables::hold`]). When it comes, it is handed in once more as if it had just
//! arrived, and they after it ([`Outcome::HeldToFollow`], which the hook carries out): now they are in order. On two
//! CPUs at once, the first is noted before it asks who waits, and the others wait before they ask for the note: one of
//! them sees the other.

use crate::{
    abi::{
        Datagram, DatagramKey, Direction, Endpoint, Fate, NextHopState, RangeKey, Side, Ticks, elapsed,
        ticks_from_millis,
    },
    address::Address,
    decide::Decision,
    packet::Packet,
    parse::{Family, Parsed, fragment::Fragment},
    tables::{Hop, Tables},
    verdict::{Kind, Outcome, Verdict},
};

/// How long after its first fragment others of a datagram are expected: as long as a receiver waits (RFC 8200 section
/// 4.5: 60 seconds; RFC 1122 section 3.3.2: 60 to 120 seconds).
const LIFETIME: Ticks = ticks_from_millis(60_000);

/// Whether others of its datagram came before this first fragment: then it is not forwarded now, but arrives once more,
/// and they after it. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn leads<F: Family, T: Tables<F::Address>>(tables: &T, first: &Parsed<F::Address>) -> bool {
    tables.holds(&F::datagram(first))
}

/// Notes that a first fragment is forwarded as decided. As with [`leads`], others may have come, from another CPU, since
/// that was asked. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn goes<F: Family, T: Tables<F::Address>>(
    tables: &T,
    first: &Parsed<F::Address>,
    decision: &Decision<F::Address>,
) -> bool {
    let Decision { rewrite, counter, direction, .. } = *decision;
    let key = F::datagram(first);
    note(tables, &key, Fate::Forward, Datagram { rewrite, counter, direction: direction as u8, ..Datagram::default() });
    tables.holds(&key)
}

/// Notes that a first fragment is passed or dropped; returns what [`goes`] does. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn stays<F: Family, T: Tables<F::Address>>(
    tables: &T,
    first: &Parsed<F::Address>,
    outcome: Outcome,
) -> bool {
    let fate = if outcome.kind() == Kind::Drop { Fate::Drop } else { Fate::Pass };
    remain(tables, &F::datagram(first), fate)
}

/// Notes that the fragments of a datagram are not forwarded. Returns whether any wait for that.
#[inline(always)]
fn remain<A: Address, T: Tables<A>>(tables: &T, key: &DatagramKey<A>, fate: Fate) -> bool {
    // Without a note they pass anyway, unless an older datagram of the same name has left one.
    if !is_of_interest(tables, key) && tables.datagram(key).is_none() {
        return false;
    }
    note(tables, key, fate, Datagram::default());
    tables.holds(key)
}

#[inline(always)]
fn note<A: Address, T: Tables<A>>(tables: &T, key: &DatagramKey<A>, fate: Fate, datagram: Datagram<A>) {
    tables.note_datagram(key, &Datagram { since: tables.now(), fate: fate as u8, ..datagram });
}

/// Whether fragments between these addresses may belong to a rule.
#[inline(always)]
fn is_of_interest<A: Address, T: Tables<A>>(tables: &T, key: &DatagramKey<A>) -> bool {
    let named = |address| {
        let endpoint = Endpoint { address, port: 0, protocol: 0, side: Side::Fragment as u8 };
        tables.range(&RangeKey::exact(endpoint)).is_some_and(|rule| rule.slot(tables.generation()).is_some())
    };
    named(key.dst) || named(key.src)
}

/// Decides a fragment without a readable transport header, and rewrites it if it is to be forwarded.
#[inline(always)]
pub fn later<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let Some(mut draft) = tables.draft() else { return Verdict::of(Outcome::DropError) };
    let draft = &mut *draft;
    let mut outcome = read::<F>(packet, network, &mut draft.fragment);
    if outcome == Outcome::Forwarded {
        outcome = recall(tables, &draft.fragment, &mut draft.decision);
    }
    if outcome == Outcome::HeldForFirst {
        outcome = wait(packet, tables, network, &draft.fragment);
    }
    if outcome != Outcome::Forwarded {
        return Verdict::of(outcome);
    }
    let (fragment, decision) = (&draft.fragment, &draft.decision);
    let hop = next_hop(tables, decision, fragment.protocol);
    if !matches!(hop.state, NextHopState::Resolved | NextHopState::Unresolved) {
        return Verdict::of(hop.missing());
    }
    if fragment.hop_limit <= 1 {
        return Verdict::of(Outcome::DropTtl);
    }
    if fragment.length > hop.mtu {
        return Verdict::refused(Outcome::DropTooBig, hop);
    }
    if F::rewrite(packet, network, &decision.rewrite).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    tables.count_forwarded(decision.counter, decision.direction, fragment.length);
    Verdict::forward(hop)
}

/// Reads a fragment; [`Outcome::Forwarded`] when that worked. Not inlined: a stack frame of its own.
#[inline(never)]
fn read<F: Family>(packet: &impl Packet, network: usize, fragment: &mut Fragment<F::Address>) -> Outcome {
    match F::fragment(packet, network) {
        Ok(read) => {
            *fragment = read;
            Outcome::Forwarded
        }
        Err(outcome) => outcome,
    }
}

/// Decides as its first fragment was decided; [`Outcome::HeldForFirst`] when that has not come. Not inlined: a stack
/// frame of its own.
#[inline(never)]
fn recall<A: Address, T: Tables<A>>(tables: &T, fragment: &Fragment<A>, decision: &mut Decision<A>) -> Outcome {
    let noted = match tables.datagram(&fragment.datagram) {
        Some(datagram) if elapsed(tables.now(), datagram.since) <= LIFETIME => datagram,
        _ => return Outcome::HeldForFirst,
    };
    if noted.fate == Fate::Pass as u8 {
        return Outcome::Fragment;
    }
    if noted.fate == Fate::Drop as u8 || fragment.overlaps_header() {
        return Outcome::DropFragment;
    }
    decision.rewrite = noted.rewrite;
    decision.counter = noted.counter;
    let forward = noted.direction == Direction::Forward as u8;
    decision.direction = if forward { Direction::Forward } else { Direction::Reply };
    Outcome::Forwarded
}

/// What becomes of a fragment of a datagram that is not known. Not inlined: a stack frame of its own.
#[inline(never)]
fn wait<A: Address, T: Tables<A>>(packet: &impl Packet, tables: &T, network: usize, fragment: &Fragment<A>) -> Outcome {
    let key = &fragment.datagram;
    if !is_of_interest(tables, key) {
        return Outcome::Fragment;
    }
    if fragment.offset == 0 {
        // RFC 1858 section 3: too short to say whether it may go. Or of a kind that is never forwarded.
        let (fate, outcome) =
            if fragment.lacks_header { (Fate::Drop, Outcome::DropFragment) } else { (Fate::Pass, Outcome::Fragment) };
        return if remain(tables, key, fate) { Outcome::HeldToFollow } else { outcome };
    }
    if fragment.overlaps_header() {
        return Outcome::DropFragment;
    }
    if !tables.hold(key, packet, network, fragment.length) {
        return Outcome::DropNotHeld;
    }
    // The first may have been noted meanwhile, by another CPU that did not see this one yet.
    if tables.datagram(key).is_some_and(|datagram| elapsed(tables.now(), datagram.since) <= LIFETIME) {
        return Outcome::HeldToFollow;
    }
    Outcome::HeldForFirst
}

/// Where the first fragment went. Not inlined: a stack frame of its own.
#[inline(never)]
fn next_hop<A: Address, T: Tables<A>>(tables: &T, decision: &Decision<A>, protocol: u8) -> Hop {
    tables.next_hop(&decision.ends(tables.settings(), protocol))
}

#[cfg(test)]
mod tests;
