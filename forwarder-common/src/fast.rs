//! What a table already decides is rewritten and sent on; everything else passes untouched. All that XDP does, and the
//! first that TC tries: few branches, all in one place.

use crate::{
    abi::{Direction, NextHopState, elapsed, next_hop_flags, rule_flags, setting_flags},
    address::Address,
    apply::apply,
    complete::on_the_wire,
    decide::{Decision, admits, backend, is_hairpin, is_own, listen, stateless_forward, stateless_reply},
    flow_state::FlowState,
    mss,
    packet::Packet,
    parse::{Family, Parsed, TcpFields, Transport},
    steer,
    tables::{At, FlowEntry, Hop, Tables},
    verdict::{Outcome, Verdict},
    window::Reached,
    wire::tcp,
};

/// Flags that begin or end a connection: the TC program, which keeps both directions in step, has to see them.
const CONNECTION_FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;

/// What every packet has after its network header that XDP forwards, in bytes: as much as UDP and ICMP have, and most that
/// have no ports. Shorter ones are left to TC, for XDP looks for all of that at once.
pub const LEAST_TRANSPORT: usize = 8;

/// What became of a packet, and at XDP who else may try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What became of it.
    pub verdict: Verdict,
    /// It may begin a flow: of what is passed at XDP, [`crate::begin`] may take it.
    pub begins: bool,
}

impl Tried {
    #[inline(always)]
    const fn done(verdict: Verdict) -> Self {
        Self { verdict, begins: false }
    }
}

/// Why a packet is not sent.
#[derive(Clone, Copy)]
enum Left {
    For(Outcome),
    /// A rule that keeps flows names it, and no protected flow has it.
    ToBegin,
}

impl Left {
    #[inline(always)]
    const fn tried<A>(self, parsed: &Parsed<A>) -> Tried {
        match self {
            Self::For(outcome) => Tried::done(Verdict::of(outcome)),
            Self::ToBegin => Tried { verdict: Verdict::of(Outcome::ToTc), begins: may_begin(parsed) },
        }
    }
}

impl From<Outcome> for Left {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self::For(outcome)
    }
}

/// Whether a packet is one that usually begins a flow. TCP's others are mostly of a flow that is new still, which is TC's.
#[inline(always)]
const fn may_begin<A>(parsed: &Parsed<A>) -> bool {
    !matches!(parsed.transport, Transport::Tcp) || parsed.tcp.flags & (CONNECTION_FLAGS | tcp::ACK) == tcp::SYN
}

/// Decides a packet and, if it is to be forwarded, rewrites it. Changes nothing that it passes, and nothing in tables
/// unless it forwards.
///
/// At TC, what is passed goes on to [`crate::complete::process`]; what is dropped is counted, or half rewritten.
#[inline(always)]
pub fn process<F: Family, T: Tables<F::Address>>(
    packet: &mut impl Packet,
    tables: &T,
    network: usize,
    at: At,
) -> Tried {
    // Known beforehand, where the parser's word for it would have to be looked up again.
    let transport = network + F::HEADER;
    if at == At::Xdp && !packet.has(transport + LEAST_TRANSPORT) {
        return Tried::done(Verdict::of(Outcome::ToTc));
    }
    let parsed = match F::plain(packet, network) {
        Ok(parsed) => parsed,
        Err(outcome) => return Tried::done(Verdict::of(outcome)),
    };
    // Not in the result, where it would be undefined for a packet that is left, which the verifier refuses to see stored.
    let mut decision = Decision::none();
    let entry = match decide(tables, &parsed, at, &mut decision) {
        Ok(entry) => entry,
        Err(left) => return left.tried(&parsed),
    };
    let hop = match way_out(packet, tables, (network, transport, at), &parsed, &decision) {
        Ok(hop) => hop,
        Err(outcome) => return Tried::done(Verdict::of(outcome)),
    };
    // At TC the complete path looks at it: here the stack has no room for that question.
    if mss::announced(&parsed)
        && decision.mss != mss::UNCHANGED
        && (at == At::Tc || !mss::fits::<F, _>(packet, tables, &parsed, hop.mtu, decision.mss))
    {
        return Tried::done(Verdict::of(Outcome::ToTc));
    }
    if apply::<F>(packet, (network, transport), &parsed, &decision.rewrite).is_none() {
        return Tried::done(Verdict::of(match at {
            At::Xdp => Outcome::ToTc,
            At::Tc => Outcome::DropError,
        }));
    }
    if let Some(entry) = entry {
        if matches!(parsed.transport, Transport::Tcp) && matches!(decision.direction, Direction::Reply) {
            note_reached(packet, transport, tables, (&parsed, entry));
        }
        entry.seen(tables.now(), parsed.length);
    }
    tables.count_forwarded(decision.counter, decision.direction, parsed.length);
    if hop.line != 0 {
        steer::count(tables, &hop, Direction::Forward, parsed.length);
    }
    Tried::done(Verdict::transmit(hop))
}

/// Notes how far a TCP connection has come, where the clock has gone on since the flow's last packet: not with every
/// packet. The numbers are read once more, so that nobody else has to keep them.
#[inline(always)]
fn note_reached<A: Address, T: Tables<A>>(
    packet: &impl Packet,
    transport: usize,
    tables: &T,
    (parsed, entry): (&Parsed<A>, T::Entry),
) {
    let flow = entry.get();
    if flow.last_seen == tables.now() {
        return;
    }
    let Some([s0, s1, s2, s3, a0, a1, a2, a3]) = packet.read(transport + tcp::SEQUENCE) else { return };
    let (sequence, acknowledgment) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([a0, a1, a2, a3]));
    let reached = Reached::by(Direction::Reply, &TcpFields { flags: parsed.tcp.flags, sequence, acknowledgment });
    if Reached(flow.sweep_slot).leads_to(reached) {
        entry.note_reached(reached);
    }
}

/// What becomes of a packet, and its flow if it has one.
#[inline(always)]
fn decide<A: Address, T: Tables<A>>(
    tables: &T,
    parsed: &Parsed<A>,
    at: At,
    decision: &mut Decision<A>,
) -> Result<Option<T::Entry>, Left> {
    let settings = tables.settings();
    let keeps_flows = match at {
        // The answers of a hairpin are for an address of ours, and so for TC.
        At::Xdp => settings.flags & setting_flags::FLOWS != 0,
        At::Tc => settings.flags & (setting_flags::FLOWS | setting_flags::HAIRPIN) != 0,
    };
    if keeps_flows && let Some(entry) = tables.established(&parsed.key) {
        let flow = entry.get();
        if !entry.is_of(&parsed.key) {
            return Err(Outcome::ToTc.into());
        }
        let plain = parsed.tcp.flags & CONNECTION_FLAGS == 0;
        if FlowState::from_number(flow.state) != FlowState::Established || !plain {
            return Err(Outcome::ToTc.into());
        }
        let timeout = FlowState::Established.timeout(parsed.protocol(), &settings.timeouts);
        if elapsed(tables.now(), flow.last_seen) > timeout {
            return Err(Outcome::ToTc.into());
        }
        *decision = Decision::of_flow(&flow);
        return Ok(Some(entry));
    }
    if at == At::Tc && keeps_flows && tables.may_be_new(&parsed.key) {
        return Err(Outcome::ToTc.into());
    }
    if let Some(rule) = tables.named(&listen(parsed)) {
        if rule.flags & rule_flags::STATELESS == 0 {
            return Err(Left::ToBegin);
        }
        // One question for what few rules want.
        if rule.flags & (rule_flags::SPARES_SOCKETS | rule_flags::ALLOW) != 0 {
            if is_own(tables, rule, parsed) {
                return Err(Outcome::ToSelf.into());
            }
            if !admits(tables, rule, parsed.key.src) {
                return Err(Outcome::DropNotAllowed.into());
            }
        }
        if is_hairpin(rule, parsed.key.src) {
            return Err(Outcome::ToTc.into());
        }
        *decision = stateless_forward(rule, parsed).ok_or(Outcome::ToTc)?;
        return Ok(None);
    }
    match backend(settings, parsed).and_then(|backend| tables.named(&backend)) {
        // A rule that keeps flows may lead to a host of a one-to-one rule: its new flows are looked up at TC.
        Some(rule)
            if rule.flags & rule_flags::PREFIX != 0
                && settings.flags & setting_flags::FLOWS != 0
                && tables.may_be_new(&parsed.key) =>
        {
            Err(Outcome::ToTc.into())
        }
        Some(rule) => {
            *decision = stateless_reply(rule, parsed).ok_or(Outcome::ToTc)?;
            Ok(None)
        }
        None => Err(Outcome::NotOurs.into()),
    }
}

/// The next hop, if the hook can send there at once; the complete path deals with every other case. Where a NIC or the
/// kernel cuts a packet into segments on its way out, those must fit: there are none at XDP.
#[inline(always)]
fn way_out<A: Address, T: Tables<A>>(
    packet: &impl Packet,
    tables: &T,
    (network, transport, at): (usize, usize, At),
    parsed: &Parsed<A>,
    decision: &Decision<A>,
) -> Result<Hop, Outcome> {
    if parsed.hop_limit <= 1 {
        return Err(Outcome::ToTc);
    }
    let ends = decision.ends(tables.settings(), parsed.protocol());
    let (hop, usable, longest) = match at {
        At::Xdp => {
            let hop = tables.next_hop(&ends);
            (hop, is_for_xdp(&hop), parsed.length)
        }
        At::Tc => {
            let longest = on_the_wire(packet, network, transport, parsed.protocol(), parsed.length);
            (tables.known_next_hop(&ends), true, longest)
        }
    };
    let goes = usable && hop.state == NextHopState::Resolved && longest <= hop.mtu;
    if goes { Ok(hop) } else { Err(Outcome::ToTc) }
}

/// Whether XDP can send out there.
#[inline(always)]
pub(crate) const fn is_for_xdp(hop: &Hop) -> bool {
    hop.flags & (next_hop_flags::XDP_OUT | next_hop_flags::CONFIRM) == next_hop_flags::XDP_OUT
}

#[cfg(test)]
mod tests;
