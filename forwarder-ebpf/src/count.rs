//! Counters. Each CPU has its own copy, so that a plain addition is enough.

use core::hint::black_box;

use forwarder_common::{
    abi::{Direction, RuleCounters},
    tables::Event,
    verdict::Outcome,
};

use crate::maps::{INTERFACE_COUNTERS, INTERFACE_SLOT, RULE_COUNTERS};

/// Which of an interface's two programs counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
    /// TC, on the way out.
    Egress,
}

/// Counts how a packet left a hook; called once for every packet.
#[inline(always)]
pub(crate) fn outcome(hook: Hook, outcome: Outcome) {
    let Some(counters) = INTERFACE_COUNTERS.get_ptr_mut(INTERFACE_SLOT.load()) else { return };
    // SAFETY: this CPU's own copy, and programs of one hook do not interrupt each other on a CPU.
    let counters = unsafe { &mut *counters };
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
    with_rule(counter, |counters| {
        // `black_box`: the compiler would compute the address from the direction, which the verifier takes for any byte.
        let forward = black_box(direction as u8) == Direction::Forward as u8;
        let traffic = if forward { &mut counters.forward } else { &mut counters.reply };
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
