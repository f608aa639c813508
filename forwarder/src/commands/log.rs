//! `log`: follows what the programs log.

use std::{
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};

use super::{Instance, require_reading};
use crate::{bpf, config::LogLevel};

/// Prints log records as they come.
#[derive(Default)]
struct Printer {
    /// Nobody reads our output any more.
    closed: AtomicBool,
}

impl log::Log for &Printer {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = writeln!(io::stdout(), "{:5} {}", record.level(), record.args());
        if line.is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// Runs the command; Ctrl-C ends the process, which has nothing to clean up.
pub fn run(pins: &Path) -> Result<()> {
    require_reading()?;
    let instance = Instance::open(pins)?;
    let level = instance.state.config.log;
    if level == LogLevel::Off {
        bail!("the programs log nothing; to change that: forwarder unload, then forwarder load --log info");
    }
    eprintln!("following the log at level {level}; Ctrl-C ends");
    let printer = Printer::default();
    let slot = instance.state.interfaces.first().map_or(0, |interface| interface.slot);
    let program = format!("tc_{slot}");
    let enough = || printer.closed.load(Ordering::Relaxed);
    bpf::log::follow(pins, &program, &printer, enough)
}
