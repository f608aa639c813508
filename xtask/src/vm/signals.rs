//! Signals that ask to stop.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// Holds SIGINT, SIGTERM and SIGHUP back from ending this process before its children, until dropped; readable when one
/// has come.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Those that were not held before.
    added: SigSet,
    file: SignalFd,
}

impl Signals {
    /// Call it before any other thread starts: a signal goes to whichever thread lets it through.
    pub(crate) fn hold() -> Result<Self> {
        let stop: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        let before = SigSet::thread_get_mask()?;
        stop.thread_block()?;
        Ok(Self {
            added: stop.iter().filter(|signal| !before.contains(*signal)).collect(),
            file: SignalFd::with_flags(&stop, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// The signal that has come, if one has.
    pub(crate) fn take(&self) -> Result<Option<Signal>> {
        let Some(info) = self.file.read_signal()? else {
            return Ok(None);
        };
        Ok(Some(Signal::try_from(i32::try_from(info.ssi_signo)?)?))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What came is dealt with; let through now, it would end this process.
        while let Ok(Some(_)) = self.take() {}
        // Cannot fail: these signals exist.
        let _ = self.added.thread_unblock();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use nix::sys::signal::{SigSet, Signal, raise};

    use super::Signals;

    #[test]
    fn a_signal_is_held_read_and_let_through_again() {
        let signals = Signals::hold().unwrap();
        assert_eq!(signals.take().unwrap(), None);
        // To this thread: other tests' threads hold nothing.
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.take().unwrap(), Some(Signal::SIGTERM));
        assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
        drop(signals);
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    }
}
