//! The new flows: an array of buckets (`forwarder_common::abi::Bucket`).
//!
//! Packets look for a flow without a lock: at the bucket's marks, and at the slots that these leave. Whoever comes, goes or makes
//! room does it under a lock, one for many buckets, so that no key is twice in a bucket and no way is given to two.
//!
//! A reader may still be at a flow whose slot is given to another. As in the table of protected flows, the key's protocol says
//! that a slot is being written, and whoever has read a flow compares the key again ([`protected::is_of`]).

use core::arch::asm;

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use forwarder_common::{
    abi::{Bucket, Flow, Mark, Tag, Ticks, WAYS, used},
    tables::{NotInserted, Room},
};

use crate::{
    atomic::{after, keep_only, set, swap_if},
    maps::{FLOW_HASH, LOCKS, Maps, MapsV4, MapsV6, NEW_FLOW_LOCKS},
    protected::{Key, NOWHERE, Slot, has_key, use_table, word},
};

/// What [`insert`] answers: entered.
const ENTERED: u32 = 0;
/// Another entry has the key.
const TAKEN: u32 = 1;
/// The table is not there.
const REFUSED: u32 = 2;

/// As long as one.
type CacheLine = [u32; 16];
type Ways<M> = Bucket<<M as Maps>::Address>;

/// The word of a way, which is less than [`WAYS`].
#[inline(always)]
fn mark<M: Maps>(bucket: *mut Ways<M>, way: u32) -> *mut u32 {
    // SAFETY: an address within an array value, as the caller says.
    unsafe { (&raw mut (*bucket).marks).cast::<u32>().add(way as usize) }
}

/// The slot of a way, which is less than [`WAYS`].
#[inline(always)]
fn slot<M: Maps>(bucket: *mut Ways<M>, way: u32) -> *mut Slot<M> {
    // SAFETY: an address within an array value, as the caller says.
    unsafe { (&raw mut (*bucket).slots).cast::<Slot<M>>().add(way as usize) }
}

/// Which way of a bucket has the key, of those whose mark is like `wanted`; [`WAYS`] for none.
#[inline(always)]
fn way_of<M: Maps>(bucket: *mut Ways<M>, wanted: Mark, key: &Key<M>) -> u32 {
    for way in 0..WAYS {
        // SAFETY: a word of an array value, valid while the program runs. Volatile, for others change it.
        let here = unsafe { mark::<M>(bucket, way).read_volatile() };
        if Mark(here).is_like(wanted) {
            let slot = after(slot::<M>(bucket, way), here);
            // SAFETY: as above.
            let protocol = unsafe { word::<M>(slot).read_volatile() };
            if has_key(after(slot, protocol), protocol, key) {
                return way;
            }
        }
    }
    WAYS
}

/// Whether a bucket has a mark like this one.
#[inline(always)]
fn has_mark<M: Maps>(index: u32, wanted: Mark) -> bool {
    let Some(bucket) = M::embryonic().get_ptr_mut(index) else { return false };
    for way in 0..WAYS {
        // SAFETY: as above.
        let here = unsafe { mark::<M>(bucket, way).read_volatile() };
        if Mark(here).is_like(wanted) {
            return true;
        }
    }
    false
}

/// Whether a key may be that of a flow. Cheaper than [`find`] where that has to be known alone.
#[inline(always)]
pub(crate) fn may_have<M: LockedTable>(key: &Key<M>) -> bool {
    let Some(hash) = FLOW_HASH.get(0) else { return false };
    // Read anew: else the compiler keeps every word of it on the stack from when the protected flow was looked for.
    // SAFETY: a move in registers.
    let key = unsafe {
        let mut key: *const Key<M> = key;
        asm!("{key} = {key}", key = inlateout(reg) key, options(nostack));
        &*key
    };
    let (index, wanted) = hash.bucket(key, 0);
    M::has_mark(index, wanted) != 0
}

/// Where a key's flow is: its bucket's number times [`WAYS`], and its way; [`NOWHERE`] for a key without flow.
#[inline(always)]
fn locate<M: Maps>(key: &Key<M>, now: Ticks) -> u32 {
    let Some(hash) = FLOW_HASH.get(0) else { return NOWHERE };
    let (index, mut wanted) = hash.bucket(key, now);
    // Worked out here, and not again from `now` below: a place less on the stack.
    // SAFETY: a move in registers.
    unsafe { asm!("{mark} = {mark}", mark = inlateout(wreg) wanted.0, options(nomem, nostack)) };
    let Some(bucket) = M::embryonic().get_ptr_mut(index) else { return NOWHERE };
    let way = way_of::<M>(bucket, wanted, key);
    if way >= WAYS {
        return NOWHERE;
    }
    let word = mark::<M>(bucket, way);
    // SAFETY: a word of an array value, valid while the program runs.
    let here = unsafe { word.read_volatile() };
    if Mark(here).is_like(wanted)
        && let Some(sought) = Mark(here).sought(wanted.time())
    {
        // Whoever was faster has noted the same, or given the way to another flow.
        swap_if(word, here, sought.0);
    }
    index * WAYS + way
}

/// In what [`seek`] answers: the flow is there, and this is its place; else the room for it.
const FOUND: u64 = 1 << 31;

/// A way of the table that a flow may get: its mark as it is, and its place.
const fn room(mark: u32, place: u32) -> u64 {
    (mark as u64) << 32 | place as u64
}

/// Where a key's flow is or, if there is none, would be: less work than to look for that one after the other.
#[inline(always)]
fn seek<M: Maps>(key: &Key<M>, now: Ticks) -> u64 {
    let Some(hash) = FLOW_HASH.get(0) else { return 0 };
    let (index, wanted) = hash.bucket(key, now);
    let Some(bucket) = M::embryonic().get_ptr_mut(index) else { return 0 };
    let way = way_of::<M>(bucket, wanted, key);
    if way < WAYS {
        return FOUND | u64::from(index * WAYS + way);
    }
    let way = first_to_go::<M>(bucket, wanted.time());
    // SAFETY: a word of an array value, valid while the program runs.
    let here = unsafe { mark::<M>(bucket, way).read_volatile() };
    room(here, index * WAYS + way)
}

/// The flow of packets with a key, or the room for one.
#[inline(always)]
pub(crate) fn find_or_room<M: LockedTable>(key: &Key<M>, now: Ticks) -> Result<*mut Flow<M::Address>, Room> {
    let sought = M::seek(key, now);
    if sought & FOUND == 0 {
        return Err(Room(sought));
    }
    flow_at::<M>(sought as u32 & !(FOUND as u32)).ok_or(Room::UNKNOWN)
}

/// Reads from a room's slot, so that its memory comes: a line each.
#[inline(always)]
pub(crate) fn fetch<M: Maps>(room: Room) {
    if room == Room::UNKNOWN {
        return;
    }
    let place = room.0 as u32;
    let Some(bucket) = M::embryonic().get_ptr_mut(place / WAYS) else { return };
    let slot = slot::<M>(bucket, place % WAYS).cast::<CacheLine>();
    for line in 0..size_of::<Slot<M>>() / size_of::<CacheLine>() {
        // SAFETY: a word of an array value, valid while the program runs. Volatile: nobody uses it.
        let _ = unsafe { slot.add(line).cast::<u32>().read_volatile() };
    }
}

/// The flow of packets with a key.
#[inline(always)]
pub(crate) fn find<M: LockedTable>(key: &Key<M>, now: Ticks) -> Option<*mut Flow<M::Address>> {
    flow_at::<M>(M::locate(key, now))
}

/// The flow at a place; `None` for [`NOWHERE`].
#[inline(always)]
fn flow_at<M: Maps>(place: u32) -> Option<*mut Flow<M::Address>> {
    let bucket = M::embryonic().get_ptr_mut(place / WAYS)?;
    let slot = slot::<M>(bucket, place % WAYS);
    // SAFETY: a word of an array value, valid while the program runs. Once more, so that no CPU reads the flow before it.
    let protocol = unsafe { word::<M>(slot).read_volatile() };
    // SAFETY: a field's address within an array value.
    Some(unsafe { &raw mut (*after(slot, protocol)).flow })
}

/// The larger of two numbers below 2^31. Computed without a branch: the kernel's verifier would follow both sides of one for each
/// way, 2^16 in all.
#[inline(always)]
fn larger(mut one: u64, other: u64) -> u64 {
    // SAFETY: arithmetic in registers.
    unsafe {
        asm!("{difference} = {one}", "{difference} -= {other}", "{sign} = {difference}", "{sign} s>>= 63",
            "{difference} &= {sign}", "{one} -= {difference}",
            one = inlateout(reg) one, other = in(reg) other, difference = out(reg) _, sign = out(reg) _,
            options(pure, nomem, nostack));
    }
    one
}

/// Which way of a bucket makes room first.
#[inline(always)]
fn first_to_go<M: Maps>(bucket: *mut Ways<M>, now: Ticks) -> u32 {
    let mut first = 0;
    for way in 0..WAYS {
        // SAFETY: a word of an array value, valid while the program runs.
        let here = unsafe { mark::<M>(bucket, way).read_volatile() };
        first = larger(first, u64::from(Mark(here).precedence(now) * WAYS + way));
    }
    first as u32 % WAYS
}

/// Which way of a bucket makes room for a key. Never that of the same flow's other direction: where all ways are equally new,
/// the second one to come would push out the first.
#[inline(always)]
fn way_to_take<M: Maps>(bucket: *mut Ways<M>, key: &Key<M>, now: Ticks, known: Room) -> u32 {
    let mut way = known.0 as u32 % WAYS;
    // SAFETY: a word of an array value, valid while the program runs.
    let here = unsafe { mark::<M>(bucket, way).read_volatile() };
    if u64::from(here) != known.0 >> 32 {
        way = first_to_go::<M>(bucket, now);
    }
    // SAFETY: a slot of an array value; whoever has the lock is alone in writing its rewrite.
    let is_peer = unsafe { (*slot::<M>(bucket, way)).flow.undoes(key) };
    (way + u32::from(is_peer)) % WAYS
}

/// Enters a flow. Calls nothing but inlined functions while it holds the lock.
#[inline(always)]
fn insert<M: Maps>(key: &Key<M>, flow: &Flow<M::Address>, now: Ticks, known: Room) -> u32 {
    let Some(hash) = FLOW_HASH.get(0) else { return REFUSED };
    let (index, entered) = hash.bucket(key, now);
    let Some(bucket) = M::embryonic().get_ptr_mut(index) else { return REFUSED };
    let Some(lock) = NEW_FLOW_LOCKS.get_ptr_mut(index % LOCKS) else { return REFUSED };
    // SAFETY: a lock in a value of a map with BTF; released below, on every way.
    unsafe { bpf_spin_lock(&raw mut (*lock).lock) };
    let taken = way_of::<M>(bucket, entered, key) < WAYS;
    if !taken {
        let way = way_to_take::<M>(bucket, key, now, known);
        let mark = mark::<M>(bucket, way);
        let slot = slot::<M>(bucket, way);
        // SAFETY: words of an array value, valid while the program runs; whoever has the lock is alone in writing them, but
        // for packets that count in a flow which makes room.
        unsafe {
            mark.write_volatile(0);
            set(word::<M>(slot), Tag::BUSY);
            (*slot).key.src = key.src;
            (*slot).key.dst = key.dst;
            (*slot).key.src_port = key.src_port;
            (*slot).key.dst_port = key.dst_port;
            (*slot).flow = *flow;
            keep_only(word::<M>(slot), key.protocol);
            mark.write_volatile(entered.0);
        }
    }
    // SAFETY: taken above.
    unsafe { bpf_spin_unlock(&raw mut (*lock).lock) };
    if taken { TAKEN } else { ENTERED }
}

/// Removes the flow of a key, if there is one. Calls nothing but inlined functions while it holds the lock.
#[inline(always)]
fn remove<M: Maps>(key: &Key<M>) {
    let Some(hash) = FLOW_HASH.get(0) else { return };
    let (index, wanted) = hash.bucket(key, 0);
    let Some(bucket) = M::embryonic().get_ptr_mut(index) else { return };
    let Some(lock) = NEW_FLOW_LOCKS.get_ptr_mut(index % LOCKS) else { return };
    // SAFETY: a lock in a value of a map with BTF; released below, on every way.
    unsafe { bpf_spin_lock(&raw mut (*lock).lock) };
    let way = way_of::<M>(bucket, wanted, key);
    if way < WAYS {
        // The key stays: a packet that has found the flow, which may be a protected one now, still goes by it.
        // SAFETY: a word of an array value, valid while the program runs.
        unsafe { mark::<M>(bucket, way).write_volatile(0) };
    }
    // SAFETY: taken above.
    unsafe { bpf_spin_unlock(&raw mut (*lock).lock) };
}

/// Enters one direction of a flow, unless its key is taken.
#[inline(always)]
pub(crate) fn enter<M: LockedTable>(
    key: &Key<M>,
    flow: &Flow<M::Address>,
    now: Ticks,
    known: Room,
) -> Result<(), NotInserted> {
    use_table(used::EMBRYONIC);
    match M::insert(key, flow, now, known) {
        ENTERED => Ok(()),
        TAKEN => Err(NotInserted::Taken),
        _ => Err(NotInserted::Refused),
    }
}

/// Each a BPF global function: the verifier looks at it once, by itself. Such a function takes numbers and pointers that may
/// be null.
macro_rules! locked_table {
    ($maps:ty, $has_mark:ident, $locate:ident, $seek:ident, $insert:ident, $remove:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $has_mark(index: u32, wanted: u32) -> u32 {
            has_mark::<$maps>(index, Mark(wanted)).into()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $locate(key: *const Key<$maps>, now: Ticks) -> u32 {
            // SAFETY: null, or a key: the verifier sees to it at each call.
            match unsafe { key.as_ref() } {
                Some(key) => locate::<$maps>(key, now),
                None => NOWHERE,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $seek(key: *const Key<$maps>, now: Ticks) -> u64 {
            // SAFETY: as above.
            match unsafe { key.as_ref() } {
                Some(key) => seek::<$maps>(key, now),
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $insert(
            key: *const Key<$maps>,
            flow: *const Flow<<$maps as Maps>::Address>,
            now: Ticks,
            known: u64,
        ) -> u32 {
            // SAFETY: as above, and a flow.
            match unsafe { (key.as_ref(), flow.as_ref()) } {
                (Some(key), Some(flow)) => insert::<$maps>(key, flow, now, Room(known)),
                _ => REFUSED,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const Key<$maps>) -> u32 {
            // SAFETY: as above.
            if let Some(key) = unsafe { key.as_ref() } {
                remove::<$maps>(key);
            }
            0
        }

        impl LockedTable for $maps {
            #[inline(always)]
            fn has_mark(index: u32, wanted: Mark) -> u32 {
                $has_mark(index, wanted.0)
            }
            #[inline(always)]
            fn locate(key: &Key<Self>, now: Ticks) -> u32 {
                $locate(key, now)
            }
            #[inline(always)]
            fn seek(key: &Key<Self>, now: Ticks) -> u64 {
                $seek(key, now)
            }
            #[inline(always)]
            fn insert(key: &Key<Self>, flow: &Flow<Self::Address>, now: Ticks, known: Room) -> u32 {
                $insert(key, flow, now, known.0)
            }
            #[inline(always)]
            fn remove(key: &Key<Self>) {
                $remove(key);
            }
        }
    };
}

locked_table!(MapsV4, has_mark_v4, locate_new_v4, seek_new_v4, insert_new_v4, remove_new_v4);
locked_table!(MapsV6, has_mark_v6, locate_new_v6, seek_new_v6, insert_new_v6, remove_new_v6);

/// The functions of this module that are not generic themselves.
pub(crate) trait LockedTable: Maps {
    /// [`has_mark`]: 0 for no.
    fn has_mark(index: u32, wanted: Mark) -> u32;
    /// [`locate`].
    fn locate(key: &Key<Self>, now: Ticks) -> u32;
    /// [`seek`].
    fn seek(key: &Key<Self>, now: Ticks) -> u64;
    /// [`insert`].
    fn insert(key: &Key<Self>, flow: &Flow<Self::Address>, now: Ticks, known: Room) -> u32;
    /// [`remove`].
    fn remove(key: &Key<Self>);
}
