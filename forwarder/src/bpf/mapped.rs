//! A pinned array, mapped into this process: packets and other CPUs change it while it is read.

use std::{
    marker::PhantomData,
    mem,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering, fence},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, MapInfo};
use forwarder_common::abi::{Flow, FlowKey, FlowSlot, Layout, Slotted, Tag, Ticks};
use nix::libc;

/// An array map of `V`s.
#[derive(Debug)]
pub(super) struct MappedArray<V> {
    values: NonNull<V>,
    /// How many values there are.
    pub(super) count: usize,
}

impl<V: Layout> MappedArray<V> {
    /// Maps the array that is pinned as `name` in `pins`.
    pub(super) fn open(pins: &Path, name: &str) -> Result<Self> {
        let path = pins.join(name);
        let context = || format!("cannot open the pinned map {name}");
        let info = MapInfo::from_pin(&path).with_context(context)?;
        if info.value_size() as usize != size_of::<V>() {
            bail!("the pinned map {name} is of another version");
        }
        let count = info.max_entries() as usize;
        let map = MapData::from_pin(&path).with_context(context)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, wherever the kernel likes; it lasts when the descriptor is closed.
        let memory = unsafe {
            libc::mmap(ptr::null_mut(), count * size_of::<V>(), protection, flags, map.fd().as_fd().as_raw_fd(), 0)
        };
        let values = NonNull::new(memory.cast()).filter(|_| memory != libc::MAP_FAILED);
        let values = values.ok_or_else(std::io::Error::last_os_error);
        Ok(Self { values: values.with_context(|| format!("cannot read the pinned map {name}"))?, count })
    }

    /// A value's address.
    ///
    /// # Safety
    /// `index` is below `count`.
    pub(super) const unsafe fn at(&self, index: usize) -> NonNull<V> {
        // SAFETY: as the caller says: within the mapping.
        unsafe { self.values.add(index) }
    }
}

impl<V> Drop for MappedArray<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made; nothing refers into it any more.
        unsafe { libc::munmap(self.values.as_ptr().cast(), self.count * size_of::<V>()) };
    }
}

/// A slot with a flow, within a mapping that lasts as long as `'m`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'m, A: Slotted> {
    slot: NonNull<FlowSlot<A>>,
    mapping: PhantomData<&'m ()>,
}

impl<A: Slotted> Slot<'_, A> {
    /// # Safety
    /// The slot is in a mapping that lasts as long as the value made here.
    pub(super) const unsafe fn new(slot: NonNull<FlowSlot<A>>) -> Self {
        Self { slot, mapping: PhantomData }
    }

    /// The flow in it, whole; `None` for a free slot.
    pub(super) fn read(self) -> Option<(FlowKey<A>, Flow<A>)> {
        /// A slot that has another flow each time it is looked at is left out.
        const LOOKS: u32 = 4;
        for _ in 0..LOOKS {
            let tag = || Tag::of(self.word(mem::offset_of!(FlowSlot<A>, key.protocol)).load(Ordering::SeqCst));
            let before = tag();
            // SAFETY: in the mapping; every bit pattern is a value (`Layout`). Volatile, since packets change it meanwhile.
            let copy = unsafe { self.slot.read_volatile() };
            fence(Ordering::SeqCst);
            if tag() == before {
                return copy.occupant().map(|key| (key, copy.flow));
            }
        }
        None
    }

    /// A word of it; `offset` is that of a word.
    const fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: in the mapping and aligned; the programs change it as a whole.
        unsafe { AtomicU32::from_ptr(self.slot.as_ptr().byte_add(offset).cast()) }
    }

    /// Sets when its flow has last seen a packet, if `when` says so.
    ///
    /// Not where a packet is faster: then `when` is asked anew. So this never dates a flow that has taken another one's slot.
    pub(super) fn set_last_seen(self, when: impl Fn(&FlowKey<A>, &Flow<A>) -> Option<Ticks>) {
        let offset = mem::offset_of!(FlowSlot<A>, flow) + mem::offset_of!(Flow<A>, last_seen);
        while let Some((key, flow)) = self.read()
            && let Some(ticks) = when(&key, &flow)
        {
            let word = self.word(offset);
            if word.compare_exchange(flow.last_seen, ticks, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                break;
            }
        }
    }
}
