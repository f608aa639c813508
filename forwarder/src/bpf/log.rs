//! Following what the programs log.

use std::{os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result, bail};
use aya_log::{EbpfLogger, Error};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    attach,
    load::{TC, TC_L3},
};

/// Hands every message that the instance's programs log to `sink`, until that says it has enough.
///
/// Each message goes to one reader only.
pub fn follow(pins: &Path, sink: impl log::Log, enough: impl Fn() -> bool) -> Result<()> {
    // Any program will do: they share one log.
    let program = if attach::is_pinned(pins, TC) { TC } else { TC_L3 };
    let id = attach::pinned_program(pins, program)?;
    let mut logger = match EbpfLogger::init_from_id_with_logger(id, sink) {
        Ok(logger) => logger,
        Err(Error::MapNotFound) => bail!("the running programs have no log; were they built without it?"),
        Err(error) => return Err(error).with_context(|| format!("cannot open the log of program {program}, id {id}")),
    };
    while !enough() {
        let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => logger.flush(),
            Err(errno) => return Err(errno).context("cannot wait for log messages"),
        }
    }
    Ok(())
}
