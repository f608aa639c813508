//! Next hops: what the kernel's routing says, asked once in a while and kept per CPU.
//!
//! `bpf_fib_lookup` costs as much as the rest of the fast path. It accepts a neighbour that has gone stale and never
//! starts to probe it, so each time it is asked, one packet goes out by the kernel's neighbour code
//! (`next_hop_flags::CONFIRM`): that probes, and a backend that comes back with another MAC is found as soon as by
//! kernel forwarding.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_check_mtu, bpf_fib_lookup},
};
use forwarder_common::{
    abi::{NextHop, NextHopState, Settings, elapsed, interface_flags, next_hop_flags, setting_flags},
    address::{Address, V4, V6},
    steer,
    tables::{At, Ends, Hop, Tables as _, Way},
};

use crate::{
    endpoints::FoundOnce,
    maps::{FIB_LOOKUP, INTERFACES, Maps, MapsV4, MapsV6},
    new_flows::LockedTable,
    per_cpu,
    protected::OnceVerified,
    sockets::Sockets,
    tables::KernelTables,
};

/// The loopback interface's index in every network namespace. Looking up as if from there needs only its own
/// `forwarding` switch, not that of the interfaces, which would make an IPv6 host ignore router advertisements.
const LOOPBACK: u32 = 1;

/// How a family's addresses are put into a FIB lookup.
pub(crate) trait Routed: OnceVerified + LockedTable + FoundOnce {
    fn set_ends(lookup: &mut FibLookup, src: Self::Address, dst: Self::Address);
    /// A neighbour as `bpf_redirect_neigh` takes it.
    fn neighbour(address: Self::Address) -> bpf_redir_neigh;
}

impl Routed for MapsV4 {
    #[inline(always)]
    fn set_ends(lookup: &mut FibLookup, src: V4, dst: V4) {
        lookup.__bindgen_anon_3.ipv4_src = src;
        lookup.__bindgen_anon_4.ipv4_dst = dst;
    }
    #[inline(always)]
    fn neighbour(address: V4) -> bpf_redir_neigh {
        let mut neighbour = no_neighbour(Self::ADDRESS_FAMILY);
        neighbour.__bindgen_anon_1.ipv4_nh = address;
        neighbour
    }
}

impl Routed for MapsV6 {
    #[inline(always)]
    fn set_ends(lookup: &mut FibLookup, src: V6, dst: V6) {
        lookup.__bindgen_anon_3.ipv6_src = src;
        lookup.__bindgen_anon_4.ipv6_dst = dst;
    }
    #[inline(always)]
    fn neighbour(address: V6) -> bpf_redir_neigh {
        let mut neighbour = no_neighbour(Self::ADDRESS_FAMILY);
        neighbour.__bindgen_anon_1.ipv6_nh = address;
        neighbour
    }
}

/// All of it initialised, whichever member of the union is used.
#[inline(always)]
pub(crate) const fn no_neighbour(family: u8) -> bpf_redir_neigh {
    bpf_redir_neigh { nh_family: family as u32, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [0; 4] } }
}

/// The router at the other end of the line that a next hop is by; of no family where the kernel knows best.
///
/// Not an `Option`: the verifier refuses to copy what an absent value would have held.
#[inline(always)]
pub(crate) fn router<M: Routed + Sockets>(tables: &KernelTables<M>, hop: &Hop) -> bpf_redir_neigh {
    let none = no_neighbour(0);
    if hop.line == 0 {
        return none;
    }
    let Some(rule) = tables.rule(hop.line) else { return none };
    if rule.to == M::Address::default() { none } else { M::neighbour(rule.to) }
}

/// The slot for such packets, and where they come from, as far as that matters.
#[inline(always)]
fn place<M: Routed>(
    settings: &Settings,
    ends: &Ends<M::Address>,
) -> Option<(&'static mut NextHop<M::Address>, M::Address)> {
    let part = per_cpu::part(M::next_hops())?;
    let Ends { src, dst, kind } = *ends;
    let by_source = settings.flags & (setting_flags::ROUTE_BY_SOURCE | setting_flags::STEER) != 0;
    let src = if by_source { src } else { M::Address::default() };
    let mix = if by_source { dst.mix() ^ src.mix() ^ kind.mix() } else { dst.mix() };
    let slot = per_cpu::entry(part, mix);
    // SAFETY: this CPU's own copy of an array value, valid while the program runs; programs of one CPU that use it
    // run to completion one after the other.
    Some((unsafe { &mut *slot }, src))
}

/// Whether a slot is about such packets from `src`, and what it says still holds.
#[inline(always)]
fn is_fresh<M: Routed>(
    tables: &KernelTables<M>,
    slot: &NextHop<M::Address>,
    ends: &Ends<M::Address>,
    src: M::Address,
) -> bool {
    // An unresolved neighbour or a missing route may change with the next packet: those answers are not kept.
    let kept = slot.state == NextHopState::Resolved as u16 || slot.state == NextHopState::Local as u16;
    kept && slot.dst == ends.dst
        && slot.src == src
        && slot.kind == ends.kind
        && slot.epoch == tables.settings.epoch
        && elapsed(tables.now, slot.asked) <= tables.settings.next_hop_lifetime
}

/// The slot that is about such packets, as fresh as it has to be; and whether it was so before.
#[inline(always)]
fn slot<M: Routed + Sockets>(
    tables: &KernelTables<M>,
    ends: &Ends<M::Address>,
) -> Option<(&'static mut NextHop<M::Address>, bool)> {
    let (slot, src) = place::<M>(tables.settings, ends)?;
    let fresh = is_fresh(tables, slot, ends, src);
    if !fresh {
        slot.dst = ends.dst;
        slot.src = src;
        slot.kind = ends.kind;
        ask(tables, slot);
    }
    Some((slot, fresh))
}

/// The way for such packets, without taking it: the next packet still confirms the neighbour.
#[inline(always)]
pub(crate) fn way<M: Routed + Sockets>(tables: &KernelTables<M>, ends: &Ends<M::Address>) -> Way {
    match slot(tables, ends) {
        Some((slot, _)) => Way { state: NextHopState::from_number(slot.state), interface: slot.interface },
        None => Way { state: NextHopState::Unknown, interface: 0 },
    }
}

/// The next hop for such packets: the kept one while it is fresh, else what is found out now.
#[inline(always)]
pub(crate) fn next_hop<M: Routed + Sockets>(tables: &KernelTables<M>, ends: &Ends<M::Address>) -> Hop {
    let Some((slot, fresh)) = slot(tables, ends) else { return Hop::NONE };
    let mut flags = slot.flags;
    if tables.at == At::Tc {
        // This packet goes by the neighbour code, and no other until the kernel is asked again.
        slot.flags &= !next_hop_flags::CONFIRM;
    } else if fresh {
        // The packet that asked was left to TC.
        flags &= !next_hop_flags::CONFIRM;
    }
    let state = NextHopState::from_number(slot.state);
    let NextHop { interface, line, mtu, link_addresses, .. } = *slot;
    Hop { state, flags, interface, line, mtu, link_addresses }
}

/// The next hop for such packets, if a fresh one is kept that no packet has to confirm.
#[inline(always)]
pub(crate) fn known_next_hop<M: Routed>(tables: &KernelTables<M>, ends: &Ends<M::Address>) -> Hop {
    let Some((slot, src)) = place::<M>(tables.settings, ends) else { return Hop::NONE };
    if !is_fresh(tables, slot, ends, src) || slot.flags & next_hop_flags::CONFIRM != 0 {
        return Hop::NONE;
    }
    let NextHop { interface, line, mtu, link_addresses, .. } = *slot;
    Hop { state: NextHopState::from_number(slot.state), flags: slot.flags, interface, line, mtu, link_addresses }
}

/// Finds out about the slot's packets: the line that they are steered to, else what the kernel says.
///
/// Not inlined: a stack frame of its own, which packets with a fresh next hop do not pay for.
#[inline(never)]
fn ask<M: Routed + Sockets>(tables: &KernelTables<M>, slot: &mut NextHop<M::Address>) {
    find_line(tables, slot);
    let rule = if slot.line == 0 { None } else { tables.rule(slot.line) };
    let Some(rule) = rule else {
        ask_kernel(tables, slot, None);
        return;
    };
    if rule.allow == 0 {
        slot.state = NextHopState::Unreachable as u16;
        slot.interface = 0;
        return;
    }
    // Where the router's own way is the line, as it should be, its link address is known and XDP can use it.
    ask_kernel(tables, slot, (rule.to != M::Address::default()).then_some(&rule.to));
    let found = slot.state == NextHopState::Resolved as u16 && slot.interface == rule.allow;
    slot.interface = rule.allow;
    slot.flags = interface_flags(rule.allow) | (slot.flags & next_hop_flags::CONFIRM);
    slot.mtu = device_mtu(tables.context, rule.allow);
    let bare = slot.flags & next_hop_flags::NO_LINK_HEADER != 0;
    slot.state = if found || bare { NextHopState::Resolved } else { NextHopState::Unresolved } as u16;
}

/// Notes the line of the slot's packets. Not inlined: as [`ask`].
#[inline(never)]
fn find_line<M: Routed + Sockets>(tables: &KernelTables<M>, slot: &mut NextHop<M::Address>) {
    slot.line = 0;
    if tables.settings.flags & setting_flags::STEER != 0 {
        slot.line = steer::line(tables, &slot.src, &slot.dst, slot.kind);
    }
}

/// This CPU's memory for a question to the kernel's routing, with nothing in it.
#[inline(always)]
fn blank_lookup() -> Option<&'static mut FibLookup> {
    const { assert!(size_of::<FibLookup>() == size_of::<[u64; 8]>()) };
    let lookup = FIB_LOOKUP.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value, valid while the program runs, of the record's size, whose integers may all be zero; programs
    // of one CPU that use it run to completion one after the other.
    unsafe {
        lookup.write([0; 8]);
        Some(&mut *lookup.cast())
    }
}

/// Asks the kernel for the way of the slot's packets, or of such packets to a router. Not inlined: as [`ask`].
#[inline(never)]
fn ask_kernel<M: Routed>(tables: &KernelTables<M>, slot: &mut NextHop<M::Address>, router: Option<&M::Address>) {
    let Some(lookup) = blank_lookup() else { return };
    lookup.family = M::ADDRESS_FAMILY;
    lookup.ifindex = LOOPBACK;
    // The least length there is: makes the kernel report the route's MTU.
    lookup.__bindgen_anon_1.tot_len = 1;
    M::set_ends(lookup, slot.src, *router.unwrap_or(&slot.dst));
    // SAFETY: the program's own argument, and a record of the size that is said.
    let answer = unsafe { bpf_fib_lookup(tables.context, &raw mut *lookup, size_of::<FibLookup>() as i32, 0) };
    slot.asked = tables.now;
    slot.epoch = tables.settings.epoch;
    slot.interface = lookup.ifindex;
    slot.flags = interface_flags(lookup.ifindex);
    let state = match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            slot.flags |= next_hop_flags::CONFIRM;
            // SAFETY: both members of the union are the same 16-bit integer.
            slot.mtu = unsafe { lookup.__bindgen_anon_1.mtu_result }.into();
            let [d0, d1, d2, d3, d4, d5] = lookup.dmac;
            let [s0, s1, s2, s3, s4, s5] = lookup.smac;
            slot.link_addresses = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
            NextHopState::Resolved
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            slot.mtu = ask_mtu(tables, lookup, slot.src, *router.unwrap_or(&slot.dst));
            // A device without link header never has neighbours: for it this is the final answer.
            if slot.flags & next_hop_flags::NO_LINK_HEADER != 0 {
                NextHopState::Resolved
            } else {
                NextHopState::Unresolved
            }
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => NextHopState::Local,
        BPF_FIB_LKUP_RET_UNREACHABLE => NextHopState::Unreachable,
        BPF_FIB_LKUP_RET_PROHIBIT => NextHopState::Prohibited,
        _ => NextHopState::Blackhole,
    };
    slot.state = state as u16;
}

#[inline(always)]
fn interface_flags(interface: u32) -> u16 {
    // SAFETY: copied at once; the loader replaces entries.
    let Some(known) = (unsafe { INTERFACES.get(interface) }).copied() else { return 0 };
    let mut flags = 0;
    if known.flags & interface_flags::XDP_OUT != 0 {
        flags |= next_hop_flags::XDP_OUT | known.slot << next_hop_flags::SLOT_SHIFT;
    }
    if known.flags & interface_flags::NO_LINK_HEADER != 0 {
        flags |= next_hop_flags::NO_LINK_HEADER;
    }
    flags
}

/// A device's MTU in bytes of IP packet; unlimited if the kernel does not tell.
#[inline(always)]
fn device_mtu(context: *mut c_void, interface: u32) -> u32 {
    let mut mtu = 0;
    // SAFETY: the program's own argument and a word of ours. It returns whether this packet fits, which the caller
    // works out for the translated packet itself.
    unsafe { bpf_check_mtu(context, interface, &raw mut mtu, 0, 0) };
    if mtu == 0 { u32::MAX } else { mtu }
}

/// The MTU of the way for packets from `src` to `dst`, in bytes of IP packet; unlimited if the kernel does not tell.
///
/// Asked anew each time, for the few packets that want to know: a kept answer would need a packet that goes there and
/// confirms the neighbour.
#[inline(always)]
pub(crate) fn mtu<M: Routed>(tables: &KernelTables<M>, src: M::Address, dst: M::Address) -> u32 {
    let by_source = tables.settings.flags & setting_flags::ROUTE_BY_SOURCE != 0;
    route_mtu(tables, if by_source { src } else { M::Address::default() }, dst)
}

/// As [`mtu`]. Not inlined: a stack frame of its own.
#[inline(never)]
fn route_mtu<M: Routed>(tables: &KernelTables<M>, src: M::Address, dst: M::Address) -> u32 {
    match blank_lookup() {
        Some(lookup) => ask_mtu(tables, lookup, src, dst),
        None => u32::MAX,
    }
}

/// As [`mtu`]. A lookup for a packet that is larger than any MTU fails with the MTU, before it comes to neighbours.
/// `lookup` may have served another before.
#[inline(always)]
fn ask_mtu<M: Routed>(tables: &KernelTables<M>, lookup: &mut FibLookup, src: M::Address, dst: M::Address) -> u32 {
    lookup.family = M::ADDRESS_FAMILY;
    lookup.ifindex = LOOPBACK;
    lookup.__bindgen_anon_1.tot_len = u16::MAX;
    lookup.__bindgen_anon_2.rt_metric = 0;
    M::set_ends(lookup, src, dst);
    // SAFETY: the program's own argument, and a record of the size that is said.
    let answer = unsafe { bpf_fib_lookup(tables.context, &raw mut *lookup, size_of::<FibLookup>() as i32, 0) };
    match answer as u32 {
        // SAFETY: both members of the union are the same 16-bit integer.
        BPF_FIB_LKUP_RET_FRAG_NEEDED => unsafe { lookup.__bindgen_anon_1.mtu_result }.into(),
        _ => u32::MAX,
    }
}
