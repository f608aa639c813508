//! A packet at TC becomes an ICMP error about itself: the helpers that cut it and make room in front of it.

use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data},
};
use forwarder_common::{answer::Quotable, packet::Packet};

use crate::access::tc::TcPacket;

impl Quotable for TcPacket {
    /// The helper that changes a checksum field by something that no pseudo-header holds leaves the field alone where
    /// the checksum is `CHECKSUM_PARTIAL`: the only way there is to ask.
    #[inline(always)]
    fn is_unfinished(&mut self, probe: usize) -> Option<bool> {
        let before = self.read::<2>(probe)?;
        // SAFETY: a helper on the program's own context; it checks the offset itself.
        if unsafe { bpf_l4_csum_replace(self.context(), probe as u32, 0, 1, 0) } != 0 {
            return None;
        }
        let unchanged = self.read::<2>(probe)? == before;
        self.write(probe, before)?;
        Some(unchanged)
    }

    #[inline(always)]
    fn shorten(&mut self, length: usize) -> Option<()> {
        // SAFETY: helpers on the program's own context, which check everything themselves. The first refuses to cut the
        // field of an unfinished checksum off; also where nothing is cut, it makes an end of the packet's segments.
        let done = unsafe {
            bpf_skb_change_tail(self.context(), length as u32, 0) == 0
                && bpf_skb_pull_data(self.context(), length as u32) == 0
        };
        done.then_some(())
    }

    #[inline(always)]
    fn make_room(&mut self, length: usize) -> Option<()> {
        // SAFETY: a helper on the program's own context; it checks everything itself. What the kernel knows of the
        // transport header moves with it, so that an unfinished checksum is still finished in its place.
        let done = unsafe {
            bpf_skb_adjust_room(self.context(), length as i32, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into())
        };
        (done == 0).then_some(())
    }
}
