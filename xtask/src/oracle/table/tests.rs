use std::time::Duration;

use super::super::{Counts, Family, Mode, Ran, Setting, Source};
use super::{names, settings, thousands};

fn ran(family: Family, said: &str, broke: bool) -> Ran {
    let setting = Setting { source: Source::Prefix, family, mode: Mode::Tc };
    Ran { setting, took: Duration::from_secs(61), counts: Counts::parse(said).unwrap_or_default(), broke }
}

#[test]
fn what_the_test_says_as_tables() {
    let all = [
        ran(Family::V4, r#"{"sent":4000,"same":3990,"explained":{"one":7,"two":3},"unexplained":0}"#, false),
        ran(Family::V6, r#"{"sent":100000,"same":98999,"explained":{"two":1000},"unexplained":1}"#, false),
        ran(Family::V6, "note: run with RUST_BACKTRACE", true),
    ];
    let expected = "\
| setting      | packets | the same | differ as explained | unexplained | time |
|--------------|--------:|---------:|--------------------:|------------:|-----:|
| prefix_v4_tc |   4,000 |    3,990 |                  10 |           0 | 61 s |
| prefix_v6_tc | 100,000 |   98,999 |               1,000 |           1 | 61 s |
| prefix_v6_tc |       0 |        0 |                   0 |   broke off | 61 s |
";
    assert_eq!(settings(&all), expected);
    let expected = "\
| differs by | v4 tc | v6 tc |
|------------|------:|------:|
| one        |     7 |     0 |
| two        |     3 | 1,000 |
";
    assert_eq!(names(&all), expected);
}

#[test]
fn digits_in_threes() {
    for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(thousands(number), text);
    }
}
