//! The XDP and TC programs of forwarder: entry points. The packet's way goes on in `forwarder_common`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the kernel's helpers take and return registers; which of their bits mean what is its business"
)]
#![allow(clippy::needless_pass_by_value, reason = "the program macros, and the core's tables, pass by value")]

mod access;
mod action;
mod atomic;
mod clock;
mod count;
mod cut;
mod endpoints;
mod held;
mod log;
mod losses;
mod maps;
mod neighbor;
mod new_flows;
mod per_cpu;
mod protected;
mod quote;
mod routing;
mod sockets;
mod steps;
mod sweep;
mod tables;

use access::{tc::TcPacket, xdp::XdpPacket};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, raw_tracepoint, xdp},
    programs::{RawTracePointContext, TcContext, XdpContext},
};
use forwarder_common::{
    abi::setting_flags,
    begin, fast,
    packet::Packet,
    parse::{Family, Ipv4, Ipv6},
    steer,
    tables::At,
    verdict::Outcome,
    wire::ethernet,
};
use maps::{BEGIN, INTERFACE_MAC, INTERFACE_SLOT, Maps, MapsV4, MapsV6, SETTINGS, XDP_V6};
use routing::Routed;
use sockets::Sockets;
use steps::{BareIpv4, BareIpv6, EthernetIpv4, EthernetIpv6, Steps};
use tables::KernelTables;

/// What XDP looks for at once: the link header, the network header, and the least that follows.
const fn head<F: Family>() -> usize {
    ethernet::LEN + F::HEADER + fast::LEAST_TRANSPORT
}

/// The fast path: sends on what a table already decides, passes everything else untouched. IPv4 itself; IPv6 is handed over.
#[xdp]
#[inline(always)]
fn forwarder_xdp(context: XdpContext) -> u32 {
    let Some(packet) = XdpPacket::<{ head::<Ipv4>() }>::with_head(&context) else {
        return action::xdp_pass(match ethertype(&XdpPacket::new(&context)) {
            Ok(ethernet::IPV4 | ethernet::IPV6) => Outcome::ToTc,
            Ok(_) => Outcome::NotIp,
            Err(outcome) => outcome,
        });
    };
    match ethertype(&packet) {
        Ok(ethernet::IPV4) => fast_family::<Ipv4, MapsV4, _>(packet),
        Ok(ethernet::IPV6) => {
            packet.hand_over(&XDP_V6, INTERFACE_SLOT.load());
            action::xdp_pass(Outcome::ToTc)
        }
        Ok(_) => action::xdp_pass(Outcome::NotIp),
        Err(outcome) => action::xdp_pass(outcome),
    }
}

/// The fast path for IPv6, which [`forwarder_xdp`] hands over. A program of its own: in one, each family's stack frame would
/// have to leave room for the other's.
#[xdp]
#[inline(always)]
fn forwarder_xdp_v6(context: XdpContext) -> u32 {
    match XdpPacket::<{ head::<Ipv6>() }>::with_head(&context) {
        Some(packet) => fast_family::<Ipv6, MapsV6, _>(packet),
        None => action::xdp_pass(Outcome::ToTc),
    }
}

#[inline(always)]
fn fast_family<F: Family, M: Maps<Address = F::Address> + Routed + Sockets, const HEAD: usize>(
    mut packet: XdpPacket<HEAD>,
) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return xdp_action::XDP_PASS };
    let tables = KernelTables::<M>::new(packet.context(), settings, At::Xdp);
    let tried = fast::process::<F, _>(&mut packet, &tables, ethernet::LEN, At::Xdp);
    if tried.begins && !log::is_on() {
        packet.hand_over(&BEGIN, INTERFACE_SLOT.load());
    }
    action::xdp(&mut packet, &tried.verdict)
}

/// What [`forwarder_xdp`] hands over to: begins flows. A program of its own, for its stack frame begins where the other one's does.
#[xdp]
fn forwarder_xdp_begin(context: XdpContext) -> u32 {
    let packet = XdpPacket::new(&context);
    match ethertype(&packet) {
        Ok(ethernet::IPV4) => begin_family::<Ipv4, MapsV4>(packet),
        Ok(ethernet::IPV6) => begin_family::<Ipv6, MapsV6>(packet),
        Ok(_) => action::xdp_pass(Outcome::NotIp),
        Err(outcome) => action::xdp_pass(outcome),
    }
}

#[inline(always)]
fn begin_family<F: Family, M: Maps<Address = F::Address> + Routed + Sockets>(mut packet: XdpPacket<0>) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return xdp_action::XDP_PASS };
    let tables = KernelTables::<M>::new(packet.context(), settings, At::Xdp);
    let verdict = begin::process::<F, _>(&mut packet, &tables, ethernet::LEN);
    action::xdp(&mut packet, &verdict)
}

/// Of a frame's first eight bytes, what says which station it is for.
const OF_STATION: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

/// The ethertype of a frame for this station. XDP sees every frame on the wire.
#[inline(always)]
fn ethertype(packet: &impl Packet) -> Result<u16, Outcome> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, _, _, _, _, e0, e1, _, _] = packet.read(0).ok_or(Outcome::Malformed)?;
    if u64::from_ne_bytes([d0, d1, d2, d3, d4, d5, s0, s1]) & OF_STATION != INTERFACE_MAC.load() {
        return Err(Outcome::NotForUs);
    }
    Ok(u16::from_ne_bytes([e0, e1]))
}

/// The complete path, on the ingress of an Ethernet device.
#[classifier]
fn forwarder_tc(context: TcContext) -> i32 {
    if let Some(action) = neighbor::asked(&context) {
        return action;
    }
    complete::<EthernetIpv4, EthernetIpv6>(&context)
}

/// The complete path, on the ingress of a device without link header: tun, WireGuard, PPP.
#[classifier]
fn forwarder_tc_l3(context: TcContext) -> i32 {
    complete::<BareIpv4, BareIpv6>(&context)
}

/// The complete path, by the steps for each family.
#[inline(always)]
fn complete<V4: Steps, V6: Steps>(context: &TcContext) -> i32 {
    let packet = TcPacket::new(context);
    match packet.untagged_protocol() {
        Ok(ethernet::IPV4) => one_after_the_other::<V4>(context.skb.skb),
        Ok(ethernet::IPV6) => one_after_the_other::<V6>(context.skb.skb),
        Ok(_) => action::tc_pass(&packet, Outcome::NotIp),
        Err(outcome) => action::tc_pass(&packet, outcome),
    }
}

/// One step after the other, each a function of its own ([`steps`]).
#[inline(always)]
fn one_after_the_other<S: Steps>(context: *mut __sk_buff) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    if !log::is_on() {
        let action = S::at_once(context);
        if action != steps::UNDECIDED {
            return action;
        }
    }
    let mut outcome = S::plain(context);
    if outcome == Outcome::NotOurs as u32 && settings.flags & setting_flags::MASQUERADE != 0 {
        outcome = S::outgoing(context);
        if outcome == steps::AGAIN {
            outcome = S::plain(context);
        }
    }
    let whole = outcome;
    if whole == Outcome::Fragment as u32 {
        outcome = S::later_fragment(context);
    } else if whole == Outcome::IcmpOther as u32 {
        outcome = S::icmp(context);
    }
    if settings.flags & setting_flags::STEER != 0 && Outcome::from_number(outcome).is_some_and(steer::may_forward) {
        outcome = S::steer(context, outcome);
    }
    if S::CUTS && outcome == Outcome::DropTooBig as u32 && whole != Outcome::IcmpOther as u32 {
        outcome = S::cut(context);
    }
    // Nobody is told what becomes of a fragment that is not the first, or of an ICMP error.
    let told = [Outcome::DropTtl as u32, Outcome::DropTooBig as u32, Outcome::DropNoRoute as u32];
    if outcome == whole && told.contains(&outcome) {
        outcome = S::answer(context, outcome);
    }
    if outcome == Outcome::HeldToFollow as u32 && S::hand_in(context) == 0 {
        outcome = Outcome::DropError as u32;
    }
    S::carry_out(context, outcome)
}

/// What the machine itself sends, on its way out of an Ethernet device: to the line that its source belongs to.
#[classifier]
fn forwarder_egress(context: TcContext) -> i32 {
    leave::<EthernetIpv4, EthernetIpv6>(&context)
}

/// The same, on the way out of a device without link header.
#[classifier]
fn forwarder_egress_l3(context: TcContext) -> i32 {
    leave::<BareIpv4, BareIpv6>(&context)
}

#[inline(always)]
fn leave<V4: Steps, V6: Steps>(context: &TcContext) -> i32 {
    let mut packet = TcPacket::new(context);
    let steers = SETTINGS.get(0).is_some_and(|settings| settings.flags & setting_flags::STEER != 0);
    if packet.take_mark() || !steers {
        return TC_ACT_UNSPEC;
    }
    match packet.untagged_protocol() {
        Ok(ethernet::IPV4) => leave_by_steps::<V4>(context.skb.skb),
        Ok(ethernet::IPV6) => leave_by_steps::<V6>(context.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn leave_by_steps<S: Steps>(context: *mut __sk_buff) -> i32 {
    let mut outcome = S::egress(context);
    if outcome == Outcome::NotOurs as u32 {
        return TC_ACT_UNSPEC;
    }
    if outcome == Outcome::DropTooBig as u32 {
        outcome = S::answer_ourselves(context);
    }
    S::carry_away(context, outcome)
}

/// Passes everything: for interfaces that only need some program to be able to transmit.
#[xdp]
fn forwarder_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Counts redirects that the kernel refused.
#[raw_tracepoint]
fn forwarder_redirect_err(_: RawTracePointContext) -> i32 {
    losses::refused();
    0
}

/// Counts redirected frames that a driver did not take.
#[raw_tracepoint]
fn forwarder_devmap_xmit(context: RawTracePointContext) -> i32 {
    losses::transmitted(&context);
    0
}

/// Starts the sweeper's timer; the loader runs it once. Returns 0 when the timer runs.
#[classifier]
fn forwarder_sweep(_: TcContext) -> i32 {
    sweep::start() as i32
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
