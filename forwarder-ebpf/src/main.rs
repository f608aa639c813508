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
mod count;
mod held;
mod log;
mod losses;
mod maps;
mod routing;
mod sockets;
mod sweep;
mod tables;

use access::{tc::TcPacket, xdp::XdpPacket};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, raw_tracepoint, xdp},
    programs::{RawTracePointContext, TcContext, XdpContext},
};
use forwarder_common::{
    abi::{Settings, setting_flags},
    complete, fast, fragment,
    icmp_error::{self, Embeds},
    packet::Packet,
    parse::{Family, Ipv4, Ipv6},
    tables::Tables,
    verdict::{Outcome, Verdict},
    wire::ethernet,
};
use log::Logged;
use maps::{INTERFACE_MAC, Maps, MapsV4, MapsV6, SETTINGS};
use routing::Routed;
use sockets::Sockets;
use tables::{At, KernelTables};

/// The fast path: sends on what a table already decides, passes everything else untouched.
#[xdp]
fn forwarder_xdp(context: XdpContext) -> u32 {
    let packet = XdpPacket::new(&context);
    match ethertype(&packet) {
        Ok(ethernet::IPV4) => fast_family::<Ipv4, MapsV4>(packet),
        Ok(ethernet::IPV6) => fast_family::<Ipv6, MapsV6>(packet),
        Ok(_) => action::xdp_pass(Outcome::NotIp),
        Err(outcome) => action::xdp_pass(outcome),
    }
}

#[inline(always)]
fn fast_family<F: Family, M: Maps<Address = F::Address> + Routed + Sockets>(mut packet: XdpPacket) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return xdp_action::XDP_PASS };
    let tables = KernelTables::<M>::new(packet.context(), settings, At::Xdp);
    let verdict = fast::process::<F, _>(&mut packet, &tables, ethernet::LEN);
    action::xdp(&mut packet, &verdict)
}

/// The ethertype of a frame for this station. XDP sees every frame on the wire.
#[inline(always)]
fn ethertype(packet: &XdpPacket) -> Result<u16, Outcome> {
    let [d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1] =
        packet.read::<{ ethernet::LEN }>(0).ok_or(Outcome::Malformed)?;
    if [d0, d1, d2, d3, d4, d5] != INTERFACE_MAC.load() {
        return Err(Outcome::NotForUs);
    }
    Ok(u16::from_ne_bytes([t0, t1]))
}

/// The complete path, on the ingress of an Ethernet device.
#[classifier]
fn forwarder_tc(context: TcContext) -> i32 {
    complete::<{ ethernet::LEN }>(&context)
}

/// The complete path, on the ingress of a device without link header: tun, WireGuard, PPP.
#[classifier]
fn forwarder_tc_l3(context: TcContext) -> i32 {
    complete::<0>(&context)
}

/// `NETWORK` is where the network header starts: a constant, so that offsets are constants too.
#[inline(always)]
fn complete<const NETWORK: usize>(context: &TcContext) -> i32 {
    let packet = TcPacket::new(context);
    match packet.untagged_protocol() {
        Ok(ethernet::IPV4) => complete_family::<Ipv4, MapsV4, NETWORK>(context.skb.skb),
        Ok(ethernet::IPV6) => complete_family::<Ipv6, MapsV6, NETWORK>(context.skb.skb),
        Ok(_) => action::tc_pass(Outcome::NotIp),
        Err(outcome) => action::tc_pass(outcome),
    }
}

/// Not inlined: the families do not share a stack frame. The kernel gives 512 bytes to all frames of a program that
/// are in use at once, and only one of these ever is. It holds next to nothing itself: each step below has a frame of
/// its own, given back before the next one begins.
#[inline(never)]
fn complete_family<F: Embeds, M: Maps<Address = F::Address> + Routed + Sockets, const NETWORK: usize>(
    context: *mut __sk_buff,
) -> i32
where
    F::Address: Logged,
{
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    let mut verdict = plain::<F, M, NETWORK>(context, settings);
    if verdict.outcome == Outcome::NotOurs && settings.flags & setting_flags::MASQUERADE != 0 {
        verdict = match outgoing::<F, M>(context, settings) {
            Ok(()) => plain::<F, M, NETWORK>(context, settings),
            Err(outcome) => Verdict::of(outcome),
        };
    } else if verdict.outcome == Outcome::Fragment {
        verdict = later_fragment::<F, M, NETWORK>(context, settings);
    }
    if verdict.outcome == Outcome::IcmpOther {
        verdict = icmp::<F, M, NETWORK>(context, settings);
    }
    if verdict.outcome == Outcome::HeldToFollow {
        hand_in::<F, M, NETWORK>(context);
    }
    carry_out::<F, M, NETWORK>(context, settings, &verdict)
}

/// A packet that is whole and stands for itself.
#[inline(never)]
fn plain<F: Family, M: Maps<Address = F::Address> + Routed + Sockets, const NETWORK: usize>(
    context: *mut __sk_buff,
    settings: &'static Settings,
) -> Verdict {
    let mut packet = TcPacket::of(context);
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    complete::process::<F, _>(&mut packet, &tables, NETWORK)
}

/// A fragment other than the first of its datagram.
#[inline(never)]
fn later_fragment<F: Family, M: Maps<Address = F::Address> + Routed + Sockets, const NETWORK: usize>(
    context: *mut __sk_buff,
    settings: &'static Settings,
) -> Verdict {
    let mut packet = TcPacket::of(context);
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    fragment::later::<F, _>(&mut packet, &tables, NETWORK)
}

/// ICMP that is no echo: an error may be about something forwarded.
#[inline(never)]
fn icmp<F: Embeds, M: Maps<Address = F::Address> + Routed + Sockets, const NETWORK: usize>(
    context: *mut __sk_buff,
    settings: &'static Settings,
) -> Verdict {
    let mut packet = TcPacket::with_embedded(context);
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    icmp_error::process::<F, _>(&mut packet, &tables, NETWORK)
}

/// A packet that nothing names may be of a host behind us that goes out with our address: opens its flow.
#[inline(never)]
fn outgoing<F: Family, M: Maps<Address = F::Address> + Routed + Sockets>(
    context: *mut __sk_buff,
    settings: &'static Settings,
) -> Result<(), Outcome> {
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    let Some(parsed) = tables.kept() else { return Err(Outcome::DropError) };
    forwarder_common::outgoing::open(&tables, parsed)
}

/// A first fragment for which others wait, or one that came at the same time as its first.
#[inline(never)]
fn hand_in<F: Family, M: Maps<Address = F::Address>, const NETWORK: usize>(context: *mut __sk_buff) {
    held::hand_in::<F, M, NETWORK>(context);
}

/// Logs and counts the verdict, and tells the kernel.
#[inline(never)]
fn carry_out<F: Family, M: Maps<Address = F::Address> + Routed + Sockets, const NETWORK: usize>(
    context: *mut __sk_buff,
    settings: &'static Settings,
    verdict: &Verdict,
) -> i32
where
    F::Address: Logged,
{
    let mut packet = TcPacket::of(context);
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    log::verdict(context, verdict.outcome, tables.kept().map(|parsed| &parsed.key));
    action::tc(&mut packet, verdict, NETWORK, F::ETHERTYPE)
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
