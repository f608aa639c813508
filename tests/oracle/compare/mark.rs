//! Which input a frame came of.

use std::collections::HashMap;

use crate::generate::Input;
use crate::packet::{Body, ETHERNET, ICMP, ICMPV6, TCP, UDP};
use crate::view::{View, update};

/// What the machine in the middle says itself has an identification of its own choice.
pub(super) fn forget_own_identification(frame: &mut [u8], mark: u16) {
    const ID: usize = ETHERNET + 4;
    if frame[12] == 0x08 {
        update(frame, ETHERNET + 10, &mark.to_be_bytes(), &[0, 0]);
        frame[ID..ID + 2].copy_from_slice(&[0, 0]);
    }
}

/// A datagram. What the machine in the middle says itself is none, but its identification may be that of an end mark.
pub(super) fn is_end_mark(frame: &[u8], mark: u16) -> bool {
    View::of(frame).is_some_and(|view| view.protocol == UDP && view.mark == mark)
}

/// Not the machine's own talk: only unicast IP. And no redirects, which tell a client of a nearer way.
pub(super) fn is_of_interest(frame: &[u8]) -> bool {
    const REDIRECT: u8 = 137;
    let is_redirect = |view: &View| {
        view.protocol == ICMPV6 && view.fragment.is_none() && frame.get(view.transport) == Some(&REDIRECT)
    };
    View::of(frame).is_some_and(|view| !is_redirect(&view)) && frame[0] & 1 == 0
}

/// The mark of the packet that this came of: its own, or that of the packet inside an error of the machine in the middle,
/// or what an echo reply or RST repeats.
pub(super) fn mark_of(frame: &[u8], inputs: &HashMap<u16, &Input>) -> u16 {
    let Some(view) = View::of(frame) else { return 0 };
    let own = view.mark;
    if let Some(inner) = view.inner(frame).map(|inner| inner.mark).filter(|mark| inputs.contains_key(mark)) {
        return inner;
    }
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let is_first = view.fragment.is_none_or(|(offset, _)| offset == 0);
    if is_first && view.protocol == ICMP && view.transport + 8 <= frame.len() && frame[view.transport] == 0 {
        // The machine's answers have identifications of its own; in all others the sequence is the mark.
        let sequence = word(view.transport + 6);
        if inputs.contains_key(&sequence) {
            return sequence;
        }
    }
    if inputs.contains_key(&own) {
        return own;
    }
    if matches!(view.protocol, ICMP | ICMPV6) && view.transport + 8 <= frame.len() {
        let sequence = word(view.transport + 6);
        return if inputs.contains_key(&sequence) { sequence } else { own };
    }
    if view.protocol == TCP && view.transport + 12 <= frame.len() {
        // A RST goes on where the acknowledgment was.
        let sequence = u32::from(word(view.transport + 4)) << 16 | u32::from(word(view.transport + 6));
        let acknowledges = |input: &&Input| matches!(input.packets[0].body, Body::Tcp { ack, .. } if ack == sequence);
        if sequence != 0
            && let Some(input) = inputs.values().copied().find(|input| acknowledges(input))
        {
            return input.mark;
        }
        for mark in [word(view.transport + 4), word(view.transport + 8)] {
            if inputs.contains_key(&mark) {
                return mark;
            }
        }
    }
    own
}
