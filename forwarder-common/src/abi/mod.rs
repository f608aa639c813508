//! The layouts of the pinned maps: what the loader writes and the programs read.
//!
//! Everything here is `repr(C)` without padding, so that a key compares equal exactly when its fields do
//! and no byte of a map is uninitialised. Concrete types prove that with `bytemuck`; the types that exist
//! once per address family prove it by [`layout!`](self), field by field.
//!
//! A change of any layout needs a new [`VERSION`]: the loader refuses pins of another one.

mod counters;
mod endpoint;
mod flow;
mod flow_table;
mod fragment;
mod interface;
mod neighbor;
mod new_flows;
mod next_hop;
mod rule;
mod settings;

pub use counters::{INTERFACE_SLOTS, InterfaceCounters, RuleCounters, Traffic};
pub use endpoint::{AllowKey, Endpoint, MEANINGS, Meaning, RangeKey, RuleRef, Side};
pub use flow::{Direction, Flow, FlowKey, Rewrite, flow_flags};
pub use flow_table::{FlowHash, FlowSlot, Place, REACH, Slotted, Tag, WENT_ON, near, used};
pub use fragment::{Datagram, DatagramKey, Fate};
pub use interface::{KnownInterface, SMALL_INDICES, interface_flags};
pub use new_flows::{Bucket, FLOWS_PER_BUCKET, Mark, WAYS};
pub use next_hop::{NEXT_HOPS, NextHop, NextHopState, next_hop_flags};
pub use rule::{Rule, rule_flags};
pub use settings::{PortRange, Settings, Timeouts, setting_flags};

/// The version of all layouts and of their meaning; stored in [`Settings::version`].
pub const VERSION: u32 = 3;

/// Time as the maps keep it: monotonic since boot, in units of 2^20 ns (1.048576 ms), wrapping after 52 days.
///
/// A shift instead of a division on the packet path. Compare only with [`elapsed`].
pub type Ticks = u32;

/// How many nanoseconds one tick has, as a power of two.
pub const TICK_SHIFT: u32 = 20;

/// Ticks in a duration given in milliseconds, rounded up.
pub const fn ticks_from_millis(millis: u64) -> Ticks {
    let nanos = millis.saturating_mul(1_000_000);
    let ticks = nanos.div_ceil(1 << TICK_SHIFT);
    // Half the wrapping range is the longest duration `elapsed` can tell from its opposite.
    if ticks > (u32::MAX / 2) as u64 { u32::MAX / 2 } else { ticks as u32 }
}

/// The time between two readings of the clock, right across a wrap. 0 where `since` is ahead of `now`: another CPU
/// read the clock after this packet did.
#[inline(always)]
pub const fn elapsed(now: Ticks, since: Ticks) -> Ticks {
    let ticks = now.wrapping_sub(since);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

/// A type that maps hold: `repr(C)`, no padding, every bit pattern valid.
///
/// Implemented by [`layout!`](self) after it has proved that the fields' sizes add up to the type's.
pub trait Layout: Copy + 'static {}

/// Asserts that a `repr(C)` type is exactly its listed fields, of the given total size, and marks it [`Layout`].
macro_rules! layout {
    ($type:ty, $size:literal, [$($field:ty),* $(,)?]) => {
        const _: () = assert!(size_of::<$type>() == $size, "the size of a map layout changed");
        const _: () = assert!(0 $(+ size_of::<$field>())* == $size, "a map layout has padding");
        impl $crate::abi::Layout for $type {}
    };
}
use layout;

#[cfg(test)]
mod tests;
