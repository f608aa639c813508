use std::{vec, vec::Vec};

use super::*;

/// What the scan says of these options after a header at offset 3.
fn scanned(options: &[u8]) -> Option<u32> {
    let mut bytes = vec![0xee; 3 + ipv4::LEN];
    bytes.extend(options);
    forwardable(&bytes.as_mut_slice(), 3, ipv4::LEN + options.len())
}

#[test]
fn every_kind_of_list() {
    let full: Vec<u8> = [&[7, 39, 4][..], &[0; 36], &[1]].concat();
    let table: [(&str, &[u8], bool); 16] = [
        ("padding", &[1, 1, 1, 0], true),
        ("an end, and anything after it", &[0, 131, 255, 9], true),
        ("router alert (RFC 2113)", &[148, 4, 0, 0], true),
        ("record route", &[7, 7, 4, 0, 0, 0, 0, 0], true),
        ("all the room there is", &full, true),
        ("an option of two bytes at the end", &[1, 1, 136, 2], true),
        ("a loose source route", &[131, 7, 4, 10, 0, 0, 1, 0], false),
        ("a strict source route", &[1, 137, 7, 4, 10, 0, 0, 1], false),
        ("a source route behind another option", &[148, 4, 0, 0, 131, 3, 4, 0], false),
        ("a source route inside another option", &[7, 4, 131, 131], true),
        ("no room for a length", &[1, 1, 1, 7], false),
        ("a length of 0", &[7, 0, 0, 0], false),
        ("a length of 1", &[7, 1, 0, 0], false),
        ("a length beyond the header", &[7, 5, 4, 0], false),
        ("a length beyond the header, late", &[1, 1, 7, 3], false),
        ("the longest length", &[7, 255, 4, 0], false),
    ];
    for (what, options, good) in table {
        assert_eq!(scanned(options).is_some(), good, "{what}");
    }
}

#[test]
fn every_word_is_summed_once() {
    let sum = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|word| u32::from(u16::from_ne_bytes(word.try_into().unwrap_or_default()))).sum()
    };
    for words in 1..=10_u8 {
        let options: Vec<u8> = (0..words * 4).map(|n| if n == 0 { 0 } else { 200 - n }).collect();
        assert_eq!(scanned(&options), Some(sum(&options)), "{words} words");
    }
}

#[test]
fn a_header_that_is_not_all_there() {
    let mut bytes = vec![1; ipv4::LEN + 4];
    assert_eq!(forwardable(&bytes.as_mut_slice(), 0, ipv4::LEN + 8), None);
}
