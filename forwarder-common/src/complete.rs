//! The TC hook: everything. Begins, follows and ends flows, and sends what XDP left.

use core::hint::black_box;

use crate::{
    abi::{Direction, Flow, FlowKey, NextHopState, Rewrite, Rule, flow_flags},
    address::Address,
    apply::apply,
    decide::{Decision, stateless_forward, stateless_reply},
    find::{Found, copy, find},
    flow_state::FlowState,
    fragment, mapping, mss,
    open_flow::open_flow,
    packet::Packet,
    parse::{Family, Parsed, Transport},
    tables::{At, Draft, Event, FlowEntry, Hop, Room, Tables},
    verdict::{Kind, Outcome, Verdict},
    window::Reached,
    wire::{protocol, tcp, udp},
};

/// Decides a packet and, if it is to be forwarded, rewrites it. Changes nothing that it passes.
///
/// What it calls [`Outcome::Fragment`] goes on to [`fragment::later`].
#[inline(always)]
pub fn process<F: Family, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    if let Err(outcome) = parse::<F, T>(packet, tables, network) {
        return Verdict::of(outcome);
    }
    let Some(parsed) = tables.kept() else { return Verdict::of(Outcome::DropError) };
    if parsed.is_first_fragment && fragment::leads::<F, T>(tables, parsed) {
        return Verdict::of(Outcome::HeldToFollow);
    }
    let verdict = whole_or_first::<F, T>(packet, tables, network, parsed);
    let stays = matches!(verdict.outcome.kind(), Kind::Pass | Kind::Drop);
    if parsed.is_first_fragment && stays && fragment::stays::<F, T>(tables, parsed, verdict.outcome) {
        return Verdict::of(Outcome::HeldToFollow);
    }
    verdict
}

/// A packet that has its transport header: decided, and rewritten if it is to be forwarded.
#[inline(always)]
fn whole_or_first<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    parsed: &Parsed<F::Address>,
) -> Verdict {
    if matches!(parsed.transport, Transport::Icmp) {
        return Verdict::of(Outcome::IcmpOther);
    }
    let found = match find(tables, parsed) {
        Ok(found) => found,
        Err(outcome) => return Verdict::of(outcome),
    };
    let hop = next_hop(tables, parsed, &found);
    match hop.state {
        NextHopState::Resolved | NextHopState::Unresolved => {}
        NextHopState::Local if found.may_be_own() => return Verdict::of(Outcome::ToSelf),
        _ => return refuse(tables, parsed, &found, &hop, hop.missing()),
    }
    if parsed.hop_limit <= 1 {
        return refuse(tables, parsed, &found, &hop, Outcome::DropTtl);
    }
    if on_the_wire(packet, network, parsed.transport_at(), parsed.protocol(), parsed.length) > hop.mtu {
        return refuse(tables, parsed, &found, &hop, Outcome::DropTooBig);
    }
    let Some(mut draft) = tables.draft() else { return Verdict::of(Outcome::DropError) };
    if let Err(outcome) = commit(tables, parsed, &found, &mut draft) {
        return Verdict::of(outcome);
    }
    let decision = &draft.decision;
    if parsed.is_first_fragment && fragment::goes::<F, T>(tables, parsed, decision) {
        return Verdict::of(Outcome::HeldToFollow);
    }
    if rewrite::<F>(packet, network, parsed, &decision.rewrite).is_none() {
        return Verdict::of(Outcome::DropError);
    }
    if mss::announced(parsed) && decision.mss != mss::UNCHANGED {
        mss::clamp::<F, _>(packet, tables, network, parsed, &(hop.mtu, decision.mss));
    }
    tables.count_forwarded(decision.counter, decision.direction, parsed.length);
    // Looked at anew: the compiler keeps what was compared above in a register, and Linux 6.1's verifier then takes the one
    // side of comparing it again for unreachable, and removes it.
    Verdict::forward(Hop { state: black_box(hop.state), ..hop })
}

/// The packet cannot be forwarded, and its sender may be told: [`crate::answer`]. Not inlined: a stack frame of its own.
#[inline(never)]
fn refuse<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    found: &Found<'_, A, T::Entry>,
    hop: &Hop,
    outcome: Outcome,
) -> Verdict {
    tables.keep_answerer(found.known_to_sender(parsed));
    Verdict::refused(outcome, *hop)
}

/// Where a packet goes after the rewrite. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn next_hop<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    found: &Found<'_, A, T::Entry>,
) -> Hop {
    tables.next_hop(&found.ends(tables.settings(), parsed))
}

/// [`apply`], not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn rewrite<F: Family>(
    packet: &mut impl Packet,
    network: usize,
    parsed: &Parsed<F::Address>,
    rewrite: &Rewrite<F::Address>,
) -> Option<()> {
    apply::<F>(packet, (network, parsed.transport_at()), parsed, rewrite)
}

/// Parses the packet into the tables' memory. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn parse<F: Family, T: Tables<F::Address>>(
    packet: &impl Packet,
    tables: &T,
    network: usize,
) -> Result<(), Outcome> {
    tables.keep(F::walk(packet, network)?);
    Ok(())
}

/// The length of the longest IP packet that leaves, in bytes: `length`, unless it is cut into segments on its way out.
#[inline(always)]
pub(crate) fn on_the_wire(packet: &impl Packet, network: usize, transport: usize, protocol: u8, length: u32) -> u32 {
    let payload = packet.segment_payload();
    if payload == 0 {
        return length;
    }
    let header = match protocol {
        protocol::TCP => match packet.read(transport + tcp::DATA_OFFSET) {
            Some([words]) => usize::from(words >> 4) * 4,
            None => tcp::LEN,
        },
        _ => udp::LEN,
    };
    payload + (transport - network + header) as u32
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
        Found::Forward(rule) => return decide_stateless(rule, parsed, Direction::Forward, draft),
        Found::Reply(rule) => return decide_stateless(rule, parsed, Direction::Reply, draft),
        Found::New(rule) => {
            draft.at = At::Tc;
            draft.room = Room::UNKNOWN;
            return open_flow(tables, parsed, rule, draft);
        }
        Found::Established(entry) => {
            draft.decision = Decision::of_flow(&entry.get());
            if !entry.is_of(&parsed.key) {
                return Err(Outcome::DropNoFlow);
            }
            // Nothing but TCP has an end that can be seen.
            if matches!(parsed.transport, Transport::Tcp) {
                follow(tables, parsed, parsed.key.protocol, *entry, draft);
            }
            entry.seen(tables.now(), parsed.length);
        }
        Found::Embryonic(entry) => {
            // Before the entry may go: its memory is another flow's then.
            draft.decision = Decision::of_flow(&entry.get());
            let flags = entry.get().flags;
            if !entry.is_of(&parsed.key) {
                return Err(Outcome::DropNoFlow);
            }
            entry.seen(tables.now(), parsed.length);
            let uses_mapping = flags & (flow_flags::OUTBOUND | flow_flags::INBOUND) != 0;
            if uses_mapping && draft.decision.rewrite.src != parsed.key.src {
                mapping::refresh(tables, parsed, flags, &draft.decision.rewrite);
            }
            if grow(tables, parsed, &parsed.key, *entry, draft) && uses_mapping {
                mapping::protect_used(tables, &parsed.key, flags, draft);
            }
        }
    }
    Ok(())
}

/// A packet of a protected TCP flow: takes the flow on to another state, and notes how far the connection has come.
///
/// A RST or FIN that cannot be of the connection ends nothing; every other packet is as likely forged as not, but has no
/// effect that the next one does not take back. `protocol` is that of the flow's key. Not inlined: a stack frame of its
/// own.
#[inline(never)]
pub(crate) fn follow<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    protocol: u32,
    entry: T::Entry,
    draft: &mut Draft<A>,
) {
    let flow = entry.get();
    let before = FlowState::from_number(flow.state);
    let state = next_state(parsed, &flow);
    let direction = flow.direction();
    if state as u8 != flow.state {
        flow.write_peer_key(protocol, &mut draft.peer_key);
        let peer = tables.established(&draft.peer_key);
        let reply = match direction {
            Direction::Reply => Some(entry),
            Direction::Forward => peer,
        };
        if matches!(before, FlowState::Established)
            && reply.is_some_and(|reply| !Reached(reply.get().sweep_slot).admits(direction, parsed.tcp.sequence))
        {
            return;
        }
        entry.set_state(state);
        if let Some(peer) = peer {
            peer.set_state(state);
        }
    }
    if matches!(direction, Direction::Reply) {
        let reached = Reached::by(direction, &parsed.tcp);
        let known = Reached(flow.sweep_slot);
        let believed = if matches!(before, FlowState::Established) { known.leads_to(reached) } else { reached.0 != 0 };
        if believed {
            entry.note_reached(reached);
        }
    }
}

/// A packet of a new flow, found by `key`: takes the flow on. Says whether that protects it now.
#[inline(always)]
pub(crate) fn grow<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    key: &FlowKey<A>,
    entry: T::Entry,
    draft: &mut Draft<A>,
) -> bool {
    let state = next_state(parsed, &entry.get());
    if entry.get().direction() == Direction::Reply && parsed.tcp.flags & tcp::SYN != 0 {
        await_acknowledgment(tables, parsed, key.protocol, entry, draft);
    }
    let proven = state != FlowState::Established || acknowledges(parsed, &entry.get());
    state as u8 != entry.get().state && proven && advance(tables, parsed, key, entry, draft)
}

/// How far a client's first acknowledgment may be ahead of the backend's SYN-ACK, for what the backend sent at once.
const MOST_AHEAD: u32 = 1 << 20;

/// Whether a client's packet shows that it saw the backend's SYN-ACK: a flood with forged sources cannot guess the number
/// (RFC 6528), and so never reaches the protected table.
#[inline(always)]
const fn acknowledges<A: Copy>(parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    if !matches!(parsed.transport, Transport::Tcp) {
        return true;
    }
    // 0: nobody saw how the connection began.
    let known = flow.sweep_slot != 0;
    parsed.tcp.flags & tcp::ACK != 0 && (!known || parsed.tcp.acknowledgment.wrapping_sub(flow.sweep_slot) < MOST_AHEAD)
}

/// Notes at the client's entry what acknowledges this SYN of the backend. Not inlined: a stack frame of its own.
#[inline(never)]
fn await_acknowledgment<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    protocol: u32,
    entry: T::Entry,
    draft: &mut Draft<A>,
) {
    entry.get().write_peer_key(protocol, &mut draft.peer_key);
    if let Some(client) = tables.embryonic(&draft.peer_key) {
        client.await_acknowledgment(parsed.tcp.sequence.wrapping_add(1));
    }
}

/// What a stateless rule says of a packet in this direction. Not inlined: a stack frame of its own.
#[inline(never)]
fn decide_stateless<A: Address>(
    rule: &Rule<A>,
    parsed: &Parsed<A>,
    direction: Direction,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    let decision = match direction {
        Direction::Forward => stateless_forward(rule, parsed),
        Direction::Reply => stateless_reply(rule, parsed),
    };
    draft.decision = decision.ok_or(Outcome::DropNoMapping)?;
    Ok(())
}

#[inline(always)]
const fn next_state<A: Copy>(parsed: &Parsed<A>, flow: &Flow<A>) -> FlowState {
    FlowState::from_number(flow.state).after(flow.direction(), parsed.tcp.flags)
}

/// Moves a new flow, found by `key`, on to another state: into the protected table when it is established. Says whether
/// it is there now.
///
/// Not inlined: a stack frame of its own, which packets that change no state do not pay for.
#[inline(never)]
fn advance<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    key: &FlowKey<A>,
    entry: T::Entry,
    draft: &mut Draft<A>,
) -> bool {
    // Whoever took its place meanwhile must not be protected under its key.
    if !copy(key, entry, draft) {
        return false;
    }
    let state = next_state(parsed, &draft.flow);
    draft.flow.state = state as u8;
    draft.flow.write_peer_key(key.protocol, &mut draft.peer_key);
    draft.peer.become_peer(&draft.flow, key);
    let other = tables.embryonic(&draft.peer_key);
    if let Some(other) = other {
        let other = other.get();
        draft.peer.packets = other.packets;
        draft.peer.bytes = other.bytes;
    }
    if state == FlowState::Established {
        // Only a client's packet establishes (FlowState::after), so `key` is the forward key.
        draft.peer.sweep_slot = Reached::by(Direction::Forward, &parsed.tcp).0;
        if tables.protect((key, &mut draft.flow), (&draft.peer_key, &draft.peer)).is_ok() {
            tables.remove_embryonic(key);
            tables.remove_embryonic(&draft.peer_key);
            return true;
        }
        // It goes on living among the new ones, as long as no flood pushes it out.
        tables.count(draft.flow.counter, Event::Unprotected);
        return false;
    }
    entry.set_state(state);
    if let Some(other) = other {
        other.set_state(state);
    }
    false
}

#[cfg(test)]
mod tests;
