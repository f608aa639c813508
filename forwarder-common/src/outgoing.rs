//! Hosts behind us that go out with an address of ours, and what comes back to them: opens the flows of packets that
//! belong to nothing else. From then on they are flows like all others.
//!
//! It is done in steps, one after the other, each with a stack frame of its own; what they leave to each other is in
//! [`Draft::outgoing`].

use crate::{
    abi::{FlowKey, NextHopState, RangeKey, Rule, flow_flags, setting_flags},
    address::Address,
    checksum::Delta,
    decide::is_from_ourselves,
    flow_state::FlowState,
    fragment, mapping, mss,
    open_flow::{begins, enter_forward, enter_reply},
    parse::{Family, Parsed, Transport},
    passing,
    tables::{Draft, Ends, NotInserted, Outgoing, Room, Tables, Way},
    verdict::{self, Outcome},
    wire::tcp,
};

/// From where to where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// From the world to a host behind us.
    Inbound = 0,
    /// From a host behind us to the world.
    Outbound = 1,
    /// From one host behind us to another, by the address that the world knows it by (RFC 4787 section 6).
    Hairpin = 2,
}

/// Opens the flow of a packet that neither a flow nor a listen nor a backend names ([`Outcome::NotOurs`]). Where it
/// succeeds, the packet is to be processed once more: now it has a flow.
///
/// # Errors
/// What becomes of the packet without a flow; [`Outcome::NotOurs`] if it is none of these hosts' either.
#[inline(always)]
pub fn open<F: Family, T: Tables<F::Address>>(tables: &T, parsed: &Parsed<F::Address>) -> Result<(), Outcome> {
    let outcome = match open_flow(tables, parsed) {
        Err(outcome) if parsed.is_first_fragment && outcome.kind() == verdict::Kind::Drop => outcome,
        result => return result,
    };
    // Until now it was noted to pass, and the others of its datagram would leave with the address of the host behind.
    Err(if fragment::stays::<F, T>(tables, parsed, outcome) { Outcome::HeldToFollow } else { outcome })
}

#[inline(always)]
fn open_flow<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> Result<(), Outcome> {
    let Some(mut draft) = tables.draft() else { return Err(Outcome::DropError) };
    let draft = &mut *draft;
    let rule = which(tables, parsed, draft)?;
    if draft.outgoing.kind != Kind::Outbound as u32 {
        target(tables, parsed, draft)?;
    }
    if let Some(rule) = rule {
        source(tables, parsed, rule, draft)?;
    }
    if draft.outgoing.kind != Kind::Outbound as u32 {
        admit(tables, parsed, rule, draft)?;
    }
    enter(tables, parsed, rule, draft)
}

/// Says in `draft.outgoing.kind` what kind of packet it is, and by what rule it goes out; none if it comes in.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn which<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    parsed: &Parsed<A>,
    draft: &mut Draft<A>,
) -> Result<Option<&'t Rule<A>>, Outcome> {
    let Some(inside) = rule_of(tables, &parsed.key.src, 0) else {
        if let Some(host) = rule_of(tables, &parsed.key.dst, 0) {
            passing::comes_in(tables, parsed, host, draft);
            return Err(Outcome::NotOurs);
        }
        draft.outgoing.kind = Kind::Inbound as u32;
        return Ok(None);
    };
    if passing::goes_on(tables, parsed, draft) {
        return Err(Outcome::NotOurs);
    }
    // A source from behind us that comes from elsewhere is forged (RFC 2827).
    if Way::unpack(way(tables, &parsed.key.dst, &parsed.key.src)).interface != tables.ingress() {
        return Err(Outcome::NotOurs);
    }
    let way_out = Way::unpack(way(tables, &parsed.key.src, &parsed.key.dst));
    match way_out.state {
        NextHopState::Local => {
            draft.outgoing.kind = Kind::Hairpin as u32;
            return Ok(Some(inside));
        }
        NextHopState::Resolved | NextHopState::Unresolved => {}
        // Whose packet it would be depends on the way: the kernel's.
        _ => return Err(Outcome::NotOurs),
    }
    let Some(rule) = rule_of(tables, &parsed.key.src, way_out.interface) else { return Err(Outcome::NotOurs) };
    // Where routing looks at the source, the packet goes the way of its new one.
    if tables.settings().flags & setting_flags::ROUTE_BY_SOURCE != 0
        && Way::unpack(way(tables, &rule.source, &parsed.key.dst)).interface != way_out.interface
    {
        return Err(Outcome::NotOurs);
    }
    draft.outgoing.kind = Kind::Outbound as u32;
    if begins(parsed) { Ok(Some(rule)) } else { Err(Outcome::DropStray) }
}

/// How a host goes out by an interface; by interface 0 if it goes out by any. Not inlined: a stack frame of its own.
#[inline(never)]
fn rule_of<'t, A: Address, T: Tables<A>>(tables: &'t T, host: &A, interface: u32) -> Option<&'t Rule<A>> {
    let slot = tables.range(&RangeKey::inside(interface, *host))?.slot(tables.generation())?;
    tables.rule(slot)
}

/// [`Tables::way`], packed ([`Way::pack`]). Not inlined: a stack frame of its own.
#[inline(never)]
fn way<A: Address, T: Tables<A>>(tables: &T, src: &A, dst: &A) -> u64 {
    tables.way(&Ends { src: *src, dst: *dst, kind: 0 }).pack()
}

/// Whether a mapping can let a packet in that belongs to no flow: one with ports, and of TCP only what begins a
/// connection. An echo request has no port to be mapped by, and an echo reply answers nothing.
const fn may_come_in<A: Copy>(parsed: &Parsed<A>) -> bool {
    match parsed.transport {
        Transport::Tcp => parsed.tcp.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN,
        Transport::Udp | Transport::Sctp => true,
        _ => false,
    }
}

/// Finds the mapping that a packet comes to; what comes to none is not ours. Not inlined: a stack frame of its own.
#[inline(never)]
fn target<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, draft: &mut Draft<A>) -> Result<(), Outcome> {
    if !matches!(parsed.transport, Transport::Tcp | Transport::Udp | Transport::Sctp) {
        return Err(Outcome::NotOurs);
    }
    let key = FlowKey::mapping_from_outside(parsed.protocol(), parsed.key.dst, parsed.key.dst_port);
    if !mapping::find(tables, &key, draft) {
        return Err(Outcome::NotOurs);
    }
    let Draft { flow, outgoing, .. } = draft;
    outgoing.to = flow.rewrite.dst;
    outgoing.to_port = flow.rewrite.dst_port;
    outgoing.to_filtering = flow.flags & flow_flags::FILTERING;
    if is_from_ourselves(tables, parsed) {
        return Err(Outcome::Martian);
    }
    // What this machine has opened itself meanwhile is its own.
    if tables.socket_takes(&parsed.key) {
        return Err(Outcome::ToSelf);
    }
    if may_come_in(parsed) { Ok(()) } else { Err(Outcome::Stray) }
}

/// Finds or makes the sender's mapping, whose port is in `draft.flow.rewrite.src_port` then.
#[inline(always)]
fn source<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: &Rule<A>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    if !mapping::has_mapping(parsed.transport) {
        draft.flow.rewrite.src_port = parsed.key.src_port;
        return Ok(());
    }
    if !find_source(tables, parsed, rule, draft) {
        mapping::map(tables, parsed, rule, draft)?;
    }
    draft.flow.counter = rule.counter;
    let filtering = mapping::filtering(rule);
    let by_flow_alone = draft.outgoing.kind == Kind::Outbound as u32 && filtering != flow_flags::ADDRESS_FILTERING;
    if filtering != flow_flags::ENDPOINT_FILTERING && !by_flow_alone {
        mapping::permit(tables, parsed, &rule.source, filtering, draft);
    }
    Ok(())
}

/// Finds the sender's mapping. Not inlined: a stack frame of its own.
#[inline(never)]
fn find_source<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, rule: &Rule<A>, draft: &mut Draft<A>) -> bool {
    let key = FlowKey::mapping_from_inside(parsed.protocol(), parsed.key.src, parsed.key.src_port, rule.source);
    draft.outgoing.key = key;
    mapping::find(tables, &key, draft)
}

/// Whether the mapping that a packet comes to lets it in. Not inlined: a stack frame of its own.
///
/// What it does not let in is not answered either (RFC 5382 REQ-4: no RST to a SYN whose counterpart may be under way).
#[inline(never)]
fn admit<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: Option<&Rule<A>>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    draft.outgoing.other_key = parsed.key;
    if let Some(rule) = rule {
        draft.outgoing.other_key.src = rule.source;
        draft.outgoing.other_key.src_port = draft.flow.rewrite.src_port;
    }
    let filtering = draft.outgoing.to_filtering;
    if mapping::lets_in(tables, filtering, draft) { Ok(()) } else { Err(Outcome::DropFiltered) }
}

/// Enters both directions of the flow. Not inlined: a stack frame of its own.
#[inline(never)]
fn enter<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: Option<&Rule<A>>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    let Draft { flow, outgoing: Outgoing { to, to_port, to_filtering, kind, .. }, .. } = draft;
    let (mut dst, mut dst_port) = (parsed.key.dst, parsed.key.dst_port);
    if *kind == Kind::Outbound as u32 {
        flow.flags = flow_flags::OUTBOUND;
    } else {
        (dst, dst_port) = (*to, *to_port);
        flow.flags = flow_flags::INBOUND | *to_filtering;
    }
    if let Some(rule) = rule {
        flow.flags |= flow_flags::OUTBOUND | mapping::filtering(rule);
        flow.counter = rule.counter;
        flow.rewrite.src = rule.source;
    } else {
        flow.rewrite.src = parsed.key.src;
        flow.rewrite.src_port = parsed.key.src_port;
    }
    flow.rewrite.dst = dst;
    flow.rewrite.dst_port = dst_port;
    let source_delta = Delta::address(parsed.key.src, flow.rewrite.src);
    flow.rewrite.address_delta = source_delta.and(Delta::address(parsed.key.dst, dst)).0;
    let source_port_delta = Delta::word(parsed.key.src_port, flow.rewrite.src_port);
    flow.rewrite.port_delta = source_port_delta.and(Delta::word(parsed.key.dst_port, dst_port)).0;
    flow.last_seen = tables.now();
    flow.state = FlowState::Opening as u8;
    flow.sweep_slot = 0;
    flow.mss = match rule {
        Some(rule) => rule.mss,
        None => mss::BY_MTU,
    };
    flow.packets = 0;
    flow.bytes = 0;
    flow.write_peer_key(parsed.key.protocol, &mut draft.peer_key);
    draft.peer.become_peer(&draft.flow, &parsed.key);
    draft.room = Room::UNKNOWN;
    match enter_reply(tables, &parsed.key, (&draft.peer_key, &draft.peer, Room::UNKNOWN), &mut draft.outgoing.other_key)
    {
        Ok(()) => enter_forward(tables, &parsed.key, draft).map(|_ours| ()),
        Err(NotInserted::Taken) => Err(Outcome::DropNoPort),
        Err(NotInserted::Refused) => Err(Outcome::DropNoFlow),
    }
}

#[cfg(test)]
pub(crate) mod tests;
