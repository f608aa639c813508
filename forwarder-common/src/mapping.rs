//! Endpoint-independent mappings (RFC 4787 section 4.1): a host behind us and one of its ports have one port at an
//! address of ours, whoever they send to.
//!
//! A mapping is kept as a flow is, in the same tables, by keys that no packet has: two entries that undo each other,
//! among the new ones until one of its flows is established, then protected, and swept. Its entry for those outside says
//! when it was last used; the flows that use it refresh it.

use crate::{
    abi::{Flow, FlowKey, Rewrite, Rule, flow_flags, rule_flags},
    address::Address,
    decide::publisher,
    find::{both_live_in, forget, lives, other_lives},
    flow_state::FlowState,
    mss,
    open_flow::{ALL_TRIES, candidate, enter_reply},
    parse::{Parsed, Transport},
    tables::{Draft, Event, FlowEntry, NotInserted, Repeat, Repeated, Room, Tables},
    verdict::Outcome,
};

/// Whether flows of a packet like this have a mapping: what has no ports is told apart by its remote end alone.
pub(crate) const fn has_mapping(transport: Transport) -> bool {
    !matches!(transport, Transport::Other)
}

/// Finds a living mapping; its entry for `key` is in `draft.flow` then. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn find<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, draft: &mut Draft<A>) -> bool {
    if let Some(entry) = tables.embryonic(key)
        && tables.established(key).is_none()
    {
        return goes_on(tables, key, entry, draft);
    }
    // Asked last: a mapping that is being protected is there before it leaves the other table.
    let Some(entry) = tables.established(key) else { return false };
    draft.flow = entry.get();
    entry.is_of(key) && (lives(tables, key, &draft.flow) || other_lives(tables, key, entry))
}

/// Whether a new mapping lives; if not, it is removed. Not inlined: a stack frame of its own.
#[inline(never)]
fn goes_on<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, entry: T::Entry, draft: &mut Draft<A>) -> bool {
    let lives = both_live_in(tables, key, entry, draft);
    if !lives {
        forget(tables, key, entry);
    }
    lives
}

/// The port that the packet's source has at the rule's address, in `draft.flow.rewrite.src_port`: the one that it has
/// already, or a new one. `draft.outgoing.key` is where the mapping is or will be found.
///
/// Not inlined: a stack frame of its own.
///
/// # Errors
/// Why there is none.
#[inline(never)]
pub(crate) fn map<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: &Rule<A>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    write(tables, draft, rule.source, rule.counter, filtering(rule));
    let published = is_published(tables, parsed, &rule.source, draft);
    let tries = if parsed.source_port_is_ours_to_choose() { ALL_TRIES } else { 1 };
    let mut allocation = Allocation { tables, parsed, draft, published, found: Err(Outcome::DropNoPort) };
    tables.repeat(tries, &mut allocation);
    let Allocation { draft, found, .. } = allocation;
    found?;
    enter_from_inside(tables, draft)
}

/// What a rule lets in, as [`Flow::flags`] say it.
#[inline(always)]
pub(crate) const fn filtering<A>(rule: &Rule<A>) -> u8 {
    if rule.flags & rule_flags::ENDPOINT_FILTERING != 0 {
        flow_flags::ENDPOINT_FILTERING
    } else if rule.flags & rule_flags::ADDRESS_FILTERING != 0 {
        flow_flags::ADDRESS_FILTERING
    } else {
        0
    }
}

/// Makes `draft.flow` a mapping's entry for those inside, but for its port.
#[inline(always)]
fn write<A: Address, T: Tables<A>>(tables: &T, draft: &mut Draft<A>, ours: A, counter: u32, filtering: u8) {
    let flow: &mut Flow<A> = &mut draft.flow;
    flow.rewrite.src = ours;
    flow.rewrite.dst = A::default();
    flow.rewrite.src_port = 0;
    flow.rewrite.dst_port = 0;
    flow.rewrite.address_delta = 0;
    flow.rewrite.port_delta = 0;
    flow.last_seen = tables.now();
    flow.counter = counter;
    // The shortest of its protocol's lifetimes: the flows that use it refresh it.
    flow.state = FlowState::Opening as u8;
    flow.flags = filtering;
    flow.mss = mss::UNCHANGED;
    flow.sweep_slot = 0;
    flow.packets = 0;
    flow.bytes = 0;
}

/// Enters a mapping for those inside; for those outside it is entered already.
#[inline(always)]
fn enter_from_inside<A: Address, T: Tables<A>>(tables: &T, draft: &mut Draft<A>) -> Result<(), Outcome> {
    let key = &draft.outgoing.key;
    let refused = tables.insert_embryonic(key, &draft.flow).is_err();
    // Another CPU may have been faster with a packet of the same source: its choice holds, and ours is given back.
    let faster = match tables.established(key) {
        None if !refused => return Ok(()),
        None => tables.embryonic(key),
        Some(protected) => {
            if !refused {
                tables.remove_embryonic(key);
            }
            Some(protected)
        }
    };
    let port = faster.and_then(|entry| {
        let port = entry.get().rewrite.src_port;
        entry.is_of(key).then_some(port)
    });
    if port != Some(draft.flow.rewrite.src_port) {
        tables.remove_embryonic(&draft.peer_key);
    }
    draft.flow.rewrite.src_port = port.ok_or(Outcome::DropNoFlow)?;
    Ok(())
}

/// The search for a port: chooses the draft's and enters the mapping for those outside, which is what reserves it: two
/// mappings never share a port (RFC 4787 REQ-3, RFC 5382 REQ-7).
struct Allocation<'t, A, T> {
    tables: &'t T,
    parsed: &'t Parsed<A>,
    draft: &'t mut Draft<A>,
    /// The source's own port is its own outside, too.
    published: bool,
    found: Result<(), Outcome>,
}

impl<A: Address, T: Tables<A>> Repeated for Allocation<'_, A, T> {
    #[inline(always)]
    fn step(&mut self, attempt: u32) -> Repeat {
        let Self { tables, parsed, draft, published, found } = self;
        let own = *published && attempt == 0;
        let port = if own { Some(parsed.key.src_port) } else { port_to_try(*tables, parsed, attempt) };
        let Some(port) = port else { return Repeat::Again };
        draft.flow.rewrite.src_port = port;
        draft.flow.write_peer_key(draft.outgoing.key.protocol, &mut draft.peer_key);
        if is_of_socket(*tables, parsed, draft) || (!own && is_of_listen(*tables, parsed, draft)) {
            tables.count(draft.flow.counter, Event::PortClash);
            return Repeat::Again;
        }
        draft.peer.become_peer(&draft.flow, &draft.outgoing.key);
        let Draft { peer_key, peer, outgoing, .. } = &mut **draft;
        match enter_reply(*tables, &outgoing.key, (peer_key, peer, Room::UNKNOWN), &mut outgoing.other_key) {
            Ok(()) => {
                *found = Ok(());
                Repeat::Done
            }
            Err(NotInserted::Taken) => Repeat::Again,
            Err(NotInserted::Refused) => {
                *found = Err(Outcome::DropNoFlow);
                Repeat::Done
            }
        }
    }
}

/// The port (network order) that an attempt tries.
#[inline(always)]
fn port_to_try<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, attempt: u32) -> Option<u16> {
    /// Below these are ports of services (RFC 6335 section 6): a host that sends from one keeps it if it can, for some
    /// of those it talks to ask for it (RFC 4787 REQ-3 b).
    const SERVICES: u16 = 1024;
    let wanted = parsed.key.src_port;
    let has_port = matches!(parsed.transport, Transport::Tcp | Transport::Udp);
    if attempt == 0 && has_port && wanted != 0 && u16::from_be(wanted) < SERVICES {
        return Some(wanted);
    }
    candidate(tables, parsed, attempt, true)
}

/// Whether the port of `draft.peer_key` is that of a socket of this machine. Not inlined: a stack frame of its own.
#[inline(never)]
fn is_of_socket<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, draft: &mut Draft<A>) -> bool {
    draft.outgoing.other_key.src = parsed.key.dst;
    draft.outgoing.other_key.src_port = parsed.key.dst_port;
    draft.outgoing.other_key.dst = draft.peer_key.dst;
    draft.outgoing.other_key.dst_port = draft.peer_key.dst_port;
    draft.outgoing.other_key.protocol = parsed.key.protocol;
    tables.socket_takes(&draft.outgoing.other_key)
}

/// Whether the port of `draft.peer_key` is one that a listen names.
#[inline(always)]
fn is_of_listen<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, draft: &Draft<A>) -> bool {
    parsed.transport != Transport::EchoRequest && publisher(tables, &draft.peer_key).is_some()
}

/// Whether a listen with the packet's source port, at `ours`, leads to that very source: then the source goes out with it, as
/// with netfilter, so that whom it tells of itself (a game's list of servers, a tunnel's other end) finds it there. Not if the
/// packet's destination has come by that listen, and what it sends could be either's. Not inlined: a stack frame of its own.
#[inline(never)]
fn is_published<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, ours: &A, draft: &mut Draft<A>) -> bool {
    if parsed.transport == Transport::EchoRequest {
        return false;
    }
    let answer = &mut draft.outgoing.other_key;
    answer.src = parsed.key.dst;
    answer.src_port = parsed.key.dst_port;
    answer.dst = *ours;
    answer.dst_port = parsed.key.src_port;
    answer.protocol = parsed.key.protocol;
    let leads_here = publisher(tables, answer).is_some_and(|rule| rule.port_shift == 0 && rule.to == parsed.key.src);
    leads_here && tables.established(answer).is_none() && tables.embryonic(answer).is_none()
}

/// Whether the port of `draft.peer_key` is that of a mapping, be it one that has expired and waits to be swept.
#[inline(always)]
pub(crate) fn is_mapped<A: Address, T: Tables<A>>(tables: &T, draft: &mut Draft<A>) -> bool {
    let (key, arriving) = (&mut draft.outgoing.other_key, &draft.peer_key);
    key.src = A::default();
    key.src_port = 0;
    key.dst = arriving.dst;
    key.dst_port = arriving.dst_port;
    key.protocol = arriving.protocol | FlowKey::<A>::MAPPING;
    tables.established(key).is_some() || tables.embryonic(key).is_some()
}

/// A packet from inside goes out by a flow: the mapping that it uses lives on (RFC 4787 REQ-6), and so does what that
/// lets in. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn refresh<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, flags: u8, rewrite: &Rewrite<A>) {
    let (ours, port) = (rewrite.src, rewrite.src_port);
    // One key after the other in the same memory: there is no stack for both.
    let mut key = FlowKey::mapping_from_outside(parsed.protocol(), ours, port);
    if let Some(mapping) = tables.established(&key).or_else(|| tables.embryonic(&key)) {
        mapping.refresh(tables.now());
    }
    if flags & flow_flags::ADDRESS_FILTERING != 0 {
        key = FlowKey::permission(parsed.protocol(), (parsed.key.dst, 0), (ours, port));
        if let Some(permission) = tables.embryonic(&key) {
            permission.refresh(tables.now());
        }
    }
}

/// Protects the mappings of a flow that has just been protected itself: `draft.decision` is its forward direction, of
/// packets with `key`.
#[inline(always)]
pub(crate) fn protect_used<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, flags: u8, draft: &mut Draft<A>) {
    let filtering = flags & flow_flags::FILTERING;
    if flags & flow_flags::OUTBOUND != 0 {
        draft.peer_key.src = key.src;
        draft.peer_key.src_port = key.src_port;
        draft.peer_key.dst = draft.decision.rewrite.src;
        draft.peer_key.dst_port = draft.decision.rewrite.src_port;
        protect(tables, key.protocol_number(), filtering, draft);
    }
    if flags & flow_flags::INBOUND != 0 {
        draft.peer_key.src = draft.decision.rewrite.dst;
        draft.peer_key.src_port = draft.decision.rewrite.dst_port;
        draft.peer_key.dst = key.dst;
        draft.peer_key.dst_port = key.dst_port;
        protect(tables, key.protocol_number(), filtering, draft);
    }
}

/// Protects the mapping of `draft.peer_key`'s source to its destination. If a flood has pushed it out meanwhile it is
/// made anew, unless somebody else has its port now. Not inlined: a stack frame of its own.
#[inline(never)]
fn protect<A: Address, T: Tables<A>>(tables: &T, protocol: u8, filtering: u8, draft: &mut Draft<A>) {
    let FlowKey { src: inside, src_port: inside_port, dst: ours, dst_port: port, .. } = draft.peer_key;
    let outside_key = FlowKey::mapping_from_outside(protocol, ours, port);
    if tables.established(&outside_key).is_some() {
        return;
    }
    let is_others = |entry: T::Entry| {
        let Rewrite { dst, dst_port, .. } = entry.get().rewrite;
        (dst != inside || dst_port != inside_port) && entry.is_of(&outside_key)
    };
    if tables.embryonic(&outside_key).is_some_and(is_others) {
        return;
    }
    draft.peer_key = FlowKey::mapping_from_inside(protocol, inside, inside_port, ours);
    write(tables, draft, ours, draft.decision.counter, filtering);
    draft.flow.rewrite.src_port = port;
    draft.peer.become_peer(&draft.flow, &draft.peer_key);
    if tables.protect((&draft.peer_key, &mut draft.flow), (&outside_key, &draft.peer)).is_ok() {
        tables.remove_embryonic(&draft.peer_key);
        tables.remove_embryonic(&outside_key);
    } else {
        tables.count(draft.decision.counter, Event::Unprotected);
    }
}

/// Notes that who is mapped to `ours` and `port` has sent to `remote`, at any port if `remote_port` is 0. `draft.flow` is
/// of the rule. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn permit<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    ours: &A,
    filtering: u8,
    draft: &mut Draft<A>,
) {
    let remote_port = if filtering & flow_flags::ADDRESS_FILTERING != 0 { 0 } else { parsed.key.dst_port };
    let key = &mut draft.outgoing.other_key;
    key.src = parsed.key.dst;
    key.src_port = remote_port;
    key.dst = *ours;
    key.dst_port = draft.flow.rewrite.src_port;
    key.protocol = parsed.key.protocol | FlowKey::<A>::PERMISSION;
    if let Some(permission) = tables.embryonic(key) {
        permission.refresh(tables.now());
        return;
    }
    draft.peer.become_peer(&draft.flow, key);
    draft.peer.last_seen = tables.now();
    draft.peer.state = FlowState::Opening as u8;
    draft.peer.flags = flow_flags::REPLY;
    // Where there is no room, the remote end is let in once it is answered.
    let _ = tables.insert_embryonic(&draft.outgoing.other_key, &draft.peer);
}

/// Whether a mapping with this filtering lets a packet in, by where it comes from (RFC 4787 section 5). The key of the
/// packet as the mapping's host would see it is in `draft.outgoing.other_key`.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn lets_in<A: Address, T: Tables<A>>(tables: &T, filtering: u8, draft: &mut Draft<A>) -> bool {
    if filtering & flow_flags::ENDPOINT_FILTERING != 0 {
        return true;
    }
    let key = &mut draft.outgoing.other_key;
    if filtering & flow_flags::ADDRESS_FILTERING != 0 {
        key.src_port = 0;
    }
    key.protocol |= FlowKey::<A>::PERMISSION;
    tables.embryonic(key).is_some_and(|permission| {
        let lives = lives(tables, key, &permission.get());
        lives && permission.is_of(key)
    })
}
