//! Begins a flow: chooses the source port that the backend will see and enters both directions.

use crate::{
    abi::{Flow, FlowKey, PortRange, Rule, Ticks, elapsed, setting_flags},
    address::Address,
    checksum::Delta,
    decide::{Decision, backend_port, hides, is_from_ourselves},
    find::{end, is_one, lives},
    flow_state::FlowState,
    mapping,
    parse::{Parsed, Transport},
    tables::{At, Draft, Event, FlowEntry, NotInserted, Repeat, Repeated, Room, Tables},
    verdict::Outcome,
    wire::tcp,
};

/// How many ports of each range are tried, after the client's own.
const TRIES: [u32; 3] = [24, 8, 8];
/// How many ports are tried before those of ended connections.
const FREE_TRIES: u32 = 1 + TRIES[0] + TRIES[1] + TRIES[2];
/// How many ports are tried in all.
pub(crate) const ALL_TRIES: u32 = FREE_TRIES + 12;
/// How long the port of an ended connection is left alone, in any case: about a second.
const REST: Ticks = 1000;

/// Enters a flow for a client's packet under a rule that keeps flows, and decides the packet by it. `draft.at` says which hook
/// it is at.
///
/// A TCP packet in the middle of a connection begins one too, as with netfilter (`nf_conntrack_tcp_loose`): after
/// a restart a connection whose port did not change goes on, and any other gets the RST it needs from the backend.
///
/// Not inlined: a stack frame of its own, which packets of flows that exist do not pay for.
///
/// # Errors
/// Why the packet is dropped; then no flow was entered. At XDP nothing was counted either: TC tries again.
#[inline(never)]
pub fn open_flow<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: &Rule<A>,
    draft: &mut Draft<A>,
) -> Result<(), Outcome> {
    if !begins(parsed) {
        return Err(Outcome::Stray);
    }
    if is_from_ourselves(tables, parsed) {
        return Err(Outcome::Martian);
    }
    let ours = hides(rule, parsed.key.src);
    let src = if ours { rule.source } else { parsed.key.src };
    // Field by field: there is no stack for a whole flow in between.
    draft.flow.rewrite.src = src;
    draft.flow.rewrite.dst = rule.to;
    draft.flow.rewrite.dst_port = backend_port(rule, parsed);
    draft.flow.rewrite.address_delta = Delta(rule.to_delta).and(Delta::address(parsed.key.src, src)).0;
    draft.flow.last_seen = tables.now();
    draft.flow.counter = rule.counter;
    draft.flow.state = FlowState::Opening as u8;
    draft.flow.flags = 0;
    draft.flow.mss = rule.mss;
    draft.flow.sweep_slot = 0;
    draft.flow.packets = 1;
    draft.flow.bytes = parsed.length.into();
    let tries = if parsed.source_port_is_ours_to_choose() { ALL_TRIES } else { 1 };
    let mut reservation = Reservation { tables, parsed, draft, ours, found: Err(Outcome::DropNoPort) };
    tables.repeat(tries, &mut reservation);
    let Reservation { draft, found, .. } = reservation;
    found?;
    if enter_forward(tables, &parsed.key, draft)? {
        draft.decision = Decision::of_flow(&draft.flow);
        return Ok(());
    }
    let faster = tables.embryonic(&parsed.key).ok_or(Outcome::DropNoFlow)?;
    draft.decision = Decision::of_flow(&faster.get());
    if faster.is_of(&parsed.key) { Ok(()) } else { Err(Outcome::DropNoFlow) }
}

/// Enters the forward direction, the reply direction being entered. Says whether the flow is the draft's: another CPU may
/// have been faster with a packet of the same flow, then its choice holds.
///
/// # Errors
/// There is no room; then the reply direction is not entered any more.
#[inline(always)]
pub(crate) fn enter_forward<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    draft: &Draft<A>,
) -> Result<bool, Outcome> {
    let Err(why) = tables.insert_in_room(key, &draft.flow, draft.room) else {
        tables.count(draft.flow.counter, Event::FlowBegun);
        return Ok(true);
    };
    // Our port is given back, unless both chose the same.
    let port = draft.flow.rewrite.src_port;
    if tables.embryonic(key).is_none_or(|faster| faster.get().rewrite.src_port != port) {
        tables.remove_embryonic(&draft.peer_key);
    }
    if why == NotInserted::Taken { Ok(false) } else { Err(Outcome::DropNoFlow) }
}

/// Whether a client's packet may begin a flow. Not what ends a connection or answers: a RST, a SYN-ACK (as with
/// netfilter), an echo reply (RFC 5508 section 3.1: queries begin a session).
#[inline(always)]
pub(crate) const fn begins<A: Copy>(parsed: &Parsed<A>) -> bool {
    let flags = parsed.tcp.flags;
    match parsed.transport {
        Transport::Tcp => flags & tcp::RST == 0 && (flags & tcp::SYN == 0 || flags & tcp::ACK == 0),
        Transport::EchoReply => false,
        _ => true,
    }
}

/// The search for a source port: chooses the draft's and enters the reply direction, which is what reserves the port:
/// two flows never share what a reply looks like (RFC 4787 REQ-3, no overloading towards one backend).
struct Reservation<'t, A, T> {
    tables: &'t T,
    parsed: &'t Parsed<A>,
    draft: &'t mut Draft<A>,
    /// The source address is one of ours, so that its ports are shared with this machine's sockets.
    ours: bool,
    found: Result<(), Outcome>,
}

impl<A: Address, T: Tables<A>> Repeated for Reservation<'_, A, T> {
    #[inline(always)]
    fn step(&mut self, attempt: u32) -> Repeat {
        let Self { tables, parsed, draft, ours, found } = self;
        let Some(port) = candidate(*tables, parsed, attempt, *ours) else { return Repeat::Again };
        draft.flow.rewrite.src_port = port;
        draft.flow.rewrite.port_delta =
            Delta::word(parsed.key.src_port, port).and(Delta::word(parsed.key.dst_port, draft.flow.rewrite.dst_port)).0;
        draft.flow.write_peer_key(parsed.key.protocol, &mut draft.peer_key);
        draft.reply_room = reply_room(*tables, &parsed.key, &draft.peer_key);
        if draft.reply_room == Room::TAKEN {
            return Repeat::Again;
        }
        // Both at once, before anything waits for one of them.
        tables.fetch(draft.room);
        tables.fetch(draft.reply_room);
        if *ours && is_of_socket(*tables, &draft.peer_key) {
            if draft.at == At::Xdp {
                *found = Err(Outcome::ToTc);
                return Repeat::Done;
            }
            tables.count(draft.flow.counter, Event::PortClash);
            return Repeat::Again;
        }
        if *ours && tables.settings().flags & setting_flags::MASQUERADE != 0 && mapping::is_mapped(*tables, draft) {
            return Repeat::Again;
        }
        if attempt >= FREE_TRIES {
            let Draft { peer_key, outgoing, .. } = &mut **draft;
            if has_ended(*tables, parsed, peer_key, &mut outgoing.other_key)
                && is_one(*tables, &outgoing.other_key, peer_key)
            {
                end(*tables, &outgoing.other_key, peer_key);
            }
        }
        draft.peer.become_peer(&draft.flow, &parsed.key);
        let reply = (&draft.peer_key, &draft.peer, draft.reply_room);
        match enter_reply(*tables, &parsed.key, reply, &mut draft.outgoing.other_key) {
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

/// Room for a reply direction among the new flows; [`Room::TAKEN`] where another one has its key and lives, by what it says
/// itself. Known without asking for a socket or taking a lock.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn reply_room<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, reply_key: &FlowKey<A>) -> Room {
    let entry = match tables.embryonic_or_room(reply_key) {
        Ok(entry) => entry,
        Err(room) => return room,
    };
    let holder = entry.get();
    if holder.undoes(key) || !lives(tables, key, &holder) || !entry.is_of(reply_key) {
        return Room::UNKNOWN;
    }
    Room::TAKEN
}

/// Whether the connection that has this reply key has ended, and a new one may have its port: where all ports are in use, which a few
/// thousand connections a second to one backend get to while their TIME-WAIT lasts, it is that or no connection. The backend
/// may take a SYN for what is in TIME-WAIT there (RFC 9293 section 3.10.7.4, RFC 6191). Netfilter reuses such ports too
/// (`nf_nat_used_tuple_harder`), at any age, but only if the SYN's number is beyond the old connection's (`nf_seq_has_advanced`),
/// which we do not ask: where the backend refuses, the client tries again, as it would without a port.
/// `forward_key` becomes the key of its other direction.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn has_ended<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    reply_key: &FlowKey<A>,
    forward_key: &mut FlowKey<A>,
) -> bool {
    if !matches!(parsed.transport, Transport::Tcp) || parsed.tcp.flags & tcp::SYN == 0 {
        return false;
    }
    let Some(entry) = tables.established(reply_key) else { return false };
    let flow = entry.get();
    let closed = FlowState::from_number(flow.state) == FlowState::Closed;
    if !closed || elapsed(tables.now(), flow.last_seen) < REST {
        return false;
    }
    flow.write_peer_key(reply_key.protocol, forward_key);
    entry.is_of(reply_key)
}

/// [`Tables::socket_takes`], not inlined: a stack frame of its own.
#[inline(never)]
fn is_of_socket<A: Address, T: Tables<A>>(tables: &T, arriving: &FlowKey<A>) -> bool {
    tables.socket_takes(arriving)
}

/// Enters the reply direction, unless another flow, new or protected, has its key. `memory` is for a key, whatever it holds.
///
/// The order matters against a flow that is just being protected on another CPU: it enters the protected table before
/// it leaves that of new ones, so whoever gets the key here sees it there.
#[inline(always)]
pub(crate) fn enter_reply<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    (reply_key, reply, room): (&FlowKey<A>, &Flow<A>, Room),
    memory: &mut FlowKey<A>,
) -> Result<(), NotInserted> {
    enter_embryonic_reply(tables, key, (reply_key, reply, room), memory)?;
    if tables.established(reply_key).is_some() {
        tables.remove_embryonic(reply_key);
        return Err(NotInserted::Taken);
    }
    Ok(())
}

/// Enters the reply direction among the new flows. What a flood left of this very flow, or what has expired, makes way.
#[inline(always)]
fn enter_embryonic_reply<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    (reply_key, reply, room): (&FlowKey<A>, &Flow<A>, Room),
    memory: &mut FlowKey<A>,
) -> Result<(), NotInserted> {
    match tables.insert_in_room(reply_key, reply, room) {
        Err(NotInserted::Taken) => {}
        other => return other,
    }
    if reply_room(tables, key, reply_key) == Room::TAKEN || !forward_key(tables, reply_key, memory) {
        return Err(NotInserted::Taken);
    }
    if *memory != *key && goes_on(tables, memory, reply_key) {
        return Err(NotInserted::Taken);
    }
    tables.remove_embryonic(reply_key);
    tables.insert_embryonic(reply_key, reply)
}

/// Finds out the key of the forward direction that belongs to a reply direction; `false` where nobody has its key any more.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn forward_key<A: Address, T: Tables<A>>(tables: &T, reply_key: &FlowKey<A>, forward_key: &mut FlowKey<A>) -> bool {
    let Some(entry) = tables.embryonic(reply_key) else { return false };
    entry.get().write_peer_key(reply_key.protocol, forward_key);
    entry.is_of(reply_key)
}

/// Whether the flow of a key lives, and has `reply_key` as the key of its other direction.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn goes_on<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, reply_key: &FlowKey<A>) -> bool {
    let Some(entry) = tables.embryonic(key) else { return false };
    let forward = entry.get();
    forward.undoes(reply_key) && lives(tables, key, &forward)
}

/// The port (network order) that an attempt tries: the client's own first, then random ones (RFC 6056 section
/// 3.3.2) of the same parity (RFC 4787 REQ-4), from the ranges in their order of preference.
#[inline(always)]
pub(crate) fn candidate<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    attempt: u32,
    ours: bool,
) -> Option<u16> {
    let wanted = parsed.key.src_port;
    let [first, second, third] = tables.settings().ports;
    if attempt == 0 {
        let port = u16::from_be(wanted);
        let keep = !ours
            || !matches!(parsed.transport, Transport::Tcp | Transport::Udp)
            || within(first, port)
            || within(second, port);
        return keep.then_some(wanted);
    }
    if parsed.transport == Transport::EchoRequest {
        return Some(tables.random() as u16);
    }
    let range = if attempt <= TRIES[0] {
        first
    } else if attempt <= TRIES[0] + TRIES[1] {
        second
    } else if attempt < FREE_TRIES {
        third
    } else {
        match attempt % 3 {
            0 => first,
            1 => second,
            _ => third,
        }
    };
    // Where all clients have the same parity (Linux `connect` prefers even ports) the other half would never be used.
    let parity_of = if attempt.is_multiple_of(4) { !wanted } else { wanted };
    random_port(range, tables.random(), u16::from_be(parity_of)).map(u16::to_be)
}

const fn within(range: PortRange, port: u16) -> bool {
    range.first <= port && port <= range.last
}

/// A port of the range (host order) with the parity of `wanted` where the range has one; `None` for an empty range.
#[inline(always)]
pub(crate) const fn random_port(range: PortRange, random: u32, wanted: u16) -> Option<u16> {
    if range.first > range.last {
        return None;
    }
    let size = range.last as u32 - range.first as u32 + 1;
    let port = range.first.wrapping_add(match random.checked_rem(size) {
        Some(offset) => offset as u16,
        None => return None,
    });
    let matched = port ^ ((port ^ wanted) & 1);
    Some(if within(range, matched) { matched } else { port })
}

#[cfg(test)]
mod tests;
