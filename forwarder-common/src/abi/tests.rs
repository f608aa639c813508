use super::*;

#[test]
fn a_rule_reference_switches_at_its_generation_and_not_before() {
    let change = RuleRef { before: 7, after: 9, at: 4 };
    assert_eq!(change.slot(3), Some(7));
    assert_eq!(change.slot(4), Some(9));
    let added = RuleRef { before: 0, after: 9, at: 4 };
    assert_eq!((added.slot(3), added.slot(4)), (None, Some(9)));
    let removed = RuleRef { before: 9, after: 0, at: 4 };
    assert_eq!((removed.slot(3), removed.slot(4)), (Some(9), None));
    assert_eq!(RuleRef::settled(5).slot(1), Some(5));
}

#[test]
fn ticks_round_up_and_saturate() {
    assert_eq!(ticks_from_millis(0), 0);
    assert_eq!(ticks_from_millis(1), 1);
    assert_eq!(ticks_from_millis(1049), 1001);
    assert_eq!(ticks_from_millis(u64::MAX), u32::MAX / 2);
}

#[test]
fn elapsed_time_survives_the_wrap_of_the_clock() {
    assert_eq!(elapsed(5, u32::MAX - 4), 10);
}

#[test]
fn a_reading_of_another_cpu_that_is_ahead_is_no_time_ago() {
    assert_eq!(elapsed(5, 6), 0);
    assert_eq!(elapsed(u32::MAX, 3), 0);
    assert_eq!(elapsed(7, 7), 0);
    // The longest time that can be told: 26 days.
    assert_eq!(elapsed(u32::MAX / 2, 0), u32::MAX / 2);
    assert_eq!(elapsed(0, u32::MAX / 2 + 2), u32::MAX / 2);
}
