//! What a person at the terminal sees while a guest runs, and what a log of CI gets.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    libtest::{self, Line, TestOutcome},
    report::Event,
};

/// Shows events; keeps the output of the current step for when it fails.
pub(crate) struct Progress {
    all: MultiProgress,
    bar: ProgressBar,
    /// The kernel, for people.
    kernel: String,
    /// Output goes to standard output as it comes, for a command that was given.
    verbatim: bool,
    started: Instant,
    step: Option<Shown>,
}

/// The current step.
struct Shown {
    name: String,
    started: Instant,
    output: Vec<String>,
    ran: u64,
    of: u64,
    failed: u64,
    summary: Option<String>,
}

impl Progress {
    /// One of several that run at the same time.
    pub(crate) fn new(all: &MultiProgress, kernel: &str, verbatim: bool) -> Self {
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_prefix(format!("kernel {kernel}:"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { all: all.clone(), bar, kernel: kernel.to_owned(), verbatim, started: Instant::now(), step: None }
    }

    /// Something that takes a while begins.
    pub(crate) fn phase(&self, what: &str) {
        if self.bar.is_hidden() && !self.verbatim {
            eprintln!("kernel {}: {what}", self.kernel);
        }
        self.bar.set_message(what.to_owned());
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        self.all.suspend(|| eprintln!("kernel {}: {text}", self.kernel));
    }

    /// Shows one event of the guest.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Ready if !self.verbatim => {
                self.line(&format!("booted in {}", seconds(self.started)));
            }
            Event::Begin(name) => {
                self.step = Some(Shown {
                    name: name.clone(),
                    started: Instant::now(),
                    output: Vec::new(),
                    ran: 0,
                    of: 0,
                    failed: 0,
                    summary: None,
                });
                self.phase(&format!("running {name}"));
            }
            Event::Output(line) => self.output(line),
            Event::End { status, .. } => self.end(*status),
            Event::Ready | Event::Done => {}
        }
    }

    /// Shows what the guest printed of a line that it has not ended.
    pub(crate) fn unfinished(&self, text: &str) {
        if let (Some(step), Some(test)) = (&self.step, libtest::running(text)) {
            self.bar.set_message(step.counts(test));
        }
    }

    fn output(&mut self, line: &str) {
        if self.verbatim {
            self.all.suspend(|| println!("{line}"));
            return;
        }
        let Some(step) = &mut self.step else {
            return;
        };
        match libtest::parse(line) {
            Some(Line::Running(count)) => step.of = count,
            Some(Line::Test { name, outcome }) => {
                step.ran += 1;
                if outcome == TestOutcome::Failed {
                    step.failed += 1;
                }
                self.bar.set_message(step.counts(name));
            }
            Some(Line::Summary(sums)) => {
                // Said again at the end, and whoever counts tests shall not count them twice.
                step.summary = Some(sums.to_owned());
                return;
            }
            None => {}
        }
        step.output.push(line.to_owned());
    }

    fn end(&mut self, status: i32) {
        let Some(step) = self.step.take() else {
            return;
        };
        if self.verbatim {
            if status != 0 {
                self.line(&format!("exit status {status}"));
            }
            return;
        }
        if status != 0 {
            self.show(&step);
        }
        let result = if status == 0 { "ok".to_owned() } else { format!("FAILED (exit status {status})") };
        let sums = step.summary.unwrap_or_else(|| format!("finished in {}", seconds(step.started)));
        // The result is what standard output is for; everything else is about how it came to be.
        let line = format!("kernel {}: {} {result}: {sums}", self.kernel, step.name);
        self.all.suspend(|| println!("{line}"));
    }

    /// Prints what the step under way has said so far: the guest ended in the middle of it.
    pub(crate) fn abandon(&mut self) {
        if let Some(step) = self.step.take() {
            self.show(&step);
        }
    }

    /// Prints the whole output of a step: a verifier's log is often long, and its end alone says little.
    fn show(&self, step: &Shown) {
        self.all.suspend(|| {
            let mut stdout = io::stdout().lock();
            for line in &step.output {
                // A closed standard output is no reason to lose the result.
                if writeln!(stdout, "{line}").is_err() {
                    return;
                }
            }
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Shown {
    fn counts(&self, test: &str) -> String {
        let failed = if self.failed == 0 { String::new() } else { format!(", {} failed", self.failed) };
        format!("{} {}/{}{failed}: {test}", self.name, self.ran, self.of)
    }
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f32())
}
