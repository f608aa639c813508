//! Counting test results out of what Rust's test harness prints.

use std::fmt;

/// How many tests passed, failed and were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Tally {
    /// Takes in a line of output; only those with sums count, like "test result: ok. 5 passed; 0 failed; 2 ignored; …".
    pub(super) fn read(&mut self, line: &str) {
        if !line.contains(" passed; ") {
            return;
        }
        for part in line.split(';') {
            let mut words = part.split_whitespace().rev();
            let (Some(what), Some(number)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn result_lines() {
        for (line, passed, failed, skipped) in [
            ("test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.00s", 5, 0, 2),
            (
                "test result: FAILED. 4 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 12.34s",
                4,
                3,
                0,
            ),
            ("test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 7 passed; 0 failed; 0 ignored; 0 measured", 7, 0, 0),
            ("running 5 tests", 0, 0, 0),
            ("kernel 6.1: progrun: 41 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out", 41, 1, 0),
            ("test checksum ... ok", 0, 0, 0),
        ] {
            let mut tally = Tally::default();
            tally.read(line);
            assert_eq!(tally, Tally { passed, failed, skipped }, "{line}");
        }
    }

    #[test]
    fn sums() {
        let mut tally = Tally::default();
        for _ in 0..2 {
            tally.add(Tally { passed: 2, failed: 1, skipped: 0 });
        }
        assert_eq!(tally.to_string(), "4 passed, 2 failed");
        tally.skipped = 3;
        assert_eq!(tally.to_string(), "4 passed, 2 failed, 3 skipped");
    }
}
