//! `log`: follows what the programs log.

use std::{
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};
use forwarder_common::verdict::Outcome;

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
        let line = writeln!(io::stdout(), "{}", readable(&record.args().to_string()));
        if line.is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// A record in words: the programs write numbers (`outcome 13 protocol 6 from …`), for they have no strings to choose
/// from. What is not of that form stays as it is.
fn readable(record: &str) -> String {
    let mut words = record.split(' ');
    let named = (|| {
        let (Some("outcome"), Some(outcome)) = (words.next(), words.next()) else { return None };
        let (Some("protocol"), Some(protocol)) = (words.next(), words.next()) else { return None };
        let outcome = Outcome::ALL.get(outcome.parse::<usize>().ok()?)?.name();
        let protocol = match protocol {
            "1" => "icmp",
            "6" => "tcp",
            "17" => "udp",
            "58" => "icmpv6",
            "132" => "sctp",
            other => return Some(format!("{outcome}: protocol {other}")),
        };
        Some(format!("{outcome}: {protocol}"))
    })();
    let rest: Vec<_> = words.collect();
    named.map_or_else(|| record.to_owned(), |named| format!("{named} {}", rest.join(" ")))
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
    let enough = || printer.closed.load(Ordering::Relaxed);
    bpf::log::follow(pins, &printer, enough)
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn numbers_become_words() {
        let number = super::Outcome::DropTtl as u32;
        assert_eq!(
            readable(&format!("outcome {number} protocol 6 from 192.0.2.1 port 4000 to 192.0.2.2 port 80")),
            "drop_ttl: tcp from 192.0.2.1 port 4000 to 192.0.2.2 port 80"
        );
        assert_eq!(readable("outcome 0 protocol 47 from ::1 port 0"), "forwarded: protocol 47 from ::1 port 0");
        for other in ["", "something else", "outcome x protocol 6", "outcome 999 protocol 6 from"] {
            assert_eq!(readable(other), other);
        }
    }
}
