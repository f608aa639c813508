//! Counters. Each CPU has its own copy, so that a plain addition is enough.

use core::{arch::asm, hint::black_box, mem::offset_of};

use forwarder_common::{
    abi::{Direction, InterfaceCounters, KnownInterface, RuleCounters, Traffic, interface_flags},
    tables::Event,
    verdict::Outcome,
};

use crate::{
    access::tc::TcPacket,
    maps::{INTERFACE_COUNTERS, INTERFACE_SLOT, INTERFACES, RULE_COUNTERS, SLOTS_BY_INDEX},
};

/// Which of an interface's two programs counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
    /// TC, on the way out.
    Egress,
}

/// Counts how a packet left XDP; called once for every packet.
#[inline(always)]
pub(crate) fn at_xdp(outcome: Outcome) {
    in_slot(Hook::Xdp, INTERFACE_SLOT.load(), outcome);
}

/// Counts a packet that XDP forwards, in place of [`at_xdp`]: it is known beforehand which counter that is.
#[inline(always)]
pub(crate) fn forwarded_at_xdp() {
    let Some(counters) = of_interface(INTERFACE_SLOT.load()) else { return };
    if let Some(counter) = counters.xdp.get_mut(Outcome::Forwarded as usize) {
        *counter += 1;
    }
}

/// Counts how a packet left a TC hook; called once for every packet.
#[inline(always)]
pub(crate) fn at_tc(hook: Hook, packet: &TcPacket, outcome: Outcome) {
    // What leaves is rarely counted, and the verifier likes that program better as it is without.
    let known = if hook == Hook::Tc { SLOTS_BY_INDEX.get(packet.interface()).copied().unwrap_or(0) } else { 0 };
    let slot = if known != 0 {
        known - 1
    } else if let Some(interface) = served(packet) {
        interface.slot.into()
    } else {
        return;
    };
    in_slot(hook, slot, outcome);
}

/// The interface that a program at TC runs for. None where only what leaves is looked at, since routes lead there: that
/// counts for its line, not for an interface.
#[inline(always)]
pub(crate) fn served(packet: &TcPacket) -> Option<KnownInterface> {
    // SAFETY: copied at once; the loader replaces entries. Should it do so in this moment, a packet is counted elsewhere.
    let interface = unsafe { INTERFACES.get(packet.interface()) }.copied()?;
    (interface.flags & interface_flags::SERVED != 0).then_some(interface)
}

/// This CPU's counters of the interface in a slot.
#[inline(always)]
fn of_interface(slot: u32) -> Option<&'static mut InterfaceCounters> {
    let counters = INTERFACE_COUNTERS.get_ptr_mut(slot)?;
    // SAFETY: this CPU's own copy, valid while the program runs; programs of one hook do not interrupt each other on a CPU.
    Some(unsafe { &mut *counters })
}

#[inline(always)]
fn in_slot(hook: Hook, slot: u32, outcome: Outcome) {
    let Some(counters) = of_interface(slot) else { return };
    let of_hook = match hook {
        Hook::Xdp => &mut counters.xdp,
        Hook::Tc => &mut counters.tc,
        Hook::Egress => &mut counters.egress,
    };
    // The compiler knows that every outcome has a counter and would drop the comparison that the verifier, which does
    // not know, has to see.
    if let Some(counter) = of_hook.get_mut(black_box(outcome as usize)) {
        *counter += 1;
    }
}

#[inline(always)]
fn with_rule(counter: u32, change: impl FnOnce(&mut RuleCounters)) {
    if let Some(counters) = RULE_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own copy, as above.
        change(unsafe { &mut *counters });
    }
}

/// Counts a forwarded packet of a rule.
#[inline(always)]
pub(crate) fn forwarded(counter: u32, direction: Direction, bytes: u32) {
    const {
        assert!(offset_of!(RuleCounters, forward) == Direction::Forward as usize * size_of::<Traffic>());
        assert!(offset_of!(RuleCounters, reply) == Direction::Reply as usize * size_of::<Traffic>());
    }
    with_rule(counter, |counters| {
        let mut which = direction as usize;
        // The compiler knows that this changes nothing; the verifier takes the direction for any byte.
        // SAFETY: arithmetic in a register.
        unsafe { asm!("{which} &= 1", which = inlateout(reg) which, options(pure, nomem, nostack)) };
        // SAFETY: one of the two records that the counters begin with, as asserted.
        let traffic = unsafe { &mut *(&raw mut *counters).cast::<Traffic>().add(which) };
        traffic.packets += 1;
        traffic.bytes += u64::from(bytes);
    });
}

/// Counts an event of a rule.
#[inline(always)]
pub(crate) fn event(counter: u32, event: Event) {
    with_rule(counter, |counters| {
        let field = match event {
            Event::FlowBegun => &mut counters.flows,
            Event::Denied => &mut counters.denied,
            Event::Unprotected => &mut counters.unprotected,
            Event::PortClash => &mut counters.port_clashes,
        };
        *field += 1;
    });
}
