//! Lines of the results port → events.
//!
//! The port carries what the steps print, unchanged, and between steps lines `@NONCE WORD...` of
//! `tests/vm/guest.sh`. Those start with a line break, since the output before them may not have ended its line.

/// What the guest says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The host's root is mounted and steps are about to run.
    Ready,
    /// The step with this name starts.
    Begin(String),
    /// A line printed by the current step, without its line break.
    Output(String),
    /// The step ended with this exit status.
    End { step: String, status: i32 },
    /// All steps ended.
    Done,
}

/// Puts chunks of bytes together to lines and tells results from output.
#[derive(Debug)]
pub(crate) struct Parser {
    mark: String,
    /// The line not ended yet.
    partial: Vec<u8>,
    /// An empty line that is output unless a mark follows.
    empty: bool,
}

impl Parser {
    pub(crate) fn new(nonce: &str) -> Self {
        Self { mark: format!("@{nonce} "), partial: Vec::new(), empty: false }
    }

    /// Takes the next bytes; returns what they complete.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, next) = rest.split_at(end);
            self.partial.extend_from_slice(line);
            rest = next.get(1..).unwrap_or_default();
            let line = std::mem::take(&mut self.partial);
            self.line(&String::from_utf8_lossy(&line), &mut events);
        }
        self.partial.extend_from_slice(rest);
        events
    }

    /// What the guest printed of a line that it has not ended.
    pub(crate) fn unfinished(&self) -> String {
        String::from_utf8_lossy(&self.partial).into_owned()
    }

    fn line(&mut self, line: &str, events: &mut Vec<Event>) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let mark = line.strip_prefix(&self.mark).and_then(parse_mark);
        let held = std::mem::take(&mut self.empty);
        if let Some(event) = mark {
            events.push(event);
            return;
        }
        if held {
            events.push(Event::Output(String::new()));
        }
        if line.is_empty() {
            self.empty = true;
        } else {
            events.push(Event::Output(line.to_owned()));
        }
    }
}

fn parse_mark(mark: &str) -> Option<Event> {
    let words: Vec<&str> = mark.split(' ').collect();
    match *words.as_slice() {
        ["ready"] => Some(Event::Ready),
        ["begin", step] => Some(Event::Begin(step.to_owned())),
        ["end", step, status] => Some(Event::End { step: step.to_owned(), status: status.parse().ok()? }),
        ["done"] => Some(Event::Done),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Parser};

    fn output(line: &str) -> Event {
        Event::Output(line.to_owned())
    }

    fn begin(step: &str) -> Event {
        Event::Begin(step.to_owned())
    }

    fn end(step: &str, status: i32) -> Event {
        Event::End { step: step.to_owned(), status }
    }

    fn parse(stream: &str) -> Vec<Event> {
        Parser::new("n").take(stream.as_bytes())
    }

    #[test]
    fn a_whole_run() {
        let stream = "\n@n ready\n\n@n begin a\none\n\ntwo\n\n@n end a 0\n\n@n begin b\n\n@n end b 101\n\n@n done\n";
        let expected = [
            Event::Ready,
            begin("a"),
            output("one"),
            output(""),
            output("two"),
            end("a", 0),
            begin("b"),
            end("b", 101),
            Event::Done,
        ];
        assert_eq!(parse(stream), expected);

        // The same in every split in two, and byte by byte.
        for cut in 0..=stream.len() {
            let (head, tail) = stream.split_at(cut);
            let mut parser = Parser::new("n");
            let mut events = parser.take(head.as_bytes());
            events.extend(parser.take(tail.as_bytes()));
            assert_eq!(events, expected, "cut at {cut}");
        }
        let mut parser = Parser::new("n");
        let events: Vec<_> = stream.bytes().flat_map(|byte| parser.take(&[byte])).collect();
        assert_eq!(events, expected);
    }

    #[test]
    fn output_that_ends_in_the_middle_of_a_line() {
        assert_eq!(parse("half\n@n end a 1\n"), [output("half"), end("a", 1)]);
    }

    #[test]
    fn output_that_ends_with_empty_lines_keeps_all_but_the_separator() {
        assert_eq!(parse("x\n\n\n@n end a 0\n"), [output("x"), output(""), end("a", 0)]);
    }

    #[test]
    fn what_is_not_exactly_a_mark_is_output() {
        for line in [
            "@m end a 0",
            "@nend a 0",
            " @n end a 0",
            "@n",
            "@n end a",
            "@n end a 0 0",
            "@n end a zero",
            "@n begin",
            "@n done now",
        ] {
            assert_eq!(parse(&format!("{line}\n")), [output(line)]);
        }
    }

    #[test]
    fn carriage_returns_and_broken_utf8() {
        assert_eq!(parse("a\r\n"), [output("a")]);
        let mut parser = Parser::new("n");
        assert_eq!(parser.take(b"\xff\n"), [output("\u{fffd}")]);
        assert!(parser.take(b"test x ... ").is_empty());
        assert_eq!(parser.unfinished(), "test x ... ");
    }
}
