//! From a verdict to what the kernel is told, on each hook. Every packet is counted here, once.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, xdp_action},
    helpers::{bpf_redirect, bpf_redirect_neigh},
};
use forwarder_common::{
    abi::{NextHopState, next_hop_flags},
    packet::Packet,
    tables::Hop,
    verdict::{Kind, Outcome, Verdict},
};

use crate::{
    access::{tc::TcPacket, xdp::XdpPacket},
    count::{self, Hook},
    losses,
    maps::{LAST_VERDICT, OUT, RECORD},
};

/// Carries an XDP verdict out.
#[inline(always)]
pub(crate) fn xdp<const HEAD: usize>(packet: &mut XdpPacket<HEAD>, verdict: &Verdict) -> u32 {
    record(Hook::Xdp, verdict);
    // All that XDP forwards, and first: a kind is a call away.
    if verdict.outcome == Outcome::Forwarded {
        count::forwarded_at_xdp();
        if packet.write(0, verdict.hop.link_addresses).is_none() {
            return xdp_action::XDP_ABORTED;
        }
        // Refused where the interface is gone since its next hop was found.
        return OUT.redirect((verdict.hop.flags >> next_hop_flags::SLOT_SHIFT).into(), 0).unwrap_or_else(|_| {
            losses::refused();
            xdp_action::XDP_DROP
        });
    }
    count::at_xdp(verdict.outcome);
    match verdict.outcome.kind() {
        Kind::Pass => xdp_action::XDP_PASS,
        // Only TC gives a packet to the neighbour code, and only TC answers.
        Kind::Forward | Kind::Drop | Kind::Hold | Kind::Answer => xdp_action::XDP_DROP,
    }
}

/// Passes a frame at XDP that no family's path has seen.
#[inline(always)]
pub(crate) fn xdp_pass(outcome: Outcome) -> u32 {
    record(Hook::Xdp, &Verdict::of(outcome));
    count::at_xdp(outcome);
    xdp_action::XDP_PASS
}

/// Carries a TC verdict out. `network` is where the packet's network header stands: 0 where there is no link header;
/// `router` who the packet is given to, of no family where the kernel knows.
#[inline(always)]
pub(crate) fn tc(
    packet: &mut TcPacket,
    verdict: &Verdict,
    router: bpf_redir_neigh,
    network: usize,
    ethertype: u16,
) -> i32 {
    record(Hook::Tc, verdict);
    if verdict.hop.line != 0 {
        packet.mark_steered();
    }
    // Most packets, and first: a kind is a call away.
    let sent = if verdict.outcome == Outcome::Forwarded {
        transmit(packet, &verdict.hop, network, ethertype)
    } else {
        match verdict.outcome.kind() {
            // Not a final answer: other programs and filters on the interface have their turn.
            Kind::Pass => Some(TC_ACT_UNSPEC),
            Kind::Drop | Kind::Hold => Some(TC_ACT_SHOT),
            Kind::Answer if verdict.hop.is_known() => transmit(packet, &verdict.hop, network, ethertype),
            Kind::Forward | Kind::Answer => by_neighbour(packet, &verdict.hop, router, network, ethertype),
        }
    };
    let Some(action) = sent else {
        count::at_tc(Hook::Tc, packet, Outcome::DropError);
        return TC_ACT_SHOT;
    };
    count::at_tc(Hook::Tc, packet, verdict.outcome);
    action
}

/// Passes a packet at TC that no family's path has seen.
#[inline(always)]
pub(crate) fn tc_pass(packet: &TcPacket, outcome: Outcome) -> i32 {
    record(Hook::Tc, &Verdict::of(outcome));
    count::at_tc(Hook::Tc, packet, outcome);
    TC_ACT_UNSPEC
}

/// Carries out what becomes of a packet that the machine itself sends out of `interface`.
#[inline(always)]
pub(crate) fn leave(
    packet: &mut TcPacket,
    verdict: &Verdict,
    router: bpf_redir_neigh,
    interface: u32,
    network: usize,
    ethertype: u16,
) -> i32 {
    let sent = match verdict.outcome.kind() {
        Kind::Answer => hand_in(packet, interface, network),
        Kind::Forward => {
            packet.mark_steered();
            if verdict.hop.flags & next_hop_flags::NO_LINK_HEADER != 0 {
                transmit(packet, &verdict.hop, network, ethertype)
            } else {
                by_neighbour(packet, &verdict.hop, router, network, ethertype)
            }
        }
        Kind::Drop => Some(TC_ACT_SHOT),
        _ => return TC_ACT_UNSPEC,
    };
    count::at_tc(Hook::Egress, packet, if sent.is_some() { verdict.outcome } else { Outcome::DropError });
    sent.unwrap_or(TC_ACT_SHOT)
}

/// Counts what became of a question of a neighbour, which takes its own way out.
#[inline(always)]
pub(crate) fn counted(packet: &TcPacket, outcome: Outcome) {
    record(Hook::Tc, &Verdict::of(outcome));
    count::at_tc(Hook::Tc, packet, outcome);
}

/// Hands a packet in that was to leave by the interface, as if it came from there.
#[inline(always)]
fn hand_in(packet: &mut TcPacket, interface: u32, network: usize) -> Option<i32> {
    if network != 0 {
        let [_, _, _, _, _, _, o0, o1, o2, o3, o4, o5] = packet.read(0)?;
        packet.write(0, [o0, o1, o2, o3, o4, o5])?;
    }
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect(interface, BPF_F_INGRESS.into()) as i32 })
}

#[inline(always)]
fn transmit(packet: &mut TcPacket, hop: &Hop, network: usize, ethertype: u16) -> Option<i32> {
    if hop.flags & next_hop_flags::NO_LINK_HEADER == 0 {
        if network == 0 {
            packet.push_link_header(ethertype)?;
        }
        packet.write(0, hop.link_addresses)?;
    }
    // SAFETY: a helper without pointers. Towards a device without link header the kernel strips ours.
    Some(unsafe { bpf_redirect(hop.interface, 0) as i32 })
}

#[inline(always)]
fn by_neighbour(
    packet: &mut TcPacket,
    hop: &Hop,
    router: bpf_redir_neigh,
    network: usize,
    ethertype: u16,
) -> Option<i32> {
    if network == 0 {
        // The kernel drops what has no link header at all here, even though it writes its own.
        packet.push_link_header(ethertype)?;
    }
    if hop.state == NextHopState::Resolved {
        packet.foretell_link_header(&hop.link_addresses, ethertype)?;
    }
    let mut router = router;
    if router.nh_family == 0 {
        // SAFETY: no parameters: the kernel looks the neighbour up itself, and queues the packet while it resolves.
        return Some(unsafe { bpf_redirect_neigh(hop.interface, core::ptr::null_mut(), 0, 0) as i32 });
    }
    // SAFETY: an initialised record of the size that is said; the helper copies it.
    Some(unsafe { bpf_redirect_neigh(hop.interface, &raw mut router, size_of_val(&router) as i32, 0) as i32 })
}

/// For tests: what was decided, for `BPF_PROG_TEST_RUN` does not tell where a packet would have gone.
#[inline(always)]
fn record(hook: Hook, verdict: &Verdict) {
    if RECORD.load() == 0 {
        return;
    }
    if let Some(record) = LAST_VERDICT.get_ptr_mut(0) {
        let Hop { interface, mtu, .. } = verdict.hop;
        // SAFETY: a pointer to an array value, valid while the program runs; only tests run with RECORD set.
        unsafe { record.write([hook as u32 + 1, verdict.outcome as u32, interface, mtu, 0, 0, 0, 0]) };
    }
}
