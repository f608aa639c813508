//! Questions of neighbours for hosts behind us: the step that answers them, beside the way of packets. It is entered only
//! for ARP and for Neighbor Solicitations, and only if there is a `[[neighbor]]` at all.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_clone_redirect, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_pull_data},
    programs::TcContext,
};
use forwarder_common::{
    abi::setting_flags,
    address::V4,
    neighbor::{self, Answerable, Arp, Discovery, Reply, Resolution},
    packet::Packet,
    tables::{At, Tables},
    verdict::Kind,
    wire::{ethernet, icmp, ipv4, ipv6, protocol},
};

use crate::{
    access::tc::TcPacket,
    action, count,
    maps::{Maps, MapsV4, MapsV6, SETTINGS},
    routing::Routed,
    sockets::Sockets,
    tables::KernelTables,
};

/// Marks an ARP request that has become an IPv4 packet. Only on its way into the interface once more: the kernel's
/// neighbour code sends what the kernel takes for IPv4, and what came as ARP it takes for ARP until it is received again.
/// No packet has it from the wire.
const PROBE: u32 = 0x6e65_6967;

/// `PACKET_MULTICAST` of `if_packet.h`; below it are broadcast and what is for this station.
const PACKET_MULTICAST: u32 = 2;

impl Answerable for TcPacket {
    #[inline(always)]
    fn resize(&mut self, length: usize) -> Option<()> {
        // SAFETY: helpers on the program's own context, which check everything themselves.
        let done = unsafe {
            bpf_skb_change_tail(self.context(), length as u32, 0) == 0
                && bpf_skb_pull_data(self.context(), length as u32) == 0
        };
        done.then_some(())
    }

    #[inline(always)]
    fn send_copy(&mut self, interface: u32) -> Option<()> {
        // SAFETY: a helper on the program's own context; it checks everything itself.
        (unsafe { bpf_clone_redirect(self.context(), interface, 0) } == 0).then_some(())
    }
}

/// Answers a frame that is a question for a host behind us. `None` if it is none: it goes the way of packets.
#[inline(always)]
pub(crate) fn asked(context: &TcContext) -> Option<i32> {
    if SETTINGS.get(0)?.flags & setting_flags::NEIGHBOR == 0 {
        return None;
    }
    let skb = context.skb.skb;
    // SAFETY: the program's own argument, valid while it runs.
    let (kind, tagged, protocol, mark) =
        unsafe { ((*skb).pkt_type, (*skb).vlan_present, (*skb).protocol as u16, (*skb).mark) };
    if kind > PACKET_MULTICAST || tagged != 0 {
        return None;
    }
    let action = match protocol {
        ethernet::ARP => forwarder_arp(skb),
        ethernet::IPV6 if is_solicitation(&TcPacket::new(context)) => forwarder_discovery(skb),
        ethernet::IPV4 if mark == PROBE => forwarder_probe(skb),
        _ => return None,
    };
    (action != TC_ACT_UNSPEC).then_some(action)
}

#[inline(always)]
fn is_solicitation(packet: &TcPacket) -> bool {
    packet.read(ethernet::LEN + ipv6::NEXT_HEADER) == Some([protocol::ICMPV6])
        && packet.read(ethernet::LEN + ipv6::LEN) == Some([icmp::NEIGHBOR_SOLICITATION])
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forwarder_arp(context: *mut __sk_buff) -> i32 {
    process::<Arp, MapsV4>(context)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forwarder_discovery(context: *mut __sk_buff) -> i32 {
    process::<Discovery, MapsV6>(context)
}

/// What was an ARP request, received again: the kernel's neighbour code sends it to the host behind.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forwarder_probe(context: *mut __sk_buff) -> i32 {
    let packet = TcPacket::of(context);
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_SHOT };
    // SAFETY: the program's own argument, valid while it runs.
    unsafe { (*context).mark = 0 };
    let tables = KernelTables::<MapsV4>::new(context.cast(), settings, At::Tc);
    let Some(target) = packet.read(ethernet::LEN + ipv4::SOURCE + size_of::<V4>()) else { return TC_ACT_SHOT };
    match neighbor::rule(&tables, V4::from_ne_bytes(target)) {
        Some(rule) => by_neighbour(rule.via()),
        None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn process<R: Resolution, M: Maps<Address = R::Address> + Routed + Sockets>(context: *mut __sk_buff) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return TC_ACT_UNSPEC };
    let mut packet = TcPacket::of(context);
    let tables = KernelTables::<M>::new(context.cast(), settings, At::Tc);
    let Some(interface) = count::served(&packet) else { return TC_ACT_UNSPEC };
    let Reply { outcome, probes } = neighbor::process::<R, _>(&mut packet, &tables, interface.mac);
    match outcome.kind() {
        // Counted by the way that it goes on.
        Kind::Pass => return TC_ACT_UNSPEC,
        Kind::Drop => {
            action::counted(&packet, outcome);
            return TC_ACT_SHOT;
        }
        _ => action::counted(&packet, outcome),
    }
    let ingress = tables.ingress();
    if probes == 0 {
        // SAFETY: a helper without pointers.
        return unsafe { bpf_redirect(ingress, 0) as i32 };
    }
    if M::ADDRESS_FAMILY == MapsV6::ADDRESS_FAMILY {
        return by_neighbour(probes);
    }
    // SAFETY: the program's own argument, valid while it runs; and a helper without pointers.
    unsafe {
        (*context).mark = PROBE;
        bpf_redirect(ingress, BPF_F_INGRESS.into()) as i32
    }
}

#[inline(always)]
fn by_neighbour(interface: u32) -> i32 {
    // SAFETY: no parameters: the kernel looks up which neighbour leads to the packet's destination, and asks for it.
    unsafe { bpf_redirect_neigh(interface, ptr::null_mut(), 0, 0) as i32 }
}
