//! Which rule names an endpoint: what this CPU has found before, and the look-up for what it has not.
//!
//! Kept in a direct-mapped table of [`Meaning`]s, each of which says in which generation of the rules it is true. That is one
//! line of memory that no other CPU writes, in place of a look-up in the kernel's hash, or in a trie after it. Endpoints
//! that share a place push each other out, which costs the look-up.

use core::{hint::black_box, ptr};

use forwarder_common::{
    abi::{Endpoint, Meaning, Rule},
    address::{Address, V4, V6},
    decide,
};

use crate::{
    maps::{Maps, MapsV4, MapsV6, SETTINGS},
    per_cpu,
    routing::Routed,
    sockets::Sockets,
    tables::KernelTables,
};

/// Where an endpoint's [`Meaning`] is kept: ports in a row do not get in each other's way.
#[inline(always)]
fn index<A: Address>(endpoint: &Endpoint<A>) -> u32 {
    let side_and_protocol = u32::from(endpoint.side) << 9 ^ u32::from(endpoint.protocol) << 2;
    endpoint.address.mix() ^ u32::from(u16::from_be(endpoint.port)) ^ side_and_protocol
}

/// What this CPU keeps at an endpoint's place; that may be about another one.
#[inline(always)]
fn place<M: Maps>(endpoint: &Endpoint<M::Address>) -> Option<*mut Meaning<M::Address>> {
    let part = per_cpu::part(M::meanings())?;
    Some(per_cpu::entry(part, index(endpoint)))
}

/// Whether what is kept is what an endpoint means in this generation.
#[inline(always)]
fn is_about<A: Address>(kept: *mut Meaning<A>, endpoint: &Endpoint<A>, generation: u32) -> bool {
    // SAFETY: this CPU's own values, valid while the program runs; programs of one CPU that use them run to completion one
    // after the other.
    let known = unsafe { &*kept };
    known.generation == generation && known.endpoint.is(endpoint)
}

/// The slot of the rule that names an endpoint in this generation, 0 for none.
#[inline(always)]
pub(crate) fn slot_of<M: FoundOnce>(endpoint: &Endpoint<M::Address>, generation: u32) -> u32 {
    match place::<M>(endpoint) {
        // SAFETY: as above.
        Some(kept) if is_about(kept, endpoint, generation) => unsafe { (*kept).slot },
        _ => M::find(endpoint, generation),
    }
}

/// The rule that names an endpoint in this generation, as it is kept: good until the next endpoint is asked about. None on a
/// CPU that keeps nothing.
#[inline(always)]
pub(crate) fn rule_of<M: FoundOnce>(
    endpoint: &Endpoint<M::Address>,
    generation: u32,
) -> Option<&'static Rule<M::Address>> {
    let kept = place::<M>(endpoint)?;
    let slot = if is_about(kept, endpoint, generation) {
        // SAFETY: as above.
        unsafe { (*kept).slot }
    } else {
        M::find(endpoint, generation)
    };
    // SAFETY: as above; what was found stands there by now.
    if slot == 0 { None } else { Some(unsafe { &(*kept).rule }) }
}

/// Finds it in the maps of rules, and keeps it. The settings are read by this function, so after the generation: a flag that
/// says where to look is set before the generation begins in which it matters, and what is found is kept for all of that.
#[inline(always)]
fn find<M: Routed + Sockets>(endpoint: &Endpoint<M::Address>, generation: u32) -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return 0 };
    let index = index(endpoint);
    let slot = decide::find_slot(&KernelTables::<M>::of_rules(settings, generation), endpoint);
    keep::<M>(endpoint, index, generation, slot);
    slot
}

/// Keeps what an endpoint means, at its [`index`]. Not inlined: a stack frame of its own.
#[inline(never)]
fn keep<M: Maps>(endpoint: &Endpoint<M::Address>, index: u32, generation: u32, slot: u32) {
    let Some(rule) = M::rules().get(slot) else { return };
    let Some(part) = per_cpu::part(M::meanings()) else { return };
    let kept = per_cpu::entry(part, index);
    // SAFETY: as above. Field by field, for a whole one would be put together on the stack.
    unsafe {
        (&raw mut (*kept).endpoint).copy_from_nonoverlapping(endpoint, 1);
        (*kept).generation = generation;
        (*kept).slot = slot;
        (&raw mut (*kept).rule).copy_from_nonoverlapping(rule, 1);
    }
}

/// [`find`] as a BPF global function: the verifier looks at it once, by itself. Linux 6.1 gives up if it follows all ways
/// through two look-ups in the same program, with those that are known already.
pub(crate) trait FoundOnce: Maps {
    fn find(endpoint: &Endpoint<Self::Address>, generation: u32) -> u32;
}

macro_rules! found_once {
    ($maps:ty, $address:ty, $find:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(endpoint: *const Endpoint<$address>, generation: u32) -> u32 {
            // SAFETY: null, or an endpoint: the verifier sees to it at each call.
            match unsafe { endpoint.as_ref() } {
                // A copy of its own: Linux 6.1 takes no key for a map from memory that a global function was given.
                Some(endpoint) => find::<$maps>(&black_box(*endpoint), generation),
                None => 0,
            }
        }

        impl FoundOnce for $maps {
            #[inline(always)]
            fn find(endpoint: &Endpoint<$address>, generation: u32) -> u32 {
                $find(ptr::from_ref(endpoint), generation)
            }
        }
    };
}

found_once!(MapsV4, V4, find_slot_v4);
found_once!(MapsV6, V6, find_slot_v6);
