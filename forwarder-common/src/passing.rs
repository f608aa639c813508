//! Connections from outside to a host behind us by the host's own address: this machine's kernel forwards them, if it
//! does that. What answers them must not go out with an address of ours, so it is noted that they began there, as
//! netfilter's connection tracking knows.
//!
//! A note is kept as a flow is, in the same tables and with the same life, by keys that no packet has; it rewrites
//! nothing. Only machines with hosts that go out by us have any.

use crate::{
    abi::{FlowKey, Rule},
    address::Address,
    complete::{follow, grow},
    flow_state::FlowState,
    mapping, mss,
    open_flow::begins,
    parse::{Parsed, Transport},
    tables::{Draft, FlowEntry, Tables},
};

/// A packet from outside to a host behind us.
#[inline(always)]
pub(crate) fn comes_in<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, rule: &Rule<A>, draft: &mut Draft<A>) {
    if !goes_on(tables, parsed, draft) && begins(parsed) {
        begin(tables, parsed, rule, draft);
    }
}

/// Whether a packet belongs to a connection that was noted; then its note is up to date. Not inlined: a stack frame of
/// its own.
#[inline(never)]
pub(crate) fn goes_on<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, draft: &mut Draft<A>) -> bool {
    let key = FlowKey::passing(&parsed.key);
    let found = mapping::find(tables, &key, draft);
    if found {
        update(tables, parsed, &key, draft);
    }
    found
}

/// A packet of a connection that was noted: brings its note up to date. Not inlined: a stack frame of its own.
#[inline(never)]
fn update<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, key: &FlowKey<A>, draft: &mut Draft<A>) {
    // A note that is being protected is there before it leaves the other table.
    if let Some(entry) = tables.embryonic(key) {
        entry.seen(tables.now(), parsed.length);
        grow(tables, parsed, key, entry, draft);
    } else if let Some(entry) = tables.established(key) {
        entry.seen(tables.now(), parsed.length);
        if matches!(parsed.transport, Transport::Tcp) {
            follow(tables, parsed, key.protocol, entry, draft);
        }
    }
}

/// Notes a connection. Not inlined: a stack frame of its own.
#[inline(never)]
fn begin<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, rule: &Rule<A>, draft: &mut Draft<A>) {
    draft.outgoing.key = FlowKey::passing(&parsed.key);
    let flow = &mut draft.flow;
    flow.rewrite.src = parsed.key.src;
    flow.rewrite.dst = parsed.key.dst;
    flow.rewrite.src_port = parsed.key.src_port;
    flow.rewrite.dst_port = parsed.key.dst_port;
    flow.rewrite.address_delta = 0;
    flow.rewrite.port_delta = 0;
    flow.last_seen = tables.now();
    // So that it ends with its rule.
    flow.counter = rule.counter;
    flow.state = FlowState::Opening as u8;
    flow.flags = 0;
    flow.mss = mss::UNCHANGED;
    flow.sweep_slot = 0;
    flow.packets = 1;
    flow.bytes = parsed.length.into();
    flow.write_peer_key(draft.outgoing.key.protocol, &mut draft.peer_key);
    draft.peer.become_peer(&draft.flow, &draft.outgoing.key);
    // Whatever is there is of the same connection: nothing is translated, so no two share a key. Without room it is as
    // if nobody had looked.
    let _ = tables.insert_embryonic(&draft.peer_key, &draft.peer);
    let _ = tables.insert_embryonic(&draft.outgoing.key, &draft.flow);
}

#[cfg(test)]
mod tests;
