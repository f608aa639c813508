//! The TC hook: everything. Begins, follows and ends flows, and sends what XDP left.

use crate::{
    abi::{Flow, NextHopState, Ticks, elapsed, next_hop_flags, rule_flags, setting_flags},
    address::Address,
    apply::apply,
    decide::{Decision, Verdict, admits, backend_rule, listen_rule, stateless_forward, stateless_reply},
    flow_state::FlowState,
    open_flow::open_flow,
    packet::Packet,
    parse::{Family, Parsed, Transport},
    tables::{Event, FlowEntry, Tables},
    verdict::Outcome,
    wire::{tcp, udp},
};

/// Decides a packet and, if it is to be forwarded, rewrites it. Changes nothing that it passes.
#[inline(always)]
pub fn process<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let parsed = match F::walk(packet, network) {
        Ok(parsed) => parsed,
        Err(outcome) => return Verdict::Pass(outcome),
    };
    let found = match find(tables, &parsed) {
        Ok(found) => found,
        Err(verdict) => return verdict,
    };
    if parsed.hop_limit <= 1 {
        return Verdict::Drop(Outcome::DropTtl);
    }
    let (src, dst) = found.ends(&parsed);
    let hop = tables.next_hop(src, dst);
    match hop.state {
        NextHopState::Resolved | NextHopState::Unresolved => {}
        // Replies to this machine's own connections to a backend (health checks, say) are its own.
        NextHopState::Local if matches!(found, Found::Stateless(_)) => return Verdict::Pass(Outcome::ToSelf),
        _ => return Verdict::Drop(Outcome::DropNoRoute),
    }
    if on_the_wire(packet, &parsed) > hop.mtu {
        return Verdict::Drop(Outcome::DropTooBig);
    }
    let decision = match commit(tables, &parsed, found) {
        Ok(decision) => decision,
        Err(outcome) => return Verdict::Drop(outcome),
    };
    if apply::<F>(packet, &parsed, &decision.rewrite).is_none() {
        return Verdict::Drop(Outcome::DropError);
    }
    tables.count_forwarded(decision.counter, decision.direction, parsed.length);
    // A device without link header has no neighbours to ask.
    let known = hop.state == NextHopState::Resolved && hop.flags & next_hop_flags::CONFIRM == 0;
    if known || hop.flags & next_hop_flags::NO_LINK_HEADER != 0 {
        Verdict::Transmit(hop)
    } else {
        Verdict::Neighbour(hop)
    }
}

/// The length of the longest IP packet that leaves, in bytes.
#[inline(always)]
fn on_the_wire<A>(packet: &impl Packet, parsed: &Parsed<A>) -> u32 {
    let payload = packet.segment_payload();
    if payload == 0 {
        return parsed.length;
    }
    let header = match parsed.transport {
        Transport::Tcp { .. } => match packet.read(parsed.transport_offset + tcp::DATA_OFFSET) {
            Some([words]) => usize::from(words >> 4) * 4,
            None => tcp::LEN,
        },
        _ => udp::LEN,
    };
    payload + (parsed.transport_offset - parsed.network + header) as u32
}

/// What a packet belongs to.
enum Found<A, E> {
    /// A flow in the protected table.
    Established(E, Flow<A>),
    /// A flow in the table of new ones.
    Embryonic(E, Flow<A>),
    /// A stateless rule, in either direction.
    Stateless(Decision<A>),
    /// A rule that keeps flows, and none yet: the rule, by what a new flow needs of it.
    New(crate::abi::Rule<A>),
}

impl<A: Address, E> Found<A, E> {
    /// Source and destination after the rewrite.
    #[inline(always)]
    const fn ends(&self, parsed: &Parsed<A>) -> (A, A) {
        match self {
            Self::Established(_, flow) | Self::Embryonic(_, flow) => (flow.rewrite.src, flow.rewrite.dst),
            Self::Stateless(decision) => (decision.rewrite.src, decision.rewrite.dst),
            Self::New(rule) if rule.flags & rule_flags::REWRITE_SOURCE != 0 => (rule.source, rule.to),
            Self::New(rule) => (parsed.key.src, rule.to),
        }
    }
}

#[inline(always)]
fn find<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> Result<Found<A, T::Entry>, Verdict> {
    let settings = tables.settings();
    if settings.flags & setting_flags::FLOWS != 0
        && let Some(found) = find_flow(tables, parsed)
    {
        return Ok(found);
    }
    if let Some(rule) = listen_rule(tables, parsed) {
        if !admits(tables, &rule, parsed.key.src) {
            return Err(Verdict::Drop(Outcome::DropNotAllowed));
        }
        return Ok(if rule.flags & rule_flags::STATELESS != 0 {
            Found::Stateless(stateless_forward(&rule, parsed))
        } else {
            Found::New(rule)
        });
    }
    match backend_rule(tables, parsed) {
        Some(rule) => Ok(Found::Stateless(stateless_reply(&rule, parsed))),
        None => Err(Verdict::Pass(Outcome::NotOurs)),
    }
}

/// The flow of a packet, unless it has expired: then it goes, as if the sweeper had been faster.
#[inline(always)]
fn find_flow<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> Option<Found<A, T::Entry>> {
    if let Some(entry) = tables.established(&parsed.key) {
        let flow = entry.get();
        let peer_key = flow.peer_key(parsed.key.protocol);
        if lives(tables, parsed, &flow)
            || tables.established(&peer_key).is_some_and(|peer| lives(tables, parsed, &peer.get()))
        {
            return Some(Found::Established(entry, flow));
        }
        tables.remove_established(&parsed.key, &peer_key, flow.sweep_slot);
        return None;
    }
    let entry = tables.embryonic(&parsed.key)?;
    let flow = entry.get();
    if lives(tables, parsed, &flow) {
        return Some(Found::Embryonic(entry, flow));
    }
    tables.remove_embryonic(&parsed.key);
    tables.remove_embryonic(&flow.peer_key(parsed.key.protocol));
    None
}

/// Whether one direction of a flow has seen a packet recently enough.
#[inline(always)]
fn lives<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    let timeout = FlowState::from_number(flow.state).timeout(parsed.protocol(), &tables.settings().timeouts);
    elapsed(tables.now(), flow.last_seen) <= timeout
}

/// Carries the packet's effect on the tables out, now that nothing else can stop it.
#[inline(always)]
fn commit<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    found: Found<A, T::Entry>,
) -> Result<Decision<A>, Outcome> {
    match found {
        Found::Stateless(decision) => Ok(decision),
        Found::New(rule) => open_flow(tables, parsed, &rule),
        Found::Established(entry, flow) => {
            let state = next_state(parsed, &flow);
            if state as u8 != flow.state {
                entry.set_state(state);
                if let Some(peer) = tables.established(&flow.peer_key(parsed.key.protocol)) {
                    peer.set_state(state);
                }
            }
            entry.seen(tables.now(), parsed.length);
            Ok(Decision::of_flow(&flow))
        }
        Found::Embryonic(entry, flow) => {
            let now = tables.now();
            entry.seen(now, parsed.length);
            let state = next_state(parsed, &flow);
            if state as u8 != flow.state {
                advance(tables, parsed, entry, state, now);
            }
            Ok(Decision::of_flow(&flow))
        }
    }
}

#[inline(always)]
const fn next_state<A: Copy>(parsed: &Parsed<A>, flow: &Flow<A>) -> FlowState {
    FlowState::from_number(flow.state).after(flow.direction(), parsed.transport.flags())
}

/// Moves a new flow on to another state: into the protected table when it is established.
#[inline(always)]
fn advance<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, entry: T::Entry, state: FlowState, now: Ticks) {
    let mut flow = entry.get();
    flow.state = state as u8;
    flow.last_seen = now;
    let peer_key = flow.peer_key(parsed.key.protocol);
    let mut peer = flow.peer(&parsed.key);
    let other = tables.embryonic(&peer_key);
    if let Some(other) = other {
        let other = other.get();
        peer.packets = other.packets;
        peer.bytes = other.bytes;
    }
    if state == FlowState::Established {
        // Only a client's packet establishes (FlowState::after), so `parsed.key` is the forward key.
        if tables.protect((&parsed.key, &flow), (&peer_key, &peer)).is_ok() {
            tables.remove_embryonic(&parsed.key);
            tables.remove_embryonic(&peer_key);
        } else {
            // It goes on living among the new ones, as long as no flood pushes it out.
            tables.count(flow.counter, Event::Unprotected);
        }
        return;
    }
    entry.set_state(state);
    match other {
        Some(other) => other.set_state(state),
        // A flood has pushed the other half out: a flow has both halves or none. Should the table refuse, the
        // next packet tries again.
        None => drop(tables.insert_embryonic(&peer_key, &peer)),
    }
}

#[cfg(test)]
mod tests;
