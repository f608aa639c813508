//! Threads that serve inside a host until they are dropped, and how long anybody waits for anything.

use std::env;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long to wait for an event that must come: 30 s, or `FORWARDER_LAB_PATIENCE` seconds (emulated machines are slow).
/// Nobody waits this long when all is well.
pub fn patience() -> Duration {
    let seconds = env::var("FORWARDER_LAB_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// How long to wait for an answer that must not come: a thirtieth of [`patience`]. Always waited for in full, so where anything
/// else can be sent that shows the same (see `Capture::until`), that is better.
pub fn silence() -> Duration {
    patience() / 30
}

/// A serving thread. Dropping it tells the thread to stop, and waits until it has.
pub(crate) struct Service {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts `serve` with the [`Bell`] that rings when it must stop.
    pub(crate) fn start(serve: impl FnOnce(&Bell) + Send + 'static) -> Result<Self> {
        // A program started meanwhile must not keep it open: the bell rings when the last copy is closed.
        let (hears, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let thread = thread::Builder::new().spawn(move || serve(&Bell(hears)))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was already printed by it.
            let _ = thread.join();
        }
    }
}

/// Tells a serving thread that its time is over.
pub(crate) struct Bell(OwnedFd);

impl Bell {
    /// Whether it is ringing.
    pub(crate) fn rings(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    /// Waits until one of `sources` can be read: `true`; or until the service must stop: `false`.
    pub(crate) fn wait_for(&self, sources: &[BorrowedFd<'_>]) -> bool {
        let mut fds: Vec<PollFd<'_>> = std::iter::once(self.0.as_fd())
            .chain(sources.iter().copied())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        let rings = fds.first().and_then(PollFd::revents).is_none_or(|events| !events.is_empty());
        !rings
    }
}

/// Waits until `fd` can be read, or until `deadline`: `false`.
pub(crate) fn readable_before(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a wait of 0 ms in the last millisecond would spin.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Tries again while the address belongs to somebody who is just going: the last ACK of a connection is on its way, or a
/// program that another thread is starting still holds a copy of a closed socket. The kernel tells nobody when it is free.
pub fn when_free<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + patience();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

/// The peers that a server has seen, in order of appearance.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<(Mutex<Vec<SocketAddr>>, Condvar)>);

impl Peers {
    pub(crate) fn add(&self, peer: SocketAddr) {
        let (list, changed) = &*self.0;
        list.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        changed.notify_all();
    }

    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there are `count` of them.
    pub(crate) fn wait_for(&self, count: usize) -> Result<Vec<SocketAddr>> {
        let (list, changed) = &*self.0;
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, _) = changed
            .wait_timeout_while(list, patience(), |list| list.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        if list.len() < count {
            bail!("only {} of {count} peers came within {:?}: {list:?}", list.len(), patience());
        }
        Ok(list.clone())
    }
}

/// Gives up on a silent peer instead of hanging a test.
pub(crate) fn impatient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))
}
