//! Fragments that came before the first of their datagram: kept for a moment, and handed in again when it comes.
//!
//! They are in rings, one for each hash of sender and receiver: what floods one ring pushes out its own. A new one takes
//! the place of the oldest, so there is nothing to clear away.

use core::{arch::asm, ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use forwarder_common::{
    abi::{DatagramKey, Ticks, elapsed, ticks_from_millis},
    address::Address,
    parse::{Family, fragment::Fragment},
};

use crate::{
    access::tc::TcPacket,
    clock::now,
    maps::{HELD_MARKS, HELD_RINGS, Maps},
};

/// How many rings each family has; a power of two.
pub(crate) const RINGS: u32 = 16;
/// How many fragments a ring takes: a datagram of 64 kB has 45 on Ethernet. A power of two.
pub(crate) const SLOTS: u32 = 64;
/// How many hashes of datagrams are told apart; a power of two.
pub(crate) const MARKS: u32 = 1024;
/// The longest IP packet that is kept, in bytes; whole words.
const LONGEST: usize = 1504;
/// What is older is not worth handing in: networks reorder within milliseconds.
const LIFETIME: Ticks = ticks_from_millis(4000);

/// A place in a ring.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Place {
    ring: u32,
    slot: u32,
}

/// A fragment that waits.
#[repr(C)]
pub(crate) struct Held<A> {
    datagram: DatagramKey<A>,
    since: Ticks,
    /// Of the IP packet, in bytes.
    length: u32,
    bytes: [u8; LONGEST],
}

#[inline(always)]
fn ring<A: Address>(datagram: &DatagramKey<A>) -> u32 {
    (datagram.src.mix() ^ datagram.dst.mix().rotate_left(8)) & (RINGS - 1)
}

/// When a fragment of a datagram with this hash was last kept: spares all others the search.
#[inline(always)]
fn mark<A: Address>(datagram: &DatagramKey<A>) -> Option<*mut Ticks> {
    let hash = datagram.src.mix() ^ datagram.dst.mix().rotate_left(8) ^ datagram.identification.mix().rotate_left(16);
    HELD_MARKS.get_ptr_mut(hash & (MARKS - 1))
}

/// How many fragments a ring has taken so far.
#[inline(always)]
fn taken<M: Maps>(ring: u32) -> Option<*mut u64> {
    HELD_RINGS.get_ptr_mut(if M::ADDRESS_FAMILY == 2 { ring } else { ring + RINGS })
}

/// A length that the verifier sees to be from 1 to `MOST`; another one where it was not.
#[inline(always)]
pub(crate) fn bounded<const MOST: u32>(length: u32) -> u32 {
    let mut length = u64::from(black_box(length).wrapping_sub(1).min(MOST - 1));
    // From "not 0" older verifiers learn nothing, but they can add.
    // SAFETY: an addition in a register.
    unsafe { asm!("{length} += 1", length = inlateout(reg) length, options(pure, nomem, nostack)) };
    length as u32
}

/// Keeps the packet of `context`, an IP packet of `length` bytes at `network`. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn hold<M: Maps>(
    context: *mut c_void,
    now: Ticks,
    datagram: &DatagramKey<M::Address>,
    network: u32,
    length: u32,
) -> bool {
    if length == 0 || length > LONGEST as u32 {
        return false;
    }
    let ring = ring(datagram);
    let (Some(held), Some(mark), Some(taken)) = (M::holding().get_ptr_mut(0), mark(datagram), taken::<M>(ring)) else {
        return false;
    };
    // SAFETY: pointers to array values, valid while the program runs; `held` is this CPU's own, and TC programs of a CPU
    // run one after the other. The helper writes as many bytes as it is told, and they fit.
    let loaded = unsafe {
        (*held).datagram = *datagram;
        (*held).since = now;
        (*held).length = length;
        bpf_skb_load_bytes(context, network, (&raw mut (*held).bytes).cast(), bounded::<{ LONGEST as u32 }>(length))
    };
    if loaded != 0 {
        return false;
    }
    let mut slot = 1u64;
    // SAFETY: the same pointers: a word that several CPUs write, of which any will do, and an atomic addition. The mark
    // stands before the fragment can be found: inserting it locks, which is a barrier.
    unsafe {
        mark.write(now);
        asm!(
            "{value} = atomic_fetch_add((u64 *)({address} + 0), {value})",
            value = inout(reg) slot,
            address = in(reg) taken,
        );
    }
    let place = Place { ring, slot: slot as u32 & (SLOTS - 1) };
    // SAFETY: as above; the kernel copies the value.
    M::held().insert(place, unsafe { &*held }, 0).is_ok()
}

/// A search for what is kept of a datagram.
#[repr(C)]
struct Search<A> {
    datagram: DatagramKey<A>,
    context: *mut __sk_buff,
    now: Ticks,
    place: Place,
    /// Whether there is one; as they are handed in, whether one could not be.
    found: u32,
}

/// Whether fragments of this datagram are kept. Not inlined: a stack frame of its own.
#[inline(never)]
pub(crate) fn holds<M: Maps>(datagram: &DatagramKey<M::Address>, now: Ticks) -> bool {
    let Some(mark) = mark(datagram) else { return false };
    // SAFETY: a pointer to an array value, valid while the program runs.
    let marked = unsafe { mark.read_volatile() };
    if marked == 0 || elapsed(now, marked) > LIFETIME {
        return false;
    }
    let place = Place { ring: ring(datagram), slot: 0 };
    let mut search = Search { datagram: *datagram, context: core::ptr::null_mut(), now, place, found: 0 };
    // SAFETY: the callback has the type that the helper calls, and `search` outlives the call.
    unsafe { bpf_loop(SLOTS, look::<M> as *mut c_void, (&raw mut search).cast(), 0) };
    search.found != 0
}

/// The fragment in the next place, if it is one that is searched for.
#[inline(always)]
fn next<M: Maps>(step: u32, search: &mut Search<M::Address>) -> Option<(*mut Held<M::Address>, Place)> {
    let place = Place { ring: search.place.ring, slot: search.place.slot.wrapping_add(step) & (SLOTS - 1) };
    let held = M::held().get_ptr_mut(place)?;
    // SAFETY: a pointer to a map value, valid while the program runs. Another fragment may take its place meanwhile.
    let ours = unsafe { (*held).datagram == search.datagram && elapsed(search.now, (*held).since) <= LIFETIME };
    ours.then_some((held, place))
}

unsafe extern "C" fn look<M: Maps>(step: u32, search: *mut Search<M::Address>) -> i64 {
    // SAFETY: `holds` passes its own record.
    let search = unsafe { &mut *search };
    if next::<M>(step, search).is_none() {
        return 0;
    }
    search.found = 1;
    1
}

/// Hands the packet in again, if it is a first fragment, and then what is kept of its datagram: each arrives on the same
/// interface as if for the first time. What is left of the packet is no use any more. Says whether none was lost.
#[inline(always)]
pub(crate) fn hand_in<F: Family, M: Maps<Address = F::Address>, const NETWORK: usize>(context: *mut __sk_buff) -> bool {
    let mut fragment = Fragment::<F::Address>::default();
    if !read::<F, NETWORK>(context, &mut fragment) {
        return false;
    }
    // SAFETY: the program's own argument, and helpers on it.
    let lost =
        unsafe { fragment.offset == 0 && bpf_clone_redirect(context, (*context).ifindex, BPF_F_INGRESS.into()) != 0 };
    let ring = ring(&fragment.datagram);
    // SAFETY: a pointer to an array value, valid while the program runs.
    let oldest = taken::<M>(ring).map_or(0, |taken| unsafe { taken.read_volatile() } as u32);
    let place = Place { ring, slot: oldest };
    let mut search = Search { datagram: fragment.datagram, context, now: now(), place, found: lost.into() };
    // SAFETY: the callback has the type that the helper calls, and `search` outlives the call.
    unsafe { bpf_loop(SLOTS, give_back::<M, NETWORK> as *mut c_void, (&raw mut search).cast(), 0) };
    search.found == 0
}

/// Not inlined: a stack frame of its own.
#[inline(never)]
fn read<F: Family, const NETWORK: usize>(context: *mut __sk_buff, fragment: &mut Fragment<F::Address>) -> bool {
    match F::fragment(&TcPacket::of(context), NETWORK) {
        Ok(read) => {
            *fragment = read;
            true
        }
        Err(_) => false,
    }
}

unsafe extern "C" fn give_back<M: Maps, const NETWORK: usize>(step: u32, search: *mut Search<M::Address>) -> i64 {
    // SAFETY: `hand_in` passes its own record.
    let search = unsafe { &mut *search };
    let Some((held, place)) = next::<M>(step, search) else { return 0 };
    let context = search.context;
    // SAFETY: a pointer to a map value, valid while the program runs, of which the helper reads as many bytes as there
    // are; the program's own context. The packet's link header stays: it came by the same interface.
    let written = unsafe {
        let length = bounded::<{ LONGEST as u32 }>((*held).length);
        bpf_skb_change_tail(context, NETWORK as u32 + length, 0) == 0
            && bpf_skb_store_bytes(
                context.cast(),
                NETWORK as u32,
                (&raw const (*held).bytes).cast(),
                length,
                BPF_F_RECOMPUTE_CSUM.into(),
            ) == 0
    };
    // Of two CPUs that try, the kernel lets one succeed.
    if M::held().remove(place).is_ok()
        && !(written
            // SAFETY: as above.
            && unsafe { bpf_clone_redirect(context, (*context).ifindex, BPF_F_INGRESS.into()) } == 0)
    {
        search.found = 1;
    }
    0
}
