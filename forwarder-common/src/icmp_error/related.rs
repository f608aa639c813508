//! What an error is about, found without leaving a trace.

use crate::{
    abi::{Flow, Side, rule_flags, setting_flags},
    address::Address,
    decide::{Decision, is_hairpin, is_own, stateless_forward, stateless_reply},
    find::{lives, rule_of},
    parse::Parsed,
    tables::{FlowEntry, Tables},
    verdict::Outcome,
};

/// What would become of `answer`, the reply to an embedded packet.
///
/// # Errors
/// It is no flow's and no stateless rule's, or the machine's own.
///
/// Not inlined: a stack frame of its own.
#[inline(never)]
pub(super) fn find<A: Address, T: Tables<A>>(
    tables: &T,
    answer: &Parsed<A>,
    decision: &mut Decision<A>,
) -> Result<(), Outcome> {
    if tables.settings().flags & (setting_flags::FLOWS | setting_flags::HAIRPIN) != 0
        && let Some(entry) = tables.established(&answer.key).or_else(|| tables.embryonic(&answer.key))
    {
        let flow = entry.get();
        if !entry.is_of(&answer.key) || !is_alive(tables, answer, &flow) {
            return Err(Outcome::IcmpStray);
        }
        *decision = Decision::of_flow(&flow);
        return Ok(());
    }
    if let Some(rule) = rule_of(tables, answer, Side::Listen) {
        if is_own(tables, rule, answer) {
            return Err(Outcome::ToSelf);
        }
        let allowed = rule.flags & rule_flags::ALLOW == 0 || tables.allows(rule.allow, answer.key.src);
        let keeps_flows = rule.flags & rule_flags::STATELESS == 0 || is_hairpin(rule, answer.key.src);
        if keeps_flows || !allowed {
            return Err(Outcome::IcmpStray);
        }
        *decision = stateless_forward(rule, answer).ok_or(Outcome::IcmpStray)?;
        return Ok(());
    }
    let rule = rule_of(tables, answer, Side::Backend).ok_or(Outcome::IcmpStray)?;
    *decision = stateless_reply(rule, answer).ok_or(Outcome::IcmpStray)?;
    Ok(())
}

/// Whether either direction of a flow has seen a packet recently enough, and the other one is still its own.
/// Not inlined: a stack frame of its own.
#[inline(never)]
fn is_alive<A: Address, T: Tables<A>>(tables: &T, answer: &Parsed<A>, flow: &Flow<A>) -> bool {
    let peer_key = flow.peer_key(answer.key.protocol);
    let peer = tables.established(&peer_key).or_else(|| tables.embryonic(&peer_key));
    match peer {
        Some(peer) => {
            let peer = peer.get();
            peer.undoes(&answer.key) && (lives(tables, &answer.key, flow) || lives(tables, &answer.key, &peer))
        }
        // A flood pushed it out; the flow's next packet enters it again.
        None => lives(tables, &answer.key, flow),
    }
}
