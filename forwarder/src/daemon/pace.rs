//! When to act on news: at once, but not all the time. Pure.

use std::time::{Duration, Instant};

use super::news::Stale;

/// The least time between two passes: what one change of the machine makes the kernel say comes within less.
const REST: Duration = Duration::from_millis(10);
/// A pass over many rules takes its time; so many times that is left between two, whatever keeps coming.
const SHARE: u32 = 4;
/// But no longer than this: programs for a new interface take long, and its addresses come right after it.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// What waits to be done, and since when it may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    stale: Stale,
    not_before: Instant,
}

impl Pace {
    /// Nothing to do yet.
    pub(super) const fn new(now: Instant) -> Self {
        Self { stale: Stale::NOTHING, not_before: now }
    }

    /// Something more to do.
    pub(super) fn note(&mut self, stale: Stale) {
        self.stale |= stale;
    }

    /// It could not be done; again then, with what comes until then.
    pub(super) fn retry(&mut self, stale: Stale, at: Instant) {
        self.stale |= stale;
        self.not_before = at;
    }

    /// When there is something to do: now if that is past.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.stale != Stale::NOTHING).then_some(self.not_before)
    }

    /// What is to be done, which is being done now.
    pub(super) fn take(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// It was done from `began` to `now`.
    pub(super) fn done(&mut self, began: Instant, now: Instant) {
        self.not_before = now + (now.duration_since(began) * SHARE).clamp(REST, LONGEST_REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_news_is_acted_on_at_once_and_a_burst_after_it_once() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(start);
        assert_eq!(pace.due(), None);
        pace.note(Stale::EVERYTHING);
        assert!(pace.due().is_some_and(|due| due <= at(0)));
        assert_eq!(pace.take(), Stale::EVERYTHING);
        pace.done(at(0), at(1));
        assert_eq!(pace.due(), None, "nothing came meanwhile");
        for _ in 0..1000 {
            pace.note(Stale { next_hops: true, rules: false });
        }
        assert_eq!(pace.due(), Some(at(11)));
        assert_eq!(pace.take(), Stale { next_hops: true, rules: false }, "once for all of them");
        pace.done(at(11), at(21));
        pace.note(Stale::EVERYTHING);
        assert_eq!(pace.due(), Some(at(61)), "what takes long is done less often");
        pace.take();
        pace.done(at(61), at(3061));
        pace.note(Stale::EVERYTHING);
        assert_eq!(pace.due(), Some(at(3161)), "but soon");
    }
}
