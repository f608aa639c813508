//! What a test binary says about its tests, for the progress display. Whether it passed, its exit status says.

/// A line that libtest prints about tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// So many tests are about to run.
    Running(u64),
    /// One has run.
    Test { name: &'a str, outcome: TestOutcome },
    /// The sums, such as `5 passed; 0 failed; …`.
    Summary(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestOutcome {
    Passed,
    Failed,
    Ignored,
}

/// Reads one line; `None` for what a test itself printed.
pub(crate) fn parse(line: &str) -> Option<Line<'_>> {
    if let Some(rest) = line.strip_prefix("running ") {
        let (count, noun) = rest.split_once(' ')?;
        return matches!(noun, "test" | "tests").then(|| count.parse().ok().map(Line::Running)).flatten();
    }
    if let Some(rest) = line.strip_prefix("test result: ") {
        return rest.split_once(". ").map(|(_, sums)| Line::Summary(sums));
    }
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome.split([',', ' ']).next()? {
        "ok" => TestOutcome::Passed,
        "FAILED" => TestOutcome::Failed,
        "ignored" => TestOutcome::Ignored,
        _ => return None,
    };
    Some(Line::Test { name, outcome })
}

/// The test that libtest announced in a line it has not ended: the one that is running.
pub(crate) fn running(unfinished: &str) -> Option<&str> {
    unfinished.strip_prefix("test ")?.strip_suffix(" ... ")
}

#[cfg(test)]
mod tests {
    use super::{Line, TestOutcome, parse, running};

    fn test(name: &str, outcome: TestOutcome) -> Line<'_> {
        Line::Test { name, outcome }
    }

    #[test]
    fn lines() {
        let table = [
            ("running 1 test", Some(Line::Running(1))),
            ("running 42 tests", Some(Line::Running(42))),
            ("running for 3 seconds", None),
            ("test xdp::dnat ... ok", Some(test("xdp::dnat", TestOutcome::Passed))),
            ("test a ... ok <0.05s>", Some(test("a", TestOutcome::Passed))),
            ("test a - should panic ... ok", Some(test("a - should panic", TestOutcome::Passed))),
            ("test a ... FAILED", Some(test("a", TestOutcome::Failed))),
            ("test a ... ignored", Some(test("a", TestOutcome::Ignored))),
            ("test a ... ignored, needs two NICs", Some(test("a", TestOutcome::Ignored))),
            ("test a ... what", None),
            ("test a has been running for over 60 seconds", None),
            (
                "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.10s",
                Some(Line::Summary("5 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.10s")),
            ),
            ("0: R1=ctx() R10=fp0", None),
            ("", None),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn the_running_test() {
        assert_eq!(running("test a::b ... "), Some("a::b"));
        assert_eq!(running("test a::b ... ok"), None);
        assert_eq!(running(""), None);
    }
}
