//! The TC hook: everything. Begins, follows and ends flows, and sends what XDP left.

use crate::{
    abi::{Direction, Flow, NextHopState, Rewrite, Rule, Side, elapsed, next_hop_flags, rule_flags, setting_flags},
    address::Address,
    apply::apply,
    decide::{Decision, admits, backend_rule, is_own, listen_rule, stateless_forward, stateless_reply},
    flow_state::FlowState,
    open_flow::open_flow,
    packet::Packet,
    parse::{Family, Parsed, Transport},
    tables::{Draft, Event, FlowEntry, Hop, NotInserted, Tables},
    verdict::{Outcome, Verdict},
    wire::{tcp, udp},
};

/// Decides a packet and, if it is to be forwarded, rewrites it. Changes nothing that it passes.
#[inline(always)]
pub fn process<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    if let Err(outcome) = parse::<F, T>(packet, tables, network) {
        return Verdict::of(outcome);
    }
    let Some(parsed) = tables.kept() else { return Verdict::of(Outcome::DropError) };
    let found = match find(tables, parsed) {
        Ok(found) => found,
        Err(outcome) => return Verdict::of(outcome),
    };
    let hop = next_hop(tables, parsed, &found);
    match hop.state {
        NextHopState::Resolved | NextHopState::Unresolved => {}
        // Replies to this machine's own connections to a backend (health checks, say) are its own.
        NextHopState::Local if matches!(found, Found::Reply(_)) => {
            return Verdict::of(Outcome::ToSelf);
        }
        _ => return Verdict::of(Outcome::DropNoRoute),
    }
    if parsed.hop_limit <= 1 {
        return Verdict::of(Outcome::DropTtl);
    }
    if on_the_wire(packet, network, parsed) > hop.mtu {
        return Verdict::of(Outcome::DropTooBig);
    }
    let Some(mut draft) = tables.draft() else { return Verdict::of(Outcome::DropError) };
    if let Err(outcome) = commit(tables, parsed, &found, &mut draft) {
        return Verdict::of(outcome);
    }
    let decision = &draft.decision;
    if rewrite::<F>(packet, network, parsed, &decision.rewrite).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    tables.count_forwarded(decision.counter, decision.direction, parsed.length);
    // A device without link header has no neighbours to ask.
    let known = hop.state == NextHopState::Resolved && hop.flags & next_hop_flags::CONFIRM == 0;
    if known || hop.flags & next_hop_flags::NO_LINK_HEADER != 0 {
        Verdict::transmit(hop)
    } else {
        Verdict::neighbour(hop)
    }
}

/// Where a packet goes after the rewrite. Not inlined: a stack frame of its own.
#[inline(never)]
fn next_hop<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, found: &Found<'_, A, T::Entry>) -> Hop {
    tables.next_hop(found.src(parsed), found.dst(parsed))
}

/// [`apply`], not inlined: a stack frame of its own.
#[inline(never)]
fn rewrite<F: Family>(
    packet: &mut impl Packet,
    network: usize,
    parsed: &Parsed<F::Address>,
    rewrite: &Rewrite<F::Address>,
) -> Option<()> {
    apply::<F>(packet, network, parsed, rewrite)
}

/// Parses the packet into the tables' memory. Not inlined: a stack frame of its own.
#[inline(never)]
fn parse<F: Family, T: Tables<F::Address>>(packet: &impl Packet, tables: &T, network: usize) -> Result<(), Outcome> {
    tables.keep(F::walk(packet, network)?);
    Ok(())
}

/// The length of the longest IP packet that leaves, in bytes.
#[inline(always)]
fn on_the_wire<A>(packet: &impl Packet, network: usize, parsed: &Parsed<A>) -> u32 {
    let payload = packet.segment_payload();
    if payload == 0 {
        return parsed.length;
    }
    let header = match parsed.transport {
        Transport::Tcp { .. } => match packet.read(parsed.transport_at() + tcp::DATA_OFFSET) {
            Some([words]) => usize::from(words >> 4) * 4,
            None => tcp::LEN,
        },
        _ => udp::LEN,
    };
    payload + (parsed.transport_at() - network + header) as u32
}

/// What a packet belongs to.
enum Found<'t, A, E> {
    /// A flow in the protected table.
    Established(E),
    /// A flow in the table of new ones.
    Embryonic(E),
    /// A stateless rule, from the client.
    Forward(&'t Rule<A>),
    /// A stateless rule, from the backend.
    Reply(&'t Rule<A>),
    /// A rule that keeps flows, and none yet.
    New(&'t Rule<A>),
}

impl<A: Address, E: FlowEntry<A>> Found<'_, A, E> {
    /// The source after the rewrite.
    #[inline(always)]
    fn src(&self, parsed: &Parsed<A>) -> A {
        match self {
            Self::Established(entry) | Self::Embryonic(entry) => entry.get().rewrite.src,
            Self::Reply(rule) => rule.listen,
            Self::New(rule) if rule.flags & rule_flags::REWRITE_SOURCE != 0 => rule.source,
            Self::Forward(_) | Self::New(_) => parsed.key.src,
        }
    }

    /// The destination after the rewrite.
    #[inline(always)]
    fn dst(&self, parsed: &Parsed<A>) -> A {
        match self {
            Self::Established(entry) | Self::Embryonic(entry) => entry.get().rewrite.dst,
            Self::Reply(_) => parsed.key.dst,
            Self::Forward(rule) | Self::New(rule) => rule.to,
        }
    }
}

#[inline(always)]
fn find<'t, A: Address, T: Tables<A>>(tables: &'t T, parsed: &Parsed<A>) -> Result<Found<'t, A, T::Entry>, Outcome> {
    let settings = tables.settings();
    if settings.flags & setting_flags::FLOWS != 0
        && let Some(found) = find_flow(tables, parsed)
    {
        return Ok(found);
    }
    if let Some(rule) = rule_of(tables, parsed, Side::Listen) {
        if is_own(tables, rule, parsed) {
            return Err(Outcome::ToSelf);
        }
        if !lets_in(tables, rule, parsed) {
            return Err(Outcome::DropNotAllowed);
        }
        return Ok(if rule.flags & rule_flags::STATELESS != 0 { Found::Forward(rule) } else { Found::New(rule) });
    }
    match rule_of(tables, parsed, Side::Backend) {
        Some(rule) => Ok(Found::Reply(rule)),
        None => Err(Outcome::NotOurs),
    }
}

/// [`admits`], not inlined: a stack frame of its own.
#[inline(never)]
fn lets_in<A: Address, T: Tables<A>>(tables: &T, rule: &Rule<A>, parsed: &Parsed<A>) -> bool {
    admits(tables, rule, parsed.key.src)
}

/// The rule that a packet is for or comes from. Not inlined: a stack frame of its own.
#[inline(never)]
fn rule_of<'t, A: Address, T: Tables<A>>(tables: &'t T, parsed: &Parsed<A>, side: Side) -> Option<&'t Rule<A>> {
    match side {
        Side::Listen => listen_rule(tables, parsed),
        Side::Backend => backend_rule(tables, parsed),
    }
}

/// The flow of a packet, unless it has expired: then it goes, as if the sweeper had been faster.
#[inline(always)]
fn find_flow<'t, A: Address, T: Tables<A>>(tables: &'t T, parsed: &Parsed<A>) -> Option<Found<'t, A, T::Entry>> {
    if let Some(entry) = tables.established(&parsed.key) {
        let goes_on = lives(tables, parsed, &entry.get()) || other_lives(tables, parsed, entry);
        return goes_on.then_some(Found::Established(entry));
    }
    let entry = tables.embryonic(&parsed.key)?;
    if both_live(tables, parsed, entry) {
        return Some(Found::Embryonic(entry));
    }
    tables.remove_embryonic(&parsed.key);
    None
}

/// Whether the other direction of a protected flow has seen a packet recently enough; if not, the flow is removed.
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn other_lives<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, entry: T::Entry) -> bool {
    let flow = entry.get();
    let peer_key = flow.peer_key(parsed.key.protocol);
    if tables.established(&peer_key).is_some_and(|peer| lives(tables, parsed, &peer.get())) {
        return true;
    }
    tables.remove_established(&parsed.key, &peer_key, flow.sweep_slot);
    false
}

/// Whether a new flow lives: either direction has seen a packet recently enough, and the other one is still its own.
///
/// A flood may have pushed the other direction out: then it is entered again, unless somebody else has taken what
/// its packets look like, in which case this flow is over. Not inlined: a stack frame of its own.
#[inline(never)]
fn both_live<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, entry: T::Entry) -> bool {
    let Some(mut draft) = tables.draft() else { return false };
    let draft = &mut *draft;
    draft.flow = entry.get();
    draft.flow.write_peer_key(parsed.key.protocol, &mut draft.peer_key);
    let this_lives = lives(tables, parsed, &draft.flow);
    if let Some(peer) = tables.embryonic(&draft.peer_key) {
        draft.peer = peer.get();
        if !draft.peer.undoes(&parsed.key) {
            return false;
        }
        if this_lives || lives(tables, parsed, &draft.peer) {
            return true;
        }
        tables.remove_embryonic(&draft.peer_key);
        return false;
    }
    if !this_lives || tables.established(&draft.peer_key).is_some() {
        return false;
    }
    draft.peer.become_peer(&draft.flow, &parsed.key);
    tables.insert_embryonic(&draft.peer_key, &draft.peer) != Err(NotInserted::Taken)
}

/// Whether one direction of a flow has seen a packet recently enough.
#[inline(always)]
fn lives<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    let timeout = FlowState::from_number(flow.state).timeout(parsed.protocol(), &tables.settings().timeouts);
    elapsed(tables.now(), flow.last_seen) <= timeout
}

/// Carries the packet's effect on the tables out, now that nothing else can stop it, and decides.
#[inline(always)]
fn commit<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    found: &Found<'_, A, T::Entry>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    match found {
        Found::Forward(rule) => decide_stateless(rule, parsed, Direction::Forward, draft),
        Found::Reply(rule) => decide_stateless(rule, parsed, Direction::Reply, draft),
        Found::New(rule) => {
            open_flow(tables, parsed, rule, draft)?;
            let entry = tables.embryonic(&parsed.key).ok_or(Outcome::DropNoFlow)?;
            draft.decision = Decision::of_flow(&entry.get());
        }
        Found::Established(entry) => {
            draft.decision = Decision::of_flow(&entry.get());
            let state = next_state(parsed, &entry.get());
            if state as u8 != entry.get().state {
                entry.set_state(state);
                entry.get().write_peer_key(parsed.key.protocol, &mut draft.peer_key);
                if let Some(peer) = tables.established(&draft.peer_key) {
                    peer.set_state(state);
                }
            }
            entry.seen(tables.now(), parsed.length);
        }
        Found::Embryonic(entry) => {
            // Before the entry may go: its memory is another flow's then.
            draft.decision = Decision::of_flow(&entry.get());
            entry.seen(tables.now(), parsed.length);
            let state = next_state(parsed, &entry.get());
            if state as u8 != entry.get().state {
                advance(tables, parsed, *entry, state, draft);
            }
        }
    }
    Ok(())
}

/// What a stateless rule says of a packet in this direction. Not inlined: a stack frame of its own.
#[inline(never)]
fn decide_stateless<A: Address>(rule: &Rule<A>, parsed: &Parsed<A>, direction: Direction, draft: &mut Draft<A>) {
    draft.decision = match direction {
        Direction::Forward => stateless_forward(rule, parsed),
        Direction::Reply => stateless_reply(rule, parsed),
    };
}

#[inline(always)]
const fn next_state<A: Copy>(parsed: &Parsed<A>, flow: &Flow<A>) -> FlowState {
    FlowState::from_number(flow.state).after(flow.direction(), parsed.transport.flags())
}

/// Moves a new flow on to another state: into the protected table when it is established.
///
/// Not inlined: a stack frame of its own, which packets that change no state do not pay for.
#[inline(never)]
fn advance<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    entry: T::Entry,
    state: FlowState,
    draft: &mut Draft<A>,
) {
    draft.flow = entry.get();
    draft.flow.state = state as u8;
    draft.flow.write_peer_key(parsed.key.protocol, &mut draft.peer_key);
    draft.peer.become_peer(&draft.flow, &parsed.key);
    let other = tables.embryonic(&draft.peer_key);
    if let Some(other) = other {
        let other = other.get();
        draft.peer.packets = other.packets;
        draft.peer.bytes = other.bytes;
    }
    if state == FlowState::Established {
        // Only a client's packet establishes (FlowState::after), so `parsed.key` is the forward key.
        if tables.protect((&parsed.key, &mut draft.flow), (&draft.peer_key, &mut draft.peer)).is_ok() {
            tables.remove_embryonic(&parsed.key);
            tables.remove_embryonic(&draft.peer_key);
        } else {
            // It goes on living among the new ones, as long as no flood pushes it out.
            tables.count(draft.flow.counter, Event::Unprotected);
        }
        return;
    }
    entry.set_state(state);
    if let Some(other) = other {
        other.set_state(state);
    }
}

#[cfg(test)]
mod tests;
