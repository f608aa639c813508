//! The protected flows' table and the timer that clears it of what has expired: no process is needed for that.
//!
//! A hash map cannot be walked a bit at a time, so every protected flow also has a slot in an array of keys. The
//! free slots are in a queue; whoever takes one may enter a flow. The timer walks the array.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_timer,
    helpers::{bpf_loop, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start},
};
use forwarder_common::{
    abi::{Flow, FlowKey, Settings, elapsed, flow_flags},
    flow_state::FlowState,
    tables::NotInserted,
};

use crate::{
    clock::now,
    maps::{MapsV4, MapsV6, SETTINGS, SWEEP, Sweep},
    new_flows::{self, LockedTable},
    protected::{self, OnceVerified},
};

/// Between two sweeps, in nanoseconds.
const PERIOD: u64 = 100_000_000;
/// Slots of each family looked at in one sweep: bounds the time that a CPU is away from its packets.
const SLOTS_PER_SWEEP: u32 = 512;
/// `CLOCK_MONOTONIC`: the clock that flows are dated by.
const CLOCK_MONOTONIC: u64 = 1;

/// Enters both directions of a flow and its forward key into a free slot.
#[inline(always)]
pub(crate) fn enter<M: OnceVerified>(
    forward: (&FlowKey<M::Address>, &mut Flow<M::Address>),
    reply: (&FlowKey<M::Address>, &Flow<M::Address>),
) -> Result<(), NotInserted> {
    let Ok(Some(slot)) = M::free_slots().pop() else { return Err(NotInserted::Refused) };
    let give_back = || {
        let _ = M::free_slots().push(slot, 0);
    };
    forward.1.sweep_slot = slot;
    if let Err(why) = protected::enter::<M>(reply.0, reply.1) {
        give_back();
        return Err(why);
    }
    if let Err(why) = protected::enter::<M>(forward.0, forward.1) {
        protected::leave::<M>(reply.0);
        give_back();
        return Err(why);
    }
    if let Some(key) = M::sweep_keys().get_ptr_mut(slot) {
        // SAFETY: a pointer to an array value, valid while the program runs; only the holder of the slot writes it.
        unsafe { key.write(*forward.0) };
    }
    Ok(())
}

/// Removes both directions of a flow. Whoever removes the entry with the slot's own key frees the slot: of two CPUs
/// that try, the kernel lets one succeed.
#[inline(always)]
pub(crate) fn remove<M: OnceVerified>(one: &FlowKey<M::Address>, other: &FlowKey<M::Address>, slot: u32) {
    let first = protected::leave::<M>(one);
    let second = protected::leave::<M>(other);
    if !first && !second {
        return;
    }
    let Some(key) = M::sweep_keys().get_ptr_mut(slot) else { return };
    // SAFETY: a pointer to an array value, valid while the program runs.
    let holder = unsafe { key.read() };
    let frees = (first && holder == *one) || (second && holder == *other);
    if frees {
        // SAFETY: as above.
        unsafe { (*key).protocol = 0 };
        let _ = M::free_slots().push(slot, 0);
    }
}

/// Starts the timer. Returns 0 when it runs.
#[inline(always)]
pub(crate) fn start() -> i64 {
    let Some(sweep) = SWEEP.get_ptr_mut(0) else { return -1 };
    // SAFETY: the timer is the first field of an array value of the map that is named; the helpers lock it.
    unsafe {
        let timer: *mut bpf_timer = &raw mut (*sweep).timer;
        // Fails when the timer exists already, which is as good.
        let _ = bpf_timer_init(timer, (&raw const SWEEP).cast_mut().cast::<c_void>(), CLOCK_MONOTONIC);
        let failed = bpf_timer_set_callback(timer, on_timer as *mut c_void);
        if failed != 0 {
            return failed;
        }
        bpf_timer_start(timer, PERIOD, 0)
    }
}

unsafe extern "C" fn on_timer(_map: *mut c_void, _key: *mut u32, sweep: *mut Sweep) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return 0 };
    // SAFETY: the kernel passes the value that holds the timer.
    let sweep = unsafe { &mut *sweep };
    let [v4, v6] = &mut sweep.next;
    *v4 = sweep_some::<MapsV4>(settings, *v4);
    *v6 = sweep_some::<MapsV6>(settings, *v6);
    // SAFETY: as in `start`.
    unsafe { bpf_timer_start(&raw mut sweep.timer, PERIOD, 0) };
    0
}

/// What one run of the loop needs to know.
#[repr(C)]
struct Run {
    settings: &'static Settings,
    first: u32,
    /// Slots that exist were seen: at the end of the array the next sweep begins anew.
    wrapped: u32,
}

#[inline(always)]
fn sweep_some<M: OnceVerified + LockedTable>(settings: &'static Settings, first: u32) -> u32 {
    let mut run = Run { settings, first, wrapped: 0 };
    // SAFETY: the callback has the type that the helper calls, and `run` outlives the call.
    unsafe { bpf_loop(SLOTS_PER_SWEEP, sweep_one::<M> as *mut c_void, (&raw mut run).cast(), 0) };
    if run.wrapped != 0 { 0 } else { first.wrapping_add(SLOTS_PER_SWEEP) }
}

unsafe extern "C" fn sweep_one<M: OnceVerified + LockedTable>(step: u32, run: *mut Run) -> i64 {
    // SAFETY: `sweep_some` passes its own record.
    let run = unsafe { &mut *run };
    let slot = run.first.wrapping_add(step);
    let Some(key) = M::sweep_keys().get_ptr_mut(slot) else {
        run.wrapped = 1;
        return 1;
    };
    // SAFETY: a pointer to an array value, valid while the program runs.
    let key = unsafe { key.read() };
    if key.protocol == 0 {
        return 0;
    }
    let Some(entry) = protected::find::<M>(&key) else { return 0 };
    // SAFETY: a pointer to a map value, valid while the program runs; copied at once.
    let flow = unsafe { entry.read() };
    if flow.sweep_slot != slot || !protected::is_of(entry, &key) {
        return 0;
    }
    let peer_key = flow.peer_key(key.protocol);
    let mut lives = !expired(run.settings, key.protocol_number(), &flow);
    if !lives && let Some(peer) = protected::find::<M>(&peer_key) {
        // SAFETY: as above.
        let peer = unsafe { peer.read() };
        lives = !expired(run.settings, key.protocol_number(), &peer);
    }
    if !lives {
        remove::<M>(&key, &peer_key, slot);
    } else if !FlowState::from_number(flow.state).has_ended() {
        if flow.flags & flow_flags::OUTBOUND != 0 {
            let ours = (flow.rewrite.src, flow.rewrite.src_port);
            refresh_mapping::<M>(key.protocol_number(), flow.flags, ours, key.dst);
        }
        if flow.flags & flow_flags::INBOUND != 0 {
            refresh_mapping::<M>(key.protocol_number(), flow.flags, (key.dst, key.dst_port), flow.rewrite.src);
        }
    }
    0
}

/// A mapping lives while a flow of it lives, and so does what the mapping lets in.
#[inline(always)]
fn refresh_mapping<M: OnceVerified + LockedTable>(
    protocol: u8,
    flags: u8,
    ours: (M::Address, u16),
    remote: M::Address,
) {
    let refresh = |entry: *mut Flow<M::Address>| {
        // SAFETY: a pointer to a map value, valid while the program runs; a single word.
        unsafe { (*entry).last_seen = now() };
    };
    let key = FlowKey::mapping_from_outside(protocol, ours.0, ours.1);
    match protected::find::<M>(&key) {
        Some(mapping) => refresh(mapping),
        None => new_flows::find::<M>(&key, now()).map_or((), refresh),
    }
    if flags & flow_flags::ADDRESS_FILTERING != 0
        && let Some(permission) = new_flows::find::<M>(&FlowKey::permission(protocol, (remote, 0), ours), now())
    {
        refresh(permission);
    }
}

#[inline(always)]
fn expired<A>(settings: &Settings, protocol: u8, flow: &Flow<A>) -> bool {
    elapsed(now(), flow.last_seen) > FlowState::from_number(flow.state).timeout(protocol, &settings.timeouts)
}
