//! A packet at TC: perhaps not all of it linear, perhaps larger than any frame (GSO), perhaps with a checksum that
//! only the NIC will finish.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_QUERY, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_level, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_pull_data},
    programs::TcContext,
};
use forwarder_common::{
    checksum::Delta,
    mss,
    packet::{ChecksumChange, Packet},
    parse::LAST_OFFSET,
    wire::ethernet,
};

use super::{Bounds, sum};

/// Linear bytes that the core may want to read: Ethernet, IPv6, some extension headers, TCP with its options.
const HEADERS: u32 = 160;
/// The same, where the packet is an ICMP error that has other headers in it, and either may have options.
const EMBEDDED_HEADERS: u32 = 256;
/// `PACKET_HOST` of `if_packet.h`: for this station.
const PACKET_HOST: u32 = 0;
/// A traffic class that nobody uses, in `tc_index`: of the marks that a packet has, the one that firewalls and routing do not
/// look at.
const STEERED: u32 = 0x5e1d;

/// The packet of a TC context.
pub(crate) struct TcPacket {
    context: *mut __sk_buff,
}

impl TcPacket {
    /// The packet of a context whose headers are linear already.
    #[inline(always)]
    pub(crate) const fn of(context: *mut __sk_buff) -> Self {
        Self { context }
    }

    /// The packet that a program was called for, with its headers made linear.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        let packet = Self::of(context.skb.skb);
        packet.make_linear::<HEADERS>();
        packet
    }

    /// The packet of a context, with its headers and those of the packet inside it made linear.
    #[inline(always)]
    pub(crate) fn with_embedded(context: *mut __sk_buff) -> Self {
        let packet = Self::of(context);
        packet.make_linear::<EMBEDDED_HEADERS>();
        packet
    }

    /// Whether somebody has verified the checksum (`CHECKSUM_UNNECESSARY`: the NIC, or GRO): then the field covers everything, and
    /// the kernel keeps no sum of the packet's bytes beside it.
    #[inline(always)]
    fn has_verified_checksum(&self) -> bool {
        // SAFETY: a helper on the program's own context, which it only reads (Linux 5.8, kernel commit 7cdec54f9713).
        unsafe { bpf_csum_level(self.context, BPF_CSUM_LEVEL_QUERY.into()) >= 0 }
    }

    #[inline(always)]
    fn make_linear<const BYTES: u32>(&self) {
        let (start, end) = self.bounds();
        let (linear, whole) = ((end - start) as u32, self.length() as u32);
        if linear < BYTES && linear < whole {
            // SAFETY: a helper on the program's own context. Should it fail, reads fail later, and the packet passes.
            unsafe { bpf_skb_pull_data(self.context, if whole < BYTES { whole } else { BYTES }) };
        }
    }

    /// The program's own argument, for helpers.
    #[inline(always)]
    pub(crate) const fn context(&self) -> *mut __sk_buff {
        self.context
    }

    /// The index of the interface that the program runs for: where the packet arrived, or where it is to leave.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: a field of the program's own argument, valid while it runs.
        unsafe { (*self.context).ifindex }
    }

    /// The protocol as loaded from the wire, if the packet is for this station and carries no VLAN tag: at TC a tag
    /// is metadata, and the ethertype in the frame is that of the inside.
    #[inline(always)]
    pub(crate) fn untagged_protocol(&self) -> Result<u16, forwarder_common::verdict::Outcome> {
        use forwarder_common::verdict::Outcome;
        // SAFETY: `context` is the program's own argument, valid while it runs.
        let (kind, tagged, protocol) =
            unsafe { ((*self.context).pkt_type, (*self.context).vlan_present, (*self.context).protocol) };
        if kind != PACKET_HOST {
            return Err(Outcome::NotForUs);
        }
        if tagged != 0 { Err(Outcome::NotIp) } else { Ok(protocol as u16) }
    }

    /// Notes that the packet is on its way by the line of its source: our program there lets it go.
    #[inline(always)]
    pub(crate) fn mark_steered(&mut self) {
        // SAFETY: a field of the program's own argument that programs may write.
        unsafe { (*self.context).tc_index = STEERED };
    }

    /// Whether the packet was marked; it is not any more, since what comes after this machine may look at it too.
    #[inline(always)]
    pub(crate) fn take_mark(&mut self) -> bool {
        // SAFETY: as in `mark_steered`.
        let marked = unsafe { (*self.context).tc_index == STEERED };
        if marked {
            // SAFETY: as above.
            unsafe { (*self.context).tc_index = 0 };
        }
        marked
    }

    /// Tells the kernel's sum of the packet, where it keeps one (`CHECKSUM_COMPLETE`), of the link header that its neighbour code is going
    /// to write in place of this one. It takes this one into the sum, so this one must not count; the next one it does not, and
    /// a veth takes that off it all the same (seen with Linux 6.18).
    ///
    /// Not inlined: a stack frame of its own.
    #[inline(never)]
    pub(crate) fn foretell_link_header(&mut self, addresses: &[u8; 12], ethertype: u16) -> Option<()> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *addresses;
        let word = u32::from_ne_bytes;
        let next = Delta::of_words([word([a, b, c, d]), word([e, f, g, h]), word([i, j, k, l]), ethertype.into()]);
        // SAFETY: a helper on the program's own context, and a number. Without such a sum it does nothing, and says so.
        if unsafe { bpf_csum_update(self.context, next.0.into()) } >= 0 {
            self.write(0, [0; ethernet::LEN])?;
        }
        Some(())
    }

    /// Puts an Ethernet header with this type in front of a packet that came without one; `None` when there is no room.
    #[inline(always)]
    pub(crate) fn push_link_header(&mut self, ethertype: u16) -> Option<()> {
        // SAFETY: a helper on the program's own context; it checks everything itself.
        if unsafe { bpf_skb_change_head(self.context, 14, 0) } != 0 {
            return None;
        }
        self.write(12, ethertype.to_ne_bytes())
    }
}

/// [`mss::lower_to`], which the verifier looks at once, for any numbers: there are many ways through a list of options.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lower_segment_size(context: *mut __sk_buff, transport: u32, last: u32, limit: u32) -> u32 {
    let mut packet = TcPacket::of(context);
    mss::lower_to(&mut packet, transport as usize & LAST_OFFSET, last as usize, limit as u16);
    0
}

impl Bounds for TcPacket {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as at XDP: the program's own argument, volatile for the verifier's sake.
        unsafe {
            (
                (&raw const (*self.context).data).read_volatile() as usize,
                (&raw const (*self.context).data_end).read_volatile() as usize,
            )
        }
    }
}

impl Packet for TcPacket {
    direct_access!();

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: `context` is the program's own argument, valid while it runs.
        unsafe { (*self.context).len as usize }
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        // SAFETY: `context` is the program's own argument, valid while it runs.
        unsafe { (*self.context).gso_size }
    }

    /// In pieces, through this CPU's memory: the packet may be longer than what is linear.
    #[inline(always)]
    fn sum(&self, offset: usize, length: usize) -> Option<Delta> {
        sum::of_range(self.context, offset as u32, length as u32)
    }

    #[inline(always)]
    fn lower_segment_size(&mut self, transport: usize, last: usize, limit: u16) {
        lower_segment_size(self.context, transport as u32, last as u32, limit.into());
    }

    /// Where the kernel goes by the sum of all that arrived (`CHECKSUM_COMPLETE`, as from some NICs and out of VXLAN), what reads the
    /// packet next takes the header's bytes off it as they are then. Elsewhere the helper does nothing. Of a transport checksum
    /// that changes with the pseudo-header, [`Self::change_checksum`]'s helper has told it.
    #[inline(always)]
    fn note_header_change(&mut self, change: Delta) {
        // SAFETY: a helper on the program's own context, and a number.
        unsafe { bpf_csum_update(self.context, change.0.into()) };
    }

    /// With the kernel's helpers, where only they know whether the field is complete or `CHECKSUM_PARTIAL`, in which case it
    /// holds only the pseudo-header's sum and the ports are not in it; and they keep `CHECKSUM_COMPLETE`'s sum right. A
    /// call for each part of the change is a twentieth of all that a packet costs at TC; a verified one needs neither.
    #[inline(always)]
    fn change_checksum(&mut self, change: ChecksumChange) -> Option<()> {
        if self.has_verified_checksum() {
            return self.change_complete_checksum(change);
        }
        let mangled_zero = if change.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let replace = |delta: Delta, flags: u64| {
            // SAFETY: a helper on the program's own context; it checks the offset itself. A field size of 0 in the
            // flags means: `from` is 0 and `to` is the difference.
            unsafe {
                bpf_l4_csum_replace(self.context, change.offset as u32, 0, delta.0.into(), flags | mangled_zero) == 0
            }
        };
        // A zero UDP checksum is left alone by the helper before the first change, but the first change may not
        // make it zero: MARK_MANGLED_0 writes all ones instead. So the order of the two does not matter.
        if change.pseudo_header != Delta::NONE && !replace(change.pseudo_header, BPF_F_PSEUDO_HDR.into()) {
            return None;
        }
        if change.transport != Delta::NONE && !replace(change.transport, 0) {
            return None;
        }
        Some(())
    }
}
