//! A packet as the core sees it: bytes at offsets, and checksums that change.

use crate::{checksum::Delta, mss};

/// The two halves of a word, in their order on the wire, each as loaded from there.
#[inline(always)]
pub const fn pair_of(word: u32) -> [u16; 2] {
    if cfg!(target_endian = "little") { [word as u16, (word >> 16) as u16] } else { [(word >> 16) as u16, word as u16] }
}

/// The word of which these are the halves, in their order on the wire.
#[inline(always)]
pub(crate) const fn word_of([first, second]: [u16; 2]) -> u32 {
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    low as u32 | (high as u32) << 16
}

/// Access to one packet's bytes. XDP, TC and a byte slice in tests implement it.
pub trait Packet {
    /// `N` bytes at `offset`, or `None` where the packet is too short (or, on a hook, that part out of reach).
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `N` words of four bytes at `offset`, each as loaded from the wire; `None` as for [`Self::read`]. Of words, the
    /// compiler takes the bytes that are asked for; from bytes, it makes no words again. (Hooks override this, to look for
    /// the packet's end once.)
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        let mut at = offset;
        for word in &mut words {
            *word = u32::from_ne_bytes(self.read(at)?);
            at += 4;
        }
        Some(words)
    }

    /// Overwrites `N` bytes at `offset`; `None` and nothing written where they do not all exist.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// Overwrites `N` words at `offset`, as [`Self::words`] loads them; `None` and nothing written where they do not all
    /// exist. (Hooks override this, too.)
    #[inline(always)]
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Option<()> {
        self.words::<N>(offset)?;
        let mut at = offset;
        for word in words {
            self.write(at, word.to_ne_bytes())?;
            at += 4;
        }
        Some(())
    }

    /// Puts in the place of `N` bytes at `offset` what `change` makes of them; `None` and nothing written where they do not
    /// all exist. (Hooks override this, to look for the packet's end once.)
    #[inline(always)]
    fn change<const N: usize>(&mut self, offset: usize, change: impl FnOnce([u8; N]) -> [u8; N]) -> Option<()> {
        let bytes = self.read(offset)?;
        self.write(offset, change(bytes))
    }

    /// Puts in the place of `N` words at `offset` what `change` makes of them, as [`Self::words`] loads them; `None` and
    /// nothing written where they do not all exist. (Hooks override this, too.)
    #[inline(always)]
    fn change_words<const N: usize>(&mut self, offset: usize, change: impl FnOnce([u32; N]) -> [u32; N]) -> Option<()> {
        let words = self.words(offset)?;
        self.set_words(offset, change(words))
    }

    /// Length in bytes from offset 0, also of the part that cannot be read directly.
    fn length(&self) -> usize;

    /// Whether it has that many bytes. (XDP overrides this, where it has looked for them already.)
    #[inline(always)]
    fn has(&self, bytes: usize) -> bool {
        bytes <= self.length()
    }

    /// The payload of each packet that this one will be cut into on its way out (GSO), in bytes; 0 when it goes as it is.
    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        0
    }

    /// The ones' complement sum of `length` bytes at `offset`, the last one padded with a zero if it stands alone; `None`
    /// where they do not all exist. They need not be within reach of [`Self::read`] (TC overrides this).
    #[inline(always)]
    fn sum(&self, offset: usize, length: usize) -> Option<Delta> {
        let mut sum = Delta::NONE;
        for at in (offset..offset + length).step_by(2) {
            let pair = if at + 1 < offset + length {
                self.read(at)?
            } else {
                let [last] = self.read(at)?;
                [last, 0]
            };
            sum = sum.and(Delta(u16::from_ne_bytes(pair)));
        }
        Some(sum)
    }

    /// Lowers the segment size that the TCP header at `transport` announces to `limit`, as [`mss::lower_to`] does; the packet
    /// ends at `last`. (TC overrides this, for the verifier's sake: there it is a function of its own.)
    #[inline(always)]
    fn lower_segment_size(&mut self, transport: usize, last: usize, limit: u16)
    where
        Self: Sized,
    {
        mss::lower_to(self, transport, last, limit);
    }

    /// Applies a change to a transport checksum; `None` and nothing written where the field does not exist.
    ///
    /// A hook on which the field may hold a partial sum (`CHECKSUM_PARTIAL` at TC: only the pseudo-header is
    /// in it, not complemented) overrides this; everywhere else the field covers everything.
    #[inline(always)]
    fn change_checksum(&mut self, change: ChecksumChange) -> Option<()> {
        self.change_complete_checksum(change)
    }

    /// The bytes of the network header have changed by this, and no checksum in it makes up for that, for IPv6 has none.
    /// (TC overrides this: there may be a sum of the whole packet beside it.)
    #[inline(always)]
    fn note_header_change(&mut self, _change: Delta) {}

    /// [`Self::change_checksum`], of a field that is known to cover everything.
    #[inline(always)]
    fn change_complete_checksum(&mut self, change: ChecksumChange) -> Option<()> {
        let ChecksumChange { offset, pseudo_header, transport, zero_is_none } = change;
        self.change(offset, |field| {
            let field = u16::from_ne_bytes(field);
            if zero_is_none {
                pseudo_header.apply_udp_with(transport, field)
            } else {
                pseudo_header.apply_with(transport, field)
            }
            .to_ne_bytes()
        })
    }
}

/// A change of a transport checksum, with its two parts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumChange {
    /// Where the checksum field is.
    pub offset: usize,
    /// What the addresses of the pseudo-header change by; none where the protocol has no pseudo-header.
    pub pseudo_header: Delta,
    /// What the transport header changes by.
    pub transport: Delta,
    /// UDP: a field of 0 means "no checksum" and stays (RFC 768).
    pub zero_is_none: bool,
}

impl Packet for &mut [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }

    fn length(&self) -> usize {
        self.len()
    }
}
