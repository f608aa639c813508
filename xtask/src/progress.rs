//! Long steps, each with a name: a spinner with the time and the latest line of output on a terminal, one line at the
//! beginning and one at the end elsewhere.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, IsTerminal as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How much of a failed command's output an error shows.
const LINES_OF_FAILURE: usize = 40;

/// A step under way. Dropped without `done` it leaves its name marked as failed.
pub(crate) struct Step {
    name: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    ended: bool,
}

impl Step {
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let spinner = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style).with_prefix(name.clone());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            eprintln!("… {name}");
        }
        Self { name, started: Instant::now(), spinner, ended: false }
    }

    /// Runs a command as part of the step; its output shows only as it passes by, or when it fails.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let shown = format!("{command:?}");
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        command.stdin(Stdio::null()).stdout(writer.try_clone().context("cannot copy a pipe")?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        // The command holds the writing ends; without this the loop below would wait for ourselves.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let mut last = VecDeque::with_capacity(LINES_OF_FAILURE);
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line.context("cannot read a command's output")?).trim_end().to_owned();
            if let Some(spinner) = &self.spinner {
                spinner.set_message(line.clone());
            }
            if last.len() == LINES_OF_FAILURE {
                last.pop_front();
            }
            last.push_back(line);
        }
        let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
        if !status.success() {
            bail!("{shown} failed ({status}); its last lines:\n  {}", Vec::from(last).join("\n  "));
        }
        Ok(())
    }

    /// How far it is.
    pub(crate) fn message(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(text.to_owned());
        }
    }

    pub(crate) fn done(mut self) {
        self.end('✓');
    }

    fn end(&mut self, mark: char) {
        self.ended = true;
        let line = format!("{mark} {} ({})", self.name, seconds(self.started.elapsed()));
        match &self.spinner {
            Some(spinner) => {
                spinner.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end('✗');
        }
    }
}

/// A duration for people: "0.3 s", "75 s".
pub(crate) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} s", duration.as_secs())
    }
}
