//! A packet at XDP: linear, and every checksum in it covers everything.

use core::ffi::c_void;

use aya_ebpf::{bindings::xdp_md, btf_maps::ProgramArray, programs::XdpContext};
use forwarder_common::packet::Packet;

use super::{Bounds, change, change_words, read, set_words, words, write};

/// The packet of an XDP context.
pub(crate) struct XdpPacket {
    context: *mut xdp_md,
}

impl XdpPacket {
    /// The packet that a program was called for.
    #[inline(always)]
    pub(crate) const fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx }
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

impl Bounds for XdpPacket {
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

impl Packet for XdpPacket {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read(self, offset)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        words(self, offset)
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        write(self, offset, bytes)
    }

    #[inline(always)]
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        set_words(self, offset, words)
    }

    #[inline(always)]
    fn change<const N: usize>(&mut self, offset: usize, with: impl FnOnce([u8; N]) -> [u8; N]) -> Option<()> {
        change(self, offset, with)
    }

    #[inline(always)]
    fn change_words<const N: usize>(&mut self, offset: usize, with: impl FnOnce([u32; N]) -> [u32; N]) -> Option<()> {
        change_words(self, offset, with)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        let (start, end) = self.bounds();
        end - start
    }
}
