//! What becomes of a packet, decided before a byte of it changes.

use crate::{
    abi::{
        Direction, Endpoint, Flow, FlowKey, NextHopState, RangeKey, Rewrite, Rule, Settings, Side, rule_flags,
        setting_flags,
    },
    address::{Address, V4},
    checksum::Delta,
    parse::Parsed,
    prefix, steer,
    tables::{Ends, Event, Tables},
};

/// A packet that will be forwarded, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<A> {
    /// New addresses and ports.
    pub rewrite: Rewrite<A>,
    /// Index into the rule counters.
    pub counter: u32,
    /// Which way it goes.
    pub direction: Direction,
    /// The largest segment size that TCP may announce ([`crate::mss`]).
    pub mss: u16,
}

impl<A: Address> Decision<A> {
    /// A packet that stays as it is.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        let address = A::default();
        let rewrite = Rewrite { src: address, dst: address, src_port: 0, dst_port: 0, address_delta: 0, port_delta: 0 };
        Self { rewrite, counter: 0, direction: Direction::Forward, mss: 0 }
    }

    /// What a flow entry says.
    #[inline(always)]
    pub const fn of_flow(flow: &Flow<A>) -> Self {
        Self { rewrite: flow.rewrite, counter: flow.counter, direction: flow.direction(), mss: flow.mss }
    }

    /// What the packet's way depends on, once it is rewritten.
    #[inline(always)]
    pub const fn ends(&self, settings: &Settings, protocol: u8) -> Ends<A> {
        let Rewrite { src, dst, src_port, .. } = self.rewrite;
        Ends { src, dst, kind: steer::kind(settings, protocol, src_port) }
    }
}

/// The rule that names an endpoint now.
#[inline(always)]
fn rule_at<A: Address, T: Tables<A>>(tables: &T, endpoint: Endpoint<A>) -> Option<&Rule<A>> {
    match tables.slot_of(&endpoint) {
        0 => None,
        slot => tables.rule(slot),
    }
}

/// The slot of the rule that names an endpoint now, 0 for none: an exact port before a range before a whole address.
#[inline(always)]
pub fn find_slot<A: Address, T: Tables<A>>(tables: &T, endpoint: &Endpoint<A>) -> u32 {
    let generation = tables.generation();
    if let Some(slot) = tables.endpoint(endpoint).and_then(|reference| reference.slot(generation)) {
        return slot;
    }
    if !tables.has_ranges() {
        return 0;
    }
    range_at(tables, RangeKey::exact(*endpoint), generation).unwrap_or(0)
}

/// The slot of the longest range around `key` that is in force.
///
/// The trie finds the longest there is. While a reload is under way that may be one which is not in force yet, or no
/// longer: then the next wider kind is asked for. Ranges of one kind do not overlap.
#[inline(always)]
fn range_at<A: Address, T: Tables<A>>(tables: &T, mut key: RangeKey<A>, generation: u32) -> Option<u32> {
    let whole_address = key.prefix_len - RangeKey::<A>::TAIL_BITS;
    if let Some(slot) = tables.range(&key)?.slot(generation) {
        return Some(slot);
    }
    key.prefix_len = whole_address + RangeKey::<A>::PROTOCOL_BITS;
    if let Some(slot) = tables.range(&key)?.slot(generation) {
        return Some(slot);
    }
    key.prefix_len = whole_address;
    tables.range(&key)?.slot(generation)
}

/// The rule whose listen names the port that a packet with this key arrives at, by itself or in a range. One that names a whole
/// address leaves its ports to whoever has them.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn publisher<'t, A: Address, T: Tables<A>>(tables: &'t T, arriving: &FlowKey<A>) -> Option<&'t Rule<A>> {
    let endpoint = Endpoint {
        address: arriving.dst,
        port: arriving.dst_port,
        protocol: arriving.protocol_number(),
        side: Side::Listen as u8,
    };
    let generation = tables.generation();
    if let Some(slot) = tables.endpoint(&endpoint).and_then(|reference| reference.slot(generation)) {
        return tables.rule(slot);
    }
    if !tables.has_ranges() {
        return None;
    }
    let mut key = RangeKey::exact(endpoint);
    let at_port = tables.range(&key).and_then(|reference| reference.slot(generation));
    key.prefix_len = key.prefix_len - RangeKey::<A>::TAIL_BITS + RangeKey::<A>::PROTOCOL_BITS;
    if at_port == tables.range(&key).and_then(|reference| reference.slot(generation)) {
        return None;
    }
    tables.rule(at_port?)
}

/// Whether a packet that a rule names is this machine's own all the same: a rule that names a whole address or a range
/// takes what arrives there, except what belongs to a connection of this machine. With netfilter it is the same: what
/// answers the machine's own connections is not new, and is not translated.
#[inline(always)]
pub fn is_own<A: Address, T: Tables<A>>(tables: &T, rule: &Rule<A>, parsed: &Parsed<A>) -> bool {
    rule.flags & rule_flags::SPARES_SOCKETS != 0 && tables.socket_connected(&parsed.key)
}

/// Whether an IPv4 packet that came in says that it is from this machine itself: the kernel refuses it too (RFC 1812
/// section 5.3.7). IPv6 has no such rule, and netfilter forwards it. Asked about what would begin a flow.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn is_from_ourselves<A: Address, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> bool {
    size_of::<A>() == size_of::<V4>()
        && tables.way(&Ends { src: parsed.key.dst, dst: parsed.key.src, kind: 0 }).state == NextHopState::Local
}

/// The listen that a packet is for, if a rule has it.
#[inline(always)]
pub fn listen<A: Address>(parsed: &Parsed<A>) -> Endpoint<A> {
    Endpoint {
        address: parsed.key.dst,
        port: parsed.key.dst_port,
        protocol: parsed.protocol(),
        side: Side::Listen as u8,
    }
}

/// The backend that a packet comes from, if a stateless rule has it; `None` where there are no stateless rules.
#[inline(always)]
pub fn backend<A: Address>(settings: &Settings, parsed: &Parsed<A>) -> Option<Endpoint<A>> {
    (settings.flags & setting_flags::STATELESS != 0).then(|| Endpoint {
        address: parsed.key.src,
        port: parsed.key.src_port,
        protocol: parsed.protocol(),
        side: Side::Backend as u8,
    })
}

/// The rule whose listen a packet is for.
#[inline(always)]
pub fn listen_rule<'t, A: Address, T: Tables<A>>(tables: &'t T, parsed: &Parsed<A>) -> Option<&'t Rule<A>> {
    rule_at(tables, listen(parsed))
}

/// The stateless rule whose backend a packet comes from.
#[inline(always)]
pub fn backend_rule<'t, A: Address, T: Tables<A>>(tables: &'t T, parsed: &Parsed<A>) -> Option<&'t Rule<A>> {
    rule_at(tables, backend(tables.settings(), parsed)?)
}

/// Whether a rule lets this client in; counted when not.
#[inline(always)]
pub fn admits<A: Address, T: Tables<A>>(tables: &T, rule: &Rule<A>, client: A) -> bool {
    let lets_in = lets_in(tables, rule, client);
    if !lets_in {
        tables.count(rule.counter, Event::Denied);
    }
    lets_in
}

/// [`admits`], not counted.
#[inline(always)]
pub(crate) fn lets_in<A: Address, T: Tables<A>>(tables: &T, rule: &Rule<A>, client: A) -> bool {
    rule.flags & rule_flags::ALLOW == 0 || tables.allows(rule.allow, client)
}

/// Whether a rule that shows its backend the clients' addresses cannot do so for this client: the backend would answer
/// it directly, past us, and the client not know what that answers (RFC 4787 section 6).
#[inline(always)]
pub fn is_hairpin<A: Address>(rule: &Rule<A>, client: A) -> bool {
    rule.flags & rule_flags::HAIRPIN != 0 && client.shares(rule.mask, rule.to)
}

/// Whether the backend sees an address of ours instead of this client's.
#[inline(always)]
pub fn hides<A: Address>(rule: &Rule<A>, client: A) -> bool {
    rule.flags & rule_flags::REWRITE_SOURCE != 0 || is_hairpin(rule, client)
}

/// Adds in host order to a port in network order, wrapping.
#[inline(always)]
const fn shifted(port: u16, by: u16) -> u16 {
    u16::from_be(port).wrapping_add(by).to_be()
}

/// The destination port at the backend, for a packet to the listen.
#[inline(always)]
pub fn backend_port<A>(rule: &Rule<A>, parsed: &Parsed<A>) -> u16 {
    if rule.port_shift == 0 { parsed.key.dst_port } else { shifted(parsed.key.dst_port, rule.port_shift) }
}

/// The source port at the listen, for a packet from the backend.
#[inline(always)]
pub fn listen_port<A>(rule: &Rule<A>, parsed: &Parsed<A>) -> u16 {
    if rule.port_shift == 0 {
        parsed.key.src_port
    } else {
        shifted(parsed.key.src_port, rule.port_shift.wrapping_neg())
    }
}

/// Client to backend under a stateless rule. `None` if a one-to-one rule has no address for it ([`prefix`]).
#[inline(always)]
pub fn stateless_forward<A: Address>(rule: &Rule<A>, parsed: &Parsed<A>) -> Option<Decision<A>> {
    if rule.flags & rule_flags::PREFIX != 0 {
        return Some(Decision {
            rewrite: prefix::forward(rule, &parsed.key)?,
            counter: rule.counter,
            direction: Direction::Forward,
            mss: rule.mss,
        });
    }
    let dst_port = backend_port(rule, parsed);
    Some(Decision {
        rewrite: Rewrite {
            src: parsed.key.src,
            dst: rule.to,
            src_port: parsed.key.src_port,
            dst_port,
            address_delta: rule.to_delta,
            port_delta: Delta::word(parsed.key.dst_port, dst_port).0,
        },
        counter: rule.counter,
        direction: Direction::Forward,
        mss: rule.mss,
    })
}

/// Backend to client under a stateless rule. `None` if a one-to-one rule has no address for it ([`prefix`]).
#[inline(always)]
pub fn stateless_reply<A: Address>(rule: &Rule<A>, parsed: &Parsed<A>) -> Option<Decision<A>> {
    if rule.flags & rule_flags::PREFIX != 0 {
        return Some(Decision {
            rewrite: prefix::reply(rule, &parsed.key)?,
            counter: rule.counter,
            direction: Direction::Reply,
            mss: rule.mss,
        });
    }
    let src_port = listen_port(rule, parsed);
    Some(Decision {
        rewrite: Rewrite {
            src: rule.listen,
            dst: parsed.key.dst,
            src_port,
            dst_port: parsed.key.dst_port,
            address_delta: Delta(rule.to_delta).undone().0,
            port_delta: Delta::word(parsed.key.src_port, src_port).0,
        },
        counter: rule.counter,
        direction: Direction::Reply,
        mss: rule.mss,
    })
}

#[cfg(test)]
mod tests;
