//! Begins a flow: chooses the source port that the backend will see and enters both directions.

use crate::{
    abi::{Direction, Flow, FlowKey, PortRange, Rewrite, Rule, rule_flags},
    address::Address,
    checksum::Delta,
    decide::{Decision, backend_port},
    flow_state::FlowState,
    parse::{Parsed, Transport},
    tables::{Event, FlowEntry, NotInserted, Tables},
    verdict::Outcome,
    wire::tcp,
};

/// How many ports of each range are tried, after the client's own.
const TRIES: [u32; 3] = [24, 8, 8];
/// How many ports are tried in all.
const ALL_TRIES: u32 = 1 + TRIES[0] + TRIES[1] + TRIES[2];

/// Enters a flow for a client's packet under a rule that keeps flows.
///
/// A TCP packet in the middle of a connection begins one too, as with netfilter (`nf_conntrack_tcp_loose`): after
/// a restart a connection whose port did not change goes on, and any other gets the RST it needs from the backend.
///
/// # Errors
/// Why the packet is dropped; then no flow was entered.
#[inline(always)]
pub fn open_flow<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    rule: &Rule<A>,
) -> Result<Decision<A>, Outcome> {
    if parsed.transport.flags() & tcp::RST != 0 {
        return Err(Outcome::DropNoState);
    }
    let rewrites_source = rule.flags & rule_flags::REWRITE_SOURCE != 0;
    let src = if rewrites_source { rule.source } else { parsed.key.src };
    let dst_port = backend_port(rule, parsed);
    let mut flow = Flow {
        rewrite: Rewrite {
            src,
            dst: rule.to,
            src_port: parsed.key.src_port,
            dst_port,
            address_delta: Delta(rule.to_delta).and(Delta::address(parsed.key.src, src)).0,
            port_delta: 0,
        },
        last_seen: tables.now(),
        counter: rule.counter,
        state: FlowState::Opening as u8,
        direction: Direction::Forward as u8,
        zero: 0,
        sweep_slot: 0,
        packets: 1,
        bytes: parsed.length.into(),
    };
    reserve(tables, parsed, &mut flow, rewrites_source)?;
    match tables.insert_embryonic(&parsed.key, &flow) {
        Ok(()) => {
            tables.count(rule.counter, Event::FlowBegun);
            Ok(Decision::of_flow(&flow))
        }
        // Another CPU was faster with a packet of the same flow: its choice holds, ours is given back.
        Err(NotInserted::Taken) => {
            tables.remove_embryonic(&flow.peer_key(parsed.key.protocol));
            match tables.embryonic(&parsed.key) {
                Some(entry) => Ok(Decision::of_flow(&entry.get())),
                None => Err(Outcome::DropNoFlow),
            }
        }
        Err(NotInserted::Refused) => {
            tables.remove_embryonic(&flow.peer_key(parsed.key.protocol));
            Err(Outcome::DropNoFlow)
        }
    }
}

/// Chooses `flow`'s source port and enters the reply direction, which is what reserves the port: two flows never
/// share what a reply looks like (RFC 4787 REQ-3, no overloading towards one backend).
#[inline(always)]
fn reserve<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    flow: &mut Flow<A>,
    ours: bool,
) -> Result<(), Outcome> {
    let wanted = parsed.key.src_port;
    let free_choice = parsed.source_port_is_ours_to_choose();
    for attempt in 0..ALL_TRIES {
        if attempt > 0 && !free_choice {
            break;
        }
        let Some(port) = candidate(tables, parsed, attempt, ours) else { continue };
        flow.rewrite.src_port = port;
        flow.rewrite.port_delta =
            Delta::word(wanted, port).and(Delta::word(parsed.key.dst_port, flow.rewrite.dst_port)).0;
        let reply_key = flow.peer_key(parsed.key.protocol);
        if ours && tables.socket_takes(&reply_key) {
            tables.count(flow.counter, Event::PortClash);
            continue;
        }
        match enter_reply(tables, parsed, flow, &reply_key) {
            // The order matters against a flow that is just being protected on another CPU: it enters the
            // protected table before it leaves this one, so whoever gets the key here sees it there.
            Ok(()) if tables.established(&reply_key).is_some() => tables.remove_embryonic(&reply_key),
            Ok(()) => return Ok(()),
            Err(NotInserted::Taken) => {}
            Err(NotInserted::Refused) => return Err(Outcome::DropNoFlow),
        }
    }
    Err(Outcome::DropNoPort)
}

/// Enters the reply direction. What a flood left of this very flow, or what has expired, makes way.
#[inline(always)]
fn enter_reply<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
    reply_key: &FlowKey<A>,
) -> Result<(), NotInserted> {
    let reply = flow.peer(&parsed.key);
    match tables.insert_embryonic(reply_key, &reply) {
        Err(NotInserted::Taken) => {}
        other => return other,
    }
    let Some(holder) = tables.embryonic(reply_key) else { return Err(NotInserted::Taken) };
    let holder = holder.get();
    let ours = holder.rewrite.dst == parsed.key.src
        && holder.rewrite.src == parsed.key.dst
        && holder.rewrite.dst_port == parsed.key.src_port
        && holder.rewrite.src_port == parsed.key.dst_port;
    let timeout = FlowState::from_number(holder.state).timeout(parsed.protocol(), &tables.settings().timeouts);
    if !ours && crate::abi::elapsed(flow.last_seen, holder.last_seen) <= timeout {
        return Err(NotInserted::Taken);
    }
    tables.remove_embryonic(reply_key);
    tables.insert_embryonic(reply_key, &reply)
}

/// The port (network order) that an attempt tries: the client's own first, then random ones (RFC 6056 section
/// 3.3.2) of the same parity (RFC 4787 REQ-4), from the ranges in their order of preference.
#[inline(always)]
fn candidate<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, attempt: u32, ours: bool) -> Option<u16> {
    let wanted = parsed.key.src_port;
    let [first, second, third] = tables.settings().ports;
    if attempt == 0 {
        let port = u16::from_be(wanted);
        let keep = !ours
            || !matches!(parsed.transport, Transport::Tcp { .. } | Transport::Udp)
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
    } else {
        third
    };
    random_port(range, tables.random(), u16::from_be(wanted)).map(u16::to_be)
}

const fn within(range: PortRange, port: u16) -> bool {
    range.first <= port && port <= range.last
}

/// A port of the range (host order) with the parity of `wanted` where the range has one; `None` for an empty range.
#[inline(always)]
const fn random_port(range: PortRange, random: u32, wanted: u16) -> Option<u16> {
    if range.first > range.last {
        return None;
    }
    let size = range.last as u32 - range.first as u32 + 1;
    let port = range.first.wrapping_add((random % size) as u16);
    let matched = port ^ ((port ^ wanted) & 1);
    Some(if within(range, matched) { matched } else { port })
}

#[cfg(test)]
mod tests;
