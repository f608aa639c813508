use super::{Event, Outcome, Parser, Tally};

fn end(status: i32) -> Event {
    Event::End { step: "a".to_owned(), status }
}

#[test]
fn outcomes() {
    let table: [(usize, &[i32], Outcome); 6] = [
        (0, &[], Outcome::Passed),
        (1, &[0], Outcome::Passed),
        (2, &[0, 0], Outcome::Passed),
        (2, &[101, 0], Outcome::Failed),
        (1, &[-1], Outcome::Failed),
        (2, &[0], Outcome::Lost("only 1 of 2 steps ran".to_owned())),
    ];
    for (steps, statuses, expected) in table {
        let mut tally = Tally::new(steps);
        assert_eq!(tally.count(Event::Ready), None);
        for &status in statuses {
            assert_eq!(tally.count(Event::Begin("a".to_owned())), None);
            assert_eq!(tally.count(end(status)), None);
        }
        assert_eq!(tally.count(Event::Done), Some(expected), "{statuses:?}");
    }
}

#[test]
fn place_of_a_guest_that_hangs() {
    let mut parser = Parser::new("n");
    let mut tally = Tally::new(1);
    assert_eq!(tally.place(&parser), "it was still booting");
    tally.count(Event::Ready);
    assert_eq!(tally.place(&parser), "it was between two steps");
    tally.count(Event::Begin("progrun".to_owned()));
    assert_eq!(tally.place(&parser), "it was running progrun");
    parser.take(b"test x ... ");
    assert_eq!(tally.place(&parser), "it was running progrun, at \"test x ...\"");
}
