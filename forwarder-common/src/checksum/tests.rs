#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that panics has failed")]

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// Sums big-endian words one by one and folds at the very end: nothing shared with the code under test.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn field(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes(naive(bytes).to_be_bytes())
}

#[test]
fn the_example_of_rfc_1624_section_4() {
    // HC = DD2F, m = 5555, m' = 3285: equation 3 gives 0000, equation 2 of RFC 1141 gave FFFF.
    let delta = Delta::word(u16::from_be(0x5555u16.to_be()), 0x3285);
    assert_eq!(delta.apply(0xdd2f), 0x0000);
}

#[test]
fn udp_zero_stays_zero_and_a_computed_zero_is_sent_as_ones() {
    let delta = Delta::word(0x5555, 0x3285);
    assert_eq!(delta.apply_udp(0), 0);
    assert_eq!(delta.apply_udp(0xdd2f), 0xffff);
    let [part, rest] = [Delta::word(0x5555, 0x3200), Delta::word(0, 0x85)];
    assert_eq!(part.apply_udp_with(rest, 0), 0);
    assert_eq!(part.apply_udp_with(rest, 0xdd2f), 0xffff);
}

#[test]
fn one_changed_word_equals_summing_again_for_every_value_of_it() {
    let mut data = [0x12, 0x34, 0, 0, 0xab, 0xcd];
    let before = field(&data);
    for new in 0..=u16::MAX {
        data[2..4].copy_from_slice(&new.to_ne_bytes());
        assert_eq!(Delta::word(0, new).apply(before), field(&data));
    }
}

/// What all else is made of, for everything that it can be given: the sum of up to three words. So this holds for each of
/// the 2^32 pairs of an old and a new word, and for each checksum field and each one or two changes of it.
#[test]
fn every_sum_of_three_words_is_folded_right() {
    for sum in 0..=3 * 0xffff_u32 {
        let folded = u32::from(fold(sum));
        assert_eq!(folded % 0xffff, sum % 0xffff, "{sum:#x}");
        // RFC 1071: only a sum of zeros is 0; all others that are zero are all ones.
        assert_eq!(folded == 0, sum == 0, "{sum:#x}");
        if sum <= 2 * 0xffff {
            assert_eq!(u32::from(fold_pair(sum)), folded, "{sum:#x}");
        }
    }
    // Whatever is folded first: two steps are enough.
    for high in 0..=0xffff_u32 {
        for low in [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            let sum = high << 16 | low;
            assert_eq!(u32::from(fold(sum)) % 0xffff, sum % 0xffff, "{sum:#x}");
            if sum < u32::MAX {
                assert_eq!(is_intact(sum), fold(sum) == 0xffff, "{sum:#x}");
            }
        }
    }
}

/// Every change by every 257th other, and the other way round.
fn pairs() -> impl Iterator<Item = (u16, u16)> {
    let some = || (0..=0xffff_u16).step_by(257);
    (0..=0xffff).flat_map(move |one| some().flat_map(move |other| [(one, other), (other, one)]))
}

#[test]
fn a_change_and_its_undoing_leave_no_trace() {
    for (change, field) in pairs() {
        let there = Delta(change).apply(field);
        let back = Delta(change).undone().apply(there);
        // A field of all ones stands for a sum of 0, which no packet has (RFC 1624 section 3).
        assert_eq!(back % 0xffff, field % 0xffff, "{change:#x} {field:#x}");
        assert!(back == field || field == 0xffff, "{change:#x} {field:#x}");
    }
}

#[test]
fn one_word_makes_up_for_every_change() {
    for (change, word) in pairs().filter(|(_, word)| *word != 0xffff) {
        let (change, made_up) = (Delta(change), Delta(change).compensated(word));
        assert_ne!(made_up, 0xffff);
        let sum = u32::from(made_up) + u32::from(change.0);
        assert_eq!(sum % 0xffff, u32::from(word) % 0xffff, "{change:?} {word:#x}");
        assert_eq!(change.undone().compensated(made_up), word, "{change:?} {word:#x}");
    }
}

#[test]
fn half_of_every_sum_twice_is_the_sum() {
    for sum in 0..=0xffff {
        let half = Delta(sum).halved();
        assert_eq!(half.and(half), Delta(sum));
    }
}

/// Words whose sum carries from one half into the other, and out of 32 bits.
#[test]
fn words_of_32_bits_sum_up_like_their_halves() {
    const EDGES: [u32; 8] = [0, 1, 0xffff, 0x1_0000, 0x1234_fedc, 0xffff_0000, 0xffff_fffe, 0xffff_ffff];
    for first in EDGES {
        for second in EDGES {
            for third in EDGES {
                let words = [first, second, third, first ^ third, !second];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let sum = Delta(fold(sum_of_words(words)));
                // Both zeros are the same sum.
                assert_eq!(sum.checksum() % 0xffff, field(&bytes) % 0xffff, "{words:x?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn changes_equal_summing_again(
        mut data in proptest::collection::vec(any::<u8>(), 40..200usize),
        old4: u32, new4: u32, old6: [u32; 4], new6: [u32; 4], old_port: u16, new_port: u16,
    ) {
        // A packet is never all zeros: its version field is not.
        data[0] |= 0x40;
        let put = |data: &mut Vec<u8>, a: u32, b: [u32; 4], c: u16| {
            data[4..8].copy_from_slice(&a.to_ne_bytes());
            for (i, word) in b.iter().enumerate() {
                data[8 + 4 * i..12 + 4 * i].copy_from_slice(&word.to_ne_bytes());
            }
            data[24..26].copy_from_slice(&c.to_ne_bytes());
        };
        put(&mut data, old4, old6, old_port);
        let before = field(&data);
        put(&mut data, new4, new6, new_port);
        let delta = Delta::address(old4, new4).and(Delta::address(old6, new6)).and(Delta::word(old_port, new_port));
        prop_assert_eq!(delta.apply(before), field(&data));
        prop_assert_eq!(delta.undone().apply(delta.apply(before)), before);
    }
}
