//! A packet at XDP: linear, and every checksum in it covers everything.

use core::ffi::c_void;

use aya_ebpf::{bindings::xdp_md, btf_maps::ProgramArray, programs::XdpContext};
use forwarder_common::packet::Packet;

use super::Bounds;

/// The packet of an XDP context, whose first `HEAD` bytes exist.
pub(crate) struct XdpPacket<const HEAD: usize> {
    context: *mut xdp_md,
    /// Where they are.
    head: usize,
}

impl XdpPacket<0> {
    /// The packet that a program was called for: each access looks for its bytes.
    #[inline(always)]
    pub(crate) const fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx, head: 0 }
    }
}

impl<const HEAD: usize> XdpPacket<HEAD> {
    /// The packet that a program was called for, if it has that many bytes: they are looked for here, once.
    #[inline(always)]
    pub(crate) fn with_head(context: &XdpContext) -> Option<Self> {
        let head = super::at::<1, HEAD, _>(&XdpPacket::new(context), 0)?;
        Some(Self { context: context.ctx, head: head as usize })
    }

    /// Hands the packet over to another program, whose answer counts then; returns where there is none.
    #[inline(always)]
    pub(crate) fn hand_over<const PROGRAMS: usize>(&self, programs: &ProgramArray<PROGRAMS>, index: u32) {
        // SAFETY: the program's own argument. Nothing that is in scope anywhere has anything to do when it is dropped.
        unsafe { programs.tail_call(&XdpContext::new(self.context), index) };
    }

    /// The program's own argument, for helpers.
    #[inline(always)]
    pub(crate) const fn context(&self) -> *mut c_void {
        self.context.cast()
    }
}

impl<const HEAD: usize> Bounds for XdpPacket<HEAD> {
    const HEAD: usize = HEAD;

    #[inline(always)]
    fn head(&self) -> usize {
        self.head
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: `context` is the program's own argument, valid while it runs. Volatile, so that the compiler
        // neither merges nor drops a load whose provenance the verifier needs to see.
        unsafe {
            (
                (&raw const (*self.context).data).read_volatile() as usize,
                (&raw const (*self.context).data_end).read_volatile() as usize,
            )
        }
    }
}

impl<const HEAD: usize> Packet for XdpPacket<HEAD> {
    direct_access!();

    #[inline(always)]
    fn has(&self, bytes: usize) -> bool {
        bytes <= HEAD || bytes <= self.length()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }
}
