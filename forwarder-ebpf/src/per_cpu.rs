//! Tables that each CPU has for itself, in an array for all of them: a CPU's values stand side by side, each on cache lines
//! of its own.
//!
//! The kernel's per-CPU arrays have a pointer for each entry, which is a line of memory more to wait for before the value.

use aya_ebpf::{btf_maps::Array, helpers::bpf_get_smp_processor_id};

use crate::maps::ON_PAGES;

/// A value from the beginning of a cache line.
#[repr(C, align(64))]
pub(crate) struct OnLines<T>(T);

/// Such a table: the loader makes it so large that there is a part for each CPU.
pub(crate) type PerCpuTable<T> = Array<OnLines<T>, 1, ON_PAGES>;

/// This CPU's value at an index, of `EACH` that it has. `None` on a CPU that was not there when the table was made.
#[inline(always)]
pub(crate) fn value<T, const EACH: u32>(table: &PerCpuTable<T>, index: u32) -> Option<*mut T> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    table.get_ptr_mut(cpu.wrapping_mul(EACH).wrapping_add(index)).map(<*mut OnLines<T>>::cast)
}
