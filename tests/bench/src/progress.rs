//! How far the bench is: a bar on a terminal, a line for each part elsewhere.

use std::borrow::Cow;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// Of so many steps.
    pub(crate) fn new(steps: usize) -> Result<Self> {
        let bar = ProgressBar::new(steps as u64);
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {bar:30} {percent:>3}% {wide_msg}")?);
        bar.enable_steady_tick(Duration::from_millis(100));
        Ok(Self { bar, terminal: std::io::stderr().is_terminal() })
    }

    /// Begins a part.
    pub(crate) fn part(&self, title: &str) {
        if self.terminal {
            self.bar.set_message(title.to_owned());
        } else {
            eprintln!("… {title}");
        }
    }

    /// What is going on.
    pub(crate) fn show(&self, text: impl Into<Cow<'static, str>>) {
        self.bar.set_message(text);
    }

    /// One more step is done.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
