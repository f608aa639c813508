#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{collections::BTreeMap, vec::Vec};

use super::*;

pub(in crate::abi) fn seeds(from: u64) -> [u64; 10] {
    let mut state = from;
    [0; 10].map(|_: u64| {
        // splitmix64 (G. Steele, D. Lea, C. Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

pub(in crate::abi) fn key4(n: u32) -> FlowKey<V4> {
    FlowKey {
        src: (0x0a00_0000 + (n >> 15)).to_be(),
        dst: 0xc633_6401_u32.to_be(),
        src_port: (1024 + (n & 0x7fff) as u16).to_be(),
        dst_port: 80_u16.to_be(),
        protocol: 17,
    }
}

pub(in crate::abi) fn key6(n: u32) -> FlowKey<V6> {
    let key = key4(n);
    let FlowKey { src_port, dst_port, protocol, .. } = key;
    FlowKey { src: [1, 2, 3, key.src], dst: [1, 2, 3, key.dst], src_port, dst_port, protocol }
}

/// Puts `count` keys where the programs would, and says how many found no place.
fn without_place<A: Slotted>(hash: &FlowHash, count: u32, key: fn(u32) -> FlowKey<A>) -> u32 {
    let mut taken = BTreeMap::new();
    let mut failed = 0;
    for n in 0..count {
        let home = hash.home(&key(n));
        assert!(home <= hash.mask);
        let homes = [home, hash.second_home(home)];
        let slots = homes.iter().flat_map(|home| (0..REACH).map(move |distance| home + distance));
        match slots.map(|slot| slot & hash.mask).find(|slot| !taken.contains_key(slot)) {
            Some(slot) => drop(taken.insert(slot, n)),
            None => failed += 1,
        }
    }
    failed
}

#[test]
fn a_full_table_has_a_place_for_all() {
    const ENTRIES: u32 = 1 << 17;
    for from in 0..2 {
        let hash = FlowHash { seeds: seeds(from), mask: FlowHash::slots(ENTRIES) - 1, used: 0, buckets: 0, unused: 0 };
        assert_eq!(hash.mask + 1, 2 * ENTRIES);
        let (v4, v6) = (without_place(&hash, ENTRIES, key4), without_place(&hash, ENTRIES, key6));
        assert!(v4 <= 1 && v6 <= 1, "{v4} and {v6} without a place");
    }
}

/// Whatever the seeds: flows of one client, whose ports come one after the other, do not crowd together. By chance one
/// flow in some hundred thousand finds no place in a table that is full to its limit.
#[test]
fn no_seeds_are_bad() {
    const ENTRIES: u32 = 2048;
    const SEEDS: u64 = 3000;
    let without: Vec<u32> = (0..SEEDS)
        .map(|from| {
            let hash =
                FlowHash { seeds: seeds(from), mask: FlowHash::slots(ENTRIES) - 1, used: 0, buckets: 0, unused: 0 };
            without_place(&hash, ENTRIES, key4) + without_place(&hash, ENTRIES, key6)
        })
        .collect();
    assert!(without.iter().all(|count| *count <= 2), "of {ENTRIES}, without a place: {without:?}");
    assert!(without.iter().sum::<u32>() <= 40, "of {}: {without:?}", 2 * u64::from(ENTRIES) * SEEDS);
}

#[test]
fn every_part_of_the_key_counts() {
    let hash = FlowHash { seeds: seeds(7), mask: u32::MAX, used: 0, buckets: 0, unused: 0 };
    let key = key6(1);
    let [s, d] = [0, 1].map(|which| {
        [0, 1, 2, 3].map(|word| {
            let mut other = key;
            let address = if which == 0 { &mut other.src } else { &mut other.dst };
            address[word] ^= 1;
            other
        })
    });
    let rest = [
        FlowKey { src_port: key.src_port ^ 1, ..key },
        FlowKey { dst_port: key.dst_port ^ 1, ..key },
        FlowKey { protocol: key.protocol | FlowKey::<V6>::MAPPING, ..key },
        FlowKey { src: key.dst, dst: key.src, ..key },
    ];
    for other in s.into_iter().chain(d).chain(rest) {
        assert_ne!(hash.home(&other), hash.home(&key), "{other:?}");
    }
    let key = key4(1);
    for other in [FlowKey { src: key.src ^ 1, ..key }, FlowKey { dst: key.dst ^ 1, ..key }] {
        assert_ne!(hash.home(&other), hash.home(&key), "{other:?}");
    }
}

#[test]
fn sizes() {
    for (entries, slots) in
        [(0, 64), (2, 64), (32, 64), (33, 128), (64, 128), (65_536, 131_072), (u32::MAX, 1 << 30), (100_000, 262_144)]
    {
        assert_eq!(FlowHash::slots(entries), slots, "{entries} entries");
    }
}

#[test]
fn who_is_in_a_slot() {
    let flow = Flow { flags: crate::abi::flow_flags::REPLY, ..Flow::default() };
    let slot = |protocol| FlowSlot { key: FlowKey { protocol, ..key4(1) }, flow, padding: [] };
    for other_bits in [0, near(0) | near(14) | WENT_ON, 0x800, 0xf800] {
        assert_eq!(slot(0x11 | other_bits).occupant(), Some(key4(1)), "{other_bits:#x}");
        for nobody in [0, Tag::BUSY] {
            assert_eq!(slot(nobody | other_bits).occupant(), None, "{nobody:#x} {other_bits:#x}");
        }
    }
    assert!((0..REACH).all(|distance| Tag::of(near(distance)) == Tag::default()));
    assert_eq!((0..REACH).fold(0, |bits, distance| bits | near(distance)), 0x7fff_0000);
    assert_eq!(near(REACH), WENT_ON);
}

#[test]
fn a_slot_changes_hands() {
    let protocols = [1, 6, 17, 255, 0x11 | FlowKey::<V4>::MAPPING, 6 | FlowKey::<V4>::PASSING];
    let neighbours = near(2) | near(9) | WENT_ON;
    let (mut word, mut seen) = (neighbours, Vec::new());
    for protocol in protocols.into_iter().cycle().take(32) {
        assert!(Tag::of(word).is_free());
        word = Tag::claimed(word);
        let claimed = Tag::of(word);
        assert!(claimed.is_of(Tag::BUSY) && !claimed.is_free());
        word &= Tag::settled(protocol);
        let tag = Tag::of(word);
        assert_eq!((tag, tag.is_of(protocol), tag.is_free()), (claimed.with(protocol), true, false));
        assert!(!seen.contains(&tag), "{tag:?} again");
        seen.push(tag);
        word |= Tag::BUSY;
        word &= Tag::settled(0);
        assert_eq!(word & !0xffff, neighbours);
    }
}

#[test]
fn a_place_is_a_word() {
    for place in [
        Place { index: 0, distance: 0, tag: Tag::of(6) },
        Place { index: u32::MAX, distance: 14, tag: Tag::of(0xf806) },
        Place { index: 0x0102_0304, distance: 7, tag: Tag::of(0x0811) },
    ] {
        assert_eq!(Place::unpack(place.pack()), place);
    }
}

/// Every tag at every distance.
#[test]
fn every_place_is_a_word() {
    for tag in 0..=0xffff {
        for distance in 0..REACH {
            for index in [0, 1, 0x5555_5555, u32::MAX] {
                let place = Place { index, distance, tag: Tag::of(tag) };
                assert_eq!(Place::unpack(place.pack()), place);
            }
        }
    }
}

/// Every word that a slot can have, save what it says of neighbours, some of which are tried.
#[test]
fn every_free_slot_can_be_claimed_and_settled() {
    for low in (0..=0xffff).filter(|low| Tag::of(*low).is_free()) {
        for neighbours in [0, near(0), near(14) | WENT_ON, !0xffff] {
            let word = low | neighbours;
            let claimed = Tag::claimed(word);
            assert_eq!(claimed & !0xffff, neighbours);
            assert!(Tag::of(claimed).is_of(Tag::BUSY) && Tag::of(claimed) != Tag::of(word | Tag::BUSY));
            for protocol in 0..0x7ff {
                let settled = claimed & Tag::settled(protocol);
                assert_eq!((settled & !0xffff, Tag::of(settled).is_of(protocol)), (neighbours, true));
            }
        }
    }
}
