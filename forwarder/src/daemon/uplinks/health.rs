//! Whether a line works, from how its probes fared: not one lost packet decides, but several in a row. Pure.

/// What is known of a line's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Health {
    up: bool,
    /// Probes in a row that said otherwise.
    against: u32,
}

impl Health {
    /// As it was known last, or as one hopes.
    pub(super) const fn new(up: bool) -> Self {
        Self { up, against: 0 }
    }

    /// Takes in how a probe fared; whether that changed the line's health. After `fall` failures in a row a line is
    /// down, after `rise` answers in a row it is up again.
    pub(super) fn note(&mut self, answered: bool, fall: u32, rise: u32) -> bool {
        if answered == self.up {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let enough = if self.up { fall } else { rise };
        let changes = self.against >= enough;
        if changes {
            *self = Self::new(answered);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes answers (`+`) and failures (`-`); the healths after each, in the same letters.
    fn healths(begins: bool, fall: u32, rise: u32, answers: &str) -> String {
        let mut health = Health::new(begins);
        answers
            .chars()
            .map(|answer| {
                let before = health.up;
                let changed = health.note(answer == '+', fall, rise);
                assert_eq!(changed, before != health.up);
                if health.up { '+' } else { '-' }
            })
            .collect()
    }

    #[test]
    fn it_takes_several_in_a_row() {
        let table = [
            (true, 3, 2, "+++", "+++"),
            (true, 3, 2, "---", "++-"),
            (true, 3, 2, "--+--+---", "++++++++-"),
            (true, 3, 2, "---+-+-++", "++------+"),
            (true, 1, 1, "-+-+", "-+-+"),
            (false, 3, 2, "+-++", "---+"),
            (false, 3, 2, "----", "----"),
            (false, 1, 3, "++-+++-", "-----+-"),
        ];
        for (begins, fall, rise, answers, expected) in table {
            assert_eq!(healths(begins, fall, rise, answers), expected, "{begins} {fall} {rise} {answers}");
        }
    }
}
