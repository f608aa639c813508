//! What to take back when something fails half-way: the last step first.

use anyhow::{Error, Result};

/// Steps that have been done, and how each is undone. Dropping it undoes them all, unless [`Undo::keep`] was called.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<(String, Step<'a>)>,
}

/// How one step is undone.
type Step<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

impl<'a> Undo<'a> {
    /// Remembers how to undo the step just done; `what` names the undoing in messages.
    pub fn push(&mut self, what: impl Into<String>, undo: impl FnOnce() -> Result<()> + 'a) {
        self.steps.push((what.into(), Box::new(undo)));
    }

    /// Everything went well: nothing is undone.
    pub fn keep(mut self) {
        self.steps.clear();
    }

    /// Undoes everything now; what could not be undone.
    pub fn undo(mut self) -> Vec<Error> {
        self.take_back()
    }

    fn take_back(&mut self) -> Vec<Error> {
        let mut failures = Vec::new();
        while let Some((what, undo)) = self.steps.pop() {
            if let Err(error) = undo() {
                failures.push(error.context(what));
            }
        }
        failures
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for error in self.take_back() {
            eprintln!("forwarder: could not be undone: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_last_step_is_undone_first_and_a_failure_does_not_stop_the_others() {
        let done = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for step in 1..=3 {
            let done = &done;
            undo.push(format!("step {step}"), move || {
                done.borrow_mut().push(step);
                anyhow::ensure!(step != 2, "stuck");
                Ok(())
            });
        }
        let failures = undo.undo();
        assert_eq!(*done.borrow(), [3, 2, 1]);
        assert_eq!(failures.len(), 1);
    }

    #[test]
    fn what_is_kept_is_not_undone_and_what_is_dropped_is() {
        let count = RefCell::new(0);
        let mut kept = Undo::default();
        kept.push("kept", || {
            *count.borrow_mut() += 1;
            Ok(())
        });
        kept.keep();
        assert_eq!(*count.borrow(), 0);
        let mut dropped = Undo::default();
        dropped.push("dropped", || {
            *count.borrow_mut() += 10;
            Ok(())
        });
        drop(dropped);
        assert_eq!(*count.borrow(), 10);
    }
}
