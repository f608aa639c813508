//! What the programs know about interfaces.

/// An interface that packets arrive at, or may leave by; a value of the `INTERFACES` map, whose key is its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct KnownInterface {
    /// [`interface_flags`].
    pub flags: u16,
    /// Index into the interface counters, below [`super::INTERFACE_SLOTS`]; only with [`interface_flags::SERVED`].
    pub slot: u16,
    /// Its own MAC address; all zero without link headers. Only with [`interface_flags::SERVED`].
    pub mac: [u8; 6],
}

/// Interfaces with an index below this have their slot in an array too (`SLOTS_BY_INDEX`): a load in place of a look-up in
/// a hash, for every packet at TC.
pub const SMALL_INDICES: u32 = 4096;

/// Bits of [`KnownInterface::flags`].
pub mod interface_flags {
    /// XDP may redirect out of it: its driver runs our program, so its queues are ready for XDP.
    pub const XDP_OUT: u16 = 1;
    /// It takes packets without a link header.
    pub const NO_LINK_HEADER: u16 = 1 << 1;
    /// Our programs are attached to it.
    pub const SERVED: u16 = 1 << 2;
}
