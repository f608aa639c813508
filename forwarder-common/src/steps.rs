//! The steps of the TC program one after the other, as in forwarder-ebpf's `main.rs`, for tests and fuzzers: there each is
//! a function of its own, for the verifier's sake. And XDP's two programs.

use crate::{
    abi::setting_flags,
    begin, complete, fast, fragment,
    icmp_error::{self, Embeds},
    outgoing,
    packet::Packet,
    steer,
    tables::{At, Tables},
    verdict::{Kind, Outcome, Verdict},
};

/// What becomes of a packet at XDP, where the program is there that begins flows.
pub fn xdp<F: Embeds, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let tried = fast::process::<F, _>(packet, tables, network, At::Xdp);
    if tried.begins { begin::process::<F, _>(packet, tables, network) } else { tried.verdict }
}

/// What becomes of a packet at TC, before whatever its verdict asks for is carried out: answers, pieces, fragments that wait.
pub fn tc<F: Embeds, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let sent = fast::process::<F, _>(packet, tables, network, At::Tc).verdict;
    if sent.outcome.kind() != Kind::Pass {
        return sent;
    }
    let verdict = without_lines::<F, T>(packet, tables, network);
    let steers = tables.settings().flags & setting_flags::STEER != 0 && steer::may_forward(verdict.outcome);
    if steers { steer::forward::<F, _>(packet, tables, network, verdict.outcome) } else { verdict }
}

fn without_lines<F: Embeds, T: Tables<F::Address>>(packet: &mut impl Packet, tables: &T, network: usize) -> Verdict {
    let verdict = complete::process::<F, _>(packet, tables, network);
    match verdict.outcome {
        Outcome::Fragment => fragment::later::<F, _>(packet, tables, network),
        Outcome::IcmpOther => icmp_error::process::<F, _>(packet, tables, network),
        Outcome::NotOurs if tables.settings().flags & setting_flags::MASQUERADE != 0 => {
            match tables.kept().map(|parsed| outgoing::open::<F, _>(tables, parsed)) {
                Some(Ok(())) => complete::process::<F, _>(packet, tables, network),
                Some(Err(outcome)) => Verdict::of(outcome),
                None => Verdict::of(Outcome::DropError),
            }
        }
        _ => verdict,
    }
}
