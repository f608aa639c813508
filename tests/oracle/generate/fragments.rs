//! Datagrams in fragments: in any order, mixed with other packets, twice, overlapping, tiny, and never all of them.

use super::{Generator, Input};
use crate::flow::Content;
use crate::flow::End;
use crate::packet::{ACK, PSH, Piece};

/// Fragments are at least so long unless they are tiny, and that is more than any header of those that are cut.
const LEAST: usize = 64;
const MOST: usize = 1200;
/// What still fits an IP packet.
const LARGEST: usize = 65_000;

impl Generator {
    pub(super) fn fragments(&mut self, index: usize) -> Input {
        if !self.is_settled(index) {
            return self.goes_on(index);
        }
        let by = self.pick(&End::BOTH);
        let length = match self.rng.u8(..40) {
            0 => LARGEST - self.rng.usize(..1000),
            _ => self.pick(&[200, 1500, 4000]) + self.rng.usize(..1000),
        };
        let unsummed = self.one_in(5);
        let content = Content { flags: ACK | PSH, unsummed, payload: self.bytes(length), ..Content::default() };
        let mut input = self.of_flow("fragments", index, by, &content);
        self.cut(&mut input);
        input
    }

    /// Cuts what is sent.
    pub(super) fn cut(&mut self, input: &mut Input) {
        let length = input.packets[0].transport_length();
        if length == 0 {
            return;
        }
        let (what, pieces) = match self.rng.u8(..10) {
            0 if length > LEAST => ("tiny fragments", self.tiny(length)),
            1 if self.v6() && length <= MOST => ("one fragment", vec![Piece { start: 0, end: length, more: false }]),
            _ => ("fragments", self.pieces(length)),
        };
        input.what = what;
        input.packets.iter_mut().for_each(|packet| packet.pieces.clone_from(&pieces));
        if what == "fragments" {
            self.disturb(input, length);
        }
        for packet in &mut input.packets {
            packet.df = false;
            packet.options.clear();
            packet.extensions.clear();
        }
        if self.one_in(2) {
            let mut delay = 0;
            for _ in 0..input.packets[0].pieces.len() {
                input.delays.push(delay);
                delay += self.pick(&[0, 0, 1, 2]);
            }
        }
    }

    /// In order.
    fn pieces(&mut self, length: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < length {
            let end = start + if length > 10_000 { MOST } else { self.rng.usize(LEAST / 8..=MOST / 8) * 8 };
            pieces.push(Piece { start, end: end.min(length), more: end < length });
            start = end;
        }
        pieces
    }

    /// The first is as short as can be, and some after it.
    fn tiny(&mut self, length: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for _ in 0..self.rng.usize(1..5) {
            let end = start + self.pick(&[8, 8, 16]);
            pieces.push(Piece { start, end, more: true });
            start = end;
        }
        let rest = self.pieces(length - start);
        pieces.extend(rest.iter().map(|piece| Piece { start: piece.start + start, end: piece.end + start, ..*piece }));
        pieces
    }

    /// Another order, one twice, one that overlaps another, one missing.
    fn disturb(&mut self, input: &mut Input, length: usize) {
        let mut pieces = input.packets[0].pieces.clone();
        let which = self.rng.usize(..pieces.len());
        // Those before their first wait in a place for 64.
        let is_large = length > 10_000;
        match self.rng.u8(..9) {
            0 if pieces.len() > 1 => {
                let piece = pieces[which];
                let at = if is_large { which } else { self.rng.usize(..=pieces.len()) };
                pieces.insert(at, piece);
                input.what = "fragments, one twice";
            }
            1 if pieces[which].start > LEAST => {
                pieces[which].start -= self.pick(&[8, 16, LEAST]);
                input.what = "fragments that overlap";
            }
            2 if pieces.len() > 1 => {
                pieces.remove(if is_large { which.max(1) } else { which });
                input.what = "fragments, one missing";
            }
            3 | 4 if !is_large => pieces.reverse(),
            5 | 6 if !is_large => self.rng.shuffle(&mut pieces),
            7 => {
                let next = (which + 1).min(pieces.len() - 1);
                pieces.swap(which, next);
            }
            _ => {}
        }
        input.packets.iter_mut().for_each(|packet| packet.pieces.clone_from(&pieces));
    }
}
