//! A program running in the background.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::service::patience;

/// A program that is killed when this is dropped. Its output is collected, both streams together, line by line.
pub struct Spawned {
    child: Child,
    left: bool,
    shown: String,
    lines: Lines,
}

#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Default)]
struct Collected {
    lines: Vec<String>,
    ended_streams: usize,
}

const STREAMS: usize = 2;

impl Spawned {
    /// Starts a command, usually one made by [`Host::command`](crate::Host::command).
    pub fn start(mut command: Command) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let lines = Lines::default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        lines.collect(stdout);
        lines.collect(stderr);
        Ok(Self { child, left: false, shown, lines })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lets the program go on without this process. It must not print any more: nobody would read it.
    pub fn leave_running(mut self) {
        self.left = true;
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.lines.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// Waits for a line, already printed or still to come, that `matches`, and returns it.
    pub fn wait_for_line(&self, matches: impl Fn(&str) -> bool) -> Result<String> {
        let (collected, changed) = &*self.lines.0;
        let found = |collected: &Collected| collected.lines.iter().find(|line| matches(line)).cloned();
        let guard = collected.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = changed
            .wait_timeout_while(guard, patience(), |now| found(now).is_none() && now.ended_streams < STREAMS)
            .unwrap_or_else(PoisonError::into_inner);
        match found(&guard) {
            Some(line) => Ok(line),
            None => bail!("{} did not print the awaited line; it said: {:?}", self.shown, guard.lines),
        }
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let (collected, changed) = &*self.lines.0;
        let guard = collected.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = changed
            .wait_timeout_while(guard, patience(), |now| now.ended_streams < STREAMS)
            .unwrap_or_else(PoisonError::into_inner);
        if guard.ended_streams < STREAMS {
            bail!("{} did not end within {:?}", self.shown, patience());
        }
        drop(guard);
        self.child.wait().with_context(|| format!("cannot wait for {}", self.shown))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // Both fail only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn collect(&self, stream: Option<impl Read + Send + 'static>) {
        let lines = self.clone();
        thread::spawn(move || {
            let read = stream.into_iter().flat_map(|stream| BufReader::new(stream).lines()).map_while(Result::ok);
            for line in read {
                lines.change(|now| now.lines.push(line));
            }
            lines.change(|now| now.ended_streams += 1);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Collected)) {
        let (collected, changed) = &*self.0;
        change(&mut collected.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }
}
