//! Tables that each CPU has for itself: the values of an array, one for each CPU, are whole tables, whose entries stand on cache
//! lines of their own.
//!
//! The kernel's per-CPU arrays have a pointer for each entry, which is a line of memory more to wait for before the value. And
//! an array asked for an entry has the index written to the stack and read back; asked for a CPU's part, that is long done when
//! the entry's place in it is known.

use aya_ebpf::{btf_maps::Array, helpers::bpf_get_smp_processor_id};

use crate::maps::ON_PAGES;

/// A value from the beginning of a cache line.
#[repr(C, align(64))]
pub(crate) struct OnLines<T>(T);

/// Such tables, of `EACH` entries, a power of two: the loader makes one for each CPU.
pub(crate) type PerCpuTable<T, const EACH: usize> = Array<[OnLines<T>; EACH], 1, ON_PAGES>;

/// This CPU's table, for [`entry`]. `None` on a CPU that was not there when the tables were made.
#[inline(always)]
pub(crate) fn part<T, const EACH: usize>(tables: &PerCpuTable<T, EACH>) -> Option<*mut [OnLines<T>; EACH]> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    tables.get_ptr_mut(cpu)
}

/// The entry at an index, modulo `EACH`, of a table from [`part`]. Apart from it, for what the index is made of would be in the
/// way of the calls there.
#[inline(always)]
pub(crate) fn entry<T, const EACH: usize>(part: *mut [OnLines<T>; EACH], index: u32) -> *mut T {
    const { assert!(EACH.is_power_of_two()) };
    // SAFETY: within the table, which has so many.
    unsafe { part.cast::<OnLines<T>>().add(index as usize & (EACH - 1)) }.cast()
}
