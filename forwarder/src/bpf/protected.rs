//! The protected flows, as the programs see them: the array of slots, mapped into this process.
//!
//! Packets and other CPUs change it while it is read. What is written here is a single word of a flow, never a slot:
//! the rest of it belongs to the programs.

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

/// The protected flows of one address family.
#[derive(Debug)]
pub struct ProtectedFlows<A: Slotted> {
    slots: NonNull<FlowSlot<A>>,
    count: usize,
    /// Room for flows.
    pub limit: u32,
    family: PhantomData<A>,
}

impl<A: Slotted> ProtectedFlows<A>
where
    FlowSlot<A>: Layout,
{
    /// Opens those pinned in `pins`; `family` is `V4` or `V6`.
    pub fn open(pins: &Path, family: &str) -> Result<Self> {
        let info = |name: &str| {
            MapInfo::from_pin(pins.join(name)).with_context(|| format!("cannot open the pinned map {name}"))
        };
        let limit = info(&format!("ESTABLISHED_{family}"))?.max_entries() / 2;
        let name = format!("FLOWS_{family}");
        let slots = info(&name)?;
        let count = slots.max_entries() as usize;
        if slots.value_size() as usize != size_of::<FlowSlot<A>>() {
            bail!("the pinned map {name} is of another version");
        }
        let map = MapData::from_pin(pins.join(&name)).with_context(|| format!("cannot open the pinned map {name}"))?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, wherever the kernel likes; it lasts when the descriptor is closed.
        let memory = unsafe {
            libc::mmap(ptr::null_mut(), Self::length(count), protection, flags, map.fd().as_fd().as_raw_fd(), 0)
        };
        let slots = NonNull::new(memory.cast()).filter(|_| memory != libc::MAP_FAILED);
        let slots = slots.ok_or_else(std::io::Error::last_os_error);
        let slots = slots.with_context(|| format!("cannot read the pinned map {name}"))?;
        Ok(Self { slots, count, limit, family: PhantomData })
    }

    const fn length(count: usize) -> usize {
        count * size_of::<FlowSlot<A>>()
    }

    /// Every flow there is now, both directions of each.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey<A>, Flow<A>)> {
        (0..self.count).filter_map(|index| self.at(index))
    }

    /// The flow in a slot, and its age as the slot has it.
    fn at(&self, index: usize) -> Option<(FlowKey<A>, Flow<A>)> {
        /// A slot that has another flow each time it is looked at is left out.
        const LOOKS: u32 = 4;
        // SAFETY: below `count`, so within the mapping, which lasts as long as `self`; every bit pattern is a value
        // (`Layout`). Volatile, since packets change it meanwhile.
        let slot = unsafe { self.slots.add(index) };
        for _ in 0..LOOKS {
            // SAFETY: as above; the word is aligned, and the programs change it as a whole.
            let tag = || unsafe {
                Tag::of(self.word(index, mem::offset_of!(FlowSlot<A>, key.protocol)).load(Ordering::SeqCst))
            };
            let before = tag();
            // SAFETY: as above.
            let copy = unsafe { slot.read_volatile() };
            fence(Ordering::SeqCst);
            if tag() == before {
                return copy.occupant().map(|key| (key, copy.flow));
            }
        }
        None
    }

    /// A word of a slot.
    ///
    /// # Safety
    /// `index` is below `count`, and at `offset` in a slot there is a word.
    const unsafe fn word(&self, index: usize, offset: usize) -> &AtomicU32 {
        // SAFETY: as the caller says; the mapping lasts as long as `self`.
        unsafe { AtomicU32::from_ptr(self.slots.add(index).as_ptr().byte_add(offset).cast()) }
    }

    /// Sets when flows have last seen a packet, for those that `when` says so of.
    ///
    /// Not where a packet is faster: then what it says of the flow is asked anew. So this never dates a flow that has
    /// taken another one's slot.
    pub fn set_last_seen(&self, when: impl Fn(&FlowKey<A>, &Flow<A>) -> Option<Ticks>) {
        let offset = mem::offset_of!(FlowSlot<A>, flow) + mem::offset_of!(Flow<A>, last_seen);
        for index in 0..self.count {
            while let Some((key, flow)) = self.at(index)
                && let Some(ticks) = when(&key, &flow)
            {
                // SAFETY: below `count`, and a field's offset.
                let word = unsafe { self.word(index, offset) };
                if word.compare_exchange(flow.last_seen, ticks, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    break;
                }
            }
        }
    }
}

impl<A: Slotted> Drop for ProtectedFlows<A> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made; nothing refers into it any more.
        unsafe { libc::munmap(self.slots.as_ptr().cast(), self.count * size_of::<FlowSlot<A>>()) };
    }
}
