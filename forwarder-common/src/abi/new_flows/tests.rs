#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::vec;

use super::*;
use crate::abi::flow_table::tests::{key4, key6, seeds};

/// How many of a full table's entries a bucket would have to push out.
fn pushed_out<A: Slotted>(key: fn(u32) -> FlowKey<A>) -> u32 {
    const FLOWS: u32 = 1 << 15;
    let hash = FlowHash { seeds: seeds(3), mask: 0, used: 0, buckets: FlowHash::buckets(FLOWS), unused: 0 };
    let mut buckets = vec![0; hash.buckets as usize];
    for n in 0..2 * FLOWS {
        buckets[hash.bucket(&key(n), 0).0 as usize] += 1;
    }
    buckets.iter().map(|held: &u32| held.saturating_sub(WAYS)).sum()
}

#[test]
fn by_chance_alone_few_are_pushed_out_of_a_full_table() {
    let (v4, v6) = (pushed_out(key4), pushed_out(key6));
    // Poisson with a mean of 8: 0.0016 of them stand above 16.
    assert!(v4 < 200 && v6 < 200, "{v4} and {v6} of 65536");
}

#[test]
fn every_bucket_is_used() {
    for buckets in [1, 16, 17, 1000] {
        let hash = FlowHash { seeds: seeds(5), mask: 0, used: 0, buckets, unused: 0 };
        let mut used = vec![false; buckets as usize];
        for n in 0..32 * buckets {
            used[hash.bucket(&key4(n), 0).0 as usize] = true;
        }
        assert!(used.iter().all(|used| *used), "{buckets} buckets");
    }
    assert_eq!([1, 4, 5, 8192].map(FlowHash::buckets), [1, 1, 2, 2048]);
}

#[test]
fn a_mark_is_like_those_of_its_key_at_any_time() {
    let mark = Mark::new(0xffff_1234, 77);
    assert!(!mark.is_free());
    assert!(Mark::default().is_free());
    for now in [0, 77, 0xffff, 0xdead_beef] {
        assert!(mark.is_like(Mark::new(0x1234, now)), "now {now}");
        assert!(!mark.is_like(Mark::new(0x1235, now)), "now {now}");
    }
    // A hash of 0 is not like a free way.
    assert!(!Mark::default().is_like(Mark::new(0, 0)));
    assert!(mark.is_like(mark.sought(1077).unwrap()));
}

#[test]
fn being_looked_for_is_noted_not_too_often() {
    let mark = Mark::new(9, 0xffff_fffe);
    assert_eq!(mark.sought(0xffff_fffe), None, "the packet that made it");
    let sought = mark.sought(0xffff_ffff).unwrap();
    assert_eq!(sought.0, mark.0 | 1 << 30 | 0x3_ffff);
    assert_eq!(sought.sought(6), None);
    assert_eq!(sought.sought(7), Some(Mark(mark.0 & !0x3_ffff | 1 << 30 | 7)));
    // Another CPU read the clock before that.
    assert_eq!(sought.sought(0xffff_ffff - 40), None);
}

#[test]
fn free_ways_make_room_first_then_the_oldest() {
    let now = 1_000_000;
    let old = |ticks: u32| Mark::new(1, now - ticks);
    let sought = |ticks: u32| Mark::new(1, now - ticks - 100).sought(now - ticks).unwrap();
    // The one that makes room first, first.
    let order =
        [Mark::default(), old(0x3_ffff - 64), old(500), sought(2100), old(460), sought(1900), old(10), sought(0)];
    let precedence = order.map(|mark| mark.precedence(now));
    assert!(precedence.is_sorted_by(|a, b| a > b), "{precedence:?}");
    assert_eq!(precedence[3], (2100 + 64) / 4);
    // What another CPU has just entered, by a clock that it read later, is young.
    let newest = Mark::new(1, now + 60).precedence(now);
    assert!(newest < old(10).precedence(now), "{newest}");
}
