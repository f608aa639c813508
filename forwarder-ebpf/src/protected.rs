//! The protected flows: an array of slots (`forwarder_common::abi::flow_table`), and beside it a hash map of the keys.
//!
//! Packets only look into the array: one cache line, no call. The map of keys decides between CPUs: a flow comes in
//! by entering its key there, which the kernel lets only one do, and goes out by removing it. Its value is the [`Place`].
//!
//! A slot's word with the protocol changes only by atomic operations, each a full barrier:
//!
//! - Its upper half belongs to the flows whose home the slot is, whoever is in it.
//! - Whoever swaps [`Tag::claimed`] in is alone in the slot until it says who is in it. So key and flow are written while
//!   nobody takes them for a flow, and no slot is half of one flow and half of another.
//! - A reader may still be at the old flow when the slot gets a new one. It reads the key first, then the flow, then the
//!   key again ([`is_of`]): if that has changed, what was read is nobody's, and the packet is as one without flow.
//! - What a packet writes into its flow (time, counts, state) is a word of its own each. In the moment that a flow ends and its
//!   slot is taken, it may get into the next flow: a packet more is counted there, as with the kernel's hash maps, whose elements
//!   are used again at once as well.

use core::{arch::asm, mem};

use aya_ebpf::bindings::BPF_NOEXIST;
use forwarder_common::{
    abi::{Flow, FlowHash, FlowKey, FlowSlot, Place, REACH, Slotted, Tag, WENT_ON, near, used},
    tables::NotInserted,
};

use crate::{
    atomic::{after, keep_only, set, swap_if},
    maps::{FLOW_HASH, Maps, MapsV4, MapsV6},
};

/// No slot's number.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// How often the tag of a slot is tried to be changed while its upper half is changed by others.
const PATIENCE: u32 = 8;

pub(crate) type Slot<M> = FlowSlot<<M as Maps>::Address>;
pub(crate) type Key<M> = FlowKey<<M as Maps>::Address>;

/// A slot's word with the protocol.
#[inline(always)]
pub(crate) fn word<M: Maps>(slot: *mut Slot<M>) -> *mut u32 {
    // SAFETY: a field's address within an array value.
    unsafe { &raw mut (*slot).key.protocol }
}

/// Whether a slot with this word is that of a key.
#[inline(always)]
pub(crate) fn has_key<A: Slotted + Eq>(slot: *mut FlowSlot<A>, word: u32, key: &FlowKey<A>) -> bool {
    // SAFETY: words of an array value.
    let held = unsafe { &(*slot).key };
    Tag::of(word).is_of(key.protocol)
        && held.src == key.src
        && held.dst == key.dst
        && held.src_port == key.src_port
        && held.dst_port == key.dst_port
}

/// A slot's word as it is now: read once, before what it speaks for.
#[inline(always)]
fn read<M: Maps>(slot: *mut Slot<M>) -> u32 {
    // SAFETY: a word of an array value, valid while the program runs.
    unsafe { word::<M>(slot).read_volatile() }
}

/// Whether a table has had a flow.
#[inline(always)]
fn is_used(hash: &FlowHash, table: u32) -> bool {
    // SAFETY: a word of an array value, valid while the program runs. Volatile: another CPU may set it.
    unsafe { (&raw const hash.used).read_volatile() & table != 0 }
}

/// Whether the table of new flows has had one.
#[inline(always)]
pub(crate) fn has_new_flows() -> bool {
    FLOW_HASH.get(0).is_some_and(|hash| is_used(hash, used::EMBRYONIC))
}

/// Notes that a table gets a flow: before it does, so that whoever finds the flow gone from one table looks in the other.
#[inline(always)]
pub(crate) fn use_table(table: u32) {
    let Some(hash) = FLOW_HASH.get_ptr_mut(0) else { return };
    // SAFETY: a word of an array value, valid while the program runs.
    unsafe {
        if (&raw const (*hash).used).read_volatile() & table == 0 {
            set(&raw mut (*hash).used, table);
        }
    }
}

/// The slot of a key's flow.
#[inline(always)]
fn locate<M: OnceVerified>(key: &Key<M>) -> Option<*mut Slot<M>> {
    let hash = FLOW_HASH.get(0)?;
    if !is_used(hash, used::PROTECTED) {
        return None;
    }
    let home = hash.home(key);
    let slot = M::flows().get_ptr_mut(home)?;
    let here = read::<M>(slot);
    if has_key(after(slot, here), here, key) {
        return Some(slot);
    }
    let nearby = here / near(1);
    if nearby == 0 {
        return None;
    }
    M::flows().get_ptr_mut(M::further(key, home, hash.mask, nearby))
}

/// The slot of a key that is not at home; bit 0 of `nearby` speaks for the next slot.
#[inline(always)]
fn further<M: Maps>(key: &Key<M>, home: u32, mask: u32, mut nearby: u32) -> u32 {
    let mut index = home;
    // The rest of the home's, the bit that says that there is a second home, and all of that one's.
    for step in 1..2 * REACH {
        if step == REACH {
            if nearby & 1 == 0 {
                return NOWHERE;
            }
            let Some(hash) = FLOW_HASH.get(0) else { return NOWHERE };
            index = hash.second_home(home);
            let Some(slot) = M::flows().get_ptr_mut(index) else { return NOWHERE };
            nearby = read::<M>(slot) / near(0);
        } else {
            index = index.wrapping_add(1) & mask;
        }
        if nearby & 1 != 0 {
            let Some(slot) = M::flows().get_ptr_mut(index) else { return NOWHERE };
            let here = read::<M>(slot);
            if has_key(after(slot, here), here, key) {
                return index;
            }
        }
        nearby >>= 1;
        if nearby == 0 {
            return NOWHERE;
        }
    }
    NOWHERE
}

/// The flow of packets with a key.
#[inline(always)]
pub(crate) fn find<M: OnceVerified>(key: &Key<M>) -> Option<*mut Flow<M::Address>> {
    // SAFETY: a field's address within an array value.
    locate::<M>(key).map(|slot| unsafe { &raw mut (*slot).flow })
}

/// Whether a flow that was found by `key` in a slot, here or among the new ones, and read since, was that key's all the time.
#[inline(always)]
pub(crate) fn is_of<A: Slotted + Eq>(flow: *mut Flow<A>, key: &FlowKey<A>) -> bool {
    // SAFETY: no instruction; what is read below is read after what was read before. (A CPU that reads out of order may
    // still not do so: BPF has no cheaper fence than a locked instruction.)
    unsafe { asm!("", options(nostack)) };
    // SAFETY: whoever found the flow got it from within a slot.
    let slot: *mut FlowSlot<A> = unsafe { flow.byte_sub(mem::offset_of!(FlowSlot<A>, flow)) }.cast();
    // SAFETY: a word of an array value, valid while the program runs.
    let word = unsafe { (&raw mut (*slot).key.protocol).read_volatile() };
    has_key(slot, word, key)
}

/// Claims a free slot for a flow with this home: how far it is, [`REACH`] for none.
#[inline(always)]
fn claim<M: Maps>(home: u32, mask: u32) -> u32 {
    for distance in 0..REACH {
        let Some(slot) = M::flows().get_ptr_mut(home.wrapping_add(distance) & mask) else { return REACH };
        let free = read::<M>(slot);
        if Tag::of(free).is_free() && swap_if(word::<M>(slot), free, Tag::claimed(free)) == free {
            return distance;
        }
    }
    REACH
}

/// Enters one direction of a flow.
#[inline(always)]
pub(crate) fn enter<M: OnceVerified>(key: &Key<M>, flow: &Flow<M::Address>) -> Result<(), NotInserted> {
    let Some(hash) = FLOW_HASH.get(0) else { return Err(NotInserted::Refused) };
    use_table(used::PROTECTED);
    // One whose key has just been removed, but is still in its slot, is waited for.
    if locate::<M>(key).is_some() {
        return Err(NotInserted::Taken);
    }
    let mut home = hash.home(key);
    let mut distance = M::claim(home, hash.mask);
    if distance >= REACH {
        if let Some(first) = M::flows().get_ptr_mut(home) {
            set(word::<M>(first), WENT_ON);
        }
        home = hash.second_home(home);
        distance = M::claim(home, hash.mask);
    }
    if distance >= REACH {
        return Err(NotInserted::Refused);
    }
    let index = home.wrapping_add(distance) & hash.mask;
    let Some(slot) = M::flows().get_ptr_mut(index) else { return Err(NotInserted::Refused) };
    // SAFETY: words of an array value, valid while the program runs; whoever has claimed the slot is alone in it.
    unsafe {
        (*slot).key.src = key.src;
        (*slot).key.dst = key.dst;
        (*slot).key.src_port = key.src_port;
        (*slot).key.dst_port = key.dst_port;
        (*slot).flow = *flow;
    }
    let tag = Tag::of(read::<M>(slot)).with(key.protocol);
    let place = Place { index, distance, tag }.pack();
    if M::established().insert(key, place, BPF_NOEXIST.into()).is_err() {
        keep_only(word::<M>(slot), Tag::settled(0));
        return Err(NotInserted::Taken);
    }
    if let Some(first) = M::flows().get_ptr_mut(home) {
        set(word::<M>(first), near(distance));
    }
    keep_only(word::<M>(slot), Tag::settled(key.protocol));
    // Whoever removed the key before the flow could be seen did not find it.
    // SAFETY: copied at once; a single word.
    if unsafe { M::established().get(key) }.copied() != Some(place) {
        M::free(place);
        return Err(NotInserted::Taken);
    }
    Ok(())
}

/// Frees a slot if it is still that of the flow which has this place.
#[inline(always)]
fn free<M: Maps>(place: u64) {
    let place = Place::unpack(place);
    let Some(slot) = M::flows().get_ptr_mut(place.index) else { return };
    for _ in 0..PATIENCE {
        let before = read::<M>(slot);
        if Tag::of(before) != place.tag {
            return;
        }
        if swap_if(word::<M>(slot), before, before | Tag::BUSY) == before {
            break;
        }
        // Somebody has changed the upper half. Whoever leaves here after so many has not made the slot busy: that is done
        // below, and by nobody else, for only one removes a key.
    }
    set(word::<M>(slot), Tag::BUSY);
    let Some(hash) = FLOW_HASH.get(0) else { return };
    // Before the slot is free: who claims it sets the same bit.
    if let Some(home) = M::flows().get_ptr_mut(place.index.wrapping_sub(place.distance) & hash.mask) {
        keep_only(word::<M>(home), !near(place.distance));
    }
    keep_only(word::<M>(slot), Tag::settled(0));
}

/// Removes one direction of a flow; whether it was there. Of two CPUs that try, the kernel lets one succeed.
#[inline(always)]
pub(crate) fn leave<M: OnceVerified>(key: &Key<M>) -> bool {
    // SAFETY: copied at once; a single word.
    let Some(place) = unsafe { M::established().get(key) }.copied() else { return false };
    if M::established().remove(key).is_err() {
        return false;
    }
    M::free(place);
    true
}

/// The functions with loops, each a BPF global function: the verifier looks at it once, by itself, not at each place
/// that a flow is looked for. Such a function takes numbers and pointers that may be null.
macro_rules! once_verified {
    ($maps:ty, $further:ident, $claim:ident, $free:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $further(key: *const Key<$maps>, home: u32, mask: u32, nearby: u32) -> u32 {
            // SAFETY: null, or a key: the verifier sees to it at each call.
            match unsafe { key.as_ref() } {
                Some(key) => further::<$maps>(key, home, mask, nearby),
                None => NOWHERE,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(home: u32, mask: u32) -> u32 {
            claim::<$maps>(home, mask)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $free(place: u64) -> u32 {
            free::<$maps>(place);
            0
        }

        impl OnceVerified for $maps {
            #[inline(always)]
            fn further(key: &Key<Self>, home: u32, mask: u32, nearby: u32) -> u32 {
                $further(key, home, mask, nearby)
            }
            #[inline(always)]
            fn claim(home: u32, mask: u32) -> u32 {
                $claim(home, mask)
            }
            #[inline(always)]
            fn free(place: u64) {
                $free(place);
            }
        }
    };
}

once_verified!(MapsV4, further_v4, claim_v4, free_v4);
once_verified!(MapsV6, further_v6, claim_v6, free_v6);

/// The functions of this module that are not generic themselves.
pub(crate) trait OnceVerified: Maps {
    /// [`further`].
    fn further(key: &Key<Self>, home: u32, mask: u32, nearby: u32) -> u32;
    /// [`claim`].
    fn claim(home: u32, mask: u32) -> u32;
    /// [`free`].
    fn free(place: u64);
}
