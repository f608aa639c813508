//! What a packet belongs to: a flow, or a rule.

use crate::{
    abi::{Direction, Flow, FlowKey, Rule, Settings, Side, elapsed, flow_flags, rule_flags, setting_flags},
    address::Address,
    decide::{admits, backend_rule, hides, is_hairpin, is_own, listen_port, listen_rule},
    flow_state::FlowState,
    parse::Parsed,
    prefix, steer,
    tables::{Draft, Ends, FlowEntry, NotInserted, Tables},
    verdict::Outcome,
};

/// What a packet belongs to.
pub(crate) enum Found<'t, A, E> {
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
    pub(crate) fn src(&self, parsed: &Parsed<A>) -> A {
        match self {
            Self::Established(entry) | Self::Embryonic(entry) => entry.get().rewrite.src,
            Self::Reply(rule) if rule.flags & rule_flags::PREFIX != 0 => {
                prefix::outside(rule, parsed.key.src).unwrap_or(parsed.key.src)
            }
            Self::Reply(rule) => rule.listen,
            Self::Forward(rule) if rule.flags & rule_flags::PREFIX != 0 => prefix::source(rule, parsed.key.src),
            Self::New(rule) if hides(rule, parsed.key.src) => rule.source,
            Self::Forward(_) | Self::New(_) => parsed.key.src,
        }
    }

    /// The address that the sender of a packet takes for the other end, where it is one of ours, else that of the rule:
    /// what an answer to the sender comes from. Never somebody else's: who traces a route would take us for them.
    #[inline(always)]
    pub(crate) fn known_to_sender(&self, parsed: &Parsed<A>) -> A {
        match self {
            Self::Reply(_) => self.src(parsed),
            Self::Established(entry) | Self::Embryonic(entry) => {
                let flow = entry.get();
                let to_others = match flow.direction() {
                    Direction::Forward => flow.flags & flow_flags::OUTBOUND != 0,
                    Direction::Reply => flow.rewrite.dst == parsed.key.dst,
                };
                if to_others { flow.rewrite.src } else { parsed.key.dst }
            }
            Self::Forward(_) | Self::New(_) => parsed.key.dst,
        }
    }

    /// The destination after the rewrite.
    #[inline(always)]
    pub(crate) fn dst(&self, parsed: &Parsed<A>) -> A {
        match self {
            Self::Established(entry) | Self::Embryonic(entry) => entry.get().rewrite.dst,
            Self::Reply(_) => parsed.key.dst,
            Self::Forward(rule) if rule.flags & rule_flags::PREFIX != 0 => {
                prefix::inside(rule, parsed.key.dst).unwrap_or(parsed.key.dst)
            }
            Self::Forward(rule) | Self::New(rule) => rule.to,
        }
    }

    /// What its way depends on, once it is rewritten.
    #[inline(always)]
    pub(crate) fn ends(&self, settings: &Settings, parsed: &Parsed<A>) -> Ends<A> {
        let (src, dst) = (self.src(parsed), self.dst(parsed));
        Ends { src, dst, kind: steer::kind(settings, parsed.protocol(), self.src_port(parsed)) }
    }

    /// The source port after the rewrite; that of a flow yet to begin is not known, and taken as it is.
    #[inline(always)]
    fn src_port(&self, parsed: &Parsed<A>) -> u16 {
        match self {
            Self::Established(entry) | Self::Embryonic(entry) => entry.get().rewrite.src_port,
            Self::Reply(rule) => listen_port(rule, parsed),
            Self::Forward(_) | Self::New(_) => parsed.key.src_port,
        }
    }

    /// Whether the packet is this machine's own if its way leads to this machine: replies to the machine's own
    /// connections to a backend (health checks, say), and what a one-to-one rule maps onto an address of the machine.
    #[inline(always)]
    pub(crate) fn may_be_own(&self) -> bool {
        match self {
            Self::Reply(_) => true,
            Self::Forward(rule) => rule.flags & rule_flags::PREFIX != 0,
            Self::Established(_) | Self::Embryonic(_) | Self::New(_) => false,
        }
    }
}

#[inline(always)]
pub(crate) fn find<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    parsed: &Parsed<A>,
) -> Result<Found<'t, A, T::Entry>, Outcome> {
    let settings = tables.settings();
    if settings.flags & (setting_flags::FLOWS | setting_flags::HAIRPIN) != 0
        && let Some(found) = find_flow(tables, &parsed.key)
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
        let stateless = rule.flags & rule_flags::STATELESS != 0 && !is_hairpin(rule, parsed.key.src);
        return Ok(if stateless { Found::Forward(rule) } else { Found::New(rule) });
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
pub(crate) fn rule_of<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    parsed: &Parsed<A>,
    side: Side,
) -> Option<&'t Rule<A>> {
    match side {
        Side::Listen => listen_rule(tables, parsed),
        Side::Backend => backend_rule(tables, parsed),
        Side::Inside | Side::Fragment | Side::Steered | Side::OnLink | Side::Neighbor => None,
    }
}

/// The flow of a packet, unless it has expired: then it goes, as if the sweeper had been faster.
#[inline(always)]
fn find_flow<'t, A: Address, T: Tables<A>>(tables: &'t T, key: &FlowKey<A>) -> Option<Found<'t, A, T::Entry>> {
    if let Some(entry) = tables.established(key) {
        let goes_on = lives(tables, key, &entry.get()) || other_lives(tables, key, entry);
        return goes_on.then_some(Found::Established(entry));
    }
    if let Some(entry) = tables.embryonic(key) {
        if both_live(tables, key, entry) {
            return Some(Found::Embryonic(entry));
        }
        forget(tables, key, entry);
    }
    // Another CPU may have protected it meanwhile: then it was there before it left the new ones.
    tables.established(key).map(Found::Established)
}

/// Removes a new flow that was found by `key` and is over, unless another one has taken its place: then this key's is gone,
/// or was entered anew. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn forget<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, entry: T::Entry) {
    if entry.is_of(key) {
        tables.remove_embryonic(key);
    }
}

/// No slot of the sweeper's.
const NO_SLOT: u32 = u32::MAX;

/// Whether the other direction of a protected flow has seen a packet recently enough; if not, the flow is removed.
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn other_lives<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, entry: T::Entry) -> bool {
    let flow = entry.get();
    let peer_key = flow.peer_key(key.protocol);
    let peer = tables.established(&peer_key);
    if peer.is_some_and(|peer| lives(tables, key, &peer.get())) {
        return true;
    }
    let slot = match (flow.direction(), peer) {
        (Direction::Forward, _) => flow.sweep_slot,
        (Direction::Reply, Some(forward)) => forward.get().sweep_slot,
        // Whoever removed the forward direction has given its slot back.
        (Direction::Reply, None) => NO_SLOT,
    };
    tables.remove_established(key, &peer_key, slot);
    false
}

/// Whether a protected flow's other direction has this key. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn is_one<A: Address, T: Tables<A>>(tables: &T, forward: &FlowKey<A>, reply: &FlowKey<A>) -> bool {
    tables.established(forward).is_some_and(|entry| entry.get().undoes(reply))
}

/// Removes both directions of a protected flow. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn end<A: Address, T: Tables<A>>(tables: &T, forward: &FlowKey<A>, reply: &FlowKey<A>) {
    let slot = tables.established(forward).map_or(NO_SLOT, |entry| entry.get().sweep_slot);
    tables.remove_established(forward, reply, slot);
}

/// Copies an entry that was found by `key` into `draft.flow`; `false` if another flow has taken its place meanwhile.
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn copy<A: Address, E: FlowEntry<A>>(key: &FlowKey<A>, entry: E, draft: &mut Draft<A>) -> bool {
    draft.flow = entry.get();
    entry.is_of(key)
}

/// Whether a new flow lives: either direction has seen a packet recently enough, and the other one is still its own.
///
/// A flood may have pushed the other direction out: then it is entered again, unless somebody else has taken what
/// its packets look like, in which case this flow is over. Not inlined: a stack frame of its own.
#[inline(never)]
fn both_live<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, entry: T::Entry) -> bool {
    let Some(mut draft) = tables.draft() else { return false };
    both_live_in(tables, key, entry, &mut draft)
}

/// [`both_live`] in memory that is there already; the entry is in `draft.flow` then.
#[inline(always)]
pub(crate) fn both_live_in<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    entry: T::Entry,
    draft: &mut Draft<A>,
) -> bool {
    if !copy(key, entry, draft) {
        return false;
    }
    draft.flow.write_peer_key(key.protocol, &mut draft.peer_key);
    let this_lives = lives(tables, key, &draft.flow);
    if let Some(peer) = tables.embryonic(&draft.peer_key) {
        draft.peer = peer.get();
        // Else it has just been pushed out.
        if peer.is_of(&draft.peer_key) {
            if !draft.peer.undoes(key) {
                return false;
            }
            if this_lives || lives(tables, key, &draft.peer) {
                return true;
            }
            tables.remove_embryonic(&draft.peer_key);
            return false;
        }
    }
    if !this_lives || tables.established(&draft.peer_key).is_some() {
        return false;
    }
    draft.peer.become_peer(&draft.flow, key);
    tables.insert_embryonic(&draft.peer_key, &draft.peer) != Err(NotInserted::Taken)
}

/// Whether one direction of a flow has seen a packet recently enough.
#[inline(always)]
pub(crate) fn lives<A: Address, T: Tables<A>>(tables: &T, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    let timeout = FlowState::from_number(flow.state).timeout(key.protocol_number(), &tables.settings().timeouts);
    elapsed(tables.now(), flow.last_seen) <= timeout
}
