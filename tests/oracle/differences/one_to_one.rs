//! Prefixes onto prefixes of IPv6: netfilter does not follow connections there, and translates addresses where it sees them.

use std::net::IpAddr;

use forwarder_lab::Family;

use crate::compare::reference::{is_piece_of, reference};
use crate::compare::{Case, Out};
use crate::flow::Flow;
use crate::packet::{ETHERNET, ICMPV6};
use crate::plan::{self, Source};
use crate::twin::{middle, station};
use crate::view::{View, octets};

/// Where the addresses stand in an IPv6 header, and its hop limit.
const SRC: usize = 8;
const DST: usize = 24;
const HOP_LIMIT: usize = 7;

/// Whether netfilter's side of this setting is NPTv6.
pub(super) fn is_npt(case: &Case<'_>) -> bool {
    case.source == Source::Prefix && case.packet().src.is_ipv6()
}

/// netfilter translated the outer addresses, and inside of the errors that it knows what belongs to the same prefix, or nothing
/// (as older kernels do).
pub(super) fn npt_errors(case: &Case<'_>) -> bool {
    let as_npt_does = |inside: bool| matches!(case.nftables, [out] if npt(case, inside).as_ref() == Some(&out.frame));
    is_npt(case) && case.input.what == "ICMP error" && case.is_forwarded() && (as_npt_does(true) || as_npt_does(false))
}

/// What Linux makes of a packet, by the rules of [`plan::npt`]. `inside`: of an error too.
fn npt(case: &Case<'_>, inside: bool) -> Option<Vec<u8>> {
    let mut frame = case.packet().frames([0; 6], [0; 6]).swap_remove(0);
    let view = View::of(&frame)?;
    frame.truncate(view.end);
    let prefixes = plan::prefixes(Family::V6);
    // Only what follows the IPv6 header at once, and is one of the errors of RFC 4443.
    let is_known = frame[ETHERNET + 6] == ICMPV6 && matches!(frame[view.transport], 1..=4);
    let embedded = view.transport + 8;
    let mut dst = view.dst;
    for ours in prefixes {
        if let Some(inner) = plan::to_inner(dst, ours) {
            dst = inner;
            write(&mut frame, ETHERNET + DST, inner);
            if inside
                && is_known
                && let Some(inner) = plan::to_inner(address(&frame, embedded + SRC)?, ours)
            {
                write(&mut frame, embedded + SRC, inner);
            }
            break;
        }
    }
    for ours in prefixes {
        if let Some(outer) = plan::to_outer(view.src, ours) {
            write(&mut frame, ETHERNET + SRC, outer);
            if inside
                && is_known
                && let Some(outer) = plan::to_outer(address(&frame, embedded + DST)?, ours)
            {
                write(&mut frame, embedded + DST, outer);
            }
            break;
        }
    }
    let at = if prefixes.iter().any(|ours| plan::to_outer(dst, ours).is_some()) {
        plan::Side::Home
    } else {
        plan::Side::Client
    };
    frame[..6].copy_from_slice(&station(at));
    frame[6..12].copy_from_slice(&middle(at));
    frame[ETHERNET + HOP_LIMIT] -= 1;
    Some(frame)
}

fn address(frame: &[u8], at: usize) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?.into())
}

fn write(frame: &mut [u8], at: usize, address: IpAddr) {
    frame[at..at + 16].copy_from_slice(&octets(address));
}

/// Between hosts of two inner prefixes: forwarder maps the destination alone, netfilter the source too.
pub(super) fn two_prefixes(case: &Case<'_>) -> bool {
    let Some(flow) = case.flow.filter(|_| is_npt(case)) else { return false };
    let prefix_of =
        |address| plan::prefixes(Family::V6).iter().position(|ours| plan::to_outer(address, ours).is_some());
    let (client, server) = (prefix_of(flow.client), prefix_of(flow.listen.to));
    let are_two = client.is_some() && server.is_some() && client != server;
    if !are_two {
        return false;
    }
    let with_inner_source =
        Flow { seen: flow.client, listen: plan::Listen { address: flow.listen.to, ..flow.listen }, ..flow.clone() };
    let Some(whole) = reference(case.input, &with_inner_source, case.source) else { return false };
    let is_it = |out: &Out| *out == whole || !case.packet().pieces.is_empty() && is_piece_of(out, &whole);
    !case.forwarder.is_empty() && case.forwarder.iter().all(is_it)
}
