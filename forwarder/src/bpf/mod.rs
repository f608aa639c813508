//! Everything that talks to the kernel's BPF: the object, its maps, and where its programs hang. The only place
//! that knows `aya`.

pub mod attach;
pub mod bpffs;
pub mod counters;
pub mod features;
pub mod flows;
pub mod interfaces;
pub mod layout;
pub mod load;
pub mod log;
mod mapped;
pub mod mode;
pub mod new_flows;
pub mod object;
pub mod protected;
pub mod tables;

use forwarder_common::abi::Layout;

/// A map's key or value that exists once per address family, as aya reads and writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bits<T>(pub T);

// SAFETY: `Layout` is implemented only for `repr(C)` types whose fields' sizes add up to the type's, so they have no
// padding, and whose fields are integers or such types themselves, so every bit pattern is a value.
unsafe impl<T: Layout> aya::Pod for Bits<T> {}

/// A map's value that is a concrete type, as aya reads and writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: `bytemuck::Pod` promises what `aya::Pod` asks for: no padding, and every bit pattern is a value.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
